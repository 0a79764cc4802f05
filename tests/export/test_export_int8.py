"""int8 programs: calibrated on given images, right on this processor, and refused without images that fit."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from export_students import LABELS, make_backbone, train
from torch import Tensor, fx, nn

import distill.export
from distill.deltas.adapter import Adapter
from distill.deltas.low_rank import LowRank
from distill.export.artifact import read_artifact
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing
from distill.export.settings import TARGETS
from distill.export.targets.base import About, CalibrationImages
from distill.export.targets.quantized import QuantizedTarget
from distill.export.verify import verify

SIZE = 32
PREPROCESSING = Preprocessing(input_size=(3, SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PIXELS = torch.randint(0, 256, (24, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(4))
IMAGES = PIXELS / 127.5 - 1
IDS = tuple(f"train/{index}" for index in range(16))
ABOUT = About("some_tag", LABELS, PREPROCESSING, calibration=CalibrationImages(IMAGES[:16], IDS))


def target(**settings: Any) -> QuantizedTarget:
    made = TARGETS.settings_of(settings["type"]).model_validate(settings)
    return made.component(made)  # type: ignore[misc,return-value]


@cache
def student(network: str) -> nn.Module:
    return train(make_backbone(network), [LowRank.Settings(rank=2), Adapter.Settings()]).model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"type": "onnx_int8"},
        {"type": "onnx_int8", "weights": 7, "input": "uint8"},
        {"type": "pte_int8", "batch": 8},
        {"type": "openvino_int8"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_program_in_int8(settings: dict[str, Any], tmp_path: Path) -> None:
    made = target(**settings)
    # ExecuTorch converts an EfficientNet twice as long.
    live = student("test_resnet" if made.folder == "pte-int8" else "test_efficientnet")
    assert made.calibrates and made.agreement == 0.97
    folder = tmp_path / made.folder
    size = made.write(live, folder, ABOUT)
    manifest, files = read_artifact(folder)
    assert manifest.calibration == IDS and "vnni" in manifest.machine
    assert size == len(files[made.weights]) < 4 * sum(p.numel() for p in live.parameters())
    with torch.no_grad():
        expected = live(IMAGES)
    session = made.session(folder)
    result = session(IMAGES)
    error = float((result - expected).abs().max() / expected.abs().max())
    assert 1e-4 < error < 0.2, "it is rounded"
    precise = settings["type"] == "onnx_int8" and settings.get("weights", 8) == 8
    assert manifest.options == ({"session.x64quantprecision": "1"} if precise else {})
    others = made.other_sessions(folder)
    assert [*others] == (["in fp32", *["default session"] * precise] if "onnx" in settings["type"] else [])
    for name, other in others.items():
        assert other(IMAGES).shape == result.shape, name
    if others:
        assert float((others["in fp32"](IMAGES) - result).abs().max() / expected.abs().max()) < 0.05
    program = distill.export.open(folder)
    assert program.labels == LABELS
    if precise:
        again = tmp_path / "again"
        made.write(live, again, ABOUT)
        assert read_artifact(again)[1][made.weights] == files[made.weights]
        report = verify({folder: made}, IMAGES, model=live, min_images=1, fresh=False)
        beside = {each.what: each for each in report.comparisons}
        assert {*beside} == {"ONNX int8", "ONNX int8 in fp32", "ONNX int8 default session"}
        assert beside["ONNX int8"].agreement == 0.97 and beside["ONNX int8 default session"].passed


def images(*shape: int) -> CalibrationImages:
    return CalibrationImages(torch.zeros(shape), tuple(map(str, range(shape[0]))))


@pytest.mark.parametrize("kind", ["onnx_int8", "pte_int8", "openvino_int8"])
@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        (None, "needs training images"),
        (images(1, 3, SIZE, SIZE), r"1 image\(s\) to calibrate on; give 8 or more"),
        (images(8, 3, 16, 16), "are 3 x 16 x 16, the student's input is 3 x 32 x 32"),
        (CalibrationImages(torch.full((8, 3, SIZE, SIZE), torch.nan), IDS[:8]), "not finite"),
    ],
)
def test_images_that_cannot_calibrate_are_refused(
    kind: str, calibration: CalibrationImages | None, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=text):
        target(type=kind).write(nn.Identity(), tmp_path / "x", replace(ABOUT, calibration=calibration))
    assert not [*tmp_path.iterdir()]


class _Annotation:
    def __init__(self, output_qspec: object = None, _annotated: bool = False):
        self.output_qspec, self._annotated = output_qspec, _annotated


def test_a_range_is_observed_behind_a_clip_that_alone_reads_the_layer() -> None:
    from distill.export.targets.pte_int8 import move_ranges_behind_clips

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            other = self.second(nn.functional.relu6(self.first(x)))
            return nn.functional.relu6(other) + other

    graph: fx.Graph = torch.export.export(Layers(), (torch.zeros(2, 4),)).graph
    layers = [node for node in graph.nodes if "linear" in str(node.target)]
    clips = [node for node in graph.nodes if str(node.target) in ("aten.relu6.default", "aten.hardtanh.default")]
    assert len(layers) == len(clips) == 2
    for node in layers:
        node.meta["quantization_annotation"] = _Annotation("range", True)
    move_ranges_behind_clips(graph)
    first, second = (node.meta["quantization_annotation"].output_qspec for node in layers)
    assert first is None and second == "range"
    assert clips[0].meta["quantization_annotation"].output_qspec == "range"
    assert "quantization_annotation" not in clips[1].meta
