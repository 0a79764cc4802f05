"""Checkpoints against kills, full disks, bit rot, wrong files and wrong networks."""

import errno
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from deadly_saves import kill_savers, save, save_and_die, step_of
from test_training_resume import interrupted
from toy_training import STEPS, assert_bit_equal, experiment, network, straight_fit, student_fit, whole
from warm_server import warm_server

from distill.models.network import NetworkError
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, newest_good, prune, steps_of

IO = VerifiedCheckpointIO()


def apart(action: Callable[..., object], *arguments: Any) -> int | None:
    """The exit status of ``action`` in a process of its own, which kills itself or ends.

    The process comes from one without threads: a fork of this one could wait for ever for a lock that a thread of this
    one held.
    """
    child = warm_server().Process(target=action, args=arguments)
    child.start()
    child.join(120)
    try:
        return child.exitcode
    finally:
        child.kill()


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "saves").mkdir()
    path, report = save(tmp_path / "saves" / "best.ckpt"), tmp_path / "steps.json"
    assert apart(kill_savers, path, 40, 0, report) == 0
    reached = json.loads(report.read_text())
    assert len(reached) == 40 and step_of(path) == reached[-1]
    assert len(set(reached)) > 1, "every kill came at the same step"
    stale = list(path.parent.glob(".best*"))
    assert stale, "no kill came during a write"
    prune(path.parent)
    assert all(left.exists() for left in stale), "another process may be writing them"
    for left in stale:
        os.utime(left, (0, 0))
    prune(path.parent)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.slow
