"""Sparse: its equation, how entries are chosen, and what a learned mask leaves."""

import math

import pytest
import torch
from deltas_evidence import Told
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach, deltas
from distill.deltas.base import DeltaError
from distill.deltas.dense import Dense
from distill.deltas.sparse import Sparse, largest_of_all
from distill.deltas.sparse_mask import SoftThreshold, SparseMask, draw_noise, expected_open, hard_concrete


@pytest.mark.parametrize("kind", CONVS)
def test_it_is_its_equation(kind: str) -> None:
    model, _, delta = conv_case(kind, Sparse.Settings(density=0.2))
    expected = model[0].parametrizations.weight.original.detach().clone().flatten()
    for place, value in zip(delta.index.tolist(), delta.values.tolist(), strict=True):
        expected[place] += value
    assert delta.index.dtype == torch.int32 and len(delta.index) == round(0.2 * len(expected))
    assert torch.equal(model[0].weight.detach().flatten(), expected)


def made_up() -> tuple[nn.Module, Told]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Conv2d(4, 8, 3, groups=2))
    return model, Told(model, {"0": model[0], "1": model[1]})


@pytest.mark.parametrize("by", ["gradient", "fisher", "difference"])
def test_each_layer_gets_its_largest_scores(by: str) -> None:
    _, calibration = made_up()
    settings = Sparse.Settings(by=by, density=0.1, warm_up=3)
    assert Sparse.prepares(settings)
    start = Sparse.prepare(settings, calibration)
    assert calibration.asked == [(3, "weights" if by == "difference" else "head")] and start.warm_start is None
    point = calibration.after(3)
    for site, layer in calibration.layers.items():
        scores = {
            "gradient": point.means[site].abs(),
            "fisher": point.squares[site],
            "difference": (point.weights[site] - layer.weight).abs(),
        }[by].flatten()
        chosen = start.tensors[site]["index"].tolist()
        count = round(0.1 * len(scores))
        assert chosen == sorted(sorted(range(len(scores)), key=lambda n: -scores[n])[:count])
    assert sorted(site for spec in start.settings for site in spec.sites) == ["0", "1"]


def test_what_was_chosen_fits_the_deltas_that_are_made_from_it() -> None:
    model, calibration = made_up()
    start = Sparse.prepare(Sparse.Settings(by="gradient", scope="model", density=0.2), calibration)
    attach(model, start.settings)
    for site in deltas(model):
        state = site.delta.state_dict()
        assert state["index"].shape == start.tensors[site.name]["index"].shape
    assert sum(len(actual["index"]) for actual in start.tensors.values()) == round(0.2 * (48 + 144))


def test_scores_of_all_layers_by_hand() -> None:
    scores = {"a": torch.tensor([[9.0, 1, 8, 7, 6]]), "b": torch.tensor([5.0, 0, 0, 0]), "c": torch.zeros(5)}
    actual = largest_of_all(scores, 3 / 14)
    assert {site: places.tolist() for site, places in actual.items()} == {"a": [0, 2], "b": [0]}  # half of a at most


def test_magnitude_needs_no_data_and_too_many_entries_are_refused() -> None:
    assert not Sparse.prepares(Sparse.Settings(by="magnitude"))
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -9, 2, 3], [0, 8, -1, 0]]))
    with pytest.raises(DeltaError, match="has 8 entries, fewer than entries: 9"):
        attach(model, [Sparse.Settings(entries=9)])
    with pytest.raises(DeltaError, match="has a weight of 32 bytes, and its delta would take 32"):
        attach(model, [Sparse.Settings(density=0.5)])
    assert attach(model, [Sparse.Settings(entries=2)])[0].delta.index.tolist() == [1, 5]


def test_gates_follow_the_hard_concrete_distribution() -> None:
    """Over every number that the noise can be."""
    noise = torch.arange(-(2**7), 2**7).to(torch.int8)
    u = (torch.arange(2**8).double() + 0.5) / 2**8
    for a in (-4.0, 0.0, 1.5, 6.0):
        log_alpha = torch.full_like(u, a)
        gates = hard_concrete(log_alpha, noise, torch.empty_like(u))
        s = 1 / (1 + torch.exp(-(torch.log(u) - torch.log(1 - u) + a) / (2 / 3)))
        torch.testing.assert_close(gates, (1.2 * s - 0.1).clamp(0, 1))
        torch.testing.assert_close(expected_open(log_alpha[:1]), (gates > 0).double().mean(), rtol=0, atol=1 / 2**9)
    kept = hard_concrete(torch.tensor([-4.0, 0.0, 6.0]), None, torch.empty(3)).tolist()
    assert kept[0] == 0 and kept[1] == pytest.approx(0.5) and kept[2] == 1
    assert expected_open(torch.zeros(1)).item() == pytest.approx(1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1))))


