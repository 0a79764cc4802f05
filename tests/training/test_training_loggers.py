"""Loggers beside ``log.csv``: the same metrics, all in the fit's folder, and no training that ends because of them."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger
from toy_training import experiment, student_fit

from distill.training import loggers
from distill.training.loggers import LoggerError, check_loggers
from distill.training.settings import LoggerSettings
from distill.training.step_keyed import StepKeyedWandb
from distill.yaml_tree import ConfigError


class Noting(Logger):
    """Keeps what it is given; fails from the second call on if asked to."""

    made: list["Noting"] = []  # noqa: RUF012

    def __init__(self, save_dir: str, fails: bool = False):
        super().__init__()
        self.save_dir_given, self.fails = save_dir, fails
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.ended = ""
        self.made.append(self)

    name = "noting"
    version = 0

    def log_hyperparams(self, params: Any, *arguments: Any, **more: Any) -> None:
        self.settings = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.fails and self.rows:
            raise ConnectionError("no network")
        self.rows.append((step, dict(metrics)))

    def finalize(self, status: str) -> None:
        self.ended = status


def logged(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "log.csv").open(newline="") as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def test_a_logger_gets_what_the_log_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Noting.made.clear()
    own = {"type": f"{__name__}:Noting"}
    failing = {**own, "arguments": {"fails": True}}
    csv_of_lightning = {"type": "lightning.pytorch.loggers:CSVLogger", "arguments": {"name": "theirs"}}
    settings = experiment(tmp_path, training={"loggers": ["csv", failing, own, csv_of_lightning]})
    folder = tmp_path / "fit"
    with caplog.at_level(logging.WARNING):
        watched = student_fit(settings, folder)
    assert watched.summary is not None, "the training goes on"
    bad, good = Noting.made
    assert len(bad.rows) == 1 and caplog.text.count("Noting does not log any more (no network)") == 1
    assert good.save_dir_given == str(folder) and good.ended == "success" and good.settings["epochs"] == 2
    rows = {(step, name): value for step, row in good.rows for name, value in row.items() if name != "epoch"}
    expected = logged(folder)
    assert rows.keys() == expected.keys() and rows == pytest.approx(expected, rel=1e-6)
    assert not list(folder.glob("events.*")), "tensorboard is not in the list"
    assert list((folder / "theirs").rglob("metrics.csv"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    text = rf"training\.loggers\.0: {name} is not installed; install it with: pip install 'delta-distill\[{name}\]'"
    with pytest.raises(LoggerError, match=text):
        student_fit(experiment(tmp_path, training={"loggers": [{"type": name}]}), tmp_path / "fit")
    with pytest.raises(LoggerError, match=text):
        check_loggers([LoggerSettings(type=name)])


def test_names_that_are_no_logger(tmp_path: Path) -> None:
    for slip, error in (("wandbb", "did you mean 'wandb'"), ("tensorboad", "did you mean 'tensorboard'")):
        with pytest.raises(ConfigError, match=rf"training\.loggers\.0\.type: unknown logger '{slip}'; {error}"):
            experiment(tmp_path, training={"loggers": [slip]})
    with pytest.raises(LoggerError, match=r"training\.loggers\.0\.type: 'pathlib:Path' does not derive from .*Logger"):
        check_loggers([LoggerSettings(type="pathlib:Path")])
    wrong = LoggerSettings(type="lightning.pytorch.loggers:CSVLogger", arguments={"nme": "x"})
    with pytest.raises(LoggerError, match=r"training\.loggers\.0\.arguments: .*unexpected keyword argument 'nme'"):
        loggers.make_loggers([wrong], tmp_path)
    assert isinstance(loggers.make_loggers([wrong.model_copy(update={"arguments": {}})], tmp_path)[0], CSVLogger)


class OfflineWandb(StepKeyedWandb):
    """Without wandb: it keeps the rows that wandb would get."""

    def __init__(self, folder: Path):
        self._offline, self._prefix, self._save_dir = True, "", str(folder)
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def experiment(self) -> Any:
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, {name: value for name, value in row.items() if name != "trainer/global_step"}))


def test_offline_rows_of_a_resumed_fit_are_logged_once(tmp_path: Path) -> None:
    first = OfflineWandb(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": step}, step)
    first.log_metrics({"val": 2}, 2)
    with (tmp_path / "wandb" / "logged.jsonl").open("a") as file:
        file.write('{"loss": 9')  # cut off when the fit was killed
    again = OfflineWandb(tmp_path)
    for step in (2, 3, 4):
        again.log_metrics({"loss": step, "val": step}, step)
    assert again.rows == [(3, {"val": 3}), (4, {"loss": 4, "val": 4})]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.filterwarnings("ignore")
def test_the_real_loggers_write_into_the_fits_folder_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    monkeypatch.chdir(outside)
    monkeypatch.setenv("HOME", str(outside))
    settings = experiment(tmp_path, training={"loggers": [{"type": name}], "epochs": 1, "schedule": {"warmup": 0}})
    student_fit(settings, tmp_path / "toy" / "student")
    inside = files(tmp_path / "toy" / "student")
    assert any(file.startswith({"wandb": "wandb/offline-run", "mlflow": "mlflow.db"}[name]) for file in inside), inside
    assert files(outside) == set()
