"""SimKD: trains the student's projected feature to equal the teacher's, and applies the teacher's classifier to it.

Shape suffixes: B batch, K classes, S and T pooled width of student and teacher.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distill.models.features import Features, FeatureShapes
from distill.models.settings import ReusedHead
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher, same_classes, same_shape
from distill.objectives.ranks import weighed


def simkd(projected_BT: Tensor, teacher_BT: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """``L = ‖p − f_t‖² / T``, weighted by sample, mean over the batch; zero if the projected feature p equals f_t.

    Args:
        projected_BT: projected student features.
        teacher_BT: teacher features; no gradient flows into them.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("pooled features", projected_BT, teacher_BT)
    losses_B = F.mse_loss(projected_BT.float(), teacher_BT.detach().float(), reduction="none").mean(1)
    return weighed(losses_B, weights_B).mean()


def folded(projector: nn.Linear, weight_KT: Tensor, bias_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """Projector and classifier as one layer: ``W_t (P f + q) + b_t = (W_t P) f + (W_t q + b_t)``; [K, S] and [K].

    Args:
        projector: P and q, from S to T features.
        weight_KT: W_t.
        bias_K: b_t; None: 0.

    Returns:
        Weight [K, S] and bias [K] of that layer.
    """
    bias = weight_KT @ projector.bias
    return weight_KT @ projector.weight, bias if bias_K is None else bias + bias_K


class SimKD(Objective):
    """Reuses the teacher's classifier (KTN): ``p = P(f_s)`` is trained to equal f_t, the logits are ``W_t p + b_t``.

    - ``projector: linear``: P is one linear layer on the pooled features, ``P f_s + q``. After every update P and the
      teacher's classifier are written as one layer into the student's linear head, see :func:`folded`. So the network
      that is evaluated and exported has the student's architecture. Gradients of other terms on logits reach the
      backbone through the head, but do not change the head.
    - ``projector: conv``: P is the paper's: three convs (1×1, 3×3, 1×1) with batch norm and ReLU on the student's last
      map, then the mean over positions, see :mod:`distill.models.reused_head`. Convs and classifier are part of the
      student, are exported with it, and enlarge it; the run's report says by how much. Its pooled features are p.

    With ``projector: linear`` and ``ce`` it is KTN (knowledge transfer network, Yoon et al., arXiv 2203.02018) on
    images of paired modalities or resolutions: A = P maps the student's features to the teacher's, ``weight`` is λ (1
    in the paper), and what ships is ``W_t A``. KTN's A has no bias and starts from Xavier's values; ours has q, so that
    features need not be centered, and starts as torch's linear layers do.

    Needs no labels. The student's head and the teacher's classifier must each be one linear layer, with the same
    classes in the same order. There can be only one teacher.

    Paper: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, arXiv 2203.14001: conv,
    factor 2, trained with this term alone.

    Deviations: ``linear`` is an addition, with a less expressive P. With ``conv``, p and f_t are compared after
    pooling, not per position, so that teachers whose features are not the mean of a map (a ViT's class token) and
    caches of pooled features can be used; there is no ReLU after the last norm, since features of networks without ReLU
    can be negative.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> layers = torch.nn.Linear(8, 2), torch.nn.Linear(16, 2)
        >>> student, teacher = (FeatureShapes(2, layer.in_features, classifier=layer) for layer in layers)
        >>> distill.create_objective("simkd", student=student, teacher=teacher).projector
        Linear(in_features=8, out_features=16, bias=True)
    """

    class Settings(Objective.Settings):
        type: Literal["simkd"] = "simkd"
        projector: Literal["linear", "conv"] = Field(
            "linear",
            description="linear: merged into the student's head; conv: the paper's, which enlarges the student",
        )
        factor: int = Field(2, ge=1, description="conv only: the teacher's width divided by that of the hidden convs")

        def head(self, teacher: FeatureShapes) -> ReusedHead | None:
            return ReusedHead(width=teacher.pooled, factor=self.factor) if self.projector == "conv" else None

    weighs_samples: ClassVar[bool] = True
    sets_head: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Chen et al., CVPR 2022, arXiv 2203.14001"

    settings: Settings
    weight: Tensor
    bias: Tensor | None

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)
        head, classifier = _linear("student", student), _linear("teacher", require_teacher(teacher))
        if parametrize.is_parametrized(head):
            raise ValueError("simkd replaces the student's head, but a delta changes that layer; exclude it from sites")
        # In a tuple, so that the student's head is not registered as a part of this module as well.
        self._head = (head,)
        self.projector: nn.Module
        if settings.projector == "conv":
            self.projector = nn.Identity()
            _copy(classifier, head)
            return
        self.projector = nn.Linear(student.pooled, require_teacher(teacher).pooled)
        own = classifier.weight.detach().float().clone()
        self.register_buffer("weight", own, persistent=False)
        bias = None if classifier.bias is None else classifier.bias.detach().float().clone()
        self.register_buffer("bias", bias, persistent=False)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BS, teacher_BT = matched_fields(student, teacher, "pooled")
        return simkd(self.projector(student_BS), teacher_BT, batch.weights)

    @torch.no_grad()
    def after_step(self) -> None:
        """With ``projector: linear``, write projector and classifier into the student's head."""
        if isinstance(self.projector, nn.Linear):
            (head,) = self._head
            weight, bias = folded(self.projector, self.weight, self.bias)
            head.weight.copy_(weight)
            head.bias.copy_(bias)


@torch.no_grad()
def _copy(classifier: nn.Linear, head: nn.Linear) -> None:
    """Copy the teacher's classifier into the student's."""
    if head.weight.requires_grad or head.weight.shape != classifier.weight.shape:
        raise ValueError(
            f"simkd: projector: conv needs a frozen head with {classifier.in_features} inputs, as the teacher's, "
            f"but the student's has {head.in_features}; call distill.models.reused_head.reuse_head"
        )
    head.weight.copy_(classifier.weight)
    head.bias.zero_()
    if classifier.bias is not None:
        head.bias.copy_(classifier.bias)


def _linear(side: str, shapes: FeatureShapes) -> nn.Linear:
    """The classifier, checked to be one linear layer on the pooled features, for the student with a bias."""
    if shapes.classifier is None:
        raise ValueError(
            f"simkd reuses the teacher's classifier as the student's, but the {side}'s is not one linear layer"
        )
    if side == "student" and shapes.classifier.bias is None:
        raise ValueError("simkd needs a bias in the student's classifier, to which it adds the projector's")
    return shapes.classifier
