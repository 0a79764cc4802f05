"""Several teachers: how much each counts, of which classes they are, and what size they look at."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_resume import interrupted
from torch import Tensor, nn
from toy_training import STEPS, assert_bit_equal, experiment, network, student_fit

from distill.config import ConfigError
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMap, LabelMaps
from distill.models.settings import WeightingSettings
from distill.objectives.base import Targets
from distill.objectives.ce import CrossEntropy
from distill.objectives.deit import DeiT
from distill.objectives.dkd import DKD
from distill.objectives.kd import KD, kd
from distill.objectives.pooled import PooledFeature
from distill.run.stage import StageError
from distill.training.meta import alignment, updated_preference
from distill.training.module import Distillation
from distill.training.teacher_weights import TeacherWeights, by_sample
from distill.training.terms import build_terms

SHAPES = FeatureShapes(classes=3, pooled=4)
PAIRS = ((0, 0), (1, 1))


def features(seed: int, classes: int = 3, batch: int = 5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    logits, pooled = (torch.randn(batch, width, generator=generator) for width in (classes, 4))
    return Features(logits, pooled)


TEACHERS = [[features(2), features(3)], [features(4), features(5)]]
STUDENTS = [features(0), features(1)]
LABELS = torch.tensor([0, 1, 2, -1, 0])


def weights(type: str, maps: LabelMaps | None = None, **more: Any) -> TeacherWeights:
    return TeacherWeights(WeightingSettings(type=type, **more), [0.75, 0.25], maps or LabelMaps())


# --- Weights by sample --------------------------------------------------------------------------------------------


def test_by_sample_by_hand() -> None:
    log_q = torch.tensor([[0.5, 0.2, 0.0], [0.25, 0.0, 0.0]]).log()
    teacher_weights = by_sample(log_q, torch.tensor([0.75, 0.25]), 0.5)  # in proportion to weight · q²
    expected = torch.tensor([[0.75 * 0.25, 1.0, 0.75], [0.25 * 0.0625, 0.0, 0.25]])
    torch.testing.assert_close(teacher_weights, expected / expected.sum(0))
    same = by_sample(torch.zeros(2, 4), torch.tensor([0.75, 0.25]), 2.0)
    torch.testing.assert_close(same, torch.tensor([[0.75], [0.25]]).expand(2, 4))


@pytest.mark.parametrize("type", ["confidence", "agreement"])
def test_shares_against_a_loop(type: str) -> None:
    teacher_weights = weights(type, temperature=0.5)(TEACHERS, Targets(LABELS))
    assert teacher_weights.shape == (2, 2, 5)
    for view in range(2):
        for row, label in enumerate(LABELS.tolist()):
            p = [views[view].logits[row].softmax(0) for views in TEACHERS]
            q = [float(probabilities.max() if type == "confidence" else probabilities[label]) for probabilities in p]
            if type == "agreement" and label < 0:
                q = [1.0, 1.0]
            parts = [prior * value**2 for prior, value in zip((0.75, 0.25), q)]
            assert teacher_weights[:, view, row].tolist() == pytest.approx(
                [part / sum(parts) for part in parts], rel=1e-4
            )


def test_agreement_of_a_mixed_image_is_with_both_labels() -> None:
    others = torch.tensor([1, 0, -1, 2, 0])
    teacher_weights = weights("agreement")(TEACHERS, Targets(LABELS, mixed_labels=others, mix_lambda=0.3))
    p = [views[0].logits.log_softmax(1) for views in TEACHERS]
    q = [math.exp(0.3 * log_p[0, 0] + 0.7 * log_p[0, 1]) for log_p in p]
    assert teacher_weights[0, 0, 0].item() == pytest.approx(0.75 * q[0] / (0.75 * q[0] + 0.25 * q[1]), rel=1e-4)
    assert teacher_weights[0, 0, 2].item() == teacher_weights[0, 0, 3].item() == pytest.approx(0.75), (
        "one of the two is unknown"
    )


def test_a_teacher_that_does_not_know_the_label_has_no_say() -> None:
    maps = LabelMaps([None, LabelMap({0: [1], 2: [0]}, 3, 2)])
    teachers = [[features(2)], [features(4, classes=2)]]
    teacher_weights = weights("agreement", maps)(teachers, Targets(LABELS))[:, 0]
    assert teacher_weights[:, 1].tolist() == [1, 0]
    q = teachers[0][0].logits[2].softmax(0)[2], teachers[1][0].logits[2].softmax(0)[0]
    assert teacher_weights[0, 2].item() == pytest.approx(float(0.75 * q[0] / (0.75 * q[0] + 0.25 * q[1])), rel=1e-5)


def test_terms_weigh_each_sample_of_each_teacher() -> None:
    [term] = build_terms((KD.Settings(temperature=2.0),), SHAPES, [SHAPES, SHAPES])
    teacher_weights = weights("confidence")(TEACHERS, Targets(LABELS))
    own = torch.rand(5)
    batches = [Targets(LABELS, weights=own)] * 2
    total = term.total(term(STUDENTS, TEACHERS, PAIRS, batches, teacher_weights), teacher_weights)
    by_hand = torch.zeros(())
    for n, views in enumerate(TEACHERS):
        for t, s in PAIRS:
            for row in range(5):
                rows = slice(row, row + 1)
                alone = kd(STUDENTS[s].logits[rows], views[t].logits[rows], 2.0)
                by_hand = by_hand + teacher_weights[n, t, row] * own[row] * alone / 5 / 2
    torch.testing.assert_close(total, by_hand)


# --- Classes ------------------------------------------------------------------------------------------------------

# Of the student's a, b, c the teacher knows c and a, and something else between them.
SOME = LabelMap({0: [2], 2: [0]}, 3, 3)


def term_of(settings: Any, maps: list[LabelMap | None]) -> Any:
    [term] = build_terms((settings,), SHAPES, [SHAPES] * len(maps), LabelMaps(maps))
    return term


def test_kd_compares_the_shared_classes_alone() -> None:
    term = term_of(KD.Settings(), [SOME])
    student = Features(STUDENTS[0].logits.clone().requires_grad_())
    [loss] = term([student], TEACHERS[:1], ((0, 0),), [Targets(LABELS)])
    torch.testing.assert_close(loss, kd(student.logits[:, [0, 2]], TEACHERS[0][0].logits[:, [2, 0]]))
    loss.backward()
    assert student.logits.grad is not None and student.logits.grad[:, 1].abs().sum() == 0
    [loss_of_equals] = term([Features(TEACHERS[0][0].logits[:, [2, 1, 0]])], TEACHERS[:1], ((0, 0),), [Targets(LABELS)])
    assert loss_of_equals.item() == pytest.approx(0, abs=1e-6)


def test_labels_become_places_among_the_shared_classes() -> None:
    dkd = DKD(DKD.Settings(), *SOME.shapes(SHAPES, SHAPES))
    narrow = [Features(STUDENTS[0].logits[:, [0, 2]]), Features(TEACHERS[0][0].logits[:, [2, 0]])]
    expected = dkd(*narrow, Targets(torch.tensor([0, -1, 1, -1, 0])))
    [actual] = term_of(DKD.Settings(), [SOME])(STUDENTS[:1], [TEACHERS[0][:1]], ((0, 0),), [Targets(LABELS)])
    torch.testing.assert_close(actual, expected)


def test_features_and_the_labels_own_term_see_every_class() -> None:
    wide = FeatureShapes(classes=7, pooled=4)
    terms = build_terms((CrossEntropy.Settings(), PooledFeature.Settings()), SHAPES, [wide], LabelMaps([SOME]))
    assert [term.maps[0] for term in terms] == [None, None]
    with pytest.raises(ValueError, match="the student has 3 classes, the teacher 7"):
        build_terms((KD.Settings(),), SHAPES, [wide])
    with pytest.raises(ValueError, match="deit teaches the student the labels too"):
        term_of(DeiT.Settings(), [SOME])
    term_of(DeiT.Settings(), [LabelMap({0: [2], 1: [1], 2: [0]}, 3, 3)])


# --- Learned weights ----------------------------------------------------------------------------------------------


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


def networks(output: Path, *seeds: int) -> list[dict[str, Any]]:
    return [network(output, "test_resnet", seed) for seed in seeds]


LEARNED = {"type": "learned", "every": 2, "images": 20, "batch_size": 8}


@pytest.mark.slow
def test_learned_weights_prefer_the_teacher_that_helps(tmp_path: Path) -> None:
    """One teacher is a student that has learned the labels, the other is as it was made."""
    labels_alone = {"teacher": None, "objectives": [{"type": "ce"}], "training": {"epochs": 6, "ema": None}}
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


# --- Whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_teachers_of_other_classes_and_sizes_teach_together(tmp_path: Path) -> None:
    """One as the student, one of a thousand classes that looks at fewer pixels, one that knows two of the four."""
    wide = {"model": "test_vit", "pretrained": False, "size": 48, "labels": {"a": 5, "b": [7, 8], "c": 0, "d": 999}}
    few = {"model": "test_efficientnet", "pretrained": False, "size": 64, "labels": {"a": 1, "d": 0}, "weight": 2}
    sizes: list[list[int]] = []

    def watch(module: Distillation) -> None:
        assert module.step.teacher is not None
        sizes.append([spec.size[0] for spec in module.step.teacher.inputs])

    for weighting in ("fixed", "agreement"):
        settings = experiment(
            tmp_path,
            teacher={"networks": [*networks(tmp_path, 0), wide, few], "weighting": {"type": weighting}},
            objectives=[{"type": "ce"}, {"type": "kd"}, {"type": "dkd"}, {"type": "icd", "dim": 4}],
        )
        watched = student_fit(settings, tmp_path / weighting, watch)
        assert watched.summary and {"val/accuracy", "val/agreement"} <= watched.summary.scores.keys()
    assert sizes[0] == [32, 48, 64]


def test_labels_that_cannot_be_followed_are_named(tmp_path: Path) -> None:
    for labels, message in [({"x": 0}, "the data has no class 'x'"), ("names", "random has no class names")]:
        network_settings = {"model": "test_resnet", "pretrained": False, "size": 32, "labels": labels}
        settings = experiment(tmp_path, teacher={"networks": [network_settings]})
        with pytest.raises(StageError, match=rf"teacher\.networks\.0\.labels: {message}"):
            student_fit(settings, tmp_path / "fit")
    network_settings = {"model": "test_resnet", "pretrained": False, "size": 32}
    gap = {"curriculum": {"epochs": 1}}
    settings = experiment(
        tmp_path, teacher={"networks": [network_settings]}, objectives=[{"type": "pooled"}], training=gap
    )
    with pytest.raises(StageError, match="curriculum by the gap: the student has 4 classes, the teacher 1000"):
        student_fit(settings, tmp_path / "fit")


REFUSED = [
    ({"teacher": {"weighting": {"type": "learned"}}}, "teacher.weighting: learned: there is only one network"),
    (
        {"teacher": {"two": {"type": "confidence"}}, "objectives": [{"type": "ce"}, {"type": "rkd"}, {"type": "kd"}]},
        "teacher.weighting: confidence weights each sample, and rkd is not a mean over samples",
    ),
    (
        {"objectives": [{"type": "kd"}, {"type": "pkt"}], "training": {"curriculum": {"epochs": 1}}},
        "training.curriculum: pkt: not a mean over samples",
    ),
    (
        {"teacher": None, "objectives": [{"type": "ce"}], "training": {"curriculum": {"epochs": 1}}},
        "training.curriculum: it needs a teacher",
    ),
    (
        {"fit_teacher": {"training": {"curriculum": {"epochs": 1}}}},
        "fit_teacher.training.curriculum: it needs a teacher",
    ),
    ({"teacher": {"two": {"type": "learned"}}, "student": {"compile": True}}, "student.compile: weighting: learned"),
    ({"teacher": {"labels": "names"}, "fit_teacher": {}}, "teacher.networks.0.labels: fit_teacher trains"),
    (
        {"teacher": {"labels": {"a": 1}}, "objectives": [{"type": "simkd"}]},
        "teacher.networks.0.labels: simkd gives the student",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_a_config_cannot_ask_for(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    changes = {**changes}
    teacher = changes.get("teacher") or {}
    if "two" in teacher:
        changes["teacher"] = {"networks": networks(tmp_path, 0, 1), "weighting": teacher["two"]}
    elif "labels" in teacher:
        changes["teacher"] = {"networks": [{**networks(tmp_path, 0)[0], "labels": teacher["labels"]}]}
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(tmp_path, **changes)
