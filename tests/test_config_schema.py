"""The JSON schema of configs for editors, and what a slip costs in a fresh process."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from example_config import changed, example_tree

from augment.base import Registry
from distill.config import dump_config, editor_schema, validate_tree
from distill.experiments.base import experiment_kinds
from distill.experiments.continual import ContinualExperiment
from distill.experiments.distillation import DistillationExperiment
from distill.yaml_tree import parse_yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree() -> dict[str, Any]:
    return example_tree()


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return editor_schema()


# --- Schema -------------------------------------------------------------------------------------------------------


def test_schema_knows_every_type_and_says_what_keys_mean(schema: dict[str, Any]) -> None:
    for kind in experiment_kinds().values():
        assert {"base", *kind.model_fields} == set(schema["$defs"][kind.__name__]["properties"])
    own = schema["$defs"][DistillationExperiment.__name__]["properties"]
    streams = schema["$defs"][ContinualExperiment.__name__]["properties"]
    places = {
        ("distill.objectives", "Objective"): own["objectives"]["items"],
        ("distill.continual.strategies", "Strategy"): streams["strategy"],
        ("distill.deltas", "Delta"): schema["$defs"]["StudentSettings"]["properties"]["deltas"]["items"],
        ("distill.data", "Source"): schema["$defs"]["DataSettings"]["properties"]["source"],
    }
    for family, place in places.items():
        known = Registry(*family).known()
        options = {option["title"]: option for option in place["anyOf"] if "title" in option}
        assert list(options) == list(known) and known
        for name, settings in known.items():
            assert options[name]["properties"]["type"]["const"] == name
            assert set(options[name]["properties"]) == set(settings.model_fields)
            assert options[name]["additionalProperties"] is False
            assert options[name]["description"]
    epochs = schema["$defs"]["OptimizerSettings"]["properties"]["lr"]
    assert epochs["description"] == "peak learning rate" and epochs["exclusiveMinimum"] == 0


@pytest.mark.slow
def test_schema_accepts_what_is_valid_and_nothing_misspelt(tree: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert not list(validator.iter_errors(parse_yaml(path.read_text(), path.name))), path
    assert not list(validator.iter_errors(parse_yaml(dump_config(validate_tree(tree, "q")), "q")))
    assert not list(validator.iter_errors(changed(tree, "objectives.1={type: my.own:Thing, x: 1}", "objectives.0=ce")))
    for slip in ["trainig=1", "training.epochs=0", "objectives.1.temprature=1", "objectives.1.type=dk", "data.fit=x"]:
        assert list(validator.iter_errors(changed(tree, slip))), slip


# --- A fresh process ----------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What ``train.py`` does, and its processor seconds: those of the clock are other people's too."""
    began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    return done, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began


@pytest.mark.parametrize(
    ("arguments", "error_at"),
    [
        (["configs/quickstart.yaml", "trainig.epochs=3"], "  trainig: unknown key; did you mean 'training'?"),
        (["configs/quickstart.yaml", "training.epochs=ten"], "  training.epochs: expected a whole number, found 'ten'"),
        (["configs/quickstart.yaml", "data.size=4"], "  data.size: must be at least 8, is 4"),
        (
            ["configs/quickstart.yaml", "seed=!!int 3"],
            "error: override seed, line 1: YAML tag '!!int' is not supported",
        ),
        (["configs/nothing.yaml"], "error: configs/nothing.yaml: no such file; there is configs/quickstart.yaml"),
    ],
)
def test_a_slip_is_told_at_once_and_without_a_traceback(arguments: list[str], error_at: str) -> None:
    done, seconds = command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    assert any(line.startswith(error_at) for line in done.stderr.splitlines()), done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert seconds < 5


def test_a_slip_in_the_name_of_a_class_is_told_in_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes an import of torch, and nothing else that is slow: see the next test."""
    status, out, err = call(capsys, "train", ROOT / "configs" / "quickstart.yaml", "objectives.1.type=kdd")
    assert status == 2 and not out and "Traceback" not in err and err.startswith("error: ")
    assert "  objectives.1.type: unknown objective type 'kdd'" in err and len(err.splitlines()) <= 2


@pytest.mark.slow
def test_plain_slips_do_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom distill.config import ConfigError, load_config\n"
        "try:\n    load_config(Path('configs/quickstart.yaml'), sys.argv[1:])\n"
        "except ConfigError:\n    print(*(name for name in ('torch', 'kornia', 'timm') if name in sys.modules))\n"
    )
    for override, imported in [("training.epochs=0", ""), ("objectives.1.temperature=0", "torch")]:
        done = subprocess.run([sys.executable, "-c", code, override], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == imported, done.stderr
