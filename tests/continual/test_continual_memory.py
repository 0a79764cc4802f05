"""Memories: which images stay, whatever the order, the tasks and the budget, and the file that holds them."""

import pytest
import torch

from augment.base import Registry
from distill.continual.errors import ContinualError
from distill.continual.memory.base import Candidates, quotas
from distill.continual.memory.herding import HerdingMemory, herded
from distill.continual.memory.keyed import KeyedMemory, keyed_order
from distill.continual.memory.store import Store, bytes_per_image

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 2**62, (90,), generator=GENERATOR)
LABELS = ["oak", "ash", "elm"] * 30
FEATURES = torch.randn(90, 4, generator=GENERATOR)
MEMORIES = {
    "keyed": KeyedMemory(KeyedMemory.Settings(budget=10)),
    "keyed of all": KeyedMemory(KeyedMemory.Settings(budget=10, per_class=False)),
    "herding": HerdingMemory(HerdingMemory.Settings(budget=10)),
}


def candidates(rows, ranks=None):
    rows = torch.as_tensor(rows)
    return Candidates(IDS[rows], [LABELS[row] for row in rows.tolist()], FEATURES[rows], ranks)


def keep(memory, rows, capacity=10):
    """Rows of the whole data that stay, and their ranks."""
    selection = memory.select(candidates(rows), capacity)
    return torch.as_tensor(rows)[selection.rows], selection.ranks


def streamed(memory, tasks, capacity):
    """Rows that stay after tasks that come one after the other."""
    rows, ranks = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for task in tasks:
        joined = torch.cat([rows, task])
        known = torch.cat([ranks, torch.full((len(task),), -1)])
        selection = memory.select(candidates(joined, known), capacity)
        rows, ranks = joined[selection.rows], selection.ranks
    return rows


def test_every_type_is_tested_here():
    types = {memory.settings.type for memory in MEMORIES.values()}
    assert types == set(Registry("distill.continual.memory", "Memory").known())


@pytest.mark.parametrize("name", MEMORIES)
def test_the_order_of_candidates_does_not_matter(name):
    kept, ranks = keep(MEMORIES[name], range(90))
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    again, ranks_again = keep(MEMORIES[name], order)
    assert torch.equal(kept, again) and torch.equal(ranks, ranks_again)
    assert len(kept) == 10 == len(set(kept.tolist()))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_smaller_budget_is_a_subset(name):
    larger, _ = keep(MEMORIES[name], range(90), 20)
    for capacity in range(3, 20):
        smaller, _ = keep(MEMORIES[name], range(90), capacity)
        assert set(smaller.tolist()) <= set(larger.tolist()) and len(smaller) == capacity


@pytest.mark.parametrize("name", ["keyed", "keyed of all"])
@pytest.mark.parametrize("by", ["class", "mixed", "batches of 1"])
def test_a_stream_keeps_the_images_that_all_data_at_once_would(name, by):
    memory = MEMORIES[name]
    order = torch.randperm(90, generator=torch.Generator().manual_seed(2))
    tasks = {
        "class": [torch.arange(start, 90, 3) for start in (2, 0, 1)],
        "mixed": list(order.split(13)),
        "batches of 1": list(order.split(1)),
    }[by]
    assert set(streamed(memory, tasks, 10).tolist()) == set(keep(memory, range(90))[0].tolist())


def test_herding_keeps_the_first_of_its_list_when_classes_come():
    first, second, third = (torch.arange(start, 90, 3) for start in range(3))
    alone = streamed(MEMORIES["herding"], [first], 10)
    kept = streamed(MEMORIES["herding"], [first, second, third], 10)
    places = quotas(["oak", "ash", "elm"], 10)["oak"]
    assert [row for row in kept.tolist() if row % 3 == 0] == alone[:places].tolist()


def test_herding_by_hand():
    """Each next image is the one that brings the mean of the chosen ones nearest to that of all."""
    features = FEATURES[:12].double()
    normalized = torch.nn.functional.normalize(features, dim=1)
    chosen: list[int] = []
    for _ in range(5):
        rest = [row for row in range(12) if row not in chosen]
        distances = [(normalized[[*chosen, row]].mean(0) - normalized.mean(0)).norm().item() for row in rest]
        chosen.append(rest[distances.index(min(distances))])
    assert herded(features, 5).tolist() == chosen
    assert sorted(herded(features, 99).tolist()) == list(range(12))


def test_a_class_that_comes_again_is_herded_anew():
    first, again = torch.arange(0, 45, 3), torch.arange(45, 90, 3)
    kept = streamed(MEMORIES["herding"], [first, again], 4)
    assert (
        kept.tolist()
        == torch.cat([streamed(MEMORIES["herding"], [first], 4), again])[
            herded(FEATURES[torch.cat([streamed(MEMORIES["herding"], [first], 4), again])], 4)
        ].tolist()
    )


def test_the_keyed_sample_is_uniform():
    kept = torch.zeros(90)
    for seed in range(300):
        kept[keyed_order(IDS, seed)[:30]] += 1
    deviation = (kept - 100) / (300 * 1 / 3 * 2 / 3) ** 0.5
    assert deviation.abs().max() < 4 and 0.7 < deviation.square().mean() < 1.4


def test_places_of_each_class():
    assert quotas(["c", "a", "b"], 10) == {"a": 4, "b": 3, "c": 3}
    assert quotas([], 10) == {}
    names = [f"{number:03d}" for number in torch.randperm(120, generator=torch.Generator().manual_seed(4)).tolist()]
    before = {}
    for count in range(1, 121):  # more than 100 classes: nobody ever gains a place
        places = quotas(names[:count], 150)
        assert sum(places.values()) == 150 and min(places.values()) >= 1
        assert all(places[name] <= before[name] for name in before)
        before = places


