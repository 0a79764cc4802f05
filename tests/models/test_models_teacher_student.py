"""Teacher and student: what is frozen stays frozen whatever is called on it, and what learns is told apart."""

from typing import Literal

import pytest
import timm
import torch
from torch import Tensor, nn

from augment.views import InputSpec
from distill.deltas.attach import attach, merge
from distill.deltas.base import DeltaError
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state
from distill.models.fingerprint import fingerprint
from distill.models.network import Network, NetworkError, create_network
from distill.models.settings import LearningSettings, NetworkSettings, StudentSettings
from distill.models.student import Student
from distill.models.teacher import Teacher

LOGITS, POOLED = frozenset({"logits"}), frozenset({"pooled"})
ALL = frozenset({"logits", "pooled", "maps"})


def network(name: str = "test_efficientnet", size: int = 64, classes: int = 5) -> Network:
    torch.manual_seed(0)
    made = create_network(NetworkSettings(model=name, pretrained=False, size=size), classes)
    for module in made.model.modules():  # as if it had been trained: its statistics are not those of a batch
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return made


def student(needs: frozenset[str] = LOGITS, name: str = "test_efficientnet", **settings: object) -> Student:
    return Student(network(name), LearningSettings.model_validate(settings), needs)


def images(size: int = 64, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- Teacher ------------------------------------------------------------------------------------------------------


def test_several_networks_each_with_views_of_its_own() -> None:
    first, second = network(), network("test_vit", 96)
    plain = [timm.create_model("test_efficientnet", num_classes=5).eval()]
    plain.append(timm.create_model("test_vit", num_classes=5, img_size=96).eval())
    for copy, made in zip(plain, (first, second)):
        copy.load_state_dict(made.model.state_dict())
    teacher = Teacher([first, second], [1.0, 3.0], ALL)
    assert teacher.weights == [0.25, 0.75] and Teacher([network()]).weights == [1.0]
    assert teacher.inputs == [first.input, second.input]
    assert teacher.origins == ["random", "random"]
    views = ((images(), images() + 1), (images(96), images(96) + 1))
    seen = teacher(views)
    assert [len(of_network) for of_network in seen] == [2, 2]
    for copy, of_network, of_views, shapes in zip(plain, seen, views, teacher.shapes):
        for features, view in zip(of_network, of_views):
            with torch.no_grad():
                torch.testing.assert_close(features.logits, copy(view), rtol=1e-4, atol=1e-5)
            assert features.pooled is not None and features.pooled.shape == (4, shapes.pooled)
            assert {name: tuple(m.shape[1:]) for name, m in features.maps.items()} == shapes.maps
    with pytest.raises(ValueError, match=r"argument 2 is (longer|shorter)"):
        teacher(views[:1])


def test_the_teacher_cannot_leave_eval_mode_or_change() -> None:
    teacher = Teacher([network()])
    before = fingerprint(teacher.state_dict())
    expected = teacher(((images(),),))[0][0].logits
    for disturb in (
        lambda: teacher.train(),
        lambda: teacher.networks[0].blocks[0].train(),  # type: ignore[union-attr, index, operator]
        lambda: nn.Sequential(teacher).train(),
        lambda: setattr(teacher.networks[0].bn1, "training", True),
    ):
        disturb()
        assert torch.equal(teacher(((images(),),))[0][0].logits, expected)
    assert fingerprint(teacher.state_dict()) == before, "batch-norm statistics moved"


def test_no_gradient_passes_the_teacher() -> None:
    teacher = Teacher([network()], needs=ALL)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    view = images().requires_grad_()
    features = teacher(((view,),))[0][0]
    assert not any(t.requires_grad for t in (features.logits, features.pooled, *features.maps.values()))


def test_its_own_dtype_whatever_autocast_says() -> None:
    half = Teacher([network()], needs=ALL, dtype=torch.bfloat16)
    full = Teacher([network()], needs=ALL)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    views = ((images(),),)
    exact, rough = full(views)[0][0], half(views)[0][0]
    assert {t.dtype for t in (rough.logits, rough.pooled, *rough.maps.values())} == {torch.float32}
    assert not torch.equal(rough.logits, exact.logits)
    assert (rough.logits - exact.logits).norm() < 0.05 * exact.logits.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(views)[0][0].logits, exact.logits)
        assert torch.equal(half(views)[0][0].logits, rough.logits)


