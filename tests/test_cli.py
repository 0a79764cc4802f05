"""The command line: help that a person can read, exit statuses, and every command on a real run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill import cli
from distill.yaml_tree import ConfigError

ROOT = Path(__file__).parents[1]
COMMANDS = [
    "train",
    "emulator",
    "plug",
    "cache",
    "evaluate",
    "export",
    "verify",
    "preview",
    "data",
    "deltas",
    "doctor",
    "schema",
]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    told = capsys.readouterr()
    return end.value.code if isinstance(end.value.code, int) else 0, told.out, told.err


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_the_terminal_and_says_what_it_does(
    command: str | None, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    status, out, err = call(capsys, *([command] if command else []), "--help")
    assert status == 0 and not err
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.strip().startswith("Usage: distill") for line in lines)
    if command is None:
        assert all(any(re.match(rf"\W*{name}\b", line) for line in lines) for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "error_at"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'CONFIG|RUN'"),
        (["train", "x.yaml", "--resum"], "No such option: --resum"),
        (["preview", "x.yaml", "--images", "0"], "Invalid value for '--images'"),
        (["preview", "x.yaml", "--score", "--draws", "1"], "Invalid value for '--draws'"),
        (["preview", ".", "seed=1"], "a run folder has its own config; overrides are for a YAML file"),
        (["evaluate", "runs/x", "--split", "tests"], "Invalid value for '--split'"),
    ],
)
def test_a_command_that_cannot_be_used_ends_with_2(
    arguments: list[str], error_at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(capsys, *arguments)
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())
    assert status == 2 and not out and error_at in told and "Traceback" not in err


@pytest.mark.parametrize("command", ["evaluate", "export", "verify", "preview"])
def test_a_folder_that_is_no_run_is_named(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = call(capsys, command, str(tmp_path))
    assert status == 1 and "is no run folder: it holds no config.yaml" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_folder_that_is_no_run_waits_for_no_slow_import(tmp_path: Path) -> None:
    script = (
        "import sys; from distill.cli import main\n"
        f"try:\n    main(['evaluate', {str(tmp_path)!r}])\n"
        "finally:\n    assert not {'timm', 'lightning'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "is no run folder" in done.stderr and "Traceback" not in done.stderr


def test_tracebacks_of_known_errors_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        cli.main(["train", "no/such.yaml"])


def test_schema_to_a_file_and_to_a_pipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = call(capsys, "schema")
    assert status == 0 and "student" in json.loads(out)["$defs"]["DistillationExperiment"]["properties"]
    status, _, _ = call(capsys, "schema", "-o", str(tmp_path / "schema.json"))
    assert status == 0 and (tmp_path / "schema.json").read_text(encoding="utf-8") == out


def test_a_score_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "quickstart.yaml")
    status, out, err = call(capsys, "preview", config, "data.workers=0", f"output={tmp_path}", "--score")
    assert status == 1 and "is not fitted yet, and this command trains nothing" in err and not out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_preview_writes_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "views.png"
    arguments = [str(ROOT / "configs" / "quickstart.yaml"), "data.workers=0", "-o", str(picture), "--images", "2"]
    status, out, _ = call(capsys, "preview", *arguments)
    assert status == 0 and "crops overlap" in out
    for path in (picture, tmp_path / "views-operations.png"):
        assert f"wrote {path}" in out and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_users_classes_are_found_in_the_folder_that_the_command_runs_in(tmp_path: Path) -> None:
    (tmp_path / "my_part.py").write_text("from distill.objectives.kd import KD\n\n\nclass Mine(KD):\n    pass\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('an installed module is shadowed')\n")
    command = [sys.executable, "-c", "from distill.cli import main; main()", "train"]
    arguments = [str(ROOT / "configs" / "quickstart.yaml"), "objectives.1.type=my_part:Min"]
    done = subprocess.run(
        [command[0], "-P", *command[1:], *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "module 'my_part' has no 'Min'; did you mean 'Mine'?" in done.stderr


def test_train_py_is_the_train_command() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0 and "KEY.PATH=VALUE" in done.stdout and "--resume" in done.stdout
