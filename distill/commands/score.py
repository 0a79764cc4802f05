"""``preview --score``: ranks augmentation pipelines by the teacher's outputs alone (T-stddev); trains nothing.

Wang, Lohit, Jones and Fu, "What makes a 'good' data augmentation in knowledge distillation", NeurIPS 2022 (arXiv
2012.02909). A student's loss is a mean over the images of an epoch. The more correlated these are, the higher the
variance of that mean, so a good augmentation decorrelates them. The paper measures this on the mean of the teacher's
probabilities over a set of images::

    p̄_d = mean over the 2N images of draw d of softmax(teacher)        [K]
    T-stddev = mean over classes k of std over draws d of p̄_dk          unbiased, temperature 1

The 2N images of a draw are N training images, drawn anew, each one twice: without and with the augmentation, as the
paper trains. *Lower is better.* Without augmentation both halves are equal, which is the worst case.

Caveats. It ranks pipelines for one teacher and one N (it shrinks with √N), and does not tell how much is gained.
In the paper it correlates with the student's test loss (Pearson's r 0.96 for wrn_40_2 and wrn_16_2 on CIFAR-100, over
nine augmentations), which need not hold for other data; a pipeline that destroys the classes can score well too.
Where we deviate: the paper's first half is randomly cropped and flipped, ours is plain; the paper has N = 320 and draws
from ten epochs, we have options, and a draw is an epoch's first N; all pipelines see the same images, and they are
compared seed by seed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from torch import Tensor

from augment.chain import eval_view
from augment.dual import AugmentSettings, DualAugment
from augment.policy import MixSettings
from augment.presets import PRESETS
from distill.data.experiment_data import ExperimentData
from distill.data.order import Order
from distill.files import write_atomic
from distill.models.teacher import Teacher
from distill.run.stage import StageError

PLAIN, CONFIG = "no augmentation", "this config"
logger = logging.getLogger(__name__)
VIEW_PRESETS = ("weak", "strong", "cifar", "simclr", "mocov2", "dino", "deit3")
"""Presets of a whole view; the other presets are further views of the same papers."""


def t_stddev(mean_probabilities: Tensor) -> Tensor:
    """Mean over classes of the standard deviation over draws.

    Args:
        mean_probabilities: [D, K], the teacher's mean probability of K classes in each of D ≥ 2 draws.

    Returns:
        a scalar; 0 where all draws have the same mean.
    """
    if mean_probabilities.ndim != 2 or len(mean_probabilities) < 2:
        raise ValueError(f"mean probabilities must be [D, K] with D ≥ 2, not {list(mean_probabilities.shape)}")
    return mean_probabilities.std(dim=0).mean()


@dataclass(frozen=True)
class Score:
    """T-stddev of one pipeline: a value per seed, and its ratio to the config's own for the same seed."""

    name: str
    values: tuple[float, ...]
    ratios: tuple[float, ...]


def candidates(settings: AugmentSettings) -> dict[str, AugmentSettings | None]:
    """The pipelines to compare: the config's, each of its operations left out, with and without mixing, presets.

    Each is a chain that teacher and student would both see; None is no augmentation.
    """
    own = settings.one_view()
    pipelines: dict[str, AugmentSettings | None] = {PLAIN: None, CONFIG: own}
    for n, op in enumerate(own.student):
        again = sum(other.type == op.type for other in own.student[:n])
        name = f"without {op.type}" + (f" (number {again + 1})" if again else "")
        pipelines[name] = own.model_copy(update={"student": own.student[:n] + own.student[n + 1 :]})
    if settings.policy != "identical" and settings.teacher_recipe() != own.student:
        pipelines["the teacher's chain"] = own.model_copy(update={"student": settings.teacher_recipe()})
    if own.mix is not None:
        pipelines["without mixing"] = own.model_copy(update={"mix": None})
    for kind in ("mixup", "cutmix"):
        mix = MixSettings.model_validate({kind: 1.0})
        if own.mix is None:
            pipelines[f"with {kind} of α 1"] = own.model_copy(update={"mix": mix})
    for name in VIEW_PRESETS:
        if (recipe := PRESETS[name]()) != own.student:
            pipelines[f"preset {name}"] = own.model_copy(update={"student": recipe})
    return pipelines


