"""Configs of ``kind: target_domain`` and ``source_free`` that are refused before anything is read."""

from pathlib import Path
from typing import Any

import pytest
from toy_domains import domains, domains_tree

from distill.config import validate_tree
from distill.yaml_tree import ConfigError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data": {"batch_size": 9}}, r"data\.batch_size: 9: half of a batch"),
    ({"augment": {"mix": {"mixup": 0.5}}}, r"augment\.mix: .*self_training needs one class per image"),
    ({"training": {"keep": "best"}}, r"training\.keep: best needs labels of the target"),
    ({"training": {"early_stop": {"patience": 2}}}, r"training\.early_stop: needs labels"),
    ({"training": {"test_every": 1}}, r"training\.test_every: the target's test labels are read once"),
    ({"objectives": [{"type": "self_training"}]}, r"objectives: the source's labels are learned by ce"),
    ({"objectives": [{"type": "ce"}]}, r"teacher\.ema: no objective reads it; add one such as self_training"),
    ({"teacher": {"networks": [{"model": "momentum"}]}}, r"teacher\.ema: networks\.0 is an average"),
    ({"teacher": {"ema": {"normalizations": ["source", "source"]}}}, "each normalization once"),
    ({"student": {"deltas": [{"type": "bias"}]}}, r"teacher\.ema\.normalizations: .*add \{type: statistics\}"),
    ({"kind": "distillation"}, r"data\.target: kind: distillation has no target domain"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_configs_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        domains(tmp_path, **changes)


def test_other_kinds_have_no_statistics_and_compare_no_domains(tmp_path: Path) -> None:
    tree = domains_tree(tmp_path)
    tree["kind"], tree["data"] = "distillation", {**tree["data"], "target": None}
    averaged = {"ema": {"decay": 0.9}}
    with pytest.raises(ConfigError, match=r"two domains are compared \(dann\), and there is one; set data\.target"):
        validate_tree({**tree, "teacher": averaged, "student": {**tree["student"], "deltas": ["bias"]}}, "toy")
    tree["objectives"] = [{"type": "ce"}, {"type": "self_training"}]
    with pytest.raises(ConfigError, match=r"student\.deltas\.0: kind: distillation measures no statistics"):
        validate_tree(tree, "toy")
    tree["kind"] = "target_domain"
    with pytest.raises(ConfigError, match=r"data\.target: kind: target_domain trains on images of a target domain"):
        validate_tree(tree, "toy")


LABELS: list[tuple[dict[str, Any], str]] = [
    ({"objectives": [{"type": "ce"}]}, r"objectives\.0: ce learns from labels, and no label of these images is read"),
    (
        {"student": {"start": "elsewhere", "deltas": ["bias"]}},
        r"student\.start: the student starts from the delta file",
    ),
    ({"student": {"train": "full", "deltas": []}}, r"student\.train: full: the deltas of the file are trained further"),
    (
        {"fit_teacher": {}, "teacher": {"networks": [{"model": "resnet18"}]}, "objectives": [{"type": "kd"}]},
        "fit_teacher: a teacher is fitted on labels, and none are read",
    ),
    ({"training": {"keep": "best"}}, r"training\.keep: best needs labels of the target"),
]


@pytest.mark.parametrize(("changes", "text"), LABELS)
def test_source_free_reads_no_label(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    tree = {**domains_tree(tmp_path), "kind": "source_free", "start": str(tmp_path), "objectives": ["information_max"]}
    tree["data"] = {**tree["data"], "target": None}
    del tree["teacher"]
    student = {**tree["student"], **changes.get("student", {})}
    with pytest.raises(ConfigError, match=text):
        validate_tree({**tree, **changes, "student": student}, "toy")


def test_source_free_starts_from_a_delta_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start: .* holds no delta file"):
        validate_tree({"kind": "source_free", "name": "x", "start": str(tmp_path), "data": {}}, "toy")
