"""``distill train --plan``: the stages of a config, what each needs, and which are finished already."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from augment.console import shown_path
from distill.experiments.base import Experiment
from distill.run.context import open_context
from distill.run.folder import RunError, resumable
from distill.run.runner import Progress, check_plan


def show_plan(experiment: Experiment, console: Console) -> None:
    """Print the plan. Opens data and networks to find finished stages; trains and writes nothing.

    Stages count as finished in the newest unfinished run of the same config, or if they are kept for all runs.
    """
    stages = experiment.plan()
    check_plan(stages)
    with open_context(experiment) as context:
        try:
            context.folder = resumable(experiment.output, experiment.model_dump(mode="json"))
        except RunError:
            context.folder = None
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in ("stage", "needs", "state", "folder"):
            table.add_column(heading, overflow="fold")
        for stage in stages:
            progress = Progress.of(stage, context)
            needs = ", ".join(dict.fromkeys(ref.stage for ref in stage.refs())) or "–"
            state = "finished" if progress.finished else "to do" if stage.recorded else "always done"
            style = "green" if progress.finished else ""
            folder = shown_path(progress.folder) if progress.finished else "–"
            table.add_row(Text(stage.name), Text(needs), Text(state, style=style), Text(folder))
    console.print(table)
    where = (
        f"--resume continues {shown_path(context.folder.path)}"
        if context.folder is not None
        else "a run starts from the beginning"
    )
    console.print(where, highlight=False, soft_wrap=True)
