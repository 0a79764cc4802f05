"""A stream's bank as one served model: the delta of each image's task, and logits over the classes of all tasks."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from augment.base import Registry, UserError
from augment.views import InputSpec
from distill.continual.heads.sums import Sums
from distill.continual.inference.base import TaskInference
from distill.continual.inference.class_names import classes_in
from distill.export.checksummed import Checksummed, ExportError, read_checksummed
from distill.export.delta.bank import DeltaBank
from distill.models.network import create_network, extract
from distill.models.settings import NetworkSettings

MANIFEST = "stream.json"


class BankTask(Checksummed):
    """A task of an exported stream."""

    name: str
    classes: tuple[str, ...]
    """Of its own images."""


class BankPart(Checksummed):
    """A network of an exported stream."""

    folder: str
    """In the bank's folder: a delta folder, or a timm folder."""
    classes: tuple[str, ...]
    """Of its logits, in their order."""
    over: str = ""
    """Folder of the part that its delta belongs to; empty: the stream's backbone, or the part is a whole network."""


class BankRule(Checksummed):
    """A rule of task inference, and the file of its sums."""

    settings: dict[str, Any]
    sums: str = ""
    by_task: bool = False
    """Whether the sums are by task and class, since tasks have the same classes."""


class BankManifest(Checksummed):
    """The content of ``stream.json``."""

    schema_version: Literal[1] = 1
    tasks: tuple[BankTask, ...]
    """In the order in which they were learned."""
    classes: tuple[str, ...]
    """Of the logits of the served model, in their order."""
    network: dict[str, Any]
    """Settings of the backbone."""
    parts: tuple[BankPart, ...]
    """One for each task, or one for all."""
    inference: tuple[BankRule, ...] = ()
    files: dict[str, str]
    """File, relative to the folder → its SHA-256."""


@dataclass(frozen=True)
class ServedPart:
    """A network of a served model.

    Args:
        model: a timm model, with or without deltas.
        classes: of its logits, in their order.
    """

    model: nn.Module
    classes: tuple[str, ...]


class ServedBank(nn.Module):
    """All tasks of a stream in one module: ``images [N, C, H, W] → logits [N, K]``, each image for itself.

    The task of an image is inferred by a rule, and the logits of classes of other tasks are −∞. With a single network
    there is nothing to infer: all classes compete.

    Args:
        tasks: task → names of its classes.
        classes: K names of the columns of the logits.
        parts: networks in the order of the tasks, or a single one.
        input: size and normalization of the images.
        backbone: the network without deltas, for rules that read features.
        rules: type → fitted rule that infers the task of an image; none with a single network.
        infer: type of the rule that ``forward`` uses; None: the first one.

    Raises:
        ExportError: there is no such rule.
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[str]],
        classes: Sequence[str],
        parts: Sequence[ServedPart],
        input: InputSpec,
        backbone: nn.Module | None = None,
        rules: Mapping[str, TaskInference] | None = None,
        infer: str | None = None,
    ):
        super().__init__()
        self.tasks = {name: tuple(own) for name, own in tasks.items()}
        self.classes, self.input, self.rules = tuple(classes), input, dict(rules or {})
        if infer is not None and infer not in self.rules:
            raise ExportError(f"no rule {infer!r} infers the task; there are {', '.join(self.rules) or 'none'}")
        self.inference = infer or next(iter(self.rules), None)
        self.models = nn.ModuleList([part.model for part in parts])
        self.backbone = backbone
        self._columns = [[self.classes.index(name) for name in part.classes] for part in parts]
        self.eval().requires_grad_(False)

    def extra_repr(self) -> str:
        return f"tasks={len(self.tasks)}, classes={len(self.classes)}, inference={self.inference}"

    def train(self, mode: bool = True) -> ServedBank:
        """It is only served: it stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, task: str | None = None, infer: str | None = None) -> Tensor:
        """Logits [N, K] in the order of ``classes``; −∞ for classes that do not compete.

        Args:
            images: [N, C, H, W], normalized as ``input`` says.
            task: name of the task of all images; None: it is inferred for each image.
            infer: type of the rule; None: ``self.inference``.

        Returns:
            fp32.

        Raises:
            ExportError: there is no such task, or a task is needed.
        """
        if task is not None:
            return self._of_task(images, task)
        if len(self.models) == 1:
            return self._united(images, 0)
        number_N = self.infer(images, infer)
        united = images.new_full((len(images), len(self.classes)), -torch.inf, dtype=torch.float32)
        for number in number_N.unique().tolist():
            rows = (number_N == number).nonzero().squeeze(1)
            united[rows] = self._united(images[rows], number)
        return united

    @torch.no_grad()
    def infer(self, images: Tensor, rule: str | None = None) -> Tensor:
        """Index of each image's task in ``tasks``, [N] int64, by the rule of this type (None: ``self.inference``)."""
        name = rule or self.inference
        if name not in self.rules:
            known = ", ".join(self.rules) or "none"
            raise ExportError(f"no rule {name!r} infers the task, there are: {known}; name the task of the images")
        inference = self.rules[name]
        if inference.reads == "features":
            assert self.backbone is not None
            features = extract(self.backbone, images, frozenset({"pooled"})).pooled
            return inference.infer(features).to(images.device)
        logits = {task: model(images).float() for task, model in zip(self.tasks, self.models)}
        return inference.infer(logits=logits).to(images.device)

    def _of_task(self, images: Tensor, task: str) -> Tensor:
        if task not in self.tasks:
            raise ExportError(f"no task {task!r}; there are {', '.join(self.tasks)}")
        number = list(self.tasks).index(task) if len(self.models) > 1 else 0
        others = [column for column, name in enumerate(self.classes) if name not in self.tasks[task]]
        united = self._united(images, number)
        united[:, others] = -torch.inf
        return united

    def _united(self, images: Tensor, number: int) -> Tensor:
        united = images.new_full((len(images), len(self.classes)), -torch.inf, dtype=torch.float32)
        united[:, self._columns[number]] = self.models[number](images).float()
        return united


