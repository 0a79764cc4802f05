"""verify: passes for a true export, fails for a wrong one, refuses a tampered one before loading it."""

import os
import sys
from pathlib import Path

import pytest
import torch
from export_students import LABELS, Trained, make_backbone

from distill.export.checksummed import ExportError
from distill.export.delta.io import write_delta
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.verify import Report, _compare, _run_fresh, verify

IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def export(folder: Path, trained: Trained) -> tuple[Path, Path]:
    write_delta(folder / "delta", trained.model, trained.identity, origin="random", labels=LABELS)
    write_timm_folder(folder / "merged", trained.model, origin="random", labels=LABELS)
    return folder / "delta", folder / "merged"


def test_a_true_export_passes(folder: Path, trained: Trained) -> None:
    delta, merged = export(folder, trained)
    report = verify(merged, IMAGES, delta=delta, make_backbone=make_backbone, model=trained.model, enough=8)
    assert report.passed and report.images == 8
    assert [c.against for c in report.comparisons] == ["delta file", "live model"]
    assert all(c.relative_difference <= 1e-5 and c.same_top1 == 8 for c in report.comparisons)


def test_a_folder_of_other_weights_fails(folder: Path, trained: Trained) -> None:
    delta, merged = export(folder, trained)
    write_timm_folder(merged, make_backbone(seed=4), origin="random")
    report = verify(merged, IMAGES, delta=delta, make_backbone=make_backbone, enough=8)
    assert not report.passed and report.comparisons[0].relative_difference > 1e-5


def test_another_backbone_is_named_before_a_process_is_started(
    folder: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, merged = export(folder, trained)
    monkeypatch.setattr("distill.export.verify._run_fresh", lambda work: pytest.fail("started a process"))
    with pytest.raises(ExportError, match="made for another backbone"):
        verify(merged, IMAGES, delta=delta, make_backbone=lambda: make_backbone(seed=4), enough=8)


def test_logits_that_are_not_finite_fail() -> None:
    good, bad = torch.eye(3), torch.eye(3)
    bad[0, 0] = torch.nan
    for merged, other in [(bad, good), (good, bad), (bad, bad), (torch.zeros(3, 3), torch.zeros(3, 3))]:
        comparison = _compare("merged", merged, "live model", other)
        assert not Report(images=3, merged_sha256="", delta_sha256=None, comparisons=(comparison,)).passed
    assert Report(
        images=3, merged_sha256="", delta_sha256=None, comparisons=(_compare("merged", good, "m", good),)
    ).passed
    with pytest.raises(ExportError, match=r"logits of the merged are \(3, 3\), of the live model \(3, 2\)"):
        _compare("merged", good, "live model", good[:, :2])


@pytest.mark.parametrize("name", ["merged/config.json", "merged/model.safetensors", "delta/delta.safetensors"])
def test_a_tampered_file_is_refused_before_any_loader(
    folder: Path, trained: Trained, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, merged = export(folder, trained)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)

    def loader(*_: object, **__: object) -> None:
        raise AssertionError("a loader saw it")

    monkeypatch.setattr("safetensors.torch.load", loader)
    monkeypatch.setattr("timm.create_model", loader)
    monkeypatch.setattr("subprocess.run", loader)
    with pytest.raises(ExportError, match=Path(name).name):
        verify(merged, IMAGES, delta=delta, make_backbone=make_backbone, enough=8)


def test_what_it_needs(folder: Path) -> None:
    with pytest.raises(ExportError, match="8 images prove too little; give at least 256"):
        verify(folder, IMAGES, model=make_backbone())
    with pytest.raises(ExportError, match="needs a delta folder and its backbone"):
        verify(folder, IMAGES, enough=8)


def test_a_terminals_signal_is_not_for_the_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches a whole process group; a run that is verifying would count as failed."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nps -o pgid= -p $$ > "$3/group"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    _run_fresh(tmp_path)
    assert int((tmp_path / "group").read_text()) != os.getpgrp()

    python.write_text("#!/bin/sh\nkill -TERM $$\n")
    with pytest.raises(ExportError, match="ended by SIGTERM"):
        _run_fresh(tmp_path)
