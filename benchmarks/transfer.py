"""Transfer: an unlabeled target domain, with and without the images of the source.

    python benchmarks/transfer.py [--only PARTS] [--quick] [--data FOLDER] [--out FOLDER] [--markdown FILE]

``--data`` is a folder with ``mnist``, ``usps``, ``pacs_photo`` and ``pacs_sketch``, each with ``train*.parquet`` and
``test*.parquet`` (columns ``image`` and ``label``). The parts, ``--only`` chooses some of them:

============  =========================================================================================================
usps          MNIST with labels, USPS without (400 training images of each class, 64 px, EfficientNet-Lite0), tested on
              200 images of each class of USPS: configs/transfer/mnist_usps.yaml
sketch        photographs with labels, sketches without (PACS, 128 px), tested on its test sketches:
              configs/transfer/photo_sketch.yaml
source_free   the same sketches, from the delta file of the source-only student of ``sketch`` alone:
              configs/transfer/source_free.yaml
ema           what an averaged teacher costs: memory beside the deltas, and a step beside one with a frozen teacher of
              the same network; needs no data
============  =========================================================================================================

The target's labels are read for the test images alone, once; settings were chosen without them. ``--quick`` measures
one seed and one epoch of each fit. ``--set KEY=VALUE`` changes the configs, ``--seeds`` chooses seeds.

Every finished measurement is a line of ``results.jsonl`` in ``--out``, and a stopped run continues where it stopped:
the same command measures what is missing. ``--list`` measures nothing and shows the results so far.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import transfer_ema
import transfer_target
from accuracy import Notebook
from measure import save
from rich.console import Console
from transfer_lab import Figure, Lab, NotMeasuredError, page, show

from distill.files import write_atomic
from distill.training.signals import Interrupted, StopSignal

PARTS: dict[str, Callable[[Lab], Iterator[Figure]]] = {
    "usps": transfer_target.usps,
    "sketch": transfer_target.sketch,
    "source_free": transfer_target.source_free,
    "ema": transfer_ema.ema,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", help=f"comma-separated, of {', '.join(PARTS)}; default: all")
    made.add_argument("--quick", action="store_true", help="one seed, short fits")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of all data sets")
    made.add_argument("--seeds", help="comma-separated; default: 0,1,2")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the configs")
    made.add_argument("--out", type=Path, default=Path("runs/transfer"))
    made.add_argument("--json", type=Path, help="write the figures to this file")
    made.add_argument("--markdown", type=Path, help="write the page of results to this file")
    made.add_argument("--list", action="store_true", help="measure nothing, show the results so far")
    return made


def main() -> None:
    given = parser().parse_args()
    names = given.only.split(",") if given.only else list(PARTS)
    for name in names:
        if name not in PARTS:
            raise SystemExit(f"there is no part {name!r}, only {', '.join(PARTS)}")
    given.out = given.out.resolve()
    logging.getLogger("distill").setLevel(logging.ERROR)
    console = Console()
    console.width = max(console.width, 120)  # of a file, too
    measured: dict[str, list[Figure]] = {}
    with StopSignal() as stop:
        lab = Lab(given, Notebook(given.out, {}), stop, console)
        for name in names:
            try:
                measured[name] = list(PARTS[name](lab))
            except NotMeasuredError:
                console.print(f"{name}: not measured", highlight=False)
                continue
            except Interrupted as error:
                raise SystemExit(f"{error}; the same command continues") from None
            show(console, name, measured[name])
    rows = [each for part in measured.values() for each in part]
    if given.json:
        save(given.json, [each.row for each in rows])
    if given.markdown:
        write_atomic(given.markdown, page("Transfer", "benchmarks/transfer.py", measured).encode())


if __name__ == "__main__":
    main()
