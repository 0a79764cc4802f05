"""The example in the docstring of every head, rule of inference, memory and regularizer prints what it says."""

import doctest
import importlib
import io

import pytest

from augment.base import PluginError, Registry
from distill.continual.heads import sums
from distill.continual.strategies.direction import Direction
from distill.models.closed_form_head import MahalanobisClassifier, RandomFeatureClassifier

KINDS = {
    "heads": ("Head", {"fecam", "ncm", "random_ridge", "ridge", "slda"}),
    "inference": ("TaskInference", {"entropy", "mahalanobis", "max_logit", "ncm"}),
    "memory": ("Memory", {"herding", "keyed"}),
    "regularizers": ("Regularizer", {"ewc", "l2", "si"}),
    "streams": ("Stream", {"classes", "domains", "images", "manifest", "online", "superclasses"}),
}


@pytest.mark.parametrize("package", KINDS)
def test_every_component_has_an_example_that_runs(package):
    base, names = KINDS[package]
    known = Registry(f"distill.continual.{package}", base).known()
    assert set(known) == names
    for name, settings in known.items():
        check(settings.component.__doc__, name)


@pytest.mark.parametrize(
    "package, name, suggested",
    [
        ("heads", "RanPAC", "random_ridge"),
        ("heads", "slad", "slda"),
        ("inference", "MSP", "max_logit"),
        ("memory", "reservoir", "keyed"),
        ("regularizers", "synaptic_intelligence", "si"),
        ("streams", "si-blurry", "online"),
    ],
)
def test_an_unknown_type_names_ours(package, name, suggested):
    registry = Registry(f"distill.continual.{package}", KINDS[package][0])
    with pytest.raises(PluginError, match=rf"unknown {registry.noun} type '{name}'; did you mean '{suggested}'\?"):
        registry.settings_of(name)


@pytest.mark.parametrize("package", KINDS)
def test_other_names_lead_to_types_that_exist(package):
    others = importlib.import_module(f"distill.continual.{package}.other_names").OTHER_NAMES
    assert {name for name in others if not name.endswith(".")} <= KINDS[package][1]  # a sentence is advice
    names = [name for line in others.values() for name in line.split()]
    assert len(names) == len(set(names)) and not set(names) & KINDS[package][1]


@pytest.mark.parametrize(
    "own", [sums.Sums, Direction, RandomFeatureClassifier, MahalanobisClassifier], ids=lambda own: own.__name__
)
def test_others_have_one_too(own):
    check(own.__doc__, own.__name__)


def check(text, name):
    example = doctest.DocTestParser().get_doctest(text or "", {}, name, None, None)
    output = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(example, out=output.write)
    assert example.examples and not result.failed, f"{name}:\n{output.getvalue()}"
