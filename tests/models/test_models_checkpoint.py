"""Checkpoints that people have: timm's, Lightning's, wrapped, of another size, without a head, of older versions."""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from lightning.fabric.utilities.data import AttributeDict
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.models.weights import NetworkError

VIT = "test_vit"


def make(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    for parameter in model.parameters():  # layer scales of zero would hide a block that is not loaded
        nn.init.normal_(parameter, std=0.1)
    return model


def network(model: str, file: Path, classes: int | None = None, **settings: object) -> Network:
    return create_network(NetworkSettings(model=model, checkpoint=file, **settings), classes)


def refused(model: str, file: Path, **settings: object) -> str:
    with pytest.raises(NetworkError) as error:
        network(model, file, **settings)
    return str(error.value)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_equal(made: nn.Module, source: nn.Module, size: int = 64) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(made(x), source(x), rtol=1e-4, atol=1e-4)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


# --- Who wrote the file -------------------------------------------------------------------------------------------


def test_model_best_of_timms_training_script(tmp_path: Path) -> None:
    source, options = make(VIT, num_classes=5, img_size=96), ["--model", VIT]
    args = argparse.Namespace(
        model=VIT, num_classes=5, img_size=96, input_size=None, mean=[0.4, 0.4, 0.4], std=None, x=options
    )
    optimizer = torch.optim.AdamW(source.parameters())
    ema = ModelEmaV3(source)
    with torch.no_grad():
        for parameter in source.parameters():  # so that the average is another model
            parameter.add_(1)
    saver = CheckpointSaver(source, optimizer, args, ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    made = network(VIT, tmp_path / "model_best.pth.tar")
    assert made.input.size == (96, 96) and made.input.mean == (0.4, 0.4, 0.4) and made.input.std == (0.5, 0.5, 0.5)
    assert_equal(made.model, ema.module, 96)
    assert "'state_dict_ema.' are read" in made.notes[0] and "'state_dict.' fit too" in made.notes[0]
    assert_equal(network(VIT, tmp_path / "model_best.pth.tar", prefix="state_dict").model, source, 96)
    told = refused("test_resnet", tmp_path / "model_best.pth.tar")
    assert "none of its names is one of test_resnet: it has cls_token, pos_embed, " in told
    assert "(names after 'state_dict_ema.')" in told and told.endswith(f"it was written by a training of {VIT}")


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    source = make(VIT, num_classes=5)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(source.state_dict(), "model."), "criterion.weight": torch.ones(5)},
        "callbacks": {
            "ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": tmp_path, "best": np.float64(1)}
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=0.1, sizes=np.arange(3)),
    }
    made = network(VIT, saved(content, tmp_path / "last.ckpt"))
    assert_equal(made.model, source, 160)
    assert made.notes == ("last.ckpt: 1 tensors outside 'state_dict.model.' are not read: state_dict.criterion.weight",)


PREFIXES = (
    "module. _orig_mod. module._orig_mod. _orig_mod.module. model. student. backbone. student.backbone. net.model."
)


@pytest.mark.parametrize("prefix", [*PREFIXES.split(), "feature_extractor.trunk."])
def test_prefixes_of_names(prefix: str, tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    save_file(prefixed(source.state_dict(), prefix), tmp_path / "w.safetensors")
    made = network("test_resnet", tmp_path / "w.safetensors")
    assert made.model.num_classes == 5 and not made.notes
    assert_equal(made.model, source)


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "model_ema"])
def test_keys_of_weights(key: str, tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    made = network("test_resnet", saved({key: source.state_dict(), "acc": 0.5}, tmp_path / "w.pth"))
    assert_equal(made.model, source)


def test_several_networks_in_a_file_are_an_error_until_one_is_chosen(tmp_path: Path) -> None:
    student, teacher = make("test_resnet", num_classes=5), make("test_resnet", num_classes=5)
    nn.init.ones_(teacher.fc.bias)
    state = prefixed(student.state_dict(), "student.") | prefixed(teacher.state_dict(), "teacher.")
    file = saved({"state_dict": state}, tmp_path / "w.ckpt")
    told = refused("test_resnet", file)
    assert "the tensors of 'state_dict.student.', 'state_dict.teacher.' fit; set the key prefix to one of them" in told
    for prefix in ("state_dict.teacher.", "teacher."):
        assert_equal(network("test_resnet", file, prefix=prefix).model, teacher)
    assert "did you mean 'state_dict.teacher." in refused("test_resnet", file, prefix="state_dict.techer.")
    # Two equal copies are no question.
    state = prefixed(student.state_dict(), "student.") | prefixed(student.state_dict(), "teacher.")
    assert_equal(network("test_resnet", saved(state, file)).model, student)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_code_in_a_file_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "it ran"))
    state = make("test_resnet").state_dict()
    told = refused(
        "test_resnet", saved({"state_dict": state, "args": argparse.Namespace(x=Evil())}, tmp_path / "evil.pth")
    )
    assert "holds more than plain tensors" in told and "posix.mkdir" in told
    assert "timm.models.resnet.ResNet" in refused("test_resnet", saved(make("test_resnet"), tmp_path / "module.pth"))
    assert not (tmp_path / "it ran").exists()
    assert "is a folder, and checkpoint: takes a file" in refused("test_resnet", tmp_path)


