"""Checkpoints of older versions and of the original authors' code."""

from pathlib import Path

import numpy as np
from checkpoint_files import VIT, assert_equal, make, network, refused, saved
from torch import nn


def test_a_file_from_before_batches_were_counted(tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    state = {key: tensor for key, tensor in source.state_dict().items() if "num_batches_tracked" not in key}
    assert_equal(network("test_resnet", saved(state, tmp_path / "w.pth")).model, source)
    del state["bn1.running_mean"]
    assert refused("test_resnet", saved(state, tmp_path / "w.pth")).splitlines()[1:] == ["  missing bn1.running_mean"]


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
