"""Output delta: ``z = z_head(f) + g · δ(f)``, with ``δ(f) = W₂ gelu(W₁ f)`` and g initialized to zero.

f [B, D] is the classifier's input, z [B, K] its logits, W₁ [hidden, D] and W₂ [K, hidden] have biases, g is a scalar.
With an objective on logits, δ learns the difference between the teacher's logits and those of the head. Before training
only g has a gradient; δ has one as soon as g is not zero. A network with several classifiers (a distillation token)
gets one correction for each.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaError, DeltaSettings, StructuralDelta
from distill.deltas.sites import classifier_names


class OutputDelta(StructuralDelta):
    """``z + g · W₂ gelu(W₁ f)`` on the classifier.

    >>> import timm, torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.output import OutputDelta
    >>> model = timm.create_model("test_resnet", num_classes=3).eval()
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> before = model(x)
    >>> (site,) = attach(model, [OutputDelta.Settings(hidden=4)], exclude_head="fc")
    >>> sum(p.numel() for p in site.delta.parameters())
    404
    >>> site.delta.is_identity(), torch.equal(model(x), before)
    (True, True)
    """

    class Settings(DeltaSettings):
        type: Literal["output"] = "output"
        hidden: int = Field(64, ge=1, description="width of the layer between features and logits")

    settings: Settings

    def __init__(self, settings: Settings, backbone: nn.Module):
        super().__init__(settings, backbone)
        if settings.sites != ("*",) or settings.exclude or settings.kinds:
            raise DeltaError("output: it is attached to the classifier; leave sites, exclude and kinds out")
        self.names = classifier_names(backbone)
        heads = [backbone.get_submodule(name) for name in self.names]
        if not heads or not all(isinstance(head, nn.Linear) for head in heads):
            description = (
                ", ".join(f"{n!r} is a {type(h).__name__}" for n, h in zip(self.names, heads)) or "there is none"
            )
            raise DeltaError(f"output: it needs a classifier that is a Linear, and {description}; use 'adapter'")
        self.corrections = nn.ModuleList(Correction(head, settings.hidden) for head in heads)  # type: ignore[arg-type]

    def attach(self, backbone: nn.Module) -> None:
        for name, correction in zip(self.names, self.corrections, strict=True):
            backbone.get_submodule(name).register_forward_hook(correction.correct)  # type: ignore[arg-type]

    def is_identity(self) -> bool:
        return not any(bool(correction.gain) for correction in self.corrections)

    def metrics(self) -> dict[str, Tensor]:
        return {"gain": torch.stack([c.gain.detach() for c in self.corrections]).mean()}  # type: ignore[arg-type, operator, union-attr]


class Correction(nn.Module):
    """``g · W₂ gelu(W₁ f)``, added to the logits of one classifier."""

    def __init__(self, head: nn.Linear, hidden: int):
        super().__init__()
        self.into = nn.Linear(head.in_features, hidden)
        self.out = nn.Linear(hidden, head.out_features)
        self.gain = nn.Parameter(torch.zeros(()))

    def correct(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add the correction to the logits: a forward hook of the classifier.

        Args:
            module: the classifier; not used.
            inputs: its input f [B, D], first of the tuple.
            output: its logits [B, K].

        Returns:
            The corrected logits [B, K], in the dtype of ``output``.
        """
        return output + (self.gain * self.out(F.gelu(self.into(inputs[0])))).to(output.dtype)
