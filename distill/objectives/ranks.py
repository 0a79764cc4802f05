"""Functions for a batch that is distributed over ranks: gathering with gradient, means, batch norm.

They are exact for data-parallel training that *averages* gradients over ranks: the gradient is that of the whole batch
on one rank. Without an initialized process group of ``torch.distributed`` there is one rank. All ranks must make the
same calls, whatever their data: a rank that skips one makes the others wait for it.
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

    Ranks may have different numbers of such samples. Each divides its sum by count / world_size, with the count of all
    ranks, so that the mean over ranks is the mean over samples. Weights do not change the count.

    Args:
        values: [B].
        mask: [B] bool, which of them to use.
        weights: [B], factors of the values; None: all 1.

    Returns:
        A scalar with a graph.
    """
    count = sum_over_ranks(mask.sum())
    return weighed(values, weights).masked_fill(~mask, 0).sum() * world_size() / count.clamp(min=1)


def weighed(values: Tensor, weights: Tensor | None) -> Tensor:
    """``values · weights``, both [B]; the values themselves if ``weights`` is None."""
    if weights is None:
        return values
    if weights.shape != values.shape:
        raise ValueError(f"weights of shape {tuple(weights.shape)} do not match losses of shape {tuple(values.shape)}")
    return values * weights


def gather_batch(local: Tensor) -> Tensor:
    """The batch of all ranks: [B, ...] → [world_size · B, ...] in rank order, with gradient to every rank's part.

    This rank's rows start at ``rank() · B``. B must be the same on all ranks: the sampler pads or drops the last batch.

    The backward pass *sums* the gradients of all ranks' losses for a row. Averaging the gradients of parameters over
    ranks then gives the gradient of the mean loss.
    """
    return local if world_size() == 1 else _Gather.apply(local)


class RankBatchNorm(nn.Module):
    """Batch norm of [B, C] or [B, C, H, W] with the batch statistics of all ranks, for modules never evaluated.

    ``y = w (x − mean) / √(var + 1e-5) + b`` per channel, w and b learned. There are no running statistics. torch's
    SyncBatchNorm works on GPUs only.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def extra_repr(self) -> str:
        return str(len(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 and x.numel() > x.shape[1]:  # one pass; needs two values per channel
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=1e-5)
        others = [dim for dim in range(x.ndim) if dim != 1]
        per_channel = (-1, *[1] * (x.ndim - 2))
        mean = gather_batch(x.mean(others)[None]).mean(0)
        centered = x - mean.view(per_channel)
        variance = gather_batch(centered.square().mean(others)[None]).mean(0)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return centered * scale.view(per_channel) + self.bias.view(per_channel)


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
