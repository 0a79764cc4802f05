"""The student: a frozen timm backbone, deltas on its layers, and a new head. Or a whole network, all of it trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.deltas.attach import Site, attach
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.models.features import Features, FeatureShapes
from distill.models.frozen import Frozen, batch_norms
from distill.models.identity import Identity, identify
from distill.models.network import Network, extract, measure_shapes
from distill.models.settings import StudentSettings


class Student(nn.Module):
    """``forward(view [B, 3, H, W]) → Features``.

    With ``train: deltas`` the backbone has no gradient and stays in eval mode (batch-norm statistics and affine fixed),
    whatever ``.train()`` says to it; deltas are parametrizations of its layers and the head is timm's own classifier,
    new and trainable. So timm's module names are kept, and merging gives a plain timm model.

    Args:
        network: a timm model whose classifier is the head.
        settings: what to train.
        needs: which fields of ``Features`` objectives will ask for; evaluation asks for logits.
    """

    def __init__(self, network: Network, settings: StudentSettings, needs: frozenset[str] = frozenset({"logits"})):
        super().__init__()
        self.network = network
        self.model = network.model
        self.input = network.input
        self.needs = needs
        self.whole = settings.train == "whole"
        head = classifier_names(self.model)
        self.backbone: Identity = identify(backbone_state(self.model, head))
        self.sites: list[Site] = []
        if not self.whole:
            self.sites = attach(self.model, settings.deltas, exclude_head=head)
            learned = {id(part) for site in self.sites for part in site.delta.modules()}
            self._frozen = Frozen(module for module in self.model.modules() if id(module) not in learned)
        else:
            self._frozen = Frozen(batch_norms(self.model) if settings.batch_norm == "frozen" else ())
        deltas = {id(t) for site in self.sites for t in site.delta.state_dict(keep_vars=True).values()}
        self._own_keys = [
            key
            for key, t in self.state_dict(keep_vars=True).items()
            if self.whole or t.requires_grad or id(t) in deltas
        ]
        self.shapes: FeatureShapes = measure_shapes(self.model.eval(), self.input, needs)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._extract = torch.compile(extract) if settings.compile else extract

    def forward(self, view: Tensor) -> Features:
        self._frozen.enforce()
        return self._extract(self.model, view, self.needs)

    def own_state(self) -> dict[str, Tensor]:
        """What training changes, by name in ``state_dict``: all of it when trained whole, else deltas and head."""
        state = self.state_dict()
        return {key: state[key] for key in self._own_keys}


def head_modules(model: nn.Module) -> list[nn.Module]:
    """timm's classifier, or classifiers where a network has several (a distillation token)."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
