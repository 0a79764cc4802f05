"""Teachers of other classes: what is compared, under which label, and how a config says so."""

from pathlib import Path

import pytest
import timm
import torch
from timm.data import ImageNetInfo

from augment.views import InputSpec
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.class_names import label_map
from distill.models.label_map import LabelMap, LabelMaps
from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.models.teacher import Teacher
from distill.models.teacher_settings import TeacherNetworkSettings, TeacherSettings
from distill.objectives.simkd import SimKD
from distill.run.stage import StageError
from distill.run.teacher import label_maps, make_teacher

# The student knows a, b, c; the teacher c, x, a, and a second kind of a. Nobody taught it b.
MAP = LabelMap({0: [2, 3], 2: [0]}, student_classes=3, teacher_classes=4)
LOGITS = torch.tensor([[0.3, 9.0, 1.0, -2.0], [-1.0, 0.0, 0.5, 0.5]])


def test_by_hand() -> None:
    a = (LOGITS[:, 2].exp() + LOGITS[:, 3].exp()).log()
    torch.testing.assert_close(MAP.of_teacher(LOGITS), torch.stack([a, LOGITS[:, 0]], 1))
    student = torch.arange(6.0).view(2, 3)
    assert MAP.of_student(student).tolist() == [[0, 2], [3, 5]]
    assert MAP.labels(torch.tensor([0, 1, 2, -1])).tolist() == [0, -1, 1, -1]
    p = LOGITS[:, [2, 3, 0]].softmax(1)
    actual = MAP.probabilities(LOGITS)
    torch.testing.assert_close(actual[:, [0, 2]], torch.stack([p[:, 0] + p[:, 1], p[:, 2]], 1))
    assert actual[:, 1].isnan().all() and not MAP.whole
    assert repr(MAP) == "LabelMap(student_classes=3, teacher_classes=4, shared_classes=2)"


def test_another_order_alone_leaves_student_and_labels_as_they_are() -> None:
    order = LabelMap({0: [1], 1: [2], 2: [0]}, 3, 3)
    student, labels = torch.randn(2, 3), torch.tensor([2, -1])
    assert order.whole and order.of_student(student) is student
    assert torch.equal(order.labels(labels), labels)
    assert torch.equal(order.of_teacher(student), student[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "share no class"),
        ({0: []}, "share no class"),
        ({3: [0]}, "the student has no class 3: it has 3"),
        ({0: [4]}, "the teacher has no class 4: it has 4"),
        ({0: [1], 2: [1]}, "the teacher's class 1 is mapped to two"),
    ],
)
def test_what_is_no_map(sources: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelMap(sources, 3, 4)


def test_logits_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(B, 4\)"):
        MAP.of_teacher(torch.zeros(2, 3))


# --- Names --------------------------------------------------------------------------------------------------------


def named(folder: Path, *labels: str) -> Network:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(labels))
    write_timm_folder(folder, model, origin="random", labels=labels)
    return create_network(NetworkSettings(model=f"local-dir:{folder}"))


def test_classes_of_one_name_are_found_whatever_the_case(tmp_path: Path) -> None:
    network = named(tmp_path / "teacher", "Sea_Lion", "cat", "dog", "horse")
    actual = label_map("names", network, ["dog", "rose", "sea lion"])
    assert actual is not None and actual.known_S.tolist() == [0, 2]
    assert actual.sources_SG.tolist() == [[2], [0]]
    written = label_map({"rose": ("cat", 3)}, network, ["dog", "rose"])
    assert written is not None and written.sources_SG.tolist() == [[1, 3]]
    assert label_map("same", network, ["dog"]) is None
    for labels, message in [
        ({"rsoe": 1}, "the data has no class 'rsoe'; did you mean 'rose'?"),
        ({"rose": "hrose"}, "no class 'hrose'; did you mean 'horse'?"),
        ({"rose": 4}, "the teacher has no class 4"),
    ]:
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            label_map(labels, network, ["dog", "rose"])
    with pytest.raises(ValueError, match="the data has no classes"):
        label_map("names", network, [])


def test_classes_that_are_the_same_are_compared_by_name(tmp_path: Path) -> None:
    network = named(tmp_path / "teacher", "Sea_Lion", "cat", "dog")
    assert label_map("same", network, ["sea lion", "cat", "dog"]) is None
    turned = label_map("same", network, ["dog", "sea lion", "cat"])
    assert turned is not None and turned.whole and turned.sources_SG.tolist() == [[2], [0], [1]]
    assert label_map("numbers", network, ["dog", "sea lion", "cat"]) is None
    assert label_map("same", network, ["0", "1", "2"]) is None, "numbers are no names"
    assert label_map("same", network, ["dog", "cat"]) is None, "other classes: no objective may compare logits"
    with pytest.raises(ValueError, match=r"lacks rose\n  teacher: Sea_Lion, cat, dog\n  data: rose, cat, dog\n.*names"):
        label_map("same", network, ["rose", "cat", "dog"])
    with pytest.raises(ValueError, match=r"share no class\n  teacher: Sea_Lion, cat, dog\n  data: rose, lily"):
        label_map("names", network, ["rose", "lily"])
    letters = named(tmp_path / "letters", "A", "a")
    turned = label_map("same", letters, ["a", "A"])
    assert turned is not None and turned.sources_SG.tolist() == [[1], [0]]
    assert (
        create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'letters'}"), 2).model.pretrained_cfg.get(
            "label_names"
        )
        is None
    ), "a new classifier has the data's classes"


