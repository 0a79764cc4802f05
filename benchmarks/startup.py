"""The CPU seconds that the commands take beside their work: what a user waits for before anything happens.

    python benchmarks/startup.py [--quick] [--json FILE]

Every command is a process of its own, started by turns. Counted are the CPU seconds (user and system) of the process
and of those that it starts, which depend less on other work on the machine than elapsed seconds. Python may keep its
bytecode: one round before the measurement writes it. ``evaluate`` and ``verify`` read a run that is made first: lite0
with low-rank deltas at 32 pixels, one epoch, 16 test images.

====================  ===============================================================================================
row                   command
====================  ===============================================================================================
help                  ``distill --help``
objectives            ``distill objectives``
deltas                ``distill deltas``, the list of methods
schema                ``distill schema``
config_error          ``distill train`` with a misspelt key
preview               ``distill preview`` of four images
evaluate              ``distill evaluate RUN``
verify                ``distill verify RUN``, with the process that loads the export anew
====================  ===============================================================================================
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Row, row, save, show
from PIL import Image
from rich.console import Console

from distill.report.summary import Machine

TARGETS = {"help": 2.0, "objectives": 2.0, "deltas": 2.0, "schema": 2.0, "evaluate": 15.0, "verify": 15.0}
CONFIG = """
name: small
output: {folder}/runs
data: {{source: {{type: folder, root: {folder}/images}}, size: 32, batch_size: 8, workers: 0}}
student:
  network: {{model: embedded:tf_efficientnet_lite0, size: 32}}
  deltas: [{{type: low_rank, rank: 2}}]
objectives: [{{type: ce}}]
controls: {{linear_probe: false, labels_only: false}}
training: {{epochs: 1}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status("a run to evaluate"):
        commands = prepared(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(2 if given.quick else 6):
            for name, arguments in commands.items():
                taken = cpu_seconds(arguments)
                if number:  # the first writes bytecode
                    seconds[name].append(taken)
    rows: list[Row] = [row(name, taken, "CPU s") for name, taken in seconds.items()]
    machine = Machine.here()
    show(console, "start-up of the commands", rows, TARGETS)
    console.print(f"{machine.cpu} · Python {platform.python_version()} · torch {machine.torch}", style="dim")
    if given.json:
        save(given.json, rows)


def prepared(folder: Path) -> dict[str, list[str]]:
    """The commands, once there is a run in ``folder``."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("even", "odd"):
            images = folder / "images" / split / name
            images.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(images / f"{number}.png")
    config, run = folder / "small.yaml", folder / "runs" / "small"
    config.write_text(CONFIG.format(folder=folder))
    cpu_seconds(["train", str(config)])
    return {
        "help": ["--help"],
        "objectives": ["objectives"],
        "deltas": ["deltas"],
        "schema": ["schema"],
        "config_error": ["train", str(config), "training.epoch=2"],
        "preview": ["preview", str(config), "--to", str(folder / "preview.png"), "--images", "4"],
        "evaluate": ["evaluate", str(run)],
        "verify": ["verify", str(run)],
    }


def cpu_seconds(arguments: list[str]) -> float:
    """User and system seconds of ``distill`` with these arguments, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from distill.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    expected = 2 if "training.epoch=2" in arguments else 0
    if done.returncode != expected:
        raise RuntimeError(f"distill {' '.join(arguments)}: exit status {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
