"""Whole runs of ``kind: target_domain`` and ``distill adapt``: rows, honesty about labels, resuming, files."""

import io
import shutil
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from run_here import LEFT_OUT, run_here, summary
from safetensors.torch import load_file
from toy_domains import domains, domains_tree
from toy_training import raising, watching

from distill.commands.adapt import DEFAULTS, KEPT, adapt
from distill.commands.exported import evaluate_run
from distill.commands.runs import export_run
from distill.config import validate_tree
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.experiments.base import Experiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta, write_delta_files
from distill.export.delta.source_moments import read_source_moments, write_source_moments
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.folder import RunError
from distill.run.runner import run_plan
from distill.run.stage import Stage
from distill.stages.measure_domains import UNALIGNED
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted
from distill.yaml_tree import ConfigError

FIT = ("source", "statistics", "student")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: they share the source-only student."""
    return tmp_path_factory.mktemp("domains")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    """A whole run, with the oracle."""
    return run_here(domains(output, controls={"oracle": True}))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return VerifiedCheckpointIO().load_checkpoint(run / "student/result.ckpt")["student"]


def equal(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_rows_scores_and_the_source_test(run: Path) -> None:
    content = summary(run)
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == [
        "source only",
        "standardized",
        "AdaBN",
        "aligned statistics",
        "mean of both",
        "student",
        "oracle",
    ]
    assert all(row["accuracy"] is not None for row in rows.values())
    assert rows["student"]["what"] == "36 source labels, 36 target images without labels"
    assert rows["oracle"]["what"] == "36 labels of the target domain"
    tables = {table["title"]: table for table in content["tables"]}
    scored = tables["Scores without labels (not used)"]
    assert [row["cells"][0] for row in scored["rows"]] == [*rows][:6], "the oracle read labels"
    on_source = [row["cells"][0] for row in tables["On the source domain"]["rows"]]
    assert on_source == ["source only", "student", "student, statistics of the source"]


@pytest.mark.slow
def test_the_student_starts_from_the_source_only_one_with_the_targets_statistics(run: Path, output: Path) -> None:
    start = VerifiedCheckpointIO().load_checkpoint(run / "student/prepared.ckpt")
    [source] = (output / "teachers").glob("*/result.ckpt")
    before = VerifiedCheckpointIO().load_checkpoint(source)["student"]
    statistics, low_rank = start["entries"]
    assert statistics["settings"][0]["type"] == "statistics" and low_rank["settings"][0]["type"] == "low_rank"
    for site, tensors in low_rank["tensors"].items():
        assert torch.equal(tensors["B"], before[f"model.{site}.parametrizations.weight.0.delta.B"])
    now = weights(run)
    for site, tensors in statistics["tensors"].items():
        key = f"model.{site}.parametrizations.running_mean.0.delta.mean"
        assert torch.equal(now[key], tensors["mean"]), "training does not change them"
    trained = [name for name in now if name.endswith("delta.B")]
    assert any(not torch.equal(now[name], before[name.replace("weight.1.", "weight.0.")]) for name in trained)


@pytest.mark.slow
def test_permuted_target_labels_change_no_weight(run: Path, output: Path) -> None:
    target = {"type": "toy_domains:Inverted", "permuted": 1}
    other = run_here(domains(output, name="permuted", data={"target": target}), only=FIT)
    assert equal(weights(run), weights(other))
    unlabeled = {"type": "toy_domains:Inverted", "labeled": False}
    without = run_here(domains(output, name="unlabeled", data={"target": unlabeled}), only=FIT)
    assert equal(weights(run), weights(without))


@pytest.mark.slow
def test_resumed_in_the_middle_is_bit_equal(run: Path, output: Path) -> None:
    with watching(raising(signal.SIGTERM, 3), lambda *_: None), pytest.raises((Interrupted, RunError)):
        run_here(domains(output, name="again"), only=FIT)
    again = run_here(domains(output, name="again"), resume=True, only=FIT)
    assert equal(weights(run), weights(again))


@pytest.mark.slow
def test_the_delta_file_has_the_statistics_and_gives_the_students_logits(run: Path, output: Path) -> None:
    manifest, tensors = read_delta(run / "export/delta")
    assert any(name.startswith("moved/") for name in tensors)
    assert [group.settings["type"] for group in manifest.deltas] == ["low_rank"]
    merged = create_network(NetworkSettings(model=f"local-dir:{run / 'export/merged'}", size=32)).model.eval()
    backbone = create_network(NetworkSettings(model=manifest.origin, size=32), 4).model
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_delta(run / "export/delta", backbone)(x), merged(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_commands_on_a_run_evaluate_and_export_it(run: Path, output: Path) -> None:
    quiet = Console(quiet=True)
    predictions = evaluate_run(run, "test", quiet)
    row = next(row for row in summary(run)["rows"] if row["name"] == "student")
    assert predictions.accuracy() == pytest.approx(row["accuracy"]), "on the target"
    export_run(run, output / "again", quiet)
    first, second = (read_delta(folder / "delta") for folder in (run / "export", output / "again"))
    assert first[0].sha256 == second[0].sha256 and first[0].labels == second[0].labels


@pytest.fixture(scope="module")
def adapted(run: Path, output: Path) -> dict[str, Path]:
    """New delta files of the source-only student: with a short training, and with statistics alone."""
    images = output / "images"
    images.mkdir()
    from PIL import Image
    from toy_domains import Inverted

    samples = Inverted(Inverted.Settings(type="toy_domains:Inverted")).split("train")
    for index in range(len(samples)):
        Image.fromarray(samples[index].image).save(images / f"{index:02d}.png")
    made = {}
    for name, statistics in (("trained", False), ("statistics", True)):
        made[name] = output / name
        adapt_here(run / "source-only/delta", images, made[name], statistics)
    return made


def test_what_cannot_be_adapted_and_a_wrong_key_that_leaves_no_trace(run: Path, output: Path, tmp_path: Path) -> None:
    command = run / "source-only/delta", output, tmp_path / "new", False
    before = deepcopy(DEFAULTS)
    with pytest.raises(ConfigError, match=r"training\.epoch: unknown key"):
        adapt(*command, ["training.epoch=1"], Console(quiet=True))
    assert before == DEFAULTS
    manifest, tensors = read_delta(run / "source-only/delta")
    about = {name: value for name, value in manifest if name not in KEPT} | {"labels": (), "num_classes": 0}
    write_delta_files(tmp_path / "headless", tensors, **about)
    about |= {"architecture": "emulator", "origin": "emulator of test_resnet"}
    write_delta_files(tmp_path / "ends", tensors, **about)
    with pytest.raises(ConfigError, match=r"start: .* belongs to an emulator .*; name its folder as student\.network"):
        adapt(tmp_path / "ends", *command[1:], [], Console(quiet=True))
    with pytest.raises(ConfigError, match=r"start: .*headless: its student has no classifier"):
        adapt(tmp_path / "headless", *command[1:], [], Console(quiet=True))


def adapt_here(delta: Path, images: Path, to: Path, statistics: bool = False, console: Console | None = None) -> None:
    """The command, in this process, with a short training, without figures and verification."""
    quick = ["training.epochs=1", "data.batch_size=8", "data.workers=0", "training.accelerator=cpu"]
    with (
        patch("distill.stages.report.write_report", lambda *_: None),
        patch("distill.stages.report.try_report", lambda *_: None),
        patch("distill.commands.adapt.run_plan", _brief),
    ):
        adapt(delta, images, to, statistics, quick, console or Console(quiet=True))


def _brief(settings: Experiment, stages: list[Stage], *arguments: Any, **named: Any) -> Path:
    return run_plan(settings, [stage for stage in stages if stage.name not in LEFT_OUT], *arguments, **named)


@pytest.mark.slow
def test_the_same_command_continues_an_interrupted_adaptation_also_of_classes_without_names(
    run: Path, output: Path, adapted: dict[str, Path], tmp_path: Path
) -> None:
    """The weights are bit-equal to those of a run that was not interrupted, and whose file has the names."""
    manifest, tensors = read_delta(run / "source-only/delta")
    about = {name: value for name, value in manifest if name not in KEPT} | {"labels": ()}
    write_delta_files(tmp_path / "delta", tensors, **about)
    write_source_moments(tmp_path / "delta", read_source_moments(run / "source-only/delta"))
    command = tmp_path / "delta", output / "images", tmp_path / "new"
    console = Console(file=io.StringIO(), width=200)

    with watching(raising(signal.SIGTERM, 2), lambda *_: None), pytest.raises((Interrupted, RunError)):
        adapt_here(*command, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the same command continues it" in shown and "36 training images" in shown
    adapt_here(*command)
    assert not (tmp_path / "new/run@2").exists()
    new, made = read_delta(tmp_path / "new")
    assert new.labels == () and equal(made, read_delta(adapted["trained"])[1])
    moments, own = (read_source_moments(folder) for folder in (tmp_path / "new", run / "source-only/delta"))
    assert any(not torch.equal(moments[site][0], own[site][0]) for site in own), "of the target, with the new weights"
    with pytest.raises(ExportError, match="is not empty"):
        adapt_here(*command)


@pytest.mark.slow
def test_adapt_makes_a_new_hashed_delta_file(run: Path, adapted: dict[str, Path]) -> None:
    before, old = read_delta(run / "source-only/delta")
    for name, folder in adapted.items():
        manifest, tensors = read_delta(folder)
        assert manifest.sha256 != before.sha256 and manifest.backbone == before.backbone
        assert manifest.made_by == f"adapt: {before.sha256} on 36 unlabeled images"
        assert manifest.labels == before.labels == tuple("abcd")
        assert any(key.startswith("moved/") for key in tensors)
        changed = [key for key in old if not torch.equal(old[key], tensors[key])]
        assert bool(changed) == (name == "trained"), "statistics alone change no delta and no head"
        assert read_source_moments(folder).keys() == read_source_moments(run / "source-only/delta").keys() != set()


@pytest.mark.slow
def test_statistics_without_the_source_are_aligned_as_with_it(run: Path, adapted: dict[str, Path]) -> None:
    """The moments beside the delta file replace the source's images: the statistics are nearly those of the run."""
    own = read_delta(run / "export/delta")[1]
    made = read_delta(adapted["statistics"])[1]
    moved = [name for name in own if name.startswith("moved/") and name in made]
    assert moved
    for name in moved:  # other batches of the same images
        torch.testing.assert_close(made[name], own[name], rtol=0.2, atol=0.2)
    with_source = load_file(next(run.glob("statistics/moments.safetensors")))
    norms = read_source_moments(run / "source-only/delta")
    for site, (mean, var) in norms.items():
        assert torch.equal(with_source[f"source/mean/{site}"], mean) and torch.equal(
            with_source[f"source/var/{site}"], var
        )
    assert not any(UNALIGNED in line for line in summary(adapted["trained"] / "run")["warnings"])


