"""SimCLR, BYOL, MoCo, Barlow Twins, VICReg and CaSSLe: hand-made cases, the equations written plainly, invariants."""

import math

import pytest
import torch
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.barlow_twins import cross_correlation
from distill.objectives.base import Targets
from distill.objectives.byol import BYOL, byol
from distill.objectives.cassle import CaSSLe, cassle
from distill.objectives.moco import MoCo, moco
from distill.objectives.projector import Following, mlp
from distill.objectives.simclr import SimCLR, nt_xent
from distill.objectives.vicreg import VICReg, vicreg

SHAPES = FeatureShapes(3, pooled=6)
BATCH = Targets(torch.zeros(4, dtype=torch.long))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_nt_xent_on_paper_and_as_the_equation():
    """Two orthogonal images whose views are equal: one positive of similarity 1, two negatives of 0."""
    rows = tensor([[2.0, 0.0], [0.0, 3.0]])
    assert nt_xent(rows, rows, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    first, second = random(2, 5, 7)
    u, v, losses = unit(first), unit(second), []
    for i in range(5):
        others = sum(math.exp(u[i] @ v[j] / 0.2) + (math.exp(u[i] @ u[j] / 0.2) if j != i else 0) for j in range(5))
        losses.append(-math.log(math.exp(u[i] @ v[i] / 0.2) / others))
    assert nt_xent(first, second, 0.2).item() == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_simclr_is_the_mean_over_ordered_pairs_of_any_number_of_views():
    torch.manual_seed(0)
    term = SimCLR(SimCLR.Settings(hidden=8, dim=4), SHAPES, None)
    views = [Features(pooled=random(4, 6, seed=seed)) for seed in range(3)]
    a, b, c = (term.projector(view.pooled) for view in views)
    of_pair = (nt_xent(a, b) + nt_xent(b, a)) / 2
    torch.testing.assert_close(term(views[:2], None, BATCH), of_pair)
    three = (2 * of_pair + nt_xent(a, c) + nt_xent(c, a) + nt_xent(b, c) + nt_xent(c, b)) / 6
    torch.testing.assert_close(term(views, None, BATCH), three)
    with pytest.raises(ValueError, match="two views of the student are compared, and there is 1"):
        term(views[:1], None, BATCH)
    with pytest.raises(ValueError, match=r"differ in their batch: \[4, 3\]"):
        term([views[0], Features(pooled=views[1].pooled[:3])], None, BATCH)


def test_cross_correlation_on_paper():
    """Features ±1: standardized as they are. Equal views: the identity; columns swapped: no agreement."""
    z = tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert cross_correlation(5 * z + 3, z, 0.5).item() == pytest.approx(0, abs=1e-4)
    assert cross_correlation(z, z.flip(1), 0.5).item() == pytest.approx(2 + 0.5 * 2, abs=1e-4)
    assert cross_correlation(z, -z, 0.5).item() == pytest.approx(2 * 4, abs=1e-3)


def test_vicreg_on_paper_and_as_the_equation():
    z = tensor([[1.0, 0.0], [-1.0, 0.0]])  # variance 2 and 0, no covariance
    short = 0.5 * (1 - 1e-2)
    assert vicreg(z, z, 25, 4, 1).item() == pytest.approx(4 * 2 * short)
    first, second = random(2, 6, 3)
    total = 10 * (first - second).square().sum().item() / 18
    for view in (first, second):
        covariance = torch.cov(view.T)
        deviation = (covariance.diagonal() + 1e-4).sqrt()
        total += 5 * sum(max(0, 1 - s.item()) for s in deviation) / 3
        total += 2 * sum(covariance[p, q].item() ** 2 for p in range(3) for q in range(3) if p != q) / 3
    assert vicreg(first, second, 10, 5, 2).item() == pytest.approx(total, rel=1e-5)


def test_a_collapsed_vicreg_is_pushed_apart():
    torch.manual_seed(0)
    term = VICReg(VICReg.Settings(hidden=8, dim=4), SHAPES, None)
    same = Features(pooled=(torch.ones(4, 6) + 1e-3 * random(4, 6)).requires_grad_())
    term([same, same], None, BATCH).backward()
    assert same.pooled.grad.abs().sum() > 0


def test_byol_on_paper_and_no_gradient_to_the_target():
    q, z = tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True), tensor([[0.0, 2.0], [3.0, 3.0]], requires_grad=True)
    loss = byol(q, z)
    loss.backward()
    assert loss.item() == pytest.approx((2 + 0) / 2, abs=1e-6) and z.grad is None
    assert byol(q, z, tensor([1.0, 0.0])).item() == pytest.approx(1, abs=1e-6)
    assert byol(-z, z).item() == pytest.approx(4)


def test_the_target_projector_follows_with_the_decay_that_it_is_given():
    torch.manual_seed(0)
    term = BYOL(BYOL.Settings(hidden=8, dim=4), SHAPES, SHAPES)
    x = random(4, 6)
    torch.testing.assert_close(term.target_projector(term.projector, x), term.projector(x).detach())
    before = [p.detach().clone() for p in term.projector.parameters()]
    with torch.no_grad():
        for p in term.projector.parameters():
            p += 1
    term.follow(0.75)
    for name, start in zip(dict(term.projector.named_parameters()), before):
        actual = term.target_projector.get_buffer(name.replace(".", "_"))
        torch.testing.assert_close(actual, start + 0.25)
    assert not term.target_projector(term.projector, x.requires_grad_()).requires_grad
    assert not [name for name, _ in term.named_parameters() if name.startswith("target")]
    term.follow(1.0)
    torch.testing.assert_close(term.target_projector.get_buffer("0_weight"), before[0] + 0.25)