def test_a_class_with_few_images_leaves_its_places_empty():
    rows = [0, 1, 4, 7, 10, 13]  # one oak, five ashes
    kept, ranks = keep(MEMORIES["keyed"], rows, 6)
    assert sorted(LABELS[row] for row in kept.tolist()) == ["ash", "ash", "ash", "oak"]
    assert ranks.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("budget, images", [(7, 7), ("2KB", 20), ("1KiB", 10), ("1.05 kb", 10)])
def test_budget_in_images_or_bytes(budget, images):
    memory = KeyedMemory(KeyedMemory.Settings(budget=budget))
    assert memory.capacity(bytes_per_image=100, classes=7) == images


@pytest.mark.parametrize(
    "budget, text", [(6, "6 holds 6 images, fewer"), ("650B", "650B holds 6 images of 100 bytes each, fewer")]
)
def test_a_memory_smaller_than_one_image_per_class(budget, text):
    memory = KeyedMemory(KeyedMemory.Settings(budget=budget))
    with pytest.raises(ContinualError, match=rf"^memory.budget: {text} than one for each of 7 classes"):
        memory.capacity(bytes_per_image=100, classes=7)
    with pytest.raises(ContinualError, match="2 images cannot hold one for each of 3 classes"):
        memory.select(candidates(range(90)), 2)


@pytest.mark.parametrize("budget", [0, "0B", "200", "much", True])
def test_a_budget_that_is_none(budget):
    with pytest.raises(ValueError):
        KeyedMemory.Settings(budget=budget)


def test_bad_candidates():
    with pytest.raises(ContinualError, match="twice among the candidates"):
        Candidates(torch.tensor([5, 5]), ["oak", "oak"])
    with pytest.raises(ContinualError, match=r"got torch.int64 \[2\] and 1 labels"):
        Candidates(torch.tensor([5, 6]), ["oak"])
    with pytest.raises(ContinualError, match="herding reads features"):
        MEMORIES["herding"].select(Candidates(torch.tensor([5]), ["oak"]), 3)


def store(rows=(0, 1, 2, 3, 4), logits=("oak", "ash")):
    rows = torch.as_tensor(rows, dtype=torch.int64)
    canvases = torch.randint(0, 256, (90, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Store(
        IDS[rows],
        canvases[rows],
        tuple(LABELS[row] for row in rows.tolist()),
        torch.arange(len(rows)),
        rows + 7 if logits else None,
        FEATURES[rows, : len(logits)] if logits else None,
        logits,
    )


def assert_same(a, b):
    assert (a.labels, a.logit_classes) == (b.labels, b.logit_classes)
    for name in ("ids", "canvases", "ranks", "view_keys", "logits"):
        first, second = getattr(a, name), getattr(b, name)
        if first is None:
            assert second is None
        else:
            assert first.dtype == second.dtype
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("logits", [(), ("oak", "ash")])
@pytest.mark.parametrize("rows", [[], [4, 2, 0]])
def test_a_file_holds_the_same_bits(logits, rows, tmp_path):
    stored = store(rows, logits)
    stored.save(tmp_path / "memory.safetensors")
    assert_same(Store.load(tmp_path / "memory.safetensors"), stored)
    assert stored.kept_bytes == len(rows) * bytes_per_image((3, 8, 6), len(logits))


def test_logits_of_classes_that_were_unknown_are_nan(tmp_path):
    both = store([0, 1], ("oak", "ash")).joined(store([2, 3], ("ash", "elm")))
    assert both.logit_classes == ("oak", "ash", "elm") and both.labels == ("oak", "ash", "elm", "oak")
    assert both.logits.isnan().tolist() == [[False, False, True]] * 2 + [[True, False, False]] * 2
    assert torch.equal(both.logits[2:, 1:], FEATURES[[2, 3], :2])
    assert torch.equal(both.view_keys, torch.tensor([7, 8, 9, 10]))
    both.save(tmp_path / "memory")
    assert_same(Store.load(tmp_path / "memory"), both)


def test_take_keeps_what_belongs_together():
    part = store().take(torch.tensor([3, 1]), torch.tensor([0, 0]))
    expected = store([3, 1])
    assert torch.equal(part.ids, expected.ids) and torch.equal(part.canvases, expected.canvases)
    assert part.labels == expected.labels and part.ranks.tolist() == [0, 0]
    assert torch.equal(part.logits, expected.logits) and torch.equal(part.view_keys, expected.view_keys)


def test_what_cannot_be_stored_together(tmp_path):
    with pytest.raises(ContinualError, match="only some of the images have logits"):
        store().joined(store([7], ()))
    wide = Store(IDS[:1], torch.zeros(1, 3, 8, 9, dtype=torch.uint8), ("oak",), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ContinualError, match=r"uint8 \[3, 8, 6\] cannot be kept beside torch.uint8 \[3, 8, 9\]"):
        store([1], ()).joined(wide)
    with pytest.raises(ContinualError, match=r"canvases must be torch.uint8 \[1, 3, 8, 9\], not torch.float32"):
        Store(IDS[:1], torch.zeros(1, 3, 8, 9), ("oak",), torch.zeros(1, dtype=torch.int64))
    (tmp_path / "memory").write_bytes(b"no tensors")
    with pytest.raises(ContinualError, match="memory: no readable memory file"):
        Store.load(tmp_path / "memory")
