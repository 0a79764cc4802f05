"""Teachers whose classes are mapped by text: the map, its form in a config, and what cannot be mapped."""

from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from distill.models.class_names import label_map
from distill.models.label_map import LabelMap
from distill.models.label_settings import TextLabels
from distill.models.network import as_network
from distill.models.soft_label_map import SoftLabelMap, balancing
from distill.models.teacher_settings import TeacherNetworkSettings

ENCODER = {"type": "toy_text_encoder:BagOfWords", "width": 32}
S = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.2]]), dim=1)
T = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), dim=1)
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -3.0], [0.0, 0.0, 3.0, 1.0]])


def soft(**changed: Any) -> SoftLabelMap:
    return SoftLabelMap(S, T, **{"temperature": 0.2, "method": "map", "top": 9, **changed})


def test_both_methods_by_their_equations() -> None:
    p, m = LOGITS.softmax(1), (S @ T.T / 0.2).softmax(1)
    torch.testing.assert_close(soft().of_teacher(LOGITS).softmax(1), p @ m)
    assert torch.equal(soft(top=1).of_teacher(LOGITS), soft().of_teacher(LOGITS)), "map reads all classes"
    top = torch.tensor([[p[0, 0], p[0, 1], 0, 0], [0, 0, p[1, 2], p[1, 3]]])
    e = F.normalize(top @ S, dim=1)
    torch.testing.assert_close(soft(method="conse", top=2).of_teacher(LOGITS), e @ T.T / 0.2)
    assert soft().labels(torch.tensor([1, 0, -1])).tolist() == [1, 0, -1] and soft().whole
    assert soft().probabilities(LOGITS).sum(1).tolist() == pytest.approx([1, 1])
    [[(first, weight), _], _] = soft().top_entries(["a", "b", "c", "d"], 2)
    assert first == "a" and weight == pytest.approx(float(m[0, 0]))
    assert repr(soft()).startswith("SoftLabelMap(student_classes=2, teacher_classes=4, method=map, temperature=0.2")
    with pytest.raises(ValueError, match=r"expected \(B, 4\)"):
        soft().of_teacher(LOGITS[:, :3])


def test_balanced_predictions_are_uniform() -> None:
    offsets = balancing(LOGITS[:, :2] + torch.tensor([4.0, 0.0]))
    mean = (LOGITS[:, :2] + torch.tensor([4.0, 0.0]) - offsets).softmax(1).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5]))
    assert soft(balance=True).offset_K.abs().max() > 0.1


def test_the_key_in_a_config() -> None:
    given = {"model": "resnet18", "labels": {"by": "text", "encoder": ENCODER, "method": "map"}}
    labels = TeacherNetworkSettings.model_validate(given).labels
    assert isinstance(labels, TextLabels) and labels.method == "map" and labels.texts == "both"
    assert TeacherNetworkSettings.model_validate({"model": "resnet18", "labels": labels.model_dump()}).labels == labels
    with pytest.raises(ValueError, match=r"labels\.metod\n.*unknown key; did you mean 'method'"):
        TeacherNetworkSettings.model_validate({**given, "labels": {"by": "text", "metod": "map"}})
    by_class = TeacherNetworkSettings.model_validate({"model": "resnet18", "labels": {"by": "cat"}}).labels
    assert by_class == {"by": "cat"}, "a class may be called so"


def test_the_classes_of_an_imagenet_network_and_of_one_with_names() -> None:
    labels = TextLabels.model_validate({"by": "text", "encoder": ENCODER})
    network = as_network(timm.create_model("lcnet_050"))
    network.origin = "lcnet_050.some"
    made = label_map(labels, network, ["3 goldfish", "crane", "elf"])
    assert isinstance(made, SoftLabelMap) and made.teacher_classes == 1000
    top_entries = [[name for name, _ in row] for row in made.top_entries([each.spoken for each in made.teacher_texts])]
    assert top_entries[0][0] == "goldfish" and made.texts[2].definitions == ()
    assert made.teacher_texts[134].spoken == made.teacher_texts[517].spoken == "crane"
    assert made.teacher_texts[134].definitions != made.teacher_texts[517].definitions, "by WordNet id"
    named = as_network(timm.create_model("lcnet_050", num_classes=2))
    named.model.pretrained_cfg = {**named.model.pretrained_cfg, "label_names": ["gold fish", "elf"]}
    assert isinstance(label_map(labels, named, ["goldfish", "dog", "cat"]), SoftLabelMap)
    named.model.pretrained_cfg = {**named.model.pretrained_cfg, "label_names": ["", "elf"]}
    with pytest.raises(ValueError, match="class 0 has an empty name"):
        label_map(labels, named, ["goldfish"])
    with pytest.raises(ValueError, match="has no class names, so its classes have no texts"):
        label_map(labels, as_network(timm.create_model("lcnet_050", num_classes=5)), ["goldfish"])
    with pytest.raises(ValueError, match="'1 elf' and '2 elf' are the same"):
        label_map(labels, network, ["1 elf", "2 elf"])
    assert not isinstance(label_map("names", network, ["goldfish"]), SoftLabelMap)
    assert isinstance(label_map("names", network, ["goldfish"]), LabelMap)