def test_only_what_is_needed_is_reported() -> None:
    features = Teacher([network()], needs=POOLED)(((images(),),))[0][0]
    assert features.logits is None and features.pooled is not None and not features.maps


def test_a_timm_model_is_a_teacher_as_it_is() -> None:
    model = network().model
    expected = model(images())
    teacher = Teacher([model, network()])
    assert teacher.networks[0] is model and teacher.weights == [0.5, 0.5]
    assert [spec.size for spec in teacher.inputs] == [(160, 160), (64, 64)], "a bare model has timm's own size"
    for (features,) in teacher(((images(),), (images(),))):
        torch.testing.assert_close(features.logits, expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(NetworkError, match=r"expected a timm model, .* not a torch\.nn\.modules\.linear\.Linear"):
        Teacher([model, nn.Linear(2, 2)])


# --- Student ------------------------------------------------------------------------------------------------------


def test_deltas_and_head_learn_and_the_backbone_stays_bit_equal() -> None:
    single = student(deltas=[{"type": "low_rank", "rank": 2}])
    backbone, own = single.backbone, {name: t.clone() for name, t in single.own_state().items()}
    optimizer = torch.optim.SGD([p for p in single.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        single.train()
        optimizer.zero_grad()
        logits = single(images()).logits
        assert logits is not None
        logits.square().sum().backward()
        optimizer.step()
    assert fingerprint(backbone_state(single.model, classifier_names(single.model))) == backbone
    changed = single.own_state()
    assert set(changed) == set(own)
    assert any("classifier" in name for name in changed) and any("parametrizations" in name for name in changed)
    assert not torch.equal(changed["model.classifier.weight"], own["model.classifier.weight"])
    assert len(single.sites) > 3 and not any("running" in name or "original" in name for name in changed)


def test_frozen_batch_norm_uses_its_own_statistics_after_train() -> None:
    single = student(deltas=["bias"])
    expected = single.eval()(images()).logits
    single.train()
    single.model.train()
    assert torch.equal(single(images()).logits, expected)
    torch.testing.assert_close(single(images()[:1]).logits, expected[:1], rtol=1e-4, atol=1e-5)


def test_identity_is_that_of_the_network_before_deltas() -> None:
    plain = network()
    head = classifier_names(plain.model)
    state = {name: t for name, t in plain.model.state_dict().items() if not inside(name, head)}
    assert student(deltas=[{"type": "low_rank", "rank": 2}]).backbone == fingerprint(state)
    assert student().backbone == fingerprint(state)


def test_trained_whole() -> None:
    single = student(train="full")
    assert all(parameter.requires_grad for parameter in single.parameters())
    assert set(single.own_state()) == set(single.state_dict()) and not single.sites
    mean = single.model.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    single.train()(images())
    assert not torch.equal(single.model.bn1.running_mean, mean), "batch norm learns its statistics"  # type: ignore[union-attr]
    still = student(train="full", batch_norm="frozen")
    mean = still.model.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    still.train()(images())
    assert torch.equal(still.model.bn1.running_mean, mean)  # type: ignore[union-attr]
    assert still.model.bn1.weight.requires_grad  # type: ignore[union-attr]


def test_without_deltas_the_head_alone_learns() -> None:
    single = student()
    assert {name for name, p in single.named_parameters() if p.requires_grad} == {
        "model.classifier.weight",
        "model.classifier.bias",
    }
    assert set(single.own_state()) == {"model.classifier.weight", "model.classifier.bias"}


@pytest.mark.parametrize("needs", [LOGITS, POOLED, ALL])
def test_it_reports_what_objectives_need(needs: frozenset[str]) -> None:
    single = student(needs, deltas=["bias"])
    features = single(images())
    assert (features.logits is not None) == ("logits" in needs)
    assert ("maps" in needs) == bool(features.maps)
    assert single.shapes.classes == 5 and single.input == InputSpec((64, 64), single.input.mean, single.input.std)
    if features.pooled is not None:
        assert features.pooled.shape == (4, single.shapes.pooled)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_fresh_deltas_change_nothing(name: str) -> None:
    plain = network(name).model
    single = student(name=name, deltas=[{"type": "low_rank", "rank": 2}, "scale_shift"])
    with torch.no_grad():
        torch.testing.assert_close(single(images()).logits, plain(images()), rtol=1e-4, atol=1e-5)


LEARNED = LearningSettings(deltas=(LowRank.Settings(rank=2),))


def test_a_timm_model_is_a_student_as_it_is() -> None:
    """One seed gives bit-equal students, whether the backbone comes as a model or as a Network."""
    states = []
    for take in (lambda made: made, lambda made: made.model, lambda made: made.model.train()):
        given = take(network())
        torch.manual_seed(7)
        made = Student(given, LEARNED)
        assert made.model is getattr(given, "model", given) and len(made.sites) > 3
        states.append((made.backbone, fingerprint(made.state_dict()), fingerprint(made.own_state())))
    assert states[0] == states[1] == states[2]
    torch.manual_seed(8)
    assert fingerprint(Student(network(), LEARNED).state_dict()) != states[0][1], "another seed, other deltas"


def test_settings_with_a_network_give_the_same_student() -> None:
    about = {"network": {"model": "resnet50"}, **LEARNED.model_dump()}
    settings = StudentSettings.model_validate(about)
    assert list(settings.model_dump()) == ["network", "train", "deltas", "batch_norm", "compile", "start"]
    torch.manual_seed(7)
    made = Student(network(), settings)
    torch.manual_seed(7)
    assert fingerprint(made.state_dict()) == fingerprint(Student(network(), LEARNED).state_dict())


@pytest.mark.parametrize("train", ["deltas", "full"])
def test_a_model_with_deltas_is_refused_as_a_student(train: Literal["deltas", "full"]) -> None:
    model = network().model
    attach(model, [LowRank.Settings(rank=2, sites=("blocks.1.*",))])
    with pytest.raises(DeltaError, match=r"already has 2 deltas, the first at 'blocks\.1\.0\.conv_exp'; merge"):
        Student(model, LearningSettings(train=train))
    merge(model)
    assert Student(model, LearningSettings(train=train)).shapes.classes == 5


def test_what_is_not_from_timm_is_refused_as_a_student() -> None:
    with pytest.raises(NetworkError, match=r"expected a timm model.*not a torch.nn.modules.container\.Sequential"):
        Student(nn.Sequential(nn.Linear(2, 2)), LEARNED)


# --- print --------------------------------------------------------------------------------------------------------


def test_print_shows_what_learns_and_what_is_expected() -> None:
    made = student(POOLED, deltas=["bias"])
    learned = sum(p.numel() for p in made.parameters() if p.requires_grad)
    total = sum(p.numel() for p in made.parameters())
    assert f"train=deltas, learned={learned:,} of {total:,} parameters, input=64 x 64, needs=pooled" in repr(made)
    full = student(train="full")
    total = sum(p.numel() for p in full.parameters())
    assert f"train=full, learned={total:,} of {total:,} parameters" in repr(full)
    teacher = Teacher([network(), network("test_vit", 96)], [1.0, 3.0], dtype=torch.bfloat16)
    assert "weighting=fixed, dtype=bfloat16, needs=logits" in repr(teacher)
    assert "network 0: random, input=64 x 64, weight=0.25" in repr(teacher)
    assert "network 1: random, input=96 x 96, weight=0.75" in repr(teacher)
