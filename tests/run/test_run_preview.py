"""The preview command's pictures: which images, what stands beside them, and which files."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from augment.preview import contact_sheet
from distill.commands.runs import preview_views
from distill.config import validate_tree
from distill.experiments.distillation import DistillationExperiment as Experiment
from distill.past_views import augment_of, batch_of_step, data_of
from distill.run import preview
from distill.run.preview import ViewBatch, draw_preview
from distill.yaml_tree import ConfigError


def experiment(**changes: Any) -> Experiment:
    network = {"model": "test_efficientnet", "pretrained": False, "size": 32}
    tree = {
        "name": "look",
        "data": {"source": {"type": "digits"}, "batch_size": 8, "size": 32, "workers": 0},
        "augment": {"policy": "shared_geometry", "student": ["RandomResizedCrop", {"type": "ColorJitter", "hue": 0.1}]},
        "teacher": {"networks": [{**network, "size": 40}]},
        "student": {"network": network},
        "objectives": [{"type": "ce"}, {"type": "kd"}],
        "training": {"accelerator": "cpu"},
    }
    return validate_tree(tree | changes, "test")


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every contact sheet was asked to show."""
    asked: list[dict[str, Any]] = []

    def noted(originals, views, teachers, student, titles, notes, footer):
        asked.append({"count": len(originals), "titles": titles, "notes": notes, "footer": footer})
        return contact_sheet(originals, views, teachers, student, titles, notes, footer)

    monkeypatch.setattr(preview, "contact_sheet", noted)
    return asked


def preview_text(settings: Experiment, to: Path, **options: Any) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    preview_views(settings, to, console, **{"images": 3, **options})
    return console.export_text()


def test_rows_say_class_id_and_what_is_shared(sheets: list, tmp_path: Path) -> None:
    settings = experiment()
    output = preview_text(settings, tmp_path / "a.png")
    data = data_of(settings)
    batch = data.train_batch(0, 0)
    sheet = sheets[0]
    assert sheet["count"] == 3 and sheet["titles"] == [data.classes[label] for label in batch.labels[:3].tolist()]
    for row, notes in enumerate(sheet["notes"]):
        assert data.batch_of_ids([notes[0]], 0).ids.tolist() == batch.ids[row : row + 1].tolist()
        assert notes[1].startswith("overlap 100% · ΔE ") and len(notes) == 2
    assert sheet["footer"][0].startswith("teacher and student: crops overlap 100%")
    assert sheet["footer"][0] in output
    for name in ("a.png", "a-operations.png"):
        assert f"wrote {tmp_path / name}" in output
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300


def test_mixed_labels_stand_beside_their_row(sheets: list, tmp_path: Path) -> None:
    settings = experiment(augment={"policy": "identical", "student": [], "mix": {"cutmix": 1.0}})
    data, augment = data_of(settings), augment_of(settings)
    view_batch = ViewBatch.of(augment, data.train_batch(0, 0), 0)
    draw_preview(data, [view_batch], 3)
    mix = view_batch.views.mix
    assert mix is not None
    partners = [data.classes[label] for label in view_batch.batch.labels[mix.partner[:3]].tolist()]
    notes = sheets[0]["notes"]
    assert [row[-1] for row in notes] == [f"the rest: {name}" for name in partners]
    student, teacher = f"{mix.student[0]:.2f}", f"{mix.teacher[0][0]:.2f}"
    share = f"λ {student}" if student == teacher else f"λ student {student}, teacher {teacher}"
    assert {row[-2] for row in notes} == {share}


def test_hidden_labels_stay_hidden_and_nothing_is_shared_without_a_teacher(sheets: list, tmp_path: Path) -> None:
    data = experiment().data.model_dump(mode="json") | {"labels_per_class": 0}
    preview_text(experiment(data=data, teacher=None, objectives=[{"type": "ce"}]), tmp_path / "a.png")
    assert sheets[0]["titles"] is None and sheets[0]["footer"] == []
    assert all(len(notes) == 1 for notes in sheets[0]["notes"])


def test_of_ids_and_of_a_step(sheets: list, tmp_path: Path) -> None:
    settings = experiment()
    names = [data_of(settings).subset("train").ids[index] for index in (4, 9)]
    preview_text(settings, tmp_path / "a.png", ids=names, epoch=2)
    assert [notes[0] for notes in sheets[0]["notes"]] == names
    preview_text(settings, tmp_path / "a.png", step=300)
    epoch, batch = batch_of_step(settings, 300)
    data = data_of(settings)
    assert epoch == 300 // len(data.train_loader())
    shown = [notes[0] for notes in sheets[1]["notes"]]
    assert data.batch_of_ids(shown, epoch).ids.tolist() == batch.ids[:3].tolist()
    with pytest.raises(ConfigError, match="leave out --epoch and --ids"):
        preview_text(settings, tmp_path / "a.png", step=3, epoch=1)


def test_every_operation_has_one_strip(tmp_path: Path) -> None:
    settings = experiment(augment={"policy": "multicrop", "student": ["RandomResizedCrop", "RandomGrayscale"]})
    view_batch = ViewBatch.of(augment_of(settings), data_of(settings).train_batch(0, 0), 0)
    groups = preview._strips(view_batch, view_batch.batch.images[0])
    assert {name: [strip.name for strip in strips] for name, strips in groups.items()} == {
        "student's operations": ["RandomResizedCrop", "RandomGrayscale"],
        "student's operations for small crops": ["RandomResizedCrop"],
    }
    weak = experiment(augment={"policy": "weak_teacher", "student": ["RandomGrayscale"]})
    view_batch = ViewBatch.of(augment_of(weak), data_of(weak).train_batch(0, 0), 0)
    assert list(preview._strips(view_batch, view_batch.batch.images[0])) == [
        "student's operations",
        "teacher's operations, not in the views above",
    ]


@pytest.mark.parametrize("mix", [None, {"mixup": 0.4}])
def test_all_batches_of_an_update_are_shown(sheets: list, mix: Any, tmp_path: Path) -> None:
    augment = {"policy": "identical", "student": [], "mix": mix}
    settings = experiment(augment=augment, training={"accelerator": "cpu", "accumulate": 3})
    output = preview_text(settings, tmp_path / "a.png", images=5, step=1)
    sheet = sheets[0]
    parts = [notes[-1] for notes in sheet["notes"]]
    assert sheet["count"] == 5
    assert parts == [f"batch {part} of 3" for part in (1, 1, 2, 2, 3)]
    data = data_of(settings)
    expected = [batch_of_step(settings, 1, part=part)[1].ids[row].item() for part in range(3) for row in (0, 1)][:5]
    assert data.batch_of_ids([notes[0] for notes in sheet["notes"]], 0).ids.tolist() == expected
    assert "batches of one update: 3, of which the picture shows 3" in output
    assert sheet["footer"][-1] == "rows of 3 of the 3 batches whose gradients one update averages"
    assert "batches of one update: 3, of which the picture shows 2" in preview_text(
        settings, tmp_path / "a.png", images=2
    )
