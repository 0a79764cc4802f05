"""Further ways to invariance: dense features, the information bottleneck, a discriminator."""

import math

import pytest
import torch
from torch import nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.adversarial import Adversarial, reversed_gradient
from distill.objectives.base import Targets
from distill.objectives.dense import dense
from distill.objectives.vib import VIB, code_length

SHAPES = FeatureShapes(3, 4), FeatureShapes(3, 5)
BATCH = Targets(torch.zeros(6, dtype=torch.long), torch.arange(6))


def features(seed: int = 0) -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, width, generator=generator) for width in (4, 5))
    return Features(pooled=student.requires_grad_()), Features(pooled=teacher)


# --- Dense --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "mse", "whitened_mse"])
def test_dense_is_the_pooled_distance_at_every_place(distance):
    from distill.objectives.pooled import pooled

    student, teacher = torch.randn(2, 3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    places = [pooled(student[:, :, y, x], teacher[:, :, y, x], distance) for y in range(2) for x in range(4)]
    torch.testing.assert_close(dense(student, teacher, distance).mean(), torch.stack(places).mean())


def test_dense_on_paper():
    """At right angles, at half of that, the same way, opposite: 1 - cos is 1, 1 - √½, 0 and 2."""
    student = torch.tensor([[1.0, 1.0, 3.0, 1.0], [0.0, 1.0, 0.0, 0.0]]).view(1, 2, 2, 2)
    teacher = torch.tensor([[0.0, 1.0, 2.0, -4.0], [1.0, 0.0, 0.0, 0.0]]).view(1, 2, 2, 2)
    torch.testing.assert_close(dense(student, teacher), torch.tensor([(4 - 0.5**0.5) / 4]))


def test_dense_brings_the_student_to_the_teachers_grid():
    teacher = torch.randn(2, 5, 3, 3)
    large = teacher.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert dense(teacher, teacher).abs().max().item() == pytest.approx(0, abs=1e-6)
    shrunk = nn.functional.interpolate(large, (3, 3), mode="bilinear", antialias=True)
    torch.testing.assert_close(dense(large, teacher, "mse"), (shrunk - teacher).square().mean((1, 2, 3)))


# --- VIB ----------------------------------------------------------------------------------------------------------


def test_code_length_equals_the_divergence_of_gaussians():
    mean, variance = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    code = torch.distributions.Normal(mean, variance.sqrt())
    expected = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(code_length(mean, variance), expected)
    assert code_length(torch.zeros(2, 3), torch.ones(2, 3)) == 0


def test_the_noise_belongs_to_sample_and_step():
    student, teacher = features()
    terms = []
    for _ in range(2):
        torch.manual_seed(0)
        terms.append(VIB(VIB.Settings(dim=3), *SHAPES))
    first, second = (term(student, teacher, BATCH).item() for term in terms)
    assert first == second, "nothing is drawn from a global generator"
    assert terms[0](student, teacher, BATCH).item() != first, "the next step draws anew"
    noise = terms[0]._noise(torch.arange(2000), 16)
    assert abs(noise.mean().item()) < 0.02 and noise.std().item() == pytest.approx(1, abs=0.02)


def test_a_code_without_bits_costs_nothing_and_says_nothing():
    torch.manual_seed(0)
    term = VIB(VIB.Settings(dim=3, beta=1.0), *SHAPES)
    for layer, bias in ((term.mean, 0.0), (term.spread, 1 + math.log(math.e - 1))):  # softplus of it is 1
        nn.init.zeros_(layer.weight), nn.init.constant_(layer.bias, bias)
    nn.init.zeros_(term.decoder.weight), nn.init.zeros_(term.decoder.bias)
    student, teacher = features()
    assert term(student, teacher, BATCH).item() == pytest.approx(1, abs=1e-4), "cosine 0 to everything, 0 nats"


def test_vib_is_the_error_of_the_noisy_code_and_its_length():
    from distill.objectives.pooled import pooled

    torch.manual_seed(0)
    term = VIB(VIB.Settings(dim=3, beta=0.5, distance="mse"), *SHAPES)
    student, teacher = features()
    mean, spread = term.mean(student.pooled), nn.functional.softplus(term.spread(student.pooled) - 1) + 1e-6
    noise = term._noise(BATCH.index, 3)
    term.steps.zero_()
    error = pooled(term.decoder(mean + spread * noise), teacher.pooled, "mse")
    length = 0.5 * (mean**2 + spread**2 - 1 - (spread**2).log()).sum(1).mean()
    torch.testing.assert_close(term(student, teacher, BATCH), error + 0.5 * length)


# --- Adversarial --------------------------------------------------------------------------------------------------


def adversarial(**settings) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(Adversarial.Settings(hidden=8, **settings), *SHAPES)


def gradients(loss: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def test_an_undecided_discriminator_costs_log_two_each():
    term = adversarial(regularizer="none")
    nn.init.zeros_(term.discriminator[-1].weight), nn.init.zeros_(term.discriminator[-1].bias)
    assert term(*features(), BATCH).item() == pytest.approx(3 * math.log(2))
    term.settings = Adversarial.Settings(mode="reversed", regularizer="none")
    assert term(*features(), BATCH).item() == pytest.approx(2 * math.log(2))


def test_alternating_gives_each_side_its_own_gradient():
    term, (student, teacher) = adversarial(regularizer="none"), features()
    loss = term(student, teacher, BATCH)
    fake, judge = term.projector(student.pooled), term.discriminator
    of_judge = nn.functional.softplus(-judge(teacher.pooled)).mean() + nn.functional.softplus(judge(fake)).mean()
    of_student = nn.functional.softplus(-judge(fake)).mean()
    torch.testing.assert_close(gradients(loss, judge), gradients(of_judge, judge))
    torch.testing.assert_close(gradients(loss, term.projector), gradients(of_student, term.projector))


def test_reversed_turns_the_students_gradient_round():
    term, (student, teacher) = adversarial(mode="reversed", regularizer="none"), features()
    loss, judge = term(student, teacher, BATCH), term.discriminator
    plain = term.discriminate(term.projector(student.pooled), teacher.pooled).mean()
    torch.testing.assert_close(gradients(loss, judge), gradients(plain, judge))
    turned = [-g for g in gradients(plain, term.projector)]
    torch.testing.assert_close(gradients(loss, term.projector), turned)
    x = torch.randn(3, requires_grad=True)
    reversed_gradient(x, 0.5).sum().backward()
    assert x.grad.tolist() == [-0.5] * 3


def test_r1_is_the_squared_slope_on_the_teachers_features():
    term, (student, teacher) = adversarial(regularizer="r1", r1=4.0), features()
    fake, real = term.projector(student.pooled), teacher.pooled
    actual = term.discriminate(fake, real).mean()
    slopes = torch.func.vmap(torch.func.grad(lambda x: term.discriminator(x).squeeze()))(real)
    term.settings = Adversarial.Settings(regularizer="none")
    expected = term.discriminate(fake, real).mean() + 4 / 2 * slopes.square().sum(1).mean()
    torch.testing.assert_close(actual, expected)
    assert any(g.abs().sum() > 0 for g in gradients(actual - expected.detach(), term.discriminator))


def test_spectral_norm_bounds_the_slope():
    term = adversarial()
    with torch.no_grad():
        for layer in (term.discriminator[0], term.discriminator[2], term.discriminator[4]):
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(50):
        term(*features(), BATCH)
    for layer in (term.discriminator[0], term.discriminator[2], term.discriminator[4]):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.05)


def test_the_discriminator_learns_to_tell_them_apart():
    term, (student, teacher) = adversarial(), features()
    optimizer = torch.optim.Adam(term.discriminator.parameters(), lr=0.02)
    fake = term.projector(student.pooled).detach() - 2
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = term.discriminate(fake, teacher.pooled).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
