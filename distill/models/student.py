"""The student: a frozen timm backbone with deltas on its layers and a trained head, or a network trained in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distill.deltas.attach import Site, attach, deltas, freeze
from distill.deltas.base import Delta, DeltaError, DeltaInit, DeltaSettings, StructuralDelta, entry_named
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state, load_exactly
from distill.models.features import Features, FeatureShapes
from distill.models.fingerprint import Fingerprint, fingerprint
from distill.models.frozen import Frozen, batch_norms
from distill.models.network import Network, as_network, extract, measure_shapes
from distill.models.settings import LearningSettings


class Student(nn.Module):
    """``forward(view [B, 3, H, W]) → Features``.

    With ``train: deltas`` the backbone has no gradient and stays in eval mode (batch-norm statistics and affine fixed),
    even after ``.train()``. Deltas are parametrizations of its layers; the head is timm's classifier and is trained.
    Module names are timm's, and merging gives a plain timm model. With ``train: full`` every weight is trained.

    Args:
        network: a timm model whose classifier is the head, or a ``Network``. It is changed in place.
        settings: what to train. ``StudentSettings`` may be given too; their ``network`` is not read here.
        needs: which fields of ``Features`` to compute: those that objectives read; evaluation reads logits.
        inits: settings and initial tensors of each entry of ``settings.deltas``; None: as its settings give them.

    Raises:
        NetworkError: the module is not from timm, or does not have the outputs that ``needs`` names.
        DeltaError: the model already has deltas, or a delta fits none of its layers.
    """

    def __init__(
        self,
        network: Network | nn.Module,
        settings: LearningSettings,
        needs: frozenset[str] = frozenset({"logits"}),
        inits: Sequence[DeltaInit] | None = None,
    ):
        super().__init__()
        network = as_network(network)
        if present := deltas(network.model):
            raise DeltaError(
                f"the model already has {len(present)} deltas, the first at {present[0].name!r}; merge them "
                "into its weights, or give a model without deltas"
            )
        self.network = network
        self.model = network.model
        self.input = network.input
        self.needs = needs
        self.full = settings.train == "full"
        head = classifier_names(self.model)
        self.backbone: Fingerprint = fingerprint(backbone_state(self.model, head))
        self.sites: list[Site] = []
        self.entries: list[dict[str, Delta]] = []
        """Site → delta, for each entry of ``settings.deltas``."""
        self.stored: dict[str, Literal["float16", "int8", "sign"]] = {}
        """Part of the delta file, "deltas" or "head" → the format that it was trained for, where that is not fp32."""
        self._deltas = settings.deltas
        self._inits = list(inits or [DeltaInit([entry]) for entry in settings.deltas])
        if not self.full:
            freeze(self.model, head)
            for number, init in enumerate(self._inits):
                with entry_named(number):
                    added = attach(self.model, init.settings, exclude_head=head)
                entry: dict[str, Delta] = {_site_name(site): site.delta for site in added}
                for name, delta in entry.items():
                    tensors, own = init.tensors.get(name, {}), delta.state_dict()
                    load_exactly({key: own[key] for key in tensors if key in own}, tensors, f"initial values of {name}")
                self.entries.append(entry)
            self.sites = deltas(self.model)
            learned = {id(part) for site in self.sites for part in site.delta.modules()}
            learned |= {id(part) for name, part in self.model.named_modules() if inside(name, head)}
            self._frozen = Frozen(module for module in self.model.modules() if id(module) not in learned)
        else:
            self._frozen = Frozen(batch_norms(self.model) if settings.batch_norm == "frozen" else ())
        of_deltas = {id(t) for site in self.sites for t in site.delta.state_dict(keep_vars=True).values()}
        self._own_keys = [
            key
            for key, t in self.state_dict(keep_vars=True).items()
            if self.full or t.requires_grad or id(t) in of_deltas or inside(key.removeprefix("model."), head)
        ]
        self.shapes: FeatureShapes = measure_shapes(self.model.eval(), self.input, needs)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled = settings.compile
        self._extract = torch.compile(extract) if settings.compile else extract

    def extra_repr(self) -> str:
        learned = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        return (
            f"train={'full' if self.full else 'deltas'}, learned={learned:,} of {total:,} parameters, "
            f"input={' x '.join(map(str, self.input.size))}, needs={'|'.join(sorted(self.needs))}"
        )

    def forward(self, view: Tensor) -> Features:
        """The outputs that ``needs`` names, for one view [B, 3, H, W]."""
        self._frozen.enforce()
        return self._extract(self.model, view, self.needs)

    def moving_norms(self) -> list[str]:
        """Names, in ``model``, of the batch norms whose running statistics move in training."""
        norms = {id(norm) for norm in batch_norms(self.model)}
        named = [(name, module) for name, module in self.model.named_modules() if id(module) in norms]
        return [name for name, norm in named if not self._frozen.holds(norm)]

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name in ``state_dict``; without ``train: full``, deltas and head."""
        state = self.state_dict()
        return {key: state[key] for key in self._own_keys}

    def after_step(self, step: int, steps: int) -> None:
        """Call ``Delta.after_step`` of every method with its deltas, after an optimizer step."""
        for entry, sites in zip(self._deltas, self.entries, strict=True):
            method, own = _method_and_deltas(entry, sites)
            method.after_step(own, step, steps)

    def finish(self) -> list[DeltaInit] | None:
        """For each entry, the deltas that replace the trained ones (``Delta.finish``); None if none is replaced."""
        inits = []
        smaller = False
        for number, (entry, init, sites) in enumerate(zip(self._deltas, self._inits, self.entries, strict=True)):
            method, own = _method_and_deltas(entry, sites)
            replacement = method.finish(entry, own)
            smaller |= replacement is not None
            if replacement is None:
                replacement = DeltaInit(init.settings, self.entry_state(number))
            else:  # dense deltas that replace oversized ones stay
                others = {site: d for site, d in sites.items() if site not in own}
                kept = [d.settings.model_copy(update={"sites": (site,)}) for site, d in others.items()]
                tensors = {site: d.state_dict() for site, d in others.items()}
                replacement = DeltaInit([*replacement.settings, *kept], {**replacement.tensors, **tensors})
            inits.append(replacement)
        return inits if smaller else None

    def inits(self) -> list[DeltaInit]:
        """For each entry of ``settings.deltas``, its deltas with their present values, for another student."""
        return [DeltaInit(init.settings, self.entry_state(number)) for number, init in enumerate(self._inits)]

    def entry_state(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Site → the tensors of an entry's deltas."""
        return {site: dict(delta.state_dict()) for site, delta in self.entries[number].items()}


def _site_name(site: Site) -> str:
    """The name of a site in ``DeltaInit.tensors``."""
    return site.delta.settings.type if isinstance(site.delta, StructuralDelta) else site.name


def _method_and_deltas(entry: DeltaSettings, sites: dict[str, Delta]) -> tuple[type[Delta], dict[str, Delta]]:
    """An entry's method and its deltas, without dense ones that replace oversized ones."""
    method = entry.component
    assert method is not None and issubclass(method, Delta)
    return method, {site: delta for site, delta in sites.items() if isinstance(delta, method)}


def head_modules(model: nn.Module) -> list[nn.Module]:
    """timm's classifier, or its classifiers where a model has several (a distillation token)."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
