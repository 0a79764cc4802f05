"""Whole runs of ``kind: unsupervised``: rows, honesty about labels, resuming, files, errors."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_here import run_here, summary
from toy_training import Blobs, raising, tree, watching

from distill.commands.exported import evaluate_run
from distill.config import validate_tree
from distill.detection.backbone import resolved
from distill.detection.settings import DetectorBackboneSettings
from distill.experiments.base import Experiment
from distill.export.delta.io import read_delta
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.folder import RunError
from distill.run.runner import check_plan
from distill.run.stage import StageError
from distill.run.teacher_network import make_network
from distill.stages.export import ExportStudent
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted
from distill.transfer.anomaly.base import AnomalyError
from distill.transfer.anomaly.files import load_anomaly
from distill.yaml_tree import ConfigError, merge_trees

FIT = ("teacher", "student")
FEATURES = ("features-backbone", "features-teacher", "features-student")


class Parts(Blobs):
    """The images of the toy as a test folder: a is good, the others are kinds of defects."""

    class Settings(Blobs.Settings):
        pass

    def __init__(self, settings: Blobs.Settings):
        super().__init__(settings)
        self.has_split, self.classes = frozenset({"train"}), ("good", "scratch", "dent", "hole")


def unsupervised_tree(output: Path, **changes: Any) -> dict[str, Any]:
    plain = tree(output, name="unsupervised")
    own: dict[str, Any] = {
        "kind": "unsupervised",
        "objectives": [{"type": "pooled"}],
        "augment": {"policy": "identical", "student": ["RandomHorizontalFlip"]},
        "clusters": {},
        "knn": {"k": 5},
        "anomaly": {
            "normal": ["a"],
            "false_alarms": 0.2,
            "methods": ["mahalanobis", {"type": "patchcore", "bank": 2000}],
        },
        "data": {"val_fraction": 0.0},
        "training": {"epochs": 1, "loggers": ["csv"]},
    }
    return merge_trees(merge_trees(plain, own), changes)


def unsupervised(output: Path, **changes: Any) -> Experiment:
    return validate_tree(unsupervised_tree(output, **changes), "toy unsupervised")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unsupervised")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    return run_here(unsupervised(output))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return VerifiedCheckpointIO().load_checkpoint(run / "student/result.ckpt")["student"]


@pytest.mark.slow
def test_rows_of_student_backbone_and_teacher(run: Path) -> None:
    tables = {table["title"]: table for table in summary(run)["tables"]}
    features = tables["Features on test"]
    assert [row["cells"][0] for row in features["rows"]] == ["backbone", "teacher", "student"]
    assert [column["heading"] for column in features["columns"][1:5]] == [
        "NMI",
        "ARI",
        "cluster accuracy",
        "5 neighbors",
    ]
    assert all(-0.5 <= cell < 1.001 for row in features["rows"] for cell in row["cells"][1:5])
    anomalies = [row["cells"][:2] for row in tables["Anomalies"]["rows"]]
    assert anomalies == [[n, m] for n in ("backbone", "teacher", "student") for m in ("mahalanobis", "patchcore")]
    assert all(0 <= row["cells"][2] <= 1 and row["cells"][6] > 0 for row in tables["Anomalies"]["rows"])
    sizes = {tuple(row["cells"][:2]): row["cells"][6] for row in tables["Anomalies"]["rows"]}
    assert sizes["student", "patchcore"] <= 2000
    assert (run / "anomaly/heat.png").is_file()
    lines = list(csv.reader((run / "scores/clusters.csv").read_text().splitlines()))
    assert lines[0] == ["image", "backbone", "teacher", "student"] and len(lines) == 24
    assert {line[0] for line in lines[1:]} == {f"test/{index:03d}" for index in range(23)}
    assert all(check["passed"] for check in summary(run)["verification"])


@pytest.mark.slow
def test_no_label_changes_the_student(run: Path, output: Path) -> None:
    """Without any label in the data, the weights are equal; clusters need their number, and are not scored."""
    changes = {"data": {"source": {"labeled": False}}, "knn": None, "anomaly": None, "clusters": {"k": 3}}
    other = run_here(unsupervised(output, name="unlabeled", **changes), only=(*FIT, *FEATURES, "scores", "report"))
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    [table] = summary(other)["tables"]
    assert [column["heading"] for column in table["columns"]] == ["features", "largest cluster"]
    assert any("no image of test has a label" in line for line in summary(other)["warnings"])


@pytest.mark.slow
def test_the_exports_give_features_and_the_detector_reads_them(run: Path) -> None:
    manifest, tensors = read_delta(run / "export/delta")
    assert manifest.num_classes == 0 and not manifest.labels and not any(name.startswith("head/") for name in tensors)
    merged = create_network(NetworkSettings(model=f"local-dir:{run / 'export/merged'}", size=32)).model.eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for kind in ("mahalanobis", "patchcore"):
        scores, heat = load_anomaly(run / "anomaly" / kind, merged)(images)
        assert scores.shape == (2,) and (heat is not None) == (kind == "patchcore")
    predictions = evaluate_run(run, "test", Console(quiet=True))
    assert predictions.accuracy() is None, "features are no classes"


@pytest.mark.slow
def test_resumed_in_the_middle_is_bit_equal(run: Path, output: Path) -> None:
    settings = unsupervised(output, name="again")
    with watching(raising(signal.SIGTERM, 3), lambda *_: None), pytest.raises((Interrupted, RunError)):
        run_here(settings, only=FIT)
    again = weights(run_here(settings, resume=True, only=FIT))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(run).items())


@pytest.mark.slow
def test_good_parts_alone_and_a_folder_of_tests(output: Path) -> None:
    """All training images are normal; one of the methods is fitted, whose threshold few images can set."""
    test = {"type": f"{__name__}:Parts"}
    own = {"methods": ["mahalanobis"], "normal": None, "test": test, "false_alarms": 0.01}
    source = {"source": {"labeled": False}}
    settings = unsupervised(output, name="parts", data=source, clusters=None, knn=None, anomaly=own)
    made = run_here(settings, only=(*FIT, "anomaly", "report"))
    content = summary(made)
    [table] = content["tables"]
    assert [row["cells"][0] for row in table["rows"]] == ["backbone", "teacher", "student"]
    assert any("17 held-out normal images cannot tell a rate of false alarms of 1.0%" in w for w in content["warnings"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"objectives": [{"type": "kd"}]}, r"objectives\.0: kd reads labels or logits"),
    ({"objectives": [{"type": "ce"}, {"type": "pooled"}]}, r"objectives\.0: ce reads labels or logits"),
    ({"training": {"keep": "best"}}, r"training\.keep: it chooses or measures by labels"),
    (
        {"anomaly": {"methods": ["padim"]}},
        r"anomaly\.methods\.0\.type: unknown anomaly method type 'padim'.*mahalanobis",
    ),
    ({"anomaly": {"methods": [{"type": "patchcore", "bank": "many"}]}}, "expected bytes such as"),
    ({"clusters": {"k": 1}}, r"clusters\.k"),
]


def test_a_student_whose_features_nothing_reads_is_trained_and_exported(tmp_path: Path) -> None:
    stages = unsupervised(tmp_path, clusters=None, knn=None, anomaly=None).plan()
    check_plan(stages)
    assert [stage.name for stage in stages] == [*FIT, "export", "verify", "preview", "report"]
    export = stages[2]
    assert isinstance(export, ExportStudent) and export.evaluation is None


@pytest.mark.slow
def test_its_delta_file_has_no_classifier_and_is_that_of_a_detectors_backbone(run: Path) -> None:
    manifest = read_delta(run / "export/delta")[0]
    assert (manifest.num_classes, manifest.labels) == (0, ())
    card = (run / "export/merged/README.md").read_text()
    assert "features = model(" in card and "logits" not in card and "label_names" not in card
    network = resolved(DetectorBackboneSettings(start=run))
    assert network.delta == run / "export/delta" and make_network(network).model.num_classes == 0


def test_a_distillation_tells_that_nothing_trains_its_classifier(tmp_path: Path) -> None:
    for objectives, told in (([{"type": "pooled"}], True), ([{"type": "pooled"}, {"type": "kd"}], False)):
        experiment = validate_tree(tree(tmp_path) | {"objectives": objectives}, "toy")
        lines = experiment.describe(None)  # type: ignore[arg-type]
        assert any("no objective trains the student's classifier" in line for line in lines) is told


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_configs_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        unsupervised(tmp_path, **changes)


BEFORE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"anomaly": {"normal": ["z"]}}, AnomalyError, "anomaly.normal: the data has no class 'z', only a, b, c, d"),
    ({"clusters": {"k": 37}, "anomaly": None}, StageError, "clusters.k: 37 clusters of 36 training images"),
    ({"data": {"labels_per_class": 0}, "anomaly": None}, StageError, "knn: neighbors vote with their labels"),
    (
        {"data": {"source": {"labeled": False}}, "knn": None, "anomaly": None},
        StageError,
        "clusters.k: the data has no classes",
    ),
    (
        {"anomaly": {"normal": ["a"], "test": {"type": f"{__name__}:Parts"}}},
        AnomalyError,
        "anomaly.normal: anomaly.test has no class 'a', only good, scratch",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "text"), BEFORE)
def test_data_that_does_not_suffice_is_an_error_before_training(
    changes: dict[str, Any], kind: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=text):
        run_here(unsupervised(tmp_path, **changes))
    assert not any(tmp_path.rglob("*.ckpt"))


def test_no_normal_image_held_out_is_an_error(tmp_path: Path) -> None:
    from distill.data.digits import Digits
    from distill.data.experiment_data import ExperimentData
    from distill.data.settings import DataSettings
    from distill.transfer.anomaly.images import AnomalyImages
    from distill.transfer.anomaly.settings import AnomalySettings

    settings = AnomalySettings.model_validate({"methods": ["mahalanobis"], "normal": ["3"]})
    data = ExperimentData(DataSettings(source=Digits.Settings(), workers=0))  # type: ignore[arg-type]
    own = AnomalyImages.of(data, settings)
    assert own.tested is not None and own.kinds[0] in "0123456789"
    assert own.is_normal.sum() == sum(kind == "3" for kind in own.kinds) and len(own.normal.classes) == 0
    train = data.subset("train")
    alone = data.part(data.classes, {"train": train}, 0)
    with pytest.raises(AnomalyError, match=r"none is held out; set data\.val_fraction"):
        AnomalyImages.of(alone, settings)
