"""Closes a task for a memory: which images it keeps, their pixels, and their logits on a view that can be repeated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from augment.draws import sample_key
from augment.dual import AugmentSettings, DualAugment
from distill.continual.memory.base import Candidates, Memory
from distill.continual.memory.keyed import keyed_order
from distill.continual.memory.store import HEADER, Store, bytes_per_image, text_bytes
from distill.continual.task import Task, keyed_seed, splits_of
from distill.data.base import UNLABELED
from distill.data.experiment_data import ExperimentData
from distill.data.replay import JoinedSamples, MemorySamples, Replay
from distill.data.split import Subset
from distill.models.network import Network, extract
from distill.run.context import RunContext
from distill.run.predict import logits_of, predict_pooled

FILE = "memory.safetensors"
LOGITS = frozenset({"logits"})


def capacity(memory: Memory, data: ExperimentData, classes: Sequence[str], names: Iterable[str]) -> int:
    """Number of images that a memory holds: as many as surely fit into a file of the budget, if that is in bytes.

    Args:
        memory: with its budget.
        data: gives the size of the canvas.
        classes: seen so far.
        names: of the images of which it keeps some; each is counted as the longest.

    Returns:
        The number.

    Raises:
        ContinualError: fewer than one for each class.
    """
    canvas = data.canvas()
    shape = canvas.channels, *canvas.size
    columns = classes if memory.settings.logits else ()
    longest = sum(max(map(text_bytes, texts), default=0) for texts in (classes, names))
    size = bytes_per_image(shape, len(columns), canvas.dtype.itemsize) + longest
    return memory.capacity(size, len(classes), HEADER + sum(map(text_bytes, columns)))


def names_in(task: Task, data: ExperimentData) -> list[str]:
    """Names in a memory of the training images of a task.

    Args:
        task: of the stream.
        data: the whole data.

    Returns:
        Their ids, behind the task's name where the same image may be in several tasks.
    """
    prefix = f"{task.name}/" if "train" in task.samples else ""
    return [prefix + id for id in task.subset(data, "train", task.classes).ids]


def samples_of(store: Store, classes: Sequence[str]) -> MemorySamples:
    """The images of a memory as training samples, with labels that are indices into ``classes``."""
    return MemorySamples(store.canvases, [classes.index(name) for name in store.labels], store.names)


def with_memory(data: ExperimentData, store: Store, share: float) -> ExperimentData:
    """Training data of a task with the images of a memory in every batch.

    As many new images of each class as the memory has of one are drawn with those of the memory, chosen by a keyed
    hash: methods that train new images among new classes alone (ER-ACE) learn from these to tell new classes from old
    ones, as they do where the memory is filled during a task.

    Args:
        data: of the task; its classes contain those of the memory.
        store: the memory.
        share: of the memory in a batch.

    Returns:
        Data that reads the task's images from the source, and those of the memory from the store.
    """
    train = data.subset("train")
    replay = Replay(len(train), share, store.view_keys, store.logits_of(data.classes), _current(train, store))
    return data.with_memory(samples_of(store, data.classes), replay)


def _current(train: Subset, store: Store) -> tuple[int, ...]:
    """Indices of the new images that are drawn with those of the memory."""
    each = max(1, round(len(store) / len(set(store.labels))))
    order = keyed_order(torch.from_numpy(train.keys), 0).numpy()
    labels = train.labels[order]
    return tuple(
        index for label in np.unique(labels[labels != UNLABELED]) for index in order[labels == label][:each].tolist()
    )


def exemplars_alone(data: ExperimentData, store: Store) -> ExperimentData:
    """The data of a task whose training images are those of a memory alone."""
    samples = samples_of(store, data.classes)
    memory = Subset(samples, np.arange(len(samples)), np.asarray(samples.labels, dtype=np.int64))
    subsets = {split: data.subset(split) for split in splits_of(data)}
    return data.part(data.classes, {**subsets, "train": memory}, data.seed)


def view_key(seed: int) -> int:
    """The key of the views that logits are stored for, the same in every task of a run with this seed."""
    return keyed_seed(seed, "memory")


def stored_logits(
    images: Tensor, ids: Tensor, network: Network, augment: AugmentSettings, seed: int, device: torch.device
) -> Tensor:
    """Logits of a network in eval mode on the stored view of images.

    Args:
        images: [N, C, H, W] uint8 or uint16, on the canvas of training.
        ids: [N] int64.
        network: on any device, to which it is returned.
        augment: of the trainings that compare with these logits; has one view of the student.
        seed: of the run.
        device: to compute on.

    Returns:
        [N, K] float32, on the CPU.
    """
    dual = DualAugment(augment.model_copy(update={"compile": False}), (), network.input, seed).to(device)
    before, model = next(network.model.parameters()).device, network.model.to(device).eval()
    rows = []
    with torch.inference_mode():
        for part, own in zip(images.split(64), ids.split(64)):
            keys = torch.full_like(own, view_key(seed))
            [view] = dual(part.to(device), own, 0, teacher=False, view_keys=keys).student
            rows.append(logits_of(extract(model, view, LOGITS)).float().cpu())
    model.to(before)
    return torch.cat(rows).clone()


def keep(
    memory: Memory,
    context: RunContext,
    task: Task,
    before: Store | None,
    network: Network,
    classes: tuple[str, ...],
    augment: AugmentSettings,
) -> Store:
    """The memory after a task.

    Args:
        memory: selects the images.
        context: of the run, with its whole data, of which no training image of another task is read.
        task: that was learned.
        before: the memory before it; None: there was none.
        network: that was learned; its logits are those of ``classes``.
        classes: seen so far.
        augment: of the trainings that compare with the stored logits.

    Returns:
        The memory, best images of each class first.

    Raises:
        ContinualError: the budget is too small, or an image is in memory already.
    """
    data = task.data(context.data, classes, context.seed)
    train = data.subset("train")
    labeled = np.flatnonzero(train.labels != UNLABELED)
    names_of_task = names_in(task, context.data)
    names = [names_of_task[position] for position in labeled]
    labels = [classes[label] for label in train.labels[labeled]]
    ids = torch.tensor([sample_key(name) for name in names], dtype=torch.int64)
    ranks = torch.full((len(ids),), -1)
    if before is not None:
        ids, labels = torch.cat([before.ids, ids]), [*before.labels, *labels]
        ranks = torch.cat([before.ranks, ranks])
    old = 0 if before is None else len(before)
    features = _features(context, data, labeled, before, network, classes) if memory.needs_features else None
    places = capacity(memory, data, classes, names if before is None else (*before.names, *names))
    chosen = memory.select(Candidates(ids, labels, features, ranks), places)
    new = chosen.rows[chosen.rows >= old]
    positions = labeled[(new - old).numpy()]
    canvases = _canvases(data, positions)
    logits, keys = None, None
    if memory.settings.logits:
        logits = torch.empty(0, len(classes))
        if len(new):
            logits = stored_logits(canvases, ids[new], network, augment, context.seed, context.device)
        keys = torch.full((len(new),), view_key(context.seed))
    store = Store(
        ids[new],
        canvases,
        tuple(labels[row] for row in new.tolist()),
        torch.zeros(len(new), dtype=torch.int64),
        keys,
        logits,
        classes if memory.settings.logits else (),
        tuple(names[row - old] for row in new.tolist()),
    )
    if before is not None:
        store = before.joined(store)
    # The rows of the new images in the joined store are behind all old ones.
    place = {int(row): number + old for number, row in enumerate(new.tolist())}
    return store.take(torch.tensor([place.get(row, row) for row in chosen.rows.tolist()]), chosen.ranks)


def _canvases(data: ExperimentData, positions: np.ndarray) -> Tensor:
    """[N, C, H, W] uint8 or uint16: training images on the canvas of training, without augmentation."""
    size = data.settings.batch_size
    parts = [
        data.eval_batch("train", positions[first : first + size].tolist()).images
        for first in range(0, len(positions), size)
    ]
    canvas = data.canvas()
    dtype = getattr(torch, canvas.dtype.name)
    return torch.cat([torch.empty(0, canvas.channels, *canvas.size, dtype=dtype), *parts])


def _features(
    context: RunContext,
    data: ExperimentData,
    labeled: np.ndarray,
    before: Store | None,
    network: Network,
    classes: tuple[str, ...],
) -> Tensor:
    """[N, D] pooled features of the images in memory, then of the task's."""
    train = data.subset("train")
    chosen = Subset(train.samples, train.indices[labeled], train.labels[labeled])
    if before is not None:
        samples = samples_of(before, classes)
        old = Subset(samples, np.arange(len(samples)), np.asarray(samples.labels, dtype=np.int64))
        chosen = JoinedSamples([old, chosen]).subset()
    within = replace(context, data=data.part(classes, {"train": chosen}, data.seed))
    predicted = predict_pooled(within, network, within.loader("train", network.input))
    rows = {int(id): row for row, id in enumerate(predicted.ids)}
    return predicted.logits[torch.tensor([rows[sample_key(id)] for id in chosen.ids])]
