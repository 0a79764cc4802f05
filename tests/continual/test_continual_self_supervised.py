"""Self-supervised streams: features of all classes are evaluated after each task, and states of objectives go on."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor
from toy_stream import learn, learn_only, stream, stream_tree
from toy_training import raising, watching, whole

from distill.commands.stream_evaluate import evaluate_stream
from distill.config import validate_tree
from distill.continual.carry import MOMENTUM
from distill.deltas.base import tensor_bytes
from distill.deltas.sites import classifier_names
from distill.experiments.continual import ContinualExperiment
from distill.export.checksummed import ExportError
from distill.models.network import create_network, extract
from distill.models.settings import NetworkSettings
from distill.run.folder import RunFolder, read_record
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import load_carried, load_momentum
from distill.training.module import Distillation
from distill.training.signals import Interrupted
from distill.training.step import DistillationStep
from distill.yaml_tree import ConfigError

SMALL = {"hidden": 8, "dim": 4}
BYOL, MOCO, SIMCLR = {"type": "byol", **SMALL}, {"type": "moco", **SMALL, "queue": 40}, {"type": "simclr", **SMALL}
BOTH = {"policy": "both_to_both"}
AVERAGE = {"model": "momentum", "decay": [0.5, 0.9]}
RESNET20 = {"model": "resnet20_cifar", "pretrained": False, "size": 16}


def plain(output: Path, **changes: Any) -> dict[str, Any]:
    """The config of a stream of a ResNet-20 from scratch, whose later tasks train branches."""
    own = {
        "strategy": {"type": "merge_and_go", "first": "full"},
        "augment": BOTH,
        "student": {"network": RESNET20, "deltas": [{"type": "branch"}]},
        "objectives": [SIMCLR],
        "heads": [],
        "inference": [],
        "controls": {"heads": False},
    }
    return stream_tree(output, **{**own, **changes})


def self_supervised(output: Path, **changes: Any) -> ContinualExperiment:
    settings = validate_tree(plain(output, **changes), "toy stream")
    assert isinstance(settings, ContinualExperiment)
    return settings


class Steps:
    """The training steps of a stream, and their states at the start of each fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.steps: list[DistillationStep] = []
        self.before: list[dict[str, Tensor]] = []
        original = Distillation.on_fit_start

        def noting(module: Distillation) -> None:
            original(module)
            self.steps.append(module.step)
            self.before.append({key: value.clone() for key, value in module.step.state_dict().items()})

        monkeypatch.setattr(Distillation, "on_fit_start", noting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"type": "bank"}}, "strategy.type: setting: representation, which follows .* bank has none; use"),
        ({"training": {"keep": "best"}}, "training.keep: no objective trains the classifier"),
        ({"controls": {"separate": True}}, "controls.separate: a network for each task"),
    ],
)
def test_config_errors_name_the_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_tree(plain(tmp_path, **changes), "stream")


def test_the_setting_follows_from_the_objectives_or_is_given(tmp_path: Path) -> None:
    def names(**changes: Any) -> list[str]:
        settings = self_supervised(tmp_path, **changes)
        return [stage.name for stage in settings.plan() if stage.name.startswith(("task-2", "untrained"))]

    features = ["untrained", "task-2/student", "task-2/student-representation"]
    assert names() == features
    assert names(objectives=[SIMCLR, {"type": "ce"}]) == ["task-2/student", "task-2/student-test"]
    assert names(objectives=[{"type": "ce"}], setting="representation") == [*features, "task-2/student-test"]
    unlabeled = {"stream": {"type": "images", "count": 2}, "data": {"source": {"labeled": False}}}
    assert names(**unlabeled) == ["task-2/student"], "without labels, there is nothing to evaluate"
    assert names(controls={"heads": False, "sequential": True})[3:] == [
        "task-2/sequential",
        "task-2/sequential-representation",
    ]


def read(file: Path) -> dict[str, Any]:
    return VerifiedCheckpointIO().load_checkpoint(file)


