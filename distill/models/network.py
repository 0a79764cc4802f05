"""Creates networks: any timm model, with weights from the hub, a checkpoint, a timm folder, or embedded ones.

timm is imported when a network is created, not when a config is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from augment.base import did_you_mean
from augment.base.suggestions import table
from augment.views import InputSpec
from distill.models.channels import declare_channels, input_channels, with_channels
from distill.models.checkpoint_file import read_checkpoint
from distill.models.embedded import load_embedded
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.features import Features, FeatureShapes
from distill.models.from_file import load_from_file, trained_size
from distill.models.hub import network_folder
from distill.models.jax_file import SUFFIX, load_jax_file
from distill.models.other_names import OTHER_NAMES
from distill.models.settings import NetworkSettings
from distill.models.timm_models import make_model, new_classifier, resize, timm_with_own_models
from distill.models.weights import NetworkError, check_reachable

_LISTED = 'python -c "import timm; print({})"'


@dataclass
class Network:
    """A timm model, its input, and where it came from."""

    model: nn.Module
    architecture: str
    """The timm entry point, e.g. ``resnet50``."""
    origin: str
    """Where its weights come from: ``embedded:…``, ``resnet50.a1_in1k``, a file name, or ``random``."""
    input: InputSpec
    notes: tuple[str, ...] = ()
    """What a user should know about how the weights were read from a file."""


def create_network(settings: NetworkSettings, num_classes: int | None = None) -> Network:
    """Create a network in fp32 on the CPU, in eval mode.

    Args:
        settings: its name, weights, input size and channels.
        num_classes: width of a new, freshly initialized classifier; None keeps the network's own.

    Returns:
        The timm model with its input size, normalization and origin.

    Raises:
        NetworkError: an unknown name, weights that are neither cached nor reachable, or a file that does not fit.
    """
    check_available(settings)
    scheme, _, name = settings.model.partition(":")
    if scheme != "embedded":
        name = settings.model
    notes: tuple[str, ...] = ()
    size = settings.size
    if settings.checkpoint is not None and settings.checkpoint.suffix == SUFFIX:
        model = load_jax_file(name, settings.checkpoint, size, num_classes)
        origin = f"{settings.model}@{settings.checkpoint.name}"
    elif settings.checkpoint is not None:
        checkpoint = read_checkpoint(settings.checkpoint)
        size = size or trained_size(checkpoint)
        model, notes = load_from_file(name, checkpoint, settings.prefix, size, num_classes)
        origin = f"{settings.model}@{settings.checkpoint.name}"
    elif not settings.pretrained:
        own = {} if settings.in_chans is None else {"in_chans": settings.in_chans}
        model, origin = make_model(name, settings.size, num_classes=num_classes, **own), "random"
    elif scheme == "embedded":
        model, origin = make_model(name, settings.size), settings.model
        load_embedded(model, name)
        new_classifier(model, num_classes)
    else:
        source = f"local-dir:{network_folder(name)}" if scheme == "hf-hub" else name
        model, origin = make_model(source, settings.size, pretrained=True, num_classes=num_classes), settings.model
        if model.pretrained_cfg["architecture"] == EMULATOR:  # type: ignore[index]
            # Its user's files go to the owner of the full network, so they do not name a folder of the user.
            origin = f"emulator of {model._model_args['body']}"  # type: ignore[index]
        if num_classes and model.pretrained_cfg.get("num_classes") == 0:  # type: ignore[union-attr, operator]
            # A folder without a classifier: timm initializes that of some architectures for training from scratch, with
            # logits that are too large on pretrained features.
            new_classifier(model, num_classes)

    if num_classes is not None:
        _forget_names(model)
    model = _with_channels(model, name, size, settings)
    config = _with_normalization(model, settings.mean, settings.std)
    return Network(
        model=model.eval(),
        architecture=config["architecture"],
        origin=origin,
        input=InputSpec(
            (size, size) if size else tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"])
        ),
        notes=notes,
    )


def check_available(settings: NetworkSettings) -> None:
    """Raise ``NetworkError`` if there is no such model, folder or file, or if weights are out of reach."""
    scheme, colon, name = settings.model.partition(":")
    if not colon or scheme == "embedded":
        _check_known(name if colon else settings.model)
    if settings.checkpoint is not None and not settings.checkpoint.exists():
        raise NetworkError(f"{settings.checkpoint}: no such file")
    if settings.checkpoint is not None or not settings.pretrained or scheme == "embedded":
        return
    if scheme == "local-dir":
        _check_folder(settings.model)
    else:
        check_reachable(settings.model)


def as_network(
    model: Network | nn.Module,
    num_classes: int | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Network:
    """Wrap a timm model, with a new classifier or another input if these are given.

    Args:
        model: a timm model, changed in place and put in eval mode; a ``Network`` is returned as it is.
        num_classes: width of the classifier; None keeps the model's own.
        size: height and width of the input in pixels; None keeps the model's own.
        mean: of the input's normalization, by channel; None keeps the model's own.
        std: as ``mean``.

    Returns:
        The model with its input size, normalization and origin, taken from its ``pretrained_cfg``.

    Raises:
        NetworkError: the module is not from timm, or mean or std have not one value for each channel.
    """
    if isinstance(model, Network):
        return model
    config: Any = getattr(model, "pretrained_cfg", None)
    if config is None or not hasattr(model, "forward_head"):
        raise NetworkError(f"expected a timm model, which has pretrained_cfg and forward_head, not a {_kind(model)}")
    if num_classes is not None and num_classes != model.num_classes:
        new_classifier(model, num_classes)
        _forget_names(model)
    declare_channels(model, input_channels(model))
    config = _with_normalization(model, mean, std)
    if size is not None:
        resize(model, size)
    height, width = (size, size) if size is not None else _size(model)
    tag = config.get("tag")
    return Network(
        model=model.eval(),
        architecture=config["architecture"],
        origin=f"{config['architecture']}.{tag}" if tag else config["architecture"],
        input=InputSpec((height, width), tuple(config["mean"]), tuple(config["std"])),
    )


def _size(model: nn.Module) -> tuple[int, int]:
    """Height and width that a ViT's patch embedding is built for, else those of timm's configuration."""
    grid = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = grid or model.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    return height, width


def _kind(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _with_channels(model: nn.Module, name: str, size: int | None, settings: NetworkSettings) -> nn.Module:
    """The model for images of as many channels as the settings say; for its own if they do not."""
    if settings.in_chans is None:
        declare_channels(model, input_channels(model))
        return model
    form: dict[str, Any] = {"num_classes": model.num_classes, "in_chans": settings.in_chans}
    if settings.checkpoint is not None:  # the file may be of a variant, or made with arguments
        config: Any = model.pretrained_cfg
        name, form = config["architecture"], {**getattr(model, "_model_args", {}), **form}
    return with_channels(model, settings.in_chans, lambda: make_model(name, size, **form))


def _with_normalization(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Any]:
    """The model's configuration with another normalization where it is given; exports read it there."""
    config: Any = model.pretrained_cfg
    for key, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) != config["input_size"][0]:
            raise NetworkError(f"{key} has {len(value)} values, and the input {config['input_size'][0]} channels")
        if value is not None:
            config = {**config, key: tuple(value)}
    model.pretrained_cfg = config
    return config


