"""albumentations in the loader: repeatable, different by sample and epoch, strict about arguments."""

import pytest
import torch
from pydantic import ValidationError
from toy_source import toy

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
        ({"type": "GaussNoise", "std_range": "much"}, "type", "GaussNoise refuses its arguments: "),
        ("Compose", "type", "no transform 'Compose'"),
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
