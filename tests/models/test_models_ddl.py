"""Deep Delta Learning's backbones: the residual against its equation, and timm's contract for a network."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distill.export.targets.timm_folder import write_timm_folder
from distill.models.ddl import Compress, DeltaResidual, Expand
from distill.models.network import NetworkError, create_network, extract, timm_with_own_models
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.student import Student

NAMES = ["ddl_resnet", "ddl_vit"]
FORMS = [{}, {"values": 4}, {"values": 3, "gate": "mlp", "value": "sigmoid"}]


def make(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    small = {"depth": 2, "embed_dim": 48} if name == "ddl_vit" else {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
    return timm_with_own_models().create_model(name, num_classes=5, **small, **arguments).eval()


@pytest.mark.parametrize(("values", "gate", "value"), [(1, "linear", "linear"), (3, "mlp", "sigmoid")])
def test_the_residual_is_its_equation(values: int, gate: str, value: str) -> None:
    torch.manual_seed(0)
    d = 6
    residual = DeltaResidual(d, values, gate, value).double()
    state, x, c, h = (torch.randn(2, n, dtype=torch.float64) for n in (d * values, d, d, d))
    got = residual(state, x, c, h)
    for b in range(2):
        X = state[b].view(d, values)
        k = h[b] / (h[b].norm() ** 2 + 1e-10).sqrt()
        layers = residual.gate if gate == "mlp" else [residual.gate]
        logit = c[b]
        for layer in layers:
            logit = layer(logit)
        beta = 2 * logit.sigmoid()
        v = 4 * residual.value(x[b]).sigmoid() if value == "sigmoid" else residual.value(c[b])
        erase = torch.eye(d, dtype=torch.float64) - beta * torch.outer(k, k)
        expected = erase @ X + beta * torch.outer(k, v)
        torch.testing.assert_close(got[b].view(d, values), expected)


def test_print_shows_sizes() -> None:
    assert "dim=6, values=3, gate=mlp, value=sigmoid" in repr(DeltaResidual(6, 3, "mlp", "sigmoid"))
    assert "dim=6, values=1, gate=linear, value=linear" in repr(DeltaResidual(6))
    assert repr(Expand(6, 2)) == "Expand(dim=6, values=2)" and repr(Compress(6, 2)) == "Compress(dim=6, values=2)"


def test_beta_keeps_projects_and_reflects() -> None:
    """By hand: along k = e0 the state (3, 1) becomes 3, 5, 7 as β goes 0, 1, 2 with v = 5; e1 never changes."""
    residual = DeltaResidual(2)
    x = torch.tensor([[3.0, 1.0]])
    with torch.no_grad():
        residual.value.weight.copy_(torch.tensor([[5.0, 0.0]]))
        residual.gate.weight.zero_()
        for logit, expected in ((-40.0, 3.0), (0.0, 5.0), (40.0, 7.0)):
            residual.gate.bias.fill_(logit)
            new = residual(x, x, torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
            torch.testing.assert_close(new, torch.tensor([[expected, 1.0]]))


def test_expansion_and_compression_start_as_the_identity() -> None:
    x = torch.randn(2, 5, 6)
    state = Expand(6, 4)(x)
    assert state.shape == (2, 5, 24) and torch.equal(state.unflatten(-1, (6, 4)), x.unsqueeze(-1).expand(2, 5, 6, 4))
    torch.testing.assert_close(Compress(6, 4)(state), x)
    reader = Compress(1, 5)
    with torch.no_grad():
        reader.window.copy_(torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
        reader.reader.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(reader(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])), torch.tensor([[5432.0]]))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_they_keep_timms_contract(name: str, form: dict[str, object]) -> None:
    model = make(name, **form)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        features = extract(model, x, frozenset({"logits", "pooled", "maps"}))
    torch.testing.assert_close(features.logits, logits)
    assert features.pooled.shape == (2, model.num_features)
    assert [m.shape[1] for m in features.maps.values()] == [info["num_chs"] for info in model.feature_info]
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    backbone = timm_with_own_models().create_model(name, features_only=True, out_indices=(0, 1), **form)
    assert [tuple(m.shape[:2]) for m in backbone(x)] == [(2, c) for c in backbone.feature_info.channels()]
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_they_learn(name: str) -> None:
    model = make(name).train()
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_student_that_is_trained_whole(name: str, tmp_path: Path) -> None:
    settings = NetworkSettings(model=name, pretrained=False, size=64)
    torch.manual_seed(0)
    network = create_network(settings, 5)
    assert network.architecture == name and network.input.size == (64, 64)
    student = Student(network, LearningSettings(train="full"), frozenset({"logits", "pooled", "maps"}))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = student.eval()(x).logits
    write_timm_folder(tmp_path / "out", student.model, origin="random")
    again = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'out'}")).model
    with torch.no_grad():
        torch.testing.assert_close(again(x), logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(NetworkError, match="did you mean 'ddl_vit'"):
        create_network(NetworkSettings(model="ddl_vitt", pretrained=False))
    with pytest.raises(NetworkError, match="set pretrained: false"):
        create_network(NetworkSettings(model=name))
