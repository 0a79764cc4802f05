"""The small parts of training, each against cases worked out by hand."""

import math
import os
import time
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import experiment, network, student_fit

from augment.base import machine
from augment.views import InputSpec
from distill.data.reader import Batch as LoadedBatch
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.ce import CrossEntropy
from distill.objectives.kd import KD
from distill.objectives.pooled import PooledFeature
from distill.training.ema import WeightAverage
from distill.training.evaluate import Predictions, predict
from distill.training.module import Distillation
from distill.training.probe import fit_probe
from distill.training.progress import describe
from distill.training.terms import build_terms, needs_of
from distill.training.timer import StepTimer

CPU = torch.device("cpu")


# --- Threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "set_to"), [(None, [3]), ("5", [])])
def test_each_rank_of_a_fit_gets_its_part_of_the_threads(
    chosen: str | None, set_to: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        """Lightning would start the other ranks."""

    def start(**arguments: object) -> None:
        raise Started

    values: list[int] = []
    monkeypatch.setattr(machine, "default_threads", lambda root: 6)
    for name in (machine.THREADS, machine.OWN_THREADS):
        monkeypatch.setenv(name, chosen or "6")
    if chosen:
        monkeypatch.delenv(machine.OWN_THREADS)
    monkeypatch.setattr("distill.training.fit.Trainer", start)
    monkeypatch.setattr(torch, "set_num_threads", values.append)
    with pytest.raises(Started):
        student_fit(experiment(tmp_path, training={"devices": 2}), tmp_path / "fit")
    assert values == set_to
    assert os.environ[machine.THREADS] == (chosen or "3"), "which the other ranks inherit"


# --- Average ------------------------------------------------------------------------------------------------------


def test_average_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, 0.25)
    for value in (2.0, 4.0):
        nn.init.constant_(layer.weight, value)
        average.update()
    # decay min(0.25, 2/11), then min(0.25, 3/12)
    first = 2 / 11 * 1 + 9 / 11 * 2
    assert average.average["weight"].item() == pytest.approx(0.25 * first + 0.75 * 4)


def test_average_in_place_and_back() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    average = WeightAverage(layer, 0.9)
    assert set(average.average) == {"weight"}, "what is frozen is not copied"
    before = layer.weight.detach().clone()
    nn.init.zeros_(layer.weight)
    for _ in range(2):  # twice, since a swap that loses one side shows the second time
        with average.in_place():
            assert torch.equal(layer.weight, before)
        assert not layer.weight.any()
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert not layer.weight.any()
    state = average.state()
    other = WeightAverage(layer, 0.9)
    other.load(state)
    other.apply()
    assert torch.equal(layer.weight, before) and other.updates == average.updates


# --- Clock --------------------------------------------------------------------------------------------------------


def test_clock() -> None:
    clock = StepTimer(CPU)
    for _ in range(2):
        with clock.span("teacher"):
            time.sleep(0.02)
    clock.add("data", 3.0)
    seconds = clock.read()
    assert list(seconds) == ["data", "augment", "teacher", "student"]
    assert seconds["data"] == 3.0 and 0.04 <= seconds["teacher"] < 0.5 and seconds["augment"] == 0
    assert not any(clock.read().values())


def test_shares_of_a_fit_add_up(tmp_path: Path) -> None:
    summary = student_fit(experiment(tmp_path), tmp_path / "fit").summary
    assert (
        summary
        and all(fraction > 0 for fraction in summary.time_fractions.values())
        and sum(summary.time_fractions.values()) <= 1
    )
    assert summary.images_per_second * summary.seconds == pytest.approx(80)


def test_the_line_of_a_step() -> None:
    metrics = {"loss": 1.5, "loss/ce": 1.0, "loss/kd": 0.5, "images_per_second": 99.6, "share/teacher": 0.25}
    metrics |= {"share/student": 0.7}
    assert describe(metrics, 60) == "100 img/s  loss 1.5 (ce 1 kd 0.5)  teacher 25% student 70%"
    assert describe(metrics, 50) == "100 img/s  loss 1.5 (ce 1 kd 0.5)\nteacher 25% student 70%", "broken between parts"
    assert describe({}, 50) == ""


# --- Evaluation ---------------------------------------------------------------------------------------------------