def test_noise_is_uniform_and_repeatable() -> None:
    torch.manual_seed(0)
    noise = draw_noise(torch.empty(7, 11, 13, 17))
    counts = (noise.flatten().int() + 2**7).div(2**4, rounding_mode="floor").bincount(minlength=16)
    assert noise.shape == (7, 11, 13, 17) and ((counts / counts.sum() - 1 / 16).abs() < 0.01).all()
    torch.manual_seed(0)
    assert torch.equal(draw_noise(torch.empty(7, 11, 13, 17)), noise)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gates_made_part_by_part_have_the_gradients_of_their_equation(
    training: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.deltas.sparse_mask._CACHED", 100)  # two rows of 36 are a part
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 7, 3).double().to(memory_format=memory_format)
    delta = SparseMask(SparseMask.Settings(), layer).train(training)
    with torch.no_grad():
        delta.U.normal_()
        delta.log_alpha.normal_(std=2)  # type: ignore[union-attr]
    target = torch.randn_like(layer.weight)
    torch.manual_seed(1)
    changed = delta(layer.weight)
    inputs = [layer.weight, delta.U, delta.log_alpha]
    got = torch.autograd.grad((changed * target).sum(), inputs)

    torch.manual_seed(1)
    logit = delta.log_alpha
    if training:
        u = (draw_noise(delta.U).double() + 2**7 + 0.5) / 2**8
        logit = (torch.log(u) - torch.log(1 - u) + logit) / (2 / 3)
    z = (torch.sigmoid(logit) * 1.2 - 0.1).clamp(0, 1)
    assert (z == 0).any() and (z == 1).any()
    torch.testing.assert_close(changed, layer.weight + z * delta.U)
    for single, expected in zip(got, torch.autograd.grad(((layer.weight + z * delta.U) * target).sum(), inputs)):
        torch.testing.assert_close(single, expected)


def test_soft_threshold_by_hand() -> None:
    U = torch.tensor([-3.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    y = SoftThreshold.apply(U, 1.0)
    assert y.tolist() == [-2, 0, 0, 0, 1]
    y.sum().backward()
    assert U.grad.tolist() == [1] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize("mask", ["l0", "l1"])
def test_a_learned_mask_becomes_a_sparse_delta_of_the_same_bits(mask: str) -> None:
    model = made_up()[0]
    settings = SparseMask.Settings(mask=mask, threshold=1.5)
    attach(model, [settings])
    actual = {site.name: site.delta for site in deltas(model)}
    with torch.no_grad():
        for delta in actual.values():
            delta.U.normal_()
            if delta.log_alpha is not None:
                delta.log_alpha.normal_(mean=-3)
                zero = torch.zeros_like(delta.U)
                assert not torch.equal(delta.train()(zero), delta(zero)), "gates are drawn anew"
    start = SparseMask.finish(settings, actual)
    expected = {site: model.get_submodule(site).weight.detach() for site in actual}
    small = made_up()[0]
    attach(small, start.settings)
    for site in deltas(small):
        assert isinstance(site.delta, Sparse)
        site.delta.load_state_dict(start.tensors[site.name])
        assert torch.equal(small.get_submodule(site.name).weight, expected[site.name])


def test_a_mask_that_leaves_nothing_or_most() -> None:
    model = made_up()[0]
    attach(model, [SparseMask.Settings(mask="l1")])
    actual = {site.name: site.delta for site in deltas(model)}
    with torch.no_grad():
        actual["1"].U.fill_(1)
    start = SparseMask.finish(SparseMask.Settings(mask="l1"), actual)
    (spec,) = start.settings
    assert isinstance(spec, Dense.Settings) and spec.sites == ("1",) and list(start.tensors) == ["1"]


def test_penalties_by_hand() -> None:
    l1 = SparseMask(SparseMask.Settings(mask="l1", cost=0.5), nn.Linear(3, 2))
    nn.init.constant_(l1.U, -2)
    assert l1.penalty().item() == 6  # type: ignore[union-attr]
    l0 = SparseMask(SparseMask.Settings(mask="l0", cost=0.5), nn.Linear(3, 2))
    assert l0.penalty().item() == pytest.approx(0.5 * 6 * expected_open(torch.zeros(1)).item())  # type: ignore[union-attr]
