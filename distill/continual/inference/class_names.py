"""Names of classes in the sums that task inference reads, where several tasks have classes of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.continual.heads.sums import Sums


def class_of(task: str, name: str) -> str:
    """The name of a task's class in sums by task and class."""
    return f"{task}/{name}"


def classes_in(sums: Sums | None, tasks: Mapping[str, Sequence[str]], by_task: bool) -> dict[str, Sequence[str]]:
    """The classes of tasks by their names in sums.

    Args:
        sums: that a rule is fitted from; None: it reads logits.
        tasks: name of each task → its classes.
        by_task: whether the sums are by task and class.

    Returns:
        Name of each task → its classes in the sums; a task may lack images of a class.
    """
    if sums is None or not by_task:
        return dict(tasks)
    return {
        task: [named for name in classes if (named := class_of(task, name)) in sums.classes]
        for task, classes in tasks.items()
    }