@pytest.mark.slow
def test_branch_tuning_with_momentum_and_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole stream: the states go on, the network of a task begins where the last ended, and features are scored."""
    watched = Steps(monkeypatch)
    cassle = {"type": "cassle", "projector": "byol", "hidden": 8}
    settings = self_supervised(
        tmp_path,
        teacher={"networks": [{"model": "previous"}, AVERAGE]},
        objectives=[BYOL, {**MOCO, "carry": "task"}, cassle],
    )
    folder = learn(settings)
    first, second = watched.steps
    assert first.term_names == ["byol", "moco"] and second.term_names == ["byol", "moco", "cassle"]

    fit = folder / "task-1/student/fit"
    carried = load_carried(fit)
    assert json.loads((fit / "fit.json").read_text())["scores"] == {}, "its classifier is not trained"
    assert set(carried) == {"byol"}, "carry: task is not kept, and cassle's predictor is new in every task"
    begun = {key.removeprefix("terms.0."): value for key, value in watched.before[1].items() if "terms.0." in key}
    assert begun.keys() == carried["byol"].keys() and any("predictor" in key for key in begun)
    assert all(torch.equal(value, carried["byol"][key]) for key, value in begun.items())

    average = load_momentum(fit)
    assert average is not None and second.momentum is not None
    starts = {key.removeprefix("momentum."): v for key, v in watched.before[1].items() if key.startswith("momentum.")}
    for key, value in average.items():
        if "fc" not in key:
            layer, _, name = key.rpartition(".")
            own = starts.get(key, starts.get(f"{layer}.parametrizations.{name}.original"))
            assert own is not None and torch.equal(own, value), key
    student = {key.removeprefix("student."): v for key, v in watched.before[1].items() if key.startswith("student.")}
    assert any(not torch.equal(value, student[key]) for key, value in starts.items()), "it is not the student"

    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    second.student.eval()
    whole_network = create_network(NetworkSettings(model=f"local-dir:{folder}/task-2/student/merged", size=16)).model
    with torch.no_grad():
        unmerged, merged = (model.forward_features(images) for model in (second.student.model, whole_network))
        assert (merged - unmerged).abs().max() <= 1e-5 * unmerged.abs().max()
        for site in second.student.sites:
            for branch in site.delta.parameters():
                branch.zero_()
        ended = read(fit / "result.ckpt")["student"]
        first.student.load_state_dict(ended)
        [classifier] = classifier_names(first.student.model)
        old, new = (step.student.eval().model.forward_features(images) for step in (first, second))
    key = f"model.{classifier}.weight"
    assert torch.equal(watched.before[0][f"student.{key}"], ended[key]), "neither a gradient nor weight decay moves it"
    assert torch.equal(old, new), "with branches of zero, a task begins where the last ended"

    results = json.loads((folder / "results.json").read_text())
    measured = {result["name"]: result["value"] for result in results["results"]}
    for name in ("student, knn", "student, linear"):
        numbers = {key.partition(": ")[2]: value for key, value in measured.items() if key.startswith(name)}
        assert {"accuracy_micro", "forward_transfer", "backward_transfer"} <= numbers.keys()
        assert numbers["accuracy on all tasks after task-2"] == numbers["accuracy_micro"]
        beside = numbers["kept bytes after task-1"] - numbers["served bytes after task-1"]
        assert beside == tensor_bytes(carried["byol"].values()) + tensor_bytes(average.values())
    scores = json.loads((folder / "task-1/student-representation/scores.json").read_text())["scores"]
    assert scores["student, linear"]["representation"].keys() == {"task-1", "task-2"}, "future tasks too"
    for matrix in results["summary"]["matrices"]:
        assert all(value is not None for row in matrix["values"] for value in row)

    exported = timm.create_model(f"local-dir:{folder / 'export/features'}", pretrained=True).eval()
    assert exported.num_classes == 0, "its classifier was never trained"
    with torch.no_grad():
        pooled = extract(whole_network, images, frozenset({"pooled"})).pooled
        assert pooled is not None and torch.allclose(exported(images), pooled, atol=1e-5)
    [check] = results["summary"]["verification"]
    assert check["name"] == "exported features = network of the run" and check["passed"]
    with pytest.raises(ExportError, match="only its features are exported"):
        evaluate_stream(folder, "test", Console(quiet=True))

    again = folder / "task-2/student"
    of_second = read(again / "fit" / MOMENTUM)["momentum"]
    expected = {**read(again / "fit/result.ckpt"), "merged": of_second}
    assert not any("parametrizations" in key for key in of_second), "its branches are merged too"
    shutil.rmtree(again)
    RunFolder(folder, read_record(folder)).set_status("interrupted")
    with watching(raising(signal.SIGTERM, 2), lambda *step: None), pytest.raises(Interrupted):
        learn_only(settings, resume=True)
    learn_only(settings, resume=True)
    resumed = {**read(again / "fit/result.ckpt"), "merged": read(again / "fit" / MOMENTUM)["momentum"]}
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_the_projector_of_the_task_before_is_the_start_and_the_old_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[DistillationStep] = []
    starts: list[dict[str, torch.Tensor]] = []
    original = Distillation.on_fit_start

    def noting(module: Distillation) -> None:
        original(module)
        steps.append(module.step)
        starts.append({key: value.clone() for key, value in module.step.terms[0].state_dict().items()})

    monkeypatch.setattr(Distillation, "on_fit_start", noting)
    byol = {"type": "byol", "hidden": 8, "dim": 4}
    settings = stream(
        tmp_path,
        strategy={"type": "sequential"},
        student=whole(tmp_path),
        augment={"policy": "both_to_both"},
        teacher={"networks": [{"model": "momentum"}, {"model": "previous"}]},
        objectives=[byol, {"type": "cassle", "projector": "byol", "hidden": 8}],
    )
    run = learn_only(settings)
    first, second = steps
    assert (first.term_names, second.term_names) == (["byol"], ["byol", "cassle"])
    assert first.teacher is None and second.teacher is not None and second.momentum is not None
    carried = load_carried(run / "task-1/student/fit")["byol"]
    assert carried.keys() == starts[1].keys() and all(torch.equal(carried[key], starts[1][key]) for key in carried)
    average = load_momentum(run / "task-1/student/fit")
    assert average is not None and average.keys() == second.momentum.own_state().keys()
    old = second.terms[1].objectives[0].old_projector  # type: ignore[union-attr]
    assert torch.equal(old.get_buffer("0_weight"), carried["objectives.0.projector.0.weight"])  # type: ignore[operator]
    assert not torch.equal(second.terms[0].objectives[0].projector[0].weight, old.get_buffer("0_weight"))  # type: ignore
