"""Streams with a memory: batches of both, stored views, nothing but the task and the memory is read, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_stream import isolated, learn, learn_only, results, stream, stream_tree
from toy_training import assert_bit_equal

from distill.config import validate_tree
from distill.continual.memory.keep import FILE
from distill.continual.memory.store import Store
from distill.export.delta.io import load_delta
from distill.models.network import create_network, extract
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.step import DistillationStep
from distill.yaml_tree import ConfigError

CE = [{"type": "ce"}]
REPLAY = {
    "strategy": {"type": "sequential"},
    "memory": {"type": "keyed", "budget": 6, "logits": True},
    "objectives": [{"type": "er_ace"}, {"type": "der"}],
}


class StoppedError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"type": "bank"}}, "memory: strategy bank trains no student on the classes of earlier tasks"),
        (
            {"augment": {"mix": {"mixup": 0.2}}, "objectives": CE},
            r"augment\.mix: memory\.logits are of views that are repeated",
        ),
        ({"augment": {"policy": "both_to_both"}}, r"augment\.policy: both_to_both gives the student several views"),
        (
            {"objectives": [{"type": "ce"}, {"type": "der"}], "memory": {"type": "keyed", "budget": 6}},
            r"objectives\.1: der comp",
        ),
        (
            {"memory": None, "controls": {"gdumb": True}, "objectives": CE},
            r"controls\.gdumb: GDumb trains on the memory alone",
        ),
        ({"memory": {"type": "keyed", "budget": "0B"}, "objectives": CE}, r"memory\.keyed\.budget|memory\.budget"),
    ],
)
def test_config_errors_name_the_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    plain = stream_tree(tmp_path, **REPLAY)
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) and key != "memory" else value
    with pytest.raises(ConfigError, match=message):
        validate_tree(plain, "stream")


@pytest.mark.slow
def test_a_memory_that_is_too_small_is_an_error_before_training(tmp_path: Path) -> None:
    settings = stream(
        tmp_path, **{**REPLAY, "objectives": CE, "memory": {"type": "keyed", "budget": "10KB"}}
    )  # 3 images of 3,104 bytes
    with pytest.raises(
        ValueError, match=r"memory\.budget: 10KB holds 2 images .* fewer than one for each of 4 classes"
    ):
        learn_only(settings)
    assert not list(tmp_path.glob("*/task-1/student/fit"))


class Watched:
    """What the training steps of a stream read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1):
        self.batches: list[dict[str, Any]] = []
        self.students: list[Tensor] = []
        original = DistillationStep.forward

        def noting(this: DistillationStep, images: Any, ids: Tensor, labels: Tensor, **more: Any) -> Any:
            if more["view_keys"] is not None:
                keys = more["view_keys"]
                views = this.augment(images, ids, more["epoch"], teacher=False, view_keys=keys).student[0]
                self.batches.append({"ids": ids, "labels": labels, "views": views, **more})
            if len(self.batches) == stop_at:
                raise StoppedError
            return original(this, images, ids, labels, **more)

        monkeypatch.setattr(DistillationStep, "forward", noting)


