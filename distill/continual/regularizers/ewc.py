"""EWC: elastic weight consolidation, with the Fisher information of each sample.

``λ/2 · Σ_i F_i (θ_i − θ*_i)²`` with ``F_i = mean_x (∂ log p(y|x) / ∂θ_i)²``, y drawn from the model's own p(y|x). Over
tasks, ``F ← γ F_old + F_new`` with the anchor at the latest weights (online EWC; γ = 1 adds them up).

Papers: Kirkpatrick et al., arXiv 1612.00796; online: Schwarz et al., arXiv 1805.06370. That results hinge on how F is
estimated: van de Ven, arXiv 2502.11756. Common implementations square the gradient of a batch, whose samples cancel, or
take the data set's labels ("empirical Fisher"); here each sample has a backward pass of its own, and its label is drawn
with a key of its own (seed, sample id), so that F depends neither on batches nor on their order.

In a stream whose ``ce`` is ``among: present``, p(y|x) is the softmax over the classes of the task, as in training.

λ depends on the scale of F, which falls as the model becomes certain; ``clip`` bounds it (1e-4 in PyCIL, with λ 1000).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from augment.draws import Draws
from distill.continual.errors import ContinualError
from distill.continual.regularizers.base import Batches, Regularizer


def drawn_labels(logits_BK: Tensor, ids_B: Tensor, seed: int) -> Tensor:
    """A label for each sample from ``softmax(z)``, keyed by seed and sample id.

    Args:
        logits_BK: z.
        ids_B: int64 sample ids.
        seed: of the draws.

    Returns:
        [B] int64.
    """
    uniform_B = Draws(seed, 0, "ewc", ids_B.cpu()).op("label").uniform(0, dtype=torch.float64)
    cumulative_BK = logits_BK.detach().cpu().double().softmax(1).cumsum(1)
    below_BK = cumulative_BK <= uniform_B[:, None]  # a class without probability is never drawn
    return below_BK.sum(1).clamp_max(logits_BK.shape[1] - 1).to(logits_BK.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode: a sample's gradient must not depend on its batch, and no statistic may change."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def fisher(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, seed: int, limit: int | None = None
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information: the mean over samples of squared gradients of ``log p(y|x)``.

    Args:
        model: views → logits, or an object with ``logits``.
        parameters: name → parameter of the model that requires a gradient.
        batches: views and sample ids.
        seed: of the labels' draws.
        limit: use the first samples only; None: all.

    Returns:
        Name → F ≥ 0 in the dtype of the parameter, summed in float64.

    Raises:
        ContinualError: there is no sample, or a gradient is not finite.
    """
    total = {name: torch.zeros(parameter.shape, dtype=torch.float64) for name, parameter in parameters.items()}
    count = 0
    with evaluating(model), torch.enable_grad():
        samples = ((view[None], id[None]) for views, ids in batches for view, id in zip(views, ids))
        for view, id in islice(samples, limit):
            outputs = model(view)
            logits = (outputs if isinstance(outputs, Tensor) else outputs.logits).float()
            loss = F.cross_entropy(logits, drawn_labels(logits, id, seed))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients):
                if gradient is not None:
                    total[name] += gradient.detach().cpu().double().square()
            count += 1
    if not count:
        raise ContinualError("ewc: the Fisher information needs at least one image")
    for name, value in total.items():
        if not value.isfinite().all():
            raise ContinualError(f"ewc: the gradient of {name} is not finite")
    return {name: (value / count).to(parameters[name]) for name, value in total.items()}


class EWC(Regularizer):
    """``λ/2 · Σ_i F_i (θ_i − θ*_i)²`` with ``F_i = mean_x (∂ log p(y|x) / ∂θ_i)²``, y ~ p(y|x).

    >>> import torch
    >>> from distill.continual.regularizers.ewc import EWC
    >>> layer = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> ewc = EWC(EWC.Settings(weight=2))
    >>> ewc.prepare(layer, dict(layer.named_parameters()), [(torch.tensor([[2.0], [4.0]]), torch.arange(2))])
    >>> ewc.importance["weight"]  # gradients are ±x/2: (1 + 4) / 2
    tensor([[2.5000],
            [2.5000]])
    """

    class Settings(Regularizer.Settings):
        type: Literal["ewc"] = "ewc"
        weight: float = Field(1000.0, ge=0, description="λ, factor of the penalty")
        decay: float = Field(1.0, ge=0, le=1, description="γ, factor of the Fisher information of earlier tasks")
        clip: float | None = Field(None, gt=0, description="upper bound of F; none: unbounded")
        samples: int | None = Field(
            None, ge=1, description="images of a task to estimate F with, in the order of a keyed hash; none: all"
        )
        seed: int = Field(0, ge=0, description="of the labels that are drawn")

    settings: Settings
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, arXiv 1612.00796"
    needs_images: ClassVar[bool] = True

    def importances(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches
    ) -> dict[str, Tensor]:
        settings = self.settings
        new = fisher(model, parameters, batches, settings.seed, settings.samples)
        if settings.clip is not None:
            new = {name: value.clamp_max(settings.clip) for name, value in new.items()}
        return {name: settings.decay * self.previous(name, value) + value for name, value in new.items()}
