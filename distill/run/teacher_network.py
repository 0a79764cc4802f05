"""Makes one of the teacher's networks: any network, or a backbone with the deltas of a delta file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from augment.base import UserError
from augment.views import InputSpec
from distill.deltas.attach import deltas, merge
from distill.deltas.base import StructuralDelta
from distill.export.delta.io import load_delta, read_delta
from distill.models.network import Network, as_network, check_available, create_network
from distill.models.settings import NetworkSettings
from distill.models.teacher_settings import TeacherNetworkSettings
from distill.run.stage import StageError


def make_network(settings: NetworkSettings, num_classes: int | None = None) -> Network:
    """Create a network in fp32 on the CPU, in eval mode.

    Args:
        settings: of the network; with ``delta``, of the backbone.
        num_classes: width of a new, freshly initialized classifier; None keeps the network's own.

    Returns:
        The network. Deltas are merged into its weights, except structural ones, which cannot be.

    Raises:
        NetworkError: the network cannot be created.
        ExportError: a file of the delta is damaged, or it was made for another backbone.
    """
    if not isinstance(settings, TeacherNetworkSettings) or settings.delta is None:
        return create_network(settings, num_classes)
    network = _with_delta(settings, settings.delta)
    return network if num_classes is None else replace(network, model=as_network(network.model, num_classes).model)


def check_file(settings: NetworkSettings, key: str) -> None:
    """Check that a network is available, and create it if its weights come from a file or folder.

    Args:
        settings: of the network.
        key: path of the settings in the config, for errors.

    Raises:
        StageError: there is no such model, its weights are out of reach, or the file cannot be used.
    """
    delta = settings.delta if isinstance(settings, TeacherNetworkSettings) else None
    try:
        check_available(settings)
        if settings.checkpoint or delta or settings.model.startswith("local-dir:"):
            make_network(settings)
    except UserError as error:
        raise StageError(f"{key}: {error}") from error


def _with_delta(settings: TeacherNetworkSettings, folder: Path) -> Network:
    """The backbone with the deltas and head of a delta folder, and with the input and class names noted there."""
    manifest, _ = read_delta(folder)
    noted = manifest.preprocessing
    size = settings.size or noted.input_size[1]
    network = create_network(settings.model_copy(update={"size": size}), manifest.num_classes)
    model = load_delta(folder, network.model)
    if not any(isinstance(site.delta, StructuralDelta) for site in deltas(model)):
        merge(model)
    mean, std = settings.mean or noted.mean, settings.std or noted.std
    config: Any = model.pretrained_cfg
    names = {"label_names": list(manifest.labels)} if manifest.labels else {}
    model.pretrained_cfg = {**config, "mean": mean, "std": std, **names}  # type: ignore[assignment]
    return replace(network, model=model, origin=f"{network.origin}+{folder}", input=InputSpec((size, size), mean, std))
