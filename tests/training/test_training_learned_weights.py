"""Weights of teachers that meta steps learn."""

import math
import re
from pathlib import Path

import pytest
import torch
from several_teachers import networks
from test_training_resume import interrupted
from torch import Tensor, nn
from toy_training import STEPS, assert_bit_equal, experiment, student_fit

from distill.export.targets.timm_folder import write_timm_folder
from distill.objectives.kd import kd
from distill.training.meta import alignment, updated_preference
from distill.training.module import Distillation


def test_alignment_and_step_by_hand() -> None:
    v, g = torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 2.0], [-6.0, -8.0], [0.0, 0.0]])
    torch.testing.assert_close(alignment(v, g), torch.tensor([8 / 50, -1.0, 0.0]))
    assert not alignment(v, torch.zeros(2, 2)).any() and not alignment(0 * v, g).any()
    a, c = torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, -1.0])
    torch.testing.assert_close(updated_preference(a, c, 2.0), a + 2 * torch.tensor([0.25 * 1.5, 0.75 * -0.5]))


def test_the_step_goes_down_the_held_out_loss() -> None:
    """Against finite differences of the loss after a small update by the weighted gradients."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    x, held_x, y = torch.randn(6, 4).double(), torch.randn(9, 4).double(), torch.arange(9) % 3
    targets = torch.randn(3, 6, 3).double()
    preference, rate = torch.tensor([0.3, -0.2, 0.6]).double(), 1e-3

    def losses() -> Tensor:
        return torch.stack([kd(layer(x), target).double() for target in targets])

    def held_out_after(a: Tensor) -> float:
        gradients = torch.autograd.grad((a.softmax(0) * losses()).sum(), list(layer.parameters()))
        weight, bias = (p - rate * g for p, g in zip(layer.parameters(), gradients))
        return nn.functional.cross_entropy(nn.functional.linear(held_x, weight, bias), y).item()

    def flat(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    v = flat(nn.functional.cross_entropy(layer(held_x), y))
    step = (
        updated_preference(preference, alignment(v, torch.stack([flat(loss) for loss in losses()])), 1.0) - preference
    )
    slope = torch.tensor(
        [(held_out_after(preference + e) - held_out_after(preference - e)) / 2e-2 for e in 1e-2 * torch.eye(3).double()]
    )
    assert nn.functional.cosine_similarity(step, -slope.double(), dim=0) > 0.99


LEARNED = {"type": "learned", "every": 2, "images": 20, "batch_size": 8}


@pytest.mark.slow
def test_learned_weights_prefer_the_teacher_that_helps(tmp_path: Path) -> None:
    """One teacher is a student that has learned the labels, the other is as it was made.

    It learned them for a few steps: an overconfident teacher does not help.
    """
    labels_alone = {"teacher": None, "objectives": [{"type": "ce"}], "training": {"epochs": 3, "ema": None}}
    good = student_fit(experiment(tmp_path, **labels_alone), tmp_path / "good").student
    assert good is not None
    write_timm_folder(tmp_path / "taught", good.model, origin="random")
    both_networks = [*networks(tmp_path, 1), {"model": f"local-dir:{tmp_path / 'taught'}", "size": 32}]
    seen: list[float] = []

    def watch(module: Distillation) -> None:
        assert module.step.teacher_weights is not None
        seen.append(module.step.teacher_weights.preference.softmax(0)[1].item())

    weighting = {**LEARNED, "lr": 20.0}
    settings = experiment(
        tmp_path,
        teacher={"networks": both_networks, "weighting": weighting},
        objectives=[{"type": "kd", "temperature": 1}],
        training={"epochs": 3},
    )
    student_fit(settings, tmp_path / "fit", watch)
    assert seen[0] != 0.5 and seen[0] == seen[1] != seen[2], "a step of its own every second step"
    assert seen[-1] > 0.6, seen
    log = (tmp_path / "fit" / "log.csv").read_text()
    assert re.search(r"teacher_weight/1,0\.\d+", log)


@pytest.mark.slow
def test_a_resumed_fit_with_learned_weights_and_a_curriculum_is_bit_equal(tmp_path: Path) -> None:
    settings = experiment(
        tmp_path,
        teacher={"networks": networks(tmp_path, 0, 1), "weighting": LEARNED},
        training={"curriculum": {"epochs": 1.5}},
        augment={"ramp": {"epochs": 2, "start": 0.3}},
    )
    straight = student_fit(settings, tmp_path / "straight")
    interrupted(settings, tmp_path / "stopped", STEPS - 2)
    second = student_fit(settings, tmp_path / "stopped")
    assert_bit_equal(second.weights, straight.weights)
