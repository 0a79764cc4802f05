"""The data of ``benchmarks/continual.py``: flowers, and a part of CIFAR-100 with as many images of each class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LITE0 = "embedded:tf_efficientnet_lite0"
TRAIN, TEST = 50, 20
"""Images of each class of CIFAR-100."""


@dataclass(frozen=True)
class DataSet:
    """Data with its stream: classes in ``tasks`` equal tasks."""

    name: str
    folder: str
    size: int
    """Pixels of the network's input."""
    canvas: int
    """Pixels of the images that it is made from."""
    tasks: int


FLOWERS = DataSet("flowers", "flowers61", 128, 144, 5)
CIFAR = DataSet("cifar", "cifar100", 96, 32, 10)


def data_tree(data: DataSet, folder: Path, out: Path, val_fraction: float) -> dict[str, Any]:
    """The key ``data`` of a config.

    Args:
        data: which.
        folder: holds the folders of all data.
        out: of the benchmark; the part of CIFAR-100 is written into it, once.
        val_fraction: of train that is held out.

    Returns:
        Plain values.
    """
    own = folder / data.folder
    if data == CIFAR:
        own = part_of(own, out / f"cifar100-{TRAIN}-{TEST}", {"train": TRAIN, "test": TEST})
    return {
        "source": source(own, out),
        "size": data.canvas,
        "batch_size": 32,
        "workers": 0,
        "val_fraction": val_fraction,
    }


def source(folder: Path, out: Path) -> dict[str, Any]:
    """The key ``data.source`` of a folder with ``train*.parquet`` and ``test*.parquet``."""
    files = {split: str(folder / f"{split}*.parquet") for split in ("train", "test")}
    return {"type": "huggingface", "name": None, "data_files": files, "cache_dir": str(out / "cache")}


def part_of(folder: Path, target: Path, counts: dict[str, int]) -> Path:
    """Write the first images of each class of Parquet files, in the order of the files.

    Args:
        folder: with ``SPLIT*.parquet``, which have a column ``label``.
        target: folder of the new files; a file that is there is kept.
        counts: split → images of each class.

    Returns:
        ``target``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        path = target / f"{split}.parquet"
        if path.is_file():
            continue
        paths = sorted(folder.glob(f"{split}*.parquet"))
        if not paths:
            raise SystemExit(f"{folder} has no {split}*.parquet; give its parent folder by --data")
        table = pa.concat_tables([pq.read_table(file) for file in paths])
        seen: Counter[int] = Counter()
        rows = []
        for row, label in enumerate(table["label"].to_pylist()):
            seen[label] += 1
            if seen[label] <= count:
                rows.append(row)
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(table.take(rows), unfinished)
        unfinished.rename(path)
    return target
