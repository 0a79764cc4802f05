"""Reptile and FOMAML on deltas: formulas, keyed batches, what is trained, a run that is interrupted and resumed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from run_here import run_here
from test_transfer_few_shot_runs import content, few_shot
from toy_training import assert_bit_equal

from distill.experiments.few_shot import FewShotExperiment
from distill.export.delta.io import read_delta
from distill.models.student import Student
from distill.run.context import RunContext
from distill.run.prepare import StudentSpec
from distill.stages import meta_train
from distill.stages.meta_train import MetaProgress, MetaTrain
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted, StopSignal
from distill.transfer.few_shot.base import FewShotError
from distill.transfer.meta import (
    EpisodeViews,
    batch_rows,
    delta_parameters,
    learn,
    load_state,
    mean_of,
    query_gradient,
    state_of,
)
from distill.transfer.meta_settings import MetaSettings
from distill.yaml_tree import ConfigError, merge_trees

SMALL = MetaSettings(
    iterations=2, tasks=1, ways=2, shots=3, queries=2, inner_steps=2, inner_lr=0.01, test_steps=1, test_episodes=2
)


def meta(output: Path, **changes: Any) -> FewShotExperiment:
    own = SMALL.model_dump(mode="json", exclude={"inner_batch", "inner_lr", "step", "outer_lr"})
    tree: dict[str, Any] = {
        "name": "meta",
        "student": {"deltas": [{"type": "low_rank", "rank": 2}]},
        "meta": own,
        "heads": [{"type": "prototype"}],
        "ship": None,
        "episodes": {"ways": 2, "shots": [1], "queries": 3, "episodes": 20, "classes": ["a", "c"]},
    }
    if isinstance(given := changes.get("meta"), dict):  # a dict with a type would replace the other one
        changes["meta"] = {**tree["meta"], **given}
    return few_shot(output, **merge_trees(tree, changes))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Student]:
    settings = meta(tmp_path_factory.mktemp("student"))
    yield StudentSpec(settings.student, 0, 4, frozenset({"logits", "pooled"})).build().eval()


@pytest.fixture
def task(student: Student) -> EpisodeViews:
    views = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    views[:6] += labels[:, None, None, None]
    return EpisodeViews(views[:6], labels, views[6:], torch.tensor([0, 0, 1, 1]), 7)


def test_inner_steps_change_deltas_alone_and_repeat(student: Student, task: EpisodeViews) -> None:
    theta = state_of(student)
    assert theta and all("parametrizations" in name for name in theta), "neither backbone nor head"
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    learned = learn(student, task, SMALL, 0, 3, 4)
    moved = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and set(moved) <= theta.keys()
    first = state_of(student)
    load_state(student, theta)
    again = learn(student, task, SMALL, 0, 3, 4)
    assert_bit_equal(state_of(student), first)
    assert torch.equal(again.weight, learned.weight)
    load_state(student, theta)
    learn(student, task, SMALL, 1, 3, 4)
    assert any(not torch.equal(own, first[name]) for name, own in state_of(student).items()), "keyed by the seed"
    load_state(student, theta)


def test_the_first_order_gradient_is_that_at_the_trained_deltas(student: Student, task: EpisodeViews) -> None:
    theta = state_of(student)
    learned = learn(student, task, SMALL, 0, 3, 4)
    made = query_gradient(student, task, learned)
    pooled = student(task.queries).pooled
    assert pooled is not None
    loss = torch.nn.functional.cross_entropy(pooled @ learned.weight.T + learned.bias, task.query_labels)
    student.zero_grad()
    loss.backward()
    for name, parameter in delta_parameters(student).items():
        torch.testing.assert_close(made[name], parameter.grad)
    assert any(gradient.abs().max() > 0 for gradient in made.values())
    load_state(student, theta)


def test_equal_class_means_give_small_logits(student: Student, task: EpisodeViews) -> None:
    theta = state_of(student)
    views = task.support[:3].repeat(2, 1, 1, 1)
    learned = learn(student, replace(task, support=views), SMALL, 0, 1, 6)
    assert learned.weight.isfinite().all()
    assert learned.logits(student, views).abs().max() < 1, "no class leads, and none by the offset of all"
    load_state(student, theta)


def test_batches_take_every_image_before_any_comes_again() -> None:
    rows = torch.cat([batch_rows(7, 3, step, 0, 5) for step in range(7)])
    assert [sorted(rows[at : at + 7].tolist()) for at in (0, 7, 14)] == [list(range(7))] * 3
    assert not torch.equal(rows[:7], rows[7:14]), "another order each time"
    assert batch_rows(4, 10, 3, 0, 5).sort().values.tolist() == [0, 1, 2, 3]
    assert not torch.equal(rows[:7], torch.cat([batch_rows(7, 3, step, 0, 6) for step in range(3)])[:7])


def test_a_step_of_adam_by_hand() -> None:
    """The first step of Adam is the learning rate against the sign of the gradient; its moments go on."""
    progress = MetaProgress({"A": torch.tensor([1.0, 2.0])})
    progress.descend({"A": torch.tensor([3.0, -0.5])}, lr=0.1)
    torch.testing.assert_close(progress.theta["A"], torch.tensor([0.9, 2.1]))
    reference = torch.tensor([1.0, 2.0]).requires_grad_()
    optimizer = torch.optim.Adam([reference], lr=0.1)
    for gradient in ([3.0, -0.5], [1.0, 1.0]):
        reference.grad = torch.tensor(gradient)
        optimizer.step()
    progress.descend({"A": torch.tensor([1.0, 1.0])}, lr=0.1)
    torch.testing.assert_close(progress.theta["A"], reference.detach())
    assert torch.equal(mean_of([{"A": torch.tensor([1.0])}, {"A": torch.tensor([4.0])}])["A"], torch.tensor([2.5]))


@pytest.mark.slow
def test_the_deltas_of_the_start_are_exported(tmp_path: Path) -> None:
    run = run_here(meta(tmp_path))
    theta = VerifiedCheckpointIO().load_checkpoint(run / "meta/meta.ckpt")["theta"]
    exported = read_delta(run / "export/delta")[1]
    deltas = {name: tensor for name, tensor in exported.items() if name.startswith("delta/")}
    assert len(deltas) == len(theta)
    of_theta = sorted(tensor.double().sum().item() for tensor in theta.values())
    assert sorted(tensor.double().sum().item() for tensor in deltas.values()) == pytest.approx(of_theta, abs=1e-5)
    assert any(tensor.any() for name, tensor in theta.items() if name.endswith(".B")), "B starts at zero"
    names = {row["cells"][0] for table in content(run)["summary"]["tables"] for row in table["rows"]}
    assert {"backbone, prototype", "meta-learned deltas, prototype", "deltas trained in the episode"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reptile", "fomaml"])
def test_an_interrupted_meta_training_is_bit_equal(kind: str, tmp_path: Path) -> None:
    """θ is saved after each iteration, with the moments of FOMAML's Adam."""

    def theta(folder: Path) -> dict[str, torch.Tensor]:
        return VerifiedCheckpointIO().load_checkpoint(folder / "meta/meta.ckpt")["theta"]

    settings, other = (meta(tmp_path / name, meta={"type": kind}) for name in ("straight", "stopped"))
    straight = run_here(settings, only=("meta",))
    iterate = MetaTrain._iterate

    def dies(stage: MetaTrain, context: RunContext, student: Student, progress: MetaProgress, number: int) -> None:
        if number == 1:
            raise Interrupted(15)
        iterate(stage, context, student, progress, number)

    with patch.object(meta_train.MetaTrain, "_iterate", dies), pytest.raises(Interrupted):
        run_here(other, only=("meta",))
    resumed = run_here(other, resume=True, only=("meta",))
    assert_bit_equal(theta(resumed), theta(straight))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"deltas": []}}, "student.deltas: meta-training trains deltas"),
        ({"meta": None}, "student.deltas: nothing trains them"),
        ({"meta": {"step": [0, 1]}}, "meta.step: 0 in the first step"),
        ({"meta": {"test_episodes": 1}}, "meta.test_episodes: 1 has no interval"),
        ({"training": {"devices": 2}, "data": {"batch_size": 8}}, "training.devices: meta-training runs in one"),
        (
            {"student": {"deltas": [{"type": "low_rank", "ranks": {"budget": "6KB", "importance": "fisher"}}]}},
            "chooses ranks or masks",
        ),
        ({"student": {"deltas": [{"type": "adalora"}]}}, "student.deltas.0: adalora changes its form after every step"),
        ({"student": {"deltas": [{"type": "halrp"}]}}, "student.deltas.0: halrp changes its form after its training"),
        ({"student": {"deltas": [{"type": "statistics"}]}}, "kind: few_shot measures no statistics"),
        ({"episodes": {"split": "train", "classes": None}}, "episodes.classes: with meta and split: train, name"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        meta(tmp_path, **changes)


def test_too_few_classes_or_images_are_refused_before_anything_runs(tmp_path: Path) -> None:
    for changes, message in (
        ({"ways": 3}, "meta.ways: 3, and 2 classes are left"),
        ({"shots": 40}, "meta: episodes: 0 of 2 classes have the 40 labeled images that 40 shots take"),
    ):
        settings = meta(tmp_path, meta=changes)
        with StopSignal() as stop, pytest.raises(FewShotError, match=message):
            settings.plan()[0].check(RunContext.of(settings, stop))
