import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from distill.report.curves import read_curves
from distill.report.summary import Machine, RunSummary


def write(path, text):
    path.write_text(text)
    return path


def test_curves_are_read_by_name_in_the_order_of_the_log(tmp_path):
    log = write(
        tmp_path / "log.csv", "step,epoch,name,value\n0,0,loss,2.5\n0,0,lr,0.1\n20,1,loss,nan\n40,1,loss,1e-3\n"
    )
    curves = read_curves(log)
    assert list(curves) == ["loss", "lr"]
    assert (curves["loss"].steps, curves["loss"].epochs) == ((0, 20, 40), (0, 1, 1))
    assert curves["loss"].values[::2] == (2.5, 0.001) and math.isnan(curves["loss"].values[1])


@pytest.mark.parametrize("torn", ["20", "20,1,lo", "20,1,loss,"])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    curves = read_curves(write(tmp_path / "log.csv", f"step,epoch,name,value\n0,0,loss,2.5\n{torn}"))
    assert curves["loss"].values == (2.5,)


def test_any_other_malformed_line_is_named(tmp_path):
    log = write(tmp_path / "log.csv", "step,epoch,name,value\n0,0,loss\n20,0,loss,2\n")
    with pytest.raises(ValueError, match=r"log\.csv, line 2: expected step,epoch,name,value, got '0,0,loss'"):
        read_curves(log)


def test_an_empty_log_has_no_curves(tmp_path):
    assert read_curves(write(tmp_path / "log.csv", "")) == {}


def test_arrays_and_tensors_are_taken_as_predictions(machine):
    run = RunSummary(
        title="t", seed=0, machine=machine, config="", classes=("a", "b"), labels=np.array([0, 1, -1]),
        predictions={"student": torch.tensor([1, 1, 0])},
    )  # fmt: skip
    assert run.labels == (0, 1, -1) and run.predictions["student"] == (1, 1, 0)
    assert RunSummary.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("labels", "predicted", "error"),
    [((0, 1), (0,), "1 predictions of 'student' for 2 labels"), ((0, 2), (0, 1), "'labels' holds class 2, but 2 have")],
)
def test_predictions_that_do_not_fit_are_refused(machine, labels, predicted, error):
    with pytest.raises(ValidationError, match=error):
        RunSummary(
            title="t", seed=0, machine=machine, config="", classes=("a", "b"), labels=labels,
            predictions={"student": predicted},
        )  # fmt: skip


def test_this_machine():
    here = Machine.here()
    assert here.torch == torch.__version__ and here.timm and "cores" in here.cpu and here.threads >= 1
