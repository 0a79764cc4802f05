"""Boxes in COCO's JSON::

    root/train.json   root/val.json   root/test.json     one file for each split; val and test may be missing
    root/images/…                                        file_name in the JSON is relative to this folder

``annotations`` and ``images`` say where they are if the names are others (``annotations/instances_train2017.json``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distill.data.base import DataError, Samples, Split
from distill.data.boxes import Boxes, BoxSource, check_ids

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Coco(BoxSource):
    """Images with boxes in COCO's JSON. Ids are the paths of the images relative to ``root``.

    Boxes are [left, top, width, height] in pixels. Groups (``iscrowd``) are ignored in training and evaluation.
    Categories are those of the training split, in the order of their ids; those of the other splits must be the same.
    Segmentations and key points are not read.
    """

    class Settings(BoxSource.Settings):
        type: Literal["coco"] = "coco"
        annotations: dict[Split, str] | None = Field(
            None, description="split → its JSON in root; default: train.json, val.json and test.json that exist"
        )
        images: str | dict[Split, str] = Field("images", description="folder of the images in root, or of each split")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        named = settings.annotations
        if named is None:
            named = {name: f"{name}.json" for name in SPLITS if (settings.root / f"{name}.json").is_file()}
        if "train" not in named:
            raise DataError(
                f"{settings.root}: no train.json; data.source.annotations names the files of the splits"
                f" (train: annotations/instances_train.json)"
            )
        if isinstance(settings.images, dict) and (without := sorted(named.keys() - settings.images.keys())):
            raise DataError(f"data.source.images: no folder of the split {without[0]}")
        self._content = {name: _read(settings.root / file) for name, file in named.items()}
        self._paths = {name: settings.root / file for name, file in named.items()}
        self.has_split = frozenset(named)
        self.categories, self._number = self._categories("train")
        for name in named:
            if self._categories(name)[0] != self.categories:
                raise DataError(
                    f"{self._paths[name]}: its categories are {', '.join(self._categories(name)[0])}, and those of"
                    f" train {', '.join(self.categories)}"
                )
        self.reading = f"{settings.root}: boxes of {len(self.categories)} categories: {', '.join(self.categories[:20])}"

    def split(self, name: Split) -> Samples:
        ids = [self._id(name, image) for image in self._images[name]]
        check_ids(ids, self._paths[name])
        return self.files(ids)

    def objects(self, name: Split) -> Sequence[Boxes]:
        path = self._paths[name]
        of_image: dict[Any, list[Any]] = {image["id"]: [] for image in self._images[name]}
        for number, each in enumerate(self._content[name].get("annotations", [])):
            where = f"{path}: annotation {each.get('id', number)}" if isinstance(each, dict) else str(path)
            if not isinstance(each, dict) or _number(each.get("image_id")) not in of_image:
                raise DataError(f"{where} is of an image that the file does not list")
            box = each.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(own, int | float) for own in box):
                raise DataError(f"{where}: bbox is {box!r}, expected [left, top, width, height]")
            left, top, width, height = map(float, box)
            corners = (left, top, left + width, top + height)
            category = self._numbers(name).get(_number(each.get("category_id")))
            of_image[each["image_id"]].append((where, corners, category, bool(each.get("iscrowd", 0))))
        return [self.boxes_of(of_image[image["id"]], (image["height"], image["width"])) for image in self._images[name]]

    @cached_property
    def _images(self) -> dict[Split, list[dict[str, Any]]]:
        made = {}
        for name, content in self._content.items():
            images, path = content["images"], self._paths[name]
            for image in images:
                if not isinstance(image, dict):
                    raise DataError(f"{path}: an image is {image!r:.200}, expected a mapping")
                lacking = [key for key in ("id", "file_name", "width", "height") if key not in image]
                if lacking:
                    raise DataError(f"{path}: an image without {', '.join(lacking)}: {image!r:.200}")
                for key, kind in (("id", int | str), ("file_name", str), ("width", int), ("height", int)):
                    if not isinstance(image[key], kind):
                        raise DataError(f"{path}: {key} of an image is {image[key]!r:.200}, expected {_shown(kind)}")
            if len({image["id"] for image in images}) < len(images):
                raise DataError(f"{path}: two images have one id")
            made[name] = images
        return made

    def _id(self, name: Split, image: Mapping[str, Any]) -> str:
        folder = self.settings.images if isinstance(self.settings.images, str) else self.settings.images[name]
        return f"{folder}/{image['file_name']}" if folder not in ("", ".") else str(image["file_name"])

    def _categories(self, name: Split) -> tuple[tuple[str, ...], dict[Any, int]]:
        """Names in the order of their ids, and id → index."""
        listed = self._content[name]["categories"]
        if not listed or not all(isinstance(own, dict) and "id" in own and "name" in own for own in listed):
            raise DataError(f"{self._paths[name]}: categories must be a list of {{id, name}}, not empty")
        ordered = sorted(listed, key=lambda own: own["id"])
        names = tuple(str(own["name"]) for own in ordered)
        if len(set(names)) < len(names) or len({own["id"] for own in ordered}) < len(names):
            raise DataError(f"{self._paths[name]}: two categories have one name or one id")
        return names, {own["id"]: index for index, own in enumerate(ordered)}

    def _numbers(self, name: Split) -> dict[Any, int]:
        return self._number if name == "train" else self._categories(name)[1]


def _number(value: Any) -> Any:
    """An id, None for what cannot be one."""
    return value if isinstance(value, int | str) else None


def _shown(kind: Any) -> str:
    return {int: "a whole number", str: "a text"}.get(kind, "a whole number or a text")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: is no COCO file of boxes: it has no list {key!r}")
    return content
