"""Every delta's docstring has an example that prints what it says; a printed model shows its deltas."""

import doctest
import io

import timm
import torch

from augment.base import Registry
from distill.deltas.attach import attach
from distill.deltas.ladder import Ladder
from distill.deltas.low_rank import LowRank


def test_every_delta_has_an_example_that_runs() -> None:
    failures = []
    for name, settings in Registry("distill.deltas", "Delta").known().items():
        example = doctest.DocTestParser().get_doctest(settings.component.__doc__ or "", {}, name, None, None)
        output = io.StringIO()
        result = doctest.DocTestRunner(verbose=False).run(example, out=output.write)
        if not example.examples:
            failures.append(f"{name}: no example")
        elif result.failed:
            failures.append(f"{name}:\n{output.getvalue()}")
    assert not failures, "\n".join(failures)


def test_a_printed_model_shows_type_and_settings_of_the_delta_at_each_layer() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 32))
    attach(model, [LowRank.Settings(rank=2, alpha=4, sites=("0",)), LowRank.Settings(rank=3, sites=("2",))])
    first, second = str(model[0]), str(model[2])
    assert "LowRank(rank=2, alpha=4.0)" in first and "LowRank(rank=3)" in second


def test_a_printed_ladder_shows_its_side_blocks() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    attach(model, [Ladder.Settings(reduction=2, init="random", drop_path=0.25)], "fc")
    text = str(model.structural_0)
    assert "reduction=2" in text and "drop_path=0.25" in text and "Rung(\n      width=" in text
