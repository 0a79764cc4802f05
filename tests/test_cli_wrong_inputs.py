"""No mistake of a user ends in a traceback, and what can be known before training is told before it.

The matrix: wrong images, operations, objectives, deltas, networks and folders × the commands that read them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from blank_figures import blank_figures
from command_line import call, write_config, write_images
from PIL import Image

from distill.yaml_tree import parse_yaml

PARTS = """
import torch
from augment.operation import Sampled
from distill.deltas.low_rank import LowRank
from distill.objectives.kd import KD


class Gray:
    def __call__(self, images):
        return images.mean(1, keepdim=True)


class Missing:
    def __call__(self, images):
        return images / 0 * 0


class Half:
    def __call__(self, images):
        return images[: len(images) // 2]


class Boolean:
    def __call__(self, images):
        return images > 0.5


class Flat:
    def __call__(self, images):
        return images.flatten(1)


class Nothing:
    def __call__(self, images):
        pass


class GrayColor:
    def sample(self, draws, shape):
        return {}

    def color(self, images, params):
        return images.mean(1, keepdim=True)


class Broken:
    def __call__(self, images):
        raise KeyError("my own mistake")


class BrokenSample(Sampled):
    def sample(self, draws, shape):
        return draws.uniform(0, (3, 1, 1))

    def apply(self, images, params):
        return images @ params


class RaisingLoss(KD):
    def loss(self, student, teacher, batch):
        return student.logits @ teacher.nothing


class MissingLoss(KD):
    def loss(self, student, teacher, batch):
        return (student.logits - teacher.logits).mean() * float("nan")


class ConstantLoss(KD):
    def loss(self, student, teacher, batch):
        return torch.zeros(())


class RaisingDelta(LowRank):
    def forward(self, weight):
        raise RuntimeError("my delta")

    def output(self, *arguments, **more):
        raise RuntimeError("my delta")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with users' own classes, from which every command is called, and images."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "wrong_parts.py").write_text(PARTS)
    write_images(folder / "images")
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save(weights, folder / "headless.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


def ops(*operations: Any) -> dict[str, Any]:
    return {"augment": {"student": list(operations)}}


def own(name: str) -> dict[str, Any]:
    return ops("RandomHorizontalFlip", f"wrong_parts:{name}")


def objective(**settings: Any) -> dict[str, Any]:
    return {"objectives": [{"type": "ce"}, settings]}


HEADLESS: dict[str, Any] = {
    "fit_teacher": None,
    "teacher": {"networks": [{"model": "test_resnet", "checkpoint": "headless.pth", "size": 32}]},
}
"""A teacher of features alone."""
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "gray": (own("Gray"), "Gray (operation 2) returned float32 [4, 1, 32, 32], expected floats [4, 3, H, W]"),
    "missing values": (own("Missing"), "the results of wrong_parts:Missing (operation 2) are not finite"),
    "fewer samples": (own("Half"), "Half must return a tensor"),
    "boolean": (own("Boolean"), "Boolean (operation 2) returned bool"),
    "flat": (own("Flat"), "Flat must return a tensor"),
    "nothing": (own("Nothing"), "Nothing must return a tensor"),
    "gray color": (own("GrayColor"), "GrayColor (operation 2) returned float32"),
    "broken": (own("Broken"), "KeyError: 'my own mistake' (WHERE/wrong_parts.py, line "),
    "broken sampled": (own("BrokenSample"), "wrong_parts.py, line "),
    "even kernel": (ops({"type": "RandomGaussianBlur", "kernel_size": [4, 4], "sigma": [0.1, 2.0], "p": 1}), "is even"),
    "large crop": (ops({"type": "RandomCrop", "size": [400, 400]}), "RandomCrop"),
    "raising loss": (objective(type="wrong_parts:RaisingLoss"), "no attribute 'nothing' (WHERE/wrong_parts.py, line "),
    "loss that is not a number": (objective(type="wrong_parts:MissingLoss"), "missingloss is nan"),
    "unknown stage": (objective(type="fitnets", stages={"layer9": "layer1"}), "layer9"),
    "headless teacher": (HEADLESS, "the teacher has no classifier, so it has no logits to compare: train one"),
    "headless teacher, cached": (
        {
            **objective(type="pooled"),
            "fit_teacher": None,
            "teacher": {**HEADLESS["teacher"], "cache": {"pooled": True}},
        },
        "teacher.cache.logits: the teacher has no classifier",
    ),
    "other classes": ({"fit_teacher": None}, "the student has 2 classes, the teacher 1000"),
    "raising delta": ({"student": {"deltas": [{"type": "wrong_parts:RaisingDelta", "rank": 1}]}}, "my delta"),
    "no such site": ({"student": {"deltas": [{"type": "low_rank", "rank": 1, "sites": "x.*"}]}}, "pattern 'x.*'"),
    "no such model": ({"student": {"network": {"model": "test_resnett"}}}, "timm has no model 'test_resnett'"),
    "no such checkpoint": ({"student": {"network": {"checkpoint": "none.pth"}}}, "none.pth"),
    "constant loss": ({"objectives": [{"type": "wrong_parts:ConstantLoss"}]}, "student: one training step"),
    "no such root": ({"data": {"source": {"root": "nowhere"}}}, "nowhere"),
    "root is a file": ({"data": {"source": {"root": "wrong_parts.py"}}}, "wrong_parts.py"),
    "output is a file": ({"output": "wrong_parts.py"}, "wrong_parts.py"),
}
"""Name → changes of the config, and a part of the error's text."""


@pytest.mark.parametrize("fault", SETTINGS)
def test_wrong_settings(fault: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = SETTINGS[fault]
    config = write_config(tmp_path / "small.yaml", parts / "images", **{"output": str(tmp_path / "runs"), **changes})
    status, out, err = call(capsys, "train", config)
    assert status in (1, 2) and "error: " in err and "Traceback" not in out + err, err
    assert message.replace("WHERE", str(parts)) in err
    assert "epoch 1/1" not in out, "nothing is trained"
    runs = tmp_path / "runs"
    assert not runs.exists() or not list(runs.iterdir()), "nothing is left behind"
    commands = ["preview", "cache"] + ["deltas"] * ("student" in changes)
    for command in commands:
        status, out, err = call(capsys, command, config, *(["-o", tmp_path / "views.png"] * (command == "preview")))
        assert "Traceback" not in out + err and (status == 0 or "error: " in err), (command, err)


def one_class(root: Path) -> None:
    for folder in root.iterdir():
        shutil.rmtree(folder / "dog")


def damage(split: str) -> Any:
    def change(root: Path) -> None:
        path = root / split / "dog" / "0.png"
        path.write_bytes(path.read_bytes()[:200])

    return change


def dangling_link(root: Path) -> None:
    (root / "train" / "dog" / "9.png").symlink_to(root / "nowhere.png")


def circular_link(root: Path) -> None:
    (root / "train" / "dog" / "loop").symlink_to(root / "train" / "dog")


def empty_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()


def other_test_class(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")


def text_for_an_image(root: Path) -> None:
    (root / "test" / "cat" / "1.png").write_text("not an image")


def a_pixel(root: Path) -> None:
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(root / "train" / "cat" / "0.png")


IMAGES: dict[str, tuple[Any, str | None]] = {
    "one class": (one_class, "one class, 'cat'"),
    "damaged test image": (damage("test"), "test/dog/0.png"),
    "damaged validation image": (damage("val"), "val/dog/0.png"),
    "text for an image": (text_for_an_image, "test/cat/1.png"),
    "empty class": (empty_class, "dog"),
    "another class in test": (other_test_class, "dog"),
    "dangling link": (dangling_link, None),
    "circular link": (circular_link, None),
    "an image of one pixel": (a_pixel, None),
}
"""Name → what is done to the images, and a part of the error's text; None: a warning is enough."""


@pytest.mark.parametrize("fault", IMAGES)
def test_wrong_images(fault: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = IMAGES[fault]
    change(write_images(tmp_path / "images"))
    config = write_config(tmp_path / "small.yaml", tmp_path / "images", output=str(tmp_path / "runs"))
    commands = [("preview", config, "-o", tmp_path / "views.png"), ("train", "--plan", config)]
    if message is not None:
        commands.append(("train", config))
    for command in commands:
        status, out, err = call(capsys, *command)
        assert "Traceback" not in out + err and (status == 0 or "error: " in err), (command, err)
    if message is not None:
        assert status == 1 and message in err and "epoch 1/1" not in out
        assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"


def unfinished(run: Path) -> None:
    for name in ("export", "student"):
        shutil.rmtree(run / name)
    (run / "results.json").unlink()


def no_record(run: Path) -> None:
    (run / "run.json").unlink()


def broken_record(run: Path) -> None:
    (run / "run.json").write_text("{")


def broken_config(run: Path) -> None:
    (run / "config.yaml").write_text("data: [")


def binary_config(run: Path) -> None:
    (run / "config.yaml").write_bytes(bytes(range(256)))


def damaged_delta(run: Path) -> None:
    path = run / "export" / "delta" / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def no_manifest(run: Path) -> None:
    (run / "export" / "delta" / "delta.json").unlink()


def damaged_merged(run: Path) -> None:
    for path in (run / "export" / "merged").iterdir():
        path.write_bytes(b"")


def damaged_result(run: Path) -> None:
    (run / "student" / "result.ckpt").write_bytes(b"")


def images_gone(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("/images", "/gone"))


RUNS = {
    "unfinished": (unfinished, "is not finished"),
    "no record": (no_record, "run.json"),
    "broken record": (broken_record, "run.json"),
    "broken config": (broken_config, "config.yaml"),
    "binary config": (binary_config, "config.yaml"),
    "damaged delta": (damaged_delta, "delta.safetensors"),
    "no manifest": (no_manifest, "delta.json"),
    "damaged merged model": (damaged_merged, ""),
    "damaged result": (damaged_result, "result.ckpt"),
    "images gone": (images_gone, "gone"),
}


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from warm_server import verify_in_fork

    from distill.cli import main

    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "small.yaml", parts / "images", output=str(folder / "runs"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("distill.export.verify._run_fresh", verify_in_fork)
        main(["train", str(config)])
    assert not end.value.code
    return folder / "runs" / "small"


@pytest.mark.slow
def test_an_export_elsewhere(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``export --output``: a new or empty folder, or ``--force``; what is written is the export of the run."""
    to = tmp_path / "elsewhere"
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    status, out, err = call(capsys, "export", finished, "--output", to)
    assert status == 1 and f"{to} is not empty; name a new folder, or replace files of the same names by --force" in err
    assert [path.name for path in to.iterdir()] == ["notes.txt"] and "wrote" not in out
    status, out, err = call(capsys, "export", finished, "--output", to / "notes.txt", "--force")
    assert status == 1 and "notes.txt is a file; name a folder" in err
    for folder, options in ((to, ["--force"]), (tmp_path / "new" / "deep", [])):
        status, out, err = call(capsys, "export", finished, "--output", folder, *options)
        assert status == 0 and f"wrote {folder}" in out, err
        for name in ("delta/delta.safetensors", "merged/model.safetensors"):
            assert (folder / name).read_bytes() == (finished / "export" / name).read_bytes()
    assert (to / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("fault", RUNS)
def test_wrong_runs(
    fault: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verification_forks: None
) -> None:
    change, message = RUNS[fault]
    run = tmp_path / "runs" / "small"
    shutil.copytree(finished, run)
    change(run)
    told = []
    for command in (["evaluate"], ["export"], ["verify"], ["preview", "-o", tmp_path / "x.png"], ["train", "--resume"]):
        status, out, err = call(capsys, command[0], run, *command[1:])
        assert "Traceback" not in out + err and (status == 0 or "error: " in err), (command, err)
        told.append(err)
    assert any(message in err for err in told)


COLUMNS: dict[str, tuple[list[Any], str]] = {
    "several classes": ([[0, 1], [2], [], [1, 2]], "has the label [0, 1]: several values, and an image has one class"),
    "texts": (["a cat", "a dog", "a cat and a dog", ""], "has the label '': empty"),
}
"""Name → the labels of a table, as many tagged sets have them, and a part of the error's text."""


@pytest.mark.parametrize("fault", COLUMNS)
def test_wrong_columns(fault: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    labels, message = COLUMNS[fault]
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    table = {"image": [{"bytes": buffer.getvalue(), "path": None}] * len(labels), "label": labels}
    kind = datasets.Value("string") if isinstance(labels[0], str) else datasets.Sequence(datasets.ClassLabel(3))
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "train.parquet")
    source = f"{{type: huggingface, data_files: {{train: {tmp_path}/train.parquet}}, cache_dir: {tmp_path}/cache}}"
    config = write_config(tmp_path / "small.yaml", parts / "images", output=str(tmp_path / "runs"))
    for command in (["train"], ["preview", "-o", tmp_path / "x.png"], ["data"]):
        status, out, err = call(capsys, command[0], config, f"data.source={source}", *command[1:])
        assert status == 1 and f"error: {tmp_path}/train.parquet" in err and message in err, (command, err)
        assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir()), "nothing is left behind"


@pytest.mark.slow
def test_wrong_paths(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "small.yaml", parts / "images", output=str(tmp_path / "runs"))
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)))
    nowhere = tmp_path / "nowhere"
    commands: list[list[Any]] = [
        ["train", nowhere],
        ["train", file],
        ["train", tmp_path],
        ["train", config, "--resume"],
        ["schema", "-o", file / "schema.json"],
        ["schema", "-o", tmp_path],
        ["preview", config, "-o", file / "x.png"],
        ["preview", config, "-o", tmp_path],
        ["preview", config, "-o", tmp_path / "x.txt"],
        ["data", config, "-o", tmp_path / "x.jpg"],
        ["data", config, "-o", tmp_path / "x"],
        ["preview", config, "--ids", "no-such-image"],
        ["preview", config, "--step", "100000"],
        ["evaluate", nowhere],
        ["evaluate", file],
        ["export", file],
        ["verify", file],
        ["delta", "add", nowhere, file, "-o", tmp_path / "sum"],
        ["delta", "scale", file, "2", "-o", tmp_path / "scaled"],
        ["delta", "truncate", nowhere, "-o", tmp_path / "small"],
        ["delta", "quantize", nowhere, "-o", tmp_path / "small"],
        ["delta", "diff", nowhere, nowhere],
        ["adapt", nowhere, parts / "images", "-o", tmp_path / "adapted"],
        ["adapt", file, parts / "images", "-o", tmp_path / "adapted"],
    ]
    for command in commands:
        status, out, err = call(capsys, *command)
        assert status in (1, 2) and err and "Traceback" not in out + err, (command, err)


@pytest.mark.slow
def test_formats_are_added_to_a_finished_run_or_nothing_changes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export --to``: export, verification and report run again, and nothing else; after an error all is as it was."""
    from distill.export.measure import _fresh_process as measure_here
    from distill.export.settings import MeasureSettings
    from distill.export.targets.pt2 import Pt2
    from distill.export.verify import _fresh_process

    run = tmp_path / "small"
    shutil.copytree(finished, run)
    monkeypatch.setattr("distill.export.verify._run_fresh", _fresh_process)
    monkeypatch.setattr("distill.export.measure._run_fresh", lambda work, environment: measure_here(work))
    monkeypatch.setattr("distill.commands.export_formats.MeasureSettings", partial(MeasureSettings, rounds=2))
    blank_figures(monkeypatch)
    kept = [*run.glob("student/*"), *run.glob("export/*/*"), *run.glob("test/*")]
    others = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept if path.is_file()}

    def files() -> dict[str, bytes]:
        written = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name[0] != "."}
        return written | {f"{path.parent.name}/{path.name}": path.read_bytes() for path in run.glob("*/stage.json")}

    before, load = files(), Pt2.load
    for wrong, told in (
        ("onxn", "did you mean 'onnx'"),
        ("pt2,pt2", "each once"),
        (str(tmp_path), "unknown export target"),
    ):
        status, _, err = call(capsys, "export", run, "--to", wrong)
        assert status == 1 and told in err
    with monkeypatch.context() as patch:
        patch.setattr(Pt2, "load", lambda self, *given: lambda images: load(self, *given)(images) + 1)
        status, _, err = call(capsys, "export", run, "--to", "pt2")
        assert status == 1 and "torch.export = live model" in err and "the run is as it was" in err
    assert files() == before and not (run / "export" / "pt2").exists()

    status, out, err = call(capsys, "export", run, "--to", "pt2")
    assert status == 0 and "student (finished, loaded)" in out, err
    targets = parse_yaml((run / "config.yaml").read_text(), "config")["export"]["targets"]
    assert [target["type"] for target in targets] == ["timm_folder", "pt2"]
    assert "torch.export" in (run / "results.json").read_text() and "torch.export" in (run / "report.html").read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert all(path.read_bytes() == data for path, (_, data) in others.items()), "what was there has the same bytes"
    trained = [path for path in others if path.parent.name in ("student", "test")]
    assert trained and all(path.stat().st_mtime_ns == others[path][0] for path in trained), "nothing is trained again"
    written = (run / "export" / "pt2" / "model.pt2").stat().st_mtime_ns

    measured = json.loads((run / "results.json").read_text())["summary"]["formats"]
    assert [each["name"] for each in measured] == ["PyTorch, eager", "merged model", "torch.export"]
    assert all(each["passed"] and each["accuracy"] and len(each["latencies"]) == 2 for each in measured)
    assert "Export formats" in out and "Latency and size of the formats" in (run / "report.html").read_text()
    before = (run / "measure" / "figures.json").read_bytes()
    status, out, err = call(capsys, "export", run, "--pick", "min latency")
    assert status == 0 and "'min latency' chooses" in " ".join(out.split()), err
    assert "&#39;min latency&#39; chooses" in (run / "report.html").read_text()
    assert (run / "measure" / "figures.json").read_bytes() == before, "measured before, so only the choice is new"
    status, _, err = call(capsys, "export", run, "--pick", "size<=1kB, min latency")
    assert status == 1 and "No format satisfies" in err and "merged model (" in err
    for wrong, told in (("min sise", "did you mean 'size'"), ("min latency@3", "batch 3 is not measured, only 1, 16")):
        status, _, err = call(capsys, "export", run, "--pick", wrong)
        assert status in (1, 2) and told in err, err
    status, _, err = call(capsys, "export", run, "--pick", "min size", "--output", tmp_path / "x")
    assert status == 2 and "--pick chooses among the measured formats of the run" in " ".join(err.split())

    monkeypatch.setattr("distill.export.targets.base.find_spec", lambda name: None)
    status, _, err = call(capsys, "export", run, "--to", "onnx,pte")
    assert status == 1 and "Install it: uv pip install 'delta-distill[executorch,onnx]'" in err
    status, _, err = call(capsys, "export", run, "--to", "pt2", "--no-measure")
    assert status == 0 and (run / "export" / "pt2" / "model.pt2").stat().st_mtime_ns == written, (
        "a format that is there"
    )
