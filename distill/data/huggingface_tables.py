"""Loads the tables of a Hugging Face dataset, from the Hub, the cache or local files.

The ``datasets`` library memory-maps an Arrow copy of the data. It writes that copy and downloads to its own cache
(``~/.cache/huggingface``, or the folder in ``HF_HOME`` or ``cache_dir``), and nothing else. Images stay encoded until a
worker decodes them with the decoder of this package.

Without a network, the library retries for 23 s (measured with datasets 5.2). This source first sends one request to the
Hub. Without an answer, it reads the cache, and a dataset that is not in the cache is an error at once.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.base import DataError, Skipped, Split
from distill.data.labels import mismatch
from distill.data.layout import understand
from distill.data.tree import Tree

if TYPE_CHECKING:
    from datasets import Dataset

    from distill.data.huggingface import HuggingFace

ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
HUB_PATIENCE = 5.0
"""Seconds to wait for the Hub's answer."""


def load_tables(settings: HuggingFace.Settings, where: str) -> tuple[dict[Split, list[Dataset]], tuple[Skipped, ...]]:
    """The tables of each split: one, or one for each run of Parquet files with the same columns.

    Args:
        settings: of the source.
        where: name of the data, for errors.

    Returns:
        The tables, and what a local folder holds that is not read.

    Raises:
        DataError: they cannot be loaded, or a local folder of images is read wrongly.
    """
    import datasets

    options: dict[str, Any] = {"cache_dir": str(settings.cache_dir) if settings.cache_dir else None}
    if settings.data_files is not None:
        files = {split: _expand(split, pattern) for split, pattern in settings.data_files.items()}
        options |= {"path": "parquet", "data_files": files}
    else:
        if (settings.name or "").startswith((".", "/", "~")) and not Path(settings.name or "").is_dir():
            raise DataError(f"data.source.name: no folder {settings.name} (looked in {Path.cwd()})")
        options |= {"path": settings.name, "name": settings.config, "revision": settings.revision}
    local = settings.data_files is not None or Path(settings.name or "").is_dir()
    try:
        with _offline_unless_reachable(local), _quiet(local):
            if local and (apart := _loaded_apart(settings, where, options)):
                return apart, ()
            if settings.splits:
                return {
                    split: [datasets.load_dataset(split=expression, **options)]
                    for split, expression in settings.splits.items()
                }, ()
            tables = datasets.load_dataset(**options)
    except DataError:
        raise
    except ConnectionError as error:
        raise DataError(
            f"{where}: the Hugging Face Hub cannot be reached, and the dataset is not in the cache. Load it"
            " once where there is a network and copy the cache (HF_HOME, or data.source.cache_dir), or download"
            f" its Parquet files and name them in data.source.data_files. ({error})"
        ) from error
    except Exception as error:  # the library's readers raise exceptions of many types
        raise DataError(f"{where}: {type(error).__name__}: {error}") from error
    splits = {split: [tables[name]] for split, name in _by_alias(tables).items()}
    if any(table.builder_name == "imagefolder" for table in tables.values()) and settings.name and local:
        return splits, _checked_folder(splits, Path(settings.name), settings.labels)
    return splits, ()


def _checked_folder(splits: Mapping[Split, Sequence[Dataset]], root: Path, labels: bool) -> tuple[Skipped, ...]:
    """What is not read in a local folder of images.

    Raises ``DataError`` if the library reads it in another way than the folder source. It knows fewer names of splits:
    it trains on ``Testing/``, and leaves out ``Test/`` beside ``train/``.
    """
    use = f"use the source {{type: folder, root: {root}}}"
    try:
        tree = Tree(root)
        layout = understand(tree, class_folder="inner" if labels else None)
    except DataError as error:
        raise DataError(f"{use}; {error}") from error
    walked, skipped = tree.walk([part.path for parts in layout.parts.values() for part in parts])
    rows = sum(len(table) for tables in splits.values() for table in tables)
    if set(layout.parts) != set(splits) or rows > sum(map(len, walked)):
        known = ", ".join(f"{split} with {sum(map(len, tables)):,} images" for split, tables in splits.items())
        raise DataError(
            f"the datasets library finds {known} in {root}, but {layout}, with {sum(map(len, walked)):,}: {use}"
        )
    return skipped


def _loaded_apart(settings: HuggingFace.Settings, where: str, options: Mapping[str, Any]) -> dict[Split, list[Dataset]]:
    """Local Parquet files whose columns differ, each kind by itself; nothing if all are alike.

    The library reads all files by the columns of the first, so a number would get the name that it has there.
    """
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = datasets.load_dataset_builder(**options)
    if not isinstance(builder, Parquet) or builder.config.data_files is None:
        return {}
    known = {name: files for name, files in builder.config.data_files.items() if all(map(os.path.isfile, files))}
    columns = {file: _columns(file) for files in known.values() for file in files}
    first, *others = columns.values()
    if other := next((each for each in others if each != first), None):
        if settings.splits:
            different = next(name for name in {**first, **other} if first.get(name) != other.get(name))
            files = [next(file for file in columns if columns[file] == each) for each in (first, other)]
            its_types, other_types = (each.get(different, ("no such column",)) for each in (first, other))
            about = f"{where}: column {different!r} differs between files, which splits cannot read"
            raise mismatch(about, files[0], its_types, files[1], other_types)
        cache = {"cache_dir": options["cache_dir"]}
        return {
            split: [
                datasets.load_dataset("parquet", data_files={"train": [*group]}, split="train", **cache)
                for _, group in groupby(known[name], key=columns.__getitem__)
            ]
            for split, name in _by_alias(known).items()
        }
    return {}


def _columns(file: str) -> dict[str, tuple[str, ...]]:
    """Column of a Parquet file → its class names, or its type."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    columns = {}
    for field in schema:
        feature = features.get(field.name)
        names = feature.get("names") if isinstance(feature, dict) else None
        columns[field.name] = tuple(names or [str(field.type)])
    return columns


def _by_alias(named: Mapping[str, Any]) -> dict[Split, str]:
    """Split → the name that it has among ``named``, for those that are there."""
    names = {split: next((alias for alias in aliases if alias in named), None) for split, aliases in ALIASES.items()}
    return {split: name for split, name in names.items() if name is not None}


def _expand(split: Split, pattern: str) -> list[str]:
    files = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise DataError(f"data.source.data_files.{split}: no file matches {pattern} (looked in {Path.cwd()})")
    return files


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Disable progress bars for local files: they would disturb the run's own display."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if local:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _offline_unless_reachable(local: bool) -> Iterator[None]:
    """Within the block, the library uses only its cache if the Hub does not answer or is not needed."""
    import datasets.config
    import huggingface_hub.constants as hub
    from huggingface_hub.utils import get_session

    offline = local or hub.HF_HUB_OFFLINE
    if not offline:
        try:
            get_session().head(hub.ENDPOINT, timeout=HUB_PATIENCE)
        except Exception:  # whatever the reason for no answer, the cache may hold the dataset
            offline = True
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
