"""A delta of your own: each output channel of a layer is scaled by a learned factor, its bias left alone.

In a config it is ``{type: "own_delta:Gain", sites: "blocks.5.*"}``, if this file is in the folder that you start from.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

import distill
from distill.deltas.base import DeltaSettings, WeightDelta


class Gain(WeightDelta):
    """``W' = (1 + bound · tanh(g)) · W`` with g [out] starting at zero, so that a fresh delta changes nothing."""

    class Settings(DeltaSettings):
        bound: float = Field(0.5, gt=0, lt=1, description="a channel is scaled by 1 ± this at most")

    no_weight_decay = frozenset({"gain"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        self.gain = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))

    def forward(self, weight: Tensor) -> Tensor:
        factor = 1 + self.settings.bound * self.gain.tanh()
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def main(steps: int = 15) -> float:
    torch.manual_seed(0)
    gain = {"type": f"{__name__}:Gain", "sites": ["blocks.5.*", "blocks.6.*"], "bound": 0.3}
    student = distill.create_student("embedded:tf_efficientnet_lite0", [gain], num_classes=4, size=32)
    print(f"{len(student.sites)} layers, such as {student.sites[0].name}")

    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(student.train()(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    student.eval()
    with torch.no_grad():
        learned = student(images).logits
        distill.merge(student.model)  # a plain timm model from here on, its weights changed
        difference = float((student.model(images) - learned).abs().max())
    print(f"loss {loss:.3f}; merging changes the logits by {difference:g}")
    return difference


if __name__ == "__main__":
    main()
