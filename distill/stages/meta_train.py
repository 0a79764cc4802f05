"""Meta-trains the deltas of a student on episodes of training classes, and measures episodes that start from them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from augment.chain import eval_view
from distill.data.base import UNLABELED, Split
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import Item, Line, Lines
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.prepare import StudentSpec, finished, load_trained, prepare_from, trial_student
from distill.run.stage import Ref, Stage, StageError
from distill.run.start import check_start, start_key, start_of
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import TrainedStudent
from distill.stages.run_episodes import EpisodeScores, episode_items, left_out_note
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import FitSummary, save_result
from distill.training.reptile import reptile
from distill.transfer.few_shot.base import FewShotError
from distill.transfer.few_shot.episodes import Episodes, choose_classes, draw_episodes
from distill.transfer.few_shot.settings import EpisodeSettings
from distill.transfer.meta import EpisodeViews, learn, load_state, mean_of, query_gradient, state_of
from distill.transfer.meta_settings import MetaSettings

STATE, LOG, TENSORS, ABOUT = "meta.ckpt", "meta.json", "accuracies.safetensors", "episodes.json"
NEEDS = frozenset({"logits", "pooled"})
POINTS = 20
"""Most points of the figure of accuracies."""
FINAL = "deltas trained in the episode"


@dataclass(frozen=True)
class MetaTrain(Stage[TrainedStudent]):
    """Meta-trains the deltas. The classes that episodes are drawn from afterwards are left out, with their images.

    Args:
        student: its network and deltas.
        meta: how.
        episodes: of the test, whose classes are left out; None: no class is.
    """

    student: StudentSettings
    meta: MetaSettings
    episodes: EpisodeSettings | None = None

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")
        check_start(self.student)

    def check(self, context: RunContext) -> TrainedStudent:
        """Draw the first episodes, and try an inner step."""
        self._draw(context, 0)
        spec = self._spec(context)
        with trying(f"{self.name}: an inner step"):
            student = trial_student(spec).eval()
            if not state_of(student):
                raise StageError(f"{self.name}: meta-training trains deltas, and the student has none; name them")
            images = eval_view(context.data.eval_batch("train", [0, 1], student.input).images, student.input)
            labels = torch.tensor([0, 1])
            task = EpisodeViews(images, labels, images, labels, 0)
            learn(student, task, self.meta, context.seed, 1, 2)
        return self._trained(student, spec, FitSummary(0, 0, 0.0, 0.0, {}, 0, -1), Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        exclude = {"test_steps", "test_episodes"}
        return {
            "student": self.student.model_dump(mode="json"),
            **start_key(self.student),
            "meta": self.meta.model_dump(mode="json", exclude=exclude),
            "classes": list(self._classes(context)),
            "data": [context.data.fingerprint(), context.data.settings.model_dump(mode="json", exclude={"workers"})],
        }

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        spec = self._spec(context)
        student = self._prepared(context, spec, folder)
        student.to(context.device).eval()
        progress = MetaProgress.load(folder, student)
        load_state(student, progress.theta)
        for number in range(progress.done, self.meta.iterations):
            begun = time.perf_counter()
            self._iterate(context, student, progress, number)
            progress.seconds += time.perf_counter() - begun
            progress.done = number + 1
            progress.save(folder)
            context.stop.raise_if_received()
        load_state(student, progress.theta)
        student.to("cpu")
        meta = self.meta
        images = meta.tasks * meta.ways * (meta.shots + self._queries)
        rate = progress.done * images / max(progress.seconds, 1e-9)
        fit = FitSummary(progress.done, progress.done, progress.seconds, rate, {}, 0, -1)
        if is_first_rank():
            save_result(student, folder)
            about = {"fit": vars(fit), "first": progress.first, "last": progress.last}
            write_atomic(folder / LOG, json.dumps(about).encode())
        return self._trained(finished(spec, student), spec, fit, folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        spec, about = self._spec(context), json.loads((folder / LOG).read_text())
        return self._trained(load_trained(spec, folder), spec, FitSummary(**about["fit"]), folder)

    def report(self, context: RunContext, output: TrainedStudent) -> Iterable[Item]:
        if not (output.folder / LOG).is_file() or output.folder == Path():
            return
        about = json.loads((output.folder / LOG).read_text())
        count = len(about["first"])
        size = -(-count // POINTS)
        ends = range(0, count, size)

        def binned(values: list[float]) -> tuple[float, ...]:
            return tuple(sum(values[at : at + size]) / len(values[at : at + size]) for at in ends)

        left_out, classes = self._draw(context, 0).left_out, self._classes(context)
        caption = (
            f"Accuracy on the images of an inner step, before it. {self.meta.type}, episodes of {self.meta.ways} of "
            f"{len(classes) - len(left_out)} classes"
        )
        if self._leaves_classes:
            caption += ", of which no test episode has one"
        yield Lines(
            title="Meta-training",
            points=tuple(str(min(at + size, count)) for at in ends),
            lines=(
                Line(name="first inner step", values=binned(about["first"]), dashed=True),
                Line(name="last inner step", values=binned(about["last"]), strong=True),
            ),
            axis="iteration",
            caption=f"{caption}.",
        )
        if left_out:
            yield left_out_note("no episode of meta-training", left_out, self.meta.shots + self._queries, "train")

    def _iterate(self, context: RunContext, student: Student, progress: MetaProgress, number: int) -> None:
        """One step of θ."""
        meta, made, first, last = self.meta, [], 0.0, 0.0
        episodes = self._draw(context, number * meta.tasks)
        for place in range(meta.tasks):
            context.stop.raise_if_received()
            load_state(student, progress.theta)
            task = read_task(context, "train", student, episodes, place, meta.shots, number * meta.tasks + place)
            learned = learn(student, task, meta, context.seed, meta.inner_steps, meta.inner_batch)
            first, last = first + learned.first / meta.tasks, last + learned.last / meta.tasks
            made.append(state_of(student) if meta.type == "reptile" else query_gradient(student, task, learned))
        progress.first.append(first)
        progress.last.append(last)
        if meta.type == "reptile":
            start, end = meta.step
            step = start + (end - start) * number / meta.iterations
            progress.theta = reptile(progress.theta, mean_of(made), step)
            return
        progress.descend(mean_of(made), meta.outer_lr)

    @property
    def _leaves_classes(self) -> bool:
        """Whether the classes of the test episodes are left out."""
        return self.episodes is not None and self.episodes.classes is not None

    @property
    def _queries(self) -> int:
        """Images of each class beside the shots; Reptile needs none."""
        return self.meta.queries if self.meta.type == "fomaml" else 0

    def _classes(self, context: RunContext) -> tuple[str, ...]:
        """Names of the classes that are trained on."""
        classes = context.data.classes
        if self.episodes is None or self.episodes.classes is None:
            return tuple(classes)
        tested = set(choose_classes(classes, self.episodes, context.seed))
        return tuple(name for name in classes if name not in tested)

    def _draw(self, context: RunContext, first: int) -> Episodes:
        meta, subset = self.meta, context.data.subset("train")
        drawn = EpisodeSettings(ways=meta.ways, shots=(meta.shots,), episodes=max(2, meta.tasks), split="train")
        drawn = drawn.model_copy(update={"queries": self._queries})
        among = self._classes(context)
        if len(among) < meta.ways:
            raise FewShotError(
                f"meta.ways: {meta.ways}, and {len(among)} classes are left to train on beside those of the episodes"
            )
        labels, keys = torch.from_numpy(subset.labels), torch.from_numpy(subset.keys)
        try:
            return draw_episodes(labels, keys, context.data.classes, drawn, context.seed, among, first)
        except FewShotError as error:
            raise FewShotError(f"meta: {error}") from error

    def _spec(self, context: RunContext) -> StudentSpec:
        return StudentSpec(self.student, context.seed, len(context.data.classes), NEEDS)

    def _prepared(self, context: RunContext, spec: StudentSpec, folder: Path) -> Student:
        if spec.settings.start is None:
            return spec.build()
        return prepare_from(spec, *start_of(spec, context.data.classes), folder)

    def _trained(self, student: Student, spec: StudentSpec, fit: FitSummary, folder: Path) -> TrainedStudent:
        return TrainedStudent("meta", f"deltas by {self.meta.type}", student, None, spec, fit, folder)


@dataclass
class MetaProgress:
    """What a resumed meta-training goes on from: θ, the moments of FOMAML's Adam, accuracies."""

    theta: dict[str, Tensor]
    done: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    adam: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, student: Student) -> MetaProgress:
        if not (folder / STATE).is_file():
            return cls(state_of(student))
        content = VerifiedCheckpointIO().load_checkpoint(folder / STATE, map_location=next(student.parameters()).device)
        return cls(**content)

    def save(self, folder: Path) -> None:
        if is_first_rank():
            VerifiedCheckpointIO().save_checkpoint(vars(self), folder / STATE)

    def descend(self, gradient: Mapping[str, Tensor], lr: float) -> None:
        """A step of Adam."""
        parameters = {name: value.clone().requires_grad_() for name, value in self.theta.items()}
        optimizer = torch.optim.Adam(parameters.values(), lr=lr)
        if self.adam:
            optimizer.load_state_dict(self.adam)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name]
        optimizer.step()
        self.theta = {name: parameter.detach() for name, parameter in parameters.items()}
        self.adam = optimizer.state_dict()


