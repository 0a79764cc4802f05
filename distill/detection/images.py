"""The images of a split with their boxes, and training batches: keyed order and augmentation, boxes that follow."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augment.boxes import BoxChain
from augment.draws import Draws, copy_key
from augment.fuse.program import to_unit
from distill.data.base import DataError, Split
from distill.data.boxes import Boxes, BoxSource
from distill.data.deep_pixels import orientation_of
from distill.data.experiment_data import ExperimentData
from distill.data.folder import FileSamples
from distill.data.order import Order
from distill.data.split import Subset
from distill.detection.errors import DetectionError

VIEW = "detector"
"""Name of the view that draws are keyed by."""
AHEAD = 2
"""Batches that threads prepare before they are needed."""


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

    def digest(self) -> str:
        """SHA-256 over categories and boxes, which the fingerprint of the data does not hold."""
        digest = hashlib.sha256("\0".join(self.categories).encode())
        for own in self.objects:
            for part in (own.corners, own.labels, own.ignored):
                digest.update(part.tobytes())
            digest.update(b"\0")
        return digest.hexdigest()

    def counts(self) -> list[int]:
        """Number of objects of each category, without ignored ones."""
        labels = [own.labels[~own.ignored] for own in self.objects]
        every = np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)
        return np.bincount(every, minlength=len(self.categories)).tolist()

    def sides(self, min_size: int, max_size: int) -> list[np.ndarray]:
        """Square roots of the boxes' areas in resized images, for each category, without ignored ones.

        Args:
            min_size: shorter side of a resized image, in pixels.
            max_size: largest longer side.

        Returns:
            An array of pixels for each category.
        """
        sides: list[list[np.ndarray]] = [[] for _ in self.categories]
        for own in self.objects:
            scale = min(min_size / min(own.size), max_size / max(own.size))
            extent = own.corners[:, 2:] - own.corners[:, :2]
            side = np.sqrt(extent.prod(1)) * scale
            for category in np.unique(own.labels):
                sides[category].append(side[(own.labels == category) & ~own.ignored])
        return [np.concatenate(each) if each else np.empty(0) for each in sides]


def train_item(
    images: DetectionImages, row: int, chain: BoxChain, seed: int, epoch: int, copy: int = 0
) -> tuple[Tensor, Objects]:
    """An augmented image in [0, 1] with the objects that are trained on.

    Args:
        images: of training.
        row: of the image.
        chain: of the augmentation.
        seed: of the run.
        epoch: counted from 0.
        copy: how often the image came before in the epoch.

    Returns:
        [C, H, W] float32, and boxes in its pixels.
    """
    pixels, objects = images[row]
    mask = ~objects.ignored
    ids = torch.tensor([copy_key(int(images.subset.keys[row]), copy)])
    corners, labels = torch.from_numpy(objects.corners[mask]), torch.from_numpy(objects.labels[mask])
    image, boxes, kept = chain(pixels[None], corners, Draws(seed, epoch, VIEW, ids))
    return image[0], Objects(boxes.float(), labels[kept] + 1)


@dataclass(frozen=True)
class TrainBatches:
    """The training batches, a function of seed, epoch and ids.

    Args:
        images: of training.
        order: of an epoch; the last batch is filled with images that come a second time, augmented differently.
        chain: of the augmentation.
        seed: of the run.
        threads: that decode and augment ahead; 0: none.
    """

    images: DetectionImages
    order: Order
    chain: BoxChain
    seed: int
    threads: int

    def __len__(self) -> int:
        return self.order.positions // self.order.batch

    def of(self, epoch: int, first: int = 0) -> Iterator[list[tuple[Tensor, Objects]]]:
        """The batches of an epoch, from number ``first`` on."""
        size = self.order.batch
        positions = list(zip(self.order(epoch).tolist(), self.order.copies(epoch).tolist()))
        batches = [positions[start : start + size] for start in range(first * size, len(positions), size)]

        def made(position: tuple[int, int]) -> tuple[Tensor, Objects]:
            return train_item(self.images, position[0], self.chain, self.seed, epoch, position[1])

        if not self.threads:
            for own in batches:
                yield [made(position) for position in own]
            return
        with ThreadPoolExecutor(self.threads) as pool:
            ahead: deque[list[Future[tuple[Tensor, Objects]]]] = deque()
            for own in batches:
                ahead.append([pool.submit(made, position) for position in own])
                if len(ahead) > AHEAD:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]


def evaluation_item(images: DetectionImages, row: int) -> Tensor:
    """An image [C, H, W] in [0, 1], not augmented."""
    return to_unit(images[row][0])


def _other_size(id: str, actual: tuple[int, ...], declared: tuple[int, int]) -> str:
    return (
        f"{id} is {actual[1]} x {actual[0]} pixels, and its annotations say {declared[1]} x {declared[0]}; its boxes"
        " would be elsewhere"
    )