@pytest.mark.slow
def test_a_batch_is_half_of_the_memory_and_logits_are_of_the_very_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stream(tmp_path, **REPLAY, training={"epochs": 2})
    with monkeypatch.context() as patch, isolated(settings):
        watched = Watched(patch)
        folder = learn_only(settings)

    store = Store.load(folder / "task-1/student" / FILE)
    assert len(store) == 6 and set(store.labels) == {"a", "b"} and store.logit_classes == ("a", "b")
    assert sorted(Store.load(folder / "task-2/student" / FILE).labels) == ["a", "a", "b", "b", "c", "d"]
    old = create_network(settings.student.network, 2)
    old.model = load_delta(folder / "task-1/student/delta", old.model).eval()
    compared, drawn = 0, set[int]()
    for batch in watched.batches:
        memory, keys, logits = batch["is_memory"], batch["view_keys"], batch["stored_logits"]
        assert memory.sum() == 4
        shown = keys >= 0
        assert set(batch["labels"][~memory].tolist()) <= {2, 3} and set(batch["labels"][shown].tolist()) <= {0, 1}
        drawn |= set(batch["labels"][memory].tolist())
        assert set(batch["ids"][shown].tolist()) <= set(store.ids.tolist())
        assert shown.sum() <= 2 and logits[~shown].isnan().all() and logits[:, 2:].isnan().all()
        if not shown.any():
            continue
        with torch.no_grad():
            expected = extract(old.model, batch["views"][shown], frozenset({"logits"})).logits
        torch.testing.assert_close(logits[shown][:, :2], expected, atol=1e-5, rtol=1e-5)
        compared += int(shown.sum())
    assert compared >= 4 and drawn == {0, 1, 2, 3}, "some new images are drawn with the memory"

    # A stream that is stopped in the second task and resumed ends with the same bits.
    other = tmp_path / "other"
    again = stream(other, **REPLAY, training={"epochs": 2, "checkpoint_minutes": 1e-6})
    with monkeypatch.context() as patch:
        Watched(patch, stop_at=4)
        with pytest.raises(StoppedError):
            learn_only(again)
    learn_only(again, resume=True)
    for file in ("task-1/student/fit/result.ckpt", "task-2/student/fit/result.ckpt"):
        first, second = (
            VerifiedCheckpointIO().load_checkpoint(base / file)["student"]
            for base in (folder, next(other.glob("stream*")))
        )
        assert all(torch.equal(first[name], second[name]) for name in first), file
    stores = [Store.load(base / "task-2/student" / FILE) for base in (folder, next(other.glob("stream*")))]
    assert torch.equal(stores[0].ids, stores[1].ids) and stores[0].logits is not None
    assert torch.equal(stores[0].logits.nan_to_num(7), stores[1].logits.nan_to_num(7))  # type: ignore[union-attr]


@pytest.mark.slow
def test_icarl(tmp_path: Path) -> None:
    """Herding, distillation from the old model, nearest exemplar means; GDumb and joint training are its controls."""
    learner = {
        "strategy": {"type": "sequential"},
        "memory": {"type": "herding", "budget": 5},
        "teacher": {"networks": [{"model": "previous"}]},
        "objectives": [{"type": "ce"}, {"type": "kd", "temperature": 2}],
    }
    settings = stream(tmp_path / "whole", **learner, heads=[], controls={"heads": False, "joint": True})
    with isolated(settings) as stages:
        folder = learn(settings)
    assert stages >= {"task-2/exemplar-means", "task-2/gdumb", "task-2/joint", "export"}
    measured = results(folder)
    for model in ("student", "student + exemplar means", "gdumb", "joint"):
        for setting in ("task", "class"):
            assert 0 <= measured[f"{model}, {setting}: accuracy_micro"] <= 1
    store = Store.load(folder / "task-2/student" / FILE)
    assert len(store) == 5 and store.logits is None
    before = Store.load(folder / "task-1/student" / FILE)
    kept = [id for id, name in zip(store.names, store.labels) if name == "a"]
    assert kept == [id for id, name in zip(before.names, before.labels) if name == "a"][: len(kept)]

    # Controls change nothing of the learner: the same bits without them, and with the images on the device.
    alone = learn_only(stream(tmp_path / "alone", **learner, data={"on_device": True}))
    ended = [base / "task-2/student" for base in (folder, alone)]
    weights = [VerifiedCheckpointIO().load_checkpoint(base / "fit/result.ckpt")["student"] for base in ended]
    assert_bit_equal(*weights)
    stores = [Store.load(base / FILE) for base in ended]
    assert stores[0].names == stores[1].names and torch.equal(stores[0].canvases, stores[1].canvases)
