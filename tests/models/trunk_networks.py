"""Small networks that share their first layers, and a comparison with each of them alone."""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.models.shared_trunk import SharedTrunk


class Layer(nn.Linear):
    """Says whenever it is computed."""

    computed: ClassVar[list["Layer"]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.computed.append(self)
        return super().forward(x)


class Net(nn.Module):
    """stem → ReLU in place → body → head, and the stem's output once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.body, self.head = Layer(4, 4), nn.ReLU(inplace=True), Layer(4, 4), Layer(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        y = self.act(early)
        return self.head(self.body(y) + early)


def pair() -> tuple[Net, Net]:
    """Two networks that differ in their heads."""
    torch.manual_seed(0)
    teacher = Net().eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    student.head.requires_grad_(True)
    nn.init.normal_(student.head.weight)
    return teacher, student


def plain(module: nn.Module) -> Any:
    """Frozen, in eval mode."""
    return module.eval().requires_grad_(False)


def run_all(*networks: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    x = images() if x is None else x
    with torch.no_grad():
        seen = [network(x) for network in networks[:-1]]
    return [*seen, networks[-1](x)]


def tried(*networks: nn.Module) -> SharedTrunk:
    trunk = SharedTrunk(networks)
    trunk.try_out(lambda: run_all(*networks))
    return trunk


def images() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def assert_as_alone(trunk: SharedTrunk, *networks: nn.Module) -> list[Any]:
    """Outputs and gradients with the trunk are those without it; returns the layers that were computed with it."""
    expected = run_all(*networks)
    with trunk:
        Layer.computed.clear()
        actual = run_all(*networks)
        computed = list(Layer.computed)
    for own, reference in zip(actual, expected, strict=True):
        assert torch.equal(own, reference)
    student = [p for p in networks[-1].parameters() if p.requires_grad]
    pairs = zip(*(torch.autograd.grad(outputs[-1].square().sum(), student) for outputs in (actual, expected)))
    assert all(torch.equal(own, reference) for own, reference in pairs)
    return computed
