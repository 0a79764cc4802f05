"""Images of 16 bits keep all of them: in the canvas, in batches, in views made on either side, in evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from augment.chain import eval_view
from augment.dual import AugmentSettings, DualAugment
from augment.placement import LoaderViews
from augment.views import InputSpec
from distill.data.canvas import PADDING, Canvas
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder

# A ramp of 256 levels within two of 256: nothing is left of it in 8 bits.
RAMP = (np.arange(256, dtype=np.uint16) + 30_000).reshape(16, 16)
SPEC = InputSpec((16, 16), (0.0,), (1.0,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, label in enumerate("abab"):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(np.rot90(RAMP, number).copy()).save(tmp_path / label / f"{number}.png")
    return tmp_path


def gray(root: Path, **changes) -> ExperimentData:
    settings = {"size": 16, "batch_size": 2, "workers": 0, "channels": 1, "val_fraction": 0, **changes}
    return ExperimentData(DataSettings(source=Folder.Settings(root=root, bits=changes.pop("bits", None)), **settings))


def test_batches_and_views_hold_every_level(root: Path) -> None:
    data = gray(root)
    assert data.source.bits == 16 and data.source.depth == 16
    batch = data.eval_batch("train", [0])
    assert batch.images.dtype == torch.uint16 and np.array_equal(batch.images[0, 0].numpy(), RAMP)
    expected = torch.from_numpy(RAMP.astype(np.float32) / 65535)
    torch.testing.assert_close(eval_view(batch.images, SPEC)[0, 0], expected, rtol=0, atol=1e-7)
    augment = DualAugment(AugmentSettings(policy="identical", student=[]), [SPEC], SPEC, seed=0)
    views = augment(batch.images, batch.ids, 0)
    for view in (views.student[0], views.teacher[0][0]):
        torch.testing.assert_close(view[0, 0], expected, rtol=0, atol=1e-7)
    rendered = LoaderViews(augment)(batch.images, batch.ids, 0)
    assert {view.dtype for view in rendered.values()} == {torch.uint16}
    torch.testing.assert_close(augment(rendered, batch.ids, 0).student[0][0, 0], expected, rtol=0, atol=1e-5)
    assert len(data.eval_batch("train", [0], InputSpec((12, 12), (0.0,), (1.0,))).images.int().unique()) > 100


def test_eight_bits_if_asked_for(root: Path) -> None:
    data = gray(root, depth=8)
    images = data.eval_batch("train", [0]).images
    assert images.dtype == torch.uint8 and images.unique().tolist() == [117, 118]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches_from_files_workers_and_the_device(root: Path, workers: int) -> None:
    plain = list(gray(root).train_loader())
    other = list(gray(root, **({"workers": 1} if workers else {"on_device": True})).train_loader())
    assert len(plain) == len(other) == 2
    for batch, same in zip(plain, other):
        assert same.images.dtype == torch.uint16
        assert torch.equal(batch.images.int(), same.images.int()) and torch.equal(batch.ids, same.ids)


def test_operations_of_the_loader_get_floats(root: Path) -> None:
    ops = [{"type": "HorizontalFlip", "p": 1.0}]
    flipped = gray(root, loader_ops=ops).train_batch(0, 0)
    plain = gray(root).train_batch(0, 0)
    assert flipped.images.dtype == torch.uint16 and torch.equal(flipped.images.int(), plain.images.int().flip(3))


def test_images_of_eight_bits_beside_them_are_widened(root: Path) -> None:
    Image.new("RGB", (16, 16), (10, 200, 0)).save(root / "b" / "color.jpg", quality=100)
    data = gray(root, channels=3)
    images = data.eval_batch("train", range(len(data.subset("train")))).images
    color = images[data.subset("train").ids.index("b/color.jpg")].int()
    assert (color % 257 == 0).all() and abs(int(color[1, 0, 0]) - 200 * 257) <= 3 * 257


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_canvas_resizes_as_that_of_eight_bits_but_finer(fit: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 44, channels), dtype=np.uint8)
    deep = image.astype(np.uint16) * 257
    canvas = Canvas.of_training(16, fit, channels, depth=16)
    fitted = canvas(deep)
    assert fitted.dtype == np.uint16 and np.array_equal(fitted, canvas(image)), "widened first"
    assert np.abs(fitted / 257 - Canvas.of_training(16, fit, channels)(image)).max() <= 1.01, "two roundings to 8 bits"
    if fit == "pad":
        assert fitted[0, 0].tolist() == [257 * PADDING[channel % 3] for channel in range(channels)]
        assert Canvas.of_input((16, 8), (0.5,) * channels, fit, 16).fill == (32768,) * channels
