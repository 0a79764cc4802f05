"""T-stddev: against a plain reading of its definition, and what the table and the files say."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from augment.chain import eval_view
from augment.dual import DualAugment
from distill.commands.cache import make_teacher_networks
from distill.commands.runs import ready_teacher, score_views
from distill.commands.score import (
    CONFIG,
    PLAIN,
    VIEW_PRESETS,
    Score,
    candidates,
    score,
    score_table,
    t_stddev,
    write_scores,
)
from distill.config import validate_tree
from distill.data.order import Order
from distill.experiments.distillation import DistillationExperiment as Experiment
from distill.models.network import create_network
from distill.models.teacher import Teacher
from distill.run.context import RunContext, make_data
from distill.run.stage import StageError
from distill.training.signals import StopSignal

CROP = {"type": "RandomResizedCrop", "scale": [0.3, 0.6]}


def experiment(output: Path, **changes: Any) -> Experiment:
    network = {"model": "test_efficientnet", "pretrained": False, "size": 32}
    tree = {
        "name": "score",
        "output": str(output),
        "data": {"source": {"type": "digits"}, "batch_size": 16, "size": 32, "workers": 0},
        "augment": {"policy": "independent", "student": [CROP, "RandomInvert", "RandomInvert"]},
        "teacher": {"networks": [network, {**network, "size": 48, "weight": 3.0}]},
        "student": {"network": network},
        "objectives": [{"type": "ce"}, {"type": "kd"}],
        "training": {"accelerator": "cpu"},
    }
    return validate_tree(tree | changes, "test")


def teacher_of(settings: Experiment) -> Teacher:
    assert settings.teacher is not None
    torch.manual_seed(0)
    networks = [create_network(network, 10) for network in settings.teacher.networks]
    for network in networks:  # random weights hardly tell images apart
        network.model.get_classifier().weight.data *= 300  # type: ignore[union-attr, operator]
    return Teacher(networks, [network.weight for network in settings.teacher.networks])


def test_by_hand() -> None:
    # Class 0: 0.1, 0.3, 0.5 has sd 0.2; class 1 has it too; class 2 does not vary.
    means = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2]])
    assert float(t_stddev(means)) == pytest.approx(0.4 / 3)
    assert float(t_stddev(means[:1].expand(4, -1))) == pytest.approx(0, abs=1e-7)
    for wrong in (means[:1], means[0]):
        with pytest.raises(ValueError, match="D ≥ 2"):
            t_stddev(wrong)


@pytest.mark.slow
def test_as_the_definition_says(tmp_path: Path) -> None:
    """One pipeline, image by image, in plain loops."""
    settings = experiment(tmp_path)
    data, teacher = make_data(settings), teacher_of(settings)
    own = settings.augment.alone()
    scores = score({CONFIG: own, PLAIN: None}, data, teacher, seed=5, seeds=2, draws=3, images=20)
    for number, seed in enumerate((5, 6)):
        augment = DualAugment(own, teacher.inputs, teacher.inputs[0], seed)
        mixed, plain = [], []
        for draw in range(3):
            names = [data.subset("train").ids[index] for index in Order(len(data.subset("train")), seed)(draw)[:20]]
            halves: dict[str, list[np.ndarray]] = {"plain": [], "own": []}
            for name in names:
                batch = data.batch_of_ids([name], draw)
                views = augment(batch.images, batch.ids, draw).teacher
                for half in ("plain", "own"):
                    mean = np.zeros(10)
                    for n, weight in enumerate((0.25, 0.75)):
                        view = eval_view(batch.images, teacher.inputs[n]) if half == "plain" else views[n][0]
                        mean += weight * teacher.networks[n](view).detach().double().softmax(1)[0].numpy()
                    halves[half].append(mean)
            mixed.append(np.mean(halves["plain"] + halves["own"], axis=0))
            plain.append(np.mean(halves["plain"], axis=0))
        by_name = {each.name: each for each in scores}
        assert by_name[CONFIG].values[number] == pytest.approx(np.std(mixed, axis=0, ddof=1).mean(), rel=1e-4)
        assert by_name[PLAIN].values[number] == pytest.approx(np.std(plain, axis=0, ddof=1).mean(), rel=1e-4)
        assert by_name[CONFIG].ratios[number] == 1
    assert [sum(each.values) for each in scores] == sorted(sum(each.values) for each in scores), "best first"


def test_a_chain_that_does_nothing_is_no_augmentation(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    nothing = settings.augment.alone().model_copy(update={"student": []})
    scores = score({CONFIG: nothing, PLAIN: None}, make_data(settings), teacher_of(settings), seed=0, draws=3, images=8)
    assert scores[0].values == scores[1].values and set(scores[1].ratios) == {1.0} and min(scores[0].values) > 0


def test_what_is_compared(tmp_path: Path) -> None:
    plain = candidates(experiment(tmp_path).augment)
    assert list(plain) == [
        PLAIN,
        CONFIG,
        "without RandomResizedCrop",
        "without RandomInvert",
        "without RandomInvert (number 2)",
        "with mixup of α 1",
        "with cutmix of α 1",
        *(f"preset {name}" for name in VIEW_PRESETS),
    ]
    assert [len(s.student) for s in plain.values() if s][:6] == [3, 2, 2, 2, 3, 3]
    own = candidates(experiment(tmp_path, augment={"policy": "identical", "student": "simclr"}).augment)
    assert "preset simclr" not in own and "preset dino" in own, "the config's own chain is there already"
    weak = {"policy": "weak_teacher", "student": [CROP], "mix": {"mixup": 0.2}}
    mixing = candidates(experiment(tmp_path, augment=weak).augment)
    assert list(mixing)[:5] == [PLAIN, CONFIG, "without RandomResizedCrop", "the teacher's chain", "without mixing"]
    assert mixing["without mixing"].mix is None and mixing[CONFIG].mix is not None  # type: ignore[union-attr]
    assert all(s.policy == "identical" for s in mixing.values() if s)


def test_a_preset_that_does_not_fit_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = experiment(tmp_path)
    pipelines = candidates(settings.augment)
    few = {name: pipelines[name] for name in (CONFIG, "preset weak", "preset cifar")}
    scores = score(few, make_data(settings), teacher_of(settings), seed=0, seeds=1, draws=2, images=4)
    assert {each.name for each in scores} == {CONFIG, "preset weak"}
    assert "preset cifar is left out: PadCrop" in caplog.text
    with pytest.raises(ValueError, match="PadCrop"):
        score({CONFIG: pipelines["preset cifar"]}, make_data(settings), teacher_of(settings), seed=0, images=4)


def test_a_draw_must_be_a_sample(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    with pytest.raises(StageError, match=r"--draw-images 1000: .* at most a quarter of them, \d+"):
        score({CONFIG: None}, make_data(settings), teacher_of(settings), seed=0, images=1000)


@pytest.mark.slow
def test_the_teacher_is_never_trained_here(tmp_path: Path) -> None:
    fit = {"method": "probe"}
    settings = experiment(tmp_path, fit_teacher=fit)
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        with pytest.raises(
            StageError, match="the teacher test_efficientnet is not fitted yet, and this command trains"
        ):
            ready_teacher(settings, context)
        assert not list(tmp_path.rglob("*")), "nothing was written either"
        fitted = make_teacher_networks(settings, context).networks
        again = ready_teacher(settings, RunContext.of(settings, stop)).networks
        for first, second in zip(fitted, again, strict=True):
            assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
        alone = experiment(tmp_path, teacher=None, objectives=[{"type": "ce"}])
        with pytest.raises(StageError, match="there is no teacher in this config"):
            score_views(alone, tmp_path / "scores", Console(quiet=True), seeds=1, draws=2, images=4)


def test_the_table_and_the_files(tmp_path: Path) -> None:
    scores = [Score("a, b", (0.004, 0.005), (0.8, 1.0)), Score(CONFIG, (0.005, 0.005), (1.0, 1.0))]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(score_table(scores, 16, 64))
    text = console.export_text()
    assert "4.500 ± 0.707" in text and "0.90 ± 0.14" in text and "lower is better" in text
    assert "2 seed(s), 16 draws of 2 · 64 images" in text
    paths = write_scores(scores, tmp_path / "preview", seed=3, seeds=2)
    assert [path.name for path in paths] == ["preview-score.csv", "preview-score.json"]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pipeline"], row["seed"], float(row["t_stddev"])) for row in rows[:2]] == [
        ("a, b", "3", 0.004),
        ("a, b", "4", 0.005),
    ]
    kept = json.loads(paths[1].read_text())
    assert kept["settings"]["seed"] == 3
    assert kept["rows"][1] == {
        "name": "t_stddev_ratio: a, b",
        "value": 0.9,
        "unit": "of this config's",
        "low": 0.8,
        "high": 1.0,
    }
