"""Exports a stream as a bank folder, and verifies it in a new process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.continual.bank_folder import BankContent, serve_head, tensors_of, write_bank, write_with_head
from distill.continual.fitted_heads import FittedHeads
from distill.continual.heads.base import Head
from distill.continual.inference.base import TaskInference
from distill.continual.inference.class_names import classes_in
from distill.continual.learned import LearnedTask, folder_bytes
from distill.continual.serve import ServedBank, ServedPart, bank_logits
from distill.continual.task import EVALUATED, Task
from distill.export.verify import TOLERANCE, fresh_process
from distill.files import write_atomic
from distill.models.network import Network, create_network, extract
from distill.models.settings import NetworkSettings
from distill.report.items import Check, Files, Item, Note, Sizes
from distill.run.context import RunContext
from distill.run.export import verification_images
from distill.run.stage import Ref, Stage

BANK, WRITTEN = "bank", "written.json"
MIN_IMAGES, MAX_IMAGES, COMPARISONS = 16, 64, 256
"""Of the real images on which the files must give the logits of the run's networks. Each image goes through the network
of each task, so there are as many as give 256 comparisons, within these limits."""


@dataclass(frozen=True)
class ExportedStream:
    """A bank folder; no folder if the stream cannot be exported, for a reason."""

    folder: Path | None
    bytes: int = 0
    checks: tuple[Check, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class ExportStream(Stage[ExportedStream]):
    """Writes what serves a stream into ``export/bank``, and compares it with the run's networks in a new process.

    A bank has a delta folder or a timm folder for each task, and the sums from which the task of an image is inferred;
    a learner with one network has one folder. A closed-form head that is served is the classifier of a timm folder: a
    linear layer, or a module of :mod:`distill.models.closed_form_head`.

    Args:
        tasks: all tasks, in their order.
        network: the backbone.
        learned: the learner after the last task.
        heads: on the backbone's features, for task inference.
        served: heads on the student's features, of which ``head`` is served.
        head: the settings of the served head.
        prefix: of the served head's model.
        inference: rules that give the task of an image.
    """

    tasks: tuple[Task, ...]
    network: NetworkSettings
    learned: Ref[LearnedTask]
    heads: Ref[FittedHeads] | None = None
    served: Ref[FittedHeads] | None = None
    head: Head.Settings | None = None
    prefix: str = ""
    inference: tuple[TaskInference.Settings, ...] = ()

    first_rank: ClassVar[bool] = True

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "network": self.network.model_dump(mode="json"),
            "head": self.head and self.head.model_dump(mode="json"),
            "inference": [rule.model_dump(mode="json") for rule in self.inference],
        }

    def run(self, context: RunContext, folder: Path) -> ExportedStream:
        output = self._export(context, folder / BANK)
        about = {
            "bytes": output.bytes,
            "checks": [check.model_dump() for check in output.checks],
            "refused": output.refused,
        }
        write_atomic(folder / WRITTEN, json.dumps(about, indent=2).encode())
        return output

    def load(self, context: RunContext, folder: Path) -> ExportedStream:
        about = json.loads((folder / WRITTEN).read_text())
        checks = tuple(Check.model_validate(check) for check in about["checks"])
        return ExportedStream(None if about["refused"] else folder / BANK, about["bytes"], checks, about["refused"])

    def report(self, context: RunContext, output: ExportedStream) -> Iterable[Item]:
        if output.refused:
            yield Note(text=output.refused)
            return
        yield Sizes(bytes={"exported bank": output.bytes, "backbone": context.get(self.learned).backbone})
        assert output.folder is not None
        yield Files(paths={"bank": output.folder})
        yield from output.checks

    def _export(self, context: RunContext, folder: Path) -> ExportedStream:
        learned = context.get(self.learned)
        heads = None if self.heads is None else context.get(self.heads)
        content = BankContent(self.tasks, self.network, learned, self.inference, heads)
        if self.served is None:
            write_bank(folder, content)
            backbone = create_network(self.network)
            spec, make_live = backbone.input, partial(self._live_bank, backbone, learned, heads)
        else:
            assert self.head is not None and learned.features is not None
            served, name = context.get(self.served), self.prefix + self.head.shown
            assert self.head.component is not None and issubclass(self.head.component, Head)
            head, network = self.head.component(self.head), learned.features.load()
            classes, tensors = served.sums.of(head).classes, tensors_of(served, name)
            if not serve_head(network, head, tensors, classes):
                text = f"no bank: the served head {self.head.shown} is not linear, and {self.head.type} has no module"
                return ExportedStream(None, refused=text)
            write_with_head(folder, content, network, classes)
            part = ServedPart(_HeadOnFeatures(learned.features.load().model, network.model), classes)
            spec, make_live = network.input, partial(ServedBank, self._classes, classes, [part], network.input)
        count = min(MAX_IMAGES, max(MIN_IMAGES, COMPARISONS // len(self.tasks)))
        images = verification_images(context, spec, count, EVALUATED)[:count]
        checks = self._verify(folder, make_live, images)
        return ExportedStream(folder, folder_bytes(folder), checks)

    @property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        return {task.name: task.classes for task in self.tasks}

    def _live_bank(self, backbone: Network, learned: LearnedTask, heads: FittedHeads | None) -> ServedBank:
        parts = [ServedPart(part.load().model, part.classes) for part in learned.parts]
        rules = {rule.settings.type: rule for rule in self._fitted(heads)} if len(parts) > 1 else {}
        return ServedBank(self._classes, learned.classes, parts, backbone.input, backbone.model, rules)

    def _fitted(self, heads: FittedHeads | None) -> Iterable[TaskInference]:
        for settings in self.inference:
            assert settings.component is not None and issubclass(settings.component, TaskInference)
            rule = settings.component(settings)
            head = rule.head()
            if head is None or heads is not None:
                sums = heads.of_tasks.of(head) if head is not None and heads is not None else None
                by_task = heads is not None and heads.of_tasks is not heads.sums
                rule.fit(classes_in(sums, self._classes, by_task), sums)
                yield rule

    def _verify(self, folder: Path, make_live: Callable[[], ServedBank], images: Tensor) -> tuple[Check, ...]:
        """Compare the logits of a new process, which opens the folder, with those of the networks of the run."""
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            (work / "folder.txt").write_text(str(folder.resolve()))
            safetensors.torch.save_file({"images": images.contiguous()}, work / "images.safetensors")
            with fresh_process(work, "distill.continual.serve"):  # at the same time: with many tasks both take long
                expected = bank_logits(make_live(), images)
            written = safetensors.torch.load_file(work / "logits.safetensors")
        worst, same = 0.0, True
        for key, logits in expected.items():
            own = written[key]
            finite = logits.isfinite()
            same &= torch.equal(finite, own.isfinite()) and torch.equal(logits.argmax(1), own.argmax(1))
            if finite.any():
                largest = logits[finite].abs().max()
                worst = max(worst, float(((logits - own)[finite].abs().max() / largest).nan_to_num(torch.inf)))
        passed = same and worst <= TOLERANCE and written.keys() == expected.keys()
        detail = f"{len(expected)} ways to predict {len(images)} images, relative difference {worst:.1e}"
        return (Check(name="bank in a new process = networks of the run", passed=passed, detail=detail),)


class _HeadOnFeatures(nn.Module):
    """The classifier of a network, on the pooled features of the one whose features it was fitted on."""

    def __init__(self, network: nn.Module, served: nn.Module):
        super().__init__()
        self.network, self.head = network, served.get_classifier()  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        features = extract(self.network, images, frozenset({"pooled"})).pooled
        assert features is not None
        logits: Tensor = self.head(features)
        return logits
