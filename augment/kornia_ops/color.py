"""Color operations: the map of a pixel, with kornia's clamps before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample, per_channel
from augment.fuse.passes import Instruction, Kind, instruction, linear
from augment.kornia_ops.base import FusedKorniaOp, limits, ranged

LUMA = (0.299, 0.587, 0.114)


def gray(images: Tensor, weights: tuple[float, ...] = LUMA) -> Tensor:
    """[B, C, H, W] → [B, 1, H, W], the weighted sum of the channels."""
    total = images[:, :1] * weights[0]
    for channel in range(1, len(weights)):
        total = torch.add(total, images[:, channel : channel + 1], alpha=weights[channel])
    return total


def hue_rotated(rgb: Tensor, angle: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its hue rotated by ``angle`` [B, 1, 1, 1] (1 is a full circle); maximum and minimum stay.

    With h the hue in sixths, a channel centered at c (0, 2, 4) is
    ``min + (max - min) · clamp(2 - |h + 6·angle - c|, 0, 1)``, the difference taken round the circle. Equal to going to
    HSV and back; written in few passes, none of which is a selection (those are slow on a CPU).
    """
    r, g, b = rgb.split(1, 1)
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - bottom
    # In sixths times the spread, as if blue were the largest; then green; red last, which wins where they are equal.
    hue = torch.add(r - g, spread, alpha=4)
    hue = torch.add(b - r, spread, alpha=2).lerp_(hue, _below(g, top))
    hue = (g - b).lerp_(hue, _below(r, top))
    # Where all three are equal the spread is 0, and so is what the hue does.
    hue.div_(spread.clamp(min=torch.finfo(rgb.dtype).tiny))
    centers = torch.arange(3, device=rgb.device, dtype=rgb.dtype).view(3, 1, 1) / 3
    away = torch.add(angle - centers, hue, alpha=1 / 6)
    away = away.sub_((away + 0.5).floor_()).abs_()  # round() is slow on a CPU
    return torch.addcmul(bottom, spread, away.mul_(-6).add_(2).clamp_(0, 1))


def _below(channel: Tensor, top: Tensor) -> Tensor:
    """1 where a channel is below the maximum, else 0: a comparison in float arithmetic, which is vectorized."""
    return (top - channel).mul_(1e30).clamp_(max=1)


