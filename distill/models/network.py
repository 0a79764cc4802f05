"""From settings to a network: any timm model, from the hub, a local checkpoint, a timm folder, or embedded.

timm is imported when a network is made, not when a config is read.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from augment.errors import ExplainedError
from augment.settings import nearest
from augment.views import InputSpec
from distill.models.embedded import EMBEDDED, load_embedded
from distill.models.features import Features, FeatureShapes
from distill.models.settings import NetworkSettings


class NetworkError(ExplainedError, ValueError):
    """A network cannot be made; the text names the model or file and what would work."""


@dataclass
class Network:
    """A timm model, and what has to be known to feed it and to find it again."""

    model: nn.Module
    architecture: str
    """The timm entry point, e.g. ``resnet50``."""
    origin: str
    """Where its weights came from: ``embedded:…``, ``resnet50.a1_in1k``, a file name, or ``random``."""
    input: InputSpec


def create_network(settings: NetworkSettings, num_classes: int | None = None) -> Network:
    """Make the network in fp32 on the CPU.

    Args:
        num_classes: a new, freshly initialised classifier of that width; None keeps the network's own.

    Raises:
        NetworkError: unknown name, weights that are not at hand without a network, a file that does not fit.
    """
    import timm

    scheme, _, rest = settings.model.partition(":")
    arguments: dict[str, Any] = {}
    if settings.size is not None and _takes_img_size(settings.model):
        arguments["img_size"] = settings.size

    def make(name: str, pretrained: bool, classes: int | None = num_classes) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **arguments)

    if settings.checkpoint is not None:
        model = make(rest if scheme == "embedded" else settings.model, pretrained=False)
        _load_file(model, settings.checkpoint)
        origin = f"{settings.model}@{settings.checkpoint.name}"
    elif not settings.pretrained:
        model, origin = make(rest if scheme == "embedded" else settings.model, pretrained=False), "random"
    elif scheme == "embedded":
        model, origin = make(rest, pretrained=False, classes=None), settings.model
        load_embedded(model, rest)
        if num_classes is not None:
            model.reset_classifier(num_classes)  # type: ignore[operator]
    else:
        if scheme == "local-dir":
            if not (Path(rest) / "config.json").is_file():
                raise NetworkError(f"{settings.model}: {rest!r} holds no config.json, so it is no timm folder")
        else:
            _check_known(settings.model)
            _check_reachable(settings.model)
        try:
            model, origin = make(settings.model, pretrained=True), settings.model
        except RuntimeError as error:  # timm's word for an unknown tag or weights that do not fit
            raise NetworkError(f"{settings.model}: {error}") from error

    config: Any = model.pretrained_cfg
    side = settings.size
    native = tuple(config["input_size"][1:])
    return Network(
        model=model.eval(),
        architecture=config["architecture"],
        origin=origin,
        input=InputSpec((side, side) if side else native, tuple(config["mean"]), tuple(config["std"])),
    )


def _takes_img_size(name: str) -> bool:
    """ViTs and their kin fix their grid when they are made; CNNs take any size."""
    import timm

    architecture = name.partition(":")[2] if name.startswith("embedded:") else name
    if ":" in architecture or not timm.is_model(architecture):
        return False
    config = timm.get_pretrained_cfg(architecture)
    return config is not None and bool(config.fixed_input_size)


def _check_known(name: str) -> None:
    import timm

    if ":" not in name and not timm.is_model(name):
        raise NetworkError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")


def _check_reachable(name: str) -> None:
    """Fail at once, with what to do, when weights are neither cached nor reachable: the hub client would retry."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:").partition("@")[0]
    else:
        config = timm.get_pretrained_cfg(name)
        if config is None or not (config.hf_hub_id or config.url):
            raise NetworkError(f"timm has no pretrained weights for {name!r}; set pretrained: false or a checkpoint")
        repository = config.hf_hub_id or ""
    if repository and any(
        isinstance(try_to_load_from_cache(repository, file), str)
        for file in ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    ):
        return
    endpoint = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((endpoint.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise NetworkError(
            f"the weights of {name!r} are not in the local cache and the model hub is out of reach ({error}). Run once "
            "with a connection, or set checkpoint: FILE, or model: local-dir:FOLDER, or model: embedded:"
            + "|".join(EMBEDDED)
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, or of a pickle that loads with ``weights_only=True``; nothing else."""
    if not path.is_file():
        raise NetworkError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise NetworkError(f"{path} is no file of plain tensors, or is damaged: {error}") from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NetworkError(f"{path} holds no state dict of tensors")
    return state


def check_fits(own: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Raise ``NetworkError`` that lists every missing, unexpected and misshapen tensor, before anything is changed."""
    complaints = [f"missing {key}" for key in own if key not in state]
    complaints += [f"unexpected {key}" for key in state if key not in own]
    complaints += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if complaints:
        shown = "\n  ".join(complaints[:20]) + (
            f"\n  … and {len(complaints) - 20} more" if len(complaints) > 20 else ""
        )
        raise NetworkError(f"{source} does not fit the architecture:\n  {shown}")


def _load_file(model: nn.Module, path: Path) -> None:
    state = {key.removeprefix("module."): value for key, value in read_weights(path).items()}
    check_fits(model.state_dict(), state, str(path))
    model.load_state_dict(state)


def extract(model: nn.Module, x: Tensor, needs: frozenset[str]) -> Features:
    """Run a timm model once and keep what is asked for, of ``{"logits", "pooled", "maps"}``."""
    features = Features()
    if "maps" in needs:
        final, maps = model.forward_intermediates(x, output_fmt="NCHW")  # type: ignore[operator]
        features.maps = dict(zip(stage_names(model), maps))
    else:
        final = model.forward_features(x)  # type: ignore[operator]
    classifier = model.get_classifier()  # type: ignore[operator]
    if "pooled" in needs or isinstance(classifier, nn.Linear):
        features.pooled = model.forward_head(final, pre_logits=True)  # type: ignore[operator]
    if "logits" in needs:
        # A head of several classifiers (a distillation token, say) combines them by itself.
        single = isinstance(classifier, nn.Linear)
        features.logits = classifier(features.pooled) if single else model.forward_head(final)  # type: ignore[operator]
    return features


def stage_names(model: nn.Module) -> list[str]:
    """Names of the maps that ``extract`` returns, shallow to deep."""
    return [info["module"] for info in model.feature_info]  # type: ignore[union-attr]


@torch.no_grad()
def measure_shapes(model: nn.Module, spec: InputSpec, needs: frozenset[str]) -> FeatureShapes:
    """What the network reports at its input size, found by running it once."""
    device = next(model.parameters()).device
    features = extract(model, torch.zeros(1, 3, *spec.size, device=device), needs | {"logits", "pooled"})
    assert features.logits is not None and features.pooled is not None
    if features.pooled.ndim != 2:
        raise NetworkError(f"pooled features are {tuple(features.pooled.shape)}, expected [batch, width]")
    return FeatureShapes(
        classes=features.logits.shape[1],
        pooled=features.pooled.shape[1],
        maps={name: tuple(map_.shape[1:]) for name, map_ in features.maps.items()},  # type: ignore[misc]
    )
