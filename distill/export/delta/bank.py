"""Several tasks on one live backbone: switch from one delta file to another without loading anything.

Two ways, by what matters:

* ``merged=False``: one model with deltas; a switch copies a task's numbers into them. Memory: one backbone and the
  deltas. Every task must have the same deltas on the same layers (one recipe, several data sets).
* ``merged=True``: one plain model; a switch points its changed weights to another task's, merged beforehand. Any weight
  deltas, the speed of the backbone, and a switch that moves no numbers. Memory: the changed weights once per task.

A switch changes the model in place: finish a batch before it. With ``merged=True`` storages are swapped, which a CUDA
graph does not see; ``torch.compile`` does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from distill.deltas.attach import merge
from distill.deltas.sites import classifier_names
from distill.deltas.state import delta_state, head_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, parts_of, read_delta


class DeltaBank:
    """Delta files of one backbone, one of them live at a time.

    Example::

        bank = DeltaBank(backbone)
        bank.add("flowers", Path("runs/flowers/export/delta"))
        bank.add("birds", Path("runs/birds/export/delta"))
        logits = bank.switch("birds")(images)

    Args:
        backbone: the timm model that the files were learned on, with as many classes; it is copied, not changed.
        merged: see above.
        allow_plugins: import delta classes of your own that files name.
    """

    def __init__(self, backbone: nn.Module, *, merged: bool = False, allow_plugins: bool = False):
        self.backbone, self.merged, self.allow_plugins = backbone, merged, allow_plugins
        self.live: str | None = None
        self._model: nn.Module | None = None
        self._targets: dict[str, Tensor] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._states)

    def add(self, name: str, folder: Path) -> None:
        """Read and check a delta file, all of it, as ``load_delta`` does. The task that is live stays so.

        Raises:
            ExportError: damaged, of another backbone, or (``merged=False``) with deltas that the first task has not.
        """
        if name in self._states:
            raise ExportError(f"there is a task {name!r} already")
        model = load_delta(folder, self.backbone, allow_plugins=self.allow_plugins)
        if parts_of(read_delta(folder)[1], Path(folder))["moved"] and not self.merged:
            raise ExportError(f"{folder}: batch-norm statistics moved; use DeltaBank(merged=True)")
        if self.merged:
            merge(model)
            state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        else:
            state = {key: tensor.detach() for key, tensor in _own(model).items()}
        if self._model is None:
            self._model = model
            self._targets = dict(model.state_dict(keep_vars=True)) if self.merged else _own(model)
            # The live model gets numbers of its own: a copy that is switched away must not change.
            self._states[name] = state if self.merged else {key: tensor.clone() for key, tensor in state.items()}
            self.live = name
            return
        shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()}
        if shapes != {key: (tensor.shape, tensor.dtype) for key, tensor in self._targets.items()}:
            raise ExportError(f"{folder}: its deltas are not those of {self.names[0]!r}; use DeltaBank(merged=True)")
        if self.merged:
            first = next(iter(self._states.values()))
            # Weights that no task changed are kept once.
            state = {key: first[key] if torch.equal(tensor, first[key]) else tensor for key, tensor in state.items()}
        self._states[name] = state

    def to(self, device: torch.device | str) -> DeltaBank:
        """Move the model and all tasks."""
        assert self._model is not None
        live = self.live
        self._model.to(device)
        self._targets = dict(self._model.state_dict(keep_vars=True)) if self.merged else _own(self._model)
        self._states = {n: {key: t.to(device) for key, t in state.items()} for n, state in self._states.items()}
        assert live is not None
        self.switch(live)
        return self

    @torch.no_grad()
    def switch(self, name: str) -> nn.Module:
        """Make a task the live one and return the model, the same object every time.

        Raises:
            ExportError: there is no such task; the text names those there are.
        """
        if name not in self._states:
            raise ExportError(f"no task {name!r}; there are {', '.join(self._states) or 'none'}")
        assert self._model is not None
        state = self._states[name]
        if self.merged:
            for key, target in self._targets.items():
                target.data = state[key]
        else:
            torch._foreach_copy_(list(self._targets.values()), [state[key] for key in self._targets])
        self.live = name
        return self._model


def _own(model: nn.Module) -> dict[str, Tensor]:
    """What differs from task to task while deltas are not merged: deltas and head."""
    return {**delta_state(model), **{f"head.{n}": t for n, t in head_state(model, classifier_names(model)).items()}}
