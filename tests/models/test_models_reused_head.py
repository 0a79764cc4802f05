"""A network with another one's head: what it computes, and that every file and loader gives it back."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, whole_state
from distill.export.checksummed import ExportError
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import load_delta, read_delta, save_delta
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.fingerprint import fingerprint
from distill.models.network import NetworkError, NetworkSettings, create_network, timm_with_own_models
from distill.models.reused_head import as_map, enlargement, reuse_head, reused
from distill.models.settings import ReusedHead

HEAD = ReusedHead(width=10, factor=2)


def network(name: str = "test_resnet", seed: int = 0, head: ReusedHead | None = HEAD) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=3).eval()
    if head is not None:
        reuse_head(model, head)
    return model


def trained(seed: int) -> nn.Module:
    """With deltas, and values and statistics that a training might leave."""
    model = network()
    attach(model, [LowRank.Settings(rank=2)], exclude_head=classifier_names(model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad or name.startswith("fc"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    model.reused_head.train()
    model(images(seed))
    return model.eval()


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def write(model: nn.Module, folder: Path) -> Path:
    plain = network(head=None)
    save_delta(folder, model, fingerprint(backbone_state(plain, classifier_names(plain))), origin="seed 0")
    return folder


def test_logits_are_classifier_after_pooling_after_three_convs() -> None:
    model, x = network(), images()
    first, norm_1, _, second, norm_2, _, three, norm_3 = model.reused_head.convs
    wide = model.num_features
    assert [tuple(c.weight.shape) for c in (first, second, three)] == [(5, wide, 1, 1), (5, 5, 3, 3), (10, 5, 1, 1)]
    map_ = model.forward_features(x)
    hidden = torch.relu(norm_1(torch.einsum("oi,bihw->bohw", first.weight[..., 0, 0], map_)))
    hidden = torch.relu(norm_2(nn.functional.conv2d(hidden, second.weight, padding=1)))
    pooled = norm_3(torch.einsum("oi,bihw->bohw", three.weight[..., 0, 0], hidden)).mean((2, 3))
    torch.testing.assert_close(model.forward_head(map_, pre_logits=True), pooled)
    torch.testing.assert_close(model(x), pooled @ model.fc.weight.T + model.fc.bias)
    assert not model.fc.weight.requires_grad and model.get_classifier() is model.fc
    assert "width=10, factor=2, classifier=fc" in repr(model.reused_head)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "swin_tiny"])
def test_the_map_of_any_family(name: str) -> None:
    if name == "swin_tiny":
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=12, num_classes=3
        ).eval()
        x = images()
    else:
        model = network(name, head=None)
        size = model.pretrained_cfg["input_size"][-1]
        x = torch.randn(2, 3, size, size)
    features = model.forward_features(x)
    map_ = as_map(model, features)
    if name == "test_vit":
        side = model.patch_embed.grid_size[0]
        torch.testing.assert_close(map_[:, :, 1, 2], features[:, 1 + side + 2])
    elif name == "swin_tiny":
        torch.testing.assert_close(map_[:, :, 1, 0], features[:, 1, 0])
    else:
        assert map_ is features
    reuse_head(model, HEAD)
    assert model(x).shape == (len(x), 3)
    model.reset_classifier(7)
    assert model(x).shape == (len(x), 7) and model.num_classes == 7


def test_what_cannot_take_it_is_named() -> None:
    with pytest.raises(NetworkError, match="test_resnet already has the head of another network"):
        reuse_head(network(), HEAD)
    with pytest.raises(NetworkError, match="no classifier that is one linear layer"):
        reuse_head(timm.create_model("test_resnet", num_classes=0), HEAD)
    model = network(head=None)
    with pytest.raises(NetworkError, match=r"neither a map .* nor tokens on a grid"):
        as_map(model, torch.zeros(2, 7, 5))


def test_it_says_by_how_much_it_enlarges_the_network() -> None:
    plain, model = network(head=None), network()
    larger, wide = enlargement(model), plain.num_features
    own, now = (sum(p.numel() for p in m.parameters()) for m in (plain, model))
    assert larger.parameters == now - own == 5 * wide + 25 * 9 + 50 + 2 * 20 + 33 - 3 * (wide + 1)
    sizes = [sum(t.numel() * t.element_size() for t in m.state_dict().values()) for m in (plain, model)]
    assert larger.bytes == sizes[1] - sizes[0] and larger.fraction == pytest.approx(sizes[1] / sizes[0] - 1)
    assert f"{larger.parameters:,} parameters, {larger.bytes:,} bytes" in str(larger)
    assert enlargement(plain) is None and reused(plain) is None and reused(model) == HEAD


def test_a_copy_is_a_network_of_its_own() -> None:
    model = network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.zero_()
        other.reused_head.convs[0].weight.zero_()
    assert not torch.equal(model(images()), other(images()))
    assert other(images()).equal(other.fc.bias.expand(4, 3))


def test_the_delta_file_gives_it_back_on_the_plain_backbone(tmp_path: Path) -> None:
    student = trained(1)
    folder = write(student, tmp_path / "delta")
    manifest, tensors = read_delta(folder)
    assert (manifest.architecture, manifest.head) == ("test_resnet", HEAD)
    assert {"head/reused_head.convs.1.running_mean", "head/fc.weight"} <= tensors.keys()
    backbone = network(head=None)
    assert load_delta(folder, backbone)(images()).equal(student(images()))
    assert not hasattr(backbone, "reused_head")
    with pytest.raises(ExportError, match="already has the head of another network"):
        load_delta(folder, network())


def test_a_bank_serves_two_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    students = {str(seed): trained(seed) for seed in (1, 2)}
    tasks = DeltaBank(network(head=None))
    for name, student in students.items():
        tasks.add(name, write(student, tmp_path / name))
    both = images()[:2]
    for logits, image, name in zip(tasks.batch(both, ["2", "1"]), both, ("2", "1")):
        torch.testing.assert_close(logits, students[name](image[None])[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(tasks.model(name)(both), tasks.load(name).model(both))
    assert caplog.text.count("a head of another network has no activation form") == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_merged_folder_loads_with_timm_and_can_be_a_backbone_again(name: str, tmp_path: Path) -> None:
    model = trained(1) if name == "test_resnet" else network(name)
    size = model.pretrained_cfg["input_size"][-1]
    write_timm_folder(tmp_path / "merged", model, origin="seed 0")
    x = torch.randn(2, 3, size, size)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert "import distill.models.reused_head_entry" in (tmp_path / "merged" / "README.md").read_text()
    assert tuple(loaded.pretrained_cfg["mean"]) == model.pretrained_cfg["mean"] and reused(loaded) is None

    again = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'merged'}"), num_classes=5).model
    assert all(parameter.requires_grad for parameter in again.parameters()), "a new classifier learns"
    before = fingerprint(backbone_state(again, classifier_names(again)))
    attach(again, [LowRank.Settings(rank=2)], exclude_head=classifier_names(again))
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_delta(tmp_path / "delta", again, before, origin="merged")
    manifest, _ = read_delta(tmp_path / "delta")
    backbone = timm_with_own_models().create_model(manifest.architecture, num_classes=5, **manifest.model_args)
    backbone.load_state_dict(whole_state(again))
    assert manifest.head is None and load_delta(tmp_path / "delta", backbone)(x).equal(again.eval()(x))
