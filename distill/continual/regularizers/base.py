"""The base class of regularizers: a penalty on how far the trained parameters move from those after earlier tasks.

The course of a stream::

    regularizer.attach(parameters)            # before each task, and after a resume, once the state is loaded
    loss = task_loss + regularizer.penalty()  # zero in the first task
    optimizer.step(); regularizer.after_step()
    regularizer.prepare(model, parameters, batches)  # after each task, before any parameter is changed for the next

Parameters are matched by name. One that is new (of a new delta, for example) is free until the next ``prepare``; one
that has grown along its first axis (a classifier with rows of new classes at its end) is free in its new rows.

State is tensors by name; ``state_dict`` and ``load_state_dict`` carry it over to another process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

import augment.base
from augment.base import Component
from distill.continual.errors import ContinualError
from distill.deltas.base import tensor_bytes

Batches = Iterable[tuple[Tensor, Tensor]]
"""Views [B, C, H, W] as the model reads them, and int64 sample ids [B]."""


class Regularizer(Component):
    """``λ/2 · Σ_i w_i (θ_i − θ*_i)²`` with the importances w that a subclass computes.

    A subclass implements ``importances``, and ``after_step`` if it learns from the updates.

    Class attributes:
        paper: short citation.
        needs_images: whether ``prepare`` reads the batches.
        reads_gradients: whether ``after_step`` reads gradients.
    """

    class Settings(augment.base.Settings):
        type: str
        weight: float = Field(1.0, ge=0, description="λ, factor of the penalty")

    paper: ClassVar[str] = ""
    needs_images: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False

    def __init__(self, settings: Settings):
        self.settings = settings
        self.anchors: dict[str, Tensor] = {}
        """Name → θ*, after the latest task."""
        self.importance: dict[str, Tensor] = {}
        """Name → w ≥ 0, of the shape of θ*."""
        self._parameters: dict[str, nn.Parameter] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings if k != 'type')})"

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Watch these parameters from now on.

        Raises:
            ContinualError: there is none, or one differs in shape from the one of its name after earlier tasks, other
                than by more rows.
        """
        if not parameters:
            raise ContinualError(f"{self.settings.type}: no parameter is trained")
        for name, anchor in self.anchors.items():
            if name in parameters and not _contains(parameters[name], anchor):
                raise ContinualError(
                    f"{self.settings.type}: {name} has shape {list(parameters[name].shape)}, and "
                    f"{list(anchor.shape)} after earlier tasks; only rows at its end may be new"
                )
        for tensors in self._state().values():
            tensors |= {name: tensor.to(parameters[name]) for name, tensor in tensors.items() if name in parameters}
        self._parameters = dict(parameters)

    def penalty(self) -> Tensor:
        """``λ/2 · Σ_i w_i (θ_i − θ*_i)²``: a scalar with a graph to the parameters, zero in the first task.

        Raises:
            ContinualError: ``attach`` was not called.
        """
        if not self._parameters:
            raise ContinualError(f"{self.settings.type}: attach the parameters first")
        terms = []
        for name, parameter in self._parameters.items():
            if name in self.anchors:
                anchor = self.anchors[name]
                moved = (parameter[: len(anchor)] if anchor.ndim else parameter) - anchor
                terms.append((self.importance[name] * moved.square()).sum())
            else:
                terms.append(0 * parameter.sum())  # a graph, so that the first task can call backward
        return self.settings.weight / 2 * torch.stack(terms).sum()

    def after_step(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Called after each update of the weights, before gradients are cleared.

        Args:
            gradients: name → gradient of the task's loss in that step; None: ``.grad`` of the parameters, with the
                penalty's part.
        """

    def prepare(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> None:
        """Close a task: the penalty pulls to the present values of the parameters from now on.

        Args:
            model: views → logits [B, K], or an object with ``logits``. Its parameters are those given.
            parameters: name → trained parameter.
            batches: images of the task that was learned, the same on every rank of a distributed run.

        Raises:
            ContinualError: see ``attach``; or there is no image, if images are needed. The state is unchanged.
        """
        self.attach(parameters)
        importance = self.importances(model, parameters, batches)
        self.importance |= {name: value.detach().clone() for name, value in importance.items()}
        self.anchors |= {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def importances(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches
    ) -> dict[str, Tensor]:
        """w after a task, of the shape of each parameter. See ``prepare``.

        Args:
            model: views → logits.
            parameters: name → trained parameter.
            batches: images of the task that was learned.

        Returns:
            Name of the parameter → w.
        """
        raise NotImplementedError

    def previous(self, name: str, parameter: Tensor) -> Tensor:
        """w of a parameter after earlier tasks, zero in rows that are new and for a parameter that is."""
        grown = torch.zeros_like(parameter, requires_grad=False)
        if name in self.importance:
            old = self.importance[name].to(grown)
            if old.ndim:
                grown[: len(old)] = old
            else:
                grown = old.clone()
        return grown

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that later tasks read, ``anchors.<name>`` and ``importance.<name>``."""
        return {f"{kind}.{name}": tensor for kind, tensors in self._state().items() for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state; call ``attach`` afterwards.

        Raises:
            ContinualError: a tensor is of no kind that this regularizer has.
        """
        kinds = self._state()
        if unknown := [key for key in state if key.partition(".")[0] not in kinds]:
            raise ContinualError(f"{self.settings.type}: unexpected state {unknown[0]}")
        for kind, tensors in kinds.items():
            tensors.clear()
            prefix = f"{kind}."
            tensors.update({k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)})
        self._parameters = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept from task to task."""
        return tensor_bytes(self.state_dict().values())

    def _state(self) -> dict[str, dict[str, Tensor]]:
        """Kind → its tensors by parameter, the dicts that hold them."""
        return {"anchors": self.anchors, "importance": self.importance}


def _contains(parameter: Tensor, anchor: Tensor) -> bool:
    """Whether the anchor is the parameter's shape, or its first rows."""
    if parameter.ndim != anchor.ndim:
        return False
    return parameter.shape[1:] == anchor.shape[1:] and (not anchor.ndim or len(parameter) >= len(anchor))
