"""The run folder, which holds all files of a run but fitted teachers; those are in a folder beside it."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augment.base import UserError
from distill.files import write_atomic
from distill.yaml_tree import ConfigError, differences, dump_yaml, parse_yaml

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
RECORD = "run.json"
_FOLDER_OF_THE_FIRST_RANK = "DISTILL_RUN_FOLDER"


class RunError(UserError, RuntimeError):
    """A run cannot start or go on; the text names the folder and what would work."""


@dataclass
class RunFolder:
    """An open run folder and its record: status, and the seconds and results of the stages that are done."""

    path: Path
    record: dict[str, Any] = field(default_factory=lambda: {"status": "running", "stages": {}})

    def save(self) -> None:
        write_atomic(self.path / RECORD, json.dumps(self.record, indent=2).encode())

    def finish_stage(self, name: str, seconds: float) -> None:
        """Add a stage's seconds; a stage that was interrupted has several parts."""
        stages = self.record["stages"]
        stages[name] = stages.get(name, 0.0) + seconds
        if is_first_rank():
            self.save()

    def set_status(self, status: str) -> None:
        self.record["status"] = status
        if is_first_rank():
            self.save()

    def fail(self) -> None:
        """Set the status ``failed``; delete a folder in which nothing was trained yet (an error in the config)."""
        self.set_status("failed")
        if is_first_rank() and {path.name for path in self.path.iterdir()} == {CONFIG, RECORD}:
            shutil.rmtree(self.path)


def local_rank() -> int:
    """This process's place among those of the run; known before they are connected."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first_rank() -> bool:
    """Whether this process writes: with several devices, the others only compute."""
    return local_rank() == 0 and int(os.environ.get("RANK", "0")) == 0


def open_run(output: Path, tree: dict[str, Any], resume: bool) -> RunFolder:
    """A new folder ``output/name`` (``name@2``, … where taken), or with ``resume`` this config's newest unfinished one.

    Args:
        output: the folder of all run folders.
        tree: the resolved config as plain values; its key ``name`` names the folder.
        resume: go on with an earlier run.

    Returns:
        The open folder, its config and record written.

    Raises:
        RunError: nothing to resume, only runs of other settings, or the folder cannot be written.
    """
    if _FOLDER_OF_THE_FIRST_RANK in os.environ:
        return RunFolder(Path(os.environ[_FOLDER_OF_THE_FIRST_RANK]))
    try:
        run = resumable(output, tree) if resume else RunFolder(_new_folder(output, tree["name"]))
        write_atomic(run.path / CONFIG, dump_yaml(tree).encode())
        run.set_status("running")
    except OSError as error:
        raise RunError(f"{output / tree['name']}: the run folder cannot be written: {error}") from error
    # Processes that Lightning starts for further devices run this code too, and must not make folders of their own.
    os.environ[_FOLDER_OF_THE_FIRST_RANK] = str(run.path)
    return run


def close_run() -> None:
    os.environ.pop(_FOLDER_OF_THE_FIRST_RANK, None)


def read_tree(path: Path) -> dict[str, Any]:
    """The config of an existing run folder as plain values. Raises ``RunError`` or ``ConfigError``."""
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is no run folder: it holds no {CONFIG}")
    return parse_yaml((path / CONFIG).read_text(), str(path / CONFIG))


def read_record(path: Path) -> dict[str, Any]:
    """The record of an existing run folder. Raises ``RunError``."""
    try:
        return json.loads((path / RECORD).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path / RECORD} cannot be read: {error}") from error


def _numbered(output: Path, name: str) -> dict[int, Path]:
    """The folders of a name by number; plain ``name`` is number 1. No name holds an ``@``, so no two names meet."""
    runs = {}
    for path in output.glob(f"{name}*") if output.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(name)}(?:@(\d+))?", path.name)
        if match and path.is_dir():
            runs[int(match.group(1) or 1)] = path
    return runs


def _new_folder(output: Path, name: str) -> Path:
    """Make the folder of the next number; of two runs that start at once, each gets its own."""
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


def resumable(output: Path, tree: dict[str, Any]) -> RunFolder:
    """The newest unfinished run of these very settings. Raises ``RunError`` if there is none."""
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