@pytest.mark.slow
def test_without_moments_statistics_are_not_aligned_and_the_output_says_so(
    run: Path, output: Path, adapted: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(run / "source-only/delta", tmp_path / "delta")
    for file in (tmp_path / "delta").glob("source_moments.*"):
        file.unlink()
    console = Console(record=True, width=120, quiet=False, file=io.StringIO())
    quick = ["data.batch_size=8", "data.workers=0", "training.accelerator=cpu"]
    adapt(tmp_path / "delta", output / "images", tmp_path / "new", True, quick, console)
    assert UNALIGNED in console.export_text().replace("\n", " ")
    made, aligned = (read_delta(folder)[1] for folder in (tmp_path / "new", adapted["statistics"]))
    assert any(not torch.allclose(made[name], aligned[name], rtol=0.1) for name in made if name.startswith("moved/"))
    assert read_source_moments(tmp_path / "new").keys() == read_source_moments(run / "source-only/delta").keys()


@pytest.mark.slow
def test_a_run_without_labels_has_rows_without_accuracy(adapted: dict[str, Path]) -> None:
    content = summary(adapted["trained"] / "run")
    assert [row["name"] for row in content["rows"]] == ["as given", "AdaBN", "aligned statistics", "student"]
    assert all(row["accuracy"] is None for row in content["rows"])
    assert any("no test split with labels" in line for line in content["warnings"])


@pytest.mark.slow
def test_an_adapted_file_is_adapted_further(adapted: dict[str, Path], output: Path) -> None:
    from distill.models.settings import StudentSettings
    from distill.run.from_delta import student_from_delta, student_tree

    manifest, tensors = read_delta(adapted["statistics"])
    student, _ = student_from_delta(
        adapted["statistics"], StudentSettings.model_validate(student_tree(manifest, moved=True))
    )
    head = head_state(student.model, classifier_names(student.model))
    assert all(torch.equal(tensor, tensors[f"head/{name}"]) for name, tensor in head.items())
    site = next(site for site in student.sites if site.delta.settings.type == "statistics")
    assert torch.equal(site.delta.mean, tensors[f"moved/{site.name}.running_mean"])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = create_network(NetworkSettings(model=manifest.origin, size=32), 4).model
    with torch.no_grad():
        torch.testing.assert_close(
            student(x).logits, load_delta(adapted["statistics"], backbone)(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_an_unknown_class_of_the_targets_test_split_is_an_error_before_training(output: Path) -> None:
    target = {"type": "toy_domains:Inverted", "names": "abce"}
    with pytest.raises(Exception, match="test/003 of its test split is of the class 'e', which the source"):
        run_here(domains(output, name="unknown", data={"target": target}))
    assert not (output / "unknown/student").exists()


@pytest.mark.slow
def test_the_student_has_statistics_where_moments_lie_beside_the_file(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "source-only/delta", tmp_path / "delta")
    tree = {**domains_tree(tmp_path), "kind": "source_free", "start": str(tmp_path / "delta")}
    tree["data"] = {**tree["data"], "source": {"type": "toy_domains:Inverted"}, "target": None}
    tree["objectives"] = [{"type": "self_training"}]
    del tree["student"]
    types = [entry.type for entry in validate_tree(tree, "toy").student.deltas]  # type: ignore[attr-defined]
    assert types == ["statistics", "low_rank"]
    for file in (tmp_path / "delta").glob("source_moments.*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"teacher\.ema\.normalizations: .*add \{type: statistics\}"):
        validate_tree(tree, "toy")
