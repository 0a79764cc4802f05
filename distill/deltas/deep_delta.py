"""Deep delta corrector: replaces the component of a frozen block's output along a learned direction by a new value.

The state of a token is a matrix X [d, m] of d directions and m values. With a unit key k [d], a value v [m], a gate β:

    X' = X + β k (vᵀ − kᵀ X)        m = 1:   y' = y + β (v − kᵀ y) k

A block's output y [C] is reshaped to such a state, with d = C / m; in a CNN every pixel is a token. Key, value and gate
are functions of the normalized output, c = RMSNorm(y):

    k = h / √(‖h‖² + ε²), h = W₂ W₁ c (W₁ [rank, C], W₂ [d, rank]), ε = 1e-5
    v = W_v c, or 4·sigmoid(W_v c + b) with ``value: sigmoid``
    β = 2·tanh(w·c + b), or with a hidden layer of ``gate_hidden`` units instead of w·c (``gate: mlp``); in fp32

β = 0 is the identity, 1 removes the component along k and adds v, 2 reflects for v = 0. ``write_only`` is the control
``X + β k vᵀ``, which removes nothing.

Deviations: the operator corrects the output of a frozen block instead of replacing its residual connection, so k is
computed from the output, not by a trained sublayer. The paper's gate 2·sigmoid(·) is never exactly 0 and has a small
gradient near 0; 2·tanh(·) is initialized to exactly 0, where its gradient is 2, and may become negative.

Paper: Zhang et al., Deep Delta Learning, arXiv 2601.00417.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaError, DeltaSettings, StructuralDelta
from distill.deltas.blocks import BackboneBlock, select_blocks


def delta_update(X: Tensor, k: Tensor, v: Tensor, beta: Tensor, write_only: bool = False) -> Tensor:
    """``X + β k (vᵀ − kᵀX)``.

    Args:
        X: states [..., d, m].
        k: unit keys [..., d].
        v: values [..., m].
        beta: gates β [...].
        write_only: compute ``X + β k vᵀ`` instead.

    Returns:
        States [..., d, m], in the dtype of X.
    """
    new = v if write_only else v - read(X, k)
    return X + ((beta.unsqueeze(-1) * k).unsqueeze(-1) * new.unsqueeze(-2)).to(X.dtype)


def read(X: Tensor, k: Tensor) -> Tensor:
    """The component of X [..., d, m] along k [..., d]: ``kᵀX`` [..., m]."""
    return (k.unsqueeze(-2) @ X.to(k.dtype)).squeeze(-2)


def unit_key(h: Tensor, eps: float = 1e-5) -> Tensor:
    """``h / √(‖h‖² + ε²)`` over the last axis, in fp32 or wider."""
    h = wide(h)
    return h * torch.rsqrt(h.square().sum(-1, keepdim=True) + eps**2)


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DeepDelta(StructuralDelta):
    """``y + β k (v − kᵀ y)`` after every block that ``sites`` matches (default: all residual blocks).

    >>> import timm, torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.deep_delta import DeepDelta
    >>> model = timm.create_model("test_resnet", num_classes=3).eval()
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> before = model(x)
    >>> (site,) = attach(model, [DeepDelta.Settings(rank=2)], exclude_head="fc")
    >>> sum(p.numel() for p in site.delta.parameters())
    2580
    >>> site.delta.is_identity(), torch.equal(model(x), before)
    (True, True)
    """

    class Settings(DeltaSettings):
        type: Literal["deep_delta"] = "deep_delta"
        values: int = Field(1, ge=1, description="m: columns of the state; must divide the channels of every block")
        rank: int = Field(8, ge=1, description="width of the hidden layer between the output and the key")
        gate: Literal["linear", "mlp"] = Field("linear", description="map from the output to β before tanh")
        gate_hidden: int = Field(128, ge=1, description="gate: mlp only: units of its hidden layer")
        value: Literal["linear", "sigmoid"] = Field("linear", description="v: a linear map, or 4 times its sigmoid")
        write_only: bool = Field(False, description="control: add v without removing the component along k")

    settings: Settings

    def __init__(self, settings: Settings, backbone: nn.Module):
        super().__init__(settings, backbone)
        blocks = select_blocks(backbone, settings, "blocks")
        self.names = [block.name for block in blocks]
        self.correctors = nn.ModuleList(Corrector(settings, block) for block in blocks)

    def parts(self) -> dict[str, nn.Module]:
        return dict(zip(self.names, self.correctors, strict=True))

    def attach(self, backbone: nn.Module) -> None:
        for name, corrector in zip(self.names, self.correctors, strict=True):
            backbone.get_submodule(name).register_forward_hook(corrector.correct)  # type: ignore[arg-type]

    def is_identity(self) -> bool:
        return not any(bool(p.any()) for c in self.correctors for p in c.gate[-1].parameters())  # type: ignore[index, union-attr]

    def metrics(self) -> dict[str, Tensor]:
        means = [corrector.means for corrector in self.correctors if corrector.means is not None]
        if not means:
            return {}
        gate, error = torch.stack(means).mean(0)  # type: ignore[arg-type]
        return {"beta": gate, "error": error}


class Corrector(nn.Module):
    """The operator after one block."""

    def __init__(self, settings: DeepDelta.Settings, block: BackboneBlock):
        super().__init__()
        channels, self.axis, self.values = block.channels, block.axis, settings.values
        if channels % settings.values:
            raise DeltaError(
                f"{settings.type}: {block.name!r} has {channels} channels, which values: {settings.values} does not "
                "divide; choose a divisor, or exclude the block"
            )
        self.write_only, self.sigmoid = settings.write_only, settings.value == "sigmoid"
        self.context_gain = nn.Parameter(torch.ones(channels))
        self.key = nn.Sequential(
            nn.Linear(channels, settings.rank, bias=False),
            nn.Linear(settings.rank, channels // settings.values, bias=False),
        )
        self.value = nn.Linear(channels, settings.values, bias=self.sigmoid)
        last = nn.Linear(settings.gate_hidden if settings.gate == "mlp" else channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = [nn.Linear(channels, settings.gate_hidden), nn.Tanh()] if settings.gate == "mlp" else []
        self.gate = nn.Sequential(*hidden, last)
        self.means: Tensor | None = None
        """Means of β and of |v − kᵀy| in the last training forward."""

    def extra_repr(self) -> str:
        return f"values={self.values}, write_only={self.write_only}"

    def correct(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:
        """Correct the block's output: a forward hook of the block.

        Args:
            module: the block; not used.
            inputs: its inputs; not used.
            output: its output y, with channels at the block's channel axis.

        Returns:
            The corrected output, in the same layout.
        """
        y = output.movedim(self.axis, -1)
        return self(y).movedim(-1, self.axis)

    def forward(self, y: Tensor) -> Tensor:
        """Correct y [..., C]."""
        c = F.rms_norm(y, y.shape[-1:], self.context_gain.to(y.dtype), 1e-6)
        k = unit_key(self.key(c))
        v = wide(self.value(c))
        if self.sigmoid:
            v = 4 * v.sigmoid()
        with torch.autocast(y.device.type, enabled=False):
            beta = 2 * self.gate(wide(c)).squeeze(-1).tanh()
            X = y.unflatten(-1, (-1, self.values))
            if self.training:
                error = (v - read(X, k)).detach().norm(dim=-1).mean()
                self.means = torch.stack([beta.detach().mean(), error])
            return delta_update(X, k, v, beta, self.write_only).flatten(-2)
