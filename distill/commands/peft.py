"""Implements ``distill delta to-peft`` and ``distill delta from-peft``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from distill.commands.delta_files import find_backbone, skeleton
from distill.commands.target_folder import written_beside
from distill.deltas.sites import classifier_names
from distill.export.checksummed import ExportError
from distill.export.delta.io import MANIFEST as DELTA_MANIFEST
from distill.export.delta.io import TENSORS as DELTA_TENSORS
from distill.export.delta.io import load_delta
from distill.export.delta.model import open_delta, save_delta_file
from distill.export.peft.files import CONFIG, MANIFEST, TENSORS, exported_from, read_adapter, write_adapter
from distill.export.peft.from_peft import from_peft, head_rows
from distill.export.peft.to_peft import NeedsValues, to_peft
from distill.files import sha256_of
from distill.models.hub import local_folder
from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings

ADAPTER = CONFIG, TENSORS, MANIFEST, DELTA_TENSORS, DELTA_MANIFEST


def export_adapter(
    delta: Path, to: Path, expand: bool, config: Path | None, allow_plugins: bool, console: Console
) -> None:
    """Run ``distill delta to-peft``.

    Args:
        delta: a delta folder.
        to: the folder to write.
        expand: whether the factor A of a grouped conv may become a whole conv.
        config: experiment with the backbone, where its weights are needed; None: the backbone that the file names.
        allow_plugins: import delta classes outside this package that the file names.
        console: where to print.
    """
    delta = local_folder(delta)
    file = open_delta(delta, allow_plugins)
    try:
        adapter = to_peft(file, skeleton(file.manifest), knows_values=False, expand=expand)
    except NeedsValues as needs:
        backbone = find_backbone(file.manifest, config)
        if isinstance(backbone, str):
            raise ExportError(f"{needs} ({backbone})") from None
        adapter = to_peft(file, backbone, knows_values=True, expand=expand)
    with written_beside(to, ADAPTER) as folder:
        write_adapter(folder, adapter, delta)
    targets: Any = adapter.config["target_modules"]
    names = "a pattern" if isinstance(targets, str) else f"{len(targets)} layers"
    kind = "DORA" if adapter.config.get("use_dora") else adapter.config["peft_type"]
    console.print(f"wrote {to}: {kind} on {names}, {(to / TENSORS).stat().st_size:,} bytes", soft_wrap=True)
    console.print(
        f"peft loads it onto any network whose shapes fit: create {file.manifest.origin} with "
        f"num_classes={file.manifest.num_classes} and its pretrained weights. The delta file is beside it, so "
        "from-peft gives it back bit by bit",
        soft_wrap=True,
        highlight=False,
    )


def import_adapter(
    adapter: Path,
    to: Path,
    backbone: str | None,
    console: Console,
    *,
    checkpoint: Path | None = None,
    prefix: str | None = None,
    size: int | None = None,
    random_seed: int | None = None,
) -> None:
    """Run ``distill delta from-peft``.

    Args:
        adapter: folder of a peft adapter.
        to: the folder of the delta file.
        backbone: the network that the adapter was trained on, as in ``student.network.model``.
        console: where to print.
        checkpoint: its weights, as in ``student.network.checkpoint``.
        prefix: of names in the checkpoint.
        size: of its input in pixels.
        random_seed: the backbone has random weights of this seed; None: pretrained ones.
    """
    read = read_adapter(adapter)
    beside, unchanged = exported_from(adapter)
    if unchanged:
        _give_back(adapter, to, backbone, checkpoint, prefix, size, random_seed, console)
        return
    if backbone is None:
        raise ExportError(
            f"{adapter}: name the network that it was trained on with --backbone; without its weights' SHA-256 there "
            "is no delta file"
        )
    network = _network(backbone, checkpoint, prefix, size, random_seed, None)
    classes = head_rows(read, classifier_names(network.model))
    if classes is not None and classes != network.model.num_classes:
        network = _network(backbone, checkpoint, prefix, size, random_seed, classes)
    try:
        file = from_peft(read, network, beside)
    except ExportError as error:
        raise ExportError(f"{adapter}: {error}") from None
    with written_beside(to, (DELTA_TENSORS, DELTA_MANIFEST)) as folder:
        manifest = save_delta_file(folder, file, f"from the peft adapter {sha256_of(adapter / TENSORS)}")
        load_delta(folder, network.model)
    console.print(
        f"wrote {to}: {len(file.layers)} layers of {manifest.origin}, {file.delta_bytes:,} bytes of deltas, "
        f"{manifest.num_classes} classes",
        soft_wrap=True,
        highlight=False,
    )
    if beside is None:
        console.print(
            f"the backbone is named by its SHA-256, {manifest.backbone.sha256[:12]}…; an adapter does not say which "
            "weights it was trained on, so compare its accuracy with the one you know",
            soft_wrap=True,
            highlight=False,
        )


def _give_back(
    adapter: Path,
    to: Path,
    backbone: str | None,
    checkpoint: Path | None,
    prefix: str | None,
    size: int | None,
    random_seed: int | None,
    console: Console,
) -> None:
    """Copy the delta file beside an adapter that is still the one that was made from it."""
    file = open_delta(adapter)
    if backbone is not None:
        network = _network(backbone, checkpoint, prefix, size, random_seed, file.manifest.num_classes)
        load_delta(adapter, network.model)
    with written_beside(to, (DELTA_TENSORS, DELTA_MANIFEST)) as folder:
        for name in (DELTA_TENSORS, DELTA_MANIFEST):
            shutil.copyfile(adapter / name, folder / name)
    console.print(f"wrote {to}: the delta file that the adapter was made from, bit by bit", soft_wrap=True)


def _network(
    backbone: str,
    checkpoint: Path | None,
    prefix: str | None,
    size: int | None,
    random_seed: int | None,
    classes: int | None,
) -> Network:
    try:
        settings = NetworkSettings(
            model=backbone, checkpoint=checkpoint, prefix=prefix, size=size, pretrained=random_seed is None
        )
    except ValidationError as error:
        raise ExportError(f"--backbone: {error.errors()[0]['msg']}") from None
    if random_seed is not None:
        torch.manual_seed(random_seed)
    network = create_network(settings, classes)
    if network.origin == "random" and random_seed is None:
        raise ExportError(f"--backbone {backbone} has random weights; give pretrained ones")
    return network
