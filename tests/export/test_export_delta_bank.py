"""Switching tasks gives the model that loading the file gives, bit by bit, however often and in whatever order."""

import pytest
import torch
from delta_files import write_file
from export_students import make_backbone

from distill.deltas.attach import merge
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.state import whole_state
from distill.export.checksummed import ExportError
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import load_delta
from distill.models.timm_models import new_classifier

LOW = [LowRank.Settings(rank=2)]


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    made = {name: write_file(root / name, LOW, seed=n, head_seed=n) for n, name in enumerate("abc")}
    return {**made, "other": write_file(root / "other", [ScaleShift.Settings()], seed=9)}


@torch.no_grad()
def logits(model):
    return model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("mode", ["deltas", "merged", "modules"])
def test_a_switch_is_a_load(backbone, folders, mode):
    names = ["a", "b", "c"] if mode == "deltas" else ["a", "b", "c", "other"]
    tasks = DeltaBank(backbone, mode=mode)
    for name in names:
        tasks.add(name, folders[name])
    assert tasks.live == "a" and tasks.names == tuple(names)
    before = logits(backbone)
    models = set()
    for name in (*reversed(names), *names):
        expected = load_delta(folders[name], backbone)
        if mode == "merged":
            merge(expected)
        model = tasks.switch(name)
        models.add(id(model))
        assert torch.equal(logits(model), logits(expected)), name
    assert len(models) == (len(names) if mode == "modules" else 1) and torch.equal(logits(backbone), before)


def test_training_the_live_task_leaves_the_kept_ones(backbone, folders):
    tasks = DeltaBank(backbone)
    for name in "ab":
        tasks.add(name, folders[name])
    expected = logits(tasks.switch("a"))
    with torch.no_grad():
        for parameter in tasks.switch("a").parameters():
            if parameter.requires_grad:
                parameter += 1
    assert not torch.equal(logits(tasks.switch("b")), expected)
    assert torch.equal(logits(tasks.switch("a")), expected)


def test_weights_that_no_task_changes_are_kept_once(backbone, folders):
    tasks = DeltaBank(backbone, mode="merged")
    for name in "ab":
        tasks.add(name, folders[name])
    a, b = tasks._states.values()
    shared = [key for key in a if a[key] is b[key]]
    assert "bn1.weight" in shared and "conv_stem.weight" not in shared


def test_what_does_not_fit_is_refused_and_changes_nothing(backbone, folders, tmp_path):
    tasks = DeltaBank(backbone)
    tasks.add("a", folders["a"])
    expected = logits(tasks.switch("a"))
    with pytest.raises(ExportError, match=r"than those of 'a'; use DeltaBank\(mode='modules'\)"):
        tasks.add("other", folders["other"])
    with pytest.raises(ExportError, match="there is a task 'a' already"):
        tasks.add("a", folders["b"])
    with pytest.raises(ExportError, match="made for another backbone"):
        tasks.add("foreign", write_file(tmp_path / "f", LOW, backbone_seed=3))
    with pytest.raises(ExportError, match="no task 'z'; there are a"):
        tasks.switch("z")
    assert tasks.names == ("a",) and torch.equal(logits(tasks.switch("a")), expected)


def test_modules_differ_in_ranks_and_classes_and_share_the_backbone(backbone, folders, tmp_path):
    wide = write_file(tmp_path / "wide", [LowRank.Settings(rank=3)], seed=7, labels=tuple("abcdefg"))
    tasks = DeltaBank(backbone, mode="modules")
    for name, folder in {"a": folders["a"], "wide": wide, "other": folders["other"]}.items():
        tasks.add(name, folder)
    bigger = make_backbone()
    new_classifier(bigger, 7)
    assert torch.equal(logits(tasks.switch("wide")), logits(load_delta(wide, bigger)))
    assert torch.equal(logits(tasks.switch("a")), logits(load_delta(folders["a"], backbone)))
    tasks.to("cpu")
    models = [tasks.switch(name) for name in tasks.names]
    held = {tensor.data_ptr() for model in models for tensor in whole_state(model).values() if tensor.numel() > 1000}
    first = {tensor.data_ptr() for tensor in whole_state(models[0]).values() if tensor.numel() > 1000}
    heads = [model.get_classifier().weight.data_ptr() for model in models]
    assert held - set(heads) == first - set(heads) and len(set(heads)) == 3
