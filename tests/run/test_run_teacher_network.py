"""A delta folder as a teacher's network: its outputs and checks; files are checked before the data is opened."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch

from augment.base import UserError
from distill.config import validate_tree
from distill.deltas.adapter import Adapter
from distill.deltas.attach import deltas
from distill.deltas.base import DeltaSettings
from distill.deltas.low_rank import LowRank
from distill.export.checksummed import ExportError
from distill.export.delta.io import save_delta
from distill.models.network import NetworkError, create_network
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.teacher_settings import TeacherNetworkSettings
from distill.run.runner import run_plan
from distill.run.teacher_network import make_network

LABELS = ("ant", "bee", "cat", "dog")


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def trained(backbone: Path, folder: Path, settings: DeltaSettings) -> Student:
    """A student with random deltas, and its delta folder."""
    network = create_network(
        NetworkSettings(model="test_resnet", checkpoint=backbone, size=64, mean=(0.1, 0.2, 0.3)), 4
    )
    student = Student(network, LearningSettings(deltas=(settings,)))
    with torch.no_grad():
        for site in student.sites:
            for parameter in site.delta.parameters():
                parameter.normal_(std=0.1)
    save_delta(folder, student.model, student.backbone, origin="test_resnet", labels=LABELS)
    return student.eval()


@pytest.mark.parametrize(("settings", "kept"), [(LowRank.Settings(rank=2), False), (Adapter.Settings(), True)])
def test_a_delta_folder_over_its_backbone(settings: DeltaSettings, kept: bool, backbone: Path, tmp_path: Path) -> None:
    student = trained(backbone, tmp_path / "delta", settings)
    own = TeacherNetworkSettings(model="test_resnet", checkpoint=backbone, delta=tmp_path / "delta", size=64)
    network = make_network(own)
    assert network.model.pretrained_cfg["label_names"] == list(LABELS)
    assert network.input.mean == (0.1, 0.2, 0.3) and network.input.size == (64, 64)
    assert bool(deltas(network.model)) is kept, "a structural delta cannot be merged"
    teacher, x = Teacher([network]), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher(((x,),))[0][0].logits, student(x).logits, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert make_network(own, 7).model.num_classes == 7


def test_a_delta_of_another_backbone_and_a_changed_bit_are_errors(backbone: Path, tmp_path: Path) -> None:
    trained(backbone, tmp_path / "delta", LowRank.Settings(rank=2))
    with pytest.raises(ExportError, match="made for another backbone"):
        make_network(TeacherNetworkSettings(model="test_resnet", pretrained=False, delta=tmp_path / "delta"))
    with pytest.raises(NetworkError, match=re.escape(f"delta: {tmp_path / 'delta'}")):
        make_network(NetworkSettings(model=f"local-dir:{tmp_path / 'delta'}"))
    file = tmp_path / "delta" / "delta.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExportError, match=r"delta\.safetensors"):
        make_network(TeacherNetworkSettings(model="test_resnet", checkpoint=backbone, delta=tmp_path / "delta"))


@pytest.mark.parametrize(
    "key",
    [
        "student.network.checkpoint",
        "student.network.model",
        "teacher.networks.0.checkpoint",
        "teacher.networks.0.delta",
    ],
)
def test_files_are_checked_before_the_data_is_opened(key: str, tmp_path: Path) -> None:
    network = {"model": "test_resnet", "pretrained": False}
    tree = {
        "name": "files",
        "output": str(tmp_path / "runs"),
        "data": {"source": {"type": "folder", "root": str(tmp_path / "no-images")}},
        "student": {"network": dict(network)},
        "teacher": {"networks": [dict(network)]},
        "objectives": ["kd"],
    }
    place = tree["student"]["network"] if key.startswith("student") else tree["teacher"]["networks"][0]
    place[key.rpartition(".")[2]] = str(tmp_path / "missing")
    experiment = validate_tree(json.loads(json.dumps(tree)), "test")
    with pytest.raises(UserError, match="missing") as error:
        run_plan(experiment, experiment.plan(), tree)
    assert str(error.value).startswith(key.rpartition(".")[0] + ": ") and "no-images" not in str(error.value)
    assert not (tmp_path / "runs").exists()
