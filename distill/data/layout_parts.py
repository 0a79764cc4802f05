"""How a folder of images is read: its splits, and the folders of each split's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from distill.data.base import Split

ClassFolder = Literal["outer", "inner"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PLAIN = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "pics", "data", "dataset"])
"""Names of folders that are no class."""
TARGETS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth"),
        *("segmentation", "segmentations", "target", "targets", "depth", "depths", "edge", "edges"),
        *("heatmap", "heatmaps", "trimap", "trimaps"),
    )
)
"""Names of folders that hold a picture for each image, as sets for segmentation have them."""
WITHOUT_LABELS = frozenset(
    ["unlabeled", "unlabelled", "unlabeled_images", "unlabelled_images", "unlabeled_data", "no_label"]
)
"""Names of folders of images without labels beside folders of classes."""
_SHOWN = 6


class LayoutPart(NamedTuple):
    """A folder whose images, at any depth, belong to one split and one class."""

    path: str
    label: str | None
    """Class name; None: no label, or the name of the folder that an image is in, with ``inner``."""


@dataclass(frozen=True)
class Layout:
    """How a folder is read. Paths are relative to the root."""

    base: str
    """The folder that holds the splits or classes: ``""`` or a wrapper that was looked through."""
    folders: dict[Split, str]
    """Split → its folder; empty if there are no split folders."""
    parts: dict[Split, list[LayoutPart]]
    """Split → its folders of images; only train without split folders."""
    inner: bool = False
    """Whether the folder that holds an image is its class."""

    def __str__(self) -> str:
        without = [part.path for parts in self.parts.values() for part in parts if self._labeled and part.label is None]
        own = [path for path in without if path not in self.folders.values()]
        return self._read + (f"; without labels: {some(own)}" if own and not self.inner else "")

    @property
    def _labeled(self) -> bool:
        return any(part.label is not None for parts in self.parts.values() for part in parts)

    @property
    def _read(self) -> str:
        within = f" in {self.base}" if self.base else ""
        if self.folders:
            return ", ".join(f"{split} is {path or 'the rest'}" for split, path in self.folders.items())
        if len(self.parts) > 1:
            return f"each class folder{within} holds {', '.join(self.parts)}"
        if self.inner:
            return f"the folders{within} that hold images are classes"
        labeled = any(part.label is not None for part in self.parts["train"])
        return f"the folders{within} are classes" if labeled else f"images without labels{within or ' in the root'}"


def some(names: Sequence[str] | Mapping[str, object]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
