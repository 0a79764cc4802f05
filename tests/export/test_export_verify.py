"""verify: passes for a true export, fails for a wrong one, refuses a tampered one before loading it."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from export_students import LABELS, Trained, make_backbone
from torch import nn

from augment.base import PluginError
from distill.export.checksummed import ExportError
from distill.export.delta.io import write_delta
from distill.export.settings import TARGETS, ExportSettings
from distill.export.targets.base import About, ExportTarget
from distill.export.targets.timm_folder import TimmFolder, write_timm_folder
from distill.export.verify import VerificationReport, _compare, _run_fresh, verify

IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))


TIMM = TimmFolder(TimmFolder.Settings())


def export(folder: Path, trained: Trained) -> tuple[Path, Path]:
    write_delta(folder / "delta", trained.model, trained.identity, origin="random", labels=LABELS)
    write_timm_folder(folder / "merged", trained.model, origin="random", labels=LABELS)
    return folder / "delta", folder / "merged"


def test_a_true_export_passes(folder: Path, trained: Trained) -> None:
    delta, merged = export(folder, trained)
    report = verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=make_backbone, model=trained.model, enough=8)
    assert report.passed and report.images == 8
    assert [c.against for c in report.comparisons] == ["delta file", "live model"]
    assert all(c.relative_difference <= 1e-5 and c.same_top1 == 8 for c in report.comparisons)


class Halved(ExportTarget):
    """A toy format, all that it takes in one class: the state dict in half precision."""

    class Settings(ExportTarget.Settings):
        wrong: bool = False

    title, folder, tolerance = "half precision", "half", 5e-3
    settings: Settings

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        TIMM.write(model.half(), folder, about)
        model.float()
        return (folder / "model.safetensors").stat().st_size

    def check(self, folder: Path) -> str:
        return TIMM.check(folder)

    def session(self, folder: Path):
        run = TIMM.session(folder)
        return lambda images: run(images) + self.settings.wrong


def test_a_target_of_ones_own_is_run_in_the_fresh_process(folder: Path, trained: Trained) -> None:
    settings = ExportSettings.model_validate({"targets": ["timm_folder", {"type": f"{__name__}:Halved"}]})
    targets = {folder / target.folder: target for target in settings.make_targets()}
    assert [target.title for target in targets.values()] == ["merged model", "half precision"]
    before = copy.deepcopy(trained.model.state_dict())
    sizes = [target.write(trained.model, path, About("random", LABELS)) for path, target in targets.items()]
    assert sizes[1] < 0.6 * sizes[0]
    trained.model.load_state_dict(before)
    report = verify(targets, IMAGES, model=trained.model, enough=8)
    exact, halved = report.comparisons
    assert (halved.what, halved.against, halved.tolerance) == ("half precision", "live model", 5e-3)
    assert exact.relative_difference <= 1e-5 < halved.relative_difference <= 5e-3
    assert set(report.hashes) == {"merged model", "half precision"}
    wrong = {path: type(target)(target.settings.model_copy(update={"wrong": True})) for path, target in targets.items()}
    del wrong[folder / "merged"]
    assert not verify(wrong, IMAGES, model=trained.model, enough=8).passed
    with pytest.raises(PluginError, match="unknown exporttarget type 'timm_foldr'; did you mean 'timm_folder'"):
        TARGETS.settings_of("timm_foldr")


def test_a_folder_of_other_weights_fails(folder: Path, trained: Trained) -> None:
    delta, merged = export(folder, trained)
    write_timm_folder(merged, make_backbone(seed=4), origin="random")
    report = verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=make_backbone, enough=8)
    assert not report.passed and report.comparisons[0].relative_difference > 1e-5


def test_another_backbone_is_named_before_a_process_is_started(
    folder: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, merged = export(folder, trained)
    monkeypatch.setattr("distill.export.verify._run_fresh", lambda work: pytest.fail("started a process"))
    with pytest.raises(ExportError, match="made for another backbone"):
        verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=lambda: make_backbone(seed=4), enough=8)


def test_logits_that_are_not_finite_fail() -> None:
    good, bad = torch.eye(3), torch.eye(3)
    bad[0, 0] = torch.nan
    for merged, other in [(bad, good), (good, bad), (bad, bad), (torch.zeros(3, 3), torch.zeros(3, 3))]:
        comparison = _compare("merged", merged, "live model", other, 1e-5)
        assert not VerificationReport(images=3, hashes={}, comparisons=(comparison,)).passed
    assert VerificationReport(images=3, hashes={}, comparisons=(_compare("merged", good, "m", good, 1e-5),)).passed
    assert not VerificationReport(images=3, hashes={}, comparisons=()).passed, "nothing compared is nothing proved"
    with pytest.raises(ExportError, match=r"logits of the merged are \(3, 3\), of the live model \(3, 2\)"):
        _compare("merged", good, "live model", good[:, :2], 1e-5)


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
        verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=make_backbone, enough=8)


def test_what_it_needs(folder: Path) -> None:
    with pytest.raises(ExportError, match="8 images prove too little; give at least 256"):
        verify({folder: TIMM}, IMAGES, model=make_backbone())
    with pytest.raises(ExportError, match="without a target verify needs the delta folder"):
        verify({}, IMAGES, model=make_backbone(), enough=8)
    with pytest.raises(ExportError, match="needs a delta folder and its backbone"):
        verify({folder: TIMM}, IMAGES, enough=8)


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