def test_names_come_from_a_list_or_a_mapping_with_descriptions(tmp_path: Path) -> None:
    network = named(tmp_path / "teacher", "n1", "n2", "n3")
    config = network.model.pretrained_cfg
    config |= {"label_names": {"2": "n3", "0": "n1"}, "label_descriptions": {"n1": "tench, Tinca tinca", "n3": "shark"}}
    actual = label_map("names", network, ["shark", "n1"])
    assert actual is not None and actual.sources_SG.tolist() == [[2], [0]]
    actual = label_map("names", network, ["tench, Tinca tinca"])
    assert actual is not None and actual.sources_SG.tolist() == [[0]]
    for names, message in [(["n1", "n2"], "label_names has 2 names for 3 classes"), ({"3": "x"}, "names class 3")]:
        config["label_names"] = names
        with pytest.raises(ValueError, match=message):
            label_map("same", network, ["a", "b", "c"])


def test_the_same_classes_of_imagenet_in_another_order() -> None:
    info = ImageNetInfo()
    synsets = info.label_names()
    network = Network(timm.create_model("test_resnet"), "test_resnet", "test_resnet.r160_in1k", InputSpec((32, 32)))
    described = [info.index_to_description(index) for index in range(1000)]
    for same in (synsets, described, [f"my class {index}" for index in range(1000)]):
        assert label_map("same", network, same) is None
    turned = label_map("same", network, synsets[::-1])
    assert turned is not None and turned.sources_SG[:, 0].tolist() == list(range(1000))[::-1]
    with pytest.raises(ValueError, match=r"lacks rose\n.*… \(1000 in all\)\n  data: n15075141"):
        label_map("same", network, [*synsets[:0:-1], "rose"])


def test_a_head_with_another_order_is_not_given_to_the_student(tmp_path: Path) -> None:
    network = named(tmp_path / "teacher", "cat", "dog")
    settings = TeacherSettings(networks=[{"model": f"local-dir:{tmp_path / 'teacher'}"}])
    maps = label_maps(settings, [network], ["dog", "cat"])
    with pytest.raises(StageError, match="simkd gives the student the teacher's head"):
        make_teacher(settings, [SimKD.Settings()], [network], maps)


def test_names_of_imagenet_are_known_and_ambiguous_ones_are_refused() -> None:
    model = timm.create_model("test_resnet")
    network = Network(model, "test_resnet", "test_resnet.r160_in1k", InputSpec((32, 32)))
    actual = label_map("names", network, ["daisy", "goldfish", "n01440764"])
    assert actual is not None and actual.sources_SG.tolist() == [[985], [1], [0]]
    with pytest.raises(ValueError, match=r"'crane' names several of the teacher's classes \(134, 517\)"):
        label_map("names", network, ["crane"])
    with pytest.raises(ValueError, match="has several classes called 'crane': 134, 517"):
        label_map({"bird": "crane"}, network, ["bird"])
    network.origin = "random"
    with pytest.raises(ValueError, match="random has no class names"):
        label_map("names", network, ["daisy"])
    with pytest.raises(ValueError, match="random has no class names, so 'daisy' cannot be found"):
        label_map({"bird": "daisy"}, network, ["bird"])


def test_settings_are_read_back_equal() -> None:
    settings = TeacherNetworkSettings(model="resnet18", labels={0: 7, "b": ["x", 3]})
    assert settings.labels == {"0": 7, "b": ("x", 3)}
    assert TeacherNetworkSettings.model_validate(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValueError, match="labels"):
        TeacherNetworkSettings(model="resnet18", labels={"a": -1})
    with pytest.raises(ValueError, match="labels"):
        TeacherNetworkSettings(model="resnet18", labels="name")


# --- The mean of teachers of different classes --------------------------------------------------------------------


def test_a_class_counts_for_the_teachers_that_know_it() -> None:
    networks = [
        Network(timm.create_model("test_resnet", num_classes=n), "test_resnet", "random", InputSpec((32, 32)))
        for n in (3, 4)
    ]
    teacher = Teacher(networks, [3.0, 1.0], maps=LabelMaps([None, MAP]))
    assert teacher.has_classes(3) and not teacher.has_classes(4)
    first, second = torch.randn(2, 3), LOGITS
    p, q = first.softmax(1), MAP.probabilities(second)
    expected = torch.stack([0.75 * p[:, 0] + 0.25 * q[:, 0], p[:, 1], 0.75 * p[:, 2] + 0.25 * q[:, 2]], 1)
    actual = teacher.mean([teacher.probabilities(0, first), teacher.probabilities(1, second)])
    torch.testing.assert_close(actual, expected / expected.sum(1, keepdim=True))
    alone = Teacher(networks[1:], maps=LabelMaps([MAP])).mean([q])
    assert alone[:, 1].tolist() == [0, 0], "nobody knows it: it is never the answer"
    assert not any("maps" in key for key in teacher.state_dict()), "no part of a teacher's identity"
