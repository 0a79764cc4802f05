"""The order of new images and those of a memory, and what a batch says about them."""

import numpy as np
import pytest
import torch

from augment.dual import AugmentSettings, DualAugment
from augment.views import InputSpec
from distill.data.base import DataError
from distill.data.replay import JoinedSamples, MemorySamples, Replay, ReplayOrder
from distill.data.samplers import EpochSampler
from distill.data.split import Subset

IDS, IMAGES = torch.arange(6), torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)


@pytest.mark.parametrize("world", [1, 2])
def test_every_batch_has_its_share_and_an_epoch_every_new_image(world: int) -> None:
    order = ReplayOrder(new=21, memory=10, seed=3, batch=8, share=0.5, world=world)
    samplers = [EpochSampler(order, order.batch, rank, world) for rank in range(world)]
    for epoch in (0, 1):
        seen: list[int] = []
        for number in range(len(samplers[0])):
            parts = [order(epoch)[list(sampler.request(epoch, number).positions)] for sampler in samplers]
            for part in parts:
                assert (part >= 21).sum() == 4 // world, "each rank has its part of the memory"
            batch = np.concatenate(parts)
            assert len(set(batch.tolist())) == 8, "no image is twice in a batch"
            seen += batch[batch < 21].tolist()
        assert set(seen) == set(range(21)) and len(seen) == 24
    assert not np.array_equal(order(0), order(1))
    again = ReplayOrder(new=21, memory=10, seed=3, batch=8, share=0.5, world=world)
    assert np.array_equal(again(1), order(1)), "an epoch follows from the seed alone"


def test_small_memories_and_small_tasks_make_smaller_batches() -> None:
    assert (ReplayOrder(20, 2, 0, 8, 0.5).fresh, ReplayOrder(20, 2, 0, 8, 0.5).drawn) == (6, 2)
    few = ReplayOrder(3, 50, 0, 8, 0.5)
    assert (few.fresh, few.drawn, few.batch, few.batches) == (3, 4, 7, 1)
    with pytest.raises(DataError, match="1 new images and 1 in memory make no batch for 4 ranks"):
        ReplayOrder(1, 1, 0, 8, 0.5, world=4)


def test_every_second_draw_of_the_memory_is_in_its_stored_view() -> None:
    order = ReplayOrder(12, 9, 0, 8, 0.5)
    replay = Replay(12, 0.5, torch.full((9,), 77), torch.arange(18.0).view(9, 2))
    indices = order(0)[:8].tolist()
    drawn = [order.drawn_at(position) for position in range(8)]
    is_memory, keys, logits = replay.of_batch(indices, drawn)
    assert keys is not None and logits is not None
    assert is_memory.tolist() == [index >= 12 for index in indices] and is_memory.sum() == 4
    assert (keys == 77).sum() == 2 and ((keys == 77) <= is_memory).all() and (keys[keys != 77] == -1).all()
    for row in (keys == 77).nonzero()[:, 0].tolist():
        assert logits[row].tolist() == [2.0 * (indices[row] - 12), 2.0 * (indices[row] - 12) + 1]
    assert logits[keys == -1].isnan().all()
    assert Replay(12, 0.5).of_batch(indices, drawn)[1:] == (None, None)


def test_some_new_images_are_drawn_with_the_memory() -> None:
    order, replay = (
        ReplayOrder(12, 3, 0, 8, 0.5, current=(2, 7)),
        Replay(12, 0.5, torch.full((3,), 77), torch.ones(3, 2)),
    )
    seen: set[int] = set()
    for epoch in range(3):
        indices = order(epoch).tolist()
        drawn = [order.drawn_at(position) for position in range(len(indices))]
        is_memory, keys, _ = replay.of_batch(indices, drawn)
        assert keys is not None
        assert {index for index, memory in zip(indices, is_memory) if not memory} == set(range(12))
        seen |= {index for index, memory in zip(indices, is_memory) if memory}
        assert not (keys[torch.tensor(indices) < 12] >= 0).any(), "a new image has no stored view"
    assert seen == {2, 7, 12, 13, 14}


def test_joined_samples_keep_their_ids_and_refuse_equal_ones() -> None:
    first, second = (MemorySamples(IMAGES[:2], [0, 1], [f"{name}/0", f"{name}/1"]) for name in "ab")
    parts = [Subset(samples, np.arange(2), np.array([3, 4])) for samples in (first, second)]
    joined = JoinedSamples(parts)
    assert [joined[index].id for index in range(4)] == ["a/0", "a/1", "b/0", "b/1"] == joined.ids
    assert joined.subset().labels.tolist() == [3, 4, 3, 4] and joined[3].label == 4
    assert np.array_equal(joined[1].image, IMAGES[1].permute(1, 2, 0).numpy())
    with pytest.raises(DataError, match="trained on together have the id 'a/0'"):
        JoinedSamples([parts[0], parts[0]])


def test_a_view_key_repeats_the_views_of_another_training() -> None:
    settings = AugmentSettings(student=["RandomHorizontalFlip", {"type": "ColorJitter", "hue": 0.1}], compile=False)
    spec = InputSpec((16, 16))
    here, there = DualAugment(settings, (), spec, seed=1), DualAugment(settings, (), spec, seed=99)
    keys = torch.tensor([-1, 99, -1, 99, 99, -1])
    [mixed] = here(IMAGES, IDS, 5, view_keys=keys).student
    [own], [stored] = here(IMAGES, IDS, 5).student, there(IMAGES, IDS, 0).student
    assert torch.equal(mixed[keys < 0], own[keys < 0]) and torch.equal(mixed[keys == 99], stored[keys == 99])
    assert not torch.equal(own, stored)
    [rendered] = here(here.render(IMAGES, IDS, 5, view_keys=keys), IDS, 5).student
    assert (rendered - mixed).abs().max() < 0.02
