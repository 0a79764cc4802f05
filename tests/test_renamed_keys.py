"""A config or command that uses an old name is refused, and the error says the new one."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from distill.cli import app
from distill.config import validate_tree
from distill.yaml_tree import ConfigError, apply_override, parse_yaml

TREE = """
name: toy
data: {source: {type: digits}, batch_size: 64}
teacher:
  networks: [{model: "embedded:tf_efficientnet_lite1", size: 64}]
fit_teacher: {training: {epochs: 4}}
student:
  network: {model: "embedded:tf_efficientnet_lite0", size: 64}
  deltas: [{type: low_rank, rank: 4, sites: "*"}]
objectives: [{type: kd}]
training: {epochs: 8}
"""


@pytest.mark.parametrize(
    ("override", "path", "new"),
    [
        ("training.optimiser={type: sgd}", "training.optimiser", "optimizer"),
        ("fit_teacher.training.optimiser={type: sgd}", "fit_teacher.training.optimiser", "optimizer"),
        ("student.train=whole", "student.train", "full"),
        *[
            (f"objectives=[{{type: {name}, standardise: true}}]", "objectives.0.standardise", "standardize")
            for name in ("kd", "dkd", "nkd", "mlkd", "dist", "deit")
        ],
        ("objectives=[{type: adversarial, regulariser: r1}]", "objectives.0.regulariser", "regularizer"),
    ],
)
def test_an_old_key_or_value_is_an_error_that_names_the_new_one(override, path, new):
    tree = parse_yaml(TREE, "toy")
    validate_tree(tree, "toy.yaml")
    apply_override(tree, override)
    with pytest.raises(ConfigError) as error:
        validate_tree(tree, "toy.yaml")
    _, line = str(error.value).splitlines()
    assert line.startswith(f"  {path}: ") and line.endswith(f"; did you mean '{new}'?")


def test_an_old_argument_of_an_operation_is_an_error_that_names_the_new_one():
    tree = parse_yaml(TREE, "toy")
    apply_override(tree, "augment={student: [{type: PixelErasing, noise: colour}]}")
    with pytest.raises(ConfigError, match=r"augment\.student\.0\.noise: .*'pixel' or 'color', not 'colour'"):
        validate_tree(tree, "toy.yaml")


def test_an_old_command_is_an_error_that_names_the_new_one():
    result = CliRunner().invoke(app, ["delta", "quantise"])
    assert result.exit_code == 2 and "quantize" in result.output