def read_bank(folder: Path) -> BankManifest:
    """Read and check ``stream.json`` and the SHA-256 of every file that it names.

    Raises:
        ExportError: a file is absent, damaged, or leads out of the folder.
    """
    folder = Path(folder)
    manifest = read_checksummed(folder / MANIFEST, BankManifest)
    for name, sha256 in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{path}: leads out of its folder")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ExportError(f"{path}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ExportError(f"{path}: damaged or replaced, its SHA-256 is not the one in {MANIFEST}")
    return manifest


def open_bank(folder: Path, infer: str | None = None, *, allow_plugins: bool = False) -> ServedBank:
    """Open an exported stream as one model.

    Example::

        bank = open_bank(Path("runs/flowers/export/bank"), infer="mahalanobis")
        logits = bank(images)                   # [N, K], the task of each image is inferred
        logits = bank(images, task="task-3")    # the classes of one task alone compete

    Args:
        folder: holds ``stream.json``.
        infer: type of the rule that infers the task of an image; None: the first one of the run.
        allow_plugins: import delta classes outside this package that files name; importing runs code.

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        ExportError: a file is damaged, belongs to another backbone, or there is no such rule.
    """
    folder = Path(folder)
    manifest = read_bank(folder)
    network = create_network(NetworkSettings.model_validate(manifest.network))
    banks: dict[str, DeltaBank] = {}
    parts = []
    for part in manifest.parts:
        if (folder / part.folder / "config.json").is_file():
            model = _whole(folder / part.folder, manifest).model
        else:
            if part.over not in banks:
                over = _whole(folder / part.over, manifest).model if part.over else network.model
                banks[part.over] = DeltaBank(over, allow_plugins=allow_plugins)
            bank = banks[part.over]
            bank.add(part.folder, folder / part.folder)
            model = bank.model(part.folder)
        parts.append(ServedPart(model, part.classes))
    tasks = {task.name: task.classes for task in manifest.tasks}
    rules = {str(rule.settings["type"]): _rule(folder, manifest, rule) for rule in manifest.inference}
    return ServedBank(tasks, manifest.classes, parts, network.input, network.model, rules, infer)


def _whole(folder: Path, manifest: BankManifest) -> Any:
    taken = {"model": f"local-dir:{folder.resolve()}", "pretrained": True, "checkpoint": None, "prefix": None}
    return create_network(NetworkSettings.model_validate({**manifest.network, **taken}))


def _rule(folder: Path, manifest: BankManifest, chosen: BankRule) -> TaskInference:
    settings = Registry("distill.continual.inference", "TaskInference").settings_of(str(chosen.settings["type"]))
    made = settings.model_validate(chosen.settings)
    assert isinstance(made, TaskInference.Settings)
    assert made.component is not None and issubclass(made.component, TaskInference)
    rule = made.component(made)
    sums = Sums.load(folder / chosen.sums) if chosen.sums else None
    tasks = {task.name: task.classes for task in manifest.tasks}
    rule.fit(classes_in(sums, tasks, chosen.by_task), sums)
    return rule


def bank_logits(bank: ServedBank, images: Tensor) -> dict[str, Tensor]:
    """Logits [N, K] in every way in which a served model gives them: by each rule, and by the name of each task."""
    logits = {f"task/{name}": bank(images, task=name).contiguous() for name in bank.tasks}
    if len(bank.models) == 1:
        return logits | {"all classes": bank(images).contiguous()}
    return logits | {f"rule/{name}": bank(images, infer=name).contiguous() for name in bank.rules}


def _fresh_process(work: Path) -> None:
    """Write the logits of the bank that ``folder.txt`` names for the images of ``images.safetensors``."""
    images = safetensors.torch.load_file(work / "images.safetensors")["images"]
    bank = open_bank(Path((work / "folder.txt").read_text()))
    safetensors.torch.save_file(bank_logits(bank, images), work / "logits.safetensors")


if __name__ == "__main__":
    try:
        _fresh_process(Path(sys.argv[1]))
    except UserError as wrong:
        sys.exit(str(wrong))