def _forget_names(model: nn.Module) -> None:
    """Remove the class names of the former classifier from the model's configuration."""
    config: Any = model.pretrained_cfg
    gone = ("label_names", "label_descriptions")
    model.pretrained_cfg = {key: config[key] for key in config if key not in gone}  # type: ignore[assignment]


def _check_folder(name: str) -> None:
    folder = Path(name.removeprefix("local-dir:"))
    if not (folder / "config.json").is_file():
        delta = f"; it is the folder of a delta file: write its backbone's name as model, and delta: {folder}"
        hint = delta if (folder / "delta.json").is_file() else ""
        raise NetworkError(f"{name}: {str(folder)!r} holds no config.json, so it is no timm folder{hint}")


def _check_known(name: str) -> None:
    timm = timm_with_own_models()
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), table(OTHER_NAMES), _LISTED.format("timm.list_models()"))
        raise NetworkError(f"timm has no model {name!r}{hint}")
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        listed_by = _LISTED.format(f"timm.list_pretrained('{architecture}.*')")
        raise NetworkError(f"timm has no weights {name!r}{did_you_mean(tag, tags, listed_by=listed_by)}")


def extract(model: nn.Module, x: Tensor, needs: frozenset[str]) -> Features:
    """Run a timm model once and return the outputs that ``needs`` names.

    Args:
        model: a timm model.
        x: images [B, 3, H, W].
        needs: which outputs, of ``{"logits", "pooled", "maps", "token"}``.

    Returns:
        The outputs, see :class:`Features`. Others may be set too if they cost nothing.
    """
    if needs == {"logits"}:
        return Features(logits=model(x))
    features = Features()
    if "maps" in needs:
        final, maps = model.forward_intermediates(x, output_fmt="NCHW")  # type: ignore[operator]
        features.maps = dict(zip(stage_names(model), maps, strict=True))
    else:
        final = model.forward_features(x)  # type: ignore[operator]
    if needs & {"logits", "pooled"}:
        features.pooled = model.forward_head(final, pre_logits=True)  # type: ignore[operator]
    if "token" in needs:
        features.token = model.head_dist(final[:, 1])  # type: ignore[operator]
    if "logits" in needs:
        classifier = model.get_classifier()  # type: ignore[operator]
        # A head of several classifiers (with a distillation token, for example) combines their logits itself.
        single = isinstance(classifier, nn.Linear)
        features.logits = classifier(features.pooled) if single else model.forward_head(final)  # type: ignore[operator]
    return features


