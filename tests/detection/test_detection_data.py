"""Sources of images with boxes: COCO and VOC, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_boxes import CATEGORIES, COUNTS, SIZE, objects, write_coco, write_voc

from distill.data.base import DataError
from distill.data.coco import Coco
from distill.data.experiment_data import ExperimentData
from distill.data.settings import DataSettings
from distill.data.voc import Voc
from distill.detection.images import DetectionImages


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def coco(root: Path, **settings: Any) -> Coco:
    return Coco(Coco.Settings(root=root, **settings))


def test_both_forms_hold_the_same_boxes(coco_folder: Path, tmp_path: Path) -> None:
    sources = [coco(coco_folder), Voc(Voc.Settings(root=write_voc(tmp_path / "voc")))]
    assert sources[0].categories == CATEGORIES[::-1], "in the order of the ids"
    assert sources[1].categories == CATEGORIES, "sorted"
    for source in sources:
        assert source.has_split == {"train", "val", "test"} and source.classes == ()
        start = 0
        for split, count in COUNTS.items():
            samples, boxes = source.split(split), source.objects(split)  # type: ignore[arg-type]
            assert len(samples) == len(boxes) == count and samples[0].image.shape == (*SIZE, 3)
            for seed, own in zip(range(start, start + count), boxes):
                expected = [(box, CATEGORIES[category]) for box, category in objects(seed)]
                read = [
                    ([left, top, right - left, bottom - top], source.categories[label])
                    for (left, top, right, bottom), label in zip(own.corners.tolist(), own.labels)
                ]
                assert read == expected and own.size == SIZE
            start += count


def changed(coco_folder: Path, tmp_path: Path, annotation: dict[str, Any]) -> Path:
    """The folder with another first annotation of train."""
    for path in coco_folder.glob("*.json"):
        content = json.loads(path.read_text())
        if path.stem == "train":
            content["annotations"][0] |= annotation
        (tmp_path / path.name).write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(coco_folder / "images")
    return tmp_path


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"bbox": [1, 1, 0, 5]}, r"train\.json: annotation 0: box without area: \(1, 1\) to \(1, 6\)", 3),
    ({"bbox": [1, 1, float("nan"), 5]}, "box without area", 3),
    ({"bbox": [50, 1, 20, 5]}, r"reaches beyond its image: \(50, 1\) to \(70, 6\), in an image of 64 x 48", 4),
    ({"bbox": [80, 1, 20, 5]}, "reaches beyond its image", 3),
    ({"category_id": 3}, "box of an unknown class", 3),
]


@pytest.mark.parametrize(("annotation", "text", "left"), BAD)
def test_a_bad_box_is_an_error_or_left_out(
    annotation: dict[str, Any], text: str, left: int, coco_folder: Path, tmp_path: Path
) -> None:
    root = changed(coco_folder, tmp_path, annotation)
    with pytest.raises(DataError, match=text):
        coco(root).objects("train")
    source = coco(root, bad_boxes="drop")
    boxes = source.boxes("train")
    assert sum(len(own) for own in boxes[:2]) == left and source.boxes("train") is boxes
    assert [skipped.count for skipped in source.skipped] == [1]
    corners = np.concatenate([own.corners for own in boxes])
    assert (corners >= 0).all() and (corners[:, 2] <= SIZE[1]).all()


def test_a_box_one_pixel_outside_is_rounded(coco_folder: Path, tmp_path: Path) -> None:
    source = coco(changed(coco_folder, tmp_path, {"bbox": [44, 1, 21, 5]}))
    assert source.objects("train")[0].corners[0].tolist() == [44, 1, 64, 6] and not source.skipped


def test_missing_files_and_wrong_json_are_named(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source\.root: no folder"):
        coco(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train\.json; data\.source\.annotations names"):
        coco(tmp_path)
    for split in COUNTS:
        (tmp_path / f"{split}.json").write_text((coco_folder / f"{split}.json").read_text())
    with pytest.raises(
        DataError, match=r"6 of 6 images that the annotations name do not exist, the first images/00\.png"
    ):
        coco(tmp_path).split("train")
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"][0]["name"] = "other"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"val\.json: its categories are light, other, and those of train light, dark"):
        coco(tmp_path)
    (tmp_path / "val.json").unlink()
    for key, value, text in (
        ("file_name", "../../outside.png", r"train\.json: 'images/\.\./\.\./outside\.png' leads out of the folder"),
        ("width", "x", r"train\.json: width of an image is 'x', expected a whole number"),
        ("id", [1], r"train\.json: id of an image is \[1\], expected a whole number or a text"),
    ):
        content = json.loads((coco_folder / "train.json").read_text())
        content["images"][0][key] = value
        (tmp_path / "train.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=text):
            coco(tmp_path).split("train")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"train\.json: is no COCO file of boxes: it has no list 'images'"):
        coco(tmp_path)


def test_images_of_an_experiment_and_their_sizes(coco_folder: Path, tmp_path: Path) -> None:
    data = ExperimentData(DataSettings(source=Coco.Settings(root=coco_folder), workers=0))  # type: ignore[arg-type]
    images = DetectionImages.of(data, "train")
    assert images.counts() == [4, 4] and images.few(2) == [0, 1]
    images.check_sizes()
    root = changed(coco_folder, tmp_path, {})
    (tmp_path / "moved").mkdir()
    moved = Coco.Settings(root=changed(coco_folder, tmp_path / "moved", {"bbox": [2, 2, 9, 9]}))
    assert DetectionImages.of(ExperimentData(DataSettings(source=moved)), "train").digest() != images.digest()  # type: ignore[arg-type]
    content = json.loads((root / "train.json").read_text())
    content["images"][1]["width"] = 99
    (root / "train.json").write_text(json.dumps(content))
    other = DetectionImages.of(ExperimentData(DataSettings(source=Coco.Settings(root=root))), "train")  # type: ignore[arg-type]
    for check in (other.check_sizes, lambda: other[1]):
        with pytest.raises(DataError, match=r"images/01\.png is 64 x 48 pixels, and its annotations say 99 x 48"):
            check()


def test_voc_counts_difficult_objects_as_ignored(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    path = root / "Annotations/00.xml"
    path.write_text(path.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
    source = Voc(Voc.Settings(root=root))
    assert source.objects("train")[0].ignored.tolist() == [True, False]
    with pytest.raises(DataError, match=r"00\.xml: object 2 \(light\): box of an unknown class"):
        Voc(Voc.Settings(root=root, classes=("dark",))).objects("train")
    path.write_text(path.read_text().replace("<xmin>", "<xmin>x", 1))
    with pytest.raises(DataError, match="bndbox/xmin is 'x"):
        source = Voc(Voc.Settings(root=root))
        source.objects("train")
    path.write_text("<annotation>")
    with pytest.raises(DataError, match=r"00\.xml: cannot be read as XML"):
        Voc(Voc.Settings(root=root))
