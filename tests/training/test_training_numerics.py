"""NaN, spikes, and an eval mode that a stray ``.train()`` would undo."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_training import STEPS, Watched, assert_bit_equal, experiment, straight_fit, student_fit

from distill.training.checkpoints import checkpoint_path, newest_good
from distill.training.guard import LossGuard, NonFiniteLossError
from distill.training.module import Distillation
from distill.training.optimizer import build_optimizer
from distill.training.settings import OptimizerSettings, SpikeSettings


def poisoned(tmp_path: Path, step: int, training: dict[str, Any] | None = None, **poison: str):
    terms = [{"type": "ce"}, {"type": "kd"}, {"type": "toy_training:Poison", "step": step, **poison}]
    return experiment(tmp_path, objectives=terms, training=training or {})


class Snapshots:
    """Copies of the student's weights as they were in every step, before its update."""

    def __init__(self) -> None:
        self.of: list[dict[str, Tensor]] = []

    def __call__(self, module: Distillation) -> None:
        self.of.append({name: tensor.clone() for name, tensor in module.step.student.own_state().items()})


@pytest.mark.parametrize(
    ("bad", "what", "optimizer"),  # every pair of two of them; all three together in the next test
    [
        ("nan", "value", "adamw"),
        ("nan", "gradient", "sgd"),
        ("inf", "value", "sgd"),
        ("inf", "gradient", "adamw"),
        ("-inf", "value", "adamw"),
        ("-inf", "gradient", "sgd"),
    ],
)
def test_a_non_finite_loss_stops_before_the_update(bad: str, what: str, optimizer: str, tmp_path: Path) -> None:
    step, named = STEPS + 2, {"value": "poison", "gradient": "gradient"}[what]
    settings = poisoned(tmp_path, step, {"optimizer": {"type": optimizer}}, **{what: bad})
    before, watched, folder = Snapshots(), Watched(), tmp_path / "fit"
    with pytest.raises(NonFiniteLossError, match=rf"^step {step + 1}: {named} became NaN"):
        student_fit(settings, folder, before, watched)
    assert len(before.of) == step + 1, "no step after it"
    assert_bit_equal(watched.weights, before.of[step])
    assert newest_good(folder) == checkpoint_path(folder, STEPS), "the last good state is that of the epoch before"
    assert not (folder / "fit.json").exists()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("what", ["value", "gradient"])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_the_latch_holds_until_it_is_read(bad: str, what: str, kind: str) -> None:
    """On a GPU, further steps are made before the host looks: none of them may touch the weights."""
    torch.manual_seed(0)
    layer, guard = nn.Linear(3, 2), LossGuard(["ce"], SpikeSettings())
    optimizer = build_optimizer(layer, [], OptimizerSettings(type=kind))  # type: ignore[arg-type]
    good = []
    for step in range(6):
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 3)).square().sum()
        loss.backward()
        if step == 3 and what == "value":
            loss = torch.tensor(float(bad))
        elif step == 3:
            layer.weight.grad[0, 0] = float(bad)  # type: ignore[index]
        norm = nn.utils.get_total_norm([p.grad for p in layer.parameters()])
        optimizer.found_inf = guard.watch(step, loss.detach(), loss.detach().reshape(1), norm)  # type: ignore
        optimizer.step()
        good.append([p.detach().clone() for p in layer.parameters()])
    assert not torch.equal(good[1][0], good[2][0])
    for weight, as_it_was in zip(layer.parameters(), good[2]):
        assert torch.equal(weight, as_it_was)
    named = {"value": "ce", "gradient": "gradient"}[what]
    with pytest.raises(NonFiniteLossError, match=rf"^step 4: {named} became NaN"):
        guard.check()


def test_running_mean_and_spikes_by_hand() -> None:
    guard = LossGuard(["ce"], SpikeSettings(factor=2.0, action="skip"))
    flags = []
    losses = [1.0] * 21 + [1.9, 2.5, 1.0]
    for step, loss in enumerate(losses):
        flags.append(guard.watch(step, torch.tensor(loss), torch.tensor([loss]), torch.tensor(1.0)).item())
    assert flags == [0] * 22 + [1, 0] and int(guard.spikes) == 1
    # 0.98 · 1 + 0.02 · 1.9, the spike left out, then 0.98 · 1.018 + 0.02 · 1
    assert guard.mean.item() == pytest.approx(1.01764)
    early = LossGuard(["ce"], SpikeSettings(factor=2.0, action="skip"))
    for step, loss in enumerate([1.0, 50.0]):
        assert not early.watch(step, torch.tensor(loss), torch.tensor([loss]), torch.tensor(1.0))
    assert int(early.spikes) == 0, "the first steps of a training have no mean yet"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["warn", "skip"])
def test_spikes_are_counted_and_skipped_on_demand(action: str, tmp_path: Path, caplog) -> None:
    step, before = 4 * STEPS + 2, Snapshots()
    training = {"epochs": 5, "validate_every": 5, "spike": {"action": action}, "log_every": 1}
    settings = poisoned(tmp_path, step, training, value="1e4", gradient="1")
    with caplog.at_level(logging.WARNING):
        watched = student_fit(settings, tmp_path / "fit", before)
    assert watched.summary and watched.summary.spikes == 1
    changed = [not torch.equal(before.of[step][name], after) for name, after in before.of[step + 1].items()]
    assert any(changed) == (action == "warn")
    assert f"1 loss spike(s) by step {step + 1}; their updates were " in caplog.text
    rows = (tmp_path / "fit" / "log.csv").read_text().splitlines()
    assert f"{step},4,spikes,0" in rows and f"{step + 1},4,spikes,1" in rows


@pytest.mark.slow
def test_train_on_everything_keeps_the_frozen_parts_in_eval_mode(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    straight = straight_fit(settings)
    frozen: dict[str, Tensor] = {}

    def tamper(module: Distillation) -> None:
        assert module.step.teacher is not None
        if not frozen:
            frozen.update({name: t.clone() for name, t in buffers(module).items()})
        module.train()
        module.step.teacher.train()
        module.step.teacher.networks[0].layer1.train()  # type: ignore[operator,union-attr]
        module.step.student.model.blocks.train()  # type: ignore[operator,union-attr]
        for part in module.modules():
            part.training = True
        tamper.module = module  # type: ignore[attr-defined]

    def buffers(module: Distillation) -> dict[str, Tensor]:
        parts = (module.step.student.model, module.step.teacher)
        return {
            f"{i} {name}": t for i, part in enumerate(parts) for name, t in part.named_buffers() if "running" in name
        }

    tampered = student_fit(settings, tmp_path / "tampered", tamper)
    assert frozen
    assert_bit_equal(buffers(tamper.module), frozen)  # type: ignore[attr-defined]
    assert_bit_equal(tampered.weights, straight.weights)
