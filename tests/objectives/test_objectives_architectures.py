"""Objectives on maps compare the stages of networks whose maps are of every kind: CNN, tokens of a ViT, Swin's NHWC."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

import distill
from augment.base import Registry, UserError
from distill.models.student import Student
from distill.models.teacher import Teacher

REGISTRY = Registry("distill.objectives", "Objective")
OBJECTIVES = [
    name
    for name in sorted(REGISTRY.known())
    if "maps" in REGISTRY.settings_of(name).component.needs  # type: ignore[union-attr]
]
SWIN = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("test_resnet", {}),
    "mobile cnn": ("test_efficientnet", {}),
    "vit": ("test_vit", {"img_size": 64}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "convnext": ("test_convnext", {}),
}
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(kind: str) -> nn.Module:
    torch.manual_seed(len(kind))
    name, arguments = NETWORKS[kind]
    return timm.create_model(name, num_classes=4, **arguments)


@cache
def student_of(kind: str) -> Student:
    return distill.create_student(made(kind), size=64, train="full", needs=("logits", "pooled", "maps"))


@cache
def teacher_of(kind: str) -> Teacher:
    return distill.create_teacher(made(kind), size=64, needs=("logits", "pooled", "maps"))


@cache
def seen_by(kind: str) -> distill.Features:
    """The teacher's outputs."""
    return teacher_of(kind)(((IMAGES,),))[0][0]


@pytest.mark.parametrize("of_student", NETWORKS)
def test_maps_are_images_of_features(of_student: str) -> None:
    """[B, C, H, W] as the shapes say, and finer ones first."""
    student = student_of(of_student)
    maps = student.eval()(IMAGES).maps
    assert {name: tuple(map_.shape[1:]) for name, map_ in maps.items()} == student.shapes.maps
    sizes = [map_.shape[2] for map_ in maps.values()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 1
    assert all(map_.shape[2] == map_.shape[3] for map_ in maps.values()), "square images: a mixed-up axis shows"


@pytest.mark.parametrize("of_student", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_pair_of_architectures(objective: str, of_student: str) -> None:
    """One step with every teacher: the loss is finite, and its gradient reaches the student's first layer.

    ``podnet`` compares a network with itself as it was before, so its teacher has the student's architecture.
    """
    student = student_of(of_student).train()
    batch = distill.Targets(labels=torch.tensor([0, 1, 2]), index=torch.tensor([0, 1, 2]))
    total = torch.zeros(())
    outputs = student(IMAGES)
    for of_teacher in [of_student] if objective == "podnet" else NETWORKS:
        torch.manual_seed(0)
        term = distill.create_objective(objective, student=student, teacher=teacher_of(of_teacher))
        loss = term(outputs, seen_by(of_teacher), batch)
        assert loss.ndim == 0 and loss.isfinite(), of_teacher
        total = total + loss
    student.zero_grad()
    total.backward()
    first = next(student.model.parameters()).grad
    assert first is not None and first.isfinite().all() and first.any()


def test_a_network_without_maps_is_told() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    model.forward_intermediates = None
    with pytest.raises(UserError, match=r"resnet cannot give .*maps.* at 64 x 64 pixels"):
        distill.create_teacher(model, size=64, needs="maps")
