"""Files and workers that fail for real."""

import os
import signal
import time

import pytest
from toy_source import indices, toy

from distill.data.base import DataError


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_files_are_named_replaced_and_counted_in_training(workers: int, caplog) -> None:
    module = toy(faults={3: "corrupt", 30: "corrupt"}, corrupt_budget=0.05, workers=workers)
    loader = module.train_loader()
    epochs = [list(loader) for _ in range(2)]
    assert sorted(loader.unreadable) == ["train/003", "train/030"]
    assert [record.getMessage() for record in caplog.records].count(
        "skipped an unreadable image: train/003: cannot be decoded"
    ) == 1
    for batches in epochs:
        seen = indices(batches)
        assert len(seen) == 40 and set(seen) == set(range(40)) - {3, 30}
        assert all(len(set(indices([batch]))) == 8 for batch in batches), "no batch has a sample twice"
    again = toy(faults={3: "corrupt", 30: "corrupt"}, corrupt_budget=0.05).train_loader()
    assert indices(again) == indices(epochs[0])


def test_beyond_the_budget_all_are_listed() -> None:
    loader = toy(faults={3: "corrupt", 30: "corrupt", 31: "corrupt"}, corrupt_budget=0.05).train_loader()
    with pytest.raises(DataError, match=r"3 unreadable image\(s\), 2 allowed") as error:
        list(loader)
    for id in ("train/003", "train/030", "train/031"):
        assert id in str(error.value)
    with pytest.raises(DataError, match="1 unreadable"):
        list(toy(faults={3: "corrupt"}, corrupt_budget=0).train_loader())


def test_nothing_readable_ends() -> None:
    with pytest.raises(DataError, match="unreadable"):
        list(toy(faults=dict.fromkeys(range(40), "corrupt"), corrupt_budget=0.9).train_loader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_an_error_in_evaluation(workers: int) -> None:
    with pytest.raises(DataError, match="val/003: cannot be decoded"):
        list(toy(faults={3: "corrupt"}, corrupt_budget=0.5, workers=workers).eval_loader("val"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_raising_source_is_an_error_with_the_sample(workers: int) -> None:
    with pytest.raises(DataError, match=r"(?s)train/011: .*KeyError: 'a bug in a source'"):
        list(toy(faults={11: "bug"}, corrupt_budget=0.5, workers=workers).train_loader())


@pytest.mark.slow
@pytest.mark.parametrize("busy", [0, 0.05])
def test_a_killed_worker_ends_the_run_with_the_sample(busy: float) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"a data worker died while reading .*'train/011'"):
        for _ in toy(faults={11: "kill"}, workers=2).train_loader():
            time.sleep(busy)  # the death must not come out here, where nothing is known of the sample
    assert time.perf_counter() - started < 20


@pytest.mark.slow
def test_a_worker_killed_from_outside_ends_the_run() -> None:
    loader = toy(samples=4000, workers=2).train_loader()
    with pytest.raises(DataError, match="a data worker died"):
        for count, _ in enumerate(loader):
            if count == 3:
                os.kill(loader._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]


def test_a_hung_worker_ends_the_run_with_the_sample() -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"a data worker returned nothing for 1 s while reading 'train/011'"):
        list(toy(faults={11: "hang"}, workers=2, worker_timeout=1).train_loader())
    assert time.perf_counter() - started < 20


@pytest.mark.slow
def test_spawned_workers_import_nothing_heavy() -> None:
    with pytest.raises(DataError, match=r"imported: \[\], python modules: True"):
        list(toy(faults={0: "import"}, samples=1, workers=1, start_method="spawn").eval_loader("val"))
