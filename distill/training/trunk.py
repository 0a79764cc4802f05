"""Finds the layers that a fit's networks share: teachers with each other, and with a student that gets the same view.

See :mod:`distill.models.shared_trunk`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augment.dual import DualAugment
from augment.views import InputSpec
from distill.deltas.blocks import eval_mode
from distill.models.shared_trunk import SharedTrunk
from distill.models.student import Student
from distill.models.teacher import Teacher


def share_trunk(
    student: Student, teacher: Teacher | None, dual: DualAugment, precision: str
) -> tuple[SharedTrunk, str]:
    """Finds the layers that networks share, by running all networks on noise.

    A compiled student, or one with another precision than the teacher, shares nothing with the teacher.

    Args:
        student: on its device.
        teacher: on the same device; None: nothing is shared.
        dual: its policy decides whether student and teacher get the same view.
        precision: of the student's training, "float32" or "bfloat16".

    Returns:
        The shared trunk, and a line about it for the console: which layers are computed once, or why none are although
        the student has the teacher's weights; else empty.
    """
    if teacher is None:
        return SharedTrunk(), ""
    one_view = bool(
        {view_spec.key for view_spec in dual.view_plan.teacher}
        & {view_spec.key for view_spec in dual.view_plan.student}
    )
    obstacle = _obstacle(student, teacher, precision)
    together = one_view and not obstacle
    networks = [] if teacher.compiled else [*teacher.networks]
    trunk = SharedTrunk([*networks, student.model] if together else networks)
    device = next(student.parameters()).device
    views = {spec: _noise(spec).to(device) for spec in (*teacher.inputs, student.input)}

    def run_networks() -> None:
        teacher(tuple((views[spec],) for spec in teacher.inputs))
        if together:
            with eval_mode(student):
                student(views[student.input])

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trunk.try_out(run_networks)
    lines = []
    for n, network in enumerate([*networks, student.model] if together else networks):
        shared = {layer for module in trunk.taken(n) for layer in _layers(module)}
        if shared:
            name = "the student" if network is student.model else f"teacher.networks.{n}"
            lines.append(f"{len(shared)} of {len(_layers(network))} convs and linear layers of {name}")
    if lines:
        return trunk, f"shared trunk: {', and '.join(lines)} are also in another network, and computed once"
    first = next(iter(student.model.parameters()))
    if one_view and obstacle and any(_equal(first, next(n.parameters())) for n in teacher.networks):
        return trunk, f"no shared trunk: {obstacle}"
    return trunk, ""


def _obstacle(student: Student, teacher: Teacher, precision: str) -> str:
    if student.compiled or teacher.compiled:
        return "compiled networks (student.compile, teacher.compile) cannot share layers"
    if precision != "float32" or teacher.dtype != torch.float32:
        return (
            f"the student computes in {precision}, the teacher in {str(teacher.dtype).removeprefix('torch.')}; "
            "they share layers only if both compute in float32"
        )
    return ""


def _noise(spec: InputSpec) -> Tensor:
    return torch.randn(1, len(spec.mean), *spec.size, generator=torch.Generator().manual_seed(0))


def _layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.to(second.dtype), second)
