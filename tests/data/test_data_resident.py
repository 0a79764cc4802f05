"""A split held on the device: the loader's very batches, decoded once."""

from typing import Any

import numpy as np
import pytest
import torch
from toy_source import ToySamples, toy

from distill.data import resident
from distill.data.base import DataError, Sample
from distill.data.experiment_data import ExperimentData
from distill.data.loader import Loader
from distill.data.reader import Batch

CORRUPT = {"faults": {3: "corrupt", 30: "corrupt"}, "corrupt_budget": 0.1}
HELD_OUT = {"splits": ("train", "test"), "val_fraction": 0.25}


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Images with a pixel of their own each, wider than high; returns the ids in the order of their decoding."""
    plain, decoded = ToySamples.__getitem__, []

    def drawn(samples: ToySamples, index: int) -> Sample:
        sample = plain(samples, index)
        decoded.append(sample.id)
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        return sample._replace(image=pixels)

    monkeypatch.setattr(ToySamples, "__getitem__", drawn)
    return decoded


def both(**settings: Any) -> tuple[ExperimentData, ExperimentData]:
    return toy(**settings), toy(**settings, on_device=True)


def assert_same(streamed: Batch, resident: Batch) -> None:
    for name in ("images", "labels", "ids"):
        expected, actual = getattr(streamed, name), getattr(resident, name)
        assert expected.dtype == actual.dtype and expected.is_contiguous() and torch.equal(actual, expected), name
    assert streamed.view_pixels is None and resident.view_pixels is None


def assert_same_pass(streamed: Loader, resident: Loader, batches: int) -> None:
    passes = list(streamed), list(resident)
    assert len(passes[0]) == len(passes[1]) == batches
    for pair in zip(*passes):
        assert_same(*pair)


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({}, 5),
        ({"size": 12, "fit": "pad", "samples": 43}, 6),
        (CORRUPT, 5),
        (HELD_OUT, 4),
        (HELD_OUT | CORRUPT, 4),
        ({"labels_per_class": 2}, 5),
        ({"samples": 5}, 1),
        ({"workers": 2}, 5),
    ],
)
def test_the_same_batches_every_epoch(settings: dict[str, Any], batches: int) -> None:
    plain, held = (module.train_loader() for module in both(**settings))
    for _ in range(3):
        assert_same_pass(plain, held, batches)
    assert held.unreadable == plain.unreadable
    plain.close()


def test_the_other_splits_and_the_labeled_samples() -> None:
    for settings in ({}, HELD_OUT | {"labels_per_class": 2}):
        plain, held = both(samples=44, **settings)
        for split in ("val", "test"):
            assert_same_pass(plain.eval_loader(split), held.eval_loader(split), -(-len(plain.subset(split)) // 8))
        labeled = plain.labeled_loader()
        assert_same_pass(labeled, held.labeled_loader(), len(labeled))
        few = plain.train_loader(labeled_only=True)
        assert_same_pass(few, held.train_loader(labeled_only=True), len(few))


def test_resumed_in_the_middle() -> None:
    plain, held = (module.train_loader() for module in both())
    for loader in (plain, held):
        for _, _ in zip(loader, range(2)):
            pass
    assert plain.state_dict() == held.state_dict()
    others = [module.train_loader() for module in both()]
    for loader in others:
        loader.load_state_dict(plain.state_dict())
    assert_same_pass(*others, len(plain) - plain.state_dict()["batches"])
    assert_same_pass(*others, 5)


def test_shared_out_over_ranks() -> None:
    whole = list(toy(samples=42, on_device=True).train_loader())
    for rank in range(2):
        plain, held = both(samples=42, world_size=2, rank=rank)
        assert_same_pass(plain.train_loader(), held.train_loader(), 6)
        assert_same_pass(plain.eval_loader("test"), held.eval_loader("test"), 6)
        for batch, rank_batch in zip(whole, held.train_loader()):
            assert torch.equal(batch.images[4 * rank : 4 * rank + 4], rank_batch.images)


def test_decoded_once_for_all_who_use_it(noise: list[str]) -> None:
    module = toy(samples=30, splits=("train", "test"), val_fraction=0.2, labels_per_class=1, on_device=True)
    loader = module.train_loader()
    assert noise == [], "not before it is used: a length or a position in the order needs no image"
    summary = loader.reader.prepare()
    assert summary.startswith("30 images of the train split at 8 × 8 pixels are on cpu: 0.0 MB, decoded in ")
    assert len(noise) == 30 and loader.reader.prepare() == ""
    for again in (loader, module.eval_loader("val"), module.labeled_loader(), module.with_all_labels().train_loader()):
        list(again)
    assert len(noise) == 30
    assert (next(iter(module.with_all_labels().train_loader())).labels >= 0).all()
    list(module.eval_loader("test"))
    assert len(noise) == 60


def test_single_batches_decode_no_split(noise: list[str]) -> None:
    plain, held = both(**HELD_OUT)
    batch = plain.train_batch(2, 1)
    noise.clear()
    assert_same(batch, held.train_batch(2, 1))
    assert_same(batch, held.batch_of_ids(batch.ids.tolist(), 2))
    assert_same(plain.eval_batch("val", [3, 1]), held.eval_batch("val", [3, 1]))
    assert len(noise) == 8 + 8 + 2 + 2
    list(held.train_loader())
    assert_same(list(held.train_loader())[1], held.train_batch(0, 1))


def test_the_budget_of_unreadable_images() -> None:
    with pytest.raises(DataError, match=r"2 unreadable image\(s\), 1 allowed here.*\n.*train/003.*\n.*train/030"):
        list(toy(**CORRUPT | {"corrupt_budget": 0.03}, on_device=True).train_loader())
    held = toy(**CORRUPT, on_device=True)
    list(held.train_loader())
    with pytest.raises(DataError, match="test/003: cannot be decoded"):
        list(held.eval_loader("test"))
    with pytest.raises(DataError, match="40 unreadable"):
        list(toy(faults=dict.fromkeys(range(40), "corrupt"), corrupt_budget=0.9, on_device=True).train_loader())
    with pytest.raises(DataError, match=r"(?s)train/011: .*a bug in a source"):
        list(toy(faults={11: "bug"}, on_device=True).train_loader())


def test_too_little_memory_is_told_before_anything_is_decoded(
    noise: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    required = 40 * 3 * 8 * 8
    monkeypatch.setattr(resident, "free_bytes", lambda device: required - 1)
    words = r"data\.on_device: the 40 images of the train split take 7,680 bytes at 8 × 8 pixels, and cpu has 7,679"
    with pytest.raises(DataError, match=words):
        toy(on_device=True).train_loader().reader.prepare()
    assert noise == []
    for free in (required, None):
        monkeypatch.setattr(resident, "free_bytes", lambda device, free=free: free)
        toy(on_device=True).train_loader().reader.prepare()


def test_memory_of_a_gpu_counts_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert resident.free_bytes(torch.device("cuda", 0)) == 120
    monkeypatch.setattr(resident, "free_memory", lambda: 7)
    assert resident.free_bytes(torch.device("cpu")) == 7


def test_operations_of_the_loader_are_refused() -> None:
    ops = [{"type": "GaussNoise", "p": 1.0}]
    with pytest.raises(ValueError, match="the loader's workers run loader_ops, and with on_device there are none"):
        toy(loader_ops=ops, on_device=True)
