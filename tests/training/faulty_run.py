"""``train.py`` with a fault in the middle of a step.

``FAULT="STEP RANK SIGNAL"``, the step counted from 0; signal 0 leaves the process at once, as a crash does. The ids of
each step are appended to the file ``TRACE``.
"""

import faulthandler
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from blank_figures import blank_previews
from spare_rank import with_spare_rank
from toy_training import watching

import distill
from distill.cli import main
from distill.run.folder import local_rank
from distill.training.module import Distillation


def fault(module: Distillation) -> None:
    step, rank, number = map(int, os.environ["FAULT"].split())
    if (module.global_step, local_rank()) == (step, rank):
        if number == 0:
            os._exit(3)
        os.kill(os.getpid(), number)


def trace(epoch: int, ids: list[int]) -> None:
    with open(os.environ["TRACE"], "a") as file:
        file.write(json.dumps([local_rank(), epoch, ids]) + "\n")


def run(arguments: list[str]) -> None:
    faulthandler.dump_traceback_later(90)  # where it hangs, before the test's patience ends
    with pytest.MonkeyPatch.context() as patch, watching(fault, trace):
        # What has tests of its own.
        patch.setattr("distill.stages.verify.verify_export", lambda *_: [])
        patch.setattr("distill.report.html.draw", lambda _: {})
        patch.setattr("distill.report.html.draw_in", lambda *_: {})
        blank_previews(patch)
        main(["train", *arguments])


def forked(arguments: list[str], environment: dict[str, str], output: str, spare: bool) -> None:
    """``run`` in a child of a process that has imported everything: the same, but for ten seconds of imports.

    With ``spare`` the second rank is spared them too; else Lightning starts this file in an interpreter of its own.
    """
    _become(__file__, arguments, environment, output)
    if spare:
        with_spare_rank(run)
    run(arguments)


def train_py(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """``train.py`` itself, in the same way."""
    script = str(Path(distill.__file__).parents[1] / "train.py")
    _become(script, arguments, environment, output)
    runpy.run_path(script, run_name="__main__")


def _become(script: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    # What Lightning starts further ranks with.
    sys.argv = [script, *arguments]
    sys.modules["__main__"].__spec__ = None


if __name__ == "__main__":
    run(sys.argv[1:])
