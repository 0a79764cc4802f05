"""The run folder: it holds all files of a run except fitted teachers, which are in a folder beside it."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augment.base import UserError, absolute
from distill.files import write_atomic
from distill.yaml_tree import ConfigError, differences, dump_yaml, parse_yaml, read_config_text

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
RECORD = "run.json"
_FOLDER_OF_THE_FIRST_RANK = "DISTILL_RUN_FOLDER"


class RunError(UserError, RuntimeError):
    """A run cannot start or continue; the text names the folder and what would work."""


@dataclass
class RunFolder:
    """An open run folder and its record: the status, stage → seconds, and the folder that the run was started in."""

    path: Path
    record: dict[str, Any] = field(
        default_factory=lambda: {"status": "running", "stages": {}, "started_in": os.getcwd()}
    )

    def save(self) -> None:
        """Write the record."""
        write_atomic(self.path / RECORD, json.dumps(self.record, indent=2).encode())

    def finish_stage(self, name: str, seconds: float) -> None:
        """Add to the seconds of a stage; an interrupted and resumed stage adds several times."""
        stages = self.record["stages"]
        stages[name] = stages.get(name, 0.0) + seconds
        if is_first_rank():
            self.save()

    def set_status(self, status: str) -> None:
        """Set and write the status: running, finished, interrupted or failed."""
        self.record["status"] = status
        if is_first_rank():
            self.save()

    def fail(self) -> None:
        """Set the status ``failed``, or delete the folder if it holds only config and record (a config error)."""
        self.set_status("failed")
        if is_first_rank() and {path.name for path in self.path.iterdir()} == {CONFIG, RECORD}:
            shutil.rmtree(self.path)


def local_rank() -> int:
    """Index of this process among those of this machine, known before the ranks are connected."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first_rank() -> bool:
    """Whether this process is the first rank, the only one that writes files."""
    return local_rank() == 0 and int(os.environ.get("RANK", "0")) == 0


def open_run(output: Path, tree: dict[str, Any], resume: bool | Path, finished_too: bool = False) -> RunFolder:
    """A new folder ``output/name`` (``name@2``, … if it exists), or the config's newest unfinished one.

    Args:
        output: the folder of all run folders.
        tree: the resolved config as plain values; its key ``name`` names the folder.
        resume: open this unfinished run, or the newest one of an equal config (True), instead of making a folder.
        finished_too: whether the run to resume may be finished.

    Returns:
        The open folder; its config and record are written.

    Raises:
        RunError: the run to resume is finished, there is none of an equal config, or the folder cannot be written.
    """
    if _FOLDER_OF_THE_FIRST_RANK in os.environ:
        return RunFolder(Path(os.environ[_FOLDER_OF_THE_FIRST_RANK]))
    try:
        if isinstance(resume, Path):
            run = RunFolder(absolute(resume), read_record(resume))
            if run.record["status"] == "finished" and not finished_too:
                raise RunError(f"{resume} is finished; there is nothing to resume")
        else:
            run = resumable(output, tree) if resume else RunFolder(_new_folder(output, tree["name"]))
        write_atomic(run.path / CONFIG, dump_yaml(tree).encode())
        run.set_status("running")
    except OSError as error:
        where = resume if isinstance(resume, Path) else output / tree["name"]
        raise RunError(f"{where}: the run folder cannot be written: {error}") from error
    # Lightning starts further ranks with this environment; they run this code too and must use the same folder.
    os.environ[_FOLDER_OF_THE_FIRST_RANK] = str(run.path)
    return run


def close_run() -> None:
    """Forget the folder of the first rank, so that the next run in this process gets its own."""
    os.environ.pop(_FOLDER_OF_THE_FIRST_RANK, None)


def read_tree(path: Path) -> dict[str, Any]:
    """The config of an existing run folder as plain values. Raises ``RunError`` or ``ConfigError``."""
    if not (path / CONFIG).is_file():
        why = "it is a file" if path.is_file() else f"it holds no {CONFIG}" if path.is_dir() else "it does not exist"
        raise RunError(f"{path} is no run folder: {why}")
    tree = parse_yaml(read_config_text(path / CONFIG), str(path / CONFIG))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path / CONFIG}: expected a mapping of settings (key: value), found {tree!r:.80}")
    return tree


def read_record(path: Path) -> dict[str, Any]:
    """The record of an existing run folder. Raises ``RunError``."""
    try:
        record = json.loads((path / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path / RECORD} cannot be read: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise RunError(f"{path / RECORD} is no record of a run: it has no status")
    return record


def _numbered(output: Path, name: str) -> dict[int, Path]:
    """Number → folder of each run of a name; plain ``name`` is number 1. No name contains an ``@``."""
    runs = {}
    for path in output.glob(f"{name}*") if output.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(name)}(?:@(\d+))?", path.name)
        if match and path.is_dir():
            runs[int(match.group(1) or 1)] = path
    return runs


def _new_folder(output: Path, name: str) -> Path:
    """Make the folder of the next number; two runs that start at the same time get different ones."""
    output.mkdir(parents=True, exist_ok=True)
    number = max(_numbered(output, name), default=0) + 1
    while True:
        path = output / (name if number == 1 else f"{name}@{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def unfinished(output: Path, tree: dict[str, Any]) -> Path | None:
    """The folder of the newest unfinished run with an equal config, which a command continues; None if there is none.

    Args:
        output: the folder of all run folders.
        tree: the resolved config as plain values.

    Returns:
        The run folder.
    """
    try:
        return resumable(output, tree).path
    except RunError:
        return None


def resumable(output: Path, tree: dict[str, Any]) -> RunFolder:
    """The newest unfinished run with an equal config. Raises ``RunError`` if there is none."""
    name = tree["name"]
    existing = _numbered(output, name)
    others = []
    for number in sorted(existing, reverse=True):
        try:
            earlier, record = read_tree(existing[number]), read_record(existing[number])
        except (RunError, ConfigError) as error:
            logger.warning("not resumed: %s", error)
            continue
        if record["status"] == "finished":
            continue
        different = differences(earlier, tree)
        if not different:
            return RunFolder(existing[number], record)
        others.append(f"{existing[number]} was started with other settings: {', '.join(different)}")
    raise RunError(others[0] if others else f"{output}: no unfinished run {name!r} to resume")


def check_finished(path: Path, *required: Path) -> None:
    """Raise ``RunError`` if a run has not come to the files that a command needs."""
    missing = [file for file in required if not file.exists()]
    if not missing:
        return
    status = read_record(path)["status"]
    if status == "finished":
        again = f"`distill export {path}` writes it again" if missing[0] == path / "export" else "start a new run"
        raise RunError(f"{path} is not finished any more: {missing[0]} is gone; {again}")
    raise RunError(f"{path} is not finished (its status: {status}); `distill train {path} --resume` continues it")
