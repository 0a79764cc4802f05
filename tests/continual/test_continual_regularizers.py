"""Regularizers, against values computed by hand on tiny linear models."""

import pytest
import torch
from torch import nn

from augment.base import Registry
from distill.continual.errors import ContinualError
from distill.continual.regularizers.ewc import EWC, drawn_labels, fisher
from distill.continual.regularizers.l2 import L2
from distill.continual.regularizers.si import SI

REGULARIZERS = Registry("distill.continual.regularizers", "Regularizer").known()
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, IDS = torch.randn(12, 3, generator=GENERATOR), torch.arange(12) + 100


def linear(classes=2):
    layer = nn.Linear(3, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 3, generator=torch.Generator().manual_seed(1)))
        layer.bias.copy_(torch.arange(classes) / 10)
    return layer


def parameters(model):
    return dict(model.named_parameters())


def batches(size=12):
    return list(zip(IMAGES.split(size), IDS.split(size)))


def train(model, regularizer, steps=3):
    """A few steps towards random labels, with the penalty."""
    for _ in range(steps):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(IMAGES), IDS % 2) + regularizer.penalty()
        loss.backward()
        descend(model)
        regularizer.after_step()


@torch.no_grad()
def descend(model):
    """A step of plain SGD with a learning rate of 0.1 (``torch.optim`` takes seconds to import)."""
    for parameter in model.parameters():
        parameter -= 0.1 * parameter.grad


def build(name, **given):
    return REGULARIZERS[name].component(REGULARIZERS[name](**given))


def test_fisher_of_each_sample_by_hand():
    """``∂ log p(y|x) / ∂W = (1_y − p) xᵀ`` for the label drawn, squared sample by sample, not over the batch."""
    model = linear()
    p = model(IMAGES).softmax(1).detach()
    labels = drawn_labels(model(IMAGES), IDS, seed=0)
    assert 0 < labels.sum() < 12  # both classes are drawn
    rest = nn.functional.one_hot(labels, 2) - p
    weight = (rest[:, :, None] * IMAGES[:, None, :]).square().mean(0)
    for size in (1, 5, 12):
        estimate = fisher(model, parameters(model), batches(size), seed=0)
        torch.testing.assert_close(estimate["weight"], weight)
        torch.testing.assert_close(estimate["bias"], rest.square().mean(0))
    of_batch = (rest[:, :, None] * IMAGES[:, None, :]).mean(0).square()
    assert (weight > 2 * of_batch).all()  # what squaring the gradient of the batch would give
    backwards = [(images.flip(0), ids.flip(0)) for images, ids in reversed(batches(5))]
    again = fisher(model, parameters(model), backwards, seed=0)
    torch.testing.assert_close(again["weight"], estimate["weight"], rtol=1e-6, atol=0)


def test_labels_are_drawn_from_the_model():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(5000, 3)
    labels = drawn_labels(logits, torch.arange(5000), seed=1)
    torch.testing.assert_close(labels.bincount(minlength=3) / 5000, torch.tensor([0.7, 0.2, 0.1]), atol=0.02, rtol=0)
    assert torch.equal(labels.flip(0), drawn_labels(logits, torch.arange(5000).flip(0), seed=1))
    assert not torch.equal(labels, drawn_labels(logits, torch.arange(5000), seed=2))
    never = torch.tensor([[-1e30, 0.0, -1e30]]).expand(500, 3)
    assert (drawn_labels(never, torch.arange(500), seed=0) == 1).all()


def test_fisher_is_measured_in_eval_mode_and_changes_no_statistic():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), linear())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = fisher(model, parameters(model), batches(), seed=0)
    assert torch.equal(first["2.weight"], fisher(model, parameters(model), batches(4), seed=0)["2.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[0].training and not model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ewc_penalty_by_hand():
    model, ewc = linear(), EWC(EWC.Settings(weight=10))
    ewc.prepare(model, parameters(model), batches())
    importance = {name: value.clone() for name, value in ewc.importance.items()}
    assert ewc.penalty().item() == 0
    with torch.no_grad():
        model.weight.add_(0.5)
    expected = 5 * 0.25 * importance["weight"].sum()
    torch.testing.assert_close(ewc.penalty(), expected)
    (gradient,) = torch.autograd.grad(ewc.penalty(), model.weight)
    torch.testing.assert_close(gradient, 10 * importance["weight"] * 0.5)


def test_online_ewc_decays_earlier_tasks_and_moves_the_anchor():
    model, ewc = linear(), EWC(EWC.Settings(decay=0.5))
    ewc.prepare(model, parameters(model), batches())
    first = ewc.importance["weight"].clone()
    with torch.no_grad():
        model.weight.mul_(2)
    second = fisher(model, parameters(model), batches(), seed=0)["weight"]
    ewc.prepare(model, parameters(model), batches())
    torch.testing.assert_close(ewc.importance["weight"], 0.5 * first + second)
    assert torch.equal(ewc.anchors["weight"], model.weight) and ewc.penalty().item() == 0


def test_ewc_bounds_and_counts_samples():
    model = linear()
    clipped, few = EWC(EWC.Settings(clip=0.01)), EWC(EWC.Settings(samples=3))
    clipped.prepare(model, parameters(model), batches())
    few.prepare(model, parameters(model), batches(2))
    assert clipped.importance["weight"].max() == pytest.approx(0.01)
    expected = fisher(model, parameters(model), [(IMAGES[:3], IDS[:3])], seed=0)
    assert torch.equal(few.importance["weight"], expected["weight"])
    with pytest.raises(ContinualError, match="at least one image"):
        few.prepare(model, parameters(model), [])
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(ContinualError, match="gradient of weight is not finite"):
        few.prepare(model, parameters(model), batches())


def test_ewc_in_the_coordinates_of_what_is_trained():
    from distill.deltas.attach import attach
    from distill.deltas.low_rank import LowRank

    model = nn.Sequential(linear())
    attach(model, [LowRank.Settings(rank=1)])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "parametrizations" in name}
    ewc = EWC(EWC.Settings())
    ewc.prepare(model, trained, batches())
    assert ewc.importance.keys() == trained.keys() and ewc.kept_bytes == 2 * 4 * (3 + 2)
    assert any(value.sum() > 0 for value in ewc.importance.values())


def test_si_by_hand():
    """The path integral over three steps of SGD, from gradients computed here."""
    model, si = linear(), SI(SI.Settings(weight=2, xi=0.5))
    si.attach(parameters(model))
    start, omega = model.weight.detach().clone(), torch.zeros(2, 3)
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(IMAGES), IDS % 2)
        model.weight.grad, model.bias.grad = torch.autograd.grad(loss, [model.weight, model.bias])
        omega += 0.1 * model.weight.grad.square()  # −g · Δθ of a step with learning rate 0.1
        descend(model)
        si.after_step()
    torch.testing.assert_close(si.path["weight"], omega)
    moved = (model.weight.detach() - start).square()
    si.prepare(model, parameters(model), [])
    torch.testing.assert_close(si.importance["weight"], omega / (moved + 0.5))
    assert not si.path and si.penalty().item() == 0
    si.attach(parameters(model))
    with torch.no_grad():
        model.weight.add_(1)
    torch.testing.assert_close(si.penalty(), si.importance["weight"].sum())


