"""Blocks of a grid filled."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.sometimes import Params, PerSampleChange


class MaskBlocks(PerSampleChange):
    """Fills each block of a regular grid with a probability, so that the rest must be understood from its surroundings.

    Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation" (arXiv 2212.01322): blocks of
    32 pixels at 224 in classification, ratio 0.7. The teacher's view stays whole.

    Args:
        block: side of a block as a fraction of the image's shorter side; MIC's 32 of 224 pixels are 1/7.
        ratio: probability of each block to be filled.
        fill: value of the filled blocks, in [0, 1]. MIC has 0 after normalization, about 0.5 here.
        p: probability for a sample.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("MaskBlocks")
        >>> images = torch.ones(1, 1, 4, 4)
        >>> op = MaskBlocks(block=0.5, ratio=0.5, fill=0.0)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """

    def __init__(self, block: float = 1 / 7, ratio: float = 0.5, fill: float = 0.5, p: float = 1.0):
        super().__init__(p)
        if not 0 < block <= 1:
            raise ValueError(f"block is a fraction of the shorter side, above 0 and up to 1, not {block}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is a probability, 0 … 1, not {ratio}")
        self.block, self.ratio, self.fill = block, ratio, fill

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """``filled`` [B, rows, columns] bool."""
        side = self._side(shape)
        rows, columns = -(-shape[2] // side), -(-shape[3] // side)
        return {"filled": draws.uniform(1, (rows, columns)) < self.ratio}

    def change(self, images: Tensor, params: Params) -> Tensor:
        side = self._side(images.shape)
        filled = params["filled"].repeat_interleave(side, 1).repeat_interleave(side, 2)
        return images.masked_fill(filled[:, None, : images.shape[2], : images.shape[3]], self.fill)

    def _side(self, shape: torch.Size) -> int:
        return max(1, round(self.block * min(shape[2:])))
