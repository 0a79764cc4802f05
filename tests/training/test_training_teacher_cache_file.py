"""The file of a teacher's cache, its rows, and the settings that decide what a row keeps; nothing is trained."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_training import experiment, network

from augment.draws import copy_key
from distill.commands.cache import fill_cache
from distill.data.order import Order, Repeats
from distill.models.features import Features, FeatureShapes
from distill.models.teacher_settings import CacheSettings
from distill.objectives.kd import KD
from distill.training.cache_rows import CacheError, RowLayout, from_top, top_logits
from distill.training.teacher_cache import CachedRows, TeacherCache
from distill.yaml_tree import ConfigError

NEEDED = {"logits": "full", "pooled": True}

# --- The file itself ----------------------------------------------------------------------------------------------

IDS = [f"sample {n}" for n in range(6)]
LAYOUT = RowLayout([FeatureShapes(5, 3)], 1, CacheSettings(pooled=True))


def open_cache(
    output: Path, epochs: int = 2, seed: int = 0, layout: RowLayout = LAYOUT, **options: Any
) -> TeacherCache:
    return TeacherCache(output, {"seed": seed}, layout, IDS, epochs, **options)


def batch(*numbers: int) -> torch.Tensor:
    from augment.draws import sample_key

    return torch.tensor([sample_key(IDS[number]) for number in numbers])


def outputs(*numbers: float) -> list[list[Features]]:
    values = torch.tensor(numbers, dtype=torch.float32)[:, None]
    return [[Features(logits=values + torch.arange(5), pooled=values * torch.ones(3))]]


def logits(cache: TeacherCache, ids: torch.Tensor, epoch: int) -> torch.Tensor:
    rows = cache.find(ids, epoch)
    assert rows.complete
    values = cache.features(rows, torch.device("cpu"))[0][0].logits
    assert values is not None
    return values


def test_copies_of_a_sample_have_rows_of_their_own(tmp_path: Path) -> None:
    """Two of six samples come twice in an epoch of two batches of four; a fit with other batches shares the rest."""
    keys = batch(*range(6)).numpy()
    order = Order(6, 0, 4)
    options = {"repeats": Repeats(order, keys)}
    cache = open_cache(tmp_path, **options)
    assert cache.size == 16 * (2 * 8 + 8)
    ids = torch.from_numpy(copy_key(keys[order(1)], order.copies(1)))
    for number, part in enumerate(ids.split(4)):
        cache.keep(cache.find(part, 1), outputs(*range(10 * number, 10 * number + 4)))
    again = pickle.loads(pickle.dumps(open_cache(tmp_path, **options)))
    assert logits(again, ids, 1)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert not again.find(ids, 0).there.any() and (tmp_path / again.folder / "repeats-2").stat().st_size == 4 * 24
    alone = open_cache(tmp_path)
    known = alone.find(ids, 1).there
    assert known.tolist() == (order.copies(1) == 0).tolist() and alone.folder == cache.folder
    alone.keep(alone.find(ids, 1), outputs(*range(8)))
    assert alone.find(ids, 1).there.tolist() == known.tolist(), "there is no space for a copy that it does not expect"
    with pytest.raises(ValueError, match="1 of 1 samples are not in the training split"):
        alone.find(torch.tensor([5]), 0)


def test_two_at_once_and_more_epochs(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    assert first.is_new and not second.is_new and first.size == 12 * (2 * 8 + 8)
    first.keep(first.find(batch(0, 1), 1), outputs(1, 2))
    second.keep(second.find(batch(5, 2), 1), outputs(3, 4))
    for cache in (first, second, open_cache(tmp_path, epochs=4), open_cache(tmp_path, epochs=1)):
        assert torch.equal(logits(cache, batch(2, 0, 5, 1), 1)[:, 0], torch.tensor([4.0, 1, 3, 2]))
        assert not cache.find(batch(0, 1), 0).there.any() and not cache.find(batch(3), 1).complete
    assert not first.find(batch(0), 3).complete, "beyond what it was opened for"
    assert first.keep(first.find(batch(0), 3), outputs(7))[0][0].logits is not None


def _hammer(output: Path, order: list[int]) -> None:
    cache = open_cache(output)
    for _ in range(40):
        for number in order:
            every = CachedRows(**{**vars(cache.find(batch(number), 1)), "there": np.array([False])})
            cache.keep(every, outputs(number))


def test_processes_that_write_the_same_rows(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    orders = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 2, 3, 0, 1, 4]]
    processes = [fork.Process(target=_hammer, args=(tmp_path, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert logits(open_cache(tmp_path), batch(*range(6)), 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    again = pickle.loads(pickle.dumps(open_cache(tmp_path)))
    assert again.has(batch(0, 5), 1) and not again.has(batch(0, 5), 0)


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A batch of old and new rows takes the old ones from the file: a later reader sees the same."""
    cache = open_cache(tmp_path)
    cache.keep(cache.find(batch(0), 0), outputs(1))
    mixed = cache.keep(cache.find(batch(1, 0), 0), outputs(2, 9))[0][0].logits
    assert torch.equal(mixed, logits(cache, batch(1, 0), 0)) and mixed[:, 0].tolist() == [2, 1]


