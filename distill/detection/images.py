"""The images of a split with their boxes, and the training batches: keyed order, keyed augmentation, boxes that follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augment.boxes import BoxChain
from augment.draws import Draws
from augment.fuse.program import to_unit
from distill.data.base import DataError, Split
from distill.data.boxes import Boxes, BoxSource
from distill.data.deep_pixels import orientation_of
from distill.data.experiment_data import ExperimentData
from distill.data.folder import FileSamples
from distill.data.split import Subset
from distill.detection.errors import DetectionError

VIEW = "detector"
"""Name of the view that draws are keyed by."""


@dataclass(frozen=True)
class Objects:
    """The target of one image, as torchvision's detectors read it: ``boxes`` [N, 4] and ``labels`` [N], 1 … K."""

    boxes: Tensor
    labels: Tensor


class DetectionImages:
    """The images of a split with their objects.

    Args:
        subset: the samples.
        objects: of each sample of the subset.
        categories: names of the objects' classes.
    """

    def __init__(self, subset: Subset, objects: Sequence[Boxes], categories: Sequence[str]):
        self.subset, self.objects, self.categories = subset, objects, tuple(categories)
        if len(objects) != len(subset):
            raise DataError(f"{len(subset)} images, and boxes of {len(objects)}")

    @classmethod
    def of(cls, data: ExperimentData, split: Split) -> DetectionImages:
        """The images of a split of an experiment's data.

        Raises:
            DetectionError: the source has no boxes.
            DataError: a box is bad, see :mod:`distill.data.boxes`.
        """
        source = data.source
        if not isinstance(source, BoxSource):
            raise DetectionError(
                f"data.source: {source.settings.type} has no boxes; coco and voc have, and a BoxSource of your own"
            )
        subset = data.subset(split)
        home: Split = split if split in source.has_split else "train"
        every = source.boxes(home)
        return cls(subset, [every[int(index)] for index in subset.indices], source.categories)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, row: int) -> tuple[Tensor, Boxes]:
        """The image [C, H, W] uint8, and its objects."""
        pixels = self.subset[row].image
        objects = self.objects[row]
        if pixels.shape[:2] != objects.size:
            raise DataError(_other_size(self.subset.ids[row], pixels.shape[:2], objects.size))
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), objects

    def check_sizes(self) -> None:
        """Compare the sizes of image files with those in the annotations, without decoding them."""
        samples = self.subset.samples
        if not isinstance(samples, FileSamples):
            return
        for row, id in enumerate(self.subset.ids):
            try:
                with Image.open(samples.root / id) as image:
                    width, height = image.size
                    turned = orientation_of(image) >= 5
            except Exception:  # another format: it is compared when it is decoded
                continue
            size = (width, height) if turned else (height, width)
            if size != self.objects[row].size:
                raise DataError(_other_size(id, size, self.objects[row].size))

    def few(self, count: int) -> list[int]:
        """Rows of some images: those with the most objects of the whole range, in the order of the split."""
        order = sorted(range(len(self)), key=lambda row: -len(self.objects[row]))
        return sorted(order[:count])

    def counts(self) -> list[int]:
        """Number of objects of each category, without ignored ones."""
        labels = [own.labels[~own.ignored] for own in self.objects]
        found = np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)
        return np.bincount(found, minlength=len(self.categories)).tolist()


def train_item(images: DetectionImages, row: int, chain: BoxChain, seed: int, epoch: int) -> tuple[Tensor, Objects]:
    """An augmented image in [0, 1] with the objects that are trained on.

    Args:
        images: of training.
        row: of the image.
        chain: of the augmentation.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        [C, H, W] float32, and boxes in its pixels.
    """
    pixels, objects = images[row]
    mask = ~objects.ignored
    ids = torch.tensor([int(images.subset.keys[row])])
    corners, labels = torch.from_numpy(objects.corners[mask]), torch.from_numpy(objects.labels[mask])
    image, boxes, kept = chain(pixels[None], corners, Draws(seed, epoch, VIEW, ids))
    return image[0], Objects(boxes.float(), labels[kept] + 1)


def train_order(images: DetectionImages, seed: int, epoch: int) -> list[int]:
    """The rows in the order of an epoch, a function of seed, epoch and ids."""
    keys = torch.from_numpy(np.asarray(images.subset.keys))
    return Draws(seed, epoch, "detector order", keys).bits(0).argsort(stable=True).tolist()


def train_batches(
    images: DetectionImages, chain: BoxChain, batch: int, seed: int, epoch: int, first: int, threads: int
) -> Iterator[list[tuple[Tensor, Objects]]]:
    """The batches of an epoch; the last one may be smaller.

    Args:
        images: of training.
        chain: of the augmentation.
        batch: images in a batch.
        seed: of the run.
        epoch: counted from 0.
        first: number of the first batch, in an epoch that goes on.
        threads: that decode and augment ahead; 0: none.

    Yields:
        Images and objects.
    """
    order = train_order(images, seed, epoch)
    rows = [order[start : start + batch] for start in range(first * batch, len(order), batch)]

    def made(row: int) -> tuple[Tensor, Objects]:
        return train_item(images, row, chain, seed, epoch)

    if not threads:
        for own in rows:
            yield [made(row) for row in own]
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[list[Future[tuple[Tensor, Objects]]]] = deque()
        for own in rows:
            ahead.append([pool.submit(made, row) for row in own])
            if len(ahead) > 2:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]


def evaluation_item(images: DetectionImages, row: int) -> Tensor:
    """An image [C, H, W] in [0, 1], not augmented."""
    return to_unit(images[row][0])


def _other_size(id: str, found: tuple[int, ...], declared: tuple[int, int]) -> str:
    return (
        f"{id} is {found[1]} x {found[0]} pixels, and its annotations say {declared[1]} x {declared[0]}; its boxes would"
        " be elsewhere"
    )
