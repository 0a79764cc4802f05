"""The momentum network and self-supervised fits: what it averages, exact resume, views, states that are carried on."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from toy_training import SIZES, STEPS, assert_bit_equal, experiment, network, raising, student_fit, tree, whole

import distill
from distill.config import validate_tree
from distill.deltas.state import whole_state
from distill.models.weights import NetworkError
from distill.objectives.simclr import SimCLR
from distill.run.context import RunContext
from distill.run.stage import StageError
from distill.training.checkpoints import VerifiedCheckpointIO, newest_good
from distill.training.fit import load_carried
from distill.training.module import Distillation
from distill.training.momentum import MomentumNetwork
from distill.training.signals import Interrupted, StopSignal
from distill.training.terms import build_terms

SMALL = {"hidden": 8, "dim": 4}
BYOL, MOCO, SIMCLR = {"type": "byol", **SMALL}, {"type": "moco", **SMALL, "queue": 12}, {"type": "simclr", **SMALL}
MOMENTUM = {"networks": [{"model": "momentum", "decay": [0.5, 0.9]}]}
TWO_VIEWS, ONE_VIEW = {"policy": "both_to_both"}, {"policy": "identical"}
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(4)


def student_of(train: str = "full", **model_args: float) -> distill.Student:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", **model_args)
    deltas = [] if train == "full" else ["bias", {"type": "low_rank", "rank": 2}]
    return distill.create_student(model, deltas, train=train, num_classes=4, size=32, needs=("logits", "pooled"))


def step_of(student: distill.Student, objectives: Any, policy: Any = "both_to_both", **more: Any) -> Any:
    views = distill.create_augment(policy, student=student, teacher=student.input, recipe="weak")
    return distill.create_step(student, None, objectives, views, steps_per_epoch=4, momentum=(0.5, 0.9), **more)


def test_the_average_is_that_of_the_weights_with_a_cosine_of_the_decay() -> None:
    student = student_of()
    step = step_of(student, [BYOL, MOCO])
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.1)
    expected = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    assert [round(step.momentum.decay_at(at, 4), 6) for at in (0, 2, 4)] == [0.5, 0.7, 0.9]
    for number in range(3):
        optimizer.zero_grad()
        output = step(IMAGES, IDS, epoch=0, step=number)
        output.loss.backward()
        optimizer.step()
        step.after_update(number)
        decay = step.momentum.decay_at(number, 4)
        for name, weight in student.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    averaged = dict(step.momentum.model.named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(averaged[name], weight)
        assert averaged[name].grad is None and not averaged[name].requires_grad
    target = step.terms[0].objectives[0]
    assert not torch.equal(target.target_projector.get_buffer("0_weight"), target.projector[0].weight)
    assert step.term_names == ["byol", "moco"] and output.terms.isfinite().all()


def test_batch_norms_use_the_batch_and_dropout_is_off() -> None:
    student = student_of(drop_rate=0.5, drop_path_rate=0.5)
    momentum = MomentumNetwork(student, (0.9, 1.0), frozenset({"pooled"})).train()
    views = (torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3 + 1)
    before = momentum.model.bn1.running_mean.clone()  # type: ignore[union-attr,operator]
    first, second = momentum(views), momentum(views)
    assert torch.equal(first[0].pooled, second[0].pooled), "no dropout, and running statistics are not read"
    assert not torch.equal(momentum.model.bn1.running_mean, before)  # type: ignore[union-attr,arg-type]
    assert torch.equal(student.model.bn1.running_mean, before)  # type: ignore[union-attr,arg-type]
    evaluated = momentum.eval()(views)
    assert not torch.allclose(evaluated[0].pooled, first[0].pooled)  # type: ignore[arg-type]


def test_a_frozen_backbone_is_shared_and_its_batch_norms_stay_in_eval_mode() -> None:
    student = student_of("deltas")
    momentum = MomentumNetwork(student, (0.5, 0.5), frozenset({"pooled"})).train()
    pairs = list(zip(momentum.model.parameters(), student.model.parameters(), strict=True))
    assert all((own is other) == (not other.requires_grad) for own, other in pairs)
    assert momentum.own_state().keys() == student.own_state().keys()
    view = torch.randn(4, 3, 32, 32)
    student.train()
    torch.testing.assert_close(momentum((view,))[0].pooled, student(view).pooled)
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                parameter += 1
    momentum.follow(0.75)
    assert all(torch.allclose(other - own, torch.tensor(0.75)) for own, other in pairs if other.requires_grad)


def test_the_pairs_are_of_two_views_and_the_network_gets_the_other_one() -> None:
    student = student_of()
    step = step_of(student, BYOL).eval()
    views = step.augment(IMAGES, IDS, 0)
    with torch.no_grad():
        output = step(IMAGES, IDS, epoch=0, step=0)
        objective = step.terms[0].objectives[0]
        seen, momentum = [student(view) for view in views.student], step.momentum(views.teacher[0])
        expected = [objective(seen[s], momentum[t], distill.Targets(IDS)) for t, s in ((0, 1), (1, 0))]
    torch.testing.assert_close(output.terms[0], sum(expected) / 2)
    with torch.no_grad():
        single = step_of(student, BYOL, "independent").eval()(IMAGES, IDS, epoch=0, step=0)
    assert single.terms.isfinite().all()


def test_a_step_without_what_its_terms_read_is_refused() -> None:
    student = student_of()
    one_sided = distill.create_augment("both_to_both", student=student, recipe="weak")
    with pytest.raises(ValueError, match="byol reads the momentum network, and there is none"):
        distill.create_step(student, None, BYOL, one_sided, steps_per_epoch=2)
    with pytest.raises(ValueError, match="augment must make views for teachers of inputs"):
        distill.create_step(student, None, BYOL, one_sided, steps_per_epoch=2, momentum=(0.9, 1.0))
    with pytest.raises(ValueError, match="no term reads the momentum network"):
        step_of(student, SIMCLR)
    with pytest.raises(ValueError, match="byol compares two different views, and policy 'identical' has none"):
        step_of(student, BYOL, "identical")
    identical = distill.create_augment("identical", student=student, recipe="weak")
    with pytest.raises(ValueError, match="simclr compares two views of the student, and policy 'identical' has one"):
        distill.create_step(student, None, SIMCLR, identical, steps_per_epoch=2)


def test_without_a_teacher_both_to_both_gives_the_student_two_views() -> None:
    student = student_of()
    settings = distill.create_augment("both_to_both", student=student, recipe="strong", teacher_recipe="weak").settings
    assert settings.alone().policy == "both_to_both" and settings.one_view().policy == "identical"
    augment = distill.create_augment("both_to_both", student=student, recipe="weak")
    step = distill.create_step(student, None, [SIMCLR, "ce"], augment, steps_per_epoch=2).eval()
    with torch.no_grad():
        terms = step(IMAGES, IDS, IDS, epoch=0, step=0).terms
        seen = [student(view) for view in augment(IMAGES, IDS, 0).student]
        expected = step.terms[0].objectives[0](seen, None, distill.Targets(IDS))  # type: ignore[operator]
    assert len(seen) == 2
    torch.testing.assert_close(terms[0], expected)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"objectives": [SIMCLR], "teacher": None, "augment": ONE_VIEW}, r"augment\.policy: objectives\.0: simclr"),
        ({"objectives": ["ce", BYOL], "augment": ONE_VIEW}, r"augment\.policy: objectives\.1: byol"),
        ({"objectives": [BYOL], "teacher": None}, r"objectives: the momentum network is read \(byol\); add {mo"),
        ({"objectives": ["ce"]}, "teacher.networks: no objective reads the momentum network"),
        ({"objectives": [BYOL, "kd"]}, "objectives: kd need a teacher, and there is none"),
        ({"teacher": {"networks": [{"model": "momentum", "size": 32}]}}, r"networks\.0\.size: .* copy of the student"),
        ({"teacher": {"networks": [{"model": "resnet18", "decay": [0.9, 1]}]}}, r"0\.decay: only model: momentum"),
        ({"teacher": {"networks": [{"model": "momentum", "decay": [1, 0.9]}]}}, r"networks\.0\.decay: must not fall"),
        ({"teacher": {"networks": [{"model": "momentum"}] * 2}}, r"networks\.1: networks\.0 is the momentum network"),
        ({"teacher": {**MOMENTUM, "cache": {}}}, r"teacher\.cache: the outputs of the momentum network change"),
        ({"fit_teacher": {}}, "fit_teacher: there is no teacher to fit"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused_by_key(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    plain = tree(tmp_path, teacher=MOMENTUM, augment=TWO_VIEWS, objectives=[BYOL])
    with pytest.raises((ValidationError, ValueError), match=text):
        validate_tree({**plain, **changes}, "toy")


def self_supervised(output: Path, **changes: Any) -> Any:
    settings = {"student": whole(output), "augment": TWO_VIEWS, "teacher": MOMENTUM, "objectives": [BYOL, MOCO]}
    return experiment(output, **{**settings, **changes})


def final_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Filled with all tensors that training changes, each time that a fit saves a checkpoint."""
    state: dict[str, torch.Tensor] = {}
    save = Distillation.on_save_checkpoint

    def noted(module: Distillation, checkpoint: dict[str, Any]) -> None:
        save(module, checkpoint)
        state.update({key: value.detach().clone() for key, value in module.trained_state().items()})

    monkeypatch.setattr(Distillation, "on_save_checkpoint", noted)
    return state


