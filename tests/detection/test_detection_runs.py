"""Whole runs of ``kind: detection``: resuming, files, scores; what every detector and every way of training does."""

import json
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from run_here import run_here, summary
from torch import nn
from toy_boxes import detection, image, write_coco

from distill.config import validate_tree
from distill.data.boxes import Boxes
from distill.data.split import Subset
from distill.deltas.base import DeltaError
from distill.detection.backbone import Level, levels_of, resolved
from distill.detection.detector import build_detector
from distill.detection.detectors.base import Detector
from distill.detection.detectors.faster_rcnn import FasterRCNN
from distill.detection.detectors.fcos import FCOS
from distill.detection.detectors.retinanet import RetinaNet
from distill.detection.errors import DetectionError
from distill.detection.files import load_detector
from distill.detection.images import DetectionImages, Objects
from distill.detection.score import Detections, precision
from distill.detection.settings import DetectorBackboneSettings
from distill.export.checksummed import ExportError
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.stages.train_detector import small_objects
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted
from distill.yaml_tree import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A backbone whose weights are always the same."""
    from distill.export.targets.timm_folder import write_timm_folder

    folder = tmp_path_factory.mktemp("network")
    made = create_network(NetworkSettings(model="resnet20_cifar", pretrained=False), 2)
    write_timm_folder(folder, made.model, origin="random")
    return {"network": {"model": f"local-dir:{folder}", "pretrained": True}}


@pytest.fixture(scope="module")
def run(root: Path, network: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: two epochs of two steps, deltas on the backbone."""
    output = tmp_path_factory.mktemp("runs")
    return run_here(detection(root, output, backbone=network, training={"epochs": 2}))


@pytest.mark.slow
def test_the_report_has_scores_and_the_export_finds_the_same(run: Path) -> None:
    content = summary(run)
    tables = {table["title"]: table for table in content["tables"]}
    [row] = tables["Detection on test"]["rows"]
    assert row["cells"][0] == "student" and "retinanet, backbone deltas, 8 boxes in 6 images" in row["cells"][1]
    assert [row["cells"][0] for row in tables["By category"]["rows"]] == ["light", "dark"]
    assert [check["passed"] for check in content["verification"]] == [True]
    assert (run / "test/detections.png").is_file() and content["headlines"]


