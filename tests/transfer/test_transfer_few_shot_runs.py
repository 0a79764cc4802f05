"""Runs of ``kind: few_shot``: heads, episodes, the folded head, an own folder with uneven shots, what is refused."""

import json
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from run_here import run_here
from toy_training import network

from augment.base import UserError
from distill.config import merge_trees, validate_tree
from distill.experiments.few_shot import FewShotExperiment
from distill.export.delta.io import load_delta
from distill.models.network import create_network
from distill.report.items import Check
from distill.run.context import RunContext
from distill.run.runner import check_stages
from distill.stages import run_episodes
from distill.stages.fit_shots import FitShots, folded_equals
from distill.training.evaluate import Predictions
from distill.training.signals import Interrupted, StopSignal
from distill.transfer.few_shot.base import Support
from distill.transfer.few_shot.prototype import Prototype
from distill.yaml_tree import ConfigError


class Signs(Prototype):
    """A head of a user: the signs of the prototypes."""

    class Settings(Prototype.Settings):
        type: str = f"{__name__}:Signs"  # type: ignore[assignment]

    def solve(self, support: Support) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = super().solve(support)
        return weight.sign(), bias.zero_()


HEADS: list[dict[str, Any]] = [{"type": "ridge"}, {"type": "prototype"}, {"type": "lp_plus", "name": "lp", "steps": 5}]
HEADS.append({"type": f"{__name__}:Signs", "name": "own"})


def few_shot(output: Path, **changes: Any) -> FewShotExperiment:
    tree: dict[str, Any] = {
        "kind": "few_shot",
        "name": "few-shot",
        "output": str(output),
        "data": {"source": {"type": "toy_training:Blobs"}, "batch_size": 8, "size": 32, "workers": 0},
        "student": {"network": network(output, "test_efficientnet")},
        "heads": HEADS,
        "ship": "lp",
        "episodes": {"ways": 3, "shots": [1, 2], "queries": 3, "episodes": 30},
        "training": {"accelerator": "cpu"},
        "export": {"verify_images": 8},
    }
    made = validate_tree(merge_trees(tree, changes), "few-shot")
    assert isinstance(made, FewShotExperiment)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(few_shot(tmp_path_factory.mktemp("few-shot")))


