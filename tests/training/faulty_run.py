"""``train.py`` with a fault in the middle of a step: ``FAULT="STEP RANK SIGNAL"``, the step counted from 0.

Signal 0 leaves the process at once, as a crash does. The ids of each step are appended to the file ``TRACE``.
"""

import json
import os
import sys
import warnings

from toy_training import watching

from distill.cli import main
from distill.run_folder import local_rank
from distill.training.module import Distillation


def fault(module: Distillation) -> None:
    step, rank, number = map(int, os.environ.get("FAULT", "-1 0 0").split())
    if (module.global_step, local_rank()) == (step, rank):
        if number == 0:
            os._exit(3)
        os.kill(os.getpid(), number)


def trace(epoch: int, ids: list[int]) -> None:
    if "TRACE" in os.environ:
        with open(os.environ["TRACE"], "a") as file:
            file.write(json.dumps([epoch, ids]) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("error")
    with watching(fault, trace):
        main(["train", *sys.argv[1:]])
