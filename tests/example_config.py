"""A config as a file would hold it, and the same with overrides."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from distill.yaml_tree import apply_override, parse_yaml

TREE = """
name: toy
data: {source: {type: digits}, batch_size: 64, labels_per_class: 2}
augment:
  policy: shared_geometry
  student:
    - {type: RandomAffine, degrees: 10, p: 1.0}
    - {type: ColorJitter, brightness: 0.3, p: 0.8}
teacher:
  networks: [{model: "embedded:tf_efficientnet_lite1", size: 64}]
fit_teacher: {training: {epochs: 4}}
student:
  network: {model: "embedded:tf_efficientnet_lite0", size: 64}
  deltas: [{type: low_rank, rank: 4, sites: "*"}]
objectives: [{type: ce, weight: 0.5}, {type: kd, temperature: 4}, {type: icd}]
training: {epochs: 8, optimizer: {type: adamw, lr: 1e-3}}
"""


def example_tree() -> dict[str, Any]:
    return parse_yaml(TREE, "toy")


def changed(tree: dict[str, Any], *overrides: str) -> dict[str, Any]:
    tree = deepcopy(tree)
    for override in overrides:
        apply_override(tree, override)
    return tree
