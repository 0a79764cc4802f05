"""Implements ``distill delta …``: reads files, finds their backbone, writes the result, prints its sizes and its error.

Exact operations print that they are exact. The others (truncate, quantize) measure the change of the logits: on the
validation images of a config, else on seeded noise. That needs the backbone: that of the config, or the one that the
file names, if it can be created and its SHA-256 is that in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from distill.deltas.rank_settings import parse_bytes
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta import algebra
from distill.export.delta.compare import diff, logits_change, seeded_images
from distill.export.delta.io import MANIFEST, TENSORS, DeltaManifest, load_delta
from distill.export.delta.model import DeltaFile, open_delta, save_delta_file
from distill.export.delta.packing import Format
from distill.export.delta.quantize import quantize
from distill.export.delta.truncate import truncate
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.fingerprint import fingerprint
from distill.models.network import timm_with_own_models
from distill.models.settings import NetworkSettings
from distill.models.weights import NetworkError

IMAGES = 64


def combine_files(
    operation: str,
    paths: list[Path],
    to: Path,
    config: Path | None,
    allow_plugins: bool,
    options: Mapping[str, Any],
    console: Console,
) -> None:
    """Run one of the operations of :mod:`distill.export.delta.algebra`.

    Args:
        operation: name of its function.
        paths: delta folders.
        to: the folder to write.
        config: experiment with the backbone and validation images; None: the backbone that the file names, and noise.
        allow_plugins: import delta classes outside this package that a file names.
        options: the other arguments of the function.
        console: where to print.
    """
    files = [open_delta(path, allow_plugins) for path in paths]
    compute = getattr(algebra, operation)
    try:
        done = compute(*files, **options)
    except algebra.NeedsBackbone as needs:
        backbone = find_backbone(files[0].manifest, config)
        if isinstance(backbone, str):
            raise ExportError(f"{needs} ({backbone})") from None
        done = compute(*files, **options, backbone=backbone)
    save_delta_file(to, done.file, done.made_by)
    _print_size(to, done.file, files, console)
    if done.dense:
        size = sum(done.dense.values())
        console.print(
            f"exact up to rounding: {len(done.dense)} sites have no common form and became dense differences, "
            f"{size:,} bytes, e.g. {next(iter(done.dense))}",
            highlight=False,
        )
    else:
        console.print("exact: every layer has a form for the result")


def truncate_file(
    path: Path,
    to: Path,
    rank: int | None,
    budget: str | None,
    config: Path | None,
    allow_plugins: bool,
    console: Console,
) -> None:
    """Run ``distill delta truncate``: write the file, print sizes, ranks and the change of the logits.

    Args:
        path: a delta folder.
        to: the folder to write.
        rank: largest rank per site.
        budget: bytes of all deltas, such as ``200KB``; give this or ``rank``.
        config: experiment with the backbone and validation images; None: the backbone that the file names, and noise.
        allow_plugins: import delta classes outside this package that a file names.
        console: where to print.
    """
    file = open_delta(path, allow_plugins)
    backbone = find_backbone(file.manifest, config)
    try:
        limit = None if budget is None else parse_bytes(budget)
    except ValueError as error:
        raise ExportError(f"--budget: {error}") from None
    done = truncate(file, skeleton(file.manifest), rank=rank, budget=limit)
    save_delta_file(to, done.file, done.made_by)
    _print_size(to, done.file, [file], console)
    ranks = [rank for rank in done.ranks.values() if rank]
    console.print(
        f"ranks {min(ranks, default=0)} to {max(ranks, default=0)} at {len(ranks)} of {len(done.ranks)} sites; "
        f"{done.kept:.2%} of the squared change of their weights is left",
        highlight=False,
    )
    _print_change(path, to, file.manifest, backbone, config, allow_plugins, console)


def quantize_file(
    path: Path,
    to: Path,
    form: Format,
    head: Format | None,
    config: Path | None,
    allow_plugins: bool,
    console: Console,
) -> None:
    """Run ``distill delta quantize``: write the file, print sizes and the change of the logits.

    Args:
        path: a delta folder.
        to: the folder to write.
        form: format of the deltas.
        head: format of the head; None: as it is.
        config: experiment with the backbone and validation images; None: the backbone that the file names, and noise.
        allow_plugins: import delta classes outside this package that a file names.
        console: where to print.
    """
    file = open_delta(path, allow_plugins)
    backbone = find_backbone(file.manifest, config)
    quantize(file, to, form, head)
    _print_size(to, file, [file], console)
    _print_change(path, to, file.manifest, backbone, config, allow_plugins, console)


def diff_files(first: Path, second: Path, config: Path | None, allow_plugins: bool, console: Console) -> None:
    """Run ``distill delta diff``: print a table with a line per site, and the sizes.

    Args:
        first: a delta folder.
        second: another one, of the same backbone.
        config: an experiment with the backbone; None: the backbone that the file names.
        allow_plugins: import delta classes outside this package that a file names.
        console: where to print.
    """
    a, b = (open_delta(path, allow_plugins) for path in (first, second))
    algebra.check_one_backbone(a, b)
    backbone = find_backbone(a.manifest, config)
    if isinstance(backbone, str):
        lines = diff(a, b, skeleton(a.manifest), knows_values=False)
    else:
        lines = diff(a, b, backbone, knows_values=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("site", overflow="fold")
    for heading in ("‖first‖", "‖second‖", "distance", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        cosine = "–" if line.cosine is None else f"{line.cosine:.3f}"
        style = "bold" if line.site == "all" else None
        numbers = (f"{value:.3g}" for value in (line.first, line.second, line.distance))
        table.add_row(line.site, *numbers, cosine, style=style)
    console.print(table)
    sizes = f"{a.delta_bytes:,} and {b.delta_bytes:,}"
    console.print(f"deltas of {sizes} bytes, heads not counted; the heads {_heads(a, b)}", highlight=False)


def skeleton(manifest: DeltaManifest) -> nn.Module:
    """A model of the file's architecture, for shapes; its values are random."""
    return (
        timm_with_own_models()
        .create_model(manifest.architecture, pretrained=False, num_classes=manifest.num_classes, **manifest.model_args)
        .eval()
    )


