"""Orders, ranks, resuming: which samples a loader gives, and when."""

import multiprocessing
import pickle

import pytest
import torch
from toy_source import indices, toy

from augment.draws import sample_key
from distill.data.base import DataError
from distill.data.positions import Positions


def test_a_batch(tmp_path) -> None:
    batch = next(iter(toy(class_count=4).train_loader()))
    assert batch.images.shape == (8, 3, 8, 8) and batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    for image, label, id in zip(batch.images, batch.labels, batch.ids):
        index = int(image[0, 0, 0])
        assert label == index % 4 and id == sample_key(f"train/{index:03d}")


def test_an_epoch_is_a_permutation_that_changes() -> None:
    loader = toy(samples=40).train_loader()
    epochs = [indices(loader) for _ in range(3)]
    assert len(loader) == 5
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert indices(toy(seed=1).train_loader()) != epochs[0] == indices(toy(seed=0).train_loader())
    loader.set_epoch(1)
    assert indices(loader) == epochs[1]


def test_the_last_batch_is_filled_with_samples_that_come_a_second_time() -> None:
    """Whatever the number of epochs, two samples differ by at most one in how often they were trained on."""
    loader = toy(samples=21).train_loader()
    names = {sample_key(f"train/{index:03d}"): index for index in range(21)}
    counts, fillers = [0] * 21, []
    for _ in range(9):
        batches = list(loader)
        assert [len(batch.ids) for batch in batches] == [8, 8, 8]
        assert all(len(set(indices([batch]))) == 8 for batch in batches), "no sample twice in a batch"
        ids = torch.cat([batch.ids for batch in batches]).tolist()
        assert len(set(ids)) == 24 and sum(id in names for id in ids) == 21, "a second copy has an id of its own"
        assert {id for id in ids[:16] if id not in names} == set(), "they are in the last batch"
        fillers.append({index for id, index in zip(ids, indices(batches)) if id not in names})
        for index in indices(batches):
            counts[index] += 1
        assert max(counts) - min(counts) <= 1
    assert len(set().union(*fillers)) == 21, "every sample comes a second time when its turn comes"


def test_the_copies_of_a_sample_are_augmented_differently_and_are_found_again() -> None:
    ops = [{"type": "ColorJitter", "brightness": [0.2, 2.0], "p": 1.0}]
    data = toy(samples=21, loader_ops=ops)
    *_, last = data.train_loader()
    again = [row for row, id in enumerate(last.ids.tolist()) if id not in data.subset("train").keys]
    assert len(again) == 3
    copies = data.batch_of_ids(last.ids.tolist(), 0)
    assert torch.equal(copies.images, last.images) and torch.equal(copies.ids, last.ids)
    positions, numbers = Positions(data.subset("train").ids).locate(last.ids)
    assert [row for row in range(8) if numbers[row] == 1] == again
    name = data.subset("train").ids[positions[again[0]]]
    pair = data.batch_of_ids([name, f"{name}#1"], 0)
    assert torch.equal(pair.images[1], last.images[again[0]]) and not torch.equal(*pair.images)
    with pytest.raises(DataError, match="no training sample has the id 'train/000#x'"):
        data.batch_of_ids(["train/000#x"], 0)


def test_a_small_set_makes_a_small_batch(caplog) -> None:
    small = toy(samples=5).train_loader()
    assert "only 5 training samples" in caplog.text
    assert len(small) == 1 and sorted(indices(small)) == [0, 1, 2, 3, 4]
    assert len(toy(samples=5, world_size=2).train_loader()) == 2, "of four, since the ranks have equal parts"
    with pytest.raises(DataError, match=r"1 training sample\(s\) for 2 ranks"):
        toy(samples=1, world_size=2).train_loader()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    plain, parallel = toy(samples=20, batch_size=4).train_loader(), toy(samples=20, batch_size=4, workers=workers)
    loader = parallel.train_loader()
    for _ in range(2):
        assert indices(plain) == indices(loader)
    assert indices(toy(samples=20).eval_loader("val")) == indices(parallel.eval_loader("val")) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resume_repeats_none_and_misses_none(stop: int, workers: int) -> None:
    plain = toy(samples=38).train_loader()
    expected = [indices(plain) for _ in range(3)]
    first = toy(samples=38, workers=workers).train_loader()
    assert indices(first) == expected[0]
    before = []
    for count, batch in enumerate(first, 1):
        before.append(batch)
        if count >= max(stop, 1):
            break
    state = first.state_dict() if stop else {**first.state_dict(), "batches": 0}
    second = toy(samples=38, workers=workers).train_loader()
    second.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert len(second) == 5
    if stop < 5:
        assert indices(before[:stop]) + indices(second) == expected[1]
    assert indices(second) == expected[2]