def batches(count: int) -> list[LoadedBatch]:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    ids, labels = torch.arange(count).flip(0), torch.arange(count) % 3
    return [LoadedBatch(images[i : i + 4], labels[i : i + 4], ids[i : i + 4]) for i in range(0, count, 4)]


def test_predictions_are_ordered_by_id_and_see_normalized_views() -> None:
    spec = InputSpec((4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    predictions = predict(lambda view: view.mean((1, 2, 3))[:, None], batches(10), spec)
    assert predictions.ids.tolist() == list(range(10))
    assert predictions.labels.tolist() == [index % 3 for index in reversed(range(10))]
    assert predictions.logits[:, 0].tolist() == pytest.approx(
        [(index / 255 - 0.5) / 0.25 for index in reversed(range(10))]
    )


def test_accuracy_and_agreement_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    ids = torch.arange(4)
    predictions = Predictions(logits, torch.tensor([0, 0, -1, 1]), ids)
    assert predictions.classes.tolist() == [0, 1, 0, 1]
    assert predictions.accuracy() == pytest.approx(2 / 3)
    other = Predictions(torch.tensor([[1.0, 0.0]] * 4), torch.full((4,), -1), ids)
    assert other.accuracy() is None and predictions.agreement(other) == other.agreement(predictions) == 0.5
    with pytest.raises(ValueError, match="different samples"):
        predictions.agreement(Predictions(logits, predictions.labels, ids + 1))


# --- Probe --------------------------------------------------------------------------------------------------------


def probe_data(classes: int, seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % classes
    features = torch.randn(60, 5, generator=generator) * 3 + 7
    features[:, 0] += 6 * labels
    return Predictions(features, labels, torch.arange(60))


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_is_logistic_regression_on_standardized_features(classes: int) -> None:
    train, held_out = probe_data(classes, 0), probe_data(classes, 1)
    probe = fit_probe(train, held_out, classes)
    x = train.logits.double()
    mean, std = x.mean(0), x.std(0)
    reference = LogisticRegression(C=probe.strength, max_iter=300).fit(((x - mean) / std).numpy(), train.labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(((held_out.logits.double() - mean) / std).numpy()))
    predictions = probe.predict(held_out)
    assert torch.allclose(predictions.logits.softmax(1).double(), expected, atol=1e-4)
    assert predictions.accuracy() is not None and predictions.accuracy() > 0.7  # type: ignore[operator]
    classifier = nn.Linear(5, classes)
    probe.into(classifier)
    assert torch.allclose(classifier(held_out.logits), predictions.logits, atol=1e-4)


def test_probe_of_few_labels() -> None:
    train, held_out = probe_data(3, 0), probe_data(3, 1)
    some = Predictions(train.logits, torch.where(train.labels == 1, -1, train.labels), train.ids)
    probe = fit_probe(some, held_out, 4)
    assert set(probe.predict(held_out).classes.tolist()) == {0, 2}, "classes without a label never win"
    with pytest.raises(ValueError, match="at least two classes"):
        fit_probe(Predictions(train.logits, torch.zeros(60, dtype=torch.int64), train.ids), held_out, 3)


# --- Terms --------------------------------------------------------------------------------------------------------

SHAPES = FeatureShapes(classes=3, pooled=4)


def features(seed: int, batch: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(batch, 3, generator=generator), torch.randn(batch, 4, generator=generator))


def test_terms_are_named_and_weighed_over_pairs_and_teachers() -> None:
    settings = (CrossEntropy.Settings(), KD.Settings(temperature=2.0), KD.Settings(temperature=4.0))
    terms = build_terms(settings, SHAPES, [SHAPES, SHAPES])
    assert [term.name for term in terms] == ["ce", "kd", "kd-2"]
    students, teachers = [features(0), features(1)], [[features(2), features(3)], [features(4), features(5)]]
    pairs, batch = ((0, 0), (1, 0), (1, 1)), Targets(torch.arange(6) % 3)
    kd = KD(settings[1], SHAPES, SHAPES)
    by_hand = [sum(kd(students[s], views[t], batch) for t, s in pairs) / 3 for views in teachers]
    losses = terms[1](students, teachers, pairs, [batch, batch])
    assert torch.allclose(losses, torch.stack(by_hand))
    teacher_weights = torch.tensor([0.75, 0.25])
    assert torch.allclose(terms[1].total(losses, teacher_weights), 0.75 * by_hand[0] + 0.25 * by_hand[1])
    ce = CrossEntropy(settings[0], SHAPES, None)
    mean = (ce(students[0], None, batch) + ce(students[1], None, batch)) / 2
    losses = terms[0](students, teachers, pairs, [batch, batch])
    assert torch.allclose(terms[0].total(losses, teacher_weights), mean), (
        "labels are asked of every view, whatever the teachers"
    )


def test_each_teacher_has_projectors_of_its_own() -> None:
    wide = FeatureShapes(classes=3, pooled=9)
    [term] = build_terms((PooledFeature.Settings(),), SHAPES, [SHAPES, wide])
    assert len(term.objectives) == 2
    of_first, of_second = ({id(p) for p in objective.parameters()} for objective in term.objectives)
    assert of_second and not of_first & of_second


def test_only_what_is_asked_for_is_computed() -> None:
    assert needs_of((CrossEntropy.Settings(),)) == (frozenset({"logits"}), frozenset({"logits"}))
    student, teacher = needs_of((CrossEntropy.Settings(), PooledFeature.Settings()))
    assert student == teacher == {"logits", "pooled"}


def test_labels_of_a_mixed_view_are_shared_out_by_the_students_view(tmp_path: Path) -> None:
    """A student that says the same of every image has a loss that only the labels and shares explain."""
    augment = {"mix": {"cutmix": 1.0}, "policy": "multicrop", "local": [{"crops": 1, "size": 11}]}
    seen: list = []

    def keep(module: Distillation) -> None:
        seen.append(module._batch_sums[1].item())

    watched = student_fit(
        experiment(tmp_path, augment=augment, objectives=[{"type": "ce"}, {"type": "kd"}]), tmp_path / "fit", keep
    )
    assert len(watched.seen) == len(seen) and all(math.isfinite(loss) for loss in seen)
    known = torch.log_softmax(torch.randn(6, 3), 1)
    [term] = build_terms((CrossEntropy.Settings(),), SHAPES, [])
    labels, others = torch.arange(6) % 3, (torch.arange(6) + 1) % 3
    batches = [Targets(labels, None, others, fraction) for fraction in (0.25, 0.75)]
    own, other = (-known[torch.arange(6), y].mean() for y in (labels, others))
    [loss] = term([Features(known)] * 2, [], ((0, 0),), batches)
    torch.testing.assert_close(loss, 0.5 * own + 0.5 * other)


# --- The step -----------------------------------------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """Raises where the host would wait for a number from the device: ``item``, ``bool``, ``int``, sizes from data."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "weighting, optimizer",
    [("fixed", "adamw"), ("fixed", "sgd"), ("fixed", "lars"), ("agreement", "adamw"), ("learned", "sgd")],
)
def test_a_step_never_waits_for_the_device(optimizer: str, weighting: str, tmp_path: Path, monkeypatch) -> None:
    modules: list = []

    def keep(module: Distillation) -> None:
        modules[:] = [module]

    training = {"epochs": 1, "schedule": {"warmup": 0}, "optimizer": {"type": optimizer}, "spike": {"action": "skip"}}
    more: dict = {}
    if weighting != "fixed":
        training["curriculum"] = {"epochs": 1}
        labels = {"a": 0, "b": [1, 2], "d": 3}
        other = {"model": "test_resnet", "pretrained": False, "size": 32, "labels": labels}
        teachers = [network(tmp_path, "test_resnet"), other]
        more = {"teacher": {"networks": teachers, "weighting": {"type": weighting, "every": 1}}}
    student_fit(experiment(tmp_path, training=training, **more), tmp_path / "fit", keep)
    [module] = modules
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    batch = LoadedBatch(images, torch.arange(8) % 4, torch.arange(8))
    views = module.step.augment(batch.images, batch.ids, 0)  # draws are made on the CPU, and may read them there
    del module.step.augment
    module.step.augment = lambda *_, **__: views
    configured = module.configure_optimizers()
    steps, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for name in ("tolist", "cpu", "numpy", "item"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, name=name: pytest.fail(f"{name} waits for the device"))
    with NoSync():
        for _ in range(3):
            steps.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            module.configure_gradient_clipping(steps)
            steps.step()
            schedule.step()
            module.average.update()
        with pytest.raises(AssertionError, match="waits for the device"):
            module.guard.check()  # the one place where it may, and the proof that this test sees it