def find_backbone(manifest: DeltaManifest, config: Path | None) -> nn.Module | str:
    """The backbone that a file belongs to, or why there is none. Raises if the config has another backbone."""
    from distill.models.network import create_network

    if config is not None:
        from distill.config import load_config
        from distill.experiments.distillation import as_distillation

        experiment = as_distillation(load_config(config), str(config))
        torch.manual_seed(experiment.seed)  # the seed determines a backbone of random weights
        model = create_network(experiment.student.network, manifest.num_classes).model
        if fingerprint(backbone_state(model, classifier_names(model))).sha256 != manifest.backbone.sha256:
            raise ExportError(f"{config}: its student.network is not the backbone of the file ({manifest.origin})")
        return model
    if manifest.origin == "random":
        return "its weights were random: give the experiment with --config"
    if manifest.architecture == EMULATOR:
        return f"it is an {manifest.origin}: give an experiment on the folder of that with --config"
    size = manifest.model_args.get("img_size")
    try:
        settings = NetworkSettings(
            model=manifest.origin,
            size=size if isinstance(size, int) else None,
            in_chans=manifest.preprocessing.input_size[0],
        )
        model = create_network(settings, manifest.num_classes).model
    except (NetworkError, ValueError) as error:
        return f"{manifest.origin} cannot be created, so give the experiment with --config: {error}"
    if fingerprint(backbone_state(model, classifier_names(model))).sha256 != manifest.backbone.sha256:
        return f"{manifest.origin} has other weights than when the file was written"
    return model


def _images(manifest: DeltaManifest, config: Path | None) -> tuple[Tensor, str]:
    if config is None:
        return seeded_images(manifest.preprocessing.input_size, IMAGES), "images of seeded noise, not photographs"
    from augment.chain import eval_view
    from augment.views import InputSpec
    from distill.config import load_config
    from distill.data.experiment_data import ExperimentData

    experiment = load_config(config)
    data = ExperimentData(experiment.data, experiment.seed)
    split = "val" if data.has_split("val") else "test"
    about = manifest.preprocessing
    height, width = about.input_size[1:]
    spec = InputSpec((height, width), about.mean, about.std)  # type: ignore[arg-type]
    views: list[Tensor] = []
    for batch in data.eval_loader(split, shared=False, spec=spec):  # type: ignore[arg-type]
        views.append(eval_view(batch.images, spec))
        if sum(map(len, views)) >= IMAGES:
            break
    return torch.cat(views)[:IMAGES], f"{split} images of {config}"


def _print_change(
    path: Path,
    to: Path,
    manifest: DeltaManifest,
    backbone: nn.Module | str,
    config: Path | None,
    allow_plugins: bool,
    console: Console,
) -> None:
    if isinstance(backbone, str):
        console.print(f"the change of the logits was not measured: {backbone}", soft_wrap=True)
        return
    images, what = _images(manifest, config)
    before, after = (load_delta(folder, backbone, allow_plugins=allow_plugins) for folder in (path, to))
    change = logits_change(before, after, images)
    console.print(
        f"logits change by at most {change.relative:.2e} of the largest, top-1 is the same on {change.same_top1} of "
        f"{change.images} {what}",
        soft_wrap=True,
    )


def _print_size(to: Path, file: DeltaFile, before: Sequence[DeltaFile], console: Console) -> None:
    tensors, manifest = ((to / name).stat().st_size for name in (TENSORS, MANIFEST))
    head = sum(t.numel() * t.element_size() for t in file.values.values())
    console.print(f"wrote {to}", soft_wrap=True)
    console.print(
        f"deltas {file.delta_bytes:,} bytes (before {' and '.join(f'{old.delta_bytes:,}' for old in before)}) and head "
        f"{head:,}, as fp32\non disk {tensors:,} in {TENSORS} and {manifest:,} in {MANIFEST}",
        highlight=False,
    )


def _heads(first: DeltaFile, second: DeltaFile) -> str:
    a, b = first.values, second.values
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return "are for different classes"
    distance = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a) ** 0.5
    return f"are {distance:.3g} apart"
