"""Images with rectangles as objects, in COCO's and in VOC's form, and a network that is built in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.config import validate_tree
from distill.experiments.base import Experiment
from distill.yaml_tree import merge_trees

SIZE = (48, 64)
"""(height, width)"""
CATEGORIES = ("dark", "light")
COUNTS = {"train": 6, "val": 3, "test": 4}


def objects(seed: int) -> list[tuple[list[float], int]]:
    """[left, top, width, height] and category of the objects of an image; every third image has none."""
    if seed % 3 == 2:
        return []
    rng = np.random.default_rng(seed)
    made = []
    for number in range(2):
        width, height = (int(side) for side in rng.integers(12, 24, 2))
        left, top = int(rng.integers(0, SIZE[1] - width)), int(rng.integers(0, SIZE[0] - height))
        made.append(([float(left), float(top), float(width), float(height)], number))
    return made


def image(seed: int) -> Image.Image:
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    for (left, top, width, height), category in objects(seed):
        pixels[int(top) : int(top + height), int(left) : int(left + width)] = 230 if category else 20
    return Image.fromarray(pixels)


def write_coco(root: Path) -> Path:
    """A folder in COCO's form."""
    (root / "images").mkdir(parents=True)
    seed = 0
    for split, count in COUNTS.items():
        images: list[Any] = []
        annotations: list[Any] = []
        for _ in range(count):
            name = f"{seed:02d}.png"
            image(seed).save(root / "images" / name)
            images.append({"id": seed, "file_name": name, "width": SIZE[1], "height": SIZE[0]})
            for box, category in objects(seed):
                number = len(annotations)
                annotations.append({"id": number, "image_id": seed, "category_id": 7 - category, "bbox": box})
            seed += 1
        categories = [{"id": 7 - number, "name": name} for number, name in enumerate(CATEGORIES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path) -> Path:
    """The same images in VOC's form."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    seed = 0
    for split, count in COUNTS.items():
        stems = []
        for _ in range(count):
            stem = f"{seed:02d}"
            image(seed).save(root / "JPEGImages" / f"{stem}.png")
            listed = "".join(
                f"<object><name>{CATEGORIES[category]}</name><bndbox><xmin>{left + 1:.0f}</xmin>"
                f"<ymin>{top + 1:.0f}</ymin><xmax>{left + width:.0f}</xmax><ymax>{top + height:.0f}</ymax></bndbox>"
                "</object>"
                for (left, top, width, height), category in objects(seed)
            )
            size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{stem}.png</filename>{size}{listed}</annotation>"
            (root / "Annotations" / f"{stem}.xml").write_text(xml)
            stems.append(stem)
            seed += 1
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems))
    return root


def detection(root: Path, output: Path, **changes: Any) -> Experiment:
    """The config of a detector on a folder in COCO's form: two updates of a random ResNet with a rank-2 delta."""
    tree: dict[str, Any] = {
        "kind": "detection",
        "name": "toy",
        "output": str(output),
        "data": {"source": {"type": "coco", "root": str(root)}, "batch_size": 3, "workers": 0},
        "backbone": {"network": {"model": "resnet20_cifar", "pretrained": False}, "deltas": [{"type": "low_rank"}]},
        "detector": {"type": "retinanet", "channels": 32, "min_size": 48, "max_size": 64, "levels": ["layer3"]},
        "training": {"epochs": 1, "optimizer": {"lr": 1e-2}, "accelerator": "cpu", "loggers": ["csv"]},
    }
    return validate_tree(merge_trees(tree, changes), "toy detection")