def test_kill_9_round_every_call_that_matters(call: str, when: str, tmp_path: Path) -> None:
    path = save(tmp_path / "best.ckpt")
    assert apart(save_and_die, path, call, when) == -signal.SIGKILL
    assert step_of(path) == (2 if (call, when) == ("replace", "after") else 1)


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """No file can grow beyond 4 kB: what a full disk does to a write, for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A real file system of that size, where one may be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_disk_full_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path / "step-00000001.ckpt", numbers=10)
    with _full_disk(tmp_path), pytest.raises(CheckpointError, match=r"step-00000001\.ckpt: .* was not saved") as error:
        save(path, 2, numbers=10_000)
    assert os.strerror(errno.EFBIG) in str(error.value) and "earlier ones are intact" in str(error.value)
    assert IO.load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path], "nothing half-written is left"


def test_disk_full_for_real(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256):
        path = save(tmp_path / "disk" / "step-00000001.ckpt", numbers=40_000)
        with pytest.raises(CheckpointError, match=os.strerror(errno.ENOSPC)):
            save(path, 2, numbers=40_000)
        assert IO.load_checkpoint(path)["step"] == 1
        assert list(path.parent.iterdir()) == [path]


def test_disk_full_in_a_fit_is_an_error_and_the_fit_resumes(tmp_path: Path) -> None:
    settings, folder = experiment(tmp_path), tmp_path / "fit"
    straight = straight_fit(settings)
    interrupted(settings, folder, 2)
    with _full_disk(folder), pytest.raises(CheckpointError, match="was not saved"):
        student_fit(settings, folder)
    assert_bit_equal(student_fit(settings, folder).weights, straight.weights)


def test_nowhere_to_save_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"step-1\.ckpt: the checkpoint was not saved"):
        save(tmp_path / "file" / "step-1.ckpt")


def test_every_single_bit_flip_is_found(tmp_path: Path) -> None:
    path, draw = save(tmp_path / "step-1.ckpt", numbers=100), random.Random(0)
    good = path.read_bytes()
    for _ in range(200):
        bad, bit = bytearray(good), draw.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"step-1\.ckpt: damaged"):
            IO.load_checkpoint(path)
    path.write_bytes(good)
    assert IO.load_checkpoint(path)["step"] == 1


def checksummed(content: bytes) -> bytes:
    """What somebody writes who knows the format."""
    return content + hashlib.sha256(content).digest()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


def _pickled_checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": Evil()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Evil()), _pickled_checkpoint(), b"", b"PK\3\4 no archive", b"\x80\x02.", b"e\n", b"\0" * 100],
    ids=["pickle", "torch", "empty", "zip", "nothing", "text", "zeros"],
)
def test_foreign_files_are_refused_and_run_nothing(content: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-1.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-1\.ckpt: damaged, or no checkpoint"):
        IO.load_checkpoint(path)
    path.write_bytes(checksummed(content))
    with pytest.raises(CheckpointError, match=r"step-1\.ckpt: refused, it is no file of plain tensors"):
        IO.load_checkpoint(path)
    assert not Path("planted").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage: str, tmp_path: Path, caplog) -> None:
    settings = experiment(tmp_path)
    straight = straight_fit(settings)
    folder = tmp_path / "stopped"
    interrupted(settings, folder, STEPS + 1)
    newest, before = steps_of(folder)
    content = newest.read_bytes()
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    else:
        parts = {"truncated": content[: len(content) // 2], "empty": b"", "other": b"these are notes"}
        newest.write_bytes(parts[damage])
    with caplog.at_level(logging.WARNING):
        assert newest_good(folder) == before
    assert str(newest) in caplog.text and "trying the one before it" in caplog.text
    resumed = student_fit(settings, folder)
    assert resumed.seen == straight.seen[STEPS:]
    assert_bit_equal(resumed.weights, straight.weights)


def test_nothing_usable_is_an_error_that_lists_all(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"step-{step}.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is usable:.*step-2\.ckpt.*step-1\.ckpt"):
        newest_good(tmp_path)
    assert newest_good(tmp_path / "none") is None


def test_another_architecture_is_listed_before_anything_changes(tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    interrupted(experiment(tmp_path), folder, 2)
    other = {"deltas": [{"type": "low_rank", "rank": 3}, {"type": "scale_shift", "sites": "bn1"}]}
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.suffix == ".ckpt"}
    with pytest.raises(NetworkError) as error:
        student_fit(experiment(tmp_path, student=other), folder)
    text = str(error.value)
    assert "does not fit the architecture" in text
    assert "missing step.student.model.bn1.parametrizations.weight.0.delta.scale" in text
    assert "parametrizations.weight.0.delta.A is (1, 2, " in text
    assert {path: path.read_bytes() for path in kept} == kept


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    interrupted(experiment(tmp_path), folder, 2)
    teacher = {"networks": [network(tmp_path, "test_resnet", seed=1)]}
    with pytest.raises(NetworkError, match="weights of the teacher are not those"):
        student_fit(experiment(tmp_path, teacher=teacher), folder)
    student = {"network": network(tmp_path, "test_efficientnet", seed=1)}
    with pytest.raises(NetworkError, match="weights of the student's backbone are not those"):
        student_fit(experiment(tmp_path, student=student), folder)


def test_what_is_frozen_stays_out(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    trained = set(student_fit(settings, tmp_path / "fit").weights)
    [newest, _] = steps_of(tmp_path / "fit")
    checkpoint = IO.load_checkpoint(newest)
    keys = set(checkpoint["state_dict"])
    assert {key.removeprefix("step.student.") for key in keys if key.startswith("step.student.")} == trained
    assert all(".parametrizations." in key or key.startswith("model.classifier.") for key in trained)
    assert not any(key.endswith(".original") for key in trained)
    assert {key.removeprefix("step.").partition(".")[0] for key in keys} == {"student", "terms", "guard"}
    assert set(checkpoint["frozen"]) == {"student's backbone", "teacher"}
    # Weights, their average, and the two moments of AdamW; projectors of ICD beside them.
    numbers = sum(t.numel() for t in checkpoint["state_dict"].values())
    assert newest.stat().st_size < 4 * 4 * numbers + 200_000 < 1_000_000
    assert set(IO.load_checkpoint(tmp_path / "fit" / "result.ckpt")["student"]) == trained


def test_all_of_a_student_trained_whole_is_in_it(tmp_path: Path) -> None:
    model = student_fit(experiment(tmp_path, student=whole(tmp_path)), tmp_path / "fit").student
    assert set(IO.load_checkpoint(tmp_path / "fit" / "result.ckpt")["student"]) == set(model.state_dict())  # type: ignore
