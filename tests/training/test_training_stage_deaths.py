"""A whole distillation that is killed after every stage, and goes on."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from deadly_stages import train
from toy_training import tree
from warm_server import warm_server

from distill.config import validate_tree
from distill.run.runner import RECORD

FIT = {"epochs": 1, "accelerator": "cpu"}
CHANGES: dict[str, Any] = {
    "fit_teacher": {"training": FIT},
    "training": {**FIT, "schedule": {"warmup": 0}},
    "objectives": ["ce", "kd"],
}


class Deaths:
    """One run, in processes that come after each other."""

    def __init__(self, output: Path):
        plain = tree(output)
        plain["augment"] = {"student": ["RandomHorizontalFlip"]}  # the preview draws every operation
        plain.update({**CHANGES, "training": {**plain["training"], **CHANGES["training"]}})
        self.output, self.config, self.text = output, output / "toy.yaml", output / "output.txt"
        self.config.write_text(yaml.safe_dump(plain))
        self.plan = validate_tree(plain, "toy").plan()

    def go(self, *arguments: str, dies: bool = False) -> tuple[int | None, list[str]]:
        """Exit status of a process, and the stages that it ran."""
        made = self.output / "made.txt"
        made.write_text("")
        classes = list({type(stage): None for stage in self.plan})
        words = [str(self.config), *arguments]
        process = warm_server().Process(target=train, args=(words, classes, dies, str(made), str(self.text)))
        process.start()
        process.join(100)
        process.kill()
        process.join()
        return process.exitcode, made.read_text().split()

    def results(self) -> dict[str, Any]:
        """What is in ``results.json``, but for times."""
        content = json.loads((self.output / "toy" / "results.json").read_text())
        for key in ("finished", "seconds"):
            assert content["summary"].pop(key)
        for row in content["summary"]["rows"]:
            row.pop("seconds")
        return content

    def finished(self) -> dict[Path, dict[Path, tuple[int, int]]]:
        """Folder of a finished stage → its files, with their size and when they were last written."""
        folders = [path.parent for path in self.output.rglob(RECORD)]
        return {folder: {path: stamp(path) for path in folder.rglob("*") if path.is_file()} for folder in folders}


def stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


@pytest.mark.slow
def test_killed_after_any_stage_a_run_goes_on_without_doing_a_finished_one_again(tmp_path: Path) -> None:
    run = Deaths(tmp_path)
    names = [stage.name for stage in run.plan]
    assert names[:4] == ["teacher", "student", "linear-probe", "labels-only"] and names[-1] == "report"
    status, made = run.go()
    assert (status, list(dict.fromkeys(made))) == (0, names), run.text.read_text()
    expected = run.results()
    shutil.rmtree(tmp_path / "toy")
    shutil.rmtree(tmp_path / "teachers")

    before: dict[Path, dict[Path, tuple[int, int]]] = {}
    for number, stage in enumerate(run.plan[:-1]):
        assert stage.recorded
        status, made = run.go(*(["--resume"] if number else []), dies=True)
        assert status == -signal.SIGKILL, run.text.read_text()
        assert made == [stage.name], "what is finished is loaded"
        after = run.finished()
        assert len(after) == number + 1 and {folder: after[folder] for folder in before} == before
        before = after
    assert run.go("--resume") == (0, ["report"]), run.text.read_text()
    assert run.finished() == before
    assert run.results() == expected
    assert json.loads((tmp_path / "toy" / "run.json").read_text())["status"] == "finished"
    assert not (tmp_path / "toy@2").exists()
