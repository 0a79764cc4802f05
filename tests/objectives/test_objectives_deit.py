import math

import pytest
import timm
import torch

from augment.views import InputSpec
from distill.models.features import Features, FeatureShapes
from distill.models.network import NetworkError, extract, measure_shapes
from distill.objectives.base import Targets
from distill.objectives.ce import cross_entropy
from distill.objectives.deit import DeiT
from distill.objectives.kd import kd

SHAPES = FeatureShapes(5, 8)
LABELS = torch.tensor([0, 3, -1, 4])


def parts(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_equals_the_equation(kind, alpha):
    class_token, token, teacher = parts()
    term = DeiT(DeiT.Settings(kind=kind, alpha=alpha, label_smoothing=0.1), SHAPES, SHAPES)
    actual = term(Features((class_token + token) / 2, token=token), Features(teacher), Targets(LABELS))
    token_loss = kd(token, teacher, 3.0) if kind == "soft" else cross_entropy(token, teacher.argmax(1))
    expected = (1 - alpha) * cross_entropy(class_token, LABELS, 0.1) + alpha * token_loss
    torch.testing.assert_close(actual, expected)


def test_on_paper():
    """Class head at odds 3 : 1 for the label, distillation head undecided: ¾ · ln(4/3) + ¼ · ln 2."""
    class_token, token = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    shapes = FeatureShapes(2, 8)
    term = DeiT(DeiT.Settings(alpha=0.25), shapes, shapes)
    student, teacher = Features((class_token + token) / 2, token=token), Features(torch.tensor([[5.0, -5.0]]))
    actual = term(student, teacher, Targets(torch.tensor([1])))
    assert actual.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(2), rel=1e-5)


def test_the_soft_part_is_least_where_the_token_says_what_the_teacher_does():
    class_token, token, teacher = parts()
    term = DeiT(DeiT.Settings(kind="soft", alpha=1.0), SHAPES, SHAPES)

    def loss(token: torch.Tensor) -> float:
        return term(Features((class_token + token) / 2, token=token), Features(teacher), Targets(LABELS)).item()

    assert loss(teacher) == pytest.approx(0, abs=1e-6)
    assert loss(teacher + 0.1 * token) > 1e-4


def test_the_network_reports_its_token_and_another_one_is_refused():
    torch.manual_seed(0)
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, num_classes=5, embed_dim=24, depth=2, num_heads=2
    ).eval()
    for head in (model.head, model.head_dist):
        torch.nn.init.normal_(head.weight)
    needs = frozenset({"logits", "pooled", "token"})
    shapes = measure_shapes(model, InputSpec((32, 32)), needs)
    assert shapes.classes == 5
    x = torch.randn(2, 3, 32, 32)
    features = extract(model, x, needs)
    tokens = model.forward_features(x)
    torch.testing.assert_close(features.token, model.head_dist(tokens[:, 1]))
    torch.testing.assert_close(2 * features.logits - features.token, model.head(tokens[:, 0]))
    plain = timm.create_model("test_vit", num_classes=5)
    with pytest.raises(NetworkError, match="test_vit has no distillation token"):
        measure_shapes(plain, InputSpec((160, 160)), needs)
