"""verify: passes for a true export, fails for a wrong one, refuses a tampered one before loading it."""

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from export_students import LABELS, Trained, make_backbone, train
from pydantic import ValidationError
from torch import Tensor, nn

from augment.base import PluginError
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.export.checksummed import ExportError
from distill.export.delta.io import save_delta
from distill.export.logits import logits_of
from distill.export.settings import DELTA_FILE, TARGETS, ExportSettings
from distill.export.targets.base import About, ExportTarget
from distill.export.targets.timm_folder import TimmFolder, write_timm_folder
from distill.export.verify import VerificationReport, _compare, _fresh_process, _run_fresh, fresh_process, verify

pytestmark = pytest.mark.slow  # an export and the server of its new processes come first
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))
TIMM = TimmFolder(TimmFolder.Settings())


class Halved(ExportTarget):
    """A toy format, complete in one class: the state dict in half precision, and logits that can be made wrong."""

    class Settings(ExportTarget.Settings):
        wrong: float = 0.0

    title, folder, tolerance = "half precision", "half", 5e-3
    settings: Settings

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        return TIMM.write(copy.deepcopy(model).half(), folder, about)

    def check(self, folder: Path) -> str:
        return TIMM.check(folder)

    def session(self, folder: Path) -> Callable[[Tensor], Tensor]:
        run = TIMM.session(folder)
        return lambda images: run(images) + self.settings.wrong


HALVED = f"{__name__}:Halved"


def export(folder: Path, trained: Trained) -> tuple[Path, Path]:
    save_delta(folder / "delta", trained.model, trained.identity, origin="random", labels=LABELS)
    write_timm_folder(folder / "merged", trained.model, origin="random", labels=LABELS)
    return folder / "delta", folder / "merged"


