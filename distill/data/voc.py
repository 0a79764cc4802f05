"""Boxes in Pascal VOC's XML::

root/JPEGImages/*.jpg   root/Annotations/*.xml      an XML of the same name for each image
root/ImageSets/Main/{train,val,test}.txt            names of a split, one a line; without them, all are train
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.data.base import DataError, Samples, Split
from distill.data.boxes import Boxes, BoxSource, check_ids, check_inside

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SETS = Path("ImageSets") / "Main"


class Voc(BoxSource):
    """Images with boxes in Pascal VOC's XML. Ids are the paths of the images relative to ``root``.

    VOC counts pixels from 1 and both ends are inside, so its box (1, 1, 1, 1) is the first pixel, (0, 0) to (1, 1).
    Objects marked ``difficult`` are ignored in training and evaluation, as in VOC's own. Categories are the names of
    all objects, sorted, unless ``classes`` gives them.
    """

    class Settings(BoxSource.Settings):
        type: Literal["voc"] = "voc"
        images: str = Field("JPEGImages", description="folder of the images in root")
        annotations: str = Field("Annotations", description="folder of the XML files in root")
        classes: tuple[str, ...] | None = Field(
            None, min_length=1, description="names of the categories; objects of others are bad boxes. Default: all"
        )

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._folder = settings.root / settings.annotations
        if not self._folder.is_dir():
            raise DataError(f"{settings.root}: no folder {settings.annotations} with the XML files of the boxes")
        self._names = self._splits()
        self._trees = {name: [self._read(stem) for stem in stems] for name, stems in self._names.items()}
        self.has_split = frozenset(self._names)
        names = {
            each.findtext("name", "") for trees in self._trees.values() for tree in trees for each in _objects(tree)
        }
        self.categories = settings.classes or tuple(sorted(names))
        if not self.categories:
            raise DataError(f"{self._folder}: no object in any file")
        self.reading = f"{settings.root}: boxes of {len(self.categories)} categories: {', '.join(self.categories[:20])}"

    def split(self, name: Split) -> Samples:
        ids = []
        for stem, tree in zip(self._names[name], self._trees[name]):
            file = tree.findtext("filename") or f"{stem}.jpg"
            if Path(file).stem != stem:  # many tools write another name there
                file = f"{stem}{Path(file).suffix or '.jpg'}"
            ids.append(f"{self.settings.images}/{file}")
        check_ids(ids, self._folder)
        return self.files(ids)

    def objects(self, name: Split) -> Sequence[Boxes]:
        number = {category: index for index, category in enumerate(self.categories)}
        return [
            self.boxes_of(self._entries(stem, tree, number), _size(tree, self._folder / f"{stem}.xml"))
            for stem, tree in zip(self._names[name], self._trees[name])
        ]

    def _splits(self) -> dict[Split, list[str]]:
        files = {name: self.settings.root / SETS / f"{name}.txt" for name in SPLITS}
        listed: dict[Split, list[str]] = {
            name: [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
            for name, file in files.items()
            if file.is_file()
        }
        if not listed:
            listed = {"train": sorted(path.stem for path in self._folder.glob("*.xml"))}
        if "train" not in listed:
            raise DataError(f"{files['train']}: no such file, and there are lists of {', '.join(listed)}")
        if empty := [name for name, stems in listed.items() if not stems]:
            where = files[empty[0]] if files[empty[0]].is_file() else self._folder
            raise DataError(f"{where}: no image for {empty[0]}")
        return listed

    def _read(self, stem: str) -> ElementTree.Element:
        path = self._folder / check_inside(f"{stem}.xml", self.settings.root / SETS)
        try:
            return ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise DataError(f"{path}: cannot be read as XML: {error}") from error

    def _entries(
        self, stem: str, tree: ElementTree.Element, number: dict[str, int]
    ) -> Iterator[tuple[str, Sequence[float], int | None, bool]]:
        for index, each in enumerate(_objects(tree)):
            name = each.findtext("name", "")
            where = f"{self._folder / stem}.xml: object {index + 1} ({name})"
            left, top, right, bottom = (
                _number(each, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = (each.findtext("difficult") or "0").strip() == "1"
            yield where, (left - 1, top - 1, right, bottom), number.get(name), difficult


def _objects(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return tree.findall("object")


def _size(tree: ElementTree.Element, path: Path) -> tuple[int, int]:
    return int(_number(tree, "size/height", str(path))), int(_number(tree, "size/width", str(path)))


def _number(tree: ElementTree.Element, key: str, where: str) -> float:
    text = tree.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{where}: {key} is {text!r}, expected a number") from None
