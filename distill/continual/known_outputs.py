"""Outputs of a stream's networks on test images: the rows that are known, and those that are still to be computed.

A bank's network never changes, so its output for an image is computed once in a stream, and only if a score reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distill.continual.learned import LearnedNetwork
from distill.continual.task import Task, evaluation_split
from distill.data.base import Samples, Split
from distill.data.split import Subset
from distill.models.features import Features
from distill.models.network import Network, extract
from distill.run.context import RunContext
from distill.run.predict import logits_of
from distill.training.evaluate import Predictions

Pair = tuple[str, str]
"""(network, task on whose test images)."""
Known = Mapping[Pair, Predictions]
"""Logits [n, K] of the network's classes for some images of the task, or all, ordered by id; labels are indices into
the task's classes."""
LOGITS = frozenset({"logits"})


def at_ids(known: Predictions, ids: Tensor) -> Predictions:
    """The rows of some images, all of which are known, in the order of ``ids`` [n]."""
    rows = torch.searchsorted(known.ids, ids)
    return Predictions(known.logits[rows], known.labels[rows], known.ids[rows])


def absent(known: Predictions | None, ids: Tensor) -> Tensor:
    """Those of the ids [n] that are not known."""
    return ids if known is None else ids[~torch.isin(ids, known.ids)]


def with_more(known: Known, made: Known) -> dict[Pair, Predictions]:
    """What is known after more was made; rows that were made again replace those that were known."""
    together = dict(known)
    for pair, more in made.items():
        before = together.get(pair)
        rest = absent(more, before.ids) if before is not None else None
        if before is None or rest is None or not len(rest):
            together[pair] = more
            continue
        kept = at_ids(before, rest)
        columns = [torch.cat([getattr(part, name) for part in (kept, more)]) for name in ("logits", "labels", "ids")]
        order = columns[2].argsort()
        together[pair] = Predictions(*(column[order] for column in columns))
    return together


def predict_part(
    context: RunContext, part: LearnedNetwork, tasks: Mapping[str, Task], wanted: Mapping[str, Tensor | None]
) -> dict[Pair, Predictions]:
    """Logits of a network for test images.

    Args:
        context: of the run, with its whole data.
        part: is read from its files, once.
        tasks: by their names.
        wanted: task → ids [n] of images; None: all of its test images, in batches of their own.

    Returns:
        A pair for each task in ``wanted``.
    """
    if not wanted:
        return {}
    network = part.load()
    made: dict[Pair, Predictions] = {}
    of_images: dict[object, Predictions] = {}
    for name in [name for name, ids in wanted.items() if ids is None]:
        data = tasks[name].data(context.data, tasks[name].classes, context.seed)
        split = evaluation_split(data)
        images = tasks[name].images(split)
        if images not in of_images:  # the tasks of some streams have the same test images
            of_images[images] = _predict(replace(context, data=data), network, split)
        made[part.name, name] = of_images[images]
    some = {tasks[name]: ids for name, ids in wanted.items() if ids is not None}
    return made | {(part.name, task): own for task, own in _predict_rows(context, network, some).items()}


@dataclass(frozen=True)
class _Rows:
    """Some test images of a task."""

    task: str
    subset: Subset


def _predict_rows(context: RunContext, network: Network, wanted: Mapping[Task, Tensor]) -> dict[str, Predictions]:
    """Task → logits for some of its images. Images that come from one split are read in one pass, each once."""
    by_samples: defaultdict[tuple[int, Split], list[_Rows]] = defaultdict(list)
    for task, ids in wanted.items():
        split = evaluation_split(task.data(context.data, task.classes, context.seed))
        every = task.subset(context.data, split, task.classes)
        chosen = every.where(np.isin(every.keys, ids.numpy()))
        by_samples[id(chosen.samples), split].append(_Rows(task.name, chosen))
    made = {}
    for (_, split), of_samples in by_samples.items():
        samples: Samples = of_samples[0].subset.samples
        indices = np.unique(np.concatenate([rows.subset.indices for rows in of_samples]))
        indices = np.resize(indices, max(len(indices), context.data.world_size))  # every rank gets an image
        together = Subset(samples, indices, np.zeros(len(indices), dtype=np.int64))
        within = replace(context, data=context.data.part((), {split: together}, context.seed))
        predicted = _predict(within, network, split)
        for rows in of_samples:
            order = rows.subset.keys.argsort()
            own = at_ids(predicted, torch.from_numpy(rows.subset.keys[order]))
            made[rows.task] = replace(own, labels=torch.from_numpy(rows.subset.labels[order]))
    return made


def _predict(within: RunContext, network: Network, split: Split) -> Predictions:
    def logits_of_view(view: Tensor) -> Tensor:
        features: Features = extract(network.model, view, LOGITS)
        return logits_of(features)

    loader = within.loader(split, network.input)
    return within.predict(network.model, logits_of_view, network.input, loader)
