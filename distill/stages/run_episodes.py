"""Few-shot episodes of cached features: the accuracy of each head, with its 95 % interval."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distill.data.base import UNLABELED, Split
from distill.files import write_atomic
from distill.report.items import Column, Headline, Item, Metric, Note, Table, TableRow
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage
from distill.stages.fit_shots import read_texts, texts_key
from distill.stages.pooled_features import SplitFeatures
from distill.transfer.few_shot.base import FewShotError, FewShotHead
from distill.transfer.few_shot.episodes import (
    Episodes,
    choose_classes,
    draw_episodes,
    episode_accuracies,
    interval,
)
from distill.transfer.few_shot.settings import EpisodeSettings

TENSORS, ABOUT = "accuracies.safetensors", "episodes.json"


@dataclass(frozen=True)
class EpisodeScores:
    """Accuracies of heads in episodes.

    Args:
        accuracies: (features, head, shots) → [E] the accuracy in each episode; all have the same queries.
        classes: that episodes were drawn from.
        left_out: classes with too few images.
        seconds: wall time of drawing, fitting and predicting, without the features.
        unsolved: head → number of its fits that stopped before they converged, if there are any.
    """

    accuracies: Mapping[tuple[str, str, int], Tensor]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    seconds: float
    unsolved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEpisodes(Stage[EpisodeScores]):
    """Fits every head in every episode, and predicts its queries. Nothing is chosen by the accuracies.

    Args:
        heads: their settings.
        episodes: how they are drawn.
        features: of the split that they are drawn from, by each network that is compared.
        names: of these networks.
    """

    heads: tuple[FewShotHead.Settings, ...]
    episodes: EpisodeSettings
    features: tuple[Ref[SplitFeatures], ...]
    names: tuple[str, ...] = ("",)

    def check(self, context: RunContext) -> None:
        split = self.episodes.split
        if not context.data.has_split(split):
            raise FewShotError(f"episodes.split: the data has no {split} images; draw from another split")
        subset = context.data.subset(split)
        labeled = subset.labels != UNLABELED
        self._draw(context, torch.from_numpy(subset.labels[labeled]), torch.from_numpy(subset.keys[labeled]))
        for settings in self.heads:
            if (texts := read_texts(settings)) is not None:
                missing = [name for name in context.data.classes if name not in texts]
                if missing:
                    raise FewShotError(f"{settings.type}.text: there is no text embedding of {missing[0]!r}")

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "heads": [head.model_dump(mode="json") for head in self.heads],
            "episodes": self.episodes.model_dump(mode="json"),
            "texts": texts_key(self.heads),
            "data": context.data.fingerprint(),
        }

    def run(self, context: RunContext, folder: Path) -> EpisodeScores:
        begun, accuracies = time.perf_counter(), {}
        left_out: tuple[str, ...] = ()
        unsolved: dict[str, int] = {}
        for name, ref in zip(self.names, self.features, strict=True):
            own = context.get(ref).splits[self.episodes.split]
            episodes = self._draw(context, own.labels, own.ids)
            left_out = episodes.left_out
            for settings in self.heads:
                head: FewShotHead = settings.component(settings)  # type: ignore[misc, assignment]
                texts = read_texts(settings)
                by_index = None if texts is None else {n: texts[each] for n, each in enumerate(context.data.classes)}
                for shots in self.episodes.shots:
                    context.stop.raise_if_received()
                    made = episode_accuracies(head, own.logits, episodes, shots, by_index)
                    accuracies[name, settings.shown, shots] = made
                if head.unsolved:
                    unsolved[settings.shown] = unsolved.get(settings.shown, 0) + head.unsolved
        classes = choose_classes(context.data.classes, self.episodes, context.seed)
        scores = EpisodeScores(accuracies, classes, left_out, time.perf_counter() - begun, unsolved)
        if is_first_rank():
            tensors = {"\n".join(map(str, key)): own for key, own in accuracies.items()}
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            about = {"classes": classes, "left_out": left_out, "seconds": scores.seconds, "unsolved": unsolved}
            write_atomic(folder / ABOUT, json.dumps(about).encode())
        return scores

    def load(self, context: RunContext, folder: Path) -> EpisodeScores:
        about = json.loads((folder / ABOUT).read_text())
        accuracies = {}
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        for name in self.names:
            for settings in self.heads:
                for shots in self.episodes.shots:
                    key = name, settings.shown, shots
                    accuracies[key] = tensors["\n".join(map(str, key))]
        classes, left_out = tuple(about["classes"]), tuple(about["left_out"])
        return EpisodeScores(accuracies, classes, left_out, about["seconds"], about["unsolved"])

    def report(self, context: RunContext, output: EpisodeScores) -> Iterable[Item]:
        own = self.episodes
        yield from episode_items(output.accuracies, own, context.seed, output.classes, output.seconds)
        if output.left_out:
            yield left_out_note("no episode", output.left_out, max(own.shots) + own.queries, own.split)
        fits = len(own.shots) * len(self.features) * own.episodes
        for name, count in output.unsolved.items():
            text = f"{name}: in {count:,} of {fits:,} fits the solver stopped at its limit of steps before it converged"
            yield Note(text=text)

    def _draw(self, context: RunContext, labels: Tensor, ids: Tensor) -> Episodes:
        classes = context.data.classes
        among = choose_classes(classes, self.episodes, context.seed)
        return draw_episodes(labels, ids, classes, self.episodes, context.seed, among)


def left_out_note(what: str, names: Sequence[str], need: int, split: Split) -> Note:
    """The note about classes with too few images.

    Args:
        what: has none of them, such as "no episode".
        names: of the classes.
        need: number of labeled images that a class of an episode takes.
        split: that episodes are drawn from.
    """
    shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    return Note(text=f"{what} has {shown}: fewer than {need} labeled images of {split}")


def episode_items(
    accuracies: Mapping[tuple[str, str, int], Tensor],
    settings: EpisodeSettings,
    seed: int,
    classes: tuple[str, ...],
    seconds: float,
    title: str = "Few-shot episodes",
    headlines: bool = True,
) -> Iterable[Item]:
    """The table, the metrics and the headlines of episodes.

    Args:
        accuracies: see :class:`EpisodeScores`.
        settings: of the episodes.
        seed: of the run.
        classes: that they were drawn from.
        seconds: that they took.
        title: of the table.
        headlines: whether the first head on the last features is at the top of the report.

    Yields:
        The items.
    """
    shown = [(name, head) for name, head, shots in accuracies if shots == settings.shots[0]]
    rows = []
    subject = next(own for own in shown if own[0] == shown[-1][0])  # the network of the run, its first head
    for name, head in shown:
        estimates = [interval(accuracies[name, head, shots]) for shots in settings.shots]
        label = f"{name}, {head}" if name else head
        cells = (label, *(f"{100 * own.value:.1f} ± {50 * (own.high - own.low):.1f}" for own in estimates))
        rows.append(TableRow(cells=cells))
        for shots, own in zip(settings.shots, estimates):
            metric = f"{settings.ways}-way {shots}-shot accuracy of {label}"
            yield Metric(name=metric, value=own.value, low=own.low, high=own.high, seed=seed)
            if headlines and (name, head) == subject:
                yield Headline(value=own.value, unit="percent", what=metric)
    columns = (Column(heading="head"), *(Column(heading=f"{shots}-shot", unit="text") for shots in settings.shots))
    count = len(next(iter(accuracies.values())))
    caption = (
        f"Accuracy in % with its 95 % interval, mean over {count:,} episodes of {settings.ways} of {len(classes)} "
        f"classes with {settings.queries} queries each, images of {settings.split}; {seconds:.1f} s."
    )
    yield Table(title=title, columns=columns, rows=tuple(rows), caption=caption)
