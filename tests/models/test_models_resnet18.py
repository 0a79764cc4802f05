"""ResNet-18 for small images: its size, its maps, and timm's contract."""

import torch

from distill.models.network import timm_with_own_models


def test_size_and_maps() -> None:
    model = timm_with_own_models().create_model("resnet18_cifar", num_classes=0, in_chans=3).eval()
    assert sum(p.numel() for p in model.parameters()) == 11_168_832
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert model(x).shape == (1, 512) and torch.equal(final, maps[-1])
    assert [each.shape[-1] for each in maps] == [32, 32, 16, 8, 4]
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
