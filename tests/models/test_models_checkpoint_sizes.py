"""Checkpoints of another input size."""

import argparse
import warnings
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import VIT, assert_equal, make, network, refused, saved
from torch import nn


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
