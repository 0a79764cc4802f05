"""The parts ``int8_aware`` and ``ladder`` of ``export.py``: students that were trained under the rounding of export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import torch
from continual_data import source
from lab import Bars, Figure, Lab, figure_with, finished_run, seeds
from torch import Tensor

from augment.chain import eval_view
from distill.config import read_run, validate_tree
from distill.experiments.student import as_exporting
from distill.export.delta.io import load_delta
from distill.export.delta.model import open_delta
from distill.export.delta.quantize import quantize
from distill.export.logits import logits_of
from distill.export.settings import DELTA, ExportSettings
from distill.models.network import create_network
from distill.run.context import RunContext, open_context
from distill.run.export import EXPORT, export_student
from distill.yaml_tree import load_tree, merge_trees

BARS: Bars = {}
figure = figure_with(BARS)
CONFIG = Path(__file__).parents[1] / "configs" / "flowers" / "base.yaml"
AWARE = {"epochs": 2, "weights": 8, "activations": 8}
FORMS = ("float16", "int8", "sign")
QUICK = {
    "data": {"labels_per_class": 2, "size": 72},
    "teacher": {"networks": [{"model": "embedded:tf_efficientnet_lite1", "size": 64}]},
    "fit_teacher": {"method": "probe", "training": {"epochs": 1}},
    "student": {"network": {"size": 64}},
    "training": {"epochs": 2},
}
DETAIL = "flowers61, {} test images, EfficientNet-Lite0, {} px, low rank 8, distilled from Lite2 for {} epochs"


def int8_aware(lab: Lab) -> Iterator[Figure]:
    """Accuracy of the ONNX int8 program of students with and without quantized last epochs, equally long."""
    lines = {name: [of_program(lab, name, how, seed) for seed in seeds(lab)] for name, how in _SIDES.items()}
    aware, plain = lines["aware"], lines["plain"]
    detail = f"{_detail(aware[0])}; ONNX int8, calibrated on 128 training images; the last {AWARE['epochs']} quantized"
    gains = [with_it["int8"] - without["int8"] for with_it, without in zip(aware, plain, strict=True)]
    yield figure("int8_aware_gain", gains, "fraction", f"{detail}; over the same training without, by seed")
    for name, own in lines.items():
        yield figure(f"accuracy_fp32_{name}", [line["fp32"] for line in own], "fraction", detail)
        yield figure(f"accuracy_int8_{name}", [line["int8"] for line in own], "fraction", detail)
        yield figure(f"agreement_int8_{name}", [line["agreement"] for line in own], "fraction", detail)


def ladder(lab: Lab) -> Iterator[Figure]:
    """Bytes and accuracy of the delta file with deltas and head in one format, with and without training for it."""
    for form in ("float32", *FORMS):
        after = [of_file(lab, form, None, seed) for seed in seeds(lab)]
        detail = f"{_detail(after[0])}; deltas and head in {form}"
        yield figure(f"bytes_{form}", [line["bytes"] for line in after], "bytes", detail)
        yield figure(f"accuracy_{form}", [line["accuracy"] for line in after], "fraction", f"{detail}, after training")
        if form != "float32":
            how = {"epochs": AWARE["epochs"], "deltas": form, "head": form}
            trained = [of_file(lab, form, how, seed)["accuracy"] for seed in seeds(lab)]
            yield figure(f"accuracy_{form}_trained", trained, "fraction", f"{detail}, in the last epochs too")


_SIDES: Mapping[str, dict[str, Any] | None] = {"aware": AWARE, "plain": None}


def of_program(lab: Lab, name: str, how: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """Accuracy of a student, and of its int8 program."""

    def work() -> dict[str, Any]:
        run = student_run(lab, f"int8-{name}" if how else "plain", how, seed)
        export = ExportSettings.model_validate({"targets": [{"type": "onnx_int8", "agreement": 0.0}]})

        def measured(context: RunContext, student: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
            folder = run / "programs"
            export_student(context, export, student, folder, ())
            [target] = export.make_targets()
            outputs = target.session(folder / target.folder)(images).argmax(1)
            exact = logits_of(student.model)(images).argmax(1)
            return {
                "int8": float((outputs == labels).float().mean()),
                "fp32": float((exact == labels).float().mean()),
                "agreement": float((outputs == exact).float().mean()),
            }

        return on_test_images(run, measured)

    return lab.once({"part": "int8_aware", "side": name, "seed": seed, **_options(lab)}, work)


def of_file(lab: Lab, form: Any, how: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """Bytes of a delta file and accuracy of the student that is read from it."""

    def work() -> dict[str, Any]:
        run = student_run(lab, f"stored-{form}" if how else "plain", how, seed)
        folder = run / EXPORT / DELTA
        if form != "float32" and how is None:
            folder = run / "rounded" / form
            quantize(open_delta(run / EXPORT / DELTA), folder, form, form)

        def measured(context: RunContext, student: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
            backbone = create_network(read_run(run)[0].student.network, len(context.data.classes)).model
            outputs = logits_of(load_delta(folder, backbone))(images).argmax(1)
            size = (folder / "delta.safetensors").stat().st_size
            return {"accuracy": float((outputs == labels).float().mean()), "bytes": size}

        return on_test_images(run, measured)

    return lab.once({"part": "ladder", "form": form, "trained": how is not None, "seed": seed, **_options(lab)}, work)


def on_test_images(run: Path, measured: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What is measured of a run's student on all test images.

    Args:
        run: the folder.
        measured: of context, student, images [N, 3, H, W] and labels [N].

    Returns:
        What ``measured`` gives, with the number of images, their size and the number of epochs.
    """
    experiment = as_exporting(read_run(run)[0], str(run))
    with open_context(experiment) as context:
        student = experiment.load_student(context, run)
        views, labels = [], []
        for batch in context.data.eval_loader("test", shared=False, spec=student.input):
            views.append(eval_view(batch.images, student.input))
            labels.append(batch.labels)
        about = {"images": sum(map(len, views)), "size": student.input.size[0], "epochs": experiment.training.epochs}
        return {**measured(context, student, torch.cat(views), torch.cat(labels)), **about}


def student_run(lab: Lab, name: str, how: dict[str, Any] | None, seed: int) -> Path:
    """The folder of a distillation, which is run if it has not been. The teacher of a seed is fitted once."""
    own = {
        "name": f"{name}-{seed}",
        "output": str(lab.given.out / "runs"),
        "seed": seed,
        "data": {"source": source(lab.given.data / "flowers61", lab.given.out), "workers": 0},
        "training": {"quantize": how, "loggers": []},
    }
    tree = merge_trees(merge_trees(load_tree(CONFIG), own), QUICK if lab.given.quick else {})
    return finished_run(validate_tree(tree, name))


def _options(lab: Lab) -> dict[str, Any]:
    return {"quick": lab.given.quick}


def _detail(line: Mapping[str, Any]) -> str:
    return DETAIL.format(line["images"], line["size"], line["epochs"])
