"""Source and target domain in one batch: their order, ids, labels, ranks, and resuming."""

from itertools import islice

import numpy as np
import pytest
import torch
from toy_source import Toy

from augment.draws import sample_key
from distill.data.base import UNLABELED, DataError
from distill.data.experiment_data import DataSettings, ExperimentData


def data(batch: int = 8, *, target: dict | None = None, world: int = 1, rank: int = 0, **settings) -> ExperimentData:
    own = Toy.Settings(samples=40)
    other = Toy.Settings(samples=13, **(target or {}))
    made = DataSettings(source=own, target=other, batch_size=batch, size=8, workers=0, **settings)
    return ExperimentData(made, 0, world, rank)


def test_half_of_every_batch_is_of_the_target_without_labels_and_under_its_own_ids():
    joined = data().with_target()
    batches = list(joined.train_loader())
    assert len(batches) == 10 and all(batch.domains.tolist() == [0, 1] * 4 for batch in batches)
    target = {sample_key(f"target/train/{n:03d}") for n in range(13)}
    for batch in batches:
        of_target = batch.domains == 1
        assert (batch.labels[of_target] == UNLABELED).all() and (batch.labels[~of_target] >= 0).all()
    first = torch.cat([batch.ids[batch.domains == 1] for batch in batches])
    assert target <= set(first.tolist()), "each of the smaller domain comes in an epoch"
    assert len(set(first.tolist())) == len(first), "when it comes again, it is augmented anew"


def test_every_sample_of_a_domain_comes_equally_often_up_to_one():
    joined = data().with_target()
    order = joined.train_order()
    drawn = np.concatenate([order(epoch) for epoch in range(3)])
    for members in (drawn[drawn < 40], drawn[drawn >= 40]):
        counts = np.unique(members, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(order(0), order(1))


def test_domains_of_equal_size_are_in_different_orders():
    made = DataSettings(source=Toy.Settings(), target=Toy.Settings(), batch_size=8, size=8, workers=0)
    order = ExperimentData(made).with_target().train_order()(0)
    assert not np.array_equal(order[::2], order[1::2] - 40)


def test_images_on_the_device_give_the_same_batches():
    plain, resident = (data(on_device=on).with_target().train_loader() for on in (False, True))
    for first, other in zip(plain, resident):
        for field in ("images", "labels", "ids", "domains"):
            assert torch.equal(getattr(first, field), getattr(other, field)), field


def test_ranks_share_the_batches_and_each_has_both_domains():
    whole = next(iter(data().with_target().train_loader()))
    parts = [next(iter(data(world=2, rank=rank).with_target().train_loader())) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert all(part.domains.tolist() == [0, 1, 0, 1] for part in parts)


def test_a_loader_resumes_in_the_middle_of_an_epoch():
    joined = data().with_target()
    every = [batch.ids for batch in joined.train_loader()]
    begun = joined.train_loader()
    assert len([*islice(begun, 3)]) == 3
    again = joined.train_loader()
    again.load_state_dict(begun.state_dict())
    assert [ids.tolist() for ids in (batch.ids for batch in again)] == [ids.tolist() for ids in every[3:]]
    other = data(target={"splits": ("train",)}).with_target().train_loader()
    other.load_state_dict(begun.state_dict())  # the same training images: the test split does not matter


def test_target_labels_change_neither_the_batches_nor_the_fingerprint_of_training():
    plain = data()
    labels = {n: (n * 7 + 1) % 4 for n in range(13)}
    permuted = data(target={"labels": labels})
    for first, other in zip(plain.with_target().train_loader(), permuted.with_target().train_loader()):
        assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in ("images", "labels", "ids"))
    before = plain.with_target().fingerprint(), plain.target_domain().fingerprint("train")
    tested, other = plain.target_domain(), data()
    other.target_domain().subset("test").samples.labels.reverse()
    assert tested.fingerprint() != other.target_domain().fingerprint(), "of the test split"
    assert before == (other.with_target().fingerprint(), other.target_domain().fingerprint("train"))
    shown = permuted.target_domain(labeled=True).subset("train").labels
    assert shown.tolist() == [labels[n] for n in range(13)], "only a control sees them"


def test_balanced_sampling_is_of_the_source_domain():
    source = Toy.Settings(samples=40, labels=dict.fromkeys(range(30), 0))
    made = DataSettings(source=source, target=Toy.Settings(), batch_size=8, size=8, workers=0, sampler="balanced")
    joined = ExperimentData(made).with_target()
    batches = list(joined.train_loader())
    labels = torch.cat([batch.labels[batch.domains == 0] for batch in batches])
    counts = labels.bincount()
    assert counts.max() - counts.min() <= 1


def test_a_class_that_the_source_lacks_is_an_error_that_names_an_image():
    with pytest.raises(DataError, match=r"data\.target: test/004 of its test split is of the class 'class 4'"):
        data(target={"class_count": 5})
    few = data(target={"class_count": 2})
    assert few.target_domain().classes == tuple(f"class {n}" for n in range(4))
    hidden = data(target={"class_count": 5, "splits": ("train",)})
    assert (hidden.target_domain().subset("train").labels == UNLABELED).all(), "training labels are not looked at"


def test_a_target_of_classes_without_names_has_no_labels_in_any_split():
    made = data().as_target(())
    assert not made.classes and all((made.subset(split).labels == UNLABELED).all() for split in ("train", "test"))


def test_unreadable_unlabeled_images_are_replaced_within_the_budget_also_in_order():
    corrupt = {"faults": {3: "corrupt"}}
    target = data(target=corrupt, corrupt_budget=0.2).target_domain()
    ids = torch.cat([batch.ids for batch in target.eval_loader("train", shared=False)])
    assert len(ids) == len(target.subset("train")) and len(ids.unique()) == len(ids) - 1
    assert len(target.eval_batch("train", [3]).ids) == 1
    with pytest.raises(DataError, match="1 unreadable image"):
        list(data(target=corrupt).target_domain().eval_loader("train", shared=False))
    with pytest.raises(DataError, match="1 unreadable image"):
        list(target.eval_loader("test", shared=False))


def test_an_odd_batch_cannot_be_halved():
    with pytest.raises(DataError, match=r"data\.batch_size 7: half of a batch"):
        data(7).with_target().train_loader()
    with pytest.raises(DataError, match="for each of 2 ranks"):
        data(6, world=2).with_target().train_loader()


def test_without_a_target_there_is_none():
    alone = ExperimentData(DataSettings(source=Toy.Settings(), batch_size=8, size=8, workers=0))
    assert next(iter(alone.train_loader())).domains is None
    with pytest.raises(DataError, match=r"set data\.target"):
        alone.with_target()


def test_errors_of_a_source_name_its_key(tmp_path):
    gone = {"type": "folder", "root": str(tmp_path / "gone")}
    moved = {"type": "augmented", "source": gone, "size": 8, "operations": [{"type": "RandomHorizontalFlip"}]}
    for target, key in ((gone, "data.target.root"), (moved, "data.target.source.root")):
        with pytest.raises(DataError, match=f"^{key}: no folder .*gone$"):
            ExperimentData(DataSettings(source=Toy.Settings(), target=target, size=8, workers=0))
