"""Progress of a fit on the console: a live bar on a terminal, and a line for each epoch."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from distill.training.timer import SPANS


class FitProgress:
    """Shows a bar with the remaining time, images per second, the loss terms, and the fractions of the step's time.

    Args:
        name: the stage, e.g. ``student``.
        console: where to print; None prints nothing (ranks other than the first).
    """

    def __init__(self, name: str, console: Console | None):
        self.name = name
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task(name, total=None)
        self._live: Live | None = None
        self._metrics: dict[str, float] = {}
        self._epochs = 0

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Show the bar.

        Args:
            epochs: length of the fit.
            steps_per_epoch: updates in an epoch.
            step: steps that are done already, in a resumed fit.
        """
        self._epochs = epochs
        self._progress.update(self._task, total=epochs * steps_per_epoch, completed=step)
        if self.console is not None and self.console.is_terminal:
            self._live = Live(Group(self._progress, Text()), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def note(self, text: str) -> None:
        """Print a line."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)

    def step(self, step: int) -> None:
        """Move the bar to ``step`` finished steps."""
        self._progress.update(self._task, completed=step)

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Show the metrics of the steps before ``step``."""
        self._metrics = metrics
        self.step(step)
        if self._live is not None:
            self._live.update(Group(self._progress, self._described()))

    def epoch_end(self, epoch: int, scores: dict[str, float]) -> None:
        """Print the scores of an epoch, which is counted from 0, and the last metrics."""
        if self.console is None:
            return
        parts = [f"{name.replace('/', ' ')} {value:.2%}" for name, value in scores.items()]
        heading = Text.assemble((self.name, "bold"), f" epoch {epoch + 1}/{self._epochs}")
        self.console.print(Text("  ").join([heading, *map(Text, parts)]))
        self.console.print(self._described())

    def _described(self) -> Padding:
        """The last metrics, indented by two columns."""
        assert self.console is not None
        return Padding(Text(describe(self._metrics, self.console.width - 2), style="dim"), (0, 0, 0, 2))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def describe(metrics: dict[str, float], width: int) -> str:
    """Speed, loss, unweighted terms, and each span's percentage of the step's time, in one line or two lines."""
    if not metrics:
        return ""
    terms = " ".join(f"{n.removeprefix('loss/')} {v:.3g}" for n, v in metrics.items() if n.startswith("loss/"))
    percents = {span: f"{metrics.get(f'share/{span}', 0):.0%}" for span in SPANS}
    fractions = " ".join(f"{span} {percent}" for span, percent in percents.items() if percent != "0%")
    parts = f"{metrics['images_per_second']:.0f} img/s  loss {metrics['loss']:.3g} ({terms})", fractions
    line = "  ".join(parts)
    return line if len(line) <= width else "\n".join(parts)