# --- Another size -------------------------------------------------------------------------------------------------


def loaded_by_timm(file: Path, name: str, **arguments: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own way to index tensors
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments).eval()


def test_a_vit_of_another_size(tmp_path: Path) -> None:
    source = make(VIT, img_size=96, num_classes=1000)
    file = saved({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    assert_equal(network(VIT, file, size=96).model, source, 96)
    for size in (160, 128):
        made = network(VIT, file, size=size)
        assert made.input.size == (size, size)
        assert_equal(made.model, loaded_by_timm(file, VIT, img_size=size), size)
        assert "pos_embed was resampled from 1 x 37 x 64 to 1 x " in made.notes[0]
    assert network(VIT, file).input.size == (160, 160)


SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
"""A small Swin, which timm's training script makes by ``--model-kwargs``."""


def test_a_swin_of_another_size_and_of_older_names(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    source = make(name, img_size=256, window_size=8, **SWIN)
    args = argparse.Namespace(model=name, model_kwargs=SWIN)
    file = saved({"state_dict": source.state_dict(), "args": args}, tmp_path / "w.pth")
    made = network(name, file)
    assert_equal(made.model, loaded_by_timm(file, name, **SWIN), 224)
    assert "relative_position_bias_table and 3 more tensors were resampled from 225 x 1 to 169 x 1" in made.notes[0]
    source = make(name, **SWIN)
    state = source.state_dict() | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    for stage in (1, 2, 3):  # as the original code numbers the stages
        for part in ("reduction.weight", "norm.weight", "norm.bias"):
            state[f"old.{stage - 1}.downsample.{part}"] = state.pop(f"layers.{stage}.downsample.{part}")
    state = {key.replace("old.", "layers.").replace("head.fc.", "head."): tensor for key, tensor in state.items()}
    assert_equal(network(name, saved({"model": state, "args": args}, file)).model, source, 224)


@pytest.mark.slow
def test_the_size_that_fits_is_told_where_timm_cannot_resample(tmp_path: Path) -> None:
    name = "mixer_s32_224"
    source = make(name, img_size=96, num_classes=5)
    file = saved({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    told = refused(name, file)
    assert "  blocks.0.mlp_tokens.fc1.weight is (256, 9), the model has (256, 49)" in told
    assert told.endswith("size: 96 fits")
    assert_equal(network(name, file, size=96).model, source, 96)


# --- What is missing or called otherwise --------------------------------------------------------------------------


def test_files_without_a_head(tmp_path: Path) -> None:
    source = make("test_resnet")
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("fc.")}
    file = saved(prefixed(state, "backbone."), tmp_path / "w.pth")
    made = network("test_resnet", file, 7)
    assert made.model.num_classes == 7 and made.notes == ("w.pth has no head",)
    bare = network("test_resnet", file)
    source.reset_classifier(0)
    assert_equal(bare.model, source)


@pytest.mark.parametrize("head", ["head.fc", "linear", "cls_head.fc", "last_linear"])
def test_heads_of_other_names_and_places(head: str, tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    state = prefixed(source.state_dict(), "backbone.")
    for part in ("weight", "bias"):
        state[f"{head}.{part}"] = state.pop(f"backbone.fc.{part}")
    made = network("test_resnet", saved({"state_dict": state}, tmp_path / "w.pth"))
    assert_equal(made.model, source)
    assert not made.notes


def test_a_file_from_before_batches_were_counted(tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    state = {key: tensor for key, tensor in source.state_dict().items() if "num_batches_tracked" not in key}
    assert_equal(network("test_resnet", saved(state, tmp_path / "w.pth")).model, source)
    del state["bn1.running_mean"]
    assert refused("test_resnet", saved(state, tmp_path / "w.pth")).splitlines()[1:] == ["  missing bn1.running_mean"]


def test_half_precision_and_the_buffers_of_a_profiler(tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5).half()
    state = source.state_dict() | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)}
    made = network("test_resnet", saved(state, tmp_path / "w.pth"))
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert_equal(made.model, source.float())


def test_names_of_the_original_authors(tmp_path: Path) -> None:
    """A ConvNeXt under the names of its authors' code, and a ViT from when patches were a linear layer."""
    source = make("test_convnext", num_classes=5)
    state = {}
    for key, tensor in source.state_dict().items():
        for new, old in {
            "stem.": "downsample_layers.0.",
            "head.norm.": "norm.",
            "head.fc.": "head.",
            "conv_dw.": "dwconv.",
            "mlp.fc1.": "pwconv1.",
            "mlp.fc2.": "pwconv2.",
        }.items():
            key = key.replace(new, old)
        parts = key.split(".")
        if "blocks" in parts:
            parts.remove("blocks")
        if "downsample" in parts:
            parts = ["downsample_layers", parts[1], *parts[3:]]
        state[".".join(parts)] = tensor
    assert_equal(network("test_convnext", saved({"model": state}, tmp_path / "w.pth")).model, source)
    source = make(VIT, num_classes=5)
    state = source.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    assert_equal(network(VIT, saved(state, tmp_path / "w.pth")).model, source, 160)


@pytest.mark.parametrize(("name", "size"), [("eva02_tiny_patch14_224", 224), ("repvit_m0_9", 64)])
def test_a_head_where_timm_creates_none_or_one_of_another_form(name: str, size: int, tmp_path: Path) -> None:
    source = make(name, num_classes=5)
    assert_equal(network(name, saved(source.state_dict(), tmp_path / "w.pth")).model, source, size)


def test_a_normalization_of_its_own(tmp_path: Path) -> None:
    file = saved(make("test_resnet").state_dict(), tmp_path / "w.pth")
    made = network("test_resnet", file, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert made.input.mean == (0.1, 0.2, 0.3) == tuple(made.model.pretrained_cfg["mean"])
    assert made.input.std == (1, 1, 1)
    assert "mean has 1 values, and the input 3 channels" in refused("test_resnet", file, mean=(0.1,))


def test_a_network_of_other_channels(tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5, in_chans=4)
    file = saved(prefixed(source.state_dict(), "model."), tmp_path / "w.pth")
    made, x = network("test_resnet", file), torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), source(x))
    assert len(made.input.mean) == 4 and made.model.pretrained_cfg["input_size"][0] == 4
    three = network("test_resnet", file, in_chans=3)
    assert three.model(x[:, :3]).shape == (2, 5) and len(three.input.std) == 3


def as_jax(source: nn.Module) -> dict[str, np.ndarray]:
    """A ViT's weights as Google's code names and shapes them."""
    state = {key: tensor.numpy() for key, tensor in source.state_dict().items()}
    heads, width = source.blocks[0].attn.num_heads, source.embed_dim
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for number in range(len(source.blocks)):
        block, jax = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        for new, old in {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}.items():
            arrays |= {
                f"{jax}{old}/scale": state[f"{block}{new}.weight"],
                f"{jax}{old}/bias": state[f"{block}{new}.bias"],
            }
        for new, old in {"mlp.fc1": "MlpBlock_3/Dense_0", "mlp.fc2": "MlpBlock_3/Dense_1"}.items():
            arrays |= {
                f"{jax}{old}/kernel": state[f"{block}{new}.weight"].T,
                f"{jax}{old}/bias": state[f"{block}{new}.bias"],
            }
        attention = f"{jax}MultiHeadDotProductAttention_1/"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            np.split(state[f"{block}attn.qkv.weight"], 3),
            np.split(state[f"{block}attn.qkv.bias"], 3),
        ):
            arrays[f"{attention}{part}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
    return arrays


def test_an_archive_of_jax_arrays(tmp_path: Path) -> None:
    source = make("vit_tiny_patch16_224", num_classes=5)
    arrays = as_jax(source)
    np.savez(tmp_path / "vit.npz", **arrays)
    assert_equal(network("vit_tiny_patch16_224", tmp_path / "vit.npz").model, source, 224)
    assert network("vit_tiny_patch16_224", tmp_path / "vit.npz", 3).model.num_classes == 3
    assert "timm reads archives of JAX arrays for ViTs" in refused("test_resnet", tmp_path / "vit.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "vit.npz").read_bytes()[:5000])
    assert "cannot be read, or is damaged" in refused(VIT, tmp_path / "cut.npz")
    del arrays["head/kernel"], arrays["head/bias"], arrays["cls"]
    np.savez(tmp_path / "vit.npz", **arrays)
    assert "does not fit vit_tiny_patch16_224" in refused("vit_tiny_patch16_224", tmp_path / "vit.npz")
