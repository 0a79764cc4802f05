"""Deep delta corrector: the operator by hand and token by token, and what its gate does."""

import pytest
import torch
from deltas_models import build, disturb, images

from distill.deltas.attach import attach, deltas
from distill.deltas.blocks import BackboneBlock
from distill.deltas.deep_delta import Corrector, DeepDelta, delta_update, read


def test_by_hand() -> None:
    """k = (0.6, 0.8) reads 2.2 from (1, 2); β = 1 writes 5 in its place, β = 2 goes on to 7.8."""
    X, k, v = torch.tensor([[1.0], [2.0]]), torch.tensor([0.6, 0.8]), torch.tensor([5.0])
    torch.testing.assert_close(read(X, k), torch.tensor([2.2]))
    once = delta_update(X, k, v, torch.tensor(1.0))
    torch.testing.assert_close(once, torch.tensor([[1 + 2.8 * 0.6], [2 + 2.8 * 0.8]]))
    torch.testing.assert_close(read(once, k), v)
    torch.testing.assert_close(read(delta_update(X, k, v, torch.tensor(2.0)), k), torch.tensor([7.8]))
    added = delta_update(X, k, v, torch.tensor(1.0), write_only=True)
    torch.testing.assert_close(added, torch.tensor([[4.0], [6.0]]))
    assert torch.equal(delta_update(X, k, v, torch.tensor(0.0)), X)


def test_the_spectrum_of_the_operator() -> None:
    """Eigenvalues of I − β k kᵀ: 1 − β once, 1 otherwise."""
    k = torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
    for beta in (0.5, 1.0, 2.0):
        eye = torch.eye(5, dtype=torch.float64).unsqueeze(-1)  # the columns of the identity, as five states
        moved = torch.stack([delta_update(e, k, torch.zeros(1, dtype=k.dtype), torch.tensor(beta)) for e in eye])
        values = torch.linalg.eigvalsh(moved.squeeze(-1))
        torch.testing.assert_close(values, torch.tensor([1 - beta, 1, 1, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize(
    "settings", [{}, {"values": 3}, {"values": 2, "gate": "mlp", "value": "sigmoid"}, {"write_only": True}]
)
@pytest.mark.parametrize("layout", ["map", "tokens"])
def test_every_token_is_corrected_by_the_equation(layout: str, settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    options = DeepDelta.Settings(rank=2, gate_hidden=4, **settings)
    place = BackboneBlock("b", (12, 3, 2), 1) if layout == "map" else BackboneBlock("b", (5, 12), -1)
    corrector = Corrector(options, place).double().eval()
    with torch.no_grad():
        for parameter in corrector.parameters():
            parameter += torch.randn_like(parameter)
        y = torch.randn(2, *place.shape, dtype=torch.float64)
        actual = corrector.correct(corrector, (), y).movedim(place.axis, -1).flatten(0, -2)
        for token, got in zip(y.movedim(place.axis, -1).flatten(0, -2), actual, strict=True):
            c = token / (token.square().mean() + 1e-6).sqrt() * corrector.context_gain
            h = corrector.key[1].weight @ (corrector.key[0].weight @ c)
            k = h / (h.square().sum() + 1e-10).sqrt()
            v = corrector.value(c)
            v = 4 / (1 + (-v).exp()) if options.value == "sigmoid" else v
            z = c
            for layer in corrector.gate:
                z = layer(z)
            X = token.view(-1, options.values)
            erased = torch.zeros_like(v) if options.write_only else k @ X
            expected = X + 2 * torch.tanh(z) * torch.outer(k, v - erased)
            torch.testing.assert_close(got, expected.flatten())


def test_figures_are_of_the_last_training_forward() -> None:
    model = build("test_vit")
    (site,) = attach(model, [DeepDelta.Settings()], "head")
    model.eval()
    model(images(2))
    assert site.delta.metrics() == {}
    model.train()
    model(images(2))
    metrics = site.delta.metrics()
    assert metrics["beta"] == 0 and metrics["error"] > 0 and not metrics["error"].requires_grad
    disturb(model)
    model(images(2))
    assert site.delta.metrics()["beta"] != 0


def test_sites_name_blocks_and_stages() -> None:
    model = build("test_convnext")
    attach(model, [DeepDelta.Settings(sites="stages.1*", exclude="stages.1.blocks.0")], ("head.fc",))
    attach(model, [DeepDelta.Settings(sites="stages.2")], ("head.fc",))
    assert [site.delta.names for site in deltas(model)] == [["stages.1.blocks.1"], ["stages.2"]]
