"""Networks for images of other than three channels, with timm's adaptation of the pretrained first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from distill.models.weights import NetworkError


def input_channels(model: nn.Module) -> int:
    """The number of channels that a timm model takes."""
    made_with = getattr(model, "_model_args", {}).get("in_chans")
    config: Any = model.pretrained_cfg
    declared: int = config["input_size"][0]
    return made_with or declared


def with_channels(model: nn.Module, channels: int, make: Callable[[], nn.Module]) -> nn.Module:
    """The same network for images of another number of channels.

    The first layer's weights are those of timm's ``adapt_input_conv``: summed for one channel, else repeated (R, G, B,
    R, …) and scaled by 3 / ``channels``, so that its output keeps its size. Mean and std of the input are repeated
    likewise, and averaged for one channel.

    Args:
        model: a timm model.
        channels: of the images.
        make: makes the architecture with that number of channels and as many classes.

    Returns:
        The model itself if it has that number of channels, else a new one.

    Raises:
        NetworkError: the first layer cannot be adapted.
    """
    from timm.models._manipulate import adapt_input_conv

    before = input_channels(model)
    if before != channels:
        config: Any = model.pretrained_cfg
        named = config.get("first_conv") or ()
        state = model.state_dict()
        other = make()
        for name in (named,) if isinstance(named, str) else tuple(named):
            try:
                state[f"{name}.weight"] = adapt_input_conv(channels, state[f"{name}.weight"], before)
            except (NotImplementedError, AssertionError) as error:
                text = f"{name} cannot be adapted to {channels} channels"
                raise NetworkError(f"{config['architecture']}: {text}: {error}") from error
        try:
            other.load_state_dict(state)
        except RuntimeError as error:
            text = f"the first layer cannot be adapted to {channels} channels"
            raise NetworkError(f"{config['architecture']}: {text}: {error}") from error
        model = other
    declare_channels(model, channels)
    return model


def declare_channels(model: nn.Module, channels: int) -> None:
    """Write channels, mean and std to the model's configuration, which views and export read."""
    config: Any = model.pretrained_cfg
    if (config["input_size"][0], len(config["mean"]), len(config["std"])) == (channels,) * 3:
        return
    shape = (channels, *config["input_size"][1:])
    statistics = {name: _repeated(tuple(config[name]), channels) for name in ("mean", "std")}
    model.pretrained_cfg = {**config, "input_size": shape, **statistics}  # type: ignore[assignment]


def _repeated(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))
