"""``distill rank``: scores of networks for the training images of a config, without training."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from augment.base import UserError, described
from distill.data.base import UNLABELED
from distill.data.experiment_data import ExperimentData
from distill.data.split import held_out
from distill.experiments.base import Experiment
from distill.models.network import Network, extract
from distill.models.settings import NetworkSettings
from distill.report.numbers import cell
from distill.run.context import RunContext, open_context
from distill.run.stage import StageError
from distill.run.teacher_network import make_network
from distill.transfer.rank import SCORES, Score, h_score, leep, logme, nearest_class_mean

HELD_OUT = 0.2
"""Fraction of the images on which nearest class means are scored."""
WIDE = 100
"""Columns of a terminal from which on weights and times are shown too."""
TITLES: dict[Score, str] = {"logme": "LogME", "h_score": "H-score", "leep": "LEEP", "ncm": "nearest mean, %"}


@dataclass(frozen=True)
class Ranked:
    """A network's scores; NaN for one that does not apply, such as LEEP of a network without a classifier."""

    network: str
    scores: dict[Score, float] = field(default_factory=dict)
    width: int = 0
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    """Why it could not be scored; empty if it was."""


def rank(
    experiment: Experiment, names: Sequence[str], console: Console, *, by: Score, images: int, as_json: bool
) -> list[Ranked]:
    """Score networks, and print them from best to worst. A network that cannot be read does not stop the others.

    Args:
        experiment: its training images are read; networks have the input size of its student.
        names: of the networks, as ``student.network.model`` names them.
        console: where to print.
        by: the score that they are sorted by.
        images: most images, the same for all networks, as many of each class as its share; 0: all.
        as_json: print JSON on standard output instead of a table.

    Returns:
        The networks, best first, then those that could not be scored.

    Raises:
        StageError: the data has no labels of two classes, or no network could be scored.
    """
    student = getattr(experiment, "student", None)
    shared = {} if student is None else student.network.model_dump(include={"size", "in_chans"})
    with open_context(experiment, None if as_json else console) as context:
        context.data = _chosen(context.data, images)
        ranked = []
        for name in names:
            context.stop.raise_if_received()
            with context.waiting(f"scoring {name}"):
                ranked.append(_scored(context, name, shared))
        count = len(context.data.subset("train"))
    ranked.sort(key=lambda own: (bool(own.error), -_sortable(own, by)))
    if as_json:
        about = {"by": by, "images": count, "networks": [_plain(own) for own in ranked]}
        sys.stdout.write(json.dumps(about, indent=2) + "\n")
    else:
        _print(ranked, console, by, count, len(context.data.classes))
    if all(own.error for own in ranked):
        raise StageError(f"none of the {len(ranked)} networks could be scored")
    return ranked


def _chosen(data: ExperimentData, images: int) -> ExperimentData:
    """The labeled training images that are read, stratified by class."""
    train = data.subset("train")
    train = train.where(train.labels != UNLABELED)
    if (classes := len(set(train.labels.tolist()))) < 2:
        there = f"{len(train):,} labeled ones of one class" if classes else "none with a label"
        raise StageError(f"data.source: distill rank needs training images of two classes or more; there are {there}")
    if images and len(train) > images:
        train = train.where(held_out(train.ids, train.labels, images / len(train)))
    return data.part(data.classes, {"train": train}, data.seed)


def _scored(context: RunContext, name: str, shared: dict[str, object]) -> Ranked:
    begun = time.perf_counter()
    try:
        torch.manual_seed(context.seed)
        network = make_network(NetworkSettings.model_validate({**shared, "model": name}))
        features, logits, labels, held = _features(context, network)
    except ValidationError as error:
        return Ranked(name, error=error.errors()[0]["msg"])
    except Exception as error:  # any network that timm cannot build or run; the others are still ranked
        return Ranked(name, error=described(error) if not isinstance(error, UserError) else str(error))
    classes = context.data.classes
    scores: dict[Score, float] = {
        "logme": logme(features, labels, len(classes)),
        "h_score": h_score(features, labels, len(classes)),
        "leep": math.nan if logits is None else leep(logits, labels, len(classes)),
        "ncm": nearest_class_mean(features, labels, held, classes),
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.model.state_dict().values())
    return Ranked(name, scores, features.shape[1], size, time.perf_counter() - begun)


def _features(context: RunContext, network: Network) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Pooled features, logits (None without a classifier), labels, and which images are held out, by one pass."""
    model, width = network.model, 0
    has_logits = bool(getattr(model, "num_classes", 0)) and network.origin != "random"
    needs = frozenset({"pooled", "logits"}) if has_logits else frozenset({"pooled"})

    def both(view: Tensor) -> Tensor:
        nonlocal width
        made = extract(model, view, needs)
        assert made.pooled is not None
        width = made.pooled.shape[1]
        return made.pooled if made.logits is None or not has_logits else torch.cat([made.pooled, made.logits], dim=1)

    made = context.predict(model, both, network.input, context.loader("train", network.input))
    train = context.data.subset("train")
    of_key = dict(zip(train.keys.tolist(), held_out(train.ids, train.labels, HELD_OUT).tolist()))
    held = torch.tensor([of_key[key] for key in made.ids.tolist()])
    logits = made.logits[:, width:] if has_logits else None
    return made.logits[:, :width], logits, made.labels, held


def _sortable(own: Ranked, by: Score) -> float:
    score = own.scores.get(by, math.nan)
    return -math.inf if math.isnan(score) else score


def _plain(own: Ranked) -> dict[str, object]:
    scores = {name: None if math.isnan(value) else value for name, value in own.scores.items()}
    return {**vars(replace(own)), "scores": scores}


def _print(ranked: Sequence[Ranked], console: Console, by: Score, images: int, classes: int) -> None:
    order: list[Score] = [by, *(name for name in SCORES if name != by)]
    wide = console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("network", overflow="fold")
    for heading in (*(TITLES[name] for name in order), *(("weights", "time") if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    scored = [own for own in ranked if not own.error]
    for own in scored:
        cells = [_cell(own.scores[name], name) for name in order]
        if wide:
            cells += [cell(own.bytes, "bytes"), cell(own.seconds, "seconds")]
        table.add_row(Text(own.network), *cells, style="bold" if own is scored[0] else "")
    if scored:
        console.print(table)
        caption = (
            f"Sorted by {TITLES[by]}; of every score, higher is better. {images:,} training images of {classes} "
            f"classes, no test image. The nearest mean is scored on {HELD_OUT:.0%} of them, held out from the means. "
            "LEEP reads the network's own classifier."
        )
        console.print(caption, highlight=False)
    for own in ranked:
        if own.error:
            console.print(Text(f"{own.network} was left out: ", "yellow").append(own.error, "default"), soft_wrap=True)


def _cell(value: float, name: Score) -> str:
    if math.isnan(value):
        return "–"
    return cell(value, "percent") if name == "ncm" else f"{value:.3f}"
