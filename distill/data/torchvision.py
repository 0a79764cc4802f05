"""torchvision's datasets, by class name: CIFAR10, Flowers102, FakeData …

torchvision decodes these images, so EXIF orientation is not applied to images in files, and Pillow's own pixel limit
holds. Only ``ImageFolder``'s files are read as by the source ``folder``: all formats, by the decoder of this package.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from augment.base import did_you_mean
from distill.data.base import DataError, Sample, Samples, Source, Split
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import decode
from distill.data.depth import depth_of
from distill.data.formats import extension_of, extensions, is_array
from distill.data.labels import LabelColumn, LabelSettings, read_labels
from distill.data.layout import understand
from distill.data.tree import Tree, read_by_both

_LISTED_BY = 'python -c "from torchvision import datasets; print(datasets.__all__)"'
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels")


class TorchVision(Source):
    """A classification dataset of torchvision. Ids are ``<name>/<split>/<index>``.

    Without ``splits``, a dataset with the argument ``train`` has train and test, one with the argument ``split`` has
    those of train, val and test that it accepts, and any other has train.
    """

    class Settings(LabelSettings):
        type: Literal["torchvision"] = "torchvision"
        name: str = Field(description="class in torchvision.datasets")
        root: Path = Field(Path("data"), description="folder of its files, relative to the current folder")
        download: bool = Field(False, description="download the files if they are missing")
        arguments: dict[str, Any] = Field({}, description="further arguments of the class")
        splits: dict[Split, dict[str, Any]] = Field({}, description="split → arguments that select it")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from torchvision import datasets

        known = {
            name: value
            for name, value in vars(datasets).items()
            if inspect.isclass(value) and issubclass(value, datasets.VisionDataset)
        }
        if settings.name not in known:
            hint = did_you_mean(settings.name, known, listed_by=_LISTED_BY)
            raise DataError(f"torchvision.datasets has no class {settings.name!r}{hint}")
        self._class = known[settings.name]
        self._parameters = set(inspect.signature(self._class.__init__).parameters) - {"self"}
        self._datasets: dict[Split, Any] = {}
        self.bits: int | None = None
        """Bits in use of the images of more than 8 bits of an ``ImageFolder``."""
        for split, choice in self._choices().items():
            self._check_arguments(choice)
            dataset = self._open(choice, optional=split != "train" and not settings.splits)
            if dataset is not None:
                self._datasets[split] = dataset
                if isinstance(dataset, datasets.ImageFolder):
                    self._read_once(dataset)
        if "train" not in self._datasets:
            raise DataError(f"data.source.splits of {settings.name} must name train")
        self.has_split = frozenset(self._datasets)
        columns = {split: [self._column(dataset)] for split, dataset in self._datasets.items()}
        counted = getattr(self._datasets["train"], "num_classes", None)  # FakeData's
        if counted is not None and settings.classes is None:
            settings = settings.model_copy(update={"classes": int(counted)})
        self.classes, self._labels = read_labels(columns, f"torchvision's {settings.name}", settings)

    def split(self, name: Split) -> Samples:
        prefix = f"{self.settings.name}/{name}"
        kind = self.channels, self.bits, self.depth
        return IndexedSamples(self._datasets[name], self._labels[name], prefix, *kind)

    def _choices(self) -> dict[Split, dict[str, Any]]:
        free = self._parameters - set(self.settings.arguments)
        if self.settings.splits:
            return self.settings.splits
        if "train" in free:
            return {"train": {"train": True}, "test": {"train": False}}
        if "split" in free:
            return {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
        return {"train": {}}

    def _check_arguments(self, choice: dict[str, Any]) -> None:
        for argument in [*self.settings.arguments, *choice]:
            if argument not in self._parameters:
                hint = did_you_mean(argument, self._parameters)
                raise DataError(f"torchvision's {self.settings.name} has no argument {argument!r}{hint}")

    def _open(self, choice: dict[str, Any], optional: bool) -> Any:
        given: dict[str, Any] = {"root": str(self.settings.root), "download": self.settings.download}
        if self._class.__name__ == "ImageFolder":  # its own list of formats is short
            given |= {"is_valid_file": _is_image, "loader": str}
        given = {name: value for name, value in given.items() if name in self._parameters}
        try:
            return self._class(**{**given, **self.settings.arguments, **choice})
        except Exception as error:  # each class raises other exceptions
            if optional and "Unknown value" in str(error):  # the dataset has no such split
                return None
            why = str(error)
            if "download" in self._parameters and not self.settings.download:
                why += " (data.source.download is false)"
            raise DataError(f"torchvision's {self.settings.name} in {self.settings.root}: {why}") from error

    def _read_once(self, dataset: Any) -> None:
        """Leave an ``ImageFolder`` each image once. It takes every folder for a class: raise an error for others."""
        tree = Tree(Path(dataset.root))
        use = f"use the source {{type: folder, root: {dataset.root}}}"
        try:
            layout = understand(tree, class_folder="outer")
        except DataError as error:
            raise DataError(f"torchvision's ImageFolder cannot read this folder; {use}. {error}") from error
        if layout.base or len(layout.parts) > 1 or layout.folders:
            raise DataError(f"torchvision's ImageFolder would take each folder for a class, but {layout}: {use}")
        paths = [path for path, _ in dataset.samples]
        (kept,), skipped = read_by_both(tree, [""], [paths], "torchvision")
        dataset.samples = dataset.imgs = [dataset.samples[index] for index in kept]
        dataset.targets = [number for _, number in dataset.samples]
        self.skipped = (*self.skipped, *skipped)
        if self.bits is None:
            names = [os.path.relpath(path, tree.root).replace(os.sep, "/") for path, _ in dataset.samples]
            self.bits = bits_in_use(names, lambda index: dataset.samples[index][0])
            self.depth = depth_of(self.bits)

    def _column(self, dataset: Any) -> LabelColumn:
        for attribute in _LABEL_ATTRIBUTES:
            labels = getattr(dataset, attribute, None)
            if labels is not None and len(labels) == len(dataset):
                break
        else:  # FakeData and a few others: only the samples have the labels
            labels = [dataset[index][1] for index in range(len(dataset))]
        names = getattr(dataset, "classes", None)
        if not names:
            return LabelColumn(labels)
        return LabelColumn(labels, [" / ".join(name) if isinstance(name, tuple) else str(name) for name in names])


class IndexedSamples:
    """Samples of a torchvision dataset.

    Args:
        dataset: ``dataset[index]`` is a tuple; its first item is a PIL image or the path of one.
        labels: class indices, ``UNLABELED`` where a sample has none.
        prefix: first part of the ids.
        channels: of the decoded images.
        bits: bits in use of images of more than 8 bits.
        depth: bits of a value of the decoded images.
    """

    def __init__(
        self,
        dataset: Any,
        labels: Sequence[int],
        prefix: str,
        channels: int = 3,
        bits: int | None = None,
        depth: int = 8,
    ):
        self.dataset, self.labels, self.channels, self.bits, self.depth = dataset, labels, channels, bits, depth
        self.ids = [f"{prefix}/{index:06d}" for index in range(len(labels))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        try:
            image = self.dataset[index][0]
        except (OSError, SyntaxError) as error:  # what Pillow raises for a bad file
            raise DataError(f"{self.ids[index]}: cannot be decoded: {error}") from error
        name = image if isinstance(image, str) else self.ids[index]
        pixels = decode(image, name, bits=self.bits, channels=self.channels, depth=self.depth)
        return Sample(pixels, self.labels[index], self.ids[index])


def _is_image(path: str) -> bool:
    return extension_of(path) in extensions() and not is_array(path)