class Proof(NamedTuple):
    """A student in two formats and as a delta file, and what ``verify`` said about them."""

    trained: Trained
    delta: Path
    targets: dict[Path, ExportTarget]
    report: VerificationReport
    logits: dict[str, Tensor]
    """By the fresh process."""


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """The one fresh process of this file, which takes seconds."""
    root = tmp_path_factory.mktemp("proof")
    specs = [LowRank.Settings(rank=2), ScaleShift.Settings(sites=("*.conv_dw", "bn1"))]
    trained = train(make_backbone(), specs, moved=True)
    save_delta(root / "delta", trained.model, trained.identity, origin="random", labels=LABELS)
    settings = ExportSettings.model_validate({"targets": ["timm_folder", {"type": HALVED}]})
    (root / "augment.py").write_text("raise SystemExit('imported in place of the package')")
    targets = {root / target.folder: target for target in settings.make_targets()}
    sizes = [target.write(trained.model, path, About("random", LABELS)) for path, target in targets.items()]
    assert sizes[1] < 0.6 * sizes[0]

    def run_and_keep(work: Path) -> None:
        _run_fresh(work)
        shutil.copy(work / "logits.safetensors", root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.export.verify._run_fresh", run_and_keep)
        patch.chdir(root)
        report = verify(
            targets, IMAGES, delta=root / "delta", make_backbone=make_backbone, model=trained.model, min_images=8
        )
    logits = safetensors.torch.load_file(root / "logits.safetensors")
    return Proof(trained, root / "delta", targets, report, logits)


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``verify`` does in this process what it does in a fresh one, which is faster."""
    monkeypatch.setattr("distill.export.verify._run_fresh", _fresh_process)


def test_a_true_export_passes(proof: Proof) -> None:
    assert proof.report.passed and proof.report.images == 8
    assert [(c.what, c.against, c.tolerance) for c in proof.report.comparisons] == [
        ("merged model", "delta file", 1e-5),
        ("merged model", "live model", 1e-5),
        ("half precision", "delta file", 5e-3),
        ("half precision", "live model", 5e-3),
    ]
    assert all(c.same_top1 == 8 for c in proof.report.comparisons)
    differences = [c.relative_difference for c in proof.report.comparisons]
    assert max(differences[:2]) <= 1e-5 < min(differences[2:]), "the toy format rounds, so its own code ran"
    assert set(proof.report.hashes) == {"merged model", "half precision", "delta file"}


def test_a_delta_file_is_bit_equal_in_a_fresh_process_with_moved_statistics(proof: Proof) -> None:
    moved = proof.trained.model.bn1.running_mean  # type: ignore[union-attr]
    assert not torch.equal(moved, make_backbone().bn1.running_mean)  # type: ignore[arg-type, union-attr]
    assert torch.equal(proof.logits[DELTA_FILE], logits_of(proof.trained.model)(IMAGES))


@pytest.mark.usefixtures("same_process")
def test_a_target_beyond_its_tolerance_fails(proof: Proof) -> None:
    targets: dict[Path, ExportTarget] = {}
    for path, target in proof.targets.items():
        targets[path] = Halved(Halved.Settings(type=HALVED, wrong=0.1)) if isinstance(target, Halved) else target
    report = verify(targets, IMAGES, model=proof.trained.model, min_images=8)
    assert [(c.what, c.against, c.passed) for c in report.comparisons] == [
        ("merged model", "live model", True),
        ("half precision", "live model", False),
    ]
    assert set(report.hashes) == {"merged model", "half precision"}
    assert report.comparisons[1].same_top1 == 8 and not report.passed


@pytest.mark.usefixtures("same_process")
def test_a_folder_of_other_weights_fails(folder: Path, trained: Trained) -> None:
    delta, merged = export(folder, trained)
    write_timm_folder(merged, make_backbone(seed=4), origin="random")
    report = verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=make_backbone, min_images=8)
    assert not report.passed and report.comparisons[0].relative_difference > 1e-5


@pytest.mark.usefixtures("same_process")
def test_a_delta_file_without_targets_is_compared_with_the_live_model(proof: Proof) -> None:
    arguments = {"delta": proof.delta, "make_backbone": make_backbone, "min_images": 8}
    report = verify({}, IMAGES, model=proof.trained.model, **arguments)  # type: ignore[arg-type]
    (comparison,) = report.comparisons
    assert (comparison.what, comparison.against) == ("delta file", "live model")
    assert report.passed and comparison.relative_difference == 0
    assert not verify({}, IMAGES, model=make_backbone(), **arguments).passed  # type: ignore[arg-type]


def test_targets_that_are_not_there_or_get_in_each_others_way() -> None:
    with pytest.raises(PluginError, match="unknown export target type 'timm_foldr'; did you mean 'timm_folder'"):
        TARGETS.settings_of("timm_foldr")
    with pytest.raises(ValidationError, match="timm_folder and timm_folder both have the folder 'merged'") as caught:
        ExportSettings.model_validate({"targets": ["timm_folder", HALVED, "timm_folder"]})
    assert caught.value.errors()[0]["loc"] == ("targets", 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"folder": "half"}, "Halved and .*Renamed both have the folder 'half'"),
        ({"folder": "HALF"}, "Halved and .*Renamed both have the folder 'HALF'"),
        ({"title": "half precision"}, "Halved and .*Renamed both have the title 'half precision'"),
        ({"folder": "delta"}, "Renamed: its folder 'delta' is used for something else"),
        ({"title": "delta"}, "Renamed: its title 'delta' is used for something else"),
        ({"title": "Delta file"}, "Renamed: its title 'Delta file' is used for something else"),
        ({"folder": "../half"}, r"Renamed: its folder '\.\./half' is not made of letters"),
        ({"folder": "stage.json"}, r"Renamed: its folder 'stage\.json' is not made of letters"),
        ({"folder": ""}, "Renamed: its class has no 'folder'"),
        ({"title": None}, "Renamed: its class has no 'title'"),
    ],
)
def test_a_folder_or_title_of_something_else_is_an_error(
    names: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Renamed(Halved):
        title, folder = "renamed", "renamed"

    monkeypatch.setattr(sys.modules[__name__], "Renamed", Renamed, raising=False)
    targets = [HALVED, f"{__name__}:Renamed"]
    assert ExportSettings.model_validate({"targets": targets}).targets
    for name, value in names.items():
        setattr(Renamed, name, value)
    with pytest.raises(ValidationError, match=message):
        ExportSettings.model_validate({"targets": targets})


def test_another_backbone_is_named_before_a_process_is_started(
    folder: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, merged = export(folder, trained)
    monkeypatch.setattr("distill.export.verify._run_fresh", lambda work: pytest.fail("started a process"))
    with pytest.raises(ExportError, match="made for another backbone"):
        verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=lambda: make_backbone(seed=4), min_images=8)


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
        verify({merged: TIMM}, IMAGES, delta=delta, make_backbone=make_backbone, min_images=8)


def test_what_it_needs(folder: Path) -> None:
    with pytest.raises(ExportError, match="8 images are too few; give at least 256"):
        verify({folder: TIMM}, IMAGES, model=make_backbone())
    with pytest.raises(ExportError, match="without a target verify needs the delta folder"):
        verify({}, IMAGES, model=make_backbone(), min_images=8)
    with pytest.raises(ExportError, match="needs a delta folder and its backbone"):
        verify({folder: TIMM}, IMAGES, min_images=8)


def test_a_fresh_process_ends_with_what_runs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 100\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    begun = time.monotonic()
    with pytest.raises(KeyError, match="beside"), fresh_process(tmp_path, "any"):
        raise KeyError("beside")
    assert time.monotonic() - begun < 50


def test_a_terminals_signal_is_not_for_the_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches a whole process group; a run that is verifying would count as failed."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nps -o pgid= -p $$ > "$5/group"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    _run_fresh(tmp_path)
    assert int((tmp_path / "group").read_text()) != os.getpgrp()

    python.write_text("#!/bin/sh\necho no such file >&2\nexit 3\n")
    with pytest.raises(ExportError, match=r"cannot load the export:\nno such file"):
        _run_fresh(tmp_path)
    python.write_text("#!/bin/sh\nkill -TERM $$\n")
    with pytest.raises(ExportError, match="ended by SIGTERM"):
        _run_fresh(tmp_path)