def test_by_batch_a_row_belongs_to_its_batch(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, by_batch=True)
    cache.keep(cache.find(batch(0, 1), 0), outputs(1, 2))
    assert torch.equal(logits(cache, batch(1, 0), 0)[:, 0], torch.tensor([2.0, 1])), "whatever its order"
    assert not cache.find(batch(0, 2), 0).there.any() and not cache.find(batch(0), 0).there.any()


def test_the_disk_is_asked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(CacheError, match=r"needs 288 more bytes, .* has 100 free; keep fewer logits"):
        open_cache(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_ends_the_writing_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tmp_path)

    def full(*unused: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    kept = cache.keep(cache.find(batch(0), 0), outputs(1))[0][0].logits
    assert kept is not None and kept[0, 0] == 1
    assert "no longer written (No space left on device); training continues" in caplog.text and not cache.write
    assert isinstance(cache.failure, CacheError)


def test_another_cache_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = open_cache(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stream"]["seed"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match=r"delete it \(stream\.seed \(1, now 0\)\)"):
        open_cache(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="delete it"):
        open_cache(tmp_path)


@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_numbers_that_float16_does_not_have(value: float, tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    with pytest.raises(CacheError, match=r"logits are not finite in float16 for 1 of 2 samples.*dtype: float32"):
        cache.keep(cache.find(batch(0, 1), 0), outputs(0, value))
    assert not cache.find(batch(0, 1), 0).there.any()
    if value == 1e5:
        wide = RowLayout([FeatureShapes(5, 3)], 1, CacheSettings(pooled=True, dtype="float32"))
        exact = open_cache(tmp_path, layout=wide)
        exact.keep(exact.find(batch(0, 1), 0), outputs(0, value))
        assert logits(exact, batch(1), 0)[0].tolist() == [1e5 + n for n in range(5)]


# --- What a row keeps ---------------------------------------------------------------------------------------------


def test_top_logits_by_hand() -> None:
    z = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    values, classes = top_logits(z, 2)
    rest = np.log((np.exp(0) + np.exp(1)) / 2)
    assert classes.tolist() == [[1, 3]] and values[0].tolist() == pytest.approx([3, 2, rest])
    assert from_top(values, classes, 4)[0].tolist() == pytest.approx([rest, 3, rest, 2])


@pytest.mark.parametrize("k", [1, 5, 19])
def test_top_logits_keep_their_probabilities_and_share_the_rest_evenly(k: int) -> None:
    z = 3 * torch.randn(7, 20, generator=torch.Generator().manual_seed(k))
    again = from_top(*top_logits(z, k), 20).softmax(1)
    for before, after in zip(z.softmax(1), again):
        top = before.argsort(descending=True)[:k]
        others = torch.ones(20, dtype=torch.bool).index_fill(0, top, False)
        torch.testing.assert_close(after[top], before[top])
        torch.testing.assert_close(after[others], before[others].mean().expand(20 - k))


@pytest.mark.parametrize("classes", [5, 40_000])
def test_a_row_of_several_networks_and_views_comes_back(classes: int) -> None:
    shapes = [FeatureShapes(classes, 3), FeatureShapes(4, 2)]
    layout = RowLayout(shapes, 2, CacheSettings(logits=2, pooled=True, dtype="float32"))
    generator = torch.Generator().manual_seed(0)
    features = [
        [
            Features(
                logits=torch.randn(3, of.classes, generator=generator),
                pooled=torch.randn(3, of.pooled, generator=generator),
            )
            for _ in range(2)
        ]
        for of in shapes
    ]
    again = layout.decode(layout.unpack(layout.pack(layout.encode(features)), torch.device("cpu")))
    for network_before, network_after in zip(features, again, strict=True):
        for before, after in zip(network_before, network_after, strict=True):
            assert before.logits is not None and after.logits is not None
            assert torch.equal(after.pooled, before.pooled)
            assert torch.equal(after.logits, from_top(*top_logits(before.logits, 2), before.logits.shape[1]))
            assert torch.equal(after.logits.argmax(1), before.logits.argmax(1))


def test_float16_changes_the_loss_by_less_than_a_thousandth() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (Features(logits=4 * torch.randn(64, 100, generator=generator)) for _ in range(2))
    layout = RowLayout([FeatureShapes(100, 3)], 1, CacheSettings())
    [[kept]] = layout.decode(layout.encode([[teacher]]))
    from distill.objectives.base import Targets

    shapes = FeatureShapes(100, 3)
    kd, labels = KD(KD.Settings(), shapes, shapes), Targets(torch.zeros(64, dtype=torch.int64))
    exact, rounded = kd(student, teacher, labels), kd(student, kept, labels)
    assert 0 < abs(rounded - exact) < 1e-3 * exact


# --- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "objectives", "error_at"),
    [
        ({}, [{"type": "fitnets"}], r"teacher\.cache: fitnets reads the teacher's maps, which no cache holds"),
        ({}, [{"type": "kd"}, {"type": "pooled"}], r"teacher\.cache\.pooled: pooled reads .* features; set true"),
        ({"logits": "none", "pooled": True}, [{"type": "kd"}], r"teacher\.cache\.logits: kd reads .*; set full, or"),
        ({"logits": "none"}, [{"type": "kd"}], r"teacher\.cache\.logits: none without pooled features"),
        ({"logits": 0}, [{"type": "kd"}], r"teacher\.cache\.logits"),
    ],
)
def test_a_cache_that_objectives_cannot_live_on(
    cache: dict[str, Any], objectives: list[dict[str, Any]], error_at: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=error_at):
        experiment(tmp_path, teacher={"cache": cache}, objectives=objectives)


@pytest.mark.parametrize(
    ("changes", "reader"),
    [
        ({"training": {"curriculum": {"epochs": 1, "by": "entropy"}}}, r"training\.curriculum"),
        ({"teacher": {"weighting": {"type": "confidence"}}}, r"teacher\.weighting"),
        ({"labels": {"a": 1}}, r"teacher\.networks\.labels"),
    ],
)
def test_what_else_reads_logits(changes: dict[str, Any], reader: str, tmp_path: Path) -> None:
    networks = [network(tmp_path, "test_resnet"), {**network(tmp_path, "test_resnet", 1)}]
    networks[0] |= {"labels": changes.pop("labels")} if "labels" in changes else {}
    cache = {"networks": networks, "cache": {"logits": "none", "pooled": True}}
    changes = {**changes, "teacher": {**changes.get("teacher", {}), **cache}, "objectives": [{"type": "pooled"}]}
    with pytest.raises(ConfigError, match=rf"teacher\.cache\.logits: {reader} reads the teacher's logits"):
        experiment(tmp_path, **changes)


def test_as_many_top_classes_as_there_are(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"teacher\.cache\.logits: 5 of 5 classes cannot be the top ones; use full"):
        RowLayout([FeatureShapes(5, 3)], 1, CacheSettings(logits=5))


def test_distill_cache_without_a_cache(tmp_path: Path) -> None:
    for teacher in ({}, {"cache": {**NEEDED, "write": False}}):
        with pytest.raises(ConfigError, match=r"nothing to write: the config needs a teacher with teacher\.cache"):
            fill_cache(experiment(tmp_path, teacher=teacher), Console(quiet=True))
