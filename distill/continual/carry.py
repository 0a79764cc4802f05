"""What goes on from one task to the next besides the student: the state of objectives, and the momentum network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from distill.deltas.attach import merge
from distill.deltas.base import tensor_bytes
from distill.deltas.state import load_exactly, whole_state
from distill.models.student import Student
from distill.run.fit_spec import FitSpec
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import load_carried, load_momentum

MOMENTUM = "momentum.ckpt"


def carry_on(spec: FitSpec, folder: Path) -> FitSpec:
    """A fit whose objectives with ``carry: stream`` and whose momentum network go on where an earlier fit ended.

    Args:
        spec: of the fit.
        folder: of the earlier fit.

    Returns:
        The fit with the states of the earlier one.
    """
    return replace(spec, carried=load_carried(folder), momentum_state=_momentum(folder))


def merge_momentum(student: Student, folder: Path) -> None:
    """Merge the deltas of a fit's momentum network into its weights, as those of the student are.

    The momentum network of the next task is then this whole network with new deltas. Nothing is written if the fit
    keeps no momentum network.

    Args:
        student: at the end of the fit, with its deltas; it is not changed.
        folder: of the fit, where ``momentum.ckpt`` is written.
    """
    if (state := load_momentum(folder)) is None:
        return
    model = copy.deepcopy(student.model)
    own = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    load_exactly({name: own[name] for name in state}, state, "momentum network")
    merge(model)
    merged = {f"model.{name}": tensor for name, tensor in whole_state(model).items()}
    VerifiedCheckpointIO().save_checkpoint({"momentum": merged}, folder / MOMENTUM)


def carried_bytes(folder: Path) -> int:
    """Bytes of what goes on from the fit in a folder besides the student: objectives' states and momentum network."""
    states = [*load_carried(folder).values(), _momentum(folder) or {}]
    return sum(tensor_bytes(state.values()) for state in states)


def _momentum(folder: Path) -> Mapping[str, Tensor] | None:
    if (folder / MOMENTUM).is_file():
        merged: dict[str, Tensor] = VerifiedCheckpointIO().load_checkpoint(folder / MOMENTUM)["momentum"]
        return merged
    return load_momentum(folder)
