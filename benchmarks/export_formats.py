"""The part ``formats`` of ``export.py``: a linear probe of flowers in every format."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import LITE0, source
from lab import Bars, Figure, Lab, figure_with, finished_run

from augment.base import PluginError
from distill.config import read_run, validate_tree
from distill.experiments.student import as_exporting
from distill.export.settings import DELTA, TARGETS, ExportSettings, MeasureSettings
from distill.report.items import FormatFigures
from distill.run.context import open_context
from distill.run.export import EXPORT, export_student, written_targets
from distill.run.measure_export import measure_export

BARS: Bars = {
    "parity_fp32": ("≤", 1e-5),
    "top1_equal_fp32": ("=", 1.0),
    "agree_fp16": ("≥", 0.998),
    **{f"agree_int8_{name}": ("≥", 0.97) for name in ("onnx", "pte", "openvino")},
    **{f"accuracy_int8_minus_fp32_{name}": ("≥", -0.01) for name in ("onnx", "pte", "openvino")},
    "latency_onnx": ("≤", 0.45),
    "latency_pte": ("≤", 0.40),
    "latency_openvino": ("≤", 0.45),
    "size_int8": ("≤", 0.31),
    "export_seconds": ("≤", 240.0),
}
figure = figure_with(BARS)

FP32: Mapping[str, dict[str, Any]] = {name: {"type": name} for name in ("onnx", "pt2", "pte", "openvino", "litert")}
FP16: Mapping[str, dict[str, Any]] = {
    "onnx_fp16": {"type": "onnx", "dtype": "float16"},
    "openvino_fp16": {"type": "openvino", "weights": "float16"},
}
INT8: Mapping[str, dict[str, Any]] = {f"{name}_int8": {"type": f"{name}_int8"} for name in ("onnx", "pte", "openvino")}
FORMATS = {**FP32, **FP16, **INT8}
EXPORTED = ("onnx", "pt2", "pte", "onnx_int8")
"""Whose time of export has a bar."""
LIVE = "live"
ROUNDS, QUICK_ROUNDS, QUICK_IMAGES = 60, 10, 200


def formats(lab: Lab) -> Iterator[Figure]:
    """The figures of all formats that can be measured here."""
    lines = {LIVE: of_format(lab, LIVE)}
    absent = {}
    for name in FORMATS:
        if why := reason_absent(name):
            absent[name] = why
        else:
            lines[name] = of_format(lab, name)
    for name, why in absent.items():
        lab.console.print(f"{name}: left out, {why}", highlight=False, soft_wrap=True)
    made = {name: FormatFigures.model_validate(line["figures"]) for name, line in lines.items()}
    live = made[LIVE]
    detail = f"flowers61, {live.images:,} test images, EfficientNet-Lite0, 128 px, logistic head on the frozen network"
    if absent:
        detail += f"; left out: {', '.join(absent)}"
    exact = {name: made[name] for name in FP32 if name in made}
    half = {name: made[name] for name in FP16 if name in made}
    assert live.accuracy is not None
    yield figure("accuracy_fp32", [live.accuracy.value], "fraction", detail)
    yield figure("parity_fp32", _worst(max, [own.relative_difference for own in exact.values()]), "relative", detail)
    yield figure("top1_equal_fp32", _worst(min, [own.agreement for own in exact.values()]), "fraction", detail)
    yield figure("agree_fp16", _worst(min, [own.agreement for own in half.values()]), "fraction", detail)
    for name in INT8:
        runtime, own = name.removesuffix("_int8"), made.get(name)
        lost = [own.accuracy.value - live.accuracy.value] if own is not None and own.accuracy is not None else []
        yield figure(f"agree_int8_{runtime}", [own.agreement] if own is not None else [], "fraction", detail)
        yield figure(f"accuracy_int8_minus_fp32_{runtime}", lost, "fraction", detail)
    sizes = [made[name].bytes / made[whole].bytes for name, whole in _same_runtime(made)]
    yield figure("size_int8", _worst(max, sizes), "of fp32", f"{detail}; the largest of {len(sizes)} runtimes")
    yield from _of_each(made, lines, detail)
    seconds = [lines[name]["seconds"] for name in EXPORTED if name in lines]
    exported = ", ".join(name for name in EXPORTED if name in lines)
    complete = [sum(seconds)] if len(seconds) == len(EXPORTED) else []
    yield figure("export_seconds", complete, "s", f"together: {', '.join(EXPORTED)}")
    if not complete:
        yield figure("export_seconds_so_far", [sum(seconds)], "s", f"together: {exported}")


def _of_each(made: Mapping[str, FormatFigures], lines: Mapping[str, Any], detail: str) -> Iterator[Figure]:
    """Figures that every format has."""
    for name, own in made.items():
        first, *others = own.latencies
        timed = f"{detail}; one thread, {lines[name]['rounds']} rounds; {name} used {own.cores:.2f} cores"
        if name != LIVE:
            yield figure(f"difference_{name}", [own.relative_difference], "relative", detail)
            yield figure(f"latency_{name}", [first.eager_ratio], "of PyTorch", f"{timed}; batch {first.batch}")
            for other in others:
                ratio = [other.eager_ratio]
                yield figure(f"latency_{name}_{other.batch}", ratio, "of PyTorch", f"{timed}; batch {other.batch}")
            yield figure(f"seconds_{name}", [lines[name]["seconds"]], "s", "to export it")
        yield figure(f"p50_{name}", [first.p50_ms], "ms", timed)
        yield figure(f"bytes_{name}", [own.bytes], "bytes", detail)
        if own.peak_bytes is not None:
            yield figure(f"memory_{name}", [own.peak_bytes], "bytes", "resident, beyond interpreter and packages")


def reason_absent(name: str) -> str:
    """Why a format cannot be measured here; empty if it can."""
    plain = FORMATS[name]
    try:
        target = TARGETS.settings_of(plain["type"]).component
    except PluginError:
        return "this version has no such format"
    missing = target.missing()  # type: ignore[union-attr]
    return f"not installed: {', '.join(missing)}" if missing else ""


def of_format(lab: Lab, name: str) -> dict[str, Any]:
    """What was measured of a format, or of the live model: ``figures``, and ``seconds`` of its export."""
    quick = lab.given.quick
    rounds, images = (QUICK_ROUNDS, QUICK_IMAGES) if quick else (ROUNDS, None)
    key = {"part": "formats", "format": name, "settings": FORMATS.get(name), "rounds": rounds, "images": images}

    def work() -> dict[str, Any]:
        settings = MeasureSettings(rounds=rounds, images=images)
        return {**_measured(student_run(lab), name, settings), "rounds": rounds}

    return lab.once(key, work)


def student_run(lab: Lab) -> Path:
    """The run folder of the linear probe, which is fitted if it is not there yet."""
    tree = {
        "kind": "few_shot",
        "name": "probe",
        "output": str(lab.given.out / "runs"),
        "data": {"source": source(lab.given.data / "flowers61", lab.given.out), "size": 144, "workers": 0},
        "student": {"network": {"model": LITE0, "size": 128}},
        "heads": [{"type": "logistic"}],
    }
    return finished_run(validate_tree(tree, "probe"))


def _measured(run: Path, name: str, measuring: MeasureSettings) -> dict[str, Any]:
    experiment = as_exporting(read_run(run)[0], str(run))
    targets = [FORMATS[name]] if name in FORMATS else []
    export = ExportSettings.model_validate({"targets": targets, "measure": measuring.model_dump()})
    with open_context(experiment) as context:
        student = experiment.load_student(context, run)
        folder, seconds = run / "formats" / name, 0.0
        if targets:
            begun = time.perf_counter()
            written = export_student(context, export, student, folder, ())
            seconds = time.perf_counter() - begun
            if written.refused:
                raise SystemExit(f"{name}: {written.refused}")
        own = written_targets(export, folder)
        delta = (folder if own else run / EXPORT) / DELTA
        [made] = measure_export(context, experiment.student, student, own, measuring, delta, live=not own)
    return {"figures": made.model_dump(mode="json"), "seconds": seconds}


def _same_runtime(made: Mapping[str, FormatFigures]) -> list[tuple[str, str]]:
    """(int8 format, the fp32 format of the same runtime), of those that were measured."""
    pairs = [(name, name.removesuffix("_int8")) for name in INT8]
    return [pair for pair in pairs if set(pair) <= made.keys()]


def _worst(of: Any, values: list[float]) -> list[float]:
    return [of(values)] if values else []
