"""Pooled features of chosen splits: shared by runs, and equal to what the network computes image by image."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from toy_training import experiment, student_spec

from augment.chain import eval_view
from distill.data.base import DataError
from distill.experiments.distillation import DistillationExperiment
from distill.models.network import create_network, extract
from distill.run.context import RunContext
from distill.run.runner import finish
from distill.run.stage import Ref
from distill.run.trial import Trial
from distill.stages import pooled_features
from distill.stages.outputs import TrainedStudent
from distill.stages.pooled_features import PooledFeatures, SplitFeatures
from distill.training.signals import StopSignal


@pytest.fixture
def made_context(tmp_path: Path) -> Iterator[tuple[DistillationExperiment, RunContext]]:
    settings = experiment(tmp_path, data={"labels_per_class": 2})
    with StopSignal() as stop:
        yield settings, RunContext.of(settings, stop)


def assert_equal(first: SplitFeatures, second: SplitFeatures) -> None:
    assert first.splits.keys() == second.splits.keys() and first.seconds == second.seconds
    for split, own in first.splits.items():
        assert all(torch.equal(*pair) for pair in zip(vars(own).values(), vars(second.splits[split]).values()))


@torch.inference_mode()
def test_features_of_a_network_are_computed_once_for_all_runs(
    made_context: tuple[DistillationExperiment, RunContext],
) -> None:
    settings, context = made_context
    own = settings.student.network
    stage = PooledFeatures("features", ("train", "val"), network=own)
    made = finish(stage, context, Path())
    network, data = create_network(own), context.data.eval_batch("val", range(17), None)
    seen = extract(network.model, eval_view(data.images, network.input), frozenset({"pooled"})).pooled
    order = data.ids.argsort()
    assert torch.equal(made.splits["val"].ids, data.ids[order])
    torch.testing.assert_close(made.splits["val"].logits, seen[order], rtol=1e-4, atol=1e-4)
    assert torch.equal(made.splits["val"].labels, data.labels[order])
    assert len(made.splits["train"].ids) == 36 and int((made.splits["train"].labels >= 0).sum()) == 8

    another = replace(context, outputs={}, keys={}, digests={})
    with patch.object(pooled_features, "compute_features", side_effect=AssertionError("computed again")):
        assert_equal(finish(replace(stage, name="other"), another, Path()), made)
    labeled = finish(PooledFeatures("some", ("train",), network=own, labeled=True), another, Path())
    assert len(labeled.splits["train"].ids) == 8, "only the labeled ones, which are another output"
    assert len(list((context.root / "features").iterdir())) == 2


def test_features_of_a_student_have_its_deltas(
    made_context: tuple[DistillationExperiment, RunContext], tmp_path: Path
) -> None:
    settings, context = made_context
    student = student_spec(settings, context).build()
    for site in student.sites:
        for parameter in site.delta.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    ref = Ref("student", TrainedStudent)
    trial = replace(context, outputs={}, trial=Trial(tmp_path))
    stage = PooledFeatures("features", ("test",), student=ref)
    assert stage.check(trial) is None and stage.store(context, "digest") is None
    context.outputs["student"] = trial.outputs["student"] = SimpleNamespace(student=student)
    checked = stage.check(trial)
    assert checked is not None and 0 < len(checked.splits["test"].ids) < 23, "a few images"
    folder = tmp_path / "features"
    folder.mkdir()
    made = stage.run(context, folder)
    assert_equal(stage.load(context, folder), made)
    plain = PooledFeatures("plain", ("test",), network=settings.student.network).run(context, folder)
    assert not torch.allclose(plain.splits["test"].logits, made.splits["test"].logits)


def test_what_no_features_can_be_of_is_refused(made_context: tuple[DistillationExperiment, RunContext]) -> None:
    settings, _ = made_context
    with pytest.raises(TypeError, match="of a network or of a student"):
        PooledFeatures("features", ("train",))
    tested: dict[str, Any] = {"source": {"type": "toy_training:Blobs", "tested": False}}
    other = experiment(settings.output, data=tested)
    stage = PooledFeatures("features", ("test",), network=settings.student.network)
    with StopSignal() as stop, pytest.raises(DataError, match="has no test split"):
        stage.check(replace(RunContext.of(other, stop), trial=Trial(settings.output)))