def saturated(rgb: Tensor, factor: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its HSV saturation times ``factor`` [B, 1, 1, 1], at most 1; the maximum stays."""
    top, bottom = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    spread = top - bottom
    tiny = torch.finfo(rgb.dtype).tiny
    wanted = top * (spread / (top + 1e-8) * factor).clamp(0, 1)
    return (rgb - bottom) * (wanted / spread.clamp(min=tiny)) + (top - wanted)


class _Uniform(FusedKorniaOp):
    """One factor, uniform in a range."""

    factor: str

    def __init__(self, module: Any):
        super().__init__(module)
        self.range = limits(getattr(module._param_generator, self.factor))

    uniforms = 1

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {self.factor: ranged(u[:, 0], *self.range)}


class RandomBrightness(_Uniform):
    """x + (factor - 1).

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomBrightness")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomBrightness(K.RandomBrightness((1.2, 1.2), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4000, 0.6000, 0.8000])
    """

    wraps = "RandomBrightness"
    factor = "brightness_factor"

    def __init__(self, module: Any):
        super().__init__(module)
        self.keeps_range = self.clip = module.clip_output

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        moved = (images.clamp(0, 1) if self.clip else images) + by_sample(params[self.factor] - 1)
        return moved.clamp(0, 1) if self.clip else moved

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        factor = params[self.factor]
        return linear(params["drawn"], shape[1], torch.ones_like(factor), factor - 1, (self.clip, self.clip))


class RandomContrast(_Uniform):
    """x · factor.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomContrast")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomContrast(K.RandomContrast((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.1000, 0.2000, 0.3000])
    """

    wraps = "RandomContrast"
    factor = "contrast_factor"

    def __init__(self, module: Any):
        super().__init__(module)
        self.keeps_range = self.clip = module.clip_output

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        scaled = (images.clamp(0, 1) if self.clip else images) * by_sample(params[self.factor])
        return scaled.clamp(0, 1) if self.clip else scaled

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        factor = params[self.factor]
        return linear(params["drawn"], shape[1], factor, torch.zeros_like(factor), (self.clip, self.clip))


class RandomSaturation(_Uniform):
    """The saturation of HSV times a factor.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomSaturation")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomSaturation(K.RandomSaturation((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8000, 0.6000, 0.5000])
    """

    wraps = "RandomSaturation"
    factor = "saturation_factor"
    channels = 3

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return saturated(images.clamp(0, 1), by_sample(params[self.factor])).clamp(0, 1)


class RandomHue(_Uniform):
    """Rotate the hue by a fraction of the circle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomHue")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomHue(K.RandomHue((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2000, 0.6000, 0.8000])
    """

    wraps = "RandomHue"
    factor = "hue_factor"
    channels = 3

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return hue_rotated(images.clamp(0, 1), by_sample(params[self.factor])).clamp(0, 1)


class RandomGamma(FusedKorniaOp):
    """gain · x^gamma.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomGamma")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomGamma(K.RandomGamma((2.0, 2.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.0400, 0.1600, 0.3600])
    """

    wraps = "RandomGamma"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.gamma, self.gain = limits(sampler.gamma_factor), limits(sampler.gain_factor)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"gamma_factor": ranged(u[:, 0], *self.gamma), "gain_factor": ranged(u[:, 1], *self.gain)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        powered = images.clamp(0, 1).pow(by_sample(params["gamma_factor"]))
        return (powered * by_sample(params["gain_factor"])).clamp(0, 1)


class RandomGrayscale(FusedKorniaOp):
    """The luma in every channel; of other than three channels the mean.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomGrayscale")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomGrayscale(K.RandomGrayscale(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4968, 0.4968, 0.4968])
    """

    wraps = "RandomGrayscale"

    def __init__(self, module: Any):
        super().__init__(module)
        given = module.rgb_weights
        self.weights = None if given is None else tuple(given.tolist())

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return gray(images, self._weights(images.shape[1])).expand_as(images)

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        return instruction(Kind.GRAY, params["drawn"], self._weights(shape[1]))

    def _weights(self, channels: int) -> tuple[float, ...]:
        weights = self.weights or (LUMA if channels == 3 else (1 / channels,) * channels)
        if len(weights) != channels:
            raise ValueError(f"RandomGrayscale has rgb_weights for {len(weights)} channels; images have {channels}")
        return weights


class RandomSolarize(FusedKorniaOp):
    """x + addition, and 1 - that where it is at or above a threshold.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomSolarize")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomSolarize(K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2000, 0.4000, 0.4000])
    """

    wraps = "RandomSolarize"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.thresholds, self.additions = limits(sampler.thresholds), limits(sampler.additions)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"thresholds": ranged(u[:, 0], *self.thresholds), "additions": ranged(u[:, 1], *self.additions)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        x = (images.clamp(0, 1) + by_sample(params["additions"])).clamp(0, 1)
        return torch.where(x < by_sample(params["thresholds"]), x, 1 - x)

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        return instruction(Kind.SOLARIZE, params["drawn"], params["thresholds"], params["additions"])


class RandomPosterize(FusedKorniaOp):
    """Keep the upper bits of 8: with 0 bits the result is 0, with 8 it is x.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomPosterize")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomPosterize(K.RandomPosterize((1, 1), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.0000, 0.0000, 0.5020])
    """

    wraps = "RandomPosterize"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator.bit_sampler
        self.bits = float(sampler.low), float(sampler.high)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"bits_factor": ranged(u[:, 0], *self.bits).round().int()}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        bits = by_sample(params["bits_factor"])
        x = images.clamp(0, 1)
        step = torch.exp2(8.0 - bits)
        # The detour by 255 is kornia's; without it a byte now and then comes out one step higher.
        kept = ((x * 255).floor() / step / 255 * 255).floor() * step / 255
        return torch.where(bits == 8, x, torch.where(bits == 0, 0.0, kept))


class RandomInvert(FusedKorniaOp):
    """max_val - x.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomInvert")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomInvert(K.RandomInvert(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8000, 0.6000, 0.4000])
    """

    wraps = "RandomInvert"

    def __init__(self, module: Any):
        super().__init__(module)
        self.max_val = float(module.flags["max_val"])
        self.keeps_range = self.max_val == 1

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        value = module.flags["max_val"]
        return "max_val by channel" if isinstance(value, Tensor) and value.numel() != 1 else None

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return self.max_val - images

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        drawn = params["drawn"]
        return linear(drawn, shape[1], (-1.0,) * shape[1], (self.max_val,) * shape[1])


class RandomChannelShuffle(FusedKorniaOp):
    """The channels in another order.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomChannelShuffle")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomChannelShuffle(K.RandomChannelShuffle(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4000, 0.2000, 0.8000])
    """

    wraps = "RandomChannelShuffle"
    uniforms = 8

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        if shape[1] > self.uniforms:
            raise ValueError(f"RandomChannelShuffle is for at most {self.uniforms} channels; images have {shape[1]}")
        return {"channels": u[:, : shape[1]].argsort(dim=1, stable=True)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        order = params["channels"].view(*images.shape[:2], 1, 1)
        return images.gather(1, order.expand_as(images))


class Normalize(FusedKorniaOp):
    """(x - mean) / std per channel.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Normalize")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = Normalize(K.Normalize(mean=torch.tensor([0.5]), std=torch.tensor([0.2])))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([ 1.5000, -0.5000, -1.5000])
    """

    wraps = "Normalize"
    keeps_range = False

    def __init__(self, module: Any):
        super().__init__(module)
        self.mean, self.std = (tuple(module.flags[name].flatten().tolist()) for name in ("mean", "std"))

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return (images - per_channel(self.mean, images)) / per_channel(self.std, images)


class Denormalize(Normalize):
    """x · std + mean per channel.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Denormalize")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = Denormalize(K.Denormalize(mean=torch.tensor([0.5]), std=torch.tensor([0.2])))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.6600, 0.5800, 0.5400])
    """

    wraps = "Denormalize"

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return images * per_channel(self.std, images) + per_channel(self.mean, images)
