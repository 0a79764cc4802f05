"""``kind: offsite``: a whole run of both roles, resuming, and the commands that do the same."""

import json
import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from run_here import run_here, summary
from toy_offsite import full, offsite, offsite_tree
from toy_training import watching

from distill.commands.exported import evaluate_run
from distill.commands.offsite import make_emulator, plug
from distill.commands.runs import export_run
from distill.config import merge_trees, validate_tree
from distill.experiments.offsite import OffsiteExperiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta
from distill.export.targets.timm_folder import check_timm_folder
from distill.export.verify import _fresh_process
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted
from distill.yaml_tree import ConfigError

QUIET = Console(quiet=True)
GIVEN = {"config.json", "manifest.json", "model.safetensors", "README.md"}
SENT = "plugged-in/delta"
ENDS = ("blocks.0.", "blocks.5.", "cls_token", "pos_embed", "patch_embed.", "norm.", "fc_norm.", "reg_token")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offsite")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    return run_here(offsite(output))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep": 1}, r"keep: 1: the first and the last block of the middle are always kept, so 2 or more"),
    ({"keep": 0.0}, r"keep"),
    ({"front": []}, r"front"),
    ({"student": {"train": "full", "deltas": []}}, r"student\.train: full would train the middle too"),
    ({"student": {"network": {"model": "test_vit", "pretrained": False}}}, r"student\.network\.pretrained: false"),
    ({"distill": {"keep": "best"}}, r"distill\.keep: the emulator has no classifier"),
    ({"distill": {"test_every": 1}}, r"distill\.test_every: the emulator has no classifier"),
    ({"distil": {}}, r"distil.*distill"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_configs_are_refused(changes: dict[str, Any], text: str, output: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        offsite(output, **changes)


def test_defaults_are_cross_entropy_and_the_papers_distillation(output: Path) -> None:
    plain = offsite_tree(output)
    del plain["objectives"]
    made = validate_tree(merge_trees(plain, {"distill": {"optimizer": {"lr": 1e-3}}}), "toy")
    assert isinstance(made, OffsiteExperiment) and made.distill is not None
    assert [own.type for own in made.objectives] == ["ce"]
    assert (made.distill.epochs, made.distill.optimizer.lr, made.distill.optimizer.weight_decay) == (1, 1e-3, 0.1)


@pytest.mark.slow
def test_the_rows_and_what_leaves_the_owner(run: Path) -> None:
    content = summary(run)
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["linear probe", "emulator, tuned", "plugged in", "on site"]
    assert all(row["accuracy"] is not None for row in rows.values()) and content["student"] == "plugged in"
    tables = {table["title"]: [row["cells"] for row in table["rows"]] for table in content["tables"]}
    (_, whole, _), (_, emulator, part), (_, verbatim, share) = tables["What the owner gives away"]
    assert emulator / whole == part and verbatim / whole == share and 0 < verbatim < emulator < whole
    sent = {row[0]: row[1:] for row in tables["What is sent"]}
    sizes = [sum(path.stat().st_size for path in (run / name).iterdir()) for name in ("emulator/network", SENT)]
    assert sent["emulator"] == ["owner → user", sizes[0]] and sent["delta file"] == ["user → owner", sizes[1]]
    assert str(run).encode() not in (run / SENT / "delta.json").read_bytes(), "it goes to the owner"
    assert read_delta(run / SENT)[0].origin == "emulator of test_vit"


@pytest.mark.slow
def test_distillation_changes_the_kept_blocks_alone(run: Path, output: Path) -> None:
    own = fingerprint(create_network(full(output), 0).model.state_dict()).tensors
    given = fingerprint(
        create_network(NetworkSettings(model=f"local-dir:{run / 'emulator/network'}")).model.state_dict()
    )
    assert not any(name.startswith(("blocks.2", "blocks.3")) for name in given.tensors), "they are dropped"
    changed = {name for name, mark in given.tensors.items() if mark != own[name]}
    assert changed and {name.split(".")[1] for name in changed} == {"1", "4"}
    assert all(name.endswith("weight") and "norm" not in name for name in changed)


@pytest.mark.slow
def test_the_plugged_in_student_is_one_of_the_full_network(run: Path, output: Path) -> None:
    sent, of_emulator = read_delta(run / "plugged-in/delta")
    exported, of_full = read_delta(run / "export/delta")
    assert sent.architecture == "emulator" and exported.architecture == "test_vit"
    assert of_emulator.keys() == of_full.keys()
    assert all(torch.equal(of_emulator[name], of_full[name]) for name in of_full), "bit by bit what the user has sent"
    sites = {site for group in exported.deltas for site in group.sites}
    assert sites and all(site.startswith(ENDS) for site in sites)
    config = json.loads((run / "export/merged/config.json").read_text())
    assert config["architecture"] == "test_vit", "the merged folder needs timm alone"
    merged = create_network(NetworkSettings(model=f"local-dir:{run / 'export/merged'}")).model
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = load_delta(run / "export/delta", create_network(full(output), 4).model)(x)
        torch.testing.assert_close(merged(x), logits, rtol=1e-4, atol=1e-5)
        emulator = create_network(NetworkSettings(model=f"local-dir:{run / 'emulator/network'}", size=32), 4).model
        on_emulator = load_delta(run / "plugged-in/delta", emulator)(x)
    assert not torch.allclose(on_emulator, logits, atol=1e-3), "the middle is another one"
    with pytest.raises(ExportError, match="made for another backbone"):
        load_delta(run / "plugged-in/delta", create_network(full(output), 4).model)


@pytest.mark.slow
def test_the_commands_on_a_run(run: Path, output: Path) -> None:
    row = next(row for row in summary(run)["rows"] if row["name"] == "plugged in")
    assert evaluate_run(run, "test", QUIET).accuracy() == pytest.approx(row["accuracy"])
    export_run(run, output / "again", QUIET)
    with pytest.raises(ConfigError, match=r"student\.start: a delta file of the full network does not fit"):
        offsite(output, student={"start": str(run / "export/delta")})
    assert read_delta(output / "again/delta")[0].sha256 == read_delta(run / "export/delta")[0].sha256


@pytest.mark.slow
def test_plug_writes_and_verifies_the_same_student(run: Path, output: Path) -> None:
    with patch("distill.export.verify._run_fresh", _fresh_process):
        plug(run / "plugged-in/delta", full(output).model, output / "plugged", QUIET)
    manifest, tensors = read_delta(output / "plugged/delta")
    exported, expected = read_delta(run / "export/delta")
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert manifest.backbone == exported.backbone and manifest.labels == tuple("abcd")
    assert manifest.made_by == f"plug: {read_delta(run / 'plugged-in/delta')[0].sha256}"
    check_timm_folder(output / "plugged/merged")
    with pytest.raises(ExportError, match="which is no emulator"):
        plug(run / "export/delta", full(output).model, output / "twice", QUIET)


@pytest.mark.slow
def test_the_owner_gives_the_emulator_alone_and_continues_an_interrupted_command(run: Path, output: Path) -> None:
    """The checkpoints of the distillation hold the owner's weights."""
    to, settings = output / "distilled", offsite(output)

    def kill(module: Any) -> None:
        if module.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    console = Console(record=True, width=400, file=StringIO())
    with watching(kill, lambda *_: None), pytest.raises(Interrupted):
        make_emulator(settings, to, console)
    assert "offsite-emulator is saved; the same command continues it" in console.export_text() and not to.exists()
    make_emulator(settings, to, console)
    assert {path.name for path in to.rglob("*")} == GIVEN
    assert (to / "model.safetensors").read_bytes() == (run / "emulator/network/model.safetensors").read_bytes()
    assert [path.name for path in settings.output.glob("offsite-emulator*")] == ["offsite-emulator"]
    (to / "run").mkdir()
    with pytest.raises(ExportError, match="holds 'run', and the folder of an emulator is given away"):
        make_emulator(settings, to, QUIET)
    with pytest.raises(ConfigError, match=r"output: .* is in .*, which is given away"):
        make_emulator(settings.model_copy(update={"output": output / "new/runs"}), output / "new", QUIET)


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_equal(run: Path, output: Path) -> None:
    again, stages = offsite(output, name="again"), ("emulator", "student", "plugged-in")
    steps: list[int] = []

    def kill(module: Any) -> None:
        steps.append(module.global_step)
        if len(steps) == 8:  # within the second fit
            os.kill(os.getpid(), signal.SIGTERM)

    with watching(kill, lambda *_: None), pytest.raises(Interrupted):
        run_here(again, only=stages)
    resumed = run_here(again, resume=True, only=stages)
    for path in ("emulator/network/model.safetensors", "plugged-in/delta/delta.safetensors"):
        assert (resumed / path).read_bytes() == (run / path).read_bytes()
    first, second = (VerifiedCheckpointIO().load_checkpoint(each / "student/result.ckpt") for each in (run, resumed))
    assert all(torch.equal(first["student"][name], second["student"][name]) for name in first["student"])
