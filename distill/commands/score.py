"""Which augmentation would help a student most, asked of the teacher alone: T-stddev.

Wang, Lohit, Jones and Fu, "What makes a 'good' data augmentation in knowledge distillation", NeurIPS 2022 (arXiv
2012.02909). The loss of a student is a mean over the images of an epoch. The more alike these are, the less the mean
says, so a good augmentation makes them less alike as the teacher sees them. The paper measures this on the mean of the
teacher's probabilities over a set of images::

    p̄_d = mean over the 2N images of draw d of softmax(teacher)        [K]
    T-stddev = mean over classes k of std over draws d of p̄_dk          unbiased, temperature 1

The 2N images of a draw are N training images, drawn anew, each one twice: without and with the augmentation, as the
paper trains. *Lower is better.* Without augmentation both halves are the same, which is the worst that they can be.

Caveats. It ranks pipelines for one teacher and one N (it shrinks with √N), and says nothing of how much is gained.
In the paper it goes with the student's test loss (Pearson's r 0.96 for wrn_40_2 and wrn_16_2 on CIFAR-100, over nine
augmentations), which is no promise for other data; a pipeline that destroys what the classes are can score well too.
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
"""Presets of a whole view. The others are further views of the same paper."""


def t_stddev(mean_probabilities: Tensor) -> Tensor:
    """Mean over classes of the standard deviation over draws.

    Args:
        mean_probabilities: [D, K], the teacher's mean probability of K classes in each of D ≥ 2 draws.
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
    own = settings.alone()
    found: dict[str, AugmentSettings | None] = {PLAIN: None, CONFIG: own}
    for n, op in enumerate(own.student):
        again = sum(other.type == op.type for other in own.student[:n])
        name = f"without {op.type}" + (f" (number {again + 1})" if again else "")
        found[name] = own.model_copy(update={"student": own.student[:n] + own.student[n + 1 :]})
    if settings.policy != "identical" and settings.teacher_recipe() != own.student:
        found["the teacher's chain"] = own.model_copy(update={"student": settings.teacher_recipe()})
    if own.mix is not None:
        found["without mixing"] = own.model_copy(update={"mix": None})
    for kind in ("mixup", "cutmix"):
        mix = MixSettings.model_validate({kind: 1.0})
        if own.mix is None:
            found[f"with {kind} of α 1"] = own.model_copy(update={"mix": mix})
    for name in VIEW_PRESETS:
        if (recipe := PRESETS[name]()) != own.student:
            found[f"preset {name}"] = own.model_copy(update={"student": recipe})
    return found


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
    """T-stddev of every pipeline, best first; ``this config`` must be one of them.

    Args:
        pipelines: name → settings under the policy ``identical``, or None for the images as they are.
        data: its training images are drawn from.
        teacher: in eval mode, as it would teach.
        seed, seeds: seeds ``seed`` to ``seed + seeds - 1``, each with its own images and draws.
        draws: D, at least 2.
        images: N of a draw, the first of that epoch's order, in batches of ``data.batch_size`` (what mixing mixes).
        device: where views are made and the teacher runs.
    """
    teacher.to(device)
    ids, batch = np.array(data.subset("train").ids), data.settings.batch_size
    if 4 * images > len(ids):
        raise StageError(
            f"--draw-images {images}: a draw is a sample of the training images, of which there are only {len(ids)};"
            f" at most a quarter of them, {len(ids) // 4}, or they would be much the same in every draw"
        )
    pipelines = _that_fit(pipelines, data, teacher, device)
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
            for name, found in sums.items():
                values[name].append(float(t_stddev(torch.stack(found))))
    own_values = values[CONFIG]
    scores = [
        Score(name, tuple(each), tuple(one / other for one, other in zip(each, own_values)))
        for name, each in values.items()
    ]
    return sorted(scores, key=lambda found: sum(found.values))


def _that_fit(
    pipelines: Mapping[str, AugmentSettings | None], data: ExperimentData, teacher: Teacher, device: torch.device | str
) -> dict[str, AugmentSettings | None]:
    """All but the presets that cannot be used on images or networks of these sizes, which are named."""
    batch = data.batch_of_ids(data.subset("train").ids[:1], 0)
    found: dict[str, AugmentSettings | None] = {}
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
            found[name] = settings
    return found


def _probabilities(teacher: Teacher, views: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    """[K] sum over the batch of the networks' weighted mean probability."""
    found: list[Tensor] = []
    for n, (features,) in enumerate(teacher(views)):
        assert features.logits is not None
        found.append(teacher.probabilities(n, features.logits.double()))
    return teacher.mean(found).sum(0)


def score_table(scores: list[Score], draws: int, images: int) -> RenderableType:
    """The scores as a table, mean over seeds ± the standard deviation between them, and how to read it."""
    table = Table(box=box.SIMPLE_HEAD, title="T-stddev of pipelines, lower is better", title_justify="left")
    table.add_column("pipeline", overflow="fold")
    table.add_column("T-stddev × 10⁻³", justify="right", no_wrap=True)
    table.add_column("of this config's", justify="right", no_wrap=True)
    for found in scores:
        style = "bold" if found.name == CONFIG else "dim" if found.name == PLAIN else ""
        table.add_row(Text(found.name), _spread(found.values, 1e3, 3), _spread(found.ratios, 1, 2), style=style)
    note = (
        f"mean ± sd of {len(scores[0].values)} seed(s), {draws} draws of 2 · {images} images each. It ranks, for this"
        " teacher and these images; it is no promise (arXiv 2012.02909)."
    )
    return Group(table, Text(note, style="dim"))


def _spread(values: tuple[float, ...], factor: float, digits: int) -> str:
    array = factor * np.array(values)
    spread = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{spread}"


def write_scores(scores: list[Score], stem: Path, **settings: Any) -> list[Path]:
    """``STEM-score.csv`` (pipeline, seed, value, ratio) and ``.json`` (rows as benchmarks write them); their paths."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["pipeline", "seed", "t_stddev", "ratio_to_this_config"])
    rows = []
    for found in scores:
        for number, (value, ratio) in enumerate(zip(found.values, found.ratios)):
            table.writerow([found.name, settings["seed"] + number, repr(value), repr(ratio)])
        for what, values in (("t_stddev", found.values), ("t_stddev_ratio", found.ratios)):
            rows.append(
                {
                    "name": f"{what}: {found.name}",
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
