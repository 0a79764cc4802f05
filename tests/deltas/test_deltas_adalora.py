"""AdaLoRA: its schedule, the triplets it keeps, importance against a plain loop, and the low rank that it becomes."""

import math

import pytest
import torch
from deltas_models import build, images
from torch import nn

from distill.deltas.adalora import AdaLoRA, budget_share, keep_best
from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError


def attached(**settings: object) -> tuple[nn.Module, dict[str, AdaLoRA]]:
    model = build("test_vit")
    attach(model, [AdaLoRA.Settings(sites=("blocks.0.*",), kinds=("linear",), **settings)], "head")
    return model, {site.name: site.delta for site in deltas(model)}  # type: ignore[misc]


def train(model: nn.Module, actual: dict[str, AdaLoRA], steps: int, stop: int | None = None) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    x, labels = images(4), torch.arange(4)
    for step in range(1, (stop or steps) + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        AdaLoRA.after_step(actual, step, steps)


def test_the_budget_falls_as_a_cube_between_warm_up_and_settling() -> None:
    assert [budget_share(t, 0.1, 0.3) for t in (0, 0.1, 0.4, 0.7, 1)] == pytest.approx([1, 1, 0.125, 0, 0])


def test_the_best_for_their_price_are_kept() -> None:
    importance, price = torch.tensor([5.0, 8.0, 1.0, 6.0]), torch.tensor([1.0, 4.0, 1.0, 2.0])
    assert keep_best(importance, price, 3).tolist() == [1, 0, 0, 1]  # for each of its price: 5, 2, 1, 3
    assert keep_best(importance, price, 2.9).tolist() == [1, 0, 0, 0]
    assert keep_best(importance, price, 8).tolist() == [1, 1, 1, 1]


@torch.no_grad()
def test_importance_is_that_of_the_equations() -> None:
    _, actual = attached(rank=3)
    delta = next(iter(actual.values()))
    generator = torch.Generator().manual_seed(0)
    sensitivity, uncertainty = [0.0] * 3, [0.0] * 3
    for _ in range(3):
        for parameter in (delta.P, delta.lam, delta.Q):
            parameter.data = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        delta.observe()
        for i in range(3):
            now = abs(float(delta.lam[0, i] * delta.lam.grad[0, i]))  # type: ignore[index]
            now += sum(abs(float(w * g)) for w, g in zip(delta.P[0, :, i], delta.P.grad[0, :, i])) / delta.P.shape[1]  # type: ignore[index]
            now += sum(abs(float(w * g)) for w, g in zip(delta.Q[0, i], delta.Q.grad[0, i])) / delta.Q.shape[2]  # type: ignore[index]
            sensitivity[i] = 0.85 * sensitivity[i] + 0.15 * now
            uncertainty[i] = 0.85 * uncertainty[i] + 0.15 * abs(now - sensitivity[i])
    assert delta.sensitivity.tolist() == pytest.approx(sensitivity, rel=1e-5)
    assert delta.uncertainty.tolist() == pytest.approx(uncertainty, rel=1e-4)


def test_it_starts_orthonormal_and_unchanged() -> None:
    plain = build("test_vit")
    model, actual = attached(rank=3)
    assert torch.equal(model(images()), plain(images()))
    for delta in actual.values():
        assert delta.penalty().item() < 1e-8  # type: ignore[union-attr]
        delta.P.data *= 1.1
        assert delta.penalty().item() == pytest.approx(0.1 * 3 * 0.21**2, rel=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize(("allocation", "total"), [({"target_rank": 1.5}, 6), ({"budget": "6KB"}, 6000)])
def test_what_it_becomes_is_low_rank_within_the_budget(allocation: dict, total: int) -> None:
    model, actual = attached(rank=4, interval=2, **allocation)
    model.train()
    train(model, actual, 20)
    model.eval()
    in_training = model(images())
    start = AdaLoRA.finish(next(iter(actual.values())).settings, actual)
    assert start is not None and all(settings.type == "low_rank" for settings in start.settings)
    ranks = {site: tensors["A"].shape[1] for site, tensors in start.tensors.items()}
    spent = sum(t.numel() * 4 for tensors in start.tensors.values() for t in tensors.values())
    assert (spent if "budget" in allocation else sum(ranks.values())) <= total
    assert sum(ranks.values()) > 0 and len(set(ranks.values())) > 1, "an importance that is the same everywhere"

    again = build("test_vit")
    attach(again, start.settings, "head")
    for site in deltas(again):
        site.delta.load_state_dict(start.tensors[site.name])
    for name in ("weight", "bias"):
        getattr(again.head, name).data = getattr(model.head, name).data
    assert torch.allclose(again(images()), in_training, rtol=1e-5, atol=1e-5)
    merge(model)
    assert torch.allclose(model(images()), in_training, rtol=1e-5, atol=1e-5)


def test_what_was_dropped_may_come_back_until_the_ranks_settle() -> None:
    model, actual = attached(rank=4, interval=5, target_rank=1.0)
    model.train()
    train(model, actual, 40, stop=17)  # the reallocation at 15 left steps to learn in
    dropped = [(delta, delta.kept == 0) for delta in actual.values()]
    assert any((delta.lam[0, gone] != 0).any() for delta, gone in dropped)
    train(model, actual, 40)
    assert all((delta.lam[0, delta.kept == 0] == 0).all() for delta in actual.values())
    assert sum(int(delta.kept.sum()) for delta in actual.values()) == 4


def test_training_that_ends_early_ends_within_the_budget() -> None:
    model, actual = attached(rank=4, target_rank=1.0)
    model.train()
    train(model, actual, 100, stop=5)
    start = AdaLoRA.finish(next(iter(actual.values())).settings, actual)
    assert start is not None and sum(t["A"].shape[1] for t in start.tensors.values()) == 4


def test_settings_and_budgets_that_cannot_be() -> None:
    model, actual = attached(rank=4, budget=100)
    model.train()
    with pytest.raises(DeltaError, match="a budget of 100 bytes is too small: the smallest takes 512 bytes"):
        train(model, actual, 5)
    for settings, error_at in (
        ({"rank": 4, "target_rank": 5}, "5 is more than the initial rank, 4"),
        ({"target_rank": 5, "budget": "1KB"}, "only one of target_rank and budget"),
        ({"warm_up": 0.5, "settle": 0.5}, "leave no steps"),
    ):
        with pytest.raises(ValueError, match=error_at):
            AdaLoRA.Settings.model_validate(settings)


def test_the_budget_step_by_step() -> None:
    """All ranks until warm-up is over, then every interval fewer, from the last reallocation on two thirds of them."""
    _, actual = attached(rank=6, interval=5, warm_up=0.1, settle=0.3)
    torch.manual_seed(0)
    kept = []
    for step in range(1, 101):
        for delta in actual.values():
            for parameter in (delta.P, delta.lam, delta.Q):
                parameter.grad = torch.randn_like(parameter)
        AdaLoRA.after_step(actual, step, 100)
        kept.append(sum(int(delta.kept.sum()) for delta in actual.values()))
    everything, end = 6 * len(actual), 4 * len(actual)
    for step in range(1, 101):
        share = budget_share(step // 5 * 5 / 100, 0.1, 0.3)
        assert kept[step - 1] == (math.floor(end + share * (everything - end)) if step >= 10 else everything), step
    assert kept[69] == end and kept[29] > end
