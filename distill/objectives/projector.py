"""Projector MLPs of self-supervised objectives, copies of them that follow, and what a stream of fits carries over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.objectives.base import Objective
from distill.objectives.ranks import RankBatchNorm


class CarrySettings(Objective.Settings):
    """Settings of an objective whose state a later fit may continue with.

    The state is the objective's ``state_dict``: projector, predictor, queue, all of its parameters and buffers.
    A fit saves it with its result (:func:`distill.training.fit.load_carried` reads it), and the next fit of a stream
    gets it as ``FitSpec.carried``.
    """

    carry: Literal["task", "stream"] = Field(
        "stream",
        description="what a later fit of a stream of tasks starts with: task: a new state; stream: that at the end of "
        "the fit before",
    )


class Projecting:
    """Mixed into an objective that compares projected pooled features, which another objective may read too."""

    projector: nn.Module
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})


def mlp(widths: Sequence[int], batch_norm: bool = True, bias: bool = True) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them.

    A linear layer before a batch norm has no bias. The batch norm has the statistics of the batch of all ranks and no
    running ones, since projectors are never evaluated.

    Args:
        widths: of input, hidden layers and output.
        batch_norm: whether there are batch norms.
        bias: whether the last layer has one; it does nothing where a batch norm or another centering follows.

    Returns:
        The module, [B, widths[0]] → [B, widths[-1]].
    """
    layers: list[nn.Module] = []
    for width, after in pairwise(widths[:-1]):
        layers.append(nn.Linear(width, after, bias=not batch_norm))
        layers += [RankBatchNorm(after)] * batch_norm + [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))


class Following(nn.Module):
    """A copy of a module's parameters, kept as buffers, that follows it: ``copy ← d · copy + (1 − d) · parameter``.

    A call computes the module with the copy, without gradient.

    Args:
        module: without buffers.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self._names = [name for name, _ in module.named_parameters()]
        for name, parameter in module.named_parameters():
            self.register_buffer(self._key(name), parameter.detach().clone())

    @torch.no_grad()
    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """The output of ``module``, the original, with the copied parameters, for an input [B, ...]."""
        copied = {name: self.get_buffer(self._key(name)) for name in self._names}
        return torch.func.functional_call(module, copied, (x,))

    @torch.no_grad()
    def follow(self, module: nn.Module, decay: float) -> None:
        """Move the copy towards the parameters of ``module`` by 1 − decay; 0 makes it equal to them."""
        own = [self.get_buffer(self._key(name)) for name in self._names]
        torch._foreach_lerp_(own, [parameter.detach() for parameter in module.parameters()], 1 - decay)

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "_")
