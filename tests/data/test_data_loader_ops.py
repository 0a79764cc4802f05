"""albumentations in the loader: repeatable, different by sample and epoch, strict about arguments."""

from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy_source import toy

from augment.loader import LoaderOp, LoaderOps
from distill.data.base import DataError

NOISE = {"type": "GaussNoise", "std_range": (0.2, 0.3), "p": 1}


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *a, **k: pytest.fail("asked the network"))


def noise(workers: int = 0, seed: int = 0) -> list[dict[int, torch.Tensor]]:
    """Two epochs: id → image."""
    loader = toy(samples=16, batch_size=4, workers=workers, seed=seed, loader_ops=[NOISE]).train_loader()
    return [{int(id): image for batch in loader for image, id in zip(batch.images, batch.ids)} for _ in range(2)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_differs_by_sample_and_epoch_and_not_by_workers() -> None:
    first, second = noise()
    for id, image in first.items():
        assert not torch.equal(image, second[id])
    residues = [image.float() - image.float().mean() for image in first.values()]
    assert not any(torch.equal(residues[0], other) for other in residues[1:])
    for again, epoch in zip(noise(workers=4), (first, second)):
        assert all(torch.equal(again[id], image) for id, image in epoch.items())
    other = noise(seed=1)[0]
    assert not any(torch.equal(other[id], image) for id, image in first.items())


def test_evaluation_is_left_alone() -> None:
    batch = next(iter(toy(loader_ops=[NOISE]).eval_loader("val")))
    assert (batch.images[3] == 3).all()


@pytest.mark.parametrize(
    ("op", "path", "message"),
    [
        ("GausNoise", "type", "did you mean 'GaussNoise'"),
        ({"type": "GaussNoise", "std_rang": 1}, "std_rang", "no argument 'std_rang'; did you mean 'std_range'"),
        ({"type": "GaussNoise", "std_range": "much"}, "std_range", "GaussNoise refuses its arguments: "),
        ({"type": "HorizontalFlip", "p": 2}, "p", "Input should be less than or equal to 1, not 2"),
        ("BasicTransform", "type", "no transform 'BasicTransform'"),
        ("Normalize", "type", "Normalize: leave it out; operations get and give images in"),
        ("ToFloat", "type", "ToFloat: leave it out"),
        ("ToTensorV2", "type", "ToTensorV2: leave it out"),
        ("OneOf", "type", "OneOf refuses its arguments"),
        ({"type": "OneOf", "transforms": []}, "transforms", "transforms has no transform"),
        ({"type": "OneOf", "transforms": ["Bluur"]}, "transforms.0.type", "did you mean 'Blur'"),
        (
            {"type": "Compose", "transforms": [{"type": "Blur", "limit": 3}]},
            "transforms.0.limit",
            "no argument 'limit'",
        ),
        ({"type": "SomeOf", "transforms": ["Blur", {"p": 1}]}, "transforms.1", "a mapping with 'type'"),
        ({"type": "SomeOf", "transforms": ["Blur", "Normalize"]}, "transforms.1.type", "Normalize: leave it out"),
        ({"std_range": 1}, "", "a mapping with 'type'"),
    ],
)
def test_a_misspelt_op_or_argument_is_an_error(op, path: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        toy(loader_ops=[op])
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == ".".join(filter(None, ["loader_ops.0", path]))


def test_ops_are_written_as_they_are_read() -> None:
    assert [op.model_dump(mode="json") for op in toy(loader_ops=[NOISE, "HorizontalFlip"]).settings.loader_ops] == [
        {"type": "GaussNoise", "std_range": [0.2, 0.3], "p": 1},
        "HorizontalFlip",
    ]


def test_an_op_that_changes_the_canvas_is_an_error() -> None:
    ops = [{"type": "Resize", "height": 4, "width": 4}]
    with pytest.raises(DataError, match=r"train/\d+: loader_ops \['Resize'\] made uint8 \[4, 4, 3\]"):
        next(iter(toy(loader_ops=ops).train_loader()))


def drawn(ops, samples: int = 64, epoch: int = 0) -> dict[str, np.ndarray]:
    """The images that the transforms make of a gray ramp, by sample."""
    made = LoaderOps([LoaderOp.model_validate(op) for op in ops], seed=0)
    ramp = np.tile(np.arange(64, 192, 2, dtype=np.uint8)[:, None, None], (1, 64, 3))
    return {f"{n}": made(ramp.copy(), epoch, f"{n}") for n in range(samples)}


NESTED = {
    "type": "OneOf",
    "p": 0.8,
    "transforms": [
        {"type": "InvertImg", "p": 1},
        {"type": "Sequential", "p": 1, "transforms": ["VerticalFlip", {"type": "Posterize", "p": 1}]},
        {"type": "SomeOf", "n": 1, "transforms": [{"type": "ToGray", "p": 1}, {"type": "Solarize", "p": 1}]},
    ],
}


def test_containers_hold_transforms_and_containers() -> None:
    first, again = drawn([NESTED, {"type": "Compose", "transforms": ["HorizontalFlip"]}]), drawn([NESTED])
    assert all(np.array_equal(image, again[id]) for id, image in first.items()), "a ramp is the same after a flip"
    assert len({image.tobytes() for image in first.values()}) > 4
    other = drawn([NESTED], epoch=1)
    assert not all(np.array_equal(image, other[id]) for id, image in first.items())
    op = LoaderOp.model_validate(NESTED)
    assert LoaderOp.model_validate(op.model_dump()).model_dump() == NESTED


def test_transforms_draw_by_themselves() -> None:
    """Two with p = 0.5 do not hit the same samples, as they would with the one seed that albumentations gives all."""
    made = drawn([{"type": "InvertImg", "p": 0.5}, {"type": "VerticalFlip", "p": 0.5}], samples=200)
    counts = Counter(image.tobytes() for image in made.values())
    assert len(counts) == 4 and min(counts.values()) > 25


def test_a_harmless_warning_is_shown_once(caplog) -> None:
    op = {"type": "ShiftScaleRotate", "p": 1}
    for _ in range(2):
        assert LoaderOp.model_validate(op).build() is not None
    shown = [record.getMessage() for record in caplog.records if "ShiftScaleRotate" in record.getMessage()]
    assert shown == [
        "data.loader_ops: ShiftScaleRotate: ShiftScaleRotate is a special case of Affine transform. "
        "Please use Affine transform instead."
    ]
    assert len(drawn([op], samples=2)) == 2
