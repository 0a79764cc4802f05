"""What training needs of a penalty on moving away from the weights of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from distill.models.student import Student


class TaskPenalty(Protocol):
    """A term of the loss with a state of its own; see :class:`distill.continual.regularizers.base.Regularizer`."""

    @property
    def reads_gradients(self) -> bool:
        """Whether ``after_step`` reads gradients."""

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Watch these parameters, on their device."""

    def penalty(self) -> Tensor:
        """A scalar with a graph to all of the parameters."""

    def after_step(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Called after each update, with the gradients of the loss without any penalty."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its state, for checkpoints."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state; ``attach`` follows."""


def trained_parameters(student: Student) -> dict[str, nn.Parameter]:
    """Name → parameter of the student that is trained: of deltas and head, or all of them."""
    return {name: parameter for name, parameter in student.model.named_parameters() if parameter.requires_grad}
