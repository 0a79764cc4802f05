"""An augmentation of your own: a shade that falls over one side of the image, the same for the same sample.

In a recipe it is ``{type: "own_augmentation:Shade", strength: 0.5}``, if this file is in the folder that you start
from.
"""

import torch
from torch import Tensor

import distill
from augment.operation import Sampled


class Shade(Sampled):
    """``x' = x · (1 - strength · ramp)``, the ramp rising from 0 to 1 along a direction that is drawn by sample."""

    def __init__(self, strength: float = 0.5):
        super().__init__()
        self.strength = strength

    def sample(self, draws, shape) -> Tensor:
        return draws.uniform(0, (2, 1, 1)) * 2 - 1  # [B, 2, 1, 1], how the ramp rises to the right and downwards

    def apply(self, images: Tensor, direction: Tensor) -> Tensor:
        height, width = images.shape[2:]
        x = torch.linspace(-1, 1, width, device=images.device)
        y = torch.linspace(-1, 1, height, device=images.device)[:, None]
        slope = direction.to(images.device)
        ramp = (slope[:, :1] * x + slope[:, 1:] * y + 2) / 4  # [B, 1, H, W] in 0 … 1
        return images * (1 - self.strength * ramp)


def main() -> torch.Tensor:
    augment = distill.create_augment(
        "shared_geometry",  # the same crop and flip for both networks; the shade is the student's alone
        student=distill.InputSpec((48, 48)),
        teacher=distill.InputSpec((64, 64)),
        recipe=[{"type": "RandomResizedCrop", "scale": [0.5, 1.0]}, {"type": f"{__name__}:Shade", "strength": 0.6}],
        seed=7,
    )
    images = torch.full((4, 3, 80, 80), 200, dtype=torch.uint8)
    views = augment(images, torch.tensor([11, 12, 13, 14]), epoch=0)
    again = augment(images[:1], torch.tensor([13]), epoch=0)  # another batch, the same sample, the same view

    difference = (views.student[0][2] - again.student[0][0]).abs().max()
    print(f"teacher {list(views.teacher[0][0].shape)}, student {list(views.student[0].shape)}")
    print(f"a corner by sample: {[round(view[0, 0, 0].item(), 4) for view in views.student[0]]}")
    print(f"sample 13 in another batch differs by {float(difference):g}")
    return difference


if __name__ == "__main__":
    main()
