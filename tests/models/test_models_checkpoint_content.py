"""Files of other kinds, of several parts, and with values that are no weights."""

import json
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_files import VIT, assert_equal, make, network, refused, saved
from safetensors.torch import save_file
from torch import nn


def test_mappings_of_other_libraries_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of yacs, as the authors' Swin files have it, a date, NumPy's state of draws, weights as arrays."""
    source = make(VIT, num_classes=5)
    module = ModuleType("yacs.config")
    exec("class CfgNode(dict):\n    def __init__(self, **k): super().__init__(**k); self.frozen = True", vars(module))
    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, module)
    config = module.CfgNode(depth=module.CfgNode(blocks=2))
    others = {
        "config": config,
        "made": datetime.now(),
        "draws": np.arange(3, dtype=np.uint32),
        "o": SimpleNamespace(lr=1),
    }
    assert_equal(network(VIT, saved({"model": source.state_dict(), **others}, tmp_path / "a.pth")).model, source, 160)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    assert_equal(network(VIT, saved([arrays], tmp_path / "b.pth")).model, source, 160)


def test_parts_of_safetensors(tmp_path: Path) -> None:
    source = make(VIT, num_classes=5)
    state = source.state_dict()
    half = len(state) // 2
    parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = tmp_path / "model.safetensors.index.json"
    for name, part in zip(names, parts):
        save_file(part, tmp_path / name)
    index.write_text(json.dumps({"weight_map": {key: name for name, part in zip(names, parts) for key in part}}))
    assert_equal(network(VIT, index).model, source, 160)
    assert f"is one of 00002 parts; name their index, {index}" in refused(VIT, tmp_path / names[0])
    (tmp_path / names[1]).unlink()
    assert f"names {names[1]}, and there is no such file" in refused(VIT, index)
    index.write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    assert "names '../x.safetensors', which is no file beside it" in refused(VIT, index)
    index.write_text("[1]")
    assert "has no weight_map" in refused(VIT, index)
    save_file(state, tmp_path / "whole.pth")
    assert_equal(network(VIT, tmp_path / "whole.pth").model, source, 160)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.pth", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS, not the file itself"),
        ("a.pth", b"<!doctype html>", "a web page or XML"),
        ("a.h5", b"\x89HDF\r\n", "HDF5, which Keras writes"),
        ("a.onnx", b"\x08\x07", "ONNX"),
        ("a.safetensors", b"PK\3\4", "no safetensors file but a pickle of PyTorch"),
        ("a.pth", b"", "empty"),
    ],
)
def test_what_a_file_is_instead_of_a_checkpoint(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} is {what}" in refused(VIT, tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of TorchScript
def test_values_that_are_no_weights(tmp_path: Path) -> None:
    state = make(VIT, num_classes=5).state_dict()
    name = "blocks.0.attn.proj.weight"
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    assert "is a TorchScript archive, which holds code" in refused(VIT, tmp_path / "script.pt")
    bad = saved({**state, name: state[name] * float("nan")}, tmp_path / "nan.pth")
    assert f"{name} has values that are not finite" in refused(VIT, bad)
    bad = saved({**state, name: state[name].to(torch.int8)}, tmp_path / "int8.pth")
    assert f"{name} is torch.int8, not floats; a quantized file cannot be read" in refused(VIT, bad)
    assert "holds no state dict of tensors: a mapping with 'epoch'" in refused(VIT, saved({"epoch": 1}, tmp_path / "x"))
