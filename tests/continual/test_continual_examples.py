"""The example in the docstring of every head, rule of inference, memory and regularizer prints what it says."""

import doctest
import io

import pytest

from augment.base import Registry
from distill.continual.heads import sums

KINDS = {
    "heads": ("Head", {"fecam", "ncm", "random_ridge", "ridge", "slda"}),
    "inference": ("TaskInference", {"entropy", "mahalanobis", "max_logit", "ncm"}),
    "memory": ("Memory", {"herding", "keyed"}),
    "regularizers": ("Regularizer", {"ewc", "l2", "si"}),
}


@pytest.mark.parametrize("package", KINDS)
def test_every_component_has_an_example_that_runs(package):
    base, names = KINDS[package]
    known = Registry(f"distill.continual.{package}", base).known()
    assert set(known) == names
    for name, settings in known.items():
        check(settings.component.__doc__, name)


def test_sums_have_one_too():
    check(sums.Sums.__doc__, "sums")


def check(text, name):
    example = doctest.DocTestParser().get_doctest(text or "", {}, name, None, None)
    output = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(example, out=output.write)
    assert example.examples and not result.failed, f"{name}:\n{output.getvalue()}"
