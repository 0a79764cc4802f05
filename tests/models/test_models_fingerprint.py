"""Fingerprints: what must change it, and what must not."""

import hashlib

import pytest
import torch

from distill.models.fingerprint import differences, fingerprint, tensor_fingerprint


def test_by_hand() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    digest = hashlib.sha256(bytes.fromhex("0000803f00000040")).hexdigest()
    assert tensor_fingerprint(tensor) == f"float32[1,2] {digest}"


def test_layout_and_order_make_no_difference() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert (
        tensor_fingerprint(x)
        == tensor_fingerprint(x.to(memory_format=torch.channels_last))
        == tensor_fingerprint(torch.nn.Parameter(x))
    )
    assert tensor_fingerprint(x.mT.contiguous().mT) == tensor_fingerprint(x)
    y = torch.zeros(3)
    assert fingerprint({"x": x, "y": y}) == fingerprint({"y": y, "x": x})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64])
def test_every_dtype_and_empty_and_scalar(dtype: torch.dtype) -> None:
    marks = {tensor_fingerprint(torch.zeros(shape, dtype=dtype)) for shape in [(), (1,), (0,), (1, 1), (2,)]}
    assert len(marks) == 5


def test_one_bit_shape_or_dtype_changes_it() -> None:
    x = torch.randn(4, 4)
    flipped = x.clone()
    flipped.view(torch.int32)[2, 3] ^= 1
    marks = [tensor_fingerprint(t) for t in (x, flipped, x.reshape(2, 8), x.view(torch.int32), -x)]
    assert len(set(marks)) == 5


def test_differences_are_named() -> None:
    a = fingerprint({"w": torch.zeros(2), "gone": torch.zeros(1), "v": torch.zeros(3)})
    b = fingerprint({"w": torch.ones(2), "new": torch.zeros(1), "v": torch.zeros(4)})
    assert differences(a, b) == [
        "missing gone",
        "unexpected new",
        "v is float32[4], expected float32[3]",
        "w has other values",
    ]
    assert not differences(a, a)
