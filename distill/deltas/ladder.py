"""Ladder side network: a thin network that reads the stages of a frozen one. No gradient enters the backbone.

With the backbone's outputs h_i (without gradient) at its taps and widths w_i = C_i / ``reduction``, s = D_0 h_0, then

    s ← Block_i(g_i · T_i s + (1 − g_i) · D_i h_i),    g_i = sigmoid(α_i / 0.1), α_i = 0 before training
    F' = F + U norm(s)                                 U = 0 before training

D_i [w_i, C_i] is a 1×1 map; T_i [w_i, w_{i−1}] is one where the width changes, followed by pooling where the size does,
also before U. With ``stem``, the stream starts at the stem as in the paper: s_0 = D h_stem, h_stem the input of the
first block, and the first rung mixes too. F is the output of the backbone's ``forward_features``: [B, D, H, W],
[B, H, W, D] or [B, N, D]; the backbone's own pooling and head are applied to F'. Nothing before F records a graph, so
the backbone's activations are not kept for backward.

A side block has the form of the backbone's last block up to the tap, with fewer channels, and is initialized from its
weights by structured pruning: the channels of the greatest importance are kept. Where the block reads fewer channels
than its copy, the weights on the others are zero. Importance is the empirical Fisher information of the experiment's
loss over ``samples`` images, after the head has been trained for an epoch; if ``prepare`` has not run, the squares of
the weights. Of a block on maps, convs and Linears are kept, attention is not. ``init: random`` works with any backbone:
its side blocks are a depthwise 3×3 and two 1×1 convs, or a small transformer block for tokens.

Deviations: the paper replaces the backbone's output by U s; here U norm(s) is added, so that before training the
student computes what the backbone does. ``every`` and ``rungs`` are the paper's layer drop (fewer rungs; it drops
layers 0, 4 and 8 of T5-base's 12: ``rungs: [1, 2, 3, 5, 6, 7, 9, 10, 11]``); ``drop_path`` skips side blocks at random
in training.

``trunk: bfloat16`` computes the backbone, which has no gradient, in bfloat16 by autocast: its weights stay fp32, so the
delta file belongs to the same backbone, and before training the student computes what that backbone does in bfloat16.
Side network and head compute in the precision of training.

Paper: Sung et al., LST: Ladder Side-Tuning, arXiv 2206.06522.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from augment.base import error_at
from distill.deltas.base import Calibration, DeltaError, DeltaInit, DeltaSettings, StructuralDelta
from distill.deltas.blocks import BackboneBlock, as_block, block_names, empty_image, eval_mode, select_blocks
from distill.deltas.feature_cache import FeatureCache
from distill.deltas.side_blocks import Rung, Stem, free_form, gate, pointwise, pruned_form
from distill.deltas.structured_pruning import Importance, prune_into, stream_scores, top


class Ladder(StructuralDelta):
    """``F + U norm(s)``, s the output of a side network that reads the frozen backbone's stages.

    >>> import timm, torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.ladder import Ladder
    >>> model = timm.create_model("test_resnet", num_classes=3).eval()
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> before = model(x)
    >>> (site,) = attach(model, [Ladder.Settings(reduction=2, init="random")], exclude_head="fc")
    >>> sum(p.numel() for p in site.delta.parameters())
    89691
    >>> site.delta.is_identity(), torch.equal(model(x), before)
    (True, True)
    """

    class Settings(DeltaSettings):
        type: Literal["ladder"] = "ladder"
        reduction: int = Field(8, ge=2, le=64, description="width of the backbone divided by that of the side network")
        init: Literal["pruned", "random"] = Field(
            "pruned", description="side blocks are pruned from the backbone's blocks, or new"
        )
        samples: int = Field(1024, ge=1, description="init: pruned only: images over which importance is averaged")
        stem: bool = Field(False, description="start the side stream at the stem, not at the first tap")
        every: int = Field(1, ge=1, description="layer drop: one rung for every n-th tap, counted from the last")
        rungs: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
            None,
            min_length=1,
            description="layer drop: numbers of the taps that get a rung, counted from 0 among those that sites match; "
            "none: as every says",
        )
        trunk: Literal["float32", "bfloat16"] = Field(
            "float32", description="bfloat16: compute the frozen backbone in bfloat16; float32: as training does"
        )
        drop_path: float = Field(
            0.0, ge=0, lt=1, description="probability that a sample skips a side block in training"
        )
        cache_mb: int = Field(
            0,
            ge=0,
            description="MiB of main memory for a cache of the backbone's outputs, keyed by the content of a view: for "
            "views that repeat, such as those of a chain without random operations; 0: no cache",
        )

        @model_validator(mode="after")
        def _rungs_are_chosen_once(self) -> Self:
            if self.rungs is not None and self.every > 1:
                raise error_at("rungs", "every chooses the rungs too; give one of the two")
            if self.rungs is not None and list(self.rungs) != sorted(set(self.rungs)):
                raise error_at("rungs", "each tap once, in ascending order")
            return self

    settings: Settings
    shares_backbone: ClassVar[bool] = False

    def __init__(self, settings: Settings, backbone: nn.Module):
        super().__init__(settings, backbone)
        taps = _chosen(settings, select_blocks(backbone, settings, "stages"))
        final, stem = _final(backbone), _stem(backbone) if settings.stem else None
        read = [*([stem] if stem else []), *taps, final]
        kinds = [(block.is_map, 0 if block.is_map else block.shape[0]) for block in read]
        if len(set(kinds)) > 1:
            outputs = ", ".join(f"{block.name} {list(block.shape)}" for block in read)
            raise DeltaError(
                f"ladder: its taps and forward_features must all give maps, or all equally many tokens, but give "
                f"{outputs}; name other stages, or use 'adapter'"
            )
        self.names = [tap.name for tap in taps]
        if settings.init == "pruned":
            forms = [pruned_form(backbone, tap, settings.reduction) for tap in taps]
        else:
            forms = [free_form(tap, settings.reduction) for tap in taps]
        self.start = Stem(stem, forms[0].width) if stem else None
        before = [forms[0].width if stem else None, *(form.width for form in forms)]
        self.rungs = nn.ModuleList(
            Rung(tap, form, width, settings.drop_path) for tap, form, width in zip(taps, forms, before)
        )
        width = forms[-1].width
        self.norm: nn.Module = nn.GroupNorm(1, width) if final.is_map else nn.LayerNorm(width)
        self.up = pointwise(width, final.channels, final.is_map)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)
        self.to_back = final.is_map and final.axis == -1
        self.cache = FeatureCache(settings.cache_mb * 2**20)
        self._backbone: tuple[Any, ...] = ()
        if settings.init == "pruned":
            self.prune(backbone, lambda name: _weight(backbone, name).square())

    @torch.no_grad()
    def prune(self, backbone: nn.Module, importance: Importance) -> None:
        """Initialize the side blocks from the backbone, see ``structured_pruning``.

        The same channels are kept at all taps of one width.
        """
        scores = [stream_scores(rung, backbone, importance) for rung in self.rungs]  # type: ignore[arg-type]
        for rung, own in zip(self.rungs, scores, strict=True):
            same = torch.stack([other for other in scores if len(other) == len(own)]).sum(0)
            prune_into(rung, backbone, importance, top(same, rung.form.width))  # type: ignore[arg-type, union-attr]
        first: Any = self.rungs[0].down
        if self.start is not None and self.start.down.weight.shape == first.weight.shape:  # the same channels
            self.start.down.weight.copy_(first.weight)  # type: ignore[operator]
            self.start.down.bias.copy_(first.bias)  # type: ignore[operator, union-attr]

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        assert isinstance(settings, cls.Settings)
        return settings.init == "pruned"

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        assert isinstance(settings, cls.Settings)
        gradients = calibration.after(1, train="head").gradients(settings.samples)
        ladder = cls(settings, calibration.backbone)
        ladder.prune(calibration.backbone, lambda name: gradients[name].square)
        return DeltaInit((settings,), {settings.type: ladder.state_dict()})

    def attach(self, backbone: nn.Module) -> None:
        for name, rung in zip(self.names, self.rungs, strict=True):
            backbone.get_submodule(name).register_forward_hook(rung.keep)  # type: ignore[arg-type]
        if self.start is not None:
            backbone.get_submodule(block_names(backbone, "blocks")[0]).register_forward_pre_hook(self.start.keep)
        self._backbone = (backbone,)  # in a tuple, so that it is not registered as a child of its own child
        backbone.forward_features = self.forward_features  # type: ignore[assignment]
        backbone.forward_intermediates = self.forward_intermediates  # type: ignore[assignment]

    def is_identity(self) -> bool:
        return not any(bool(parameter.any()) for parameter in self.up.parameters())

    def metrics(self) -> dict[str, Tensor]:
        gates = [gate(rung.gate.detach()) for rung in self.rungs if rung.gate is not None]  # type: ignore[union-attr, operator]
        outputs = {"gate": torch.stack(gates).mean()} if gates else {}
        return outputs | ({"cached": torch.tensor(self.cache.hit_rate)} if self.cache.capacity else {})

    def forward_features(self, x: Tensor, *arguments: Any, **more: Any) -> Tensor:
        """Replaces the backbone's method.

        Args:
            x: images [B, 3, H, W].
            arguments: of the backbone's method.
            more: its keyword arguments.

        Returns:
            F', of the shape that the backbone's method returns.
        """

        def compute(x: Tensor) -> tuple[Tensor, ...]:
            final = type(self._backbone[0]).forward_features(self._backbone[0], x, *arguments, **more)
            return (final, *(part.tap_output for part in self._reading()))  # type: ignore[misc]

        with torch.no_grad(), self._trunk(x):
            if self.cache.capacity:
                final, *outputs = self.cache(x, compute)
                for part, h in zip(self._reading(), outputs, strict=True):
                    part.tap_output = h
            else:
                final = compute(x)[0]
        return self.climb(self._widened(final, x))

    def forward_intermediates(self, x: Tensor, *arguments: Any, **more: Any) -> Any:
        """Replaces the backbone's method. The maps are the backbone's, without gradient; the cache is not used.

        Args:
            x: images [B, 3, H, W].
            arguments: of the backbone's method.
            more: its keyword arguments.

        Returns:
            What the backbone's method returns, with F' in place of F.
        """
        with torch.no_grad(), self._trunk(x):
            outputs = type(self._backbone[0]).forward_intermediates(self._backbone[0], x, *arguments, **more)
        if not isinstance(outputs, tuple):
            return [self._widened(map_, x) for map_ in outputs]
        final, maps = outputs
        return self.climb(self._widened(final, x)), [self._widened(map_, x) for map_ in maps]

    def climb(self, final: Tensor) -> Tensor:
        """``F + U norm(s)``, from the outputs that the rungs have kept."""
        s = None if self.start is None else self.start()
        for rung in self.rungs:
            s = rung(s)
        assert s is not None
        height, width = final.shape[1:3] if self.to_back else final.shape[-2:]
        if s.ndim == 4 and s.shape[-2:] != (height, width):  # the last rungs are left out
            s = F.adaptive_avg_pool2d(s, (height, width))
        added = self.up(self.norm(s))
        return final + (added.movedim(1, -1) if self.to_back else added).to(final.dtype)

    def _reading(self) -> list[Any]:
        """The parts that keep an output of the backbone."""
        return [*([self.start] if self.start is not None else []), *self.rungs]

    def _trunk(self, x: Tensor) -> AbstractContextManager:
        """The precision of the backbone."""
        if self.settings.trunk == "float32":
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)

    def _widened(self, final: Tensor, x: Tensor) -> Tensor:
        """An output of a trunk in bfloat16, and what the parts have kept, in the dtype of the images."""
        if self.settings.trunk == "float32":
            return final
        for part in self._reading():
            if part.tap_output is not None:
                part.tap_output = part.tap_output.to(x.dtype)
        return final.to(x.dtype)


def _chosen(settings: Ladder.Settings, taps: list[BackboneBlock]) -> list[BackboneBlock]:
    """The taps that get a rung."""
    if settings.rungs is None:
        return taps[:: -settings.every][::-1]
    if settings.rungs[-1] >= len(taps):
        names = ", ".join(tap.name for tap in taps)
        raise DeltaError(
            f"ladder: rungs: {settings.rungs[-1]}: its sites match {len(taps)} taps, numbers 0 to {len(taps) - 1}: "
            f"{names}"
        )
    return [taps[number] for number in settings.rungs]


def _stem(backbone: nn.Module) -> BackboneBlock:
    """The input of the first block."""
    name, inputs = block_names(backbone, "blocks")[0], []
    handle = backbone.get_submodule(name).register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    try:
        with torch.no_grad(), eval_mode(backbone):
            backbone.forward_features(empty_image(backbone))  # type: ignore[operator]
    finally:
        handle.remove()
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim not in (3, 4):
        raise DeltaError(f"ladder: stem: the input of {name!r} is neither a map nor tokens; leave stem out")
    return as_block(backbone, f"stem, before {name}", inputs[0])


def _final(backbone: nn.Module) -> BackboneBlock:
    """The backbone's ``forward_features``, whose output pooling and head read."""
    with torch.no_grad(), eval_mode(backbone):
        output = backbone.forward_features(empty_image(backbone))  # type: ignore[operator]
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise DeltaError(
            f"ladder: {type(backbone).__name__}.forward_features gives neither a map nor tokens; use 'adapter'"
        )
    return as_block(backbone, "forward_features", output)


def _weight(backbone: nn.Module, name: str) -> Tensor:
    weight: Tensor = backbone.get_submodule(name).weight  # type: ignore[assignment]
    return weight.detach()