def test_moco_as_the_equation():
    query, key, queue = random(3, 4), random(3, 4, seed=1), unit(random(5, 4, seed=2))
    q, k, losses = unit(query), unit(key), []
    for i in range(3):
        positive = math.exp(q[i] @ k[i] / 0.5)
        losses.append(-math.log(positive / (positive + sum(math.exp(q[i] @ m / 0.5) for m in queue))))
    assert moco(query, key, queue, 0.5).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_the_queue_is_first_in_first_out_and_the_loss_does_not_see_the_keys_of_now():
    torch.manual_seed(0)
    term = MoCo(MoCo.Settings(hidden=8, dim=4, queue=6), SHAPES, SHAPES)
    start = term.queue.clone()
    student = [Features(pooled=random(2, 6, seed=seed).requires_grad_()) for seed in (0, 1)]
    momentum = [Features(pooled=random(2, 6, seed=seed)) for seed in (2, 3)]
    keys = [unit(term.projector(of.pooled)).detach() for of in momentum]
    loss = term(student, momentum, Targets(torch.zeros(2, dtype=torch.long)))
    expected = [moco(term.projector(own.pooled), key, start) for own, key in zip(student, keys)]
    torch.testing.assert_close(loss, sum(expected) / 2)
    loss.backward()
    torch.testing.assert_close(term.queue, torch.cat([*keys, start[4:]]))
    term(student, momentum, Targets(torch.zeros(2, dtype=torch.long)))
    torch.testing.assert_close(term.queue, torch.cat([keys[1], keys[1], keys[0]]))
    assert term.pushed.item() == 8


def test_contrastive_cassle_as_the_equation():
    p, z = [random(3, 4), random(3, 4, seed=1)], [random(3, 4, seed=2), random(3, 4, seed=3)]
    rows, columns = unit(torch.cat(p)), unit(torch.cat(z))
    similarity = (rows @ columns.T / 0.3).exp()
    forward = -(similarity.diagonal() / similarity.sum(1)).log().mean()
    backward = -(similarity.diagonal() / similarity.sum(0)).log().mean()
    torch.testing.assert_close(cassle(p, z, "contrastive", 0.3), (forward + backward) / 2)


def test_the_other_distances_of_cassle_are_the_losses_of_their_methods():
    p, z = [random(3, 4), random(3, 4, seed=1)], [random(3, 4, seed=2), random(3, 4, seed=3)]
    torch.testing.assert_close(cassle(p, z, "predictive"), (byol(p[0], z[0]) + byol(p[1], z[1])) / 2)
    barlow = [0.1 * cross_correlation(*pair) for pair in zip(p, z)]
    torch.testing.assert_close(cassle(p, z, "decorrelative"), sum(barlow) / 2)
    square = (torch.cat(p) - torch.cat(z)).square().mean()
    torch.testing.assert_close(cassle(p, z, "mse"), square)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 3\)"):
        cassle(p, [view[:, :3] for view in z], "mse")


def test_cassle_takes_the_projector_of_another_objective_and_a_copy_of_it_that_stays():
    torch.manual_seed(0)
    simclr = SimCLR(SimCLR.Settings(hidden=8, dim=4), SHAPES, None)
    term = CaSSLe(CaSSLe.Settings(projector="simclr", hidden=8), SHAPES, SHAPES)
    views, old = ([Features(pooled=random(4, 6, seed=seed))] for seed in (0, 1))
    with pytest.raises(ValueError, match=r"cassle\.projector names another objective"):
        term(views, old, BATCH)
    with pytest.raises(ValueError, match=r"cassle\.projector: simclr: .*with a projector: byol"):
        term.connect({"byol": BYOL(BYOL.Settings(hidden=8, dim=4), SHAPES, SHAPES)})
    term.connect({"simclr": simclr})
    assert not [name for name, _ in term.named_parameters() if "projector" in name], "it is the other objective's"
    target = simclr.projector(old[0].pooled).detach()
    loss = term(views, old, BATCH)
    torch.testing.assert_close(loss, byol(term.predictor(simclr.projector(views[0].pooled)), target))
    loss.backward()
    assert all(p.grad is not None for p in simclr.projector.parameters())
    with torch.no_grad():
        simclr.projector[0].weight += 1
    term.follow(0.0)
    moved = term.predictor(simclr.projector(views[0].pooled))
    torch.testing.assert_close(term(views, old, BATCH), byol(moved, target))
    wide = CaSSLe(CaSSLe.Settings(projector="simclr"), SHAPES, FeatureShapes(3, pooled=9))
    with pytest.raises(ValueError, match="pooled width is 6, the old model's 9"):
        wide.connect({"simclr": simclr})


def test_a_copy_that_follows_is_in_the_state_and_a_projector_keeps_no_running_statistics():
    module = mlp([6, 8, 4])
    copied = Following(module)
    assert {name.replace("_", ".") for name in copied.state_dict()} == set(module.state_dict())
    assert not list(module.buffers()) and module[0].bias is None and module[-1].bias is not None
    assert mlp([6, 4], bias=False)[0].bias is None
