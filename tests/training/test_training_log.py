"""The log of a fit: continued on resume, and never worth stopping for."""

import csv
import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training_checkpoints import small_disk
from test_training_resume import interrupted
from torch import Tensor
from toy_training import STEPS, assert_bit_equal, experiment, student_fit

from distill.training.callbacks import EpochLines
from distill.training.module import Distillation
from distill.training.progress import FitProgress
from distill.training.run_log import RunLog

TIMED = ("share/", "images_per_second")


def rows(folder: Path) -> list[tuple[str, ...]]:
    """The rows of the CSV but for those that hold times."""
    with (folder / "log.csv").open(newline="") as file:
        header, *lines = [tuple(row) for row in csv.reader(file)]
    assert header == ("step", "epoch", "name", "value")
    return [row for row in lines if not row[2].startswith(TIMED)]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


Straight = tuple[Path, dict[str, Tensor]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The folder of a fit that logged every step, and its weights."""
    output = tmp_path_factory.mktemp("straight")
    return output / "fit", student_fit(experiment(output, training={"log_every": 1}), output / "fit").weights


@pytest.mark.slow
def test_the_log_goes_on_where_it_was(tmp_path: Path, straight: Straight) -> None:
    settings = experiment(tmp_path, training={"log_every": 1})
    interrupted(settings, tmp_path / "stopped", 2)
    interrupted(settings, tmp_path / "stopped", STEPS + 1)
    student_fit(settings, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(straight[0])
    names = {name for _, _, name, _ in rows(straight[0])}
    assert {"loss", "loss/ce", "loss/kd", "loss/icd", "gradient_norm", "lr", "val/accuracy", "val/agreement"} <= names
    for name in ("loss", "val/accuracy"):
        assert scalars(tmp_path / "stopped", name) == scalars(straight[0], name)
    assert [step for step, _ in scalars(tmp_path / "stopped", "loss")] == list(range(1, 2 * STEPS + 1))


def test_a_row_holds_the_steps_of_one_epoch(tmp_path: Path) -> None:
    """Not the last of one and the first of the next: a mean of one step would jump among means of many."""
    student_fit(experiment(tmp_path, training={"log_every": STEPS + 1}), tmp_path / "fit")
    assert [step for step, _ in scalars(tmp_path / "fit", "loss")] == [STEPS, 2 * STEPS]


@pytest.mark.slow
def test_rows_after_the_last_checkpoint_are_taken_out(tmp_path: Path, straight: Straight) -> None:
    """A killed run has logged steps that its successor makes again."""
    settings, folder = experiment(tmp_path, training={"log_every": 1}), tmp_path / "killed"
    interrupted(settings, folder, STEPS + 2)
    (folder / f"step-{STEPS + 3:08d}.ckpt").unlink()
    with (folder / "log.csv").open("a") as file:
        file.write("8,1,lo")  # and it was killed while it wrote
    student_fit(settings, folder)
    assert rows(folder) == rows(straight[0])


def test_a_full_disk_under_the_log_is_a_warning(tmp_path: Path, caplog) -> None:
    with small_disk(tmp_path / "disk", 256):
        log = RunLog(tmp_path / "disk" / "fit")
        (tmp_path / "disk" / "filler").write_bytes(bytes(200_000))
        with caplog.at_level(logging.WARNING):
            for step in range(3000):
                log.log_metrics({f"metric {n}": float(n) for n in range(10)}, step)
            log.finalize("success")
        assert [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()] == [
            f"{log.path}: the log cannot be written ([Errno 28] No space left on device); training continues without it"
        ]


def test_training_goes_on_without_a_log(tmp_path: Path, straight: Straight, caplog) -> None:
    settings = experiment(tmp_path, training={"log_every": 1})

    def fill(module: Distillation) -> None:
        if module.global_step == 3:
            (tmp_path / "full" / "log.csv").unlink()
            (tmp_path / "full" / "log.csv").symlink_to("/dev/full")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with caplog.at_level(logging.WARNING):
        assert_bit_equal(student_fit(settings, tmp_path / "full", fill).weights, straight[1])
    assert sum("training continues without it" in record.getMessage() for record in caplog.records) == 1


def test_nowhere_to_log_is_a_warning(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    log = RunLog(tmp_path / "file" / "fit")
    log.log_metrics({"loss": 1.0}, 1)
    log.finalize("success")
    assert "the log cannot be written" in caplog.text


def test_event_files_sort_in_the_order_of_their_fits(tmp_path: Path) -> None:
    """Also where a fit resumes in the second in which the former began, whatever TensorBoard counts them as."""
    for step in range(3):
        log = RunLog(tmp_path, resumed_at=step if step else None)
        log.log_metrics({"loss": float(step)}, step + 1)
        log.finalize("success")
    seconds = [path.name.split(".")[3] for path in sorted(tmp_path.glob("events.*"))]
    assert len(set(seconds)) == 3
    assert scalars(tmp_path, "loss") == [(1, 0.0), (2, 1.0), (3, 2.0)]


def test_a_fit_without_validation_shows_its_loss_after_its_epochs() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = FitProgress("student", console)
    progress.start(5, 2, 0)
    lines = EpochLines(progress, every=2)
    for epoch in range(5):
        progress.metrics(2 * epoch + 2, {"images_per_second": 7.0, "loss": 5.0 - epoch, "loss/pooled": 1.0})
        lines.on_train_epoch_end(SimpleNamespace(current_epoch=epoch, max_epochs=5), None)  # type: ignore[arg-type]
    told = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert told[::2] == ["student epoch 2/5", "student epoch 4/5", "student epoch 5/5"]
    assert [line.strip() for line in told[1::2]] == [f"7 img/s  loss {loss} (pooled 1)" for loss in (4, 2, 1)]
