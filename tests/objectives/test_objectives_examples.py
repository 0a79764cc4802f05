"""Every objective's docstring has an example, and it prints what it says."""

from __future__ import annotations

import doctest
import io

from augment.base import Registry


def test_every_objective_has_an_example_that_runs():
    failures = []
    for name, settings in Registry("distill.objectives", "Objective").known().items():
        example = doctest.DocTestParser().get_doctest(settings.component.__doc__, {}, name, None, None)
        output = io.StringIO()
        result = doctest.DocTestRunner(verbose=False).run(example, out=output.write)
        if not example.examples:
            failures.append(f"{name}: no example")
        elif result.failed:
            failures.append(f"{name}:\n{output.getvalue()}")
    assert not failures, "\n".join(failures)
