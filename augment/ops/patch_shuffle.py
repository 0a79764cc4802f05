"""Patches permuted."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.sometimes import Params, PerSampleChange


class PatchShuffle(PerSampleChange):
    """Permutes the ``grid`` × ``grid`` patches of an image, which keeps local structure and removes the layout.

    Args:
        grid: patches along each side; the image's sides must be multiples of it.
        p: probability for a sample.

    (Kang et al., arXiv 1707.07103, give the name to the reverse: pixels shuffled inside their patches.)

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("PatchShuffle")
        >>> images = torch.arange(16.0).view(1, 1, 4, 4) / 15
        >>> op = PatchShuffle(grid=2, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).mul(15)[0, 0]
        tensor([[ 8.,  9.,  0.,  1.],
                [12., 13.,  4.,  5.],
                [10., 11.,  2.,  3.],
                [14., 15.,  6.,  7.]])
    """

    geometric = True

    def __init__(self, grid: int = 4, p: float = 0.5):
        super().__init__(p)
        if grid < 2:
            raise ValueError(f"grid is a number of patches along a side from 2, not {grid}")
        self.grid = grid

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """``order`` [B, grid²]: the patch that is moved to each position."""
        if shape[2] % self.grid or shape[3] % self.grid:
            raise self.refuse(f"grid={self.grid} does not divide images of {shape[2]} x {shape[3]} pixels")
        return {"order": draws.permutation(1, self.grid**2)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        (batch, channels, height, width), g = images.shape, self.grid
        patches = images.view(batch, channels, g, height // g, g, width // g).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        patches = patches[torch.arange(batch, device=images.device)[:, None], params["order"]]
        return patches.unflatten(1, (g, g)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
