"""Streams: how data is divided into tasks, in which order they come, and what is refused."""

from pathlib import Path

import pytest
from toy_stream import stream

from distill.continual.errors import ContinualError
from distill.continual.open_stream import open_stream
from distill.continual.streams.base import PAPER_ORDERS, in_order
from distill.continual.streams.classes import Classes
from distill.continual.task import Task
from distill.run.context import make_data


def names(*groups: str) -> list[Task]:
    return [Task(name, (), {}) for name in groups]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"count": 3}, [4, 3, 3]),
        ({"step": 5}, [5, 5]),
        ({"step": 4}, [4, 4, 2]),
        ({"first": 6, "step": 2}, [6, 2, 2]),
        ({"sizes": [7, 1, 2]}, [7, 1, 2]),
        ({"count": 1}, [10]),
        ({"count": 10}, [1] * 10),
    ],
)
def test_groups_of_classes(settings: dict, sizes: list[int]) -> None:
    groups = Classes(Classes.Settings(**settings)).groups(list("abcdefghij"))
    assert [len(group) for group in groups] == sizes
    assert "".join(name for group in groups for name in group) == "abcdefghij"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 11}, "stream.count: 11 tasks of 10 classes"),
        ({"first": 11, "step": 1}, "stream.first: 11 of 10 classes"),
        ({"sizes": [3, 3]}, "stream.sizes: they add up to 6, and there are 10"),
    ],
)
def test_groups_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ContinualError, match=message):
        Classes(Classes.Settings(**settings)).groups(list("abcdefghij"))


@pytest.mark.parametrize("settings", [{}, {"count": 2, "step": 3}, {"first": 3}, {"first": 3, "count": 2}])
def test_one_way_to_divide(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"count|step"):
        Classes.Settings(**settings)


def test_orders_of_tasks() -> None:
    tasks = names(*(f"t{n}" for n in range(10)))
    assert [task.name for task in in_order(tasks, "B")] == [f"t{n}" for n in PAPER_ORDERS[10]["B"]]
    keyed = [task.name for task in in_order(tasks, 3)]
    assert keyed == [task.name for task in in_order(tasks, 3)] != [task.name for task in in_order(tasks, 4)]
    assert sorted(keyed) == [task.name for task in tasks]
    given = tuple(f"t{n}" for n in range(9, -1, -1))
    assert [task.name for task in in_order(tasks, given)] == list(given)
    for orders in PAPER_ORDERS.values():
        assert {tuple(sorted(order)) for order in orders.values()} == {tuple(sorted(orders["A"]))}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("A", "A is an order of 10 or 20 tasks, and there are 2"),
        (("one", "tow"), "no task 'tow'.*two"),
        (("one",), "must name each task once; check two"),
        (("one", "one"), "must name each task once"),
    ],
)
def test_orders_that_do_not_fit(order: str | tuple[str, ...], message: str) -> None:
    with pytest.raises(ContinualError, match=message):
        in_order(names("one", "two"), order)


def test_a_task_holds_its_own_samples_with_its_own_labels(tmp_path: Path) -> None:
    settings = stream(tmp_path, stream={"order": ["d", "b", "a", "c"]})
    first, second = open_stream(settings)
    assert (first.classes, second.classes) == (("d", "b"), ("a", "c"))
    whole = make_data(settings)
    data = first.data(whole, ("b", "c", "d"), seed=0)
    assert list(data.classes) == ["b", "c", "d"] and set(data.subset("train").labels.tolist()) == {0, 2}
    together = [id for task in (first, second) for id in task.data(whole, task.classes, 0).subset("train").ids]
    assert sorted(together) == sorted(whole.subset("train").ids)
    assert first.data(whole, first.classes, 0).seed != second.data(whole, second.classes, 0).seed != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": {"order": ["a", "b", "c", "e"]}}, "stream.order: there is no class 'e'"),
        ({"stream": {"order": ["a", "b", "c"]}}, "stream.order leaves out 1 class.*'d'"),
        ({"stream": {"order": ["a", "b", "c", "c", "d"]}}, "names a class twice"),
        ({"stream": {"count": 5}}, "stream.count: 5 tasks of 4 classes"),
        ({"data": {"source": {"labeled": False}}}, "needs a source with class names"),
    ],
)
def test_streams_that_the_data_does_not_allow(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=message):
        open_stream(stream(tmp_path, **changes))
