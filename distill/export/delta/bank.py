"""Several tasks on one backbone in memory: switch from one delta file to another without reading files.

There are two modes:

* ``merged=False``: one model with deltas; a switch copies a task's tensors into them. Memory: one backbone, and the
  deltas and head of every task. All tasks need the same deltas on the same layers (one recipe, several data sets).
* ``merged=True``: one model without deltas; a switch points its weights to a task's, which were merged when it was
  added. It takes any weight deltas, runs at the speed of the backbone, and a switch copies nothing. Memory: the changed
  weights once per task.

A switch changes the model in place: finish a batch before it. With ``merged=True`` the storages change, which a CUDA
graph does not notice; ``torch.compile`` does.
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
    """Delta files of one backbone, of which the model has one at a time: the first until :meth:`switch` is called.

    Example::

        bank = DeltaBank(backbone)
        bank.add("flowers", Path("runs/flowers/export/delta"))
        bank.add("birds", Path("runs/birds/export/delta"))
        logits = bank.switch("birds")(images)

    Args:
        backbone: the timm model that the files were learned on, with as many classes; it is copied, not changed.
        merged: whether the model has merged weights in place of deltas, see above.
        allow_plugins: import delta classes outside this package that files name.
    """

    def __init__(self, backbone: nn.Module, *, merged: bool = False, allow_plugins: bool = False):
        self.backbone, self.merged, self.allow_plugins = backbone, merged, allow_plugins
        self.live: str | None = None
        self._model: nn.Module | None = None
        self._targets: dict[str, Tensor] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, in the order in which they were added."""
        return tuple(self._states)

    def add(self, name: str, folder: Path) -> None:
        """Read and check a delta file, as ``load_delta`` does. The live task stays the same.

        Raises:
            ExportError: the name is taken, or the file is damaged, of another backbone, or (``merged=False``) has other
                deltas than the first task or moved batch-norm statistics.
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
            # A copy, since the live model may be trained, which must not change the tensors stored for this task.
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
        """Make a task the live one; returns the model, the same object every time.

        Raises:
            ExportError: there is no such task; the text names the tasks.
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
    """The tensors of a task that is not merged: deltas and head."""
    return {**delta_state(model), **{f"head.{n}": t for n, t in head_state(model, classifier_names(model)).items()}}
