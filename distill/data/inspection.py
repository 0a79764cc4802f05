"""Decodes all images of an experiment's splits once: their sizes, which are unreadable, and equal ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from distill.data.base import UNLABELED, DataError, Split
from distill.data.experiment_data import SPLITS, ExperimentData
from distill.data.split import Subset

CHUNK = 32
"""Images that a worker decodes at a time."""


class ImagePlace(NamedTuple):
    """Where an image is."""

    split: Split
    id: str
    label: int


@dataclass(frozen=True)
class Decoded:
    """What decoding the images of a split showed."""

    sizes: np.ndarray
    """int64 [N, 2], width and height of the N images that can be read."""
    unreadable: dict[str, str]
    """Id → reason."""


@dataclass(frozen=True)
class Inspection:
    """What decoding all images showed."""

    splits: dict[Split, Decoded]
    equal: list[list[ImagePlace]]
    """Groups of images with the same pixels, in the order of the splits."""

    def shared(self) -> dict[tuple[Split, Split], list[list[ImagePlace]]]:
        """Two splits → the groups that have images in both."""
        pairs: dict[tuple[Split, Split], list[list[ImagePlace]]] = {}
        for group in self.equal:
            here = [split for split in SPLITS if any(place.split == split for place in group)]
            for index, first in enumerate(here):
                for second in here[index + 1 :]:
                    pairs.setdefault((first, second), []).append(group)
        return pairs

    def repeated(self) -> list[list[ImagePlace]]:
        """Groups of which one split has several images."""
        return [group for group in self.equal if len({place.split for place in group}) < len(group)]

    def contradictory(self) -> list[list[ImagePlace]]:
        """Groups whose images have different labels."""
        return [group for group in self.equal if len({place.label for place in group} - {UNLABELED}) > 1]


def inspect(data: ExperimentData, advance: Callable[[int], object] = lambda images: None) -> Inspection:
    """Decode all images of all splits, in the loader's workers.

    Args:
        data: of the experiment.
        advance: is called with the number of images that were decoded since the last call.

    Returns:
        Sizes, unreadable images, and images with equal pixels (after orientation and transparency, so the same picture
        in another lossless format is equal, one that was compressed again is not).
    """
    splits: dict[Split, Decoded] = {}
    places: dict[bytes, list[ImagePlace]] = {}
    for split in SPLITS:
        if not data.has_split(split):
            continue
        subset = data.subset(split)
        sizes, unreadable = [], {}
        for index, (size, digest, error) in enumerate(_decoded(subset, data, advance)):
            if error:
                unreadable[subset.ids[index]] = error
                continue
            sizes.append(size)
            places.setdefault(digest, []).append(ImagePlace(split, subset.ids[index], int(subset.labels[index])))
        splits[split] = Decoded(np.array(sizes, dtype=np.int64).reshape(-1, 2), unreadable)
    return Inspection(splits, [group for group in places.values() if len(group) > 1])


class _Decoding(NamedTuple):
    size: tuple[int, int]
    digest: bytes
    error: str


class _Chunks(Dataset[list[_Decoding]]):
    """``chunks[n]`` decodes the n-th chunk of a subset."""

    def __init__(self, subset: Subset):
        self.subset = subset

    def __len__(self) -> int:
        return -(-len(self.subset) // CHUNK)

    def __getitem__(self, number: int) -> list[_Decoding]:
        last = min((number + 1) * CHUNK, len(self.subset))
        return [_decode(self.subset, index) for index in range(number * CHUNK, last)]


def _decode(subset: Subset, index: int) -> _Decoding:
    try:
        image = subset[index].image
    except DataError as error:
        return _Decoding((0, 0), b"", str(error))
    height, width = image.shape[:2]
    digest = blake2b(np.ascontiguousarray(image).data, digest_size=16, salt=f"{width}x{height}".encode()[:16])
    return _Decoding((width, height), digest.digest(), "")


def _decoded(subset: Subset, data: ExperimentData, advance: Callable[[int], object]) -> Iterator[_Decoding]:
    workers = data.settings.workers
    loader: DataLoader[list[_Decoding]] = DataLoader(
        _Chunks(subset),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=data.settings.start_method if workers else None,
    )
    for chunk in loader:
        advance(len(chunk))
        yield from chunk


def _as_it_is(chunk: list[_Decoding]) -> list[_Decoding]:
    return chunk
