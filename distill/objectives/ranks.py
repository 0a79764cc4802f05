"""One batch spread over the ranks of ``torch.distributed``: gathered with gradient, counted, located.

Everything here is exact for data-parallel training that *averages* gradients over ranks: two ranks with half the
batch each get the gradient of one rank with all of it. Without an initialized process group there is one rank.
Calls must not depend on the data: a rank that skips one leaves the others waiting.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_where(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of [B] values over the samples of all ranks where ``mask`` is true; zero, with a graph, if nowhere.

    Ranks may hold different numbers of such samples. So each divides its sum by count / world_size, not by its own
    count: the mean over ranks is then the mean over samples. ``weights`` [B] are factors of the values; they do not
    change what is divided by.

    Args:
        values: [B].
        mask: [B] bool, which of them count.
        weights: [B], factors of the values.

    Returns:
        A scalar with a graph.
    """
    count = sum_over_ranks(mask.sum())
    return weighed(values, weights).masked_fill(~mask, 0).sum() * world_size() / count.clamp(min=1)


def weighed(values: Tensor, weights: Tensor | None) -> Tensor:
    """``values · weights``, both [B]; the values themselves where nothing weighs the samples."""
    if weights is None:
        return values
    if weights.shape != values.shape:
        raise ValueError(f"weights of shape {tuple(weights.shape)} do not match losses of shape {tuple(values.shape)}")
    return values * weights


def gather_batch(local: Tensor) -> Tensor:
    """The batch of all ranks: [B, ...] → [world_size · B, ...] in rank order, with gradient to every rank's part.

    This rank's rows start at ``rank() · B``. Every rank must bring the same B, as a sampler that pads or drops the last
    batch gives.

    The backward pass *sums* what all ranks' losses ask of a row. The average that follows over parameter gradients then
    makes it the gradient of the mean loss.
    """
    return local if world_size() == 1 else _Gather.apply(local)


class RankBatchNorm(nn.Module):
    """Batch norm of [B, C, H, W] with the batch statistics of all ranks, for what is trained and never evaluated.

    ``y = w (x − mean) / √(var + 1e-5) + b`` per channel, w and b learned. There are no running statistics. torch's
    SyncBatchNorm does the same on GPUs only.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 and x.numel() > x.shape[1]:  # torch's own, in one pass, refuses one number per channel
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=1e-5)
        mean = gather_batch(x.mean((0, 2, 3))[None]).mean(0)
        centered = x - mean[:, None, None]
        variance = gather_batch(centered.square().mean((0, 2, 3))[None]).mean(0)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return centered * scale[:, None, None] + self.bias[:, None, None]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = sum_over_ranks(gradient.contiguous())
        return total.chunk(world_size())[rank()]
