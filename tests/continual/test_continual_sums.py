"""Sums equal those of all images at once, whatever the order, the batches, the parts and the restarts."""

import numpy as np
import pytest
import torch

from distill.continual.errors import ContinualError
from distill.continual.heads.sums import Sums

NAMES = ["oak", "ash", "elm", "fir"]
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(40, 3, generator=GENERATOR) * 10 + 100
LABELS = torch.randint(0, 4, (40,), generator=GENERATOR)


def whole(moments="common"):
    sums = Sums(3, moments)
    sums.add(FEATURES, LABELS, NAMES)
    return sums


def assert_equal(sums, expected):
    assert sums.classes == expected.classes and torch.equal(sums.counts, expected.counts)
    torch.testing.assert_close(sums.firsts, expected.firsts, rtol=1e-12, atol=0)
    torch.testing.assert_close(sums.seconds, expected.seconds, rtol=1e-12, atol=0)


def test_equal_the_definition():
    sums = whole("class")
    assert sums.classes == ("ash", "elm", "fir", "oak") and sums.images == 40
    for column, name in enumerate(sums.classes):
        rows = FEATURES[NAMES.index(name) == LABELS].double()
        assert sums.counts[column] == len(rows)
        torch.testing.assert_close(sums.firsts[:, column], rows.sum(0))
        torch.testing.assert_close(sums.means[:, column], rows.mean(0))
        torch.testing.assert_close(sums.seconds[column], rows.T @ rows)
    torch.testing.assert_close(whole().seconds, sums.seconds.sum(0))
    assert whole("none").seconds.shape == (0, 0)


@pytest.mark.parametrize("moments", ["none", "common", "class"])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_any_order_batch_and_class_by_class(moments, batch):
    shuffled, by_class = Sums(3, moments), Sums(3, moments)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(batch))
    for rows in order.split(batch):
        shuffled.add(FEATURES[rows], LABELS[rows], NAMES)
    for label in (2, 0, 3, 1):  # a stream of tasks of one class
        rows = label == LABELS
        by_class.add(FEATURES[rows], torch.zeros(int(rows.sum()), dtype=torch.int64), [NAMES[label]])
    assert_equal(shuffled, whole(moments))
    assert_equal(by_class, whole(moments))


@pytest.mark.parametrize("moments", ["none", "common", "class"])
def test_parts_add_and_subtract(moments):
    first, second = Sums(3, moments), Sums(3, moments)
    first.add(FEATURES[:5], LABELS[:5], NAMES)
    second.add(FEATURES[5:], LABELS[5:], NAMES)
    assert_equal(first + second, whole(moments))
    assert_equal(second + first, whole(moments))
    assert_equal(whole(moments) - second, first)
    assert not (whole(moments) - whole(moments)).classes


def test_more_than_there_are_cannot_be_subtracted():
    rest = Sums(3)
    rest.add(FEATURES[:1], torch.tensor([0]), ["oak"])
    with pytest.raises(ContinualError, match="1 images of class 'oak' cannot be subtracted from 0"):
        rest - rest - rest


def test_images_without_a_label_are_left_out():
    sums = Sums(3)
    sums.add(torch.cat([FEATURES, FEATURES[:2]]), torch.cat([LABELS, torch.tensor([-1, -1])]), NAMES)
    assert_equal(sums, whole())
    sums.add(FEATURES[:2], torch.tensor([-1, -1]), [])
    assert_equal(sums, whole())


@pytest.mark.parametrize("moments", ["none", "common", "class"])
def test_a_file_holds_the_same_bits(moments, tmp_path):
    sums = whole(moments)
    sums.save(tmp_path / "sums.safetensors")
    loaded = Sums.load(tmp_path / "sums.safetensors")
    assert loaded.classes == sums.classes and loaded.moments == moments
    for name in ("counts", "firsts", "seconds"):
        assert torch.equal(getattr(loaded, name), getattr(sums, name)), name
    loaded.add(FEATURES[:3], LABELS[:3], NAMES)  # a restart goes on to the same bits
    sums.add(FEATURES[:3], LABELS[:3], NAMES)
    assert torch.equal(loaded.seconds, sums.seconds)
    assert (tmp_path / "sums.safetensors").stat().st_size == pytest.approx(sums.kept_bytes, abs=500)


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    np.save(tmp_path / "b.npy", np.zeros(3))
    for name in ("a.safetensors", "b.npy", "missing"):
        with pytest.raises(ContinualError, match=f"{name}: no readable file of sums"):
            Sums.load(tmp_path / name)


def test_bad_input_adds_nothing():
    sums = whole()
    bad = FEATURES.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ContinualError, match="not finite"):
        sums.add(bad, LABELS, [*NAMES, "new"])
    with pytest.raises(ContinualError, match=r"expected features \[N, 3\] and labels \[N\], got \[40, 2\] and \[40\]"):
        sums.add(FEATURES[:, :2], LABELS, NAMES)
    with pytest.raises(ContinualError, match="label 3 has no name: there are 2"):
        sums.add(FEATURES, LABELS, NAMES[:2])
    assert_equal(sums, whole())
    with pytest.raises(ContinualError, match="width 2 with moments 'common', expected width 3"):
        sums += Sums(2)
    with pytest.raises(ContinualError, match="a width of 0"):
        Sums(0)
