"""Checkpoints that people have: timm's, Lightning's, wrapped, of half precision, of other channels."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import VIT, assert_equal, make, network, prefixed, refused, saved
from lightning.fabric.utilities.data import AttributeDict
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn


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


def test_half_precision_and_the_buffers_of_a_profiler(tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5).half()
    state = source.state_dict() | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)}
    made = network("test_resnet", saved(state, tmp_path / "w.pth"))
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert_equal(made.model, source.float())


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
