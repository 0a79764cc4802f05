"""The items of a stream in the report: a table, accuracy on seen tasks, bytes after each task, accuracy matrices."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict

from distill.continual.measured import MeasuredModel, StreamResult
from distill.continual.orders import StageBytes, growth
from distill.continual.scores import Setting
from distill.report.items import (
    Column,
    Headline,
    Item,
    Line,
    Lines,
    Matrix,
    Metric,
    Note,
    Table,
    TableRow,
)

TITLES: dict[Setting, str] = {
    "class": "class-incremental: all classes seen so far compete",
    "domain": "domain-incremental: the task is unknown, all tasks have the same classes",
    "task": "task-incremental: the task of an image is known",
    "representation": "representation: a classifier of all classes is fitted on frozen features, to evaluate them",
}
CONTROL, BELOW = "slda", "▼"
EXPLAINED = (
    "Accuracy: of all test images of all tasks, after the last task; mean of tasks: each with the same weight; mean of "
    "stages: of the accuracy on the tasks seen so far. Forgetting: highest earlier minus last accuracy. Plasticity: "
    "accuracy of a task just after it was learned. Served: bytes that prediction reads besides the backbone, divided "
    "by the number of tasks; kept: with what the next task needs; peak: the most at any time; growth: all that is "
    f"served, of the backbone's bytes. {BELOW}: trained, and below SLDA on frozen features."
)
MOST_LINES = 14
"""Lines of a figure; further controls are left out of it, lowest first."""


def stream_items(result: StreamResult, model: str, trained: Collection[str], seed: int) -> Iterator[Item]:
    """The items of a stream.

    Args:
        result: all its models.
        model: name of the experiment's own learner; names of its variants begin with it.
        trained: names of models that are trained by gradients, beside those of the experiment's own learner.
        seed: of the run.

    Yields:
        Headlines, a table, figures, a note for models below the control, and every metric.
    """
    shown = [setting for setting in TITLES if any(each.setting == setting for each in result.models)]
    own_first = sorted(result.models, key=lambda each: not each.name.startswith(model))
    models = [each for setting in shown for each in own_first if each.setting == setting]
    below = [each for each in models if _below(each, models, model, trained)]
    yield from _headlines(result, model, shown)
    for setting in shown:
        caption = EXPLAINED if setting == shown[0] else ""
        yield _table(result, setting, [each for each in models if each.setting == setting], below, model, caption)
    for setting in shown:
        yield from _curves(result, [each for each in models if each.setting == setting], setting, model)
    yield from _bytes(result, model, trained)
    for each in models:
        yield Matrix(
            title=each.name,
            rows=tuple(f"after {task}" for task in result.tasks),
            columns=result.tasks,
            values=tuple(tuple(map(_known, row)) for row in each.matrix),
            section=f"Accuracy matrices, {_short(each.setting)}",
            caption="Percent of a task's test images that are right; row: after which task was learned, column: whose "
            "test images. Tasks are numbered in the order in which they were learned.",
            strong=each.name.startswith(model),
        )
    yield from _notes(models, below, shown)
    yield from _metrics(result, models, seed)


def _table(
    result: StreamResult,
    setting: Setting,
    models: list[MeasuredModel],
    below: list[MeasuredModel],
    model: str,
    caption: str,
) -> Table:
    columns = [
        Column(heading="model"),
        Column(heading="accuracy, %", unit="percent"),
        Column(heading="mean of, tasks, %", unit="percent", rank=3),
        Column(heading="mean of, stages, %", unit="percent"),
        Column(heading="forgetting, points", unit="percent"),
        Column(heading="plasticity, %", unit="percent"),
        Column(heading="BWT, points", unit="points", rank=5),
        Column(heading="FWT, points", unit="points", rank=5),
        Column(heading="served, a task", unit="bytes"),
        Column(heading="kept, a task", unit="bytes", rank=1),
        Column(heading="peak", unit="bytes", rank=4),
        Column(heading="growth, %", unit="percent", rank=2),
        Column(heading="time", unit="seconds"),
    ]
    rows = []
    for each in models:
        metrics, last = each.metrics, each.bytes[-1] if each.bytes else None
        peak = max((stage.peak for stage in each.bytes if stage.peak == stage.peak), default=math.nan)
        grown = growth([last], result.backbone)[0].served if last and result.backbone else math.nan
        numbers = (
            metrics.accuracy_micro,
            metrics.accuracy_macro,
            metrics.average_incremental_accuracy,
            metrics.forgetting,
            metrics.plasticity,
            metrics.backward_transfer,
            metrics.forward_transfer,
            last.served / len(result.tasks) if last else math.nan,
            last.kept / len(result.tasks) if last else math.nan,
            peak,
            grown,
            each.seconds,
        )
        rows.append(
            TableRow(
                cells=(each.name, *map(_known, numbers)),
                strong=each.name.startswith(model),
                mark=BELOW if each in below else "",
            )
        )
    used = [n for n, _ in enumerate(columns) if n == 0 or any(row.cells[n] is not None for row in rows)]
    return Table(
        title=TITLES[setting],
        columns=tuple(columns[n] for n in used),
        rows=tuple(row.model_copy(update={"cells": tuple(row.cells[n] for n in used)}) for row in rows),
        caption=caption,
    )


def _headlines(result: StreamResult, model: str, shown: Iterable[Setting]) -> Iterator[Item]:
    for setting in shown:
        own = [each for each in result.models if each.setting == setting and each.name.startswith(model)]
        if not own:
            continue
        best = max(own, key=lambda each: _number(each.metrics.accuracy_micro))
        short = setting.replace("class", "class-incremental").replace("domain", "domain-incremental")
        short = short.replace("task", "task-incremental").replace("representation", "all classes, on frozen features")
        yield Headline(value=_known(best.metrics.accuracy_micro), unit="percent", what=f"accuracy, {short}")
        control = _control(list(result.models), setting)
        if control is not None:
            difference = best.metrics.accuracy_micro - control.metrics.accuracy_micro
            yield Headline(value=_known(difference), unit="points", what=f"points against SLDA, {short}")
    own = [each for each in result.models if each.name.startswith(model)]
    if own:
        yield Headline(value=_known(own[0].metrics.forgetting), unit="percent", what="forgotten")
        if own[0].bytes:
            yield Headline(
                value=_known(own[0].bytes[-1].served / len(result.tasks)), unit="bytes", what="served a task"
            )


def _notes(models: list[MeasuredModel], below: list[MeasuredModel], shown: Iterable[Setting]) -> Iterator[Item]:
    for setting in shown:
        control = _control(models, setting)
        names = [f"{each.name} {each.metrics.accuracy_micro:.1%}" for each in below if each.setting == setting]
        if names and control is not None:
            yield Note(
                text=f"{_short(setting)}: trained, and below SLDA on frozen features, which has "
                f"{control.metrics.accuracy_micro:.1%}: {', '.join(names)}"
            )


def _curves(result: StreamResult, models: list[MeasuredModel], setting: Setting, model: str) -> Iterator[Item]:
    if len(result.tasks) < 2:
        return
    own = [each for each in models if each.name.startswith(model)]
    others = [each for each in models if each not in own and _stages(each) > 1]
    others.sort(key=lambda each: -_number(each.metrics.accuracy_micro))
    colors = {name: number for number, name in enumerate(dict.fromkeys(each.name for each in result.models))}
    left_out = others[max(0, MOST_LINES - len(own)) :]
    note = f" {len(left_out)} controls with lower accuracy are left out." if left_out else ""
    yield Lines(
        title=f"Accuracy on the tasks seen so far, {_short(setting)}",
        points=result.tasks,
        axis="after task",
        caption=f"Controls are dashed.{note}",
        lines=tuple(
            Line(
                name=each.name,
                values=tuple(map(_known, each.metrics.seen_accuracies)),
                dashed=each not in own,
                strong=each in own,
                color=colors[each.name],
            )
            for each in [*own, *others]
            if each not in left_out
        ),
    )


def _bytes(result: StreamResult, model: str, trained: Collection[str]) -> Iterator[Item]:
    """Bytes after each task: of the own learner all three, of the others what is served."""
    of_name: dict[str, tuple[StageBytes, ...]] = {}
    for each in result.models:
        if each.bytes and " + " not in each.name:
            of_name.setdefault(each.name, each.bytes)
    own = next((name for name in of_name if name.startswith(model)), None)
    lines = []
    if own is not None:
        for part in ("served", "kept", "peak"):
            values = tuple(_known(getattr(stage, part)) for stage in of_name[own])
            lines.append(Line(name=f"{own}, {part}", values=values, strong=part == "served"))
    for name in of_name:
        if name != own and (name in trained or name == CONTROL):
            values = tuple(_known(stage.served) for stage in of_name[name])
            lines.append(Line(name=f"{name}, served", values=values, dashed=True))
    if lines and len(result.tasks) > 1:
        yield Lines(
            title="Bytes of files after each task",
            points=result.tasks,
            axis="after task",
            unit="bytes",
            lines=tuple(lines),
            caption="Besides the backbone"
            + (f", which has {result.backbone / 1e6:.3g} MB." if result.backbone else ".")
            + " Served: what prediction reads; kept: with what the next task needs; peak: with files of the training.",
        )


def _metrics(result: StreamResult, models: list[MeasuredModel], seed: int) -> Iterator[Item]:
    for each in models:
        name = f"{each.name}, {each.setting}"
        numbers = {k: value for k, value in asdict(each.metrics).items() if isinstance(value, float)}
        grown = growth(each.bytes, result.backbone) if each.bytes and result.backbone else []
        for part in ("served", "kept", "peak"):
            for task, stage, of_backbone in zip(result.tasks, each.bytes, grown):
                numbers[f"{part} bytes after {task}"] = getattr(stage, part)
                numbers[f"growth after {task}, {part}"] = getattr(of_backbone, part)
        for task, value in zip(result.tasks, each.metrics.seen_accuracies):
            numbers[f"accuracy on seen tasks after {task}"] = value
        if each.setting == "representation":
            for task, value in zip(result.tasks, _on_all_tasks(each, result.images)):
                numbers[f"accuracy on all tasks after {task}"] = value
        numbers["seconds"] = each.seconds
        for key, value in numbers.items():
            if not math.isnan(value):
                yield Metric(name=f"{name}: {key}", value=value, seed=seed)


def _on_all_tasks(each: MeasuredModel, images: Sequence[int]) -> list[float]:
    """Accuracy on the test images of all tasks, also those that come later, after each task."""
    total = sum(images)
    return [sum(a * n for a, n in zip(row, images, strict=True)) / total for row in each.matrix]


def _below(each: MeasuredModel, models: list[MeasuredModel], model: str, trained: Collection[str]) -> bool:
    control = _control(models, each.setting)
    if control is None or not (each.name in trained or each.name.startswith(model)):
        return False
    return each.metrics.accuracy_micro < control.metrics.accuracy_micro


def _control(models: list[MeasuredModel], setting: Setting) -> MeasuredModel | None:
    return next((each for each in models if each.name == CONTROL and each.setting == setting), None)


def _stages(each: MeasuredModel) -> int:
    """After how many tasks it was evaluated."""
    return sum(any(value == value for value in row) for row in each.matrix)


def _short(setting: Setting) -> str:
    return TITLES[setting].partition(":")[0]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float) -> float:
    return -1.0 if math.isnan(value) else value