@pytest.mark.slow
def test_a_loaded_detector_reads_any_image_and_refuses_other_files(run: Path, tmp_path: Path) -> None:
    folder = run / "export/detector"
    assert (folder / "delta/delta.safetensors").is_file() and not (folder / "start").exists()
    detector = load_detector(folder)
    assert detector.categories == ("light", "dark")
    pixels = torch.from_numpy(np.asarray(image(0)).copy()).permute(2, 0, 1) / 255
    detected = detector([pixels, pixels[:, :40, :40]])
    assert len(detected) == 2 and detected[0].keys() == {"boxes", "scores", "labels"}
    with pytest.raises(ExportError, match="made for another backbone"):
        load_detector(folder, NetworkSettings(model="resnet20_cifar", pretrained=False))
    import shutil

    copied = shutil.copytree(folder, tmp_path / "damaged")
    content = bytearray((copied / "detector.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "detector.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match="damaged or replaced"):
        load_detector(copied)


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch_is_bit_equal(
    run: Path, root: Path, network: dict[str, Any], tmp_path: Path
) -> None:
    settings = detection(root, tmp_path, backbone=network, training={"epochs": 2})
    import distill.detection.fit as fit

    step = fit._step

    def stopping(*arguments: Any) -> dict[str, float]:
        made = step(*arguments)
        if arguments[3] == 2:  # the first step of the second epoch
            signal.raise_signal(signal.SIGTERM)
        return made

    with patch.object(fit, "_step", stopping), pytest.raises(Interrupted):
        run_here(settings, only=("student",))
    assert (tmp_path / "toy/student/step-00000003.ckpt").is_file()
    again = run_here(settings, resume=True, only=("student",))
    first, second = (
        VerifiedCheckpointIO().load_checkpoint(folder / "student/result.ckpt")["detector"] for folder in (run, again)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert any(name.endswith("delta.B") and bool(tensor.any()) for name, tensor in first.items())


@pytest.mark.slow
def test_a_detector_starts_from_a_delta_file_beside_its_control(run: Path, root: Path, tmp_path: Path) -> None:
    """The delta file of the first run's backbone is merged, and the backbone trained as a whole is exported whole."""
    changes = {"backbone": {"start": str(run / "export/detector/delta"), "deltas": [], "train": "full"}}
    manifest = json.loads((run / "export/detector/detector.json").read_text())
    changes["backbone"]["network"] = manifest["network"]
    made = run_here(detection(root, tmp_path, **changes, controls={"undistilled": True}))
    content = summary(made)
    rows = next(table for table in content["tables"] if table["title"] == "Detection on test")["rows"]
    assert [row["cells"][0] for row in rows] == ["undistilled", "student"] and content["verification"][0]["passed"]
    started, plain = (
        VerifiedCheckpointIO().load_checkpoint(made / name / "result.ckpt")["detector"]
        for name in ("student", "undistilled")
    )
    assert not all(torch.equal(started[name], plain[name]) for name in started)
    assert not (made / "export/detector/start").exists(), "all tensors of the backbone are in the file"
    load_detector(made / "export/detector", NetworkSettings(model="not read", pretrained=False))


DETECTORS: list[Detector.Settings] = [
    RetinaNet.Settings(channels=32, min_size=48, max_size=64),
    FCOS.Settings(channels=32, min_size=48, max_size=64),
    FasterRCNN.Settings(channels=32, min_size=48, max_size=64),
]


@pytest.mark.parametrize("settings", DETECTORS, ids=lambda settings: settings.type)
def test_every_detector_trains_what_it_should(settings: Detector.Settings) -> None:
    """Each way in turn: pyramid and heads always, deltas, or all of it; an image without objects is no error."""
    batch = [
        (torch.rand(3, 48, 64), Objects(torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([2]))),
        (torch.rand(3, 40, 40), Objects(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))),
    ]
    way = {"retinanet": "frozen", "fcos": "deltas", "faster_rcnn": "whole"}[settings.type]
    own = {
        "frozen": {},
        "deltas": {"deltas": [{"type": "low_rank", "rank": 2}]},
        "whole": {"train": "full", "batch_norm": "frozen"},
    }[way]
    named = {"network": {"model": "test_efficientnet", "pretrained": False}, **own}
    backbone = DetectorBackboneSettings.model_validate(named)
    assert backbone.way == way
    network = create_network(resolved(backbone), 0)
    built = build_detector(network, backbone, settings, ("a", "b"), seed=0)
    before = {name: tensor.clone() for name, tensor in built.module.state_dict().items()}
    built.module.train()
    loss = torch.stack([*built.losses(batch, torch.device("cpu")).values()]).sum()
    loss.backward()
    torch.optim.SGD([p for p in built.module.parameters() if p.requires_grad], lr=1e-3).step()
    changed = {name for name, tensor in built.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= built.own_state().keys()
    of_backbone = {name for name in changed if name.startswith("backbone.student.")}
    assert bool(of_backbone) == (way != "frozen")
    assert all(".delta." in name for name in of_backbone) or way == "whole"
    assert {name.partition(".")[0] for name in changed - of_backbone} > {"backbone"}


def test_levels_come_from_timm() -> None:
    network = create_network(NetworkSettings(model="test_efficientnet", pretrained=False), 0)
    strides = [(level.channels, level.stride) for level in levels_of(network, 8, None)]
    info: Any = network.model.feature_info
    assert strides == [(each["num_chs"], each["reduction"]) for each in info if each["reduction"] >= 8]
    vit = create_network(NetworkSettings(model="test_vit", pretrained=False), 0)
    [deepest] = levels_of(vit, 8, None)
    assert deepest.stage == vit.model.feature_info[-1]["module"] and deepest.stride == 16  # type: ignore[index]
    small = create_network(NetworkSettings(model="resnet20_cifar", pretrained=False), 0)
    with pytest.raises(DetectionError, match=r"has no map of stride 8 or more, only layer1 \(stride 1\)"):
        levels_of(small, 8, None)
    with pytest.raises(DetectionError, match=r"detector\.levels\.1: resnet20_cifar has no layer9"):
        levels_of(small, 8, ("layer3", "layer9"))


def test_objects_too_small_for_the_shallowest_map_are_named() -> None:
    """A square of 22 pixels has an IoU below 0.5 with RetinaNet's smallest anchor of stride 8, of 32 pixels."""
    images = scored(
        [boxes([[0, 0, 11, 11], [0, 0, 12, 12]], [0, 1]), boxes([[0, 0, 5, 5], [0, 0, 40, 40]], [2, 2], [True, False])]
    )
    assert [sides.tolist() for sides in images.sides(100, 200)] == [[22], [24], [80]]
    assert [sides.tolist() for sides in images.sides(100, 75)] == [[16.5], [18], [60]]
    [text] = small_objects(images, RetinaNet.Settings(min_size=100, max_size=200), Level("blocks.2", 40, 8))
    assert text.startswith("a: 1 of 1 objects are smaller than 23 pixels in images of 100, too small for the anchors")
    assert not [*small_objects(images, RetinaNet.Settings(min_size=100, max_size=200), Level("blocks.1", 24, 4))]
    assert len([*small_objects(images, FasterRCNN.Settings(min_size=100, max_size=200), Level("blocks.1", 24, 4))]) == 1
    assert not [*small_objects(images, FCOS.Settings(min_size=100, max_size=200), Level("blocks.2", 40, 8))]


def detected(boxes: list[list[float]], labels: list[int], scores: list[float], images: list[int]) -> Detections:
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores), torch.tensor(images)
    )