def test_si_takes_the_gradient_of_the_task_alone_if_it_is_given():
    model, si = nn.Linear(1, 1, bias=False), SI(SI.Settings())
    si.attach(parameters(model))
    model.weight.grad = torch.tensor([[100.0]])
    with torch.no_grad():
        model.weight.sub_(0.5)
    si.after_step({"weight": torch.tensor([[3.0]])})
    assert si.path["weight"].item() == 1.5


def test_si_never_rewards_moving_away():
    model, si = nn.Linear(1, 1, bias=False), SI(SI.Settings())
    si.attach(parameters(model))
    model.weight.grad = torch.tensor([[1.0]])
    with torch.no_grad():
        model.weight.add_(1)  # against the gradient
    si.after_step()
    si.prepare(model, parameters(model), [])
    assert si.importance["weight"].item() == 0


def test_si_must_have_seen_the_training():
    model = linear()
    with pytest.raises(ContinualError, match="attach the parameters before a task is trained"):
        SI(SI.Settings()).prepare(model, parameters(model), [])


def test_l2_by_hand():
    model, l2 = linear(), L2(L2.Settings(weight=3))
    l2.prepare(model, parameters(model), [])
    with torch.no_grad():
        model.bias.add_(torch.tensor([1.0, 2.0]))
    assert l2.penalty().item() == pytest.approx(1.5 * (1 + 4))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_first_task_is_free_and_can_call_backward(name):
    model, regularizer = linear(), build(name)
    regularizer.attach(parameters(model))
    penalty = regularizer.penalty()
    penalty.backward()
    assert penalty.item() == 0 and penalty.ndim == 0 and model.weight.grad.abs().max() == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_stream_that_is_stopped_goes_on_to_the_same_bits(name):
    """Stopped inside the second task; the state goes through a new object."""

    def stream(stop):
        model, regularizer = linear(), build(name, weight=0.5)
        regularizer.attach(parameters(model))
        train(model, regularizer)
        regularizer.prepare(model, parameters(model), batches())
        regularizer.attach(parameters(model))
        train(model, regularizer, 2)
        if stop:
            state = {key: value.clone() for key, value in regularizer.state_dict().items()}
            regularizer = build(name, weight=0.5)
            regularizer.load_state_dict(state)
            regularizer.attach(parameters(model))
        train(model, regularizer, 2)
        regularizer.prepare(model, parameters(model), batches())
        return regularizer.state_dict() | parameters(model)

    whole, resumed = stream(False), stream(True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert any("importance" in key for key in whole)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_rows_of_new_classes_and_new_parameters_are_free(name):
    model, regularizer = linear(), build(name, weight=0.5)
    regularizer.attach(parameters(model))
    train(model, regularizer)
    regularizer.prepare(model, parameters(model), batches())
    wider = linear(4)
    with torch.no_grad():
        wider.weight[:2], wider.bias[:2] = model.weight, model.bias
    regularizer.attach({**parameters(wider), "delta": nn.Parameter(torch.ones(2))})
    assert regularizer.penalty().item() == 0
    regularizer.attach(parameters(wider))
    old = regularizer.importance["weight"].clone()
    train(wider, regularizer, 1)
    regularizer.prepare(wider, parameters(wider), batches())
    assert regularizer.importance["weight"].shape == (4, 3) and regularizer.anchors["bias"].shape == (4,)
    assert (regularizer.importance["weight"][:2] >= old).all()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_what_cannot_be_compared_is_named(name):
    model, regularizer = linear(), build(name)
    with pytest.raises(ContinualError, match=f"{name}: attach the parameters first"):
        regularizer.penalty()
    with pytest.raises(ContinualError, match=f"{name}: no parameter is trained"):
        regularizer.attach({})
    regularizer.attach(parameters(model))
    regularizer.prepare(model, parameters(model), batches())
    with pytest.raises(ContinualError, match=rf"{name}: weight has shape \[2, 5\], and \[2, 3\] after earlier tasks"):
        regularizer.attach(parameters(nn.Linear(5, 2)))
    with pytest.raises(ContinualError, match=f"{name}: unexpected state momentum.weight"):
        regularizer.load_state_dict({"momentum.weight": torch.zeros(1)})
