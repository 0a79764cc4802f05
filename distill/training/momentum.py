"""The momentum network: an exponential moving average of the student, whose outputs are targets (BYOL, MoCo)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import whole_state
from distill.deltas.statistics import Normalization
from distill.models.features import Features
from distill.models.frozen import batch_norms
from distill.models.network import extract
from distill.models.normalization import forward_some, mean_of, normalized_by, statistics_of
from distill.models.student import Student
from distill.models.weights import check_fits
from distill.training.ema import WeightAverage


class MomentumNetwork(nn.Module):
    """A copy of the student whose trained weights follow it: ``average ← d · average + (1 − d) · weight``.

    The update of step k of K has ``d = last − (last − first) · (cos(π k / K) + 1) / 2``, so d rises from ``first`` to
    ``last`` by a cosine. The copy starts equal to the student. It shares the student's frozen weights, has no gradient,
    and computes in the student's precision.

    In a stream of tasks it goes on where that of an earlier fit ended, see :meth:`carry_on`.

    Batch norms that are trained in the student compute with the statistics of the batch in training, as in BYOL and
    MoCo, and keep running statistics of their own; all else is in eval mode (no dropout, no stochastic depth). Buffers
    of deltas are copied from the student. In a checkpoint the copy has what the student has there, so a resumed fit is
    exact.

    Papers: He et al., CVPR 2020, arXiv 1911.05722; Grill et al., NeurIPS 2020, arXiv 2006.07733.

    Args:
        student: before training.
        decay: d in the first and after the last update, in [0, 1].
        needs: which fields of ``Features`` to compute.
        normalizations: whose batch-norm statistics it computes with, for a student with a ``statistics`` delta; of
            several, the mean of the probabilities is its answer. Empty: as the student, the target domain's.
        target_only: whether it computes the target domain's samples alone; rows of the source are NaN.

    Raises:
        ValueError: there are normalizations, and the student has no ``statistics`` delta.

    Example:
        >>> import distill
        >>> from distill.training.momentum import MomentumNetwork
        >>> student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", size=32)
        >>> momentum = MomentumNetwork(student, (0.9, 1.0), frozenset({"pooled"}))
        >>> [round(momentum.decay_at(step, 10), 4) for step in (0, 5, 10)]
        [0.9, 0.95, 1.0]
    """

    def __init__(
        self,
        student: Student,
        decay: tuple[float, float],
        needs: frozenset[str],
        normalizations: Sequence[Normalization] = (),
        target_only: bool = False,
    ):
        super().__init__()
        frozen = {id(p): p for p in student.model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(student.model, frozen)
        self.model.requires_grad_(False)
        self.decay, self.needs = decay, needs
        self.normalizations, self.target_only = tuple(normalizations), target_only
        self._statistics = statistics_of(self.model)
        if self.normalizations and not self._statistics:
            raise ValueError("teacher.ema.normalizations: the student has one normalization; add a statistics delta")
        self._average = WeightAverage(student.model, decay[0], self.model)
        self._student = (student,)  # in a tuple, since it is registered in the training step
        self._keys = list(student.own_state())
        self._moving_norms = [self.model.get_submodule(name) for name in student.moving_norms()]
        of_norms = {id(tensor) for norm in batch_norms(self.model) for tensor in norm.buffers()}
        own = {key.removeprefix("model.") for key in self._keys}
        buffers = dict(self.model.named_buffers())
        self._copied = [name for name, buffer in buffers.items() if name in own and id(buffer) not in of_norms]
        self._own_base: list[str] = []  # frozen in the student, and followed here, after carry_on with a whole network
        self._extract = torch.compile(extract) if student.compiled else extract

    def extra_repr(self) -> str:
        return f"decay={self.decay[0]:g} to {self.decay[1]:g}, needs={'|'.join(sorted(self.needs))}"

    def decay_at(self, step: int, steps: int) -> float:
        """d in the update number ``step``, counted from 0, of ``steps``."""
        first, last = self.decay
        return last - (last - first) * (math.cos(math.pi * step / steps) + 1) / 2

    @torch.no_grad()
    def forward(self, views: tuple[Tensor, ...], domains: Tensor | None = None) -> list[Features]:
        """The outputs for each view; in training mode if the module is.

        Args:
            views: [B, 3, H, W] each.
            domains: [B] int64 on the CPU, the domains of the samples; None: there is one.

        Returns:
            Outputs with B rows, see ``target_only``.
        """
        for module in self.model.modules():
            module.training = False
        for norm in self._moving_norms:
            norm.training = self.training
        if domains is None or not self.target_only:
            return [self._outputs(view) for view in views]
        rows = (domains == 1).nonzero()[:, 0]
        return [forward_some(self._outputs, view, rows) for view in views]

    def _outputs(self, view: Tensor) -> Features:
        outputs = []
        for name in self.normalizations or ("target",):
            with normalized_by(self._statistics, name):
                outputs.append(self._extract(self.model, view, self.needs))
        return mean_of(outputs)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the student's weights, after an update of them, by 1 − decay."""
        self._average.update(decay)
        [student] = self._student
        for name in self._copied:
            self.model.get_buffer(name).copy_(student.model.get_buffer(name))
        if self._own_base:
            own, of_student = self.model.state_dict(), student.model.state_dict()
            base = [own[name] for name in self._own_base]
            torch._foreach_lerp_(base, [of_student[name] for name in self._own_base], 1 - decay)

    @torch.no_grad()
    def carry_on(self, state: Mapping[str, Tensor]) -> None:
        """Start from the momentum network at the end of an earlier fit instead of from the student.

        The classifier stays equal to the student's, since that of the earlier fit may have other classes. After a
        whole network, the student's frozen weights are no longer shared: they are copied, start with the values of the
        state, and follow the student's with the other weights, so that the average is that of all weights.

        Args:
            state: of :meth:`own_state`, or of a whole network without deltas, under its own names after ``model.``; the
                momentum network's deltas are then equal to the student's.

        Raises:
            NetworkError: it does not fit.
        """
        head = classifier_names(self.model)
        state = {name: value for name, value in state.items() if not inside(name.removeprefix("model."), head)}
        own = [name for name in self._keys if not inside(name.removeprefix("model."), head)]
        targets = self.state_dict()
        if not state.keys() <= set(own):
            self._copy_base()
            targets = {f"model.{name}": tensor for name, tensor in whole_state(self.model).items()}
            own = [name for name in targets if not inside(name.removeprefix("model."), head)]
        check_fits({name: targets[name] for name in own}, dict(state), "the momentum network of the fit before")
        for name, value in state.items():
            targets[name].copy_(value)

    def _copy_base(self) -> None:
        """Copy the weights that are shared with the student, and follow them too."""
        [student] = self._student
        shared = {id(p) for p in student.model.parameters() if not p.requires_grad}
        for module in self.model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                if id(parameter) in shared:
                    setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        trained = {f"model.{name}" for name, p in student.model.named_parameters() if p.requires_grad}
        moving = tuple(f"model.{name}." for name in student.moving_norms())
        copied = {f"model.{name}" for name in self._copied}
        state = self.state_dict()
        self._own_base = [
            name.removeprefix("model.")
            for name, tensor in state.items()
            if name not in trained | copied and not name.startswith(moving or ("\0",)) and tensor.is_floating_point()
        ]
        self._keys = list(state)

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that differ from the student's frozen ones, by the names of ``Student.own_state``."""
        state = self.state_dict()
        return {key: state[key] for key in self._keys}
