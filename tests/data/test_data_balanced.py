"""The balanced sampler: every class equally often, every sample in turn, exact under resuming and ranks."""

import pickle

import numpy as np
import pytest
import torch
from toy_source import indices, toy

from distill.data.balanced_order import BalancedOrder
from distill.data.base import UNLABELED, DataError
from distill.data.positions import Positions

# 40 samples: 30 of class 0, 7 of class 1, 3 of class 2.
SKEWED = {i: 0 if i < 30 else 1 if i < 37 else 2 for i in range(40)}
LABELS = np.array(list(SKEWED.values()))


def skewed(**settings):
    return toy(class_count=3, labels=SKEWED, sampler="balanced", **settings)


def test_classes_are_drawn_equally_often_and_their_samples_in_turn() -> None:
    order = BalancedOrder(LABELS, seed=0)
    epochs = [order(epoch) for epoch in range(30)]
    assert all(len(epoch) == 40 for epoch in epochs)
    per_class = np.array([np.bincount(LABELS[epoch], minlength=3) for epoch in epochs])
    assert set(per_class.ravel()) == {13, 14} and per_class.sum(0).tolist() == [400, 400, 400]
    for stop in range(1, 31):
        counts = np.bincount(np.concatenate(epochs[:stop]), minlength=40)
        for label in range(3):
            own = counts[label == LABELS]
            assert own.max() - own.min() <= 1, (stop, label)


def test_an_epoch_follows_from_labels_seed_and_epoch_alone() -> None:
    order = BalancedOrder(LABELS, seed=3)
    later = order(7)
    assert np.array_equal(later, BalancedOrder(LABELS, seed=3)(7)) and not np.array_equal(later, order(8))
    assert not np.array_equal(later, BalancedOrder(LABELS, seed=4)(7))
    assert (LABELS[later] == 0).argmax() < 10, "classes are mixed, not one after the other"


def test_samples_without_a_label_come_once() -> None:
    labels = np.where(np.arange(40) % 4 == 0, UNLABELED, LABELS)
    order = BalancedOrder(labels, seed=0)(5)
    assert sorted(order[labels[order] == UNLABELED]) == list(range(0, 40, 4))
    assert np.bincount(labels[order][labels[order] != UNLABELED]).tolist() == [10, 10, 10]
    with pytest.raises(DataError, match="data.sampler: balanced needs labels".replace(".", r"\.")):
        toy(labels_per_class=0, sampler="balanced").train_loader()


def test_resume_and_ranks_give_the_same_batches() -> None:
    plain = skewed().train_loader()
    expected = [indices(plain) for _ in range(3)]
    assert len(plain) == 5 and np.bincount(LABELS[expected[1]]).min() >= 13
    first = skewed(workers=2).train_loader()
    list(first)
    for count, _ in enumerate(first, 1):
        if count == 3:
            break
    second = skewed().train_loader()
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert indices(second) == expected[1][24:] and indices(second) == expected[2]
    whole, ranks = skewed().train_loader(), [skewed(world_size=2, rank=rank).train_loader() for rank in range(2)]
    for batch, left, right in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.ids, torch.cat([left.ids, right.ids]))
    for state, loader in [(first, toy(class_count=3, labels=SKEWED)), (toy().train_loader(), skewed())]:
        if state is not first:
            next(iter(state))
        with pytest.raises(DataError, match=r"cannot resume inside epoch \d: sampler was"):
            loader.train_loader().load_state_dict(state.state_dict())


def test_whole_batches_whatever_the_number_of_samples() -> None:
    order = BalancedOrder(LABELS, seed=0, batch=16)
    per_class = np.array([np.bincount(LABELS[order(epoch)], minlength=3) for epoch in range(30)])
    assert set(per_class.ravel()) == {16} and order.positions == 48
    counts = np.bincount(np.concatenate([order(epoch) for epoch in range(30)]), minlength=40)
    assert all(np.ptp(counts[label == LABELS]) <= 1 for label in range(3))


def test_the_copies_of_a_sample_have_ids_of_their_own() -> None:
    """So their augmentation differs; each is found by its id."""
    ids = torch.cat([batch.ids for batch in skewed().train_loader()])
    positions, copies = Positions([f"train/{index:03d}" for index in range(40)]).locate(ids)
    assert len(set(ids.tolist())) == 40 and 3 <= int(copies.max()) < 14
    for sample in range(40):
        own = copies[positions == sample].tolist()
        assert own == list(range(len(own))), "in their order"
    assert (skewed().batch_of_ids(ids.tolist(), 0).labels == torch.from_numpy(LABELS)[positions]).all()


def test_images_on_the_device_are_drawn_the_same_way() -> None:
    assert indices(skewed(on_device=True).train_loader()) == indices(skewed().train_loader())
    only = skewed(labels_per_class=2).train_loader(labeled_only=True)
    assert np.bincount(LABELS[indices(only)]).tolist() == [2, 2, 2]
