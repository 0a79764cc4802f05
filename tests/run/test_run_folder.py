"""The run folder: its name, its resumption, and what happens where nothing can be written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from distill.config import ConfigError, Experiment, read_run, validate_tree
from distill.files import write_atomic
from distill.run.folder import (
    RunError,
    RunFolder,
    check_finished,
    close_run,
    local_rank,
    open_run,
    read_record,
    read_tree,
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_run()


def experiment(output: Path, name: str = "trial", seed: int = 0) -> Experiment:
    tree = {
        "name": name,
        "output": str(output),
        "seed": seed,
        "data": {"source": "digits"},
        "student": {"network": {"model": "test_resnet"}},
        "objectives": [{"type": "ce"}],
    }
    return validate_tree(tree, "test")


def open_folder(settings: Experiment, resume: bool = False) -> RunFolder:
    close_run()  # as a new process
    return open_run(settings.output, settings.model_dump(mode="json"), resume)


def test_each_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert [open_folder(experiment(tmp_path)).path.name for _ in range(3)] == ["trial", "trial@2", "trial@3"]
    (tmp_path / "trial@7").mkdir()
    assert open_folder(experiment(tmp_path, "trial-9")).path.name == "trial-9"
    assert open_folder(experiment(tmp_path)).path.name == "trial@8"
    assert open_folder(experiment(tmp_path, "tri")).path.name == "tri"


def test_config_and_record_are_written_first(tmp_path: Path) -> None:
    run = open_folder(experiment(tmp_path, seed=3))
    assert read_run(run.path) == (
        experiment(tmp_path, seed=3),
        {"status": "running", "stages": {}, "started_in": os.getcwd()},
    )
    run.finish_stage("student", 1.5)
    run.finish_stage("student", 2.0)
    run.set_status("finished")
    assert read_run(run.path)[1] == {"status": "finished", "stages": {"student": 3.5}, "started_in": os.getcwd()}


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "a/b", "/etc/x", "", "-x", ".hidden", "a\0b", "teachers", "x" * 101]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name: "):
        experiment(tmp_path / "deep" / "output", name)
    assert not list(tmp_path.iterdir())


def test_resume_takes_the_newest_unfinished(tmp_path: Path) -> None:
    for status in ("interrupted", "failed", "finished"):
        open_folder(experiment(tmp_path)).set_status(status)
    assert open_folder(experiment(tmp_path), resume=True).path.name == "trial@2"
    assert read_run(tmp_path / "trial@2")[1]["status"] == "running"
    for name in ("trial", "trial@2"):
        RunFolder(tmp_path / name).set_status("finished")
    with pytest.raises(RunError, match="no unfinished run 'trial' to resume"):
        open_folder(experiment(tmp_path), resume=True)


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    open_folder(experiment(tmp_path)).set_status("interrupted")
    with pytest.raises(RunError, match=r"trial was started with other settings: seed \(0, now 1\)"):
        open_folder(experiment(tmp_path, seed=1), resume=True)


def test_resume_passes_over_runs_of_other_settings(tmp_path: Path) -> None:
    open_folder(experiment(tmp_path)).set_status("interrupted")
    open_folder(experiment(tmp_path, seed=1)).set_status("failed")
    assert open_folder(experiment(tmp_path), resume=True).path.name == "trial"
    assert open_folder(experiment(tmp_path, seed=1), resume=True).path.name == "trial@2"


def test_a_failed_run_leaves_a_folder_only_if_it_trained_something(tmp_path: Path) -> None:
    open_folder(experiment(tmp_path)).fail()
    assert not list(tmp_path.iterdir())
    run = open_folder(experiment(tmp_path))
    (run.path / "student").mkdir()
    run.fail()
    assert read_run(tmp_path / "trial")[1]["status"] == "failed"


def test_a_damaged_run_folder_is_named(tmp_path: Path) -> None:
    run = open_folder(experiment(tmp_path))
    (run.path / "run.json").write_text('{"status": "run')
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        read_run(run.path)
    (run.path / "config.yaml").write_text(yaml.safe_dump({"name": "trial"}))
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be used:"):
        read_run(run.path)
    with pytest.raises(RunError, match="is no run folder"):
        read_run(tmp_path)


def test_an_output_that_cannot_be_written_fails_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/runs/trial: the run folder cannot be written: .*Not a directory"):
        open_folder(experiment(tmp_path / "file" / "runs"))


def test_a_read_only_disk_fails_at_the_start(tmp_path: Path) -> None:
    """Root too may not write here."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "disk"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(RunError, match=r"disk/trial: the run folder cannot be written: .*Read-only file system"):
            open_folder(experiment(tmp_path / "disk"))
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_further_ranks_use_the_folder_of_the_first(tmp_path: Path, monkeypatch) -> None:
    first = open_folder(experiment(tmp_path))
    record = (first.path / "run.json").read_text()
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = open_run(
        tmp_path, experiment(tmp_path).model_dump(mode="json"), resume=False
    )  # the environment says where
    assert local_rank() == 1 and second.path == first.path
    second.set_status("failed")
    assert (first.path / "run.json").read_text() == record, "only the first rank writes"


def test_write_atomic_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    digest = write_atomic(path, b"one")
    assert path.read_bytes() == b"one" and len(digest) == 64
    assert list(path.parent.iterdir()) == [path] and path.stat().st_mode & 0o777 == 0o644
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"file\.json was not replaced"):
        write_atomic(path, b"two")
    assert list(path.parent.iterdir()) == [path]


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in {"file": "it is a file", "nowhere": "it does not exist", ".": "it holds no config.yaml"}.items():
        with pytest.raises(RunError, match=f"is no run folder: {why}"):
            read_tree(tmp_path / name)
    for text in ("- 1", "", "word"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml: expected a mapping of settings"):
            read_tree(tmp_path)
    for text in ("[]", "{}", '{"status": 1}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunError, match=r"run\.json is no record of a run: it has no status"):
            read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    with pytest.raises(RunError, match=r"export is gone; `distill export .*` writes it again"):
        check_finished(tmp_path, tmp_path / "export")
