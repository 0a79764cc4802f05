"""A fit that starts from a trained student: from its deltas and its head, with batch-norm statistics of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from distill.deltas.base import DeltaInit, DeltaSettings
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state, load_exactly
from distill.models.student import Student
from distill.run.prepare import StudentSpec, prepare_from

Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel, [C] each."""


def inits_from(
    trained: Student, entries: Sequence[DeltaSettings], statistics: Mapping[str, Moments] | None = None
) -> list[DeltaInit]:
    """What each entry of ``student.deltas`` starts from.

    Args:
        trained: its entries are those of ``entries``, in their order, without ``statistics``.
        entries: of the student to build.
        statistics: site of a batch norm → moments of the target domain, for the entries ``statistics``; None: the
            network's own.

    Returns:
        One for each entry.
    """
    left = iter([init for init in trained.inits() if init.settings[0].type != "statistics"])
    own = {site: dict(zip(("mean", "var"), moments)) for site, moments in (statistics or {}).items()}
    return [DeltaInit([entry], own) if entry.type == "statistics" else next(left) for entry in entries]


def build_from(spec: StudentSpec, trained: Student, statistics: Mapping[str, Moments] | None = None) -> Student:
    """A student with the deltas and the head of a trained one, see :func:`inits_from`.

    Args:
        spec: of the student.
        trained: the student that it starts from.
        statistics: of the target domain, for its statistics deltas.

    Returns:
        The student.
    """
    student = spec.build(inits_from(trained, spec.settings.deltas, statistics))
    heads = [head_state(own.model, classifier_names(own.model)) for own in (student, trained)]
    load_exactly(heads[0], heads[1], "head of the student that it starts from")
    return student


def start_from(spec: StudentSpec, trained: Student, statistics: Mapping[str, Moments] | None, folder: Path) -> Student:
    """The student of a fit as :func:`build_from` builds it; what it starts from is saved in the folder of the fit.

    Args:
        spec: of the student of the fit.
        trained: the student that it starts from.
        statistics: of the target domain.
        folder: of the fit, which every later build of its student reads.

    Returns:
        The student, equal on all ranks and after a restart.
    """
    inits = inits_from(trained, spec.settings.deltas, statistics)
    return prepare_from(spec, inits, head_state(trained.model, classifier_names(trained.model)), folder)
