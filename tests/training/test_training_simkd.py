"""SimKD in a fit: the head that is evaluated and kept is the teacher's classifier behind the trained projector."""

import json
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from toy_training import Watched, experiment, network, run, student_fit, whole

from distill.commands.exported import evaluate_run, verify_run
from distill.commands.runs import export_run
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import read_delta
from distill.models.network import create_network
from distill.run.stage import StageError
from distill.training.module import Distillation


@pytest.mark.parametrize("train", ["deltas", "full"])
@pytest.mark.parametrize("objectives", [["simkd"], ["ce", "simkd"]], ids="+".join)
def test_the_students_head_is_the_folded_one(train: str, objectives: list[str], tmp_path: Path) -> None:
    student = {} if train == "deltas" else whole(tmp_path)
    changes = {"objectives": objectives, "training": {"epochs": 1, "ema": None}, "student": student}
    modules: list[Distillation] = []
    watched = student_fit(experiment(tmp_path, **changes), tmp_path / "fit", modules.append, Watched())
    module, fitted = modules[-1], watched.student
    projector = module.step.terms[-1].objectives[0].projector
    reused = module.step.teacher.networks[0].get_classifier()
    view = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        fitted.needs = frozenset({"logits", "pooled"})
        seen = fitted.eval()(view)
        expected = reused(projector(seen.pooled))
    torch.testing.assert_close(seen.logits, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(fitted.model.get_classifier(), torch.nn.Linear)
    kept = {key.partition("objectives.0.")[2] for key in module.trained_state() if key.startswith("step.terms.")}
    assert kept - {""} == {"projector.weight", "projector.bias"}


def test_a_delta_on_the_head_is_in_the_way(tmp_path: Path) -> None:
    deltas = [{"type": "low_rank", "rank": 2, "sites": ["*", "classifier"]}]
    with pytest.raises(StageError, match="simkd replaces the student's head, but a delta changes that layer"):
        student_fit(experiment(tmp_path, objectives=["simkd"], student={"deltas": deltas}), tmp_path / "fit")


CONV = {"objectives": [{"type": "simkd", "projector": "conv"}], "training": {"epochs": 1, "ema": None}}


@pytest.mark.parametrize("train", ["deltas", "full"])
def test_the_convs_learn_and_the_teachers_classifier_stays(train: str, tmp_path: Path) -> None:
    student = {} if train == "deltas" else whole(tmp_path)
    modules: list[Distillation] = []
    starts: list[dict[str, torch.Tensor]] = []

    def watch(module: Distillation) -> None:
        modules.append(module)
        if len(starts) < 1:
            starts.append({name: t.detach().clone() for name, t in module.step.student.model.named_parameters()})

    watched = student_fit(experiment(tmp_path, student=student, **CONV), tmp_path / "fit", watch)
    fitted = watched.student.model
    reused = modules[-1].step.teacher.networks[0].get_classifier()
    head = fitted.get_classifier()
    assert head.weight.equal(reused.weight) and head.bias.equal(reused.bias)
    moved = {name for name, t in fitted.named_parameters() if not t.equal(starts[0][name])}
    assert {f"reused_head.convs.{n}.weight" for n in (0, 1, 3, 4, 6, 7)} <= moved
    assert ("conv_stem.weight" in moved) is (train == "full")
    statistics = fitted.reused_head.convs[1].running_mean
    assert statistics.abs().max() > 0, "batch norms of the head see batches, those of a frozen backbone do not"
    again = student_fit(experiment(tmp_path, student=student, **CONV), tmp_path / "fit")
    assert not again.seen, "a finished fit is loaded"
    loaded = again.student.model.state_dict()
    assert all(t.equal(loaded[name]) for name, t in fitted.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("verification_forks", "blank_figures", "blank_previews")
@pytest.mark.parametrize("train", ["deltas", "full"])
def test_a_whole_run_keeps_convs_and_classifier_in_every_file(train: str, tmp_path: Path) -> None:
    changes = dict(CONV, controls={"linear_probe": False, "labels_only": True})
    changes["student"] = {"deltas": [{"type": "low_rank", "rank": 2}]} if train == "deltas" else whole(tmp_path)
    settings = experiment(tmp_path, **changes)
    console = Console(record=True, width=200)
    folder = run(settings, console=console)
    summary = json.loads((folder / "results.json").read_text())["summary"]
    assert all(check["passed"] for check in summary["verification"]) and len(summary["verification"]) > 1
    merged = timm.create_model(f"local-dir:{folder / 'export' / 'merged'}", pretrained=True).eval()
    plain = create_network(settings.student.network, 4).model
    added = sum(p.numel() for p in merged.parameters()) - sum(p.numel() for p in plain.parameters())
    size = sum(t.numel() * t.element_size() for t in merged.state_dict().values())
    size -= sum(t.numel() * t.element_size() for t in plain.state_dict().values())
    assert summary["sizes"]["reused head, beyond its own"] == size
    warning_text = f"enlarges it by {added:,} parameters, {size:,} bytes"
    assert any(warning_text in warning for warning in summary["warnings"]) and warning_text in console.export_text()
    assert warning_text in (folder / "report.html").read_text()

    accuracy = next(row["accuracy"] for row in summary["rows"] if row["name"] == "student")
    assert evaluate_run(folder, "test", Console(quiet=True)).accuracy() == pytest.approx(accuracy)
    if train == "full":
        verify_run(folder, Console(quiet=True))
    export_run(folder, folder / "again", Console(quiet=True))
    first, again = (
        timm.create_model(f"local-dir:{folder / n / 'merged'}", pretrained=True) for n in ("export", "again")
    )
    assert all(t.equal(again.state_dict()[name]) for name, t in first.state_dict().items())
    if train == "deltas":
        teacher = create_network(settings.teacher.networks[0]).model
        manifest, _ = read_delta(folder / "export" / "delta")
        assert manifest.architecture == "test_efficientnet" and manifest.head.width == teacher.num_features
        tasks = DeltaBank(plain)
        tasks.add("toy", folder / "export" / "delta")
        x = torch.randn(4, 3, 32, 32)
        torch.testing.assert_close(tasks.model("toy")(x), merged(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_deltas_that_look_at_the_data_first_see_the_student_with_its_convs(tmp_path: Path) -> None:
    teacher = {"networks": [network(tmp_path, "test_vit")]}
    deltas = {"deltas": [{"type": "halrp", "ranks": {"alpha": 0.9}, "kinds": ["conv"]}]}
    settings = experiment(tmp_path, **CONV, teacher=teacher, student=deltas)
    watched = student_fit(settings, tmp_path / "fit")
    assert hasattr(watched.student.model, "reused_head") and (tmp_path / "fit" / "prepared.ckpt").is_file()
    assert watched.student.model.get_classifier().weight.shape == (4, 64)
