import pytest
import torch
from torch import nn, tensor

from distill.models.features import Features, FeatureShapes
from distill.models.settings import ReusedHead
from distill.objectives.base import Targets
from distill.objectives.simkd import SimKD, folded, simkd


def build(student: nn.Linear | None, teacher: nn.Linear | None, classes: int = 3) -> SimKD:
    shapes = FeatureShapes(classes, 4, {}, student), FeatureShapes(3, 6, {}, teacher)
    return SimKD(SimKD.Settings(), *shapes)


def test_on_paper() -> None:
    assert simkd(tensor([[1.0, 2.0], [0.0, 0.0]]), tensor([[3.0, 2.0], [0.0, 1.0]])).item() == (4 / 2 + 1 / 2) / 2
    weight, bias = folded(_layer([[1.0, 2.0], [0.0, 1.0]], [1.0, -1.0]), tensor([[2.0, 3.0]]), tensor([10.0]))
    assert weight.tolist() == [[2.0, 7.0]] and bias.tolist() == [9.0]


def _layer(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.load_state_dict({"weight": tensor(weight), "bias": tensor(bias)})
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_after_a_step_is_classifier_after_projector(bias: bool) -> None:
    torch.manual_seed(0)
    head, classifier = nn.Linear(4, 3), nn.Linear(6, 3, bias=bias)
    term = build(head, classifier)
    feature = torch.randn(5, 4)
    term.after_step()
    torch.testing.assert_close(head(feature), classifier(term.projector(feature)))


def test_zero_where_the_projected_feature_is_the_teachers_and_no_labels_are_read() -> None:
    torch.manual_seed(0)
    term = build(nn.Linear(4, 3), nn.Linear(6, 3))
    feature = torch.randn(5, 4)
    teacher = term.projector(feature).detach()
    unlabeled = Targets(torch.full((5,), -1))
    assert term(Features(pooled=feature), Features(pooled=teacher), unlabeled).item() == pytest.approx(0, abs=1e-12)
    expected = sum(float(((a - b) ** 2).mean()) for a, b in zip(teacher, teacher + 1)) / 5
    assert term(Features(pooled=feature), Features(pooled=teacher + 1), unlabeled).item() == pytest.approx(expected)


def test_only_the_projector_is_its_own() -> None:
    term = build(nn.Linear(4, 3), nn.Linear(6, 3))
    assert set(term.state_dict()) == {"projector.weight", "projector.bias"}
    assert term.projector.weight.shape == (6, 4)


def test_conv_asks_for_a_head_of_the_teachers_width_and_fills_it() -> None:
    torch.manual_seed(0)
    settings, shapes = SimKD.Settings(projector="conv", factor=3), FeatureShapes(3, 6, {}, nn.Linear(6, 3))
    assert settings.head(shapes) == ReusedHead(width=6, factor=3)
    assert SimKD.Settings().head(shapes) is None
    given = nn.Linear(6, 3).requires_grad_(False)
    term = SimKD(settings, FeatureShapes(3, 6, {}, given), shapes)
    assert given.weight.equal(shapes.classifier.weight) and given.bias.equal(shapes.classifier.bias)
    term.after_step()
    assert given.weight.equal(shapes.classifier.weight) and not list(term.parameters()) and not term.state_dict()
    projected, target = torch.randn(2, 5, 6)
    actual = term(Features(pooled=projected), Features(pooled=target), Targets(torch.full((5,), -1)))
    torch.testing.assert_close(actual, (projected - target).square().mean())
    with pytest.raises(ValueError, match=r"a frozen head with 6 inputs, as the teacher's, but the student's has 4"):
        SimKD(settings, FeatureShapes(3, 4, {}, nn.Linear(4, 3)), shapes)


@pytest.mark.parametrize(
    ("student", "teacher", "classes", "text"),
    [
        (None, nn.Linear(6, 3), 3, "the student's is not one linear layer"),
        (nn.Linear(4, 3), None, 3, "the teacher's is not one linear layer"),
        (nn.Linear(4, 3, bias=False), nn.Linear(6, 3), 3, "needs a bias in the student's classifier"),
        (nn.Linear(4, 5), nn.Linear(6, 3), 5, "the student has 5 classes, the teacher 3"),
    ],
)
def test_heads_that_cannot_be_reused_are_told(student, teacher, classes, text) -> None:
    with pytest.raises(ValueError, match=text):
        build(student, teacher, classes)
