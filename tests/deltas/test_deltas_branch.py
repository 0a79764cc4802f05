"""The branch against the parallel convs that it stands for."""

import pytest
import torch
from deltas_models import conv_case
from torch import nn
from torch.nn import functional as F

from distill.deltas.attach import attach
from distill.deltas.base import DeltaError
from distill.deltas.branch import Branch, windows

# conv → stride, padding, dilation, groups, kernel
GEOMETRY = {
    "plain": (1, 1, 1, 1, 3),
    "strided": (2, 1, 1, 1, 3),
    "dilated": (1, 2, 2, 1, 3),
    "grouped": (1, 1, 1, 2, 3),
    "depthwise": (1, 2, 1, 6, 5),
}


@pytest.mark.parametrize("form", ["1x1", "1x3_3x1", "3x3"])
@pytest.mark.parametrize("kind", GEOMETRY)
def test_it_is_the_sum_of_parallel_convs(kind: str, form: str) -> None:
    model, x, delta = conv_case(kind, Branch.Settings(form=form))
    stride, padding, dilation, groups, kernel = GEOMETRY[kind]
    shapes = {"1x1": [(1, 1)], "1x3_3x1": [(1, 3), (3, 1)], "3x3": [(3, 3)]}
    assert [tuple(branch.shape[2:]) for branch in delta.branches] == shapes[form]
    layer = model[0]
    y = F.conv2d(x, layer.parametrizations.weight.original, layer.bias, stride, padding, dilation, groups)
    for branch in delta.branches:
        centered = [padding - dilation * (kernel - size) // 2 for size in branch.shape[2:]]
        y = y + F.conv2d(x, branch, None, stride, centered, dilation, groups)
    torch.testing.assert_close(model(x), y)


def test_windows_are_cut_to_the_kernel() -> None:
    assert windows("1x3_3x1", (1, 1)) == [(1, 1)]
    assert windows("1x3_3x1", (1, 5)) == [(1, 3)]
    assert windows("3x3", (7, 7)) == [(3, 3)]
    assert windows("3x3", (1, 3)) == [(1, 3)]


def test_a_window_without_a_center_is_refused_by_name() -> None:
    with pytest.raises(DeltaError, match=r"branch: '0' has a 4×4 window, in which a 1×3 branch cannot be centered"):
        attach(nn.Sequential(nn.Conv2d(3, 4, 4, stride=4)), [Branch.Settings()])
    assert attach(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 4, 3)), [Branch.Settings()])[0].name == "1"


def test_it_trains_without_the_full_weight_gradient() -> None:
    model, x, _ = conv_case("plain", Branch.Settings())
    assert type(model(x).grad_fn).__name__ == "_ParallelBackward"
