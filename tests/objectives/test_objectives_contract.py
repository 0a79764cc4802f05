"""What every objective must keep, whatever it computes. Found by discovery, so that a new one is tested too."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from augment.base import Registry
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.cc import cc
from distill.objectives.dist import dist
from distill.objectives.dkd import dkd
from distill.objectives.icd import icd
from distill.objectives.kd import kd
from distill.objectives.logits import standardize
from distill.objectives.mlkd import mlkd
from distill.objectives.nkd import nkd
from distill.objectives.pkt import pkt
from distill.objectives.rkd import rkd
from distill.objectives.rrd import rrd
from distill.objectives.simkd import simkd
from distill.objectives.sp import sp

FAMILY = Registry("distill.objectives", "Objective")
STUDENT = FeatureShapes(10, 6, {"stage1": (4, 8, 8), "stage2": (8, 4, 4)}, torch.nn.Linear(6, 10))
TEACHER = FeatureShapes(10, 9, {"stage1": (6, 8, 8), "stage2": (12, 4, 4)}, torch.nn.Linear(9, 10))

SMALL = {name: {"hidden": 16, "dim": 8} for name in ("simclr", "byol", "moco", "barlow_twins", "vicreg")} | {
    "cassle": {"hidden": 16}
}
"""Settings of MLPs that are wide by default, to save time."""


class Called(nn.Module):
    """An objective that is called with one view of each network, whatever the views and networks that it reads.

    One that reads all views gets a second one, a function of the first, sample by sample. One that compares a network
    with itself at another time gets, of the teacher's outputs, as many channels as the student has. One that compares
    two domains gets a batch whose every second sample is of the target.
    """

    def __init__(self, settings: Objective.Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__()
        cls = settings.component
        itself = cls.reads_momentum or settings.type == "podnet"
        self.cut_to = student if itself else None
        self.term = cls(settings, student, student if itself else teacher)
        self.settings, self.needs, self.weighs_samples = settings, cls.needs, cls.weighs_samples
        self.remember = self.term.remember

    def forward(self, student: Features, teacher: Features | None, batch: Targets) -> torch.Tensor:
        if teacher is not None and (cut_to := self.cut_to) is not None:
            maps = {name: map_[:, : cut_to.maps[name][0]] for name, map_ in teacher.maps.items()}
            teacher = Features(teacher.logits, teacher.pooled[:, : cut_to.pooled], maps)
        if self.term.domain == "both" and batch.domains is None:
            batch = replace(batch, domains=torch.arange(len(batch.labels)) % 2)
        if not self.term.reads_views:
            return self.term(student, teacher, batch)
        both = [student, second_view(student)]
        reads_two = teacher is not None and self.term.reads_teacher
        return self.term(both, [teacher, second_view(teacher)] if reads_two else None, batch)


def second_view(of: Features) -> Features:
    def other(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x.detach().tanh() + 0.2 * x.detach().square()

    return Features(other(of.logits), other(of.pooled), {name: other(map_) for name, map_ in of.maps.items()})


def build(name: str) -> Called:
    settings = FAMILY.settings_of(name)(type=name, **SMALL.get(name, {}))
    torch.manual_seed(0)
    term = Called(settings, STUDENT, TEACHER)
    term.remember(torch.arange(20) % 10)
    return term


def features(shapes: FeatureShapes, batch: int = 8, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed + shapes.pooled)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).requires_grad_()

    maps = {name: random(*size) for name, size in shapes.maps.items()}
    return Features(random(shapes.classes), random(shapes.pooled), maps, random(shapes.classes))


def tensors(of: Features) -> dict[str, torch.Tensor]:
    return {"logits": of.logits, "pooled": of.pooled, "token": of.token, **of.maps}


def changed(of: Features, change: Callable[[torch.Tensor], torch.Tensor]) -> Features:
    maps = {name: change(map_) for name, map_ in of.maps.items()}
    return Features(change(of.logits), change(of.pooled), maps, change(of.token))


def labels(batch: int = 8) -> Targets:
    return Targets(torch.arange(batch) % 10, torch.arange(batch), **memory(batch))


def memory(batch: int = 8) -> dict[str, torch.Tensor]:
    """Of the targets: every second sample comes from a memory, with the logits that it was stored with, or from the
    target domain.
    """
    stored = torch.randn(batch, 10, generator=torch.Generator().manual_seed(5))
    every_second = torch.arange(batch) % 2
    return {"is_memory": every_second == (batch > 1), "stored_logits": stored, "domains": every_second}


every_objective = pytest.mark.parametrize("name", sorted(FAMILY.known()))


def test_the_objectives_of_the_main_job_are_found():
    assert {"ce", "icd", "kd", "pooled"} <= FAMILY.known().keys()


@every_objective
def test_gradient_reaches_the_student_and_the_own_parameters_but_never_the_teacher(name):
    term, student, teacher = build(name), features(STUDENT), features(TEACHER)
    loss = term(student, teacher, labels())
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    reached = {key for key, value in tensors(student).items() if value.grad is not None and value.grad.abs().sum() > 0}
    assert reached and reached <= set(STUDENT.maps) | term.needs
    assert all(value.grad is None for value in tensors(teacher).values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())


@every_objective
def test_bf16_autocast_gives_the_fp32_loss(name):
    student, teacher = features(STUDENT), features(TEACHER)
    expected = build(name)(student, teacher, labels())
    with torch.autocast("cpu", torch.bfloat16):
        assert build(name)(student, teacher, labels()).item() == expected.item()
    loss = build(name)(*(changed(of, torch.Tensor.bfloat16) for of in (student, teacher)), labels())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=0.02, abs=1e-3)


@every_objective
def test_a_batch_of_one_is_finite(name):
    student = features(STUDENT, batch=1)
    loss = build(name)(student, features(TEACHER, batch=1), labels(1))
    loss.backward()
    assert loss.isfinite() and all(v.grad.isfinite().all() for v in tensors(student).values() if v.grad is not None)


@every_objective
def test_a_batch_of_none_is_refused(name):
    with pytest.raises(ValueError, match=r"expected shape \(batch, .*got \(0, "):
        build(name)(features(STUDENT, batch=0), features(TEACHER, batch=0), labels(0))


@every_objective
def test_a_batch_without_labels_is_a_finite_loss_with_a_graph(name):
    loss = build(name)(features(STUDENT), features(TEACHER), Targets(torch.full((8,), -1), torch.arange(8)))
    loss.backward()
    assert loss.isfinite()


@every_objective
@pytest.mark.parametrize("batch", [7, 3])
def test_all_samples_of_one_class_in_an_odd_batch_are_finite(name, batch):
    student = features(STUDENT, batch)
    loss = build(name)(student, features(TEACHER, batch), Targets(torch.full((batch,), 4), torch.arange(batch)))
    loss.backward()
    assert loss.isfinite() and all(v.grad.isfinite().all() for v in tensors(student).values() if v.grad is not None)


@every_objective
def test_one_class_is_finite_or_refused_by_name(name):
    student, teacher = (replace(shapes, classes=1, classifier=None) for shapes in (STUDENT, TEACHER))
    if name == "simkd":
        student, teacher = (replace(s, classifier=torch.nn.Linear(s.pooled, 1)) for s in (student, teacher))
    settings = FAMILY.settings_of(name)(type=name)
    own = features(student)
    batch = Targets(torch.zeros(8, dtype=torch.long), torch.arange(8))
    try:
        term = Called(settings, student, teacher)
        term.remember(torch.zeros(20, dtype=torch.long))
        loss = term(own, features(teacher), batch)
    except ValueError as error:
        assert name in {"dkd", "nkd"} and "needs two" in str(error)
        return
    loss.backward()
    assert loss.isfinite() and all(v.grad.isfinite().all() for v in tensors(own).values() if v.grad is not None)


WITHOUT_TEACHERS_LOGITS = {"ce", "er_ace", "der", "information_max", "mcc", "bnm", "cdan", "self_training"}
STANDARDIZING = [name for name, settings in FAMILY.known().items() if "standardize" in settings.model_fields]


def test_every_loss_on_logits_can_standardize_them():
    on_logits = {name for name, settings in FAMILY.known().items() if "logits" in settings.component.needs}
    assert set(STANDARDIZING) == on_logits - WITHOUT_TEACHERS_LOGITS, "but those without logits of a teacher"


@pytest.mark.parametrize("name", STANDARDIZING)
def test_the_option_is_the_loss_of_standardized_rows(name):
    own = {"kind": "soft", "alpha": 1.0} if name == "deit" else {}
    settings = FAMILY.settings_of(name)
    plain, option = (
        settings.component(settings(type=name, **own, standardize=on), STUDENT, TEACHER) for on in (False, True)
    )
    student, teacher = features(STUDENT), features(TEACHER)
    rows = [Features(standardize(of.logits), token=standardize(of.token)) for of in (student, teacher)]
    expected = plain(*rows, labels())
    torch.testing.assert_close(option(student, teacher, labels()), expected, rtol=1e-5, atol=1e-6)
    assert plain(student, teacher, labels()).item() != pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "deit"])
def test_t_squared_undoes_what_the_temperature_does(name):
    own = {"kind": "soft", "alpha": 1.0} if name == "deit" else {}
    settings = FAMILY.settings_of(name)
    cold, hot = (settings.component(settings(type=name, **own, temperature=t), STUDENT, TEACHER) for t in (1, 3))
    student, teacher = features(STUDENT), features(TEACHER)
    tripled = [changed(of, lambda x: 3 * x) for of in (student, teacher)]
    torch.testing.assert_close(hot(*tripled, labels()), 9 * cold(student, teacher, labels()), rtol=1e-4, atol=1e-5)


@every_objective
def test_the_order_of_samples_does_not_matter(name):
    student, teacher = features(STUDENT), features(TEACHER)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = [changed(of, lambda x: x[order]) for of in (student, teacher)]
    batch = Targets(order % 10, order, **{name: value[order] for name, value in memory().items()})
    expected = build(name)(student, teacher, labels()).item()
    assert build(name)(*shuffled, batch).item() == pytest.approx(expected, rel=1e-5)


teacher_readers = pytest.mark.parametrize(
    "name", [name for name, settings in sorted(FAMILY.known().items()) if settings.component.reads_teacher]
)


@teacher_readers
def test_a_nan_of_the_teacher_comes_out(name):
    teacher = features(TEACHER)
    with torch.no_grad():
        for value in tensors(teacher).values():
            value[3] = torch.nan
    assert build(name)(features(STUDENT), teacher, labels()).isnan()


@teacher_readers
def test_a_teacher_batch_that_would_broadcast_is_refused(name):
    with pytest.raises(ValueError, match=r"\(8, \d+.*\) and \(1, \d+.*\)"):
        build(name)(features(STUDENT), features(TEACHER, batch=1), labels())


@pytest.mark.parametrize("name", STANDARDIZING)
def test_a_teacher_of_other_classes_is_refused_when_built_and_when_called(name):
    settings = FAMILY.settings_of(name)(type=name)
    other = replace(TEACHER, classes=9, classifier=torch.nn.Linear(9, 9))
    with pytest.raises(ValueError, match="the student has 10 classes, the teacher 9"):
        settings.component(settings, STUDENT, other)
    with pytest.raises(ValueError, match=r"\(8, 10\) and \(8, 9\)"):
        build(name)(features(STUDENT), features(other), labels())


QUEUE = torch.nn.functional.normalize(torch.randn(16, 10, generator=torch.Generator().manual_seed(9)))
ROW_BY_ROW = {
    "kd": kd,
    "dkd": lambda student, teacher: dkd(student, teacher, torch.arange(8)),
    "nkd": lambda student, teacher: nkd(student, teacher, torch.arange(8)),
    "mlkd": mlkd,
    "dist": dist,
    "rrd": lambda student, teacher: rrd(student, teacher, QUEUE),
    "icd": lambda student, teacher: icd(student, teacher, 10.0),
    "simkd": simkd,
}
"""Losses that compare row with row, as functions of the student's and the teacher's [8, 10]."""
OF_RELATIONS = {"rkd": rkd, "pkt": pkt, "sp": sp, "cc": cc}


@pytest.mark.parametrize("name", [*ROW_BY_ROW, *OF_RELATIONS])
def test_a_loss_called_as_a_function_computes_in_fp32_and_keeps_the_teacher_as_it_is(name):
    loss, student, teacher = {**ROW_BY_ROW, **OF_RELATIONS}[name], features(STUDENT).logits, features(TEACHER).logits
    halved = [rows.detach().bfloat16() for rows in (student, teacher)]
    assert loss(*halved).dtype == torch.float32
    assert torch.equal(loss(*halved), loss(*(rows.float() for rows in halved)))
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    # The teacher's rows of these two come out of a projector that learns.
    assert (teacher.grad is not None) == (name in {"icd", "cc"})


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_loss_called_as_a_function_refuses_rows_that_do_not_compare(name):
    with pytest.raises(ValueError, match=r"\(8, 10\) and \(8, 9\)"):
        ROW_BY_ROW[name](features(STUDENT).logits, features(TEACHER).logits[:, :9])


@teacher_readers
def test_no_teacher_is_refused_when_built_and_when_called(name):
    settings = FAMILY.settings_of(name)(type=name)
    with pytest.raises(ValueError, match="there is none"):
        settings.component(settings, STUDENT, None)
    with pytest.raises(ValueError, match="the teacher has no"):
        build(name)(features(STUDENT), None, labels())


@every_objective
def test_a_missing_or_misshapen_student_output_is_named(name):
    with pytest.raises(ValueError, match=r"the student has no (logits|pooled|map)"):
        build(name)(Features(), features(TEACHER), labels())
    flat = Features(torch.zeros(10), torch.zeros(6), {stage: torch.zeros(size) for stage, size in STUDENT.maps.items()})
    with pytest.raises(
        ValueError, match=r"student (logits|pooled|map '\w+'): expected shape \(batch, (width|C, H, W)\)"
    ):
        build(name)(flat, features(TEACHER), labels())


def test_a_config_names_an_objective_and_its_options():
    adapter = TypeAdapter(Annotated[Objective.Settings, FAMILY])
    settings = adapter.validate_python({"type": "kd", "temperature": 2, "standardize": True, "weight": 9})
    assert (settings.temperature, settings.weight) == (2.0, 9.0)
    assert adapter.validate_python("ce").component.reads_teacher is False
    with pytest.raises(ValidationError, match="did you mean 'temperature'"):
        adapter.validate_python({"type": "kd", "temprature": 2})
    with pytest.raises(ValidationError, match="greater than 0"):
        adapter.validate_python({"type": "kd", "temperature": 0})
