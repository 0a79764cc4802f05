"""Several teachers: their weights in every term, and what a config cannot ask for."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from several_teachers import LABELS, SHAPES, STUDENTS, TEACHERS, features, networks
from toy_training import experiment

from distill.config import ConfigError
from distill.models.label_map import LabelMap, LabelMaps
from distill.models.teacher_settings import WeightingSettings
from distill.objectives.base import Targets
from distill.objectives.kd import KD, kd
from distill.training.teacher_weights import TeacherWeights, by_sample
from distill.training.terms import build_terms

PAIRS = ((0, 0), (1, 1))


def weights(type: str, maps: LabelMaps | None = None, **more: Any) -> TeacherWeights:
    return TeacherWeights(WeightingSettings(type=type, **more), [0.75, 0.25], maps or LabelMaps(), [])


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
