"""Networks for images of 1 to 12 channels, with the first layer that timm makes of a pretrained one."""

from pathlib import Path

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import distill
from augment.base import UserError
from augment.dual import AugmentSettings, DualAugment
from augment.views import InputSpec
from distill.models.channels import declare_channels, input_channels, with_channels
from distill.models.network import as_network, create_network, measure_shapes
from distill.models.settings import NetworkSettings

LITE = "embedded:tf_efficientnet_lite0"


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_the_first_layer_is_the_one_that_timm_makes(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth"), "num_classes": 5}
    expected = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=channels
    )
    settings = NetworkSettings(model="test_vit", checkpoint=tmp_path / "vit.pth", in_chans=channels)
    network = create_network(settings)
    actual = network.model.state_dict()
    assert all(torch.equal(actual[key], value) for key, value in expected.state_dict().items())
    assert len(network.input.mean) == len(network.input.std) == channels
    x = torch.randn(2, channels, *network.input.size)
    torch.testing.assert_close(network.model(x), expected.eval()(x))


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, [0.449]), (2, [0.485, 0.456]), (5, [0.485, 0.456, 0.406, 0.485, 0.456])]
)
def test_the_normalization_is_repeated_as_the_weights_are(channels: int, mean: list[float]) -> None:
    model = timm.create_model("test_resnet", in_chans=channels)
    assert input_channels(model) == channels
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    network = as_network(model)
    assert network.input.mean == pytest.approx(mean, abs=1e-6)
    assert model.pretrained_cfg["input_size"][0] == channels
    measure_shapes(model.eval(), network.input, frozenset({"maps", "pooled", "logits"}))


def test_a_gray_image_gives_what_the_color_image_gave() -> None:
    color = create_network(NetworkSettings(model=LITE, size=64))
    gray = create_network(NetworkSettings(model=LITE, size=64, in_chans=1))
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(gray.model(x), color.model(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)
    same = create_network(NetworkSettings(model=LITE, size=64, in_chans=3))
    assert torch.equal(same.model.conv_stem.weight, color.model.conv_stem.weight) and same.input == color.input


def test_random_networks_and_unsuitable_ones() -> None:
    assert create_network(NetworkSettings(model="test_vit", pretrained=False, in_chans=6)).input.mean.__len__() == 6
    model = timm.create_model("test_resnet")
    model.pretrained_cfg = {**model.pretrained_cfg, "first_conv": None}
    with pytest.raises(UserError, match="the first layer cannot be adapted to 2 channels"):
        with_channels(model, 2, lambda: timm.create_model("test_resnet", in_chans=2))
    declare_channels(model, 3)
    with pytest.raises(ValueError, match="less than or equal to 12"):
        NetworkSettings(model="test_vit", in_chans=13)


def test_an_operation_that_needs_colors_is_named_before_the_first_batch() -> None:
    gray = InputSpec((16, 16), (0.5,), (0.25,))
    with pytest.raises(UserError, match=r"ColorJitter \(operation 1\) needs 3 channels, .* has 1"):
        DualAugment(AugmentSettings(student=[{"type": "ColorJitter", "hue": 0.1}]), (), gray, 0)
    dual = DualAugment(AugmentSettings(student=[{"type": "ColorJitter", "brightness": 0.1}]), (), gray, 0)
    views = dual(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.arange(2), 0)
    assert views.student[0].shape == (2, 1, 16, 16)


def test_a_student_of_other_channels_by_the_api(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=4, in_chans=4)
    student = distill.create_student(model, ["ladder"])
    assert len(student.input.mean) == 4
    assert student(torch.randn(2, 4, 64, 64)).logits.shape == (2, 4)
