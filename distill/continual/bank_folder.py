"""Writes the result of a stream as a bank folder, which :func:`distill.continual.serve.open_bank` opens."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from distill.continual.fitted_heads import FittedHeads
from distill.continual.heads.base import Head
from distill.continual.heads.linear import LinearHead
from distill.continual.inference.base import TaskInference
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.serve import MANIFEST, BankManifest, BankPart, BankRule, BankTask
from distill.continual.task import Task
from distill.deltas.attach import merge
from distill.export.checksummed import ExportError, write_checksummed
from distill.export.manifest import Preprocessing
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.closed_form_head import give_head
from distill.models.network import Network
from distill.models.settings import NetworkSettings

HEADS = "heads.safetensors"
FOLDED = "model"
"""Folder of a network whose classifier is a closed-form head."""


@dataclass(frozen=True)
class BankContent:
    """What a bank folder is written from.

    Args:
        tasks: of the stream, in their order.
        network: the backbone.
        learned: the learner after the last task.
        inference: rules that give the task of an image; only those of a learner with a network for each task are kept.
        heads: on the backbone's features, whose sums the rules are fitted from.
    """

    tasks: Sequence[Task]
    network: NetworkSettings
    learned: LearnedTask
    inference: Sequence[TaskInference.Settings] = ()
    heads: FittedHeads | None = None


def write_bank(folder: Path, content: BankContent) -> BankManifest:
    """Write ``stream.json``, a folder for each network, and the sums of the rules.

    Args:
        folder: where to write; what it holds is replaced.
        content: of the stream.

    Returns:
        The content of ``stream.json``.

    Raises:
        ExportError: a network has no files.
    """
    if folder.exists():
        shutil.rmtree(folder)
    parts = []
    for part in content.learned.parts:
        parts.append(BankPart(folder=part.name, classes=part.classes, over=_over(part, content.learned.parts)))
        if part.folder is None:
            raise ExportError(f"{part.name}: the network has no files")
        shutil.copytree(part.folder, folder / part.name, ignore=shutil.ignore_patterns("stage.json"))
    rules = []
    if len(parts) > 1:
        written: dict[int, str] = {}
        rules = [_write_rule(folder, rule, content.heads, written) for rule in content.inference]
    return _close(folder, content, content.learned.classes, parts, [rule for rule in rules if rule is not None])


def write_with_head(folder: Path, content: BankContent, network: Network, classes: Sequence[str]) -> BankManifest:
    """Write a network whose classifier is a closed-form head, as a bank of one timm folder.

    Args:
        folder: where to write; what it holds is replaced.
        content: of the stream.
        network: with the head, see :func:`serve_head`.
        classes: of its logits.

    Returns:
        The content of ``stream.json``.
    """
    if folder.exists():
        shutil.rmtree(folder)
    write_timm_folder(
        folder / FOLDED,
        network.model,
        origin=network.origin,
        labels=classes,
        preprocessing=Preprocessing.of(network.model, network.input.size),
    )
    return _close(folder, content, classes, [BankPart(folder=FOLDED, classes=tuple(classes))], [])


def serve_head(network: Network, head: Head, tensors: Mapping[str, Tensor], classes: Sequence[str]) -> bool:
    """Make a fitted head the classifier of a network, in place: its rows, or a module where it is not linear.

    Args:
        network: gives the features; its deltas are merged.
        head: whose ``fit`` made it.
        tensors: of the fitted head.
        classes: of its logits.

    Returns:
        Whether that was possible; False for a head that is neither linear nor has a module.

    Raises:
        ContinualError: the network's classifier is not one linear layer of the width of these features.
        NetworkError: likewise, for a head that is not linear.
    """
    merge(network.model)
    classifier = network.model.get_classifier()  # type: ignore[operator]
    module = head.classifier(tensors, classifier.in_features) if isinstance(classifier, nn.Linear) else None
    if module is not None:
        give_head(network.model, module, len(classes))
        return True
    if tensors.keys() != {"weight", "bias"}:
        return False
    LinearHead(classes, tensors["weight"].double(), tensors["bias"].double()).fold(network.model)
    return True


def tensors_of(heads: FittedHeads, name: str) -> dict[str, Tensor]:
    """The tensors of a fitted head of a stage; ``name``: of its model, with its prefix."""
    tensors = safetensors.torch.load((heads.folder / HEADS).read_bytes())
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def _over(part: LearnedNetwork, parts: Sequence[LearnedNetwork]) -> str:
    """The part whose network is the backbone of a delta; empty: the stream's own backbone."""
    model = "" if part.network is None else part.network.model
    return next((other.name for other in parts if other is not part and model == f"local-dir:{other.folder}"), "")


def _write_rule(
    folder: Path, settings: TaskInference.Settings, heads: FittedHeads | None, written: dict[int, str]
) -> BankRule | None:
    """A rule and its sums, which rules that read the same ones share; ``written``: identity of sums → their file."""
    assert settings.component is not None and issubclass(settings.component, TaskInference)
    head = settings.component(settings).head()
    plain = settings.model_dump(mode="json")
    if head is None:
        return BankRule(settings=plain)
    if heads is None:
        return None
    sums = heads.of_tasks.of(head)
    if id(sums) not in written:
        written[id(sums)] = f"sums-{settings.type}.safetensors"
        sums.save(folder / written[id(sums)])
    return BankRule(settings=plain, sums=written[id(sums)], by_task=heads.of_tasks is not heads.sums)


def _close(
    folder: Path, content: BankContent, classes: Sequence[str], parts: Sequence[BankPart], rules: Sequence[BankRule]
) -> BankManifest:
    manifest = BankManifest(
        tasks=tuple(BankTask(name=task.name, classes=task.classes) for task in content.tasks),
        classes=tuple(classes),
        network=content.network.model_dump(mode="json"),
        parts=tuple(parts),
        inference=tuple(rules),
        files=file_hashes(folder),
    )
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def file_hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder, relative to it → its SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