def stage_names(model: nn.Module) -> list[str]:
    """Names of the maps that :func:`extract` returns, shallow to deep."""
    return [info["module"] for info in model.feature_info]  # type: ignore[union-attr]


@torch.no_grad()
def measure_shapes(model: nn.Module, spec: InputSpec, needs: frozenset[str]) -> FeatureShapes:
    """Measure the output shapes of a network in eval mode by running it on one random image.

    Args:
        model: a timm model.
        spec: its input size.
        needs: which outputs, as in :func:`extract`.

    Returns:
        The shapes without the batch axis.

    Raises:
        NetworkError: the network does not have these outputs, or its logits change when they are computed.
    """
    device = next(model.parameters()).device
    name = model.pretrained_cfg["architecture"]  # type: ignore[index]
    if "token" in needs and not hasattr(model, "head_dist"):
        raise NetworkError(f"{name} has no distillation token; timm's deit_*_distilled_* have one")
    x = torch.rand(1, len(spec.mean), *spec.size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        logits = model(x)
        features = extract(model, x, needs | {"logits", "pooled"})
    except Exception as error:
        size = " x ".join(map(str, spec.size))
        raise NetworkError(f"{name} cannot give {', '.join(sorted(needs))} at {size} pixels: {error}") from error
    assert features.logits is not None and features.pooled is not None
    if "maps" in needs and len(features.maps) < len(stage_names(model)):
        raise NetworkError(f"{name} gives several stages one name, so it cannot give maps")
    if features.pooled.ndim != 2:
        raise NetworkError(f"{name}: pooled features are {tuple(features.pooled.shape)}, expected [batch, width]")
    if needs != {"logits"} and not torch.allclose(features.logits, logits, rtol=1e-4, atol=1e-5):
        raise NetworkError(f"{name} computes its logits from more than its pooled features, so it can give logits only")
    classifier = model.get_classifier()  # type: ignore[operator]
    headless = model.num_classes == 0 or isinstance(classifier, nn.Identity)
    return FeatureShapes(
        classes=0 if headless else logits.shape[1],
        classifier=classifier if isinstance(classifier, nn.Linear) else None,
        pooled=features.pooled.shape[1],
        maps={name: tuple(map_.shape[1:]) for name, map_ in features.maps.items()},  # type: ignore[misc]
    )