@torch.no_grad()
def score(
    pipelines: Mapping[str, AugmentSettings | None],
    data: ExperimentData,
    teacher: Teacher,
    *,
    seed: int,
    seeds: int = 3,
    draws: int = 16,
    images: int = 64,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> list[Score]:
    """T-stddev of every pipeline; ``this config`` must be one of them.

    Args:
        pipelines: name → settings under the policy ``identical``, or None for the images as they are.
        data: its training images are drawn from.
        teacher: one or several networks in eval mode.
        seed: the first seed.
        seeds: number of seeds, ``seed`` to ``seed + seeds - 1``, each with its own images and draws.
        draws: D, at least 2.
        images: N of a draw, the first of that epoch's order; views are made, and mixed, in batches of ``batch_size``.
        device: where views are made and the teacher runs.
        console: shows progress; None for none.

    Returns:
        a score per pipeline, the best (lowest) first.

    Raises:
        StageError: more images in a draw than a quarter of the training images.
    """
    teacher.to(device)
    ids, batch = np.array(data.subset("train").ids), data.settings.batch_size
    if 4 * images > len(ids):
        raise StageError(
            f"--draw-images {images}: a draw is a sample of the training images, of which there are only {len(ids)};"
            f" at most a quarter of them, {len(ids) // 4}, or they would be much the same in every draw"
        )
    pipelines = _usable(pipelines, data, teacher, device)
    values: dict[str, list[float]] = {name: [] for name in pipelines}
    with Progress(console=console, transient=True, disable=console is None) as progress:
        task = progress.add_task("scoring", total=seeds * draws)
        for now in range(seed, seed + seeds):
            makers = {
                name: DualAugment(settings, teacher.inputs, teacher.inputs[0], now).to(device) if settings else None
                for name, settings in pipelines.items()
            }
            sums: dict[str, list[Tensor]] = {name: [] for name in pipelines}
            order = Order(len(ids), now)
            for draw in range(draws):
                rows = order(draw)[:images]
                total: dict[str, Tensor] = {}
                for first in range(0, images, batch):
                    loaded = data.batch_of_ids(ids[rows[first : first + batch]].tolist(), draw)
                    canvas = loaded.images.to(device)
                    plain = _probabilities(teacher, tuple((eval_view(canvas, spec),) for spec in teacher.inputs))
                    for name, maker in makers.items():
                        own = _probabilities(teacher, maker(canvas, loaded.ids, draw).teacher) if maker else plain
                        total[name] = total.get(name, 0) + plain + own
                for name, summed in total.items():
                    sums[name].append((summed / (2 * images)).cpu())
                progress.advance(task)
            for name, means in sums.items():
                values[name].append(float(t_stddev(torch.stack(means))))
    own_values = values[CONFIG]
    scores = [
        Score(name, tuple(by_seed), tuple(value / own for value, own in zip(by_seed, own_values)))
        for name, by_seed in values.items()
    ]
    return sorted(scores, key=lambda entry: sum(entry.values))


def _usable(
    pipelines: Mapping[str, AugmentSettings | None], data: ExperimentData, teacher: Teacher, device: torch.device | str
) -> dict[str, AugmentSettings | None]:
    """The pipelines without the presets that cannot be used at these image sizes; a warning names those."""
    batch = data.batch_of_ids(data.subset("train").ids[:1], 0)
    usable: dict[str, AugmentSettings | None] = {}
    for name, settings in pipelines.items():
        try:
            if settings is not None:
                maker = DualAugment(settings, teacher.inputs, teacher.inputs[0], 0).to(device)
                maker(batch.images.to(device), batch.ids, 0)
        except ValueError as error:
            if name.removeprefix("preset ") not in VIEW_PRESETS:
                raise
            logger.warning("%s is left out: %s", name, error)
        else:
            usable[name] = settings
    return usable


def _probabilities(teacher: Teacher, views: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    """[K] sum over the batch of the networks' weighted mean probability."""
    probabilities: list[Tensor] = []
    for n, (features,) in enumerate(teacher(views)):
        assert features.logits is not None
        probabilities.append(teacher.probabilities(n, features.logits.double()))
    return teacher.mean(probabilities).sum(0)


def score_table(scores: list[Score], draws: int, images: int) -> RenderableType:
    """The scores as a table with a note on how to read it: mean over seeds ± standard deviation between seeds.

    Args:
        scores: best first.
        draws: D of each score.
        images: N of a draw.

    Returns:
        the table and the note.
    """
    table = Table(box=box.SIMPLE_HEAD, title="T-stddev of pipelines, lower is better", title_justify="left")
    table.add_column("pipeline", overflow="fold")
    table.add_column("T-stddev × 10⁻³", justify="right", no_wrap=True)
    table.add_column("of this config's", justify="right", no_wrap=True)
    for entry in scores:
        style = "bold" if entry.name == CONFIG else "dim" if entry.name == PLAIN else ""
        table.add_row(Text(entry.name), _spread(entry.values, 1e3, 3), _spread(entry.ratios, 1, 2), style=style)
    note = (
        f"mean ± sd of {len(scores[0].values)} seed(s), {draws} draws of 2 · {images} images each. It ranks pipelines"
        " for this teacher and these images, and does not predict a gain (arXiv 2012.02909)."
    )
    return Group(table, Text(note, style="dim"))


def _spread(values: tuple[float, ...], factor: float, digits: int) -> str:
    array = factor * np.array(values)
    spread = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{spread}"


def write_scores(scores: list[Score], stem: Path, **settings: Any) -> list[Path]:
    """Write ``STEM-score.csv`` (pipeline, seed, value, ratio) and ``STEM-score.json`` (rows as benchmarks write them).

    Args:
        scores: of all pipelines.
        stem: path without suffix.
        settings: kept in the JSON file; ``seed`` is the first seed.

    Returns:
        the paths of both files.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["pipeline", "seed", "t_stddev", "ratio_to_this_config"])
    rows = []
    for entry in scores:
        for number, (value, ratio) in enumerate(zip(entry.values, entry.ratios)):
            table.writerow([entry.name, settings["seed"] + number, repr(value), repr(ratio)])
        for what, values in (("t_stddev", entry.values), ("t_stddev_ratio", entry.ratios)):
            rows.append(
                {
                    "name": f"{what}: {entry.name}",
                    "value": float(np.mean(values)),
                    "unit": "probability" if what == "t_stddev" else "of this config's",
                    "low": min(values),
                    "high": max(values),
                }
            )
    paths = [stem.with_name(f"{stem.name}-score{suffix}") for suffix in (".csv", ".json")]
    write_atomic(paths[0], text.getvalue().encode())
    write_atomic(paths[1], json.dumps({"settings": settings, "rows": rows}, indent=2).encode())
    return paths
