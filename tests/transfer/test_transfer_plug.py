"""What the owner of the full network plugs into it, and what is refused: ``distill plug``."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from toy_offsite import full, give
from toy_training import network

from distill.commands.offsite import plug
from distill.deltas.base import DeltaError, DeltaSettings, WeightDelta
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta, save_delta
from distill.export.verify import Comparison, VerificationReport, _fresh_process
from distill.models.network import create_network
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.student import Student
from distill.run.prepare import StudentSpec
from distill.transfer.offsite import check_ends, plugged_student

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offsite")


@pytest.fixture(scope="module")
def given(output: Path) -> Path:
    return give(output)


@pytest.fixture(scope="module")
def sent(given: Path, output: Path) -> Path:
    """A delta file of the emulator, as its user sends it."""
    student = student_on(given, {"type": "low_rank", "rank": 2})
    with torch.no_grad():
        for site in student.sites:
            site.delta.B.fill_(0.1)
    save_delta(output / "sent", student.model, student.backbone, origin=student.network.origin)
    return output / "sent"


def student_on(emulator: Path, delta: dict[str, Any]) -> Student:
    network = {"model": f"local-dir:{emulator}", "size": 32}
    return StudentSpec(StudentSettings.model_validate({"network": network, "deltas": [delta]}), 0, 4).build()


class Gain(WeightDelta):
    """A user's own delta."""

    class Settings(DeltaSettings):
        type: str = f"{__name__}:Gain"

    def __init__(self, settings: DeltaSettings, layer: torch.nn.Module):
        super().__init__(settings, layer)
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (1 + self.gain)


def test_a_users_own_delta_is_plugged_in_only_if_allowed(given: Path, output: Path) -> None:
    network = NetworkSettings(model=f"local-dir:{given}", size=32)
    settings = StudentSettings(network=network).model_copy(update={"deltas": (Gain.Settings(),)})
    student = StudentSpec(settings, 0, 4).build()
    save_delta(output / "own", student.model, student.backbone, origin=student.network.origin)
    with pytest.raises(DeltaError, match=rf"needs the class '{__name__}:Gain'; .* \(--allow-plugins\)"):
        plug(output / "own", full(output).model, output / "own-plugged", QUIET)
    with patch("distill.export.verify._run_fresh", _fresh_process):
        weights = Path(full(output).model.removeprefix("local-dir:")) / "model.safetensors"
        plug(output / "own", "test_vit", output / "own-plugged", QUIET, checkpoint=weights, allow_plugins=True)
    assert {path.name for path in (output / "own-plugged").iterdir()} == {"delta", "merged"}
    assert read_delta(output / "own-plugged/delta")[0].origin == "test_vit@model.safetensors"


def test_what_fails_its_verification_is_not_written(sent: Path, output: Path) -> None:
    failed = Comparison(what="a", against="b", relative_difference=1.0, tolerance=1e-3, same_top1=0, images=32)
    report = VerificationReport(images=32, hashes={}, comparisons=(failed,))
    kept = output / "kept"
    (kept / "merged").mkdir(parents=True)
    with patch("distill.commands.offsite.verify", lambda *_, **__: report):
        for to in (output / "failed", kept):
            with pytest.raises(ExportError, match="so nothing was written"):
                plug(sent, full(output).model, to, QUIET)
    assert not (output / "failed").exists() and [*kept.rglob("*")] == [kept / "merged"]
    assert not [*output.glob("*.unfinished")]


def test_foreign_ends_are_refused_by_their_layer(sent: Path, output: Path) -> None:
    manifest, _ = read_delta(sent)
    model = create_network(full(output), 4).model
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight.zero_()
        model.blocks[4].mlp.fc1.bias.add_(1)
    assert check_ends(manifest, model, sent) == tuple(f"blocks.{n}" for n in range(1, 5)), "the middle may differ"
    with torch.no_grad():
        model.blocks[5].norm2.bias[0] = 2**-20
    with pytest.raises(
        ExportError, match=r"the ends of its emulator are not those of this network:\n  blocks\.5\.norm2\.bias has"
    ):
        check_ends(manifest, model, sent)
    other = NetworkSettings.model_validate(network(output, "test_vit", seed=1))
    with pytest.raises(ExportError, match=r"blocks\.0\.attn\.proj\.weight has other values"):
        plugged_student(sent, other)
    with pytest.raises(ExportError, match="architecture is test_efficientnet, expected test_vit"):
        plugged_student(sent, NetworkSettings.model_validate(network(output, "test_efficientnet")))
    [group, *_] = manifest.deltas
    foreign = manifest.model_copy(update={"deltas": (group.model_copy(update={"sites": ("blocks.1.mlp.fc1",)}),)})
    with pytest.raises(ExportError, match=r"changes 'blocks\.1\.mlp\.fc1' in the emulator's middle"):
        check_ends(foreign, model, sent)


def test_a_structural_delta_is_plugged_in_at_the_same_blocks(given: Path, output: Path) -> None:
    student = student_on(given, {"type": "adapter", "hidden": 2})
    with torch.no_grad():
        for adapter in student.sites[0].delta.adapters:
            adapter.up.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_delta(output / "adapters", student.model, student.backbone, origin="x")
    plugged, _ = plugged_student(output / "adapters", full(output))
    save_delta(output / "whole", plugged.model, plugged.backbone, origin="x")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loaded = load_delta(output / "whole", create_network(full(output), 4).model)
        assert torch.equal(loaded(x), plugged.model.eval()(x))
    assert set(loaded.structural_0.names) == set(student.sites[0].delta.names)
