"""Formats of programs: the student's logits in each, safe artifacts, and one function that opens all of them."""

import errno
import json
import logging
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from export_students import LABELS, make_backbone, train
from torch import Tensor, nn

import distill.export
from distill.deltas.adapter import Adapter
from distill.deltas.low_rank import LowRank
from distill.export.artifact import MANIFEST, ProgramManifest, new_folder
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing, Result
from distill.export.settings import TARGETS, ExportSettings
from distill.export.targets import base
from distill.export.targets.base import About
from distill.export.targets.program import ProgramTarget
from distill.export.targets.timm_folder import TimmFolder
from distill.export.verify import Comparison

ROOT = Path(__file__).parents[2]
SIZE = 64
PREPROCESSING = Preprocessing(input_size=(3, SIZE, SIZE), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
ABOUT = About("some_tag", LABELS, PREPROCESSING, (Result(name="test/top1", value=0.5),))
PIXELS = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
IMAGES = (
    PIXELS.permute(0, 3, 1, 2).contiguous().float() / 255 - torch.tensor(PREPROCESSING.mean).view(3, 1, 1)
) / torch.tensor(PREPROCESSING.std).view(3, 1, 1)

SLOW = pytest.mark.slow
FORMATS = {
    "onnx": {"type": "onnx"},
    "pt2": {"type": "pt2"},
    "onnx-float16": {"type": "onnx", "dtype": "float16"},
    "pt2-uint8": {"type": "pt2", "input": "uint8"},
    "pte": {"type": "pte", "batch": 2},
    "openvino-float16-uint8": {"type": "openvino", "weights": "float16", "input": "uint8"},
}
"""Folder → settings. Options are spread over the formats, since each export takes seconds."""
EVERY = [pytest.param(name, marks=[] if name.startswith("pt2") else SLOW) for name in FORMATS]


def target(**settings: Any) -> ProgramTarget:
    made = TARGETS.settings_of(settings["type"]).model_validate(settings)
    return made.component(made)  # type: ignore[misc,return-value]


@cache
def student() -> nn.Module:
    """With a delta that can be merged, and one that cannot."""
    return train(make_backbone("test_resnet"), [LowRank.Settings(rank=2), Adapter.Settings()]).model


@torch.no_grad()
def logits(images: Tensor = IMAGES) -> Tensor:
    return student().eval()(images)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a format, written once."""
    root = tmp_path_factory.mktemp("formats")

    @cache
    def folder(name: str) -> Path:
        made = target(**FORMATS[name])
        assert made.folder == name
        size = made.write(student(), root / name, ABOUT)
        assert size == (root / name / made.weights).stat().st_size
        return root / name

    return folder


@pytest.mark.parametrize("name", EVERY)
def test_a_format_gives_the_logits_of_the_student(exported: Callable[[str], Path], name: str) -> None:
    folder, made = exported(name), target(**FORMATS[name])
    run = distill.export.open(folder)
    given = PIXELS if run.input.dtype == "uint8" else IMAGES
    result = run(given)
    assert isinstance(result, Tensor) and result.dtype == torch.float32 and run.labels == LABELS
    difference = float((result - logits()).abs().max() / logits().abs().max())
    assert difference <= made.tolerance and torch.equal(result.argmax(1), logits().argmax(1))
    assert (made.tolerance, made.agreement) == ((1e-2, 0.998) if "float16" in name else (1e-5, 1.0))
    assert torch.equal(made.session(folder)(IMAGES), result), "verification gives normalized images"
    as_arrays = run(given[:3].numpy())  # of a program whose batch is 2, the rest of the second is filled
    assert isinstance(as_arrays, np.ndarray) and np.abs(as_arrays - result[:3].numpy()).max() < 1e-5
    assert run(given[:0]).shape == (0, len(LABELS))
    with pytest.raises(ExportError, match=r"expected images \[.*size and dtype of an exported program are fixed"):
        run(IMAGES[:, :, :32])


@pytest.mark.parametrize("name", EVERY)
def test_nothing_of_this_machine_is_inside(exported: Callable[[str], Path], name: str) -> None:
    marks = [str(ROOT), "site-packages", str(Path.home()), str(exported(name).parent), "export_students"]
    for path in exported(name).iterdir():
        data = path.read_bytes()
        assert not [mark for mark in marks if mark.encode() in data], path.name
    manifest = ProgramManifest.model_validate({k: v for k, v in _content(exported(name)).items() if k != "seal"})
    assert set(manifest.files) == {path.name for path in exported(name).iterdir()} - {MANIFEST}
    assert {"torch", "timm", *target(**FORMATS[name]).needs.values()} == set(manifest.packages)
    assert (manifest.input.height, manifest.input.batch) == (SIZE, 2 if name == "pte" else None)
    card = (exported(name) / "README.md").read_text()
    assert f"{SIZE}, {SIZE}" in card or f"{SIZE}, 3" in card
    assert "height and width are fixed" in card and ("exactly 2" in card) == (name == "pte")
    assert "| test/top1 | 0.5 |" in card and "daisy, rose" in card


def _content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


@pytest.mark.parametrize("name", EVERY)
def test_a_flipped_bit_is_refused_before_a_loader_sees_a_byte(
    exported: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = exported(name), target(**FORMATS[name])
    loaded: list[str] = []
    monkeypatch.setattr(type(made), "load", lambda self, files, manifest: loaded.append(name))
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for place in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[place] ^= 4
            path.write_bytes(bad)
            for use in (distill.export.open, made.session, made.check):
                with pytest.raises(ExportError, match="damaged"):
                    use(folder)
        path.unlink()
        with pytest.raises(ExportError, match="cannot be read"):
            distill.export.open(folder)
        path.write_bytes(good)
    assert not loaded
    distill.export.open(folder)
    assert loaded == [name]


@pytest.mark.parametrize("name", [EVERY[0], EVERY[1], EVERY[4]])
def test_an_equal_export_has_equal_bytes(exported: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    made = target(**FORMATS[name])
    size = (exported(name) / made.weights).stat().st_size
    assert made.current(student(), exported(name), ABOUT) == size
    made.write(student(), tmp_path / name, ABOUT)
    for path in exported(name).iterdir():
        assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path.name
    other = About("some_tag", LABELS[::-1], PREPROCESSING, ABOUT.results)
    assert made.current(student(), exported(name), other) is None
    assert made.current(make_backbone("test_resnet"), exported(name), ABOUT) is None


@pytest.mark.slow
def test_metadata_of_onnx(exported: Callable[[str], Path]) -> None:
    import onnx

    model = onnx.load(exported("onnx") / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert Preprocessing.model_validate_json(metadata["preprocessing"]) == PREPROCESSING
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, SIZE, SIZE]
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["images", "logits"]


def test_an_interrupted_or_failing_export_leaves_what_was_there(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = target(type="pt2")
    folder = tmp_path / "pt2"

    def full(self: Any, program: Any, to: Path, about: About) -> None:
        (to / "model.pt2").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(made), "convert", full)
        with pytest.raises(ExportError, match="pt2: cannot be written, and is as it was: No space left on device"):
            made.write(student(), folder, ABOUT)
        assert not list(tmp_path.iterdir())
    made.write(student(), folder, ABOUT)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt), new_folder(folder) as written:
        (written / "model.pt2").write_bytes(b"half")
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["pt2"]


def test_two_exports_at_once_do_not_mix(tmp_path: Path) -> None:
    folder, barrier, errors = tmp_path / "out", threading.Barrier(4, timeout=30), []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with new_folder(folder) as written:
                    for name in "ab":
                        (written / name).write_text(str(number))
                    barrier.wait()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (folder / "a").read_text() == (folder / "b").read_text()


def test_an_operator_that_a_format_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.special.bessel_j0(x)

    model = make_backbone("test_resnet")
    model.layer2 = nn.Sequential(model.layer2, Bessel())
    level = logging.getLogger().level
    for name in ("onnx", "openvino"):
        lacking = r"cannot hold aten\.special_bessel_j0\.default, which layer 'layer2\.1' of the student uses"
        with pytest.raises(ExportError, match=lacking):
            target(type=name).write(model, tmp_path / name, ABOUT)
    assert not list(tmp_path.iterdir())
    assert logging.getLogger().level == level, "the caller's logging stays as it is"


def test_a_student_that_depends_on_values_is_an_error_before_training(tmp_path: Path) -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.numpy().sum() > 0 else -x

    model = make_backbone("test_resnet")
    model.layer2 = nn.Sequential(model.layer2, Chooses())
    with pytest.raises(ExportError, match=r"cannot be traced by torch\.export"):
        target(type="onnx").rehearse(model, tmp_path / "onnx", ABOUT)
    assert not list(tmp_path.iterdir()), "a rehearsal writes nothing"


def test_formats_that_are_not_installed_are_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = {"onnxruntime", "executorch", "ncnn", "pnnx"}
    monkeypatch.setattr(base, "find_spec", lambda name: None if name in absent else object())
    line = r"Install it: uv pip install 'delta-distill\[executorch,onnx\]'$"
    with pytest.raises(ExportError, match=r"ONNX needs onnxruntime; ExecuTorch needs executorch\. " + line):
        base.require([target(type="onnx"), target(type="pte"), target(type="pt2")])
    with pytest.raises(ExportError, match=r"ONNX needs onnxruntime"):
        target(type="onnx").write(student(), tmp_path / "onnx", ABOUT)


def test_labels_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="2 labels for 5 classes"):
        target(type="pt2").write(student(), tmp_path / "pt2", About("x", ("a", "b"), PREPROCESSING))


def test_two_settings_of_a_format_have_folders_of_their_own() -> None:
    both = ExportSettings.model_validate({"targets": ["onnx", {"type": "onnx", "dtype": "float16"}]})
    assert [made.folder for made in both.make_targets()] == ["onnx", "onnx-float16"]
    with pytest.raises(ValueError, match="onnx and onnx both have the folder 'onnx'"):
        ExportSettings.model_validate({"targets": ["onnx", "onnx"]})


def test_timm_folders_open_alike(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=len(LABELS)).eval()
    TimmFolder(TimmFolder.Settings()).write(model, tmp_path / "merged", ABOUT)
    run = distill.export.open(tmp_path / "merged")
    with torch.no_grad():
        expected = model(IMAGES)
    # Another number of threads, or a batch cut elsewhere, may add in another order.
    torch.testing.assert_close(run(IMAGES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(IMAGES.numpy()), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert run.labels == LABELS and run.input.shape == (3, SIZE, SIZE)
    (tmp_path / "merged" / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="damaged"):
        distill.export.open(tmp_path / "merged")
    with pytest.raises(ExportError, match="cannot be read"):
        distill.export.open(tmp_path)


def test_a_class_outside_the_package_is_imported_only_when_allowed(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    class Own(type(target(type="pt2"))):  # type: ignore[misc]
        title, folder = "own", "own"

    name = f"{__name__}:Own"
    vars(sys.modules[__name__])["Own"] = Own
    Own.__qualname__ = "Own"
    settings = Own.Settings(type=name)
    Own(settings).write(student(), tmp_path / "own", ABOUT)
    with pytest.raises(ExportError, match="allow_plugins=True imports it"):
        distill.export.open(tmp_path / "own")
    run = distill.export.open(tmp_path / "own", allow_plugins=True)
    torch.testing.assert_close(run(IMAGES), logits(), rtol=1e-5, atol=1e-6)


def test_a_share_of_equal_top1_can_be_enough() -> None:
    fields = {"what": "int8", "against": "live model", "relative_difference": 0.1, "tolerance": 0.2, "images": 100}
    assert Comparison(**fields, same_top1=98, agreement=0.98).passed
    assert not Comparison(**fields, same_top1=97, agreement=0.98).passed
    assert not Comparison(**fields, same_top1=99).passed
    assert not Comparison(**{**fields, "relative_difference": 0.3}, same_top1=100, agreement=0.98).passed
