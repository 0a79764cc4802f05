"""Attaches deltas by name to any model; saves and loads delta files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from augment.base import absolute, matching
from distill.api.arguments import DELTAS, checks_names
from distill.api.models import DeltaLike, delta_settings
from distill.deltas.attach import Site
from distill.deltas.attach import attach as attach_settings
from distill.deltas.sites import classifier_names
from distill.export.checksummed import ExportError
from distill.export.delta import io
from distill.export.manifest import Preprocessing, Result
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.models.student import Student


@checks_names
def attach(
    model: nn.Module, deltas: DeltaLike | Iterable[DeltaLike], *, head: str | Sequence[str] | None = None
) -> list[Site]:
    """Freeze any model and put deltas on it, in place.

    :func:`create_student` does this for timm models; this function is for other networks.

    Args:
        model: names are those of ``model.named_modules()``.
        deltas: names, mappings with ``type`` and settings, or settings; several on one layer compose in this order.
        head: module names that stay trainable and get no deltas; None: the classifier of a timm model, else none.

    Returns:
        The new deltas, each with the name of its layer.

    Raises:
        TypeError: there is no argument or setting of a given name; the text gives the nearest one.
        UserError: no such delta, or it fits no layer.

    Example:
        >>> import torch, distill
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> [site.name for site in distill.attach(model, {"type": "low_rank", "rank": 2}, head="2")]
        ['0']
        >>> [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("2.")]
        ['2.weight', '2.bias']
    """
    if head is None:
        head = classifier_names(model) if hasattr(model, "get_classifier") else ()
    return attach_settings(model, delta_settings(deltas, "attach()"), exclude_head=head)


@checks_names
def save_delta(
    student: Student,
    folder: Path | str,
    *,
    labels: Sequence[str] = (),
    results: Sequence[Result] = (),
) -> io.DeltaManifest:
    """Write a student's deltas and head: ``delta.safetensors`` and ``delta.json``.

    The files hold what was trained and the SHA-256 of every tensor of the backbone, but not the backbone.

    Args:
        student: from :func:`create_student`.
        folder: where to write; it is made if it does not exist.
        labels: class names in the order of the logits.
        results: measured numbers to keep with the file.

    Returns:
        The content of ``delta.json``.

    Raises:
        ExportError: nothing was learned, a frozen weight changed, or there is not one label for each class.

    Example:
        >>> import tempfile, torch, distill
        >>> student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", num_classes=10, size=32)
        >>> with torch.no_grad():
        ...     for site in student.sites:
        ...         for parameter in site.delta.parameters():
        ...             _ = parameter.fill_(0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = distill.save_delta(student, folder)
        ...     loaded = distill.load_delta(folder, "embedded:tf_efficientnet_lite0")
        >>> view = torch.zeros(1, 3, 32, 32)
        >>> torch.allclose(loaded(view), student.eval()(view).logits, atol=1e-6)
        True
    """
    if student.full:
        raise ExportError("a student with train='full' has no deltas: save its state_dict, or write a timm folder")
    return io.save_delta(
        absolute(folder),
        student.model,
        student.backbone,
        origin=student.network.origin,
        labels=labels,
        preprocessing=Preprocessing.of(student.model, student.input.size),
        results=results,
        stored=student.stored,
    )


@checks_names
def load_delta(
    folder: Path | str, backbone: str | nn.Module | None = None, *, allow_plugins: bool = False
) -> nn.Module:
    """Load a delta folder onto its backbone: a frozen timm model in eval mode, deltas not merged.

    Args:
        folder: holds ``delta.safetensors`` and ``delta.json``; or its name on the hub, ``hf-hub:OWNER/NAME``.
        backbone: a timm model with as many classes, which is copied; or a model's name; None: the name in the file.
            Its weights must be those that the deltas were trained on.
        allow_plugins: whether to import delta classes outside this package that the file names
            (``package.module:Class``). Importing runs code: allow it only for files that you trust.

    Returns:
        A model from images [B, 3, H, W], normalized, to logits [B, K]; :func:`merge` makes it a plain timm model.

    Raises:
        ExportError: a damaged file, another backbone, names or shapes that do not fit, or deltas that change nothing.
        UserError: the backbone's weights are not available.

    Example: see :func:`save_delta`.
    """
    folder = absolute(folder)
    if not isinstance(backbone, nn.Module):
        manifest, _ = io.read_delta(folder)
        if backbone is None and manifest.architecture == EMULATOR:
            raise ExportError(f"{folder}: made for an {manifest.origin}; give its folder as backbone: local-dir:FOLDER")
        channels, size, _ = manifest.preprocessing.input_size
        settings = NetworkSettings(model=backbone or manifest.origin, size=size, in_chans=channels)
        backbone = create_network(settings, manifest.num_classes).model
    return io.load_delta(folder, backbone, allow_plugins=allow_plugins)


def list_deltas(pattern: str = "") -> list[str]:
    """Names of the deltas that match an fnmatch pattern, sorted; all without a pattern.

    Example:
        >>> import distill
        >>> distill.list_deltas("sparse*")
        ['sparse', 'sparse_mask']
    """
    return matching(DELTAS.known(), pattern)
