"""Paths with brackets and colons, ``~``, and commands that are called from another folder than the run was."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call, write_config, write_images
from rich.console import Console
from warm_server import verify_in_fork

import distill
from augment.base import absolute
from augment.console import plain_console, shown_path
from distill import cli
from distill.config import load_config, read_run
from distill.yaml_tree import parse_yaml

STRANGE = "[old]/[/x] :smile: [bold]a[/bold] {b} %s $c$"
"""A folder whose name rich, str.format, logging and matplotlib could each read in another way."""
OBJECTIVE = "from distill.objectives.kd import KD\n\n\nclass Mine(KD):\n    pass\n"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder in which a run was started with relative paths, and what it printed."""
    folder = tmp_path_factory.mktemp("here") / STRANGE
    folder.mkdir(parents=True)
    write_images(folder / "images")
    (folder / "my_part_here.py").write_text(OBJECTIVE)
    objectives = [{"type": "ce"}, {"type": "my_part_here:Mine"}]
    write_config(folder / "small.yaml", "images", output="[runs]", objectives=objectives)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("distill.export.verify._run_fresh", verify_in_fork)
        plain = cli.plain_console
        patch.setattr(cli, "plain_console", lambda **options: _into(printed, plain(**options)))
        with pytest.raises(SystemExit) as end:
            cli.main(["train", "small.yaml"])
        assert not end.value.code
    yield folder, printed.getvalue()