@pytest.mark.slow
def test_resumed_is_bit_equal_with_momentum_queue_and_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = self_supervised(tmp_path)
    state = final_state(monkeypatch)
    straight = student_fit(settings, tmp_path / "fit")
    expected = dict(state)
    state.clear()
    for step in (1, STEPS + 2):
        with pytest.raises(Interrupted):
            student_fit(settings, tmp_path / "stopped", raising(signal.SIGTERM, step))
    resumed = student_fit(settings, tmp_path / "stopped")
    assert len(resumed.seen) == STEPS - 3 and straight.summary
    assert_bit_equal(resumed.weights, straight.weights)
    assert_bit_equal(state, expected)
    kept = [key for key in expected if key.startswith("step.momentum.")]
    assert len(kept) == len(straight.weights) and any("running_mean" in key for key in kept)
    assert any("queue" in key for key in expected) and any("target_projector" in key for key in expected)
    different = [key for key in kept if not torch.equal(expected[key], expected[key.replace("momentum", "student")])]
    assert different, "the average is not the student"


@pytest.mark.slow
def test_it_is_beside_a_frozen_teacher_and_not_in_its_cache(tmp_path: Path) -> None:
    networks = [{"model": "momentum"}, network(tmp_path, "test_resnet")]
    settings = self_supervised(
        tmp_path, teacher={"networks": networks, "cache": {}}, objectives=[BYOL, "kd"], training={"epochs": 1}
    )
    assert [net.model for net in settings.teacher.frozen] == [networks[1]["model"]]
    modules: list[Distillation] = []
    watched = student_fit(settings, tmp_path / "fit", modules.append)
    cache = modules[0].step.cache
    assert cache is not None and len(modules[0].step.teacher.networks) == 1  # type: ignore[union-attr]
    key = next((tmp_path / "teachers").rglob("*.json")).read_text() if (tmp_path / "teachers").exists() else ""
    assert "momentum" not in key
    again = student_fit(settings, tmp_path / "again")
    assert_bit_equal(again.weights, watched.weights)
    checkpoint = newest_good(tmp_path / "fit")
    assert checkpoint is not None
    frozen = VerifiedCheckpointIO().load_checkpoint(checkpoint)["frozen"]
    assert set(frozen) == {"teacher"}


