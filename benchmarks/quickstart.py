"""The quickstart as a new user runs it: seconds of the whole run and test accuracies over seeds.

    python benchmarks/quickstart.py [--quick] [--json FILE] [--markdown FILE]

Every seed is a run of ``train.py`` in its own process and an empty folder, so the teacher is fitted each time. The seed
changes teacher, head, deltas, order and views; the student's labels (``data.label_seed``) and the split stay the same.
A row's value is the mean over seeds, ``low`` and ``high`` are the smallest and the largest.

``--quick`` runs one seed with one epoch for each fit: it checks that the benchmark works, and does not measure.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measure import Row, save, show
from rich.console import Console

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
LIMIT_SECONDS = 300.0


def run_once(seed: int, overrides: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole process, and the run's summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.yaml")]
        begun = time.perf_counter()
        subprocess.run(
            [*command, f"seed={seed}", f"output={folder}", *overrides], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - begun
        return seconds, json.loads((Path(folder) / "quickstart" / "results.json").read_text())["summary"]


def spread(name: str, values: list[float], unit: str) -> Row:
    return Row(name, mean(values), unit, min(values), max(values))


def markdown(summaries: list[dict[str, Any]], seconds: list[float]) -> str:
    """The README's table: mean ± sample standard deviation over the seeds."""

    def cell(values: list[float | None]) -> str:
        known = [100 * value for value in values if value is not None]
        if not known:
            return "–"
        return f"{mean(known):.1f} ± {stdev(known):.1f} %" if len(known) > 1 else f"{known[0]:.1f} %"

    lines = ["| model | what it is | test accuracy | agrees with teacher | size |", "|---|---|---:|---:|---:|"]
    for index, first in enumerate(summaries[0]["rows"]):
        rows = [summary["rows"][index] for summary in summaries]
        accuracy, agreement = ([row[key] for row in rows] for key in ("accuracy", "agreement"))
        size = first["bytes"]
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        lines.append(f"| {first['name']} | {first['what']} | {cell(accuracy)} | {cell(agreement)} | {shown} |")
    machine = summaries[0]["machine"]
    spent = f"{mean(seconds):.0f} s ({min(seconds):.0f} to {max(seconds):.0f})"
    tests = sum(label >= 0 for label in summaries[0]["labels"])
    lines += [
        "",
        f"Mean ± sd over seeds {', '.join(str(s['seed']) for s in summaries)}, {tests} test images; {spent} a run on "
        f"{machine['cpu']}, {machine['threads']} threads, Python {machine['python']}, torch {machine['torch']}, timm "
        f"{machine['timm']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the README's table here")
    arguments = parser.parse_args()
    overrides = ["training.epochs=1", "fit_teacher.training.epochs=1"] if arguments.quick else []
    runs = [run_once(seed, overrides) for seed in (SEEDS[:1] if arguments.quick else SEEDS)]
    seconds, summaries = [run[0] for run in runs], [run[1] for run in runs]
    rows = [spread("quickstart_seconds", seconds, "s")]
    for index, first in enumerate(summaries[0]["rows"]):
        name = first["name"].replace(" ", "_")
        for key in ("accuracy", "agreement"):
            values = [summary["rows"][index][key] for summary in summaries]
            if None not in values:
                rows.append(spread(f"quickstart_{name}_{key}", values, "fraction"))
    for name, size in summaries[0]["sizes"].items():
        rows.append(spread(f"quickstart_{name.replace(' ', '_')}_bytes", [size], "bytes"))
    console = Console()
    show(console, f"quickstart, {len(runs)} seed(s), {platform.machine()}", rows, {"quickstart_seconds": LIMIT_SECONDS})
    console.print(markdown(summaries, seconds), markup=False)
    if arguments.json:
        save(arguments.json, rows)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(summaries, seconds))


if __name__ == "__main__":
    main()
