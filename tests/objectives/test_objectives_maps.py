"""Objectives on maps: how stages meet, and FitNets, AT, VID, NST, ReviewKD."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.at import at, attention
from distill.objectives.base import Targets
from distill.objectives.fitnets import FitNets
from distill.objectives.nst import nst
from distill.objectives.reviewkd import Fusion, ReviewKD, hcl
from distill.objectives.stages import match_stages, mean_square, on_one_grid
from distill.objectives.vid import VID, vid

LABELS = Targets(torch.zeros(4, dtype=torch.long))


def shapes(*maps):
    return FeatureShapes(3, 5, {f"s{index}": size for index, size in enumerate(maps)})


def maps_of(of: FeatureShapes, seed=0, batch=4):
    generator = torch.Generator().manual_seed(seed)
    return Features(maps={name: torch.randn(batch, *size, generator=generator) for name, size in of.maps.items()})


# --- Stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student_stages", "teacher_stages", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (3, 6, [1, 3, 5]),
        (4, 12, [2, 5, 8, 11]),  # a CNN's stages and a ViT's blocks
        (6, 3, [0, 0, 1, 1, 2, 2]),
        (5, 1, [0, 0, 0, 0, 0]),
        (2, 4, [1, 3]),
    ],
)
def test_stages_meet_at_their_relative_depth(student_stages, teacher_stages, expected):
    student, teacher = shapes(*[(4, 8, 8)] * student_stages), shapes(*[(6, 8, 8)] * teacher_stages)
    assert match_stages("all", student, teacher) == [(f"s{i}", f"s{j}") for i, j in enumerate(expected)]
    last = f"s{student_stages - 1}", f"s{teacher_stages - 1}"
    assert match_stages("last", student, teacher) == [last]
    assert match_stages("middle", student, teacher) == [match_stages("all", student, teacher)[student_stages // 2]]


def test_stages_by_name_and_by_mistake():
    student, teacher = shapes((4, 8, 8), (4, 4, 4)), shapes((6, 8, 8), (6, 4, 4))
    assert match_stages({"s1": "s0", "s0": "s1"}, student, teacher) == [("s0", "s1"), ("s1", "s0")]
    with pytest.raises(ValueError, match=r"stages: the student has no stage 'layer1'.*it has s0, s1"):
        match_stages({"layer1": "s0"}, student, teacher)
    with pytest.raises(ValueError, match="stages: the teacher has no stage 's9'"):
        match_stages({"s0": "s9"}, student, teacher)
    with pytest.raises(ValueError, match="the teacher reports no maps"):
        match_stages("all", student, FeatureShapes(3, 5))


def test_maps_meet_on_the_smaller_grid():
    large, small = torch.arange(32.0).view(1, 1, 4, 8), torch.zeros(1, 2, 8, 4)
    pooled_large, pooled_small = on_one_grid(large, small)
    assert pooled_large.shape == (1, 1, 4, 4) and pooled_small.shape == (1, 2, 4, 4)
    torch.testing.assert_close(pooled_large, large.unfold(3, 2, 2).mean(-1))


# --- FitNets ------------------------------------------------------------------------------------------------------


def test_fitnets_by_hand_and_zero_where_the_regressor_hits():
    student, teacher = shapes((2, 4, 4)), shapes((3, 2, 2))
    term = FitNets(FitNets.Settings(stages="all"), student, teacher)
    student_features, teacher_features = maps_of(student), maps_of(teacher, seed=1)
    weight, bias = term.regressors[0].weight[:, :, 0, 0], term.regressors[0].bias
    hint = torch.einsum("oc,bchw->bohw", weight, student_features.maps["s0"]) + bias[:, None, None]
    pooled = hint.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    expected = (pooled - teacher_features.maps["s0"]).square().mean()
    torch.testing.assert_close(term(student_features, teacher_features, LABELS), expected)
    assert term(student_features, Features(maps={"s0": pooled.detach()}), LABELS).item() == pytest.approx(0, abs=1e-12)


def test_fitnets_without_projector_over_the_mean_square_of_the_batch():
    """``mean((t − s)²) / mean(t²)``, one mean over the whole batch; equal widths only."""
    both = shapes((3, 2, 2))
    term = FitNets(FitNets.Settings(stages="all", projector="none", normalize="rms"), both, both)
    student, teacher = maps_of(both), maps_of(both, seed=1)
    s, t = student.maps["s0"], teacher.maps["s0"]
    torch.testing.assert_close(term(student, teacher, LABELS), (s - t).square().mean() / t.square().mean())
    assert not [*term.parameters()] and term(teacher, teacher, LABELS).item() == 0
    with pytest.raises(ValueError, match="projector: none needs equal widths, but s0 of the student has 2 channels"):
        FitNets(FitNets.Settings(stages="all", projector="none"), shapes((2, 2, 2)), both)


# --- AT -----------------------------------------------------------------------------------------------------------


def test_at_on_paper():
    """Squares (9, 16) at two pixels have length √337; one channel or two of the same make no difference."""
    map_ = tensor([3.0, 4.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(attention(map_), tensor([[9.0, 16.0]]) / math.sqrt(337))
    torch.testing.assert_close(attention(map_.repeat(1, 5, 1, 1)), attention(map_))
    flat = torch.ones(1, 2, 1, 2)
    expected = ((tensor([9.0, 16.0]) / math.sqrt(337) - 1 / math.sqrt(2)) ** 2).mean().item()
    assert at(map_, flat).item() == pytest.approx(expected)
    assert at(map_, -7 * map_).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1, 2, 2), (3, 4, 5, 3), (2, 7, 1, 6)])
def test_at_equals_the_equation(size):
    generator = torch.Generator().manual_seed(size[1])
    student = torch.randn(size, generator=generator)
    teacher = torch.randn(size[0], size[1] + 2, *size[2:], generator=generator)

    def energies(map_):
        places = [sum(c[y][x] ** 2 for c in map_) / len(map_) for y in range(size[2]) for x in range(size[3])]
        length = math.sqrt(sum(place**2 for place in places))
        return [place / length for place in places]

    for actual, s, t in zip(at(student, teacher).tolist(), student.tolist(), teacher.tolist()):
        places = [(a - b) ** 2 for a, b in zip(energies(s), energies(t))]
        assert actual == pytest.approx(sum(places) / len(places), rel=1e-5, abs=1e-7)


# --- VID ----------------------------------------------------------------------------------------------------------


def test_vid_equals_the_gaussian_log_likelihood():
    mean, teacher = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    variance = tensor([0.5, 1.0, 2.0, 5.0])
    scale = variance.sqrt()[:, None, None].expand(4, 2, 2)
    likelihood = torch.distributions.Normal(mean, scale).log_prob(teacher)
    torch.testing.assert_close(vid(mean, teacher, variance).mean(), -likelihood.mean() - 0.5 * math.log(2 * math.pi))


def test_vid_on_paper():
    """Errors of 2 and 0 at variance 2, of 1 and 1 at variance 1: ½ · mean(2 + ln 2, ln 2, 1, 1)."""
    mean, teacher = tensor([[3.0, 1.0], [2.0, 4.0]]).view(1, 2, 1, 2), tensor([[1.0, 1.0], [1.0, 5.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(vid(mean, teacher, tensor([2.0, 1.0])), tensor([0.5 * (4 + 2 * math.log(2)) / 4]))


def test_vid_is_least_at_the_mean_squared_error():
    mean, teacher = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    errors = (mean - teacher).square().mean((0, 2, 3))
    least = vid(mean, teacher, errors).mean().item()
    assert least == pytest.approx(0.5 * (1 + errors.log().mean().item()), rel=1e-5)
    assert all(vid(mean, teacher, errors * factor).mean().item() > least for factor in (0.8, 1.25))


def test_vid_starts_at_variance_five_and_learns_it():
    student, teacher = shapes((2, 4, 4)), shapes((3, 4, 4))
    term = VID(VID.Settings(), student, teacher)
    variance = torch.nn.functional.softplus(term.alpha[0]) + 1e-5
    torch.testing.assert_close(variance, torch.full((3,), 5.0))
    term(maps_of(student), maps_of(teacher, seed=1), LABELS).backward()
    assert (term.alpha[0].grad > 0).all(), "errors of about 1 ask for a smaller variance"


# --- NST ----------------------------------------------------------------------------------------------------------


def test_nst_equals_the_maximum_mean_discrepancy():
    student, teacher = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 5, 2, 2, 2).reshape(2, 10, 2, 2)
    student = student.reshape(2, 6, 2, 2)
    total = 0.0
    for neurons_s, neurons_t in zip(student.flatten(2), teacher.flatten(2)):
        neurons_s, neurons_t = (x / x.norm(dim=1, keepdim=True) for x in (neurons_s, neurons_t))

        def mean_kernel(x, y):
            return sum((a @ b).item() ** 2 for a in x for b in y) / (len(x) * len(y))

        total += (
            mean_kernel(neurons_s, neurons_s)
            + mean_kernel(neurons_t, neurons_t)
            - 2 * mean_kernel(neurons_s, neurons_t)
        )
    assert nst(student, teacher).mean().item() == pytest.approx(total / 2, rel=1e-5)
    assert nst(teacher, teacher.flip(1)).max().item() == pytest.approx(0, abs=1e-10), (
        "the order of neurons says nothing"
    )


def test_nst_on_paper():
    """One neuron each, at right angles: k(s, s) = k(t, t) = 1 and k(s, t) = 0; at 45 degrees k(s, t) = 1/2."""
    first, orthogonal, between = (tensor(row).view(1, 1, 1, 2) for row in ([3.0, 0.0], [0.0, 2.0], [1.0, 1.0]))
    assert nst(first, orthogonal).item() == pytest.approx(2)
    assert nst(first, between).item() == pytest.approx(2 - 2 * 0.5)


# --- ReviewKD -----------------------------------------------------------------------------------------------------


def test_hcl_on_paper():
    """A checkerboard of ±1 differs from zeros pixel by pixel, but not on average over 2 × 2 pixels or more."""
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).mul(2.0).sub(1).expand(1, 1, 8, 8)
    assert hcl(board, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(1 / 1.875)
    assert hcl(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == pytest.approx(1), "1 cell, and the map itself"


@pytest.mark.parametrize("side", [2, 4, 8])
def test_hcl_equals_the_equation(side):
    student, teacher = torch.randn(2, 3, 2, side, side, generator=torch.Generator().manual_seed(side))
    difference = student - teacher
    total, weights = difference.square().mean((1, 2, 3)), 1.0
    for cells, weight in zip([cells for cells in (4, 2, 1) if cells < side], (1 / 2, 1 / 4, 1 / 8)):
        window = side // cells
        pooled = difference.unfold(2, window, window).unfold(3, window, window).mean((-1, -2))
        total, weights = total + weight * pooled.square().mean((1, 2, 3)), weights + weight
    torch.testing.assert_close(hcl(student, teacher), total / weights)
    assert hcl(teacher, teacher).tolist() == [0, 0, 0]


def test_a_fusion_is_batch_norms_of_convs_and_a_learned_mean_of_deep_and_shallow():
    torch.manual_seed(0)
    fusion = Fusion(2, 5, 3, has_deeper=True)
    shallow, deep = torch.randn(4, 2, 6, 6), torch.randn(4, 5, 3, 3)
    x = F.batch_norm(fusion.reduce[0](shallow), None, None, training=True)
    y = deep.repeat_interleave(2, 2).repeat_interleave(2, 3)
    attention = fusion.attend(torch.cat([x, y], 1)).sigmoid()
    mixed = attention[:, :1] * x + attention[:, 1:] * y
    fused, expanded = fusion(shallow, deep)
    torch.testing.assert_close(fused, mixed, rtol=1e-4, atol=1e-5)
    expected = F.batch_norm(F.conv2d(mixed, fusion.expand[0].weight, padding=1), None, None, training=True)
    torch.testing.assert_close(expanded, expected, rtol=1e-4, atol=1e-5)


def test_review_passes_what_is_deep_to_what_is_shallow():
    student, teacher = shapes((2, 8, 8), (4, 4, 4)), shapes((3, 8, 8), (6, 4, 4))
    term = ReviewKD(ReviewKD.Settings(width=5), student, teacher)
    student_features, teacher_features = maps_of(student), maps_of(teacher, seed=1)
    for map_ in student_features.maps.values():
        map_.requires_grad_()
    shallow, deep = term.fusions
    assert deep.attend is None
    x, fused_deep = deep(student_features.maps["s1"], None)
    _, fused = shallow(student_features.maps["s0"], x)
    expected = (hcl(fused, teacher_features.maps["s0"]) + hcl(fused_deep, teacher_features.maps["s1"])).mean()
    torch.testing.assert_close(term(student_features, teacher_features, LABELS), expected)
    hcl(fused, teacher_features.maps["s0"]).mean().backward()
    assert student_features.maps["s1"].grad.abs().sum() > 0, "the shallow loss teaches the deep stage"


def test_a_teacher_map_that_is_missing_is_named():
    student, teacher = shapes((2, 4, 4)), shapes((3, 2, 2))
    term = FitNets(FitNets.Settings(), student, teacher)
    with pytest.raises(ValueError, match="the teacher has no map 's0'"):
        term(maps_of(student), Features(), LABELS)


def test_mean_square_by_hand_in_the_error_s_order_of_memory():
    torch.manual_seed(0)
    error = torch.randn(3, 4, 5, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    error[1] = 0
    error = (1.0 * error).requires_grad_()
    for dims in ((1, 2, 3), (2, 3)):
        [got] = torch.autograd.grad(mean_square(error, dims).sum(), error)
        torch.testing.assert_close(mean_square(error, dims), error.square().mean(dims))
        torch.testing.assert_close(got, 2 * error.detach() / (40 if len(dims) == 3 else 10))
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_stages_are_averaged_and_vid_s_networks_are_three_pointwise_layers():
    """Two equal stages have the loss of one."""
    torch.manual_seed(0)
    one_stage, two_stages = shapes((4, 6, 6)), shapes((4, 6, 6), (4, 6, 6))
    for cls in (FitNets, VID):
        single, double = (cls(cls.Settings(stages="all"), of, of) for of in (one_stage, two_stages))
        for twin in double.regressors if cls is FitNets else double.means:
            twin.load_state_dict((single.regressors if cls is FitNets else single.means)[0].state_dict())
        student, teacher = maps_of(one_stage).maps["s0"], maps_of(one_stage, seed=1).maps["s0"]
        seen = [
            Features(maps=dict.fromkeys(of.maps, map_)) for of in (one_stage, two_stages) for map_ in (student, teacher)
        ]
        torch.testing.assert_close(double(*seen[2:], LABELS), single(*seen[:2], LABELS))
    layers = [
        layer for layer in VID(VID.Settings(), one_stage, one_stage).means[0] if isinstance(layer, torch.nn.Conv2d)
    ]
    assert [layer.kernel_size for layer in layers] == [(1, 1)] * 3 and all(layer.bias is None for layer in layers)