def content(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_heads_and_episodes_are_reported(run: Path) -> None:
    summary = content(run)["summary"]
    accuracies = {row["name"]: row["accuracy"] for row in summary["rows"]}
    assert (
        set(accuracies) == {"ridge", "prototype", "lp", "own", "student"} and accuracies["student"] == accuracies["lp"]
    )
    metrics = {each["name"]: each for each in content(run)["results"]}
    own = metrics["3-way 2-shot accuracy of prototype"]
    assert own["low"] <= own["value"] <= own["high"] and 0.5 < own["value"] <= 1
    [table] = [table for table in summary["tables"] if table["title"] == "Few-shot episodes"]
    assert [row["cells"][0] for row in table["rows"]] == ["ridge", "prototype", "lp", "own"]
    [folded] = [check for check in summary["verification"] if check["of"] == "head"]
    assert folded["passed"] and "top-1 equal on 23 of 23 images" in folded["detail"], "on every test image"


def test_what_ships_is_one_linear_layer(run: Path) -> None:
    """The delta file gives the logits of the head on the features, for every test image."""
    settings = few_shot(run.parent)
    made = create_network(settings.student.network, 4)
    model = load_delta(run / "export/delta", made.model).eval()
    assert isinstance(model.get_classifier(), torch.nn.Linear)
    head = safetensors.torch.load((run / "heads/lp/head.safetensors").read_bytes())
    predictions = safetensors.torch.load((run / "test/predictions.safetensors").read_bytes())
    torch.testing.assert_close(model.get_classifier().weight, head["weight"].float())
    apart = (predictions["student/logits"] - predictions["lp/logits"]).abs().max()
    assert apart < 1e-4 * predictions["lp/logits"].abs().max()


def test_an_interrupted_run_resumes_bit_equal(run: Path, tmp_path: Path) -> None:
    settings = few_shot(tmp_path)
    stopped = patch.object(run_episodes, "episode_accuracies", side_effect=Interrupted(signal.SIGTERM))
    with pytest.raises(Interrupted), stopped:
        run_here(settings)
    resumed = run_here(settings, resume=True)
    assert content(resumed)["results"] == content(run)["results"]
    for file in ("test/predictions.safetensors", "episodes/accuracies.safetensors"):
        assert (resumed / file).read_bytes() == (run / file).read_bytes()


def test_an_own_folder_with_uneven_shots_and_no_test_images(tmp_path: Path) -> None:
    """One, two and four images: all are fitted to, nothing is measured, and the student is exported.

    Images without a label are not read.
    """
    for number, (name, count) in enumerate({"cup": 1, "fork": 2, "plate": 4, "unlabeled": 3}.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in range(count):
            pixels = np.random.default_rng(image).normal(40 + 80 * number, 10, (32, 32, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{image}.png")
    source = {"type": "folder", "root": str(tmp_path / "images")}
    settings = few_shot(tmp_path, data={"source": source}, episodes=None, ship=None)
    assert settings.data.val_fraction == 0
    made = content(run_here(settings))["summary"]
    row = next(row for row in made["rows"] if row["name"] == "ridge")
    assert row["accuracy"] is None and row["what"] == "7 images, 1 to 4 of each of 3 classes"
    assert (tmp_path / "few-shot/export/delta/delta.json").is_file()
    assert any("no test images" in note for note in made["warnings"])
    [folded] = [check for check in made["verification"] if check["of"] == "head"]
    assert folded["passed"] and "top-1 equal on 7 of 7 images" in folded["detail"]


def test_a_fold_is_compared_without_what_all_classes_have_in_common() -> None:
    """A large offset of all logits hides no difference; a tie may be broken in another way."""
    ids, labels = torch.arange(20), torch.zeros(20, dtype=torch.long)
    logits = 0.2 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 1e3

    def of(own: torch.Tensor, ids: torch.Tensor = ids) -> Check:
        return folded_equals(Predictions(own, labels, ids), Predictions(logits, labels, torch.arange(20)))

    assert of(logits).passed
    other = of(logits.flip(1))
    assert not other.passed and "top-1 equal on 20" not in other.detail
    assert not of(logits, ids + 1).passed and not of(logits[:9], ids[:9]).passed
    logits[0] = torch.tensor([1e3, 1e3, 0.0])
    assert not of(logits + 0.01 * logits.sin()).passed, "more than rounding"
    swapped = logits.clone()
    swapped[0, 1] = torch.nextafter(swapped[0, 1], torch.tensor(2e3))
    swapped_too = of(swapped)
    assert "top-1 equal on 19 of 20" in swapped_too.detail and swapped_too.passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ship": "best"}, "ship: there is no head 'best', only ridge, prototype, lp, own"),
        ({"heads": [{"type": "ridge"}, {"type": "ridge"}], "ship": None}, "two heads are called 'ridge'"),
        ({"heads": []}, "heads"),
        ({"objectives": [{"type": "ce"}]}, "objectives: no network is trained"),
        ({"training": {"epochs": 3}}, "training.epochs: no network is trained, so nothing reads it"),
        ({"training": {"optimizer": {"lr": 1}}}, "training.optimizer: no network is trained"),
        ({"student": {"train": "full"}}, "student.train: full: the network is frozen"),
        ({"episodes": {"ways": 1}}, "episodes.ways"),
        ({"episodes": {"classes": 2}}, "episodes.classes: 2 classes, and an episode has ways: 3"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        few_shot(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"labels_per_class": 0}}, r"image of 'a', 'b', 'c', 'd' \(data\.labels_per_class: 0\)"),
        ({"episodes": {"queries": 20}}, "0 of 4 classes have the 22 labeled images"),
        ({"heads": [{"type": "lp_plus", "text": "nowhere"}], "ship": None}, r"lp_plus\.text: .*nowhere cannot be read"),
        ({"data": {"source": {"tested": False}}}, "episodes.split: the data has no test images"),
    ],
)
def test_what_is_refused_before_anything_runs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = few_shot(tmp_path, **changes)
    with StopSignal() as stop, pytest.raises(UserError, match=message):
        context = RunContext.of(settings, stop)
        stages = [stage for stage in settings.plan() if stage.name.startswith(("features", "heads", "episodes"))]
        for stage in stages:
            stage.check_files()
        check_stages(stages, context)


def test_texts_that_are_others_give_another_key(tmp_path: Path) -> None:
    """Of the heads of all classes, and of episodes."""
    keys = []
    for number in range(2):
        safetensors.torch.save_file({"a": torch.full((4,), float(number))}, tmp_path / "texts.safetensors")
        settings = few_shot(
            tmp_path, heads=[{"type": "lp_plus", "text": str(tmp_path / "texts.safetensors")}], ship=None
        )
        with StopSignal() as stop:
            context = RunContext.of(settings, stop)
            stages = [stage for stage in settings.plan() if isinstance(stage, FitShots | run_episodes.RunEpisodes)]
            keys.append([stage.key(context)["texts"] for stage in stages])
    assert len(keys[0]) == 2 and all(own["lp_plus"] != other["lp_plus"] for own, other in zip(*keys))
