"""LeNet: its size, timm's contract, other sizes, and deltas on it."""

from pathlib import Path

import pytest
import torch

from distill.export.targets.timm_folder import write_timm_folder
from distill.models.network import create_network, extract, timm_with_own_models
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.student import Student


def test_size_and_timms_contract() -> None:
    model = timm_with_own_models().create_model("lenet_20_50", num_classes=7).eval()
    head = sum(p.numel() for p in model.get_classifier().parameters())
    assert sum(p.numel() for p in model.parameters()) - head == 1_430_610 and head == 7 * 501
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (2, 50, 5, 5) and model.forward_head(maps, pre_logits=True).shape == (2, 500)
        final, shallow = model.forward_intermediates(x)
        assert torch.equal(final, maps) and [each.shape[1] for each in shallow] == [20, 50]
        features = extract(model, x, frozenset({"logits", "pooled", "maps"}))
        assert features.pooled is not None and features.pooled.shape == (2, 500)
        assert features.logits is not None and torch.equal(features.logits, model(x))
        assert len(timm_with_own_models().create_model("lenet_20_50", features_only=True)(x)) == 2
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def test_another_input_and_deltas() -> None:
    network = create_network(
        NetworkSettings(model="lenet_20_50", pretrained=False, size=28, in_chans=1, mean=(0.5,), std=(0.5,)), 10
    )
    student = Student(network, LearningSettings(deltas=({"type": "halrp", "rank": 2, "sites": "*"},)))  # type: ignore[arg-type]
    assert [site.name for site in student.sites] == ["block1.0", "block2.0", "hidden1.0", "hidden2.0"]
    assert student.train()(torch.randn(2, 1, 28, 28)).logits.shape == (2, 10)
    with pytest.raises(ValueError, match="16 pixels or more, not 12"):
        timm_with_own_models().create_model("lenet_20_50", img_size=12)


@pytest.mark.parametrize("size", [None, 28])
def test_a_timm_folder_of_it_is_read(size: int | None, tmp_path: Path) -> None:
    """JSON turns height and width into a list."""
    made = create_network(NetworkSettings(model="lenet_20_50", pretrained=False, size=size), 10)
    write_timm_folder(tmp_path / "folder", made.model, origin="random")
    read = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'folder'}", size=size))
    x = torch.randn(2, 3, size or 32, size or 32)
    assert torch.equal(read.model.eval()(x), made.model.eval()(x))