@dataclass(frozen=True)
class AdaptInEpisodes(Stage[EpisodeScores]):
    """Trains the deltas from θ in the first test episodes, and predicts their queries.

    Args:
        meta: inner steps, and the number of episodes.
        episodes: how they are drawn; the same ones as those of the heads.
        student: with θ.
    """

    meta: MetaSettings
    episodes: EpisodeSettings
    student: Ref[TrainedStudent]

    def key(self, context: RunContext) -> Mapping[str, Any]:
        parts = {"meta": self.meta, "episodes": self.episodes}
        return {name: part.model_dump(mode="json") for name, part in parts.items()}

    def run(self, context: RunContext, folder: Path) -> EpisodeScores:
        begun, split = time.perf_counter(), self.episodes.split
        student = context.get(self.student).student
        theta, accuracies = state_of(student), {}
        classes, subset = context.data.classes, context.data.subset(split)
        labeled = subset.labels != UNLABELED
        rows = labeled.nonzero()[0]
        among = choose_classes(classes, self.episodes, context.seed)
        settings = self.episodes.model_copy(update={"episodes": min(self.meta.test_episodes, self.episodes.episodes)})
        labels, keys = torch.from_numpy(subset.labels[labeled]), torch.from_numpy(subset.keys[labeled])
        drawn = draw_episodes(labels, keys, classes, settings, context.seed, among)
        of_split = torch.from_numpy(rows)
        episodes = Episodes(drawn.classes, of_split[drawn.support], of_split[drawn.queries])
        student.to(context.device).eval()
        for shots in self.episodes.shots:
            made = []
            for number in range(len(episodes)):
                context.stop.raise_if_received()
                load_state(student, theta)
                task = read_task(context, split, student, episodes, number, shots, number)
                learned = learn(student, task, self.meta, context.seed, self.meta.test_steps, len(task.labels))
                with torch.inference_mode():
                    right = learned.logits(student, task.queries).argmax(1) == task.query_labels
                made.append(right.double().mean().item())
            accuracies["", FINAL, shots] = torch.tensor(made, dtype=torch.float64)
        load_state(student, theta)
        student.to("cpu")
        scores = EpisodeScores(accuracies, among, (), time.perf_counter() - begun)
        if is_first_rank():
            tensors = {str(shots): own for (_, _, shots), own in accuracies.items()}
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            write_atomic(folder / ABOUT, json.dumps({"classes": among, "seconds": scores.seconds}).encode())
        return scores

    def load(self, context: RunContext, folder: Path) -> EpisodeScores:
        about = json.loads((folder / ABOUT).read_text())
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        accuracies = {("", FINAL, shots): tensors[str(shots)] for shots in self.episodes.shots}
        return EpisodeScores(accuracies, tuple(about["classes"]), (), about["seconds"])

    def report(self, context: RunContext, output: EpisodeScores) -> Iterable[Item]:
        steps = self.meta.test_steps
        title = f"Episodes in which the deltas are trained, {steps} step{'s' * (steps > 1)}"
        shared = self.episodes, context.seed, output.classes, output.seconds
        yield from episode_items(output.accuracies, *shared, title=title, headlines=False)


def read_task(
    context: RunContext, split: Split, student: Student, episodes: Episodes, place: int, shots: int, number: int
) -> EpisodeViews:
    """Read the images of an episode.

    Args:
        context: of the run, for its data and device.
        split: that the episodes were drawn from.
        student: for the size and normalization of its input.
        episodes: rows of the split.
        place: of the episode among them.
        shots: support images of each class, the first ones.
        number: of the episode, which keys the order of its images.

    Returns:
        Its views, on the device.
    """
    support, queries = episodes.support[place, :, :shots], episodes.queries[place]
    rows = torch.cat([support.flatten(), queries.flatten()]).tolist()
    batch = context.data.eval_batch(split, rows, student.input)
    views = eval_view(batch.images.to(context.device), student.input)
    ways, count = len(support), support.numel()
    labels = [torch.arange(ways, device=context.device).repeat_interleave(each.shape[1]) for each in (support, queries)]
    return EpisodeViews(views[:count], labels[0], views[count:], labels[1], number)
