"""The plan of a chain: what is fused and what is not; and the draws of its operations."""

import math

import pytest
import torch
from augment_chains import (
    BLUR,
    CROP,
    ERASE,
    FLIP,
    GRAY,
    JITTER,
    STRONG,
    TURN,
    Loud,
    chain,
    draws,
    path_of,
    pictures,
)

from augment.draws import Draws, counters, uniforms
from augment.kornia_ops import FusedKorniaOp
from augment.operation import SampledOp


def test_the_plan_says_what_is_fused_and_what_is_not():
    first = chain(CROP, JITTER, GRAY, BLUR, FLIP, "RandomEqualize", TURN, path_of(Loud), ERASE, "RandomInvert")
    reading = "one bilinear reading, axis by axis, zeros beyond the border"
    assert first.plan().splitlines() == [
        f"geometry RandomResizedCrop + RandomHorizontalFlip: {reading}",
        "color    ColorJitter + RandomGrayscale: pixel by pixel",
        "blur     RandomGaussianBlur: two filters along the axes",
        "barrier  RandomEqualize: kornia's own code",
        "geometry RandomRotation: one bilinear reading, zeros beyond the border",
        f"barrier  {path_of(Loud)}: its own code",
        "color    RandomErasing + RandomInvert: pixel by pixel",
        "write    24 x 24, normalized",
        "on a CPU in C; by torch's operators RandomRotation",
    ]


@pytest.mark.parametrize(
    "recipe, passes",
    [
        ([FLIP, "RandomVerticalFlip"], ["geometry RandomHorizontalFlip + RandomVerticalFlip: whole pixels"]),
        ([ERASE, FLIP], ["color", "geometry"]),  # a box has a place, which a flip would change
        ([JITTER, TURN], ["color", "geometry"]),  # rotation brings in black
        ([TURN, JITTER, FLIP], ["geometry", "color"]),
        ([CROP, {"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}], ["geometry", "geometry"]),
        ([FLIP, {"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}], ["geometry"]),
        ([{"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}, CROP], ["geometry"]),
    ],
)
def test_passes(recipe, passes):
    lines = chain(*recipe).plan().splitlines()[:-2]
    assert len(lines) == len(passes)
    assert all(line.startswith(start) for line, start in zip(lines, passes))


def test_fused_kornia_operations_are_users_of_the_contract():
    assert all(
        isinstance(step.operation, SampledOp) and isinstance(step.user, FusedKorniaOp) for step in chain(*STRONG).steps
    )
    assert math.isclose(chain(JITTER).steps[0].user.p, 0.8)


def test_all_draws_at_once_are_those_one_by_one():
    ids = torch.tensor([5, -3, 2**62])
    requests = [
        (Draws(0, 3, view, ids).op(op), count) for view in "ab" for op, count in (("x", 4), ("y", 1), ("z", 23))
    ]
    constants = counters([first for first, _ in requests], [count for _, count in requests], ids.device)
    together = uniforms(ids, constants).split([count for _, count in requests], 1)
    for (first, count), numbers in zip(requests, together):
        assert torch.equal(numbers, first.uniform(0, (count,)))


def test_an_operation_draws_the_same_alone_and_in_a_chain():
    first = chain(*STRONG)
    seen = {}
    for step in first.steps:
        original = step.user.from_uniforms
        step.user.from_uniforms = lambda u, shape, key=step.key, original=original: seen.setdefault(
            key, original(u, shape)
        )
    first(pictures(), draws())
    for step in first.steps:
        alone = step.operation.user.__class__(step.user.module).sample(draws().op(step.key), _shape_at(first, step))
        assert alone.keys() == seen[step.key].keys()
        assert all(torch.equal(alone[name], seen[step.key][name]) for name in alone)


def _shape_at(first, step):
    return torch.Size((8, 3, 32, 36)) if step.index == 0 else torch.Size((8, 3, 24, 24))
