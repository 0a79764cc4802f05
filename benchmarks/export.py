"""Exported students: every format on all test images, its size, its time beside PyTorch, its memory.

    python benchmarks/export.py [--only PARTS] [--quick] [--data FOLDER] [--out FOLDER] [--markdown FILE]

``--data`` is a folder with ``flowers61``: ``train*.parquet`` and ``test*.parquet`` (columns ``image`` and ``label``).
The parts, ``--only`` chooses some of them:

==========  ============================================================================================================
formats     EfficientNet-Lite0 at 128 px with a logistic head that is fitted to the training images of 61 flowers, in
            every format that is installed: fp32, fp16, int8. Outputs are compared with the live model's on all 1,080
            test images; times are of one thread, in turn with PyTorch on the live model, each format in a process of
            its own
int8_aware  a distilled student with quantized last epochs and one without, equally long: accuracy of their ONNX int8
            programs
ladder      bytes and accuracy of the delta file in fp32, fp16, int8 and one bit, with and without training for it
==========  ============================================================================================================

``--quick`` compares 200 test images, in 10 rounds. A format that is not installed, or not in this version, is left out
and named.

Every finished measurement is a line of ``results.jsonl`` in ``--out``, and a stopped run continues where it stopped:
the same command measures what is missing. ``--list`` measures nothing and shows the results so far.
"""

from __future__ import annotations

import argparse

import export_formats
import export_quantized
import measure  # noqa: F401  # this folder's augment.py must not hide the package
from lab import Parts, measure_parts, options

PARTS: Parts = {
    "formats": export_formats.formats,
    "int8_aware": export_quantized.int8_aware,
    "ladder": export_quantized.ladder,
}

ABOUT = (
    "The parts are described at the top of `benchmarks/export.py`. Latencies are medians over rounds of the time of a "
    "call over that of PyTorch's call in the same round; `≤` bars are on them, since seconds depend on the machine."
)


def parser() -> argparse.ArgumentParser:
    return options(__doc__, PARTS, "runs/export")


def main() -> None:
    measure_parts(parser().parse_args(), PARTS, "Exported students", ABOUT)


if __name__ == "__main__":
    main()