def test_resume_under_set_epoch_as_lightning_calls_it() -> None:
    plain = toy().train_loader()
    expected = [indices(plain) for _ in range(3)]
    loader = toy().train_loader()
    loader.load_state_dict({"epoch": 1, "batches": 2, "samples": 40, "batch": 8, "seed": 0})
    iterator = iter(loader)  # before set_epoch
    loader.sampler.set_epoch(1)
    assert loader.state_dict()["batches"] == 2
    assert indices(iterator) == expected[1][16:]
    loader.sampler.set_epoch(2)
    assert indices(loader) == expected[2]


def test_leaving_an_epoch_early_starts_it_again() -> None:
    loader = toy().train_loader()
    expected = indices(loader)
    loader.set_epoch(0)
    next(iter(loader))
    assert indices(loader) == expected


def test_state_counts_batches_handed_out_not_read_ahead() -> None:
    loader = toy(workers=2).train_loader()
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert loader.state_dict() == {"epoch": 0, "batches": 2, "samples": 40, "batch": 8, "seed": 0}


@pytest.mark.parametrize("changed", [{"samples": 41}, {"batch_size": 4}, {"seed": 9}])
def test_resume_inside_an_epoch_of_something_else_is_refused(changed: dict) -> None:
    loader = toy().train_loader()
    next(iter(loader))
    with pytest.raises(DataError, match="cannot resume inside epoch 0"):
        toy(**changed).train_loader().load_state_dict(loader.state_dict())
    list(loader)
    toy(**changed).train_loader().load_state_dict(loader.state_dict())


def test_two_ranks_see_what_one_sees() -> None:
    single = toy(samples=42).train_loader()
    ranks = [toy(samples=42, world_size=2, rank=rank).train_loader() for rank in range(2)]
    for _ in range(2):
        for whole, left, right in zip(single, *ranks, strict=True):
            assert torch.equal(whole.ids, torch.cat([left.ids, right.ids]))
    with pytest.raises(DataError, match="batch_size 7 is not a multiple of the number of ranks, 2"):
        toy(batch_size=7, world_size=2)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_each_sample_once(world: int) -> None:
    loaders = [toy(samples=41, batch_size=6, world_size=world, rank=rank).eval_loader("test") for rank in range(world)]
    for loader in loaders:
        assert len(list(loader)) == len(loader)
    assert sorted(index for loader in loaders for index in indices(loader)) == list(range(41))


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(toy(workers=1).train_loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_waiting_is_measured_and_reset() -> None:
    loader = toy().train_loader()
    list(loader)
    assert loader.read_wait_seconds() > 0 and loader.read_wait_seconds() == 0


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 with torch 2.15
def test_close_ends_the_workers_and_the_next_pass_starts_new_ones() -> None:
    before = set(multiprocessing.active_children())
    loader = toy(samples=16, workers=2).train_loader()
    assert len(indices(loader)) == 16
    assert len(set(multiprocessing.active_children()) - before) == 2
    loader.close()
    assert set(multiprocessing.active_children()) == before
    loader.close()
    assert len(indices(loader)) == 16
    loader.close()


def test_lightning_finds_its_protocols() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from lightning.fabric.utilities.types import _Stateful
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    loader = toy().train_loader()
    assert isinstance(loader, _Stateful)
    _set_sampler_epoch(loader, 7)
    combined = CombinedLoader(loader)
    iterator = iter(combined)
    next(iterator), next(iterator)
    assert combined._state_dicts() == [{"epoch": 7, "batches": 2, "samples": 40, "batch": 8, "seed": 0}]
    other = toy().train_loader()
    restored = CombinedLoader(other)
    restored._load_state_dicts(combined._state_dicts())
    rest = indices(batch for batch, _, _ in iter(restored))
    loader.set_epoch(6)
    loader.set_epoch(7)
    assert rest == indices(loader)[16:]
