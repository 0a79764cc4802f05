"""What is pushed to the model hub: a delta file or a merged timm folder, with its card, and nothing else.

The files are copied from the export after their checksums were verified. Text in them is searched for paths of this
machine, and only files of known names are pushed, so no image is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from distill.export.card import HERE, delta_card, hub_name
from distill.export.checksummed import ExportError, read_checked, read_inside, write_checksummed
from distill.export.delta import io
from distill.export.targets import timm_folder
from distill.files import write_atomic
from distill.models.hub import SCHEME

CARD = timm_folder.CARD
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PATH = re.compile(r"(?<![\w./:~-])(/[\w.+-]+)/[^\s\"']*|(?:local-dir:|file:/+|[A-Za-z]:\\)[^\s\"']+")
_ROOTS = {"/home", "/Users", "/root", "/mnt", "/tmp", "/var", "/opt", "/srv"}


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready to be pushed."""

    folder: Path
    files: dict[str, int]
    """Name → bytes."""
    card: str
    license: str | None
    base: str | None
    """Name of the backbone on the hub."""


def check_repository(repository: str) -> None:
    """Raise ``ExportError`` unless it is ``OWNER/NAME``."""
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ExportError(f"{repository!r} is no repository of the hub: expected OWNER/NAME")


def prepare_delta(delta: Path, to: Path, repository: str, backbone: str | None, license: str | None) -> Prepared:
    """Copy a delta file and write its card.

    Args:
        delta: a delta folder.
        to: an empty folder.
        repository: ``OWNER/NAME``.
        backbone: name of the backbone for others, where the file names a folder of this machine; None: as in the file.
        license: identifier; None: that of the backbone, if timm knows it.

    Returns:
        The folder, its files and its card.

    Raises:
        ExportError: a damaged file, or one with a path of this machine.
    """
    manifest, _ = io.read_delta(delta)
    tensors = read_checked(delta, io.TENSORS, manifest.sha256)
    if backbone is not None and backbone != manifest.origin:
        manifest = manifest.model_copy(update={"origin": backbone})
        write_checksummed(to / io.MANIFEST, manifest)
    else:
        write_atomic(to / io.MANIFEST, read_inside(delta, io.MANIFEST))
    _check_origin(manifest.origin)
    write_atomic(to / io.TENSORS, tensors)
    license = license or _license_of(manifest.origin)
    kinds = [str(group.settings["type"]) for group in manifest.deltas]
    place = SCHEME + repository
    card = delta_card(
        manifest.architecture,
        manifest.origin,
        manifest.backbone.sha256,
        manifest.labels,
        manifest.results,
        len(tensors),
        kinds,
        place,
        license,
    )
    return _prepared(to, card, license, manifest.origin)


def prepare_merged(merged: Path, to: Path, repository: str, backbone: str | None, license: str | None) -> Prepared:
    """Copy a merged timm folder and write its card; see :func:`prepare_delta`."""
    manifest = timm_folder.check_timm_folder(merged)
    if backbone is not None and backbone != manifest.origin:
        manifest = manifest.model_copy(update={"origin": backbone})
        write_checksummed(to / timm_folder.MANIFEST, manifest)
    else:
        write_atomic(to / timm_folder.MANIFEST, read_inside(merged, timm_folder.MANIFEST))
    _check_origin(manifest.origin)
    config = read_checked(merged, timm_folder.CONFIG, manifest.config_sha256)
    tensors = read_checked(merged, timm_folder.TENSORS, manifest.weights_sha256)
    write_atomic(to / timm_folder.CONFIG, config)
    write_atomic(to / timm_folder.TENSORS, tensors)
    content = json.loads(config)
    license = license or content["pretrained_cfg"].get("license")
    card = timm_folder.folder_card(content, manifest, len(tensors), SCHEME + repository, license)
    return _prepared(to, card, license, manifest.origin)


def _prepared(to: Path, card: str, license: str | None, origin: str) -> Prepared:
    write_atomic(to / CARD, card.encode())
    files = {path.name: path.stat().st_size for path in sorted(to.iterdir())}
    _check_paths(to)
    return Prepared(to, files, card, license, hub_name(origin))


def _check_origin(origin: str) -> None:
    if origin.startswith("local-dir:"):
        raise ExportError(
            "the export names a folder of this machine as its backbone. Push that network first, and give its name "
            "with --backbone, such as hf-hub:OWNER/NAME"
        )


def _check_paths(folder: Path) -> None:
    """Raise if a text, or the header of a safetensors file, has a path of this machine."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            data = data[8 : 8 + int.from_bytes(data[:8], "little")]
        text = data.decode().replace(HERE, "")
        paths = [m[0] for m in _PATH.finditer(text) if m[1] is None or m[1] in _ROOTS or Path(m[1]).is_dir()]
        paths += [own for own in {str(Path.home()), str(Path.cwd())} - {"/"} if own in text]
        if paths:
            raise ExportError(f"{path.name} has a path of this machine, {paths[0]!r}; it was not pushed")


def _license_of(origin: str) -> str | None:
    import timm

    name = origin.removeprefix("embedded:")
    if ":" in name or "@" in name or not timm.is_model(name.partition(".")[0]):
        return None
    config = timm.get_pretrained_cfg(name)
    return (config.license or None) if config is not None else None
