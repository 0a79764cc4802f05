"""The examples in docstrings: every operation has one, and what it prints is what it says."""

import doctest
import importlib
import pkgutil

import augment
from augment.kornia_ops import base
from augment.ops import operations


def operation_classes():
    base._load()
    return [*operations().values(), *base._WRAPPERS.values()]


def test_every_operation_has_an_example():
    without = [cls.__name__ for cls in operation_classes() if ">>> op = " not in (cls.__dict__.get("__doc__") or "")]
    assert not without


def test_examples_print_what_they_say():
    runner = doctest.DocTestRunner()
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"augment", *(cls.__module__ for cls in operation_classes())}
    names |= {file.name for file in pkgutil.walk_packages(augment.__path__, "augment.") if "__main__" not in file.name}
    for name in sorted(names):
        for test in finder.find(importlib.import_module(name), name):
            runner.run(test)
    assert runner.failures == 0 and runner.tries >= 5 * len(operation_classes())