def test_images_without_labels_suffice_for_objectives_that_need_none(tmp_path: Path) -> None:
    unlabeled = {"source": {"type": "toy_training:Blobs", "labeled": False}, "batch_size": 8, "size": 32, "workers": 0}
    settings = self_supervised(tmp_path, data=unlabeled, teacher=None, objectives=[SIMCLR], training={"epochs": 1})
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        stage = next(stage for stage in settings.plan() if stage.name == "student")
        assert stage.check(context).what == f"{SIZES['train']} images"
        labels = self_supervised(tmp_path, data=unlabeled, teacher=None, objectives=["ce"], augment=ONE_VIEW)
        stage = next(stage for stage in labels.plan() if stage.name == "student")
        with pytest.raises(StageError, match="no training image has a label"):
            stage.check(context)


def test_a_later_fit_starts_with_the_state_of_the_one_before(tmp_path: Path) -> None:
    objectives = [SIMCLR, {"type": "barlow_twins", **SMALL, "carry": "task"}]
    settings = self_supervised(tmp_path, teacher=None, objectives=objectives, training={"epochs": 1})
    modules: list[Distillation] = []
    student_fit(settings, tmp_path / "first", modules.append)
    carried = load_carried(tmp_path / "first")
    assert set(carried) == {"simclr"}
    assert_bit_equal(dict(carried["simclr"]), dict(modules[0].step.terms[0].state_dict()))

    with StopSignal() as stop:
        stage = next(stage for stage in settings.plan() if stage.name == "student")
        fit_spec = stage._fit_spec(RunContext.of(settings, stop), [])  # type: ignore[attr-defined]
        terms = replace(fit_spec, carried=carried)._terms(modules[0].step.student, "second")
    assert_bit_equal(dict(terms[0].state_dict()), dict(carried["simclr"]))
    fresh = fit_spec._terms(modules[0].step.student, "third")
    assert not torch.equal(next(fresh[0].parameters()), next(terms[0].parameters()))
    assert torch.equal(next(fresh[1].parameters()), next(terms[1].parameters()))

    other = SimCLR.Settings(hidden=9, dim=4)
    with pytest.raises(NetworkError, match=r"simclr carries over .*\n *objectives\.0\.projector\.0\.weight is"):
        build_terms([other], modules[0].step.student.shapes, [], None, carried)


