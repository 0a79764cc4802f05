"""The figures of ``benchmarks/export.py`` on toy results: bars, formats that are left out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import export  # noqa: E402
import export_formats  # noqa: E402
from accuracy import Notebook  # noqa: E402
from lab import Lab, NotMeasuredError  # noqa: E402

from distill.report.items import Estimate, FormatFigures, Latency  # noqa: E402
from distill.training.signals import StopSignal  # noqa: E402


def lab(out: Path, *arguments: str) -> Lab:
    given = export.parser().parse_args(["--out", str(out), "--data", str(out / "data"), *arguments])
    with StopSignal() as stop:
        return Lab(given, Notebook(out, {}), stop, Console(file=io.StringIO(), width=200))


def line(name: str, **changes: Any) -> dict[str, Any]:
    latencies = tuple(
        Latency(batch=n, p50_ms=7.0 * n, p90_ms=8.0 * n, eager_ratio=0.3, images_per_second=140.0) for n in (1, 16)
    )
    fields = {
        "name": name,
        "images": 1080,
        "split": "test",
        "relative_difference": 1e-6,
        "agreement": 1.0,
        "passed": True,
        "accuracy": Estimate(value=0.9, low=0.88, high=0.92),
        "bytes": 14_000_000,
        "load_seconds": 0.3,
        "latencies": latencies,
        "cores": 1.0,
        "threads": 1,
    }
    own = FormatFigures.model_validate(fields | changes).model_dump(mode="json")
    return {"figures": own, "seconds": 20.0, "rounds": 60}


def test_figures_have_their_bars_and_what_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"litert": "not installed: litert-torch", "openvino_int8": "this version has no such format"}
    lines = {name: line(name) for name in (export_formats.LIVE, *export_formats.FORMATS) if name not in absent}
    lines["pt2"] = line("pt2", agreement=1079 / 1080, relative_difference=3e-5)
    lines["onnx_int8"] = line(
        "onnx_int8", agreement=0.98, bytes=4_000_000, accuracy=Estimate(value=0.895, low=0, high=1)
    )
    lines["pte_int8"] = line("pte_int8", agreement=0.95, bytes=5_000_000, accuracy=Estimate(value=0.88, low=0, high=1))
    monkeypatch.setattr(export_formats, "of_format", lambda _, name: lines[name])
    monkeypatch.setattr(export_formats, "reason_absent", lambda name: absent.get(name, ""))
    own = lab(tmp_path)
    made = {each.row.name: each for each in export_formats.formats(own)}
    assert made["parity_fp32"].bar == "≤ 1e-05 missed" and made["parity_fp32"].row.value == 3e-5, "of the worst"
    assert made["top1_equal_fp32"].bar == "= 1 missed" and made["agree_fp16"].bar == "≥ 0.998 reached"
    assert made["agree_int8_onnx"].bar == "≥ 0.97 reached" and made["agree_int8_pte"].bar == "≥ 0.97 missed"
    assert made["accuracy_int8_minus_fp32_onnx"].row.value == pytest.approx(-0.005)
    assert made["accuracy_int8_minus_fp32_pte"].bar == "≥ -0.01 missed"
    assert not made["agree_int8_openvino"].is_measured and made["agree_int8_openvino"].bar == "≥ 0.97"
    assert made["size_int8"].row.value == pytest.approx(5 / 14) and made["size_int8"].bar == "≤ 0.31 missed"
    assert made["latency_onnx"].bar == "≤ 0.45 reached" and made["latency_pte_16"].bar == ""
    assert made["export_seconds"].row.value == 80.0 and made["export_seconds"].bar == "≤ 240 reached"
    assert "left out: litert, openvino_int8" in made["parity_fp32"].detail
    assert isinstance(own.console.file, io.StringIO)
    assert "litert: left out, not installed: litert-torch" in own.console.file.getvalue()
    absent["onnx_int8"] = "this version has no such format"
    some = {each.row.name: each for each in export_formats.formats(own)}
    assert not some["export_seconds"].is_measured and some["export_seconds_so_far"].row.value == 60.0
    assert "together: onnx, pt2, pte" in some["export_seconds_so_far"].detail


def test_a_format_that_this_version_lacks_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export_formats.FORMATS, "never", {"type": "never_a_format"})
    assert export_formats.reason_absent("never") == "this version has no such format"
    assert export_formats.reason_absent("pt2") == "", "torch is always there"
    with pytest.raises(NotMeasuredError):
        export_formats.of_format(lab(tmp_path, "--list"), "pt2")