def scored(objects: list[Boxes]) -> DetectionImages:
    labels = np.full(len(objects), -1)
    return DetectionImages(Subset(None, np.arange(len(objects)), labels), objects, ("a", "b", "c"))  # type: ignore[arg-type]


def boxes(corners: list[list[float]], labels: list[int], ignored: list[bool] | None = None) -> Boxes:
    ignored = [False] * len(labels) if ignored is None else ignored
    return Boxes(np.array(corners, float).reshape(-1, 4), np.array(labels, int), np.array(ignored, bool), (50, 50))


def test_precision_by_hand() -> None:
    """Two objects of a, detected at IoU 1 and at IoU 0.6; one of b, beside a false alarm of a higher score."""
    images = scored([boxes([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], [0, 0, 1]), boxes([], [])])
    own = detected(
        [[0, 0, 10, 10], [20, 0, 30, 6], [0, 20, 10, 30], [0, 0, 9, 9]],
        [0, 0, 1, 1],
        [0.9, 0.8, 0.5, 0.7],
        [0, 0, 0, 1],
    )
    made = precision(own, images)
    assert made.by_category[2] is None
    a, b = made.by_category[:2]
    assert a is not None and b is not None
    # IoU 0.6 counts at three of ten thresholds: AP 1 there; at the others recall ends at a half, 51 of 101 points.
    assert a == pytest.approx(((3 + 7 * 51 / 101) / 10, 1.0)) and b == pytest.approx((0.5, 0.5))
    assert (made.map50, made.map) == pytest.approx((0.75, (a[0] + 0.5) / 2))


def test_ignored_objects_count_neither_way_and_nothing_found_is_zero() -> None:
    images = scored([boxes([[0, 0, 10, 10], [20, 0, 40, 20]], [0, 0], [False, True])])
    own = detected([[20, 0, 40, 20], [0, 0, 10, 10]], [0, 0], [0.9, 0.8], [0, 0])
    assert precision(own, images).map == pytest.approx(1.0)
    assert precision(detected([], [], [], []), images).map50 == 0.0
    with pytest.raises(DetectionError, match="no object"):
        precision(own, scored([boxes([], [])]))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data": {"size": 64}}, r"data\.size: kind: detection does not use it.*detector\.min_size"),
    ({"training": {"keep": "best"}}, r"training\.keep: kind: detection does not use it"),
    ({"detector": {"type": "retina"}}, r"detector\.type: unknown detector type 'retina'.*retinanet"),
    ({"detector": {"type": "fcos", "channels": 40}}, r"detector\.channels: fcos normalizes 32 groups"),
    ({"detector": {"max_size": 40}}, r"detector\.max_size: 40 is less than min_size"),
    ({"augment": ["RandomElasticTransform"]}, r"augment\.0\.type: RandomElasticTransform moves pixels"),
    ({"backbone": {"deltas": [{"type": "adalora"}]}}, r"backbone\.deltas\.0: adalora chooses its form"),
    ({"backbone": {"network": None}}, r"backbone\.network: a detector needs a backbone"),
    ({"controls": {"undistilled": True}}, r"controls\.undistilled: backbone\.start is not set"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_configs_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        detection(tmp_path, tmp_path, **changes)


def test_data_without_boxes_and_a_wrong_start_are_errors_before_training(root: Path, tmp_path: Path) -> None:
    tree = detection(root, tmp_path).model_dump(mode="json")
    tree["data"]["source"] = {"type": "digits"}
    with pytest.raises(DetectionError, match=r"data\.source: digits has no boxes; coco and voc have"):
        run_here(validate_tree(tree, "toy"))
    with pytest.raises(DetectionError, match=r"backbone\.start: .* is neither a run, a delta file nor a timm folder"):
        run_here(detection(root, tmp_path, backbone={"start": str(tmp_path)}))
    for path in root.glob("*.json"):
        content = json.loads(path.read_text()) | ({"annotations": []} if path.stem == "train" else {})
        (tmp_path / path.name).write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(root / "images")
    with pytest.raises(DetectionError, match="student: no training image has an object to learn from"):
        run_here(detection(tmp_path, tmp_path / "runs"))
    assert not any((tmp_path / "runs").rglob("*.ckpt"))


def test_a_network_with_deltas_that_cannot_be_merged_is_refused() -> None:
    network = create_network(NetworkSettings(model="resnet20_cifar", pretrained=False), 0)
    backbone = DetectorBackboneSettings.model_validate(
        {"network": {"model": "resnet20_cifar", "pretrained": False}, "deltas": [{"type": "low_rank", "rank": 2}]}
    )
    settings = RetinaNet.Settings(channels=32, levels=("layer3",))
    first = build_detector(network, backbone, settings, ("a",), seed=0)
    assert isinstance(first.module, nn.Module)
    with pytest.raises(DeltaError, match="already has"):
        build_detector(network, backbone, settings, ("a",), seed=0)
