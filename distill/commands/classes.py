"""``distill classes``: the classes of a head that was made from texts, and further ones by their texts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from augment.console import shown_path
from distill.config import read_run
from distill.continual.heads.linear import LinearHead
from distill.experiments.zero_shot import ZeroShotExperiment
from distill.export.checksummed import ExportError
from distill.export.classes import MANIFEST, ClassesManifest, exported_class, read_classes, write_classes
from distill.export.delta.io import read_delta
from distill.export.settings import DELTA
from distill.models.student import Student
from distill.run.context import RunContext, open_context
from distill.run.export import EXPORT, export_student, verification_images, verify_export
from distill.run.folder import check_finished
from distill.run.prepare import StudentSpec
from distill.run.teacher import text_store
from distill.stages.text_items import shown
from distill.text.classes import ClassText, class_texts, embed_classes, fingerprints
from distill.text.names import TextError, folded
from distill.text.settings import TextSettings
from distill.transfer.text_head import TextMap
from distill.yaml_tree import ConfigError

TOLERANCE = 1e-4
"""Largest relative difference of the head from what the map and the texts give."""


@dataclass(frozen=True)
class TextHeadExport:
    """An export of a head that was made from texts."""

    folder: Path
    manifest: ClassesManifest
    map: TextMap
    embeddings: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.manifest.classes)


def list_classes(run: Path, console: Console) -> None:
    """Print the classes of a run's newest export, with what is known about each.

    Args:
        run: folder of a run of ``kind: zero_shot``.
        console: where to print.
    """
    _experiment(run)
    head = read_export(newest_export(run))
    rows = [
        (each.name, each.source or "its name", each.definitions[0] if each.definitions else "")
        for each in head.manifest.classes
    ]
    taken = sum(max(map(len, column)) for column in ([row[0] for row in rows], [row[1] for row in rows]))
    table = Table("class", "source", "definition", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, source, definition in rows:
        table.add_row(name, source, shown(definition, max(20, console.width - taken - 9)))
    console.print(table)
    console.print(f"{len(head.names)} classes in {shown_path(head.folder)}", highlight=False, soft_wrap=True)


def add_classes(run: Path, names: Sequence[str], definitions: Sequence[str], to: Path | None, console: Console) -> Path:
    """Add classes to the head of a finished run by their texts, without training, as a new verified export.

    The rows of the other classes stay as they are, bit for bit. The export is written beside its final folder, verified
    in a new process, and then renamed; those before stay.

    Args:
        run: folder of a run of ``kind: zero_shot``.
        names: of the new classes.
        definitions: texts about them, for one new class; empty: from the run's knowledge.
        to: folder of the new export, which does not exist; None: ``RUN/export-2``, or the next number.
        console: where to print.

    Returns:
        The folder of the new export.

    Raises:
        TextError: an empty or known name, or another text encoder than the run's.
        ExportError: the export is damaged, or its head is not what its texts give; or the new one fails its checks.
    """
    experiment = _experiment(run)
    if definitions and len(names) > 1:
        raise TextError("--definition is about one class; add the others in commands of their own")
    head = read_export(newest_export(run))
    target = to or _next_export(run)
    if target.exists():
        raise ExportError(f"{target} exists; name a folder that does not")
    settings = TextSettings.model_validate(head.manifest.text)
    if (now := fingerprints(settings)[0]) != head.manifest.encoder:
        raise TextError(f"the head was made by the text encoder {head.manifest.encoder}, and this is {now}")
    unfinished = target.with_name(f"{target.name}.unfinished")
    with open_context(experiment, console) as context:
        added = _texts_of(head.names, names, definitions, settings, context)
        embeddings_KE = torch.cat([head.embeddings, embed_classes(added, settings, text_store(context))])
        weight, bias = head.map.head(embeddings_KE[len(head.names) :])
        classes = (*head.names, *(each.name for each in added))
        wider = LinearHead(classes, torch.cat([head.weight, weight.float()]), torch.cat([head.bias, bias.float()]))
        student = _student(experiment, wider)
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            export_student(context, experiment.export, student, unfinished, (), classes)
            entries = [exported_class(each, settings.formats, settings.texts) for each in added]
            write_classes(
                unfinished,
                {**head.map.tensors(), "embeddings": embeddings_KE},
                **{**_about(head.manifest), "classes": (*head.manifest.classes, *entries)},
                delta=read_delta(unfinished / DELTA)[0].sha256,
            )
            _verify(experiment, context, head, student, unfinished)
            read_export(unfinished)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    for each in added:
        console.print(f"{each.name}: {each.definitions[0] if each.definitions else 'nothing is known, by its name'}")
    console.print(
        f"wrote {shown_path(target)}: {len(classes)} classes, verified; the logits of the {len(head.names)} others are "
        "unchanged",
        highlight=False,
        soft_wrap=True,
    )
    return target


def newest_export(run: Path) -> Path:
    """The export of a run with the highest number: ``export``, ``export-2``, …"""
    numbered = [(int(match[1]), path) for path in run.iterdir() if (match := re.fullmatch(r"export-(\d+)", path.name))]
    return max(numbered)[1] if numbered else run / EXPORT


def read_export(folder: Path) -> TextHeadExport:
    """The head of an export, after the check that it is what the map gives for the texts.

    Raises:
        ExportError: a file is damaged or absent, or the head is another one.
    """
    if not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder} has no {MANIFEST}: its head was not made from texts (kind: zero_shot)")
    manifest, tensors = read_classes(folder)
    delta, parts = read_delta(folder / DELTA)
    names = tuple(each.name for each in manifest.classes)
    if delta.sha256 != manifest.delta or delta.labels != names:
        raise ExportError(f"{folder / MANIFEST} belongs to another delta file than {folder / DELTA}")
    fitted = TextMap(tensors["map"], tensors["mean"], tensors["center"], manifest.scale)
    weight, bias = (
        next(t for key, t in parts.items() if key.startswith("head/") and key.endswith(f".{part}"))
        for part in ("weight", "bias")
    )
    expected = fitted.head(tensors["embeddings"])
    for own, wanted in ((weight, expected[0]), (bias, expected[1])):
        if own.shape != wanted.shape or (own - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1e-6):
            raise ExportError(f"{folder}: the head is not the one that the map and the texts give")
    return TextHeadExport(folder, manifest, fitted, tensors["embeddings"], weight, bias)


def _experiment(run: Path) -> ZeroShotExperiment:
    experiment = read_run(run)[0]
    if not isinstance(experiment, ZeroShotExperiment):
        raise ConfigError(f"{run}: kind: {experiment.kind}; classes are added to the head of a run of kind: zero_shot")
    check_finished(run, run / EXPORT)
    return experiment


def _next_export(run: Path) -> Path:
    newest = newest_export(run).name.partition("-")[2]
    return run / f"{EXPORT}-{int(newest or 1) + 1}"


def _texts_of(
    known: Sequence[str],
    names: Sequence[str],
    definitions: Sequence[str],
    settings: TextSettings,
    context: RunContext,
) -> tuple[ClassText, ...]:
    """The texts of the new classes; a sense is chosen among all classes."""
    for name in names:
        if same := [other for other in known if folded(other) == folded(name)]:
            raise TextError(f"there is a class {same[0]!r} already")
    texts = class_texts([*known, *names], settings, text_store(context), "classes")[len(known) :]
    if not definitions:
        return texts
    return tuple(ClassText(each.name, tuple(definitions), "the command line", synonym=each.synonym) for each in texts)


def _student(experiment: ZeroShotExperiment, head: LinearHead) -> Student:
    student = StudentSpec(experiment.student, experiment.seed, len(head.classes)).build()
    head.fold(student.model)
    return student


def _about(manifest: ClassesManifest) -> dict:
    return {name: getattr(manifest, name) for name in ("text", "encoder", "scale")}


def _verify(
    experiment: ZeroShotExperiment, context: RunContext, head: TextHeadExport, student: Student, folder: Path
) -> None:
    """Raise ``ExportError`` unless the exported models agree, and the logits of the former classes are unchanged."""
    checks = verify_export(context, experiment.student, experiment.export, folder, student)
    if failed := [check for check in checks if not check.passed]:
        raise ExportError("; ".join(f"{check.name}: {check.detail}" for check in failed))
    images = verification_images(context, student.input, min(64, experiment.export.verify_images))
    before = _student(experiment, LinearHead(head.names, head.weight, head.bias))
    with torch.inference_mode():
        old, new = before.model.eval()(images), student.model.eval()(images)[:, : len(head.names)]
    if not torch.allclose(old, new, rtol=1e-5, atol=1e-5 * float(old.abs().max())):
        raise ExportError("the logits of the former classes have changed; does the network have random weights?")
