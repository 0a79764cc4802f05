"""Measured formats: times in turn with PyTorch, the figures of a process, and what a report shows of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from export_students import LABELS, Trained
from rich.console import Console
from torch import Tensor, nn

from distill.export.compared import EAGER, chosen, format_items
from distill.export.measure import Timer, latency, measure_formats
from distill.export.pick import RuleError
from distill.export.settings import ExportSettings, MeasureSettings
from distill.export.targets.base import About, ExportTarget
from distill.export.targets.timm_folder import TimmFolder
from distill.report.items import Estimate, FormatFigures, Latency, Scatter, Table
from distill.report.scatter import front, scatter_figure
from distill.report.terminal import measured_table
from distill.report.theme import LIGHT
from distill.run.measure_export import figures_of

IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3))
TIMM = TimmFolder(TimmFolder.Settings())


class Slow(ExportTarget):
    """A toy format: a timm folder whose session adds to a logit, and holds memory of which the process knows."""

    class Settings(ExportTarget.Settings):
        wrong: float = 0.0
        held: int = 0

    title, folder, tolerance = "slow", "slow", 5e-3
    settings: Settings

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        return TIMM.write(model, folder, about)

    def check(self, folder: Path) -> str:
        return TIMM.check(folder)

    def session(self, folder: Path) -> Callable[[Tensor], Tensor]:
        run, held = TIMM.session(folder), bytearray(os.urandom(1) * self.settings.held)
        assert self.threads is not None and len(held) == self.settings.held
        change = self.settings.wrong * torch.eye(len(LABELS))[0]
        return lambda images: run(images) + change + len(held) * 0


def test_rounds_change_the_order_and_leave_out_the_warm_up() -> None:
    clock, cpu, called = count(), count(0, 3), []
    run, eager = lambda images: called.append("own"), lambda images: called.append("eager")
    timer = Timer(run, eager, lambda: float(next(clock)), lambda: float(next(cpu)))  # type: ignore[arg-type]
    own, other = timer.rounds(IMAGES, 3)
    assert own == other == (1.0, 1.0, 1.0) and timer.cores == 3.0
    assert called[4:] == ["eager", "own", "own", "eager", "eager", "own"], "after two rounds of warm-up"


def test_a_ratio_is_of_the_same_round() -> None:
    made = latency(4, (0.010, 0.020, 0.040), (0.020, 0.040, 0.080))
    assert made.p50_ms == pytest.approx(20) and made.p90_ms == pytest.approx(36)
    assert made.eager_ratio == 0.5 and made.images_per_second == pytest.approx(200)


@pytest.mark.slow
def test_formats_are_measured_in_new_processes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one test with new processes: the live model's and a format's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    held = 60_000_000
    target = Slow(Slow.Settings(type=f"{__name__}:Slow", wrong=100.0, held=held))
    target.write(trained.model, tmp_path / "slow", About("random", LABELS))
    settings = MeasureSettings(rounds=2, batches=(1, 4))
    live, own = measure_formats({tmp_path / "slow": target}, IMAGES, trained.model, settings)
    with torch.no_grad():
        expected = trained.model.eval()(IMAGES)
    assert torch.allclose(live.logits, expected, atol=1e-5 * float(expected.abs().max()))
    assert own.logits.argmax(1).eq(0).all() and live.target is None and own.target is target
    assert [of.batch for of in own.latencies] == [1, 4]
    assert live.latencies[0].eager_ratio == 1.0 and own.latencies[0].eager_ratio != 1.0
    assert own.bytes == sum(path.stat().st_size for path in (tmp_path / "slow").iterdir())
    assert 0 < live.cores < 1.5 and own.load_seconds > 0
    if live.peak_bytes is not None:  # Linux
        assert own.peak_bytes is not None and own.peak_bytes > held, "memory that only the format holds"
    compared = figures_of(own, expected, torch.zeros(6, dtype=torch.long), "test", 1)
    assert compared.accuracy is not None and compared.accuracy.value == 1.0 and not compared.passed
    assert compared.agreement == float((expected.argmax(1) == 0).float().mean())
    unlabeled = figures_of(live, expected, torch.full((6,), -1), "test", 1)
    assert unlabeled.accuracy is None and unlabeled.passed and unlabeled.type == ""


def made(name: str, accuracy: float | None, size: int, ms: float, **changes: object) -> FormatFigures:
    whole = (
        {} if accuracy is None else {"accuracy": Estimate(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02)}
    )
    latencies = tuple(
        Latency(batch=n, p50_ms=ms * n, p90_ms=1.2 * ms * n, eager_ratio=ms / 20, images_per_second=1000 / ms)
        for n in (1, 16)
    )
    return FormatFigures(
        name=name,
        type="" if name == EAGER else name.lower().replace(" ", "_"),
        images=1080,
        split="test",
        relative_difference=1e-6,
        agreement=0.98,
        bytes=size,
        load_seconds=0.3,
        latencies=latencies,
        threads=1,
        **{"passed": True, "cores": 1.0, "peak_bytes": 45_000_000, **whole, **changes},  # type: ignore[arg-type]
    )


FORMATS = [
    made(EAGER, 0.93, 13_900_000, 20.0),
    made("pt2", 0.93, 14_700_000, 19.4),
    made("ONNX", 0.93, 13_800_000, 6.9),
    made("ExecuTorch", 0.93, 13_750_000, 6.5, fixed_batch=1),
    made("ONNX int8, 8-bit weights", 0.92, 4_000_000, 6.4, cores=1.9),
    made("saturated", 0.55, 3_900_000, 4.2, passed=False),
]


def shown(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(measured_table(table, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_names_the_choice_and_fits_terminals() -> None:
    choice = chosen(FORMATS, "accuracy-1.1%, min latency")
    assert choice is not None and choice.name == "ONNX int8, 8-bit weights"
    assert list(choice.excluded) == ["saturated"]
    items = list(format_items(FORMATS, choice))
    assert items[:6] == FORMATS
    table, times = (item for item in items if isinstance(item, Table))
    assert [row.muted for row in table.rows] == [True, True, True, False, False, False]
    assert [row.strong for row in table.rows].index(True) == 4
    assert [row.mark for row in table.rows] == ["", "", "", "‡", "†", "!"]
    for told in (choice.reason, "than the format promises: saturated.", "1,080\xa0images of test", "! a larger"):
        assert told in table.caption
    assert "† used 1.9 cores (ONNX int8, 8-bit weights)." in times.caption and "fixed (1)" in times.caption
    for width in (80, 120):
        lines = shown(table, width).splitlines()
        assert max(map(len, lines)) <= width
        text = " ".join(" ".join(lines).split())
        assert "accuracy" in text and "13.8" in text and "0.35" in text, "quality, size and time are never left out"
    assert "interval" in shown(table, 120) and "p90" in shown(times, 80)


def test_the_scatter_draws_the_front_in_front_of_gray_points() -> None:
    [scatter] = [item for item in format_items(FORMATS, chosen(FORMATS, "min latency")) if isinstance(item, Scatter)]
    assert [point.muted for point in scatter.points] == [True, True, True, False, False, False]
    assert [point.name for point in scatter.points if point.strong] == ["ONNX int8, 8-bit weights"]
    assert front([(point.x, point.y) for point in scatter.points]) == [5]
    assert front([(1, 5), (2, 4), (3, 4), (1, 6), (5, 1)]) == [0, 1, 4]
    figure = scatter_figure(scatter, LIGHT)
    assert figure is not None
    assert {text.get_text() for text in figure.axes[0].texts} == {of.name for of in FORMATS}
    assert scatter_figure(scatter.model_copy(update={"points": ()}), LIGHT) is None


def test_without_labels_agreement_stands_for_accuracy() -> None:
    unlabeled = [made(EAGER, None, 13_900_000, 20.0), made("ONNX", None, 13_800_000, 6.9, peak_bytes=None)]
    items = list(format_items(unlabeled, chosen(unlabeled, "agreement>=90%, min latency")))
    [scatter] = [item for item in items if isinstance(item, Scatter)]
    assert scatter.value == "agreement" and scatter.points[1].value == 0.98
    table = next(item for item in items if isinstance(item, Table))
    assert table.rows[1].cells[1:3] == (None, None) and "chooses ONNX" in table.caption
    assert chosen(unlabeled, None) is None
    with pytest.raises(RuleError, match="latency@8 is not measured, only latency@1, latency@16"):
        chosen(unlabeled, "min latency@8")


def test_the_key_is_a_switch_or_settings() -> None:
    assert ExportSettings().measure is None and ExportSettings.model_validate({"measure": False}).measure is None
    assert ExportSettings.model_validate({"measure": True}).measure == MeasureSettings()
    settings = ExportSettings.model_validate({"measure": {"batches": [16, 1], "pick": "accuracy-1%, min size"}})
    assert settings.measure is not None and settings.measure.batches == (1, 16)
    with pytest.raises(ValueError, match="there is no quantity 'sise'; did you mean 'size'"):
        ExportSettings.model_validate({"measure": {"pick": "min sise"}})
    with pytest.raises(ValueError, match="batch 8 is not measured, only 1, 16; see batches"):
        ExportSettings.model_validate({"measure": {"pick": "min latency@8"}})
    with pytest.raises(ValueError, match="give different numbers from 1 on"):
        ExportSettings.model_validate({"measure": {"batches": [1, 1]}})
    assert ExportSettings.model_validate(settings.model_dump(mode="json")) == settings