def test_after_a_whole_network_it_averages_all_weights() -> None:
    """The frozen weights are no longer the student's: they start where the earlier fit ended, and move to its."""
    student = student_of("deltas")
    moved = whole_state(student_of("deltas").model)
    moved = {f"model.{name}": value + value.is_floating_point() * 0.1 for name, value in moved.items()}
    step = step_of(student, [BYOL])
    step.momentum.carry_on(moved)
    model, head = step.momentum.model, "classifier"
    start = {name: value.clone() for name, value in whole_state(model).items() if head not in name}
    assert all(torch.equal(value, moved[f"model.{name}"]) for name, value in start.items())
    assert torch.equal(model.get_classifier().weight, student.model.get_classifier().weight)
    of_student = {name: value.clone() for name, value in whole_state(student.model).items()}
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 1
    step.momentum.follow(0.25)
    for name, value in whole_state(model).items():
        if head not in name and value.is_floating_point() and "bias" not in name:
            torch.testing.assert_close(value, 0.25 * start[name] + 0.75 * of_student[name], msg=name)
    frozen = {name: value for name, value in whole_state(student.model).items() if "conv" in name}
    assert frozen and all(torch.equal(value, of_student[name]) for name, value in frozen.items())
    assert step.momentum.own_state().keys() == step.momentum.state_dict().keys(), "all of it is in a checkpoint"


def test_a_state_that_does_not_fit_is_refused() -> None:
    momentum = step_of(student_of(), [BYOL]).momentum
    state = {key: value.clone() for key, value in momentum.own_state().items()}
    with pytest.raises(NetworkError, match=r"the momentum network of the fit before does not fit .*\n  missing model"):
        momentum.carry_on(dict([*state.items()][1:]))
    momentum.carry_on({key: value + 1 for key, value in state.items()})
    own = momentum.own_state()
    same = [key for key, value in state.items() if not torch.equal(own[key], value + 1)]
    assert all("classifier" in key for key in same)