def _into(file: io.StringIO, console: Console) -> Console:
    console.file = file
    console.width = 400
    return console


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verification_forks: None) -> Path:
    """Another current folder, in a process that has not imported the run's own classes yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in os.sys.path if STRANGE not in path])  # type: ignore[attr-defined]
    monkeypatch.delitem(os.sys.modules, "my_part_here", raising=False)  # type: ignore[attr-defined]
    return tmp_path


@pytest.mark.slow
def test_a_run_prints_its_paths_as_they_are(started: tuple[Path, str]) -> None:
    folder, printed = started
    assert (folder / "[runs]" / "small" / "report.html").is_file()
    assert "[runs]/small: 12 training images" in printed
    assert "[runs]/small/report.html" in printed and f"{folder}/images" in printed
    assert str(folder / "[runs]") not in printed, "relative to the current folder"


@pytest.mark.slow
def test_commands_work_from_another_folder(
    started: tuple[Path, str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started[0] / "[runs]" / "small"
    commands = {
        "evaluate": ["evaluate", run],
        "export": ["export", run, "--output", elsewhere / "[again]"],
        "verify": ["verify", run],
        "preview": ["preview", run, "-o", elsewhere / "[views].png", "--images", "2"],
        "plan": ["train", run, "--plan"],
        "score": ["preview", run, "--score", "--draws", "2", "--draw-images", "2", "--seeds", "1"],
        "double": ["delta", "scale", run / "export" / "delta", "2", "-o", elsewhere / "[double]"],
        "quantize": ["delta", "quantize", run / "export" / "delta", "-o", elsewhere / "[small]"],
        "diff": ["delta", "diff", run / "export" / "delta", elsewhere / "[double]"],
        "deltas": ["deltas", run],
    }
    printed = {}
    for name, command in commands.items():
        status, printed[name], err = call(capsys, *command)
        assert status == 0, (name, err)
    assert "wrote [again]" in printed["export"]
    assert f"wrote {elsewhere / '[views].png'}" in printed["preview"]
    assert f"wrote {elsewhere / '[double]'}" in printed["double"]
    epoch, ids = distill.ids_of_step(run, 0)
    assert len(distill.replay(run, ids, epoch).student[0]) == 4


@pytest.mark.slow
def test_a_run_is_resumed_from_another_folder(
    started: tuple[Path, str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started[0] / "[runs]" / "small"
    status, _, err = call(capsys, "train", run, "--resume")
    assert status == 1 and "is finished; there is nothing to resume" in err
    record = json.loads((run / "run.json").read_text())
    try:
        (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
        (run / "test" / "stage.json").unlink()
        status, out, err = call(capsys, "train", run, "--resume")
        assert status == 0 and "(finished, loaded)" in out, err
        assert json.loads((run / "run.json").read_text())["status"] == "finished"
    finally:
        (run / "run.json").write_text(json.dumps(record))
    status, _, err = call(capsys, "train", run)
    assert status == 2 and "a run folder is continued with --resume" in " ".join(re.sub(r"[│\n]", " ", err).split())


def test_errors_print_paths_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / STRANGE / "none.yaml"
    for command in (["train"], ["preview"], ["deltas"], ["cache"], ["evaluate"], ["export"], ["verify"]):
        status, _, err = call(capsys, *command, missing)
        assert status and f"{missing}" in err
    status, _, err = call(capsys, "delta", "diff", missing, missing)
    assert status and str(missing) in err


def test_a_home_folder_is_expanded_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    write_config(
        tmp_path / "under.yaml",
        "~/images",
        output="~/runs",
        student={"network": {"checkpoint": "~/w.pth"}},
        teacher={"networks": [{"model": "local-dir:~/model"}]},
    )
    (tmp_path / "over.yaml").write_text("base: ~/under.yaml\n")
    settings = load_config(tmp_path / "over.yaml")
    assert settings.output == tmp_path / "runs"
    assert settings.data.source.root == tmp_path / "images"  # type: ignore[attr-defined]
    assert settings.student.network.checkpoint == tmp_path / "w.pth"  # type: ignore[attr-defined]
    assert settings.teacher.networks[0].model == f"local-dir:{tmp_path}/model"  # type: ignore[attr-defined]
    status, _, _ = call(capsys, "schema", "-o", "~/schema.json")
    assert status == 0 and (tmp_path / "schema.json").is_file()
    status, _, err = call(capsys, "evaluate", "~/runs/none")
    assert status == 1 and f"{tmp_path}/runs/none is no run folder" in err
    assert not (tmp_path / "~").exists()


def test_relative_paths_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "small.yaml", "../images")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    settings = load_config(config)
    assert settings.output == tmp_path / "inside" / "runs"
    assert settings.data.source.root == tmp_path / "inside" / ".." / "images"  # type: ignore[attr-defined]
    tree = settings.model_dump(mode="json")
    assert tree["output"] == str(tmp_path / "inside" / "runs")
    monkeypatch.chdir(tmp_path)
    assert load_config(config).output == tmp_path / "runs"


def test_a_run_names_the_folder_of_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_part_there.py").write_text(OBJECTIVE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "running", "stages": {}, "started_in": str(tmp_path)}))
    write_config(run / "config.yaml", "images", objectives=[{"type": "ce"}, {"type": "my_part_there:Mine"}])
    monkeypatch.setattr("sys.path", list(os.sys.path))  # type: ignore[attr-defined]
    assert read_run(run)[0].objectives[1].type == "my_part_there:Mine"  # type: ignore[attr-defined]


def test_the_console_reads_nothing_as_markup() -> None:
    console = _into(io.StringIO(), plain_console())
    console.print(STRANGE, soft_wrap=True)
    assert console.file.getvalue() == f"{STRANGE}\n"  # type: ignore[attr-defined]


def test_no_console_is_made_in_another_way() -> None:
    """A console of rich's own reads brackets as markup."""
    root = Path(distill.__file__).parents[1]
    for package in ("augment", "distill"):
        for path in sorted((root / package).rglob("*.py")):
            if path.name != "console.py":
                assert not re.search(r"\bConsole\(", path.read_text(encoding="utf-8")), path


def test_paths_are_shown_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "a") == "runs/a"
    assert shown_path(tmp_path) == str(tmp_path) and shown_path(Path("/other")) == "/other"
    assert absolute("~nobody-of-this-name/x") == tmp_path / "~nobody-of-this-name" / "x"
    assert parse_yaml("~/runs", "test") == "~/runs"
