"""The CIFAR networks: sizes, names of public checkpoints, the forward pass from those names, timm's contract."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.export.targets.timm_folder import write_timm_folder
from distill.models.cifar import NETWORKS, PADDED
from distill.models.network import create_network, extract, timm_with_own_models
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.student import Student

NAMES = [f"{name}_cifar" for name in NETWORKS]
FEW = ["resnet20_cifar", "resnet8x4_cifar", "wrn_16_2_cifar", "vgg8_cifar"]
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
}


PADDED_SIZES = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}


def make(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm_with_own_models().create_model(name, **arguments).eval()
    for module in model.modules():  # a batch norm that is the identity would hide one that is left out
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_the_published_ones(name: str) -> None:
    model = timm_with_own_models().create_model(f"{name}_cifar")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PADDED)
def test_sizes_with_padded_shortcuts_are_the_published_ones(name: str) -> None:
    model = timm_with_own_models().create_model(f"{name}_cifar10")
    assert sum(p.numel() for p in model.parameters()) == PADDED_SIZES[name]


class Reference:
    """The networks as functions of a checkpoint's tensors, written from the names alone."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state, self.used = state, set()

    def tensor(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return self.state[name]

    def conv(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = self.tensor(f"{name}.weight")
        bias = self.tensor(f"{name}.bias") if f"{name}.bias" in self.state else None
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[2] // 2)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            self.tensor(f"{name}.{part}")[:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        self.used.add(f"{name}.num_batches_tracked")
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x.mean((2, 3)) @ self.tensor(f"{name}.weight").T + self.tensor(f"{name}.bias")

    def resnet(self, x: torch.Tensor, blocks: int) -> torch.Tensor:
        x = self.norm(self.conv(x, "conv1"), "bn1").relu()
        for layer in (1, 2, 3):
            for block in range(blocks):
                at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                shortcut = x
                if "linear.weight" in self.state and stride == 2:
                    zeros = torch.zeros_like(x[:, ::2, ::2, ::2])
                    shortcut = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
                if f"{at}.downsample.0.weight" in self.state:
                    shortcut = self.norm(self.conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
                y = self.norm(self.conv(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
                x = (self.norm(self.conv(y, f"{at}.conv2"), f"{at}.bn2") + shortcut).relu()
        return self.linear(x, "linear" if "linear.weight" in self.state else "fc")

    def wrn(self, x: torch.Tensor, blocks: int) -> torch.Tensor:
        x = self.conv(x, "conv1")
        for layer in (1, 2, 3):
            for block in range(blocks):
                at, stride = f"block{layer}.layer.{block}", 2 if layer > 1 and block == 0 else 1
                active = self.norm(x, f"{at}.bn1").relu()
                wider = f"{at}.convShortcut.weight" in self.state
                shortcut = self.conv(active, f"{at}.convShortcut", stride) if wider else x
                y = self.norm(self.conv(active, f"{at}.conv1", stride), f"{at}.bn2").relu()
                x = self.conv(y, f"{at}.conv2") + shortcut
        return self.linear(self.norm(x, "bn1").relu(), "fc")

    def vgg(self, x: torch.Tensor, convs: int) -> torch.Tensor:
        for block in range(5):
            x = F.max_pool2d(x, 2) if block in (1, 2, 3) else x
            for number in range(convs):
                x = self.norm(self.conv(x, f"block{block}.{3 * number}"), f"block{block}.{3 * number + 1}").relu()
        return self.linear(x, "classifier")


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [
        ("resnet20", "resnet", 3),
        ("resnet8x4", "resnet", 1),
        ("wrn_16_2", "wrn", 2),
        ("wrn_40_1", "wrn", 6),
        ("vgg8", "vgg", 1),
        ("vgg13", "vgg", 2),
    ],
)
def test_the_forward_pass_is_the_one_of_the_checkpoints_names(name: str, kind: str, blocks: int) -> None:
    model, x = make(f"{name}_cifar"), torch.randn(2, 3, 32, 32)
    reference = Reference(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x), getattr(reference, kind)(x, blocks), rtol=1e-3, atol=1e-4)
    assert reference.used == model.state_dict().keys()


@pytest.mark.parametrize("name", FEW)
def test_they_keep_timms_contract(name: str) -> None:
    model, x = make(name, num_classes=5), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        features = extract(model, x, frozenset({"logits", "pooled", "maps"}))
    torch.testing.assert_close(features.logits, logits)
    assert features.pooled.shape == (2, model.num_features)
    assert list(features.maps) == [info["module"] for info in model.feature_info]
    for info, map_ in zip(model.feature_info, features.maps.values()):
        assert map_.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
    backbone = timm_with_own_models().create_model(name, features_only=True, out_indices=(0, 1))
    assert [tuple(m.shape[:2]) for m in backbone(x)] == [(2, c) for c in backbone.feature_info.channels()]
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", FEW)
def test_a_checkpoint_file_and_a_students_way_out(name: str, tmp_path: Path) -> None:
    published = make(name)
    torch.save({"model": published.state_dict(), "epoch": 240}, tmp_path / "checkpoint.pth")
    settings = NetworkSettings(model=name, checkpoint=tmp_path / "checkpoint.pth")
    network = create_network(settings)
    assert network.architecture == name and network.input.size == (32, 32)
    x = torch.randn(2, 3, 32, 32)
    student = Student(network, LearningSettings(train="full"))
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(x).logits, published(x), rtol=1e-4, atol=1e-4)
        write_timm_folder(tmp_path / "out", student.model, origin="random")
        assert "import distill.models.cifar" in (tmp_path / "out" / "README.md").read_text()
        again = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'out'}")).model
        torch.testing.assert_close(again(x), published(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar"])
def test_public_checkpoints_with_padded_shortcuts(name: str, tmp_path: Path) -> None:
    """Files of the well-known family for CIFAR-10: parallel training, a head called ``linear``, no counted batches."""
    state = make("resnet20_cifar10").state_dict()
    state = {key.replace("fc.", "linear."): t for key, t in state.items() if "num_batches_tracked" not in key}
    published = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": published, "best_prec1": 91.7}, tmp_path / "resnet20-12fca82f.th")
    made = create_network(NetworkSettings(model=name, checkpoint=tmp_path / "resnet20-12fca82f.th"))
    assert made.architecture == "resnet20_cifar10" and made.model.num_classes == 10
    assert made.input.mean == (0.485, 0.456, 0.406) and made.input.size == (32, 32)
    assert bool(made.notes) == (name == "resnet20_cifar")
    x, reference = torch.randn(2, 3, 32, 32), Reference(state)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), reference.resnet(x, 3), rtol=1e-3, atol=1e-4)
        write_timm_folder(tmp_path / "out", made.model, origin="random")
        again = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'out'}"))
        torch.testing.assert_close(again.model(x), made.model(x))
    assert again.input == made.input


def test_convolutional_shortcuts_under_their_other_name(tmp_path: Path) -> None:
    source = make("resnet20_cifar", num_classes=10)
    state = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): t for key, t in source.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    made = create_network(NetworkSettings(model="resnet20_cifar", checkpoint=tmp_path / "w.pth"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), source(x))
