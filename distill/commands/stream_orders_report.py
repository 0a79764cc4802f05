"""The page of ``distill continual orders``: order disparity beside the noise of seeds, and every run's accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.continual.orders import order_disparity
from distill.report.items import Column, Headline, Item, Line, Lines, Matrix, Note, Picture, Table, TableRow

OWN = "student"
"""Name of the experiment's own learner; names of its variants begin with it."""
SEEN = "Accuracy on the tasks seen so far, "
"""Beginning of the title of a run's figure, which ends with the setting."""
EXPLAINED = (
    "A task's range is its highest minus its lowest accuracy after the last task, over runs in different orders, or "
    "with different seeds in the first order. AOPD is the mean over the tasks, MOPD the maximum. What is not above the "
    "number for seeds is no effect of the order. Ranges grow with the number of runs."
)


@dataclass(frozen=True)
class Disparities:
    """Spread of the tasks' final accuracies of one model in one setting; fractions.

    Args:
        model: its name.
        setting: of the evaluation.
        accuracy: mean of the tasks, mean over orders.
        aopd: average over tasks of the range over orders.
        mopd: the largest one.
        aopd_seeds: the same as ``aopd`` over seeds in one order: the noise that it has to exceed.
        mopd_seeds: the same as ``mopd`` over seeds.
    """

    model: str
    setting: str
    accuracy: float
    aopd: float
    mopd: float
    aopd_seeds: float
    mopd_seeds: float


@dataclass(frozen=True)
class FinishedRun:
    """A run in one order with one seed.

    Args:
        label: of the run, in tables and figures.
        summary: of its report, as ``results.json`` has it.
        of_seed: whether it repeats the first order with another seed.
    """

    label: str
    summary: Mapping[str, Any]
    of_seed: bool = False

    @property
    def final(self) -> dict[tuple[str, str], dict[str, float]]:
        """(model, setting) → task → its accuracy after the last task; NaN where it was not measured."""
        finals = {}
        for matrix in self.summary["matrices"]:
            last = [float("nan") if value is None else value for value in matrix["values"][-1]]
            finals[matrix["title"], matrix["section"].rpartition(", ")[2]] = dict(zip(matrix["columns"], last))
        return finals

    @property
    def seen(self) -> dict[tuple[str, str], tuple[float | None, ...]]:
        """(model, setting) → accuracy on the tasks seen so far after each task."""
        return {
            (line["name"], lines["title"].removeprefix(SEEN)): tuple(line["values"])
            for lines in self.summary["lines"]
            if lines["title"].startswith(SEEN)
            for line in lines["lines"]
        }


def order_items(compared: Sequence[Disparities], runs: Sequence[FinishedRun], figure: Path | None) -> Iterator[Item]:
    """The items of the page.

    Args:
        compared: the spread of each model in each setting.
        runs: in every order, the first one first, then those of other seeds.
        figure: the PNG of all spreads; None: there is none.

    Yields:
        Headlines, a table, the figure, curves and final accuracies of the experiment's own learner, and notes.
    """
    own = [each for each in compared if each.model.startswith(OWN)]
    orders, seeds = sum(not run.of_seed for run in runs), 1 + sum(run.of_seed for run in runs)
    for each in own[:2]:
        yield Headline(value=known(each.aopd), unit="percent", what=f"AOPD of {orders} orders, {each.setting}")
        yield Headline(value=known(each.aopd_seeds), unit="percent", what=f"AOPD of {seeds} seeds, {each.setting}")
    yield table_of(compared, orders, seeds)
    if figure is not None:
        text = "Mean and maximum over tasks of the range of the final accuracy, of each model"
        yield Picture(title="Ranges of all models", path=figure, alt=text, caption=f"{text}: over orders, over seeds.")
    for each in own:
        key = (each.model, each.setting)
        yield from _curves(key, [run for run in runs if key in run.seen])
        yield _finals(key, runs)
    for each in own:
        if each.aopd > each.aopd_seeds:
            yield Note(
                text=f"{each.model}, {each.setting}: the order changes accuracies by more than the seed does "
                f"(AOPD {100 * each.aopd:.1f} points over orders, {100 * each.aopd_seeds:.1f} over seeds)"
            )


def table_of(compared: Sequence[Disparities], orders: int, seeds: int) -> Table:
    """The spread of all models as a table.

    Args:
        compared: the models.
        orders: number of orders.
        seeds: number of seeds.

    Returns:
        The table.
    """
    columns = (
        Column(heading="model"),
        Column(heading="setting", rank=2),
        Column(heading="accuracy, %", unit="percent", rank=1),
        Column(heading=f"AOPD, {orders} orders", unit="percent"),
        Column(heading=f"AOPD, {seeds} seeds", unit="percent"),
        Column(heading=f"MOPD, {orders} orders", unit="percent"),
        Column(heading=f"MOPD, {seeds} seeds", unit="percent"),
    )
    rows = [
        TableRow(
            cells=(
                each.model,
                each.setting,
                *map(known, (each.accuracy, each.aopd, each.aopd_seeds, each.mopd, each.mopd_seeds)),
            ),
            strong=each.model.startswith(OWN),
        )
        for each in compared
    ]
    title = "Range of a task's final accuracy, points"
    return Table(title=title, columns=columns, rows=tuple(rows), caption=EXPLAINED)


def _curves(key: tuple[str, str], runs: Sequence[FinishedRun]) -> Iterator[Item]:
    """Accuracy on the tasks seen so far, one line for each run."""
    if not runs:
        return
    lines = [Line(name=run.label, values=run.seen[key], dashed=run.of_seed, strong=not run.of_seed) for run in runs]
    count = max(len(line.values) for line in lines)
    yield Lines(
        title=f"{SEEN}{key[0]}, {key[1]}",
        points=tuple(map(str, range(1, count + 1))),
        axis="number of tasks",
        caption="One line for each order; other seeds in the first order are dashed.",
        lines=tuple(lines),
    )


def _finals(key: tuple[str, str], runs: Sequence[FinishedRun]) -> Matrix:
    """The final accuracy of each task in each run, and its range."""
    tasks = tuple(runs[0].final[key])
    of_seeds = [runs[0], *(run for run in runs if run.of_seed)]
    rows = {run.label: run.final[key] for run in runs}
    rows["range over orders"] = order_disparity([run.final[key] for run in runs if not run.of_seed]).by_task  # type: ignore[assignment]
    rows["range over seeds"] = order_disparity([run.final[key] for run in of_seeds]).by_task  # type: ignore[assignment]
    return Matrix(
        title=f"Final accuracy of each task: {key[0]}, {key[1]}",
        rows=tuple(rows),
        columns=tasks,
        values=tuple(tuple(known(row[task]) for task in tasks) for row in rows.values()),
        caption="After the last task of each run. Columns are in the first order.",
        strong=True,
    )


def known(value: float) -> float | None:
    """The value; None for NaN."""
    return value if value == value else None
