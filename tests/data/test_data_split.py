"""Held-out parts and label budgets: by class, by hash, nested, the same everywhere."""

import numpy as np
import pytest
from toy_source import toy

from distill.data.base import UNLABELED, DataError
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.split import apportion, by_hash, held_out, label_budget, uniform

IDS = [f"image {index}" for index in range(200)]
LABELS = np.array([0] * 100 + [1] * 60 + [2] * 37 + [UNLABELED] * 3)


def test_uniform_is_the_hash_and_even() -> None:
    drawn = np.array([uniform(id, "salt") for id in IDS])
    assert abs(drawn.mean() - 0.5) < 0.07 and drawn.min() >= 0 and drawn.max() < 1


def test_held_out_is_stratified_and_follows_the_id() -> None:
    mask = held_out(IDS, LABELS, 0.1)
    assert [int(mask[label == LABELS].sum()) for label in (0, 1, 2, UNLABELED)] == [10, 6, 4, 0]
    assert mask.sum() == 20
    turned = held_out(IDS[::-1], LABELS[::-1], 0.1)
    assert np.array_equal(turned[::-1], mask)
    assert not held_out(["one"], np.array([0]), 0.9).any()


def test_apportioned_numbers_are_exact_and_leave_one_of_each_class() -> None:
    assert apportion([4] * 10, 0.1) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert apportion([10, 25, 3, 1], 0.5) == [5, 13, 2, 0]
    assert apportion([2, 2, 1], 0.9) == [1, 1, 0] and apportion([], 0.5) == [] and apportion([5], 0) == [0]
    assert apportion([10, 10], 0.3, spare=[1, 9]) == [1, 3]
    for sizes in ([7, 13, 29, 50], [100] * 61, [3, 3, 3]):
        for fraction in (0.05, 0.1, 0.2, 1 / 3, 0.5):
            counts = apportion(sizes, fraction)
            assert sum(counts) == int(fraction * sum(sizes) + 0.5)
            assert all(abs(count - fraction * size) < 1 for count, size in zip(counts, sizes))


def test_label_budget_is_nested_and_depends_on_its_seed_alone() -> None:
    few, more, all_of_them = (label_budget(IDS, LABELS, count, 0) for count in (5, 10, 1000))
    assert np.array_equal(all_of_them, LABELS)
    assert [(few == label).sum() for label in (0, 1, 2)] == [5, 5, 5]
    assert (more[few != UNLABELED] == few[few != UNLABELED]).all() and (more != UNLABELED).sum() == 30
    assert not np.array_equal(label_budget(IDS, LABELS, 5, 1), few)
    assert (label_budget(IDS, LABELS, 0, 0) == UNLABELED).all()


def test_by_hash_does_not_depend_on_the_order_given() -> None:
    assert by_hash(range(50), IDS, "s") == by_hash(range(49, -1, -1), IDS, "s") != list(range(50))


def folder_without_val() -> ExperimentData:
    source = {"type": "torchvision", "name": "FakeData", "arguments": {"size": 50, "image_size": [3, 8, 8]}}
    return ExperimentData(DataSettings(source=source, size=8, workers=0), seed=3)


def test_val_is_held_out_where_the_source_has_none() -> None:
    module, other = folder_without_val(), folder_without_val()
    train, val = set(module.subset("train").ids), set(module.subset("val").ids)
    assert len(train) + len(val) == 50 and not train & val and val
    assert val == set(other.subset("val").ids)
    with pytest.raises(DataError, match="source 'torchvision' has no test split, only train"):
        module.eval_loader("test")


def test_labels_are_hidden_in_training_only() -> None:
    module = toy(labels_per_class=2, samples=40)
    assert len(module.labeled_loader().reader.subset) == 8
    assert (module.subset("train").labels != UNLABELED).sum() == 8
    assert (module.subset("val").labels != UNLABELED).all()
    batch = next(iter(toy(labels_per_class=0).train_loader()))
    assert (batch.labels == UNLABELED).all()
    only = toy(labels_per_class=2, samples=40).train_loader(labeled_only=True)
    assert all((batch.labels != UNLABELED).all() for batch in only)


def test_no_labels_is_legal_and_a_budget_of_them_is_not() -> None:
    free = dict.fromkeys(range(40), UNLABELED)
    module = toy(class_count=0, labels=free)
    assert not module.classes and (next(iter(module.train_loader())).labels == UNLABELED).all()
    with pytest.raises(DataError, match="has no labels"):
        toy(class_count=0, labels=free, labels_per_class=1)
    with pytest.raises(DataError, match="no training sample has a label"):
        module.labeled_loader()


@pytest.mark.parametrize("label", [4, -2])
def test_a_label_out_of_range_is_named_with_its_sample(label: int) -> None:
    with pytest.raises(DataError, match=f"train/017: label {label} is out of range: the source has 4 classes"):
        toy(labels={17: label})


def test_fingerprint_follows_ids_labels_and_settings_not_the_protocol() -> None:
    assert toy().fingerprint() == toy(seed=5, batch_size=4, labels_per_class=1, val_fraction=0.3).fingerprint()
    assert toy().fingerprint() != toy(labels={3: 0}).fingerprint()
    assert toy().fingerprint() != toy(samples=41).fingerprint()
