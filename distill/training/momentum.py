"""The momentum network: an exponential moving average of the student, whose outputs are targets (BYOL, MoCo)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from distill.models.features import Features
from distill.models.frozen import batch_norms
from distill.models.network import extract
from distill.models.student import Student
from distill.training.ema import WeightAverage


class MomentumNetwork(nn.Module):
    """A copy of the student whose trained weights follow it: ``average ← d · average + (1 − d) · weight``.

    The update of step k of K has ``d = last − (last − first) · (cos(π k / K) + 1) / 2``, so d rises from ``first`` to
    ``last`` by a cosine. The copy starts equal to the student. It shares the student's frozen weights, has no gradient,
    and computes in the student's precision.

    Batch norms that are trained in the student compute with the statistics of the batch in training, as in BYOL and
    MoCo, and keep running statistics of their own; all else is in eval mode (no dropout, no stochastic depth). Buffers
    of deltas are copied from the student. In a checkpoint the copy has what the student has there, so a resumed fit is
    exact.

    Papers: He et al., CVPR 2020, arXiv 1911.05722; Grill et al., NeurIPS 2020, arXiv 2006.07733.

    Args:
        student: before training.
        decay: d in the first and after the last update, in [0, 1].
        needs: which fields of ``Features`` to compute.

    Example:
        >>> import distill
        >>> from distill.training.momentum import MomentumNetwork
        >>> student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", size=32)
        >>> momentum = MomentumNetwork(student, (0.9, 1.0), frozenset({"pooled"}))
        >>> [round(momentum.decay_at(step, 10), 4) for step in (0, 5, 10)]
        [0.9, 0.95, 1.0]
    """

    def __init__(self, student: Student, decay: tuple[float, float], needs: frozenset[str]):
        super().__init__()
        frozen = {id(p): p for p in student.model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(student.model, frozen)
        self.model.requires_grad_(False)
        self.decay, self.needs = decay, needs
        self._average = WeightAverage(student.model, decay[0], self.model)
        self._student = (student,)  # in a tuple, since it is registered in the training step
        self._keys = list(student.own_state())
        self._moving_norms = [self.model.get_submodule(name) for name in student.moving_norms()]
        of_norms = {id(tensor) for norm in batch_norms(self.model) for tensor in norm.buffers()}
        own = {key.removeprefix("model.") for key in self._keys}
        buffers = dict(self.model.named_buffers())
        self._copied = [name for name, buffer in buffers.items() if name in own and id(buffer) not in of_norms]
        self._extract = torch.compile(extract) if student.compiled else extract

    def extra_repr(self) -> str:
        return f"decay={self.decay[0]:g} to {self.decay[1]:g}, needs={'|'.join(sorted(self.needs))}"

    def decay_at(self, step: int, steps: int) -> float:
        """d in the update number ``step``, counted from 0, of ``steps``."""
        first, last = self.decay
        return last - (last - first) * (math.cos(math.pi * step / steps) + 1) / 2

    @torch.no_grad()
    def forward(self, views: tuple[Tensor, ...]) -> list[Features]:
        """The outputs for each view [B, 3, H, W]; in training mode if the module is."""
        for module in self.model.modules():
            module.training = False
        for norm in self._moving_norms:
            norm.training = self.training
        return [self._extract(self.model, view, self.needs) for view in views]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the student's weights, after an update of them, by 1 − decay."""
        self._average.update(decay)
        [student] = self._student
        for name in self._copied:
            self.model.get_buffer(name).copy_(student.model.get_buffer(name))

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that differ from the student's frozen ones, by the names of ``Student.own_state``."""
        state = self.state_dict()
        return {key: state[key] for key in self._keys}
