"""Sign: packing, the least-squares scale, and the signs of the change in a warm-up."""

import pytest
import torch
from deltas_evidence import Told
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach, deltas
from distill.deltas.sign import Sign, mean_size, pack_signs, unpack_signs


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (4, 2, 3, 3)])
def test_packing_is_exact(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    D = torch.randn(shape)
    bits = pack_signs(D)
    assert bits.dtype == torch.uint8 and len(bits) == -(-D.numel() // 8)
    assert torch.equal(unpack_signs(bits, D), D.sign())


def test_packing_by_hand() -> None:
    D = torch.tensor([1.0, -1, -1, 2, -0.5, -3, -1, -1, 0.0, -1])
    assert pack_signs(D).tolist() == [0b00001001, 0b1]


@pytest.mark.parametrize("kind", CONVS)
def test_it_is_its_equation(kind: str) -> None:
    model, _, delta = conv_case(kind, Sign.Settings())
    weight = model[0].parametrizations.weight.original
    D = torch.randn_like(weight)
    delta.bits.copy_(pack_signs(D))
    expected = weight + delta.scale.view(-1, *[1] * (weight.ndim - 1)) * D.sign()
    torch.testing.assert_close(model[0].weight, expected)


def test_the_mean_size_is_the_closest() -> None:
    torch.manual_seed(0)
    D = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    best = torch.linalg.lstsq(D[1].sign().reshape(-1, 1), D[1].reshape(-1, 1)).solution
    torch.testing.assert_close(mean_size(D)[1], best.squeeze())


def test_it_starts_from_a_free_training_and_takes_little_room() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    calibration = Told(model, {"0": nn.Linear(64, 32)})
    calibration.layers["0"].load_state_dict(model[0].state_dict())
    start = Sign.prepare(Sign.Settings(warm_up=2), calibration)
    assert calibration.asked == [(2, "weights")] and start.warm_start is not None
    D = start.warm_start.weights["0"] - calibration.layers["0"].weight.detach()
    attach(model, start.settings)
    delta = deltas(model)[0].delta
    delta.load_state_dict(start.tensors["0"])
    torch.testing.assert_close(model[0].weight - calibration.layers["0"].weight, D.sign() * mean_size(D)[:, None])
    assert sum(t.numel() * t.element_size() for t in delta.state_dict().values()) == 64 * 32 // 8 + 4 * 32
    assert [name for name, _ in delta.named_parameters()] == ["scale"], "only the sizes are trained"
