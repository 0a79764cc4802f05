"""Learns the weights of the teacher's networks from the gradient of the loss on held-out images.

Shape suffixes: M held-out images, N networks of the teacher, P trained parameters of the student.

An update is ``θ' = θ − η Σ_n w_n ∇L_n``, where ``L_n`` is the sum of the objectives with network n. Therefore::

    d L_held(θ') / d w_n = −η ⟨∇L_held(θ'), ∇L_n(θ)⟩  ≈  −η ⟨∇L_held(θ), ∇L_n(θ)⟩

the first-order approximation (as in learning to reweight examples, Ren et al., ICML 2018, arXiv 1803.09050, and DARTS,
Liu et al., ICLR 2019, arXiv 1806.09055, equation 6). A network gets more weight if a step along the gradient of its
loss reduces the held-out loss. The optimizer's preconditioning is ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augment.chain import eval_view
from distill.models.student import Student
from distill.models.teacher_settings import WeightingSettings
from distill.objectives.ce import cross_entropy
from distill.objectives.ranks import sum_over_ranks, world_size

_TINY = torch.finfo(torch.float32).tiny


def alignment(held_out_P: Tensor, of_network_NP: Tensor) -> Tensor:
    """[N] ``⟨v, g_n⟩ / (‖v‖ · max_m ‖g_m‖)`` in [−1, 1]: inner products up to a common factor; 0 for zero vectors."""
    longest = of_network_NP.norm(dim=1).amax()
    return of_network_NP @ held_out_P / (held_out_P.norm() * longest).clamp_min(_TINY)


def updated_preference(preference_N: Tensor, alignment_N: Tensor, lr: float) -> Tensor:
    """``a_n + lr · w_n (c_n − Σ_m w_m c_m)``: a gradient step through ``w = softmax(a)``.

    Args:
        preference_N: a.
        alignment_N: c, from :func:`alignment`.
        lr: step size.

    Returns:
        The new a [N].
    """
    weights_N = preference_N.softmax(0)
    return preference_N + lr * weights_N * (alignment_N - weights_N @ alignment_N)


class MetaStep(nn.Module):
    """Updates the preference a of the teacher's networks every ``every`` steps, from the gradients of that step.

    Each meta step uses the next batch of held-out images, as evaluation views, with the student in eval mode: it draws
    no random numbers and changes no running statistics. All ranks use the same images. A NaN in a gradient makes the
    weights and the loss NaN, and the guard then stops the run.

    Args:
        settings: of ``teacher.weighting``.
        images: [M, 3, H, W] uint8, in the order in which they are used.
        labels: [M] class indices.
    """

    images: Tensor
    targets: Tensor

    def __init__(self, settings: WeightingSettings, images: Tensor, labels: Tensor):
        super().__init__()
        self.settings = settings
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("targets", labels, persistent=False)

    def extra_repr(self) -> str:
        return f"every={self.settings.every}, images={len(self.images)}"

    def due(self, step: int) -> bool:
        """Whether there is a meta step in this training step, which is counted from 0."""
        return step % self.settings.every == 0

    def forward(self, step: int, student: Student, of_network: Tensor, preference_N: Tensor) -> Tensor:
        """One meta step.

        Args:
            step: number of the training step; it selects the images.
            student: whose parameters are trained.
            of_network: [N] loss with each of the networks, with a graph, which is kept.
            preference_N: the current preference.

        Returns:
            The new preference [N].
        """
        parameters = [p for p in student.parameters() if p.requires_grad]
        held_out_P = _gradient(self._loss(step, student), parameters)
        of_network_NP = torch.stack([_gradient(loss, parameters) for loss in of_network.unbind()])
        of_network_NP = sum_over_ranks(of_network_NP) / world_size()
        with torch.autocast(held_out_P.device.type, enabled=False):
            return updated_preference(preference_N, alignment(held_out_P, of_network_NP), self.settings.lr)

    def _loss(self, step: int, student: Student) -> Tensor:
        size = min(self.settings.batch_size, len(self.images))
        first = step // self.settings.every * size
        rows = (torch.arange(size, device=self.images.device) + first) % len(self.images)
        view = eval_view(self.images[rows], student.input).contiguous(memory_format=torch.channels_last)
        student.eval()
        logits = student(view).logits
        student.train()
        assert logits is not None
        return cross_entropy(logits, self.targets[rows])


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """[P], zero where the loss does not depend on a parameter; the graph is kept for the backward pass of the step."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.float().flatten() for gradient in gradients])
