"""SI: synaptic intelligence, the importance of a parameter by how much its way through training lowered the loss.

During a task, ``ω_i ← ω_i − g_i Δθ_i`` after each update, with g the gradient that it followed. At the end of the task,
``Ω_i ← Ω_i + max(0, ω_i) / ((θ_i − θ_i,start)² + ξ)``, and ω starts again. Penalty ``λ/2 · Σ_i Ω_i (θ_i − θ*_i)²``; the
paper's c is λ/2.

Paper: Zenke et al., Continual Learning Through Synaptic Intelligence, arXiv 1703.04200. Deviations: a negative ω counts
as zero, since a negative importance would reward moving away. If ``after_step`` gets no gradients of the task's loss
alone, it takes those of the whole loss, with the penalty's part; they must neither be cleared nor scaled before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.continual.errors import ContinualError
from distill.continual.regularizers.base import Batches, Regularizer


class SI(Regularizer):
    """``Ω_i = Σ_tasks max(0, −Σ_steps g_i Δθ_i) / ((Δθ_i over the task)² + ξ)``.

    >>> import torch
    >>> from distill.continual.regularizers.si import SI
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> si = SI(SI.Settings(xi=0.75))
    >>> si.attach(dict(layer.named_parameters()))
    >>> layer.weight.grad = torch.tensor([[-4.0]])
    >>> with torch.no_grad():
    ...     _ = layer.weight.sub_(0.125 * layer.weight.grad)  # Δθ = 0.5
    >>> si.after_step()
    >>> si.prepare(layer, dict(layer.named_parameters()), [])
    >>> si.importance["weight"].item()  # 4 · 0.5 / (0.5² + 0.75)
    2.0
    """

    class Settings(Regularizer.Settings):
        type: Literal["si"] = "si"
        weight: float = Field(0.2, ge=0, description="λ, factor of the penalty; twice the paper's c")
        xi: float = Field(1e-3, gt=0, description="ξ, added to the squared distance of a task")

    settings: Settings
    paper: ClassVar[str] = "Zenke et al. 2017, arXiv 1703.04200"
    reads_gradients: ClassVar[bool] = True

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.path: dict[str, Tensor] = {}
        """Name → ω of the current task."""
        self.start: dict[str, Tensor] = {}
        """Name → θ at the start of the task."""
        self.latest: dict[str, Tensor] = {}
        """Name → θ after the latest update."""

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Watch these parameters; a task that has not begun begins. One that was resumed goes on."""
        super().attach(parameters)
        begun = set(self.path) == set(parameters) and all(
            self.path[name].shape == parameter.shape for name, parameter in parameters.items()
        )
        if not begun:
            self._begin(parameters)

    @torch.no_grad()
    def after_step(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        for name, parameter in self._parameters.items():
            gradient = parameter.grad if gradients is None else gradients.get(name)
            if gradient is not None:
                self.path[name] -= gradient * (parameter - self.latest[name])
            self.latest[name].copy_(parameter)

    def importances(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches
    ) -> dict[str, Tensor]:
        values = {}
        for name, parameter in parameters.items():
            distance = (parameter.detach() - self.start[name]).square() + self.settings.xi
            values[name] = self.previous(name, parameter) + self.path[name].clamp_min(0) / distance
        return values

    def prepare(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> None:
        if set(self.path) != set(parameters):
            raise ContinualError("si: attach the parameters before a task is trained, and again after it was resumed")
        super().prepare(model, parameters, batches)
        for tensors in (self.path, self.start, self.latest):
            tensors.clear()

    def _begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for tensors in (self.path, self.start, self.latest):
            tensors.clear()
        for name, parameter in parameters.items():
            self.path[name] = torch.zeros_like(parameter, requires_grad=False)
            self.start[name] = parameter.detach().clone()
            self.latest[name] = parameter.detach().clone()

    def _state(self) -> dict[str, dict[str, Tensor]]:
        return super()._state() | {"path": self.path, "start": self.start, "latest": self.latest}
