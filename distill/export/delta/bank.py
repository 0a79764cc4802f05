"""Several tasks on one backbone in memory: switch from one delta file to another without reading files.

There are three modes:

* ``mode="deltas"``: one model with deltas; a switch copies a task's tensors into them. Memory: one backbone, and the
  deltas and head of every task. All tasks need the same deltas on the same layers (one recipe, several data sets).
* ``mode="merged"``: one model without deltas; a switch points its weights to a task's, which were merged when it was
  added. It takes any weight deltas, runs at the speed of the backbone, and a switch copies nothing. Memory: the changed
  weights once per task.
* ``mode="modules"``: a model for each task, all of which use the storage of one backbone; a switch returns another
  model. It takes any deltas and heads of any numbers of classes, as the tasks of a stream have them. Memory: one
  backbone, and the deltas, head and moved statistics of every task.

In the first two modes a switch changes the model in place: finish a batch before it. With ``merged`` the storages
change, which a CUDA graph does not notice; ``torch.compile`` does.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distill.deltas.attach import merge
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import delta_state, head_state, whole_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, parts_of, read_delta
from distill.models.timm_models import new_classifier

Mode = Literal["deltas", "merged", "modules"]


class DeltaBank:
    """Delta files of one backbone, of which the model has one at a time: the first until :meth:`switch` is called.

    Example::

        bank = DeltaBank(backbone)
        bank.add("flowers", Path("runs/flowers/export/delta"))
        bank.add("birds", Path("runs/birds/export/delta"))
        logits = bank.switch("birds")(images)

    Args:
        backbone: the timm model that the files were learned on; it is copied, not changed. Its number of classes must
            be that of the files, except with ``modules``.
        mode: what is kept of each task, see above.
        allow_plugins: import delta classes outside this package that files name.
    """

    def __init__(self, backbone: nn.Module, *, mode: Mode = "deltas", allow_plugins: bool = False):
        self.backbone, self.mode, self.allow_plugins = backbone, mode, allow_plugins
        self.live: str | None = None
        self._model: nn.Module | None = None
        self._targets: dict[str, Tensor] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        self._models: dict[str, nn.Module] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, in the order in which they were added."""
        return tuple(self._models or self._states)

    def add(self, name: str, folder: Path) -> None:
        """Read and check a delta file, as ``load_delta`` does. The live task stays the same.

        Raises:
            ExportError: the name is taken, or the file is damaged, of another backbone, or (with ``deltas``) has other
                deltas than the first task or moved batch-norm statistics.
        """
        if name in self.names:
            raise ExportError(f"there is a task {name!r} already")
        if self.mode == "modules":
            self._add_module(name, folder)
            return
        model = load_delta(folder, self.backbone, allow_plugins=self.allow_plugins)
        if parts_of(read_delta(folder)[1], Path(folder))["moved"] and self.mode == "deltas":
            raise ExportError(f"{folder}: batch-norm statistics moved; use DeltaBank(mode='modules')")
        if self.mode == "merged":
            merge(model)
            state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        else:
            state = {key: tensor.detach() for key, tensor in _own(model).items()}
        if self._model is None:
            self._model = model
            self._targets = dict(model.state_dict(keep_vars=True)) if self.mode == "merged" else _own(model)
            # A copy, since the live model may be trained, which must not change the tensors stored for this task.
            keeps = self.mode == "merged"
            self._states[name] = state if keeps else {key: tensor.clone() for key, tensor in state.items()}
            self.live = name
            return
        shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()}
        if shapes != {key: (tensor.shape, tensor.dtype) for key, tensor in self._targets.items()}:
            raise ExportError(
                f"{folder}: its deltas or its head have other shapes than those of {self.names[0]!r}; use "
                "DeltaBank(mode='modules')"
            )
        if self.mode == "merged":
            first = next(iter(self._states.values()))
            # Weights that no task changed are kept once.
            state = {key: first[key] if torch.equal(tensor, first[key]) else tensor for key, tensor in state.items()}
        self._states[name] = state

    def to(self, device: torch.device | str) -> DeltaBank:
        """Move the model and all tasks."""
        if self.mode == "modules":
            for model in self._models.values():
                model.to(device)
                self._use_one_storage(model)
            return self
        assert self._model is not None
        live = self.live
        self._model.to(device)
        self._targets = dict(self._model.state_dict(keep_vars=True)) if self.mode == "merged" else _own(self._model)
        self._states = {n: {key: t.to(device) for key, t in state.items()} for n, state in self._states.items()}
        assert live is not None
        self.switch(live)
        return self

    @torch.no_grad()
    def switch(self, name: str) -> nn.Module:
        """Make a task the live one; returns its model: the same object every time, except with ``modules``.

        Raises:
            ExportError: there is no such task; the text names the tasks.
        """
        if name not in self.names:
            raise ExportError(f"no task {name!r}; there are {', '.join(self.names) or 'none'}")
        if self.mode == "modules":
            self.live = name
            return self._models[name]
        assert self._model is not None
        state = self._states[name]
        if self.mode == "merged":
            for key, target in self._targets.items():
                target.data = state[key]
        else:
            torch._foreach_copy_(list(self._targets.values()), [state[key] for key in self._targets])
        self.live = name
        return self._model

    def _add_module(self, name: str, folder: Path) -> None:
        backbone, classes = self.backbone, read_delta(folder)[0].num_classes
        if backbone.num_classes != classes:
            backbone = copy.deepcopy(backbone)
            with torch.random.fork_rng(devices=[]):  # the weights are those of the file's head
                new_classifier(backbone, classes)
        model = load_delta(folder, backbone, allow_plugins=self.allow_plugins)
        self._use_one_storage(model)
        self._models[name] = model
        self.live = self.live or name

    def _use_one_storage(self, model: nn.Module) -> None:
        """Point the backbone's tensors to those of the first task's model, where they are equal."""
        first = next(iter(self._models.values()), model)
        shared = _backbone(first)
        for key, tensor in _backbone(model).items():
            if (other := shared.get(key)) is not None and torch.equal(tensor, other):
                tensor.data = other.data


def _backbone(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the backbone themselves, without deltas and head."""
    head = classifier_names(model)
    return {key: tensor for key, tensor in whole_state(model, keep_vars=True).items() if not inside(key, head)}


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a task that is not merged: deltas and head."""
    return {**delta_state(model), **{f"head.{n}": t for n, t in head_state(model, classifier_names(model)).items()}}
