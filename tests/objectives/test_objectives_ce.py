import math

import pytest
import torch
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.ce import CrossEntropy, balanced_weights, cross_entropy


def by_hand(logits, labels, smoothing):
    """The equation, one sample and one class at a time."""
    total, count = 0.0, 0
    for row, label in zip(logits.tolist(), labels.tolist()):
        if label < 0:
            continue
        count += 1
        log_sum = math.log(sum(math.exp(z) for z in row))
        for k, z in enumerate(row):
            target = (1 - smoothing) * (k == label) + smoothing / len(row)
            total -= target * (z - log_sum)
    return total / max(count, 1)


def test_two_samples_on_paper():
    logits = tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4, 1/4 and 1/2, 1/2
    assert cross_entropy(logits, tensor([0, 1])).item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unlabeled", [0, 1, 4])
def test_equals_the_equation(classes, smoothing, unlabeled):
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(5, classes, generator=generator)
    labels = torch.randint(classes, (5,), generator=generator)
    labels[:unlabeled] = -1
    assert cross_entropy(logits, labels, smoothing).item() == pytest.approx(
        by_hand(logits, labels, smoothing), abs=1e-6
    )


def test_nothing_labeled_is_a_zero_that_can_be_trained_on():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_unlabeled_samples_get_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    cross_entropy(logits, tensor([2, -1, 0]), label_smoothing=0.1).backward()
    assert logits.grad[1].abs().max() == 0 and logits.grad[[0, 2]].abs().min() > 0


def test_needs_no_teacher():
    term = CrossEntropy(CrossEntropy.Settings(), FeatureShapes(classes=2, pooled=1), None)
    loss = term(Features(logits=torch.zeros(2, 2)), None, Targets(tensor([0, 1])))
    assert not term.reads_teacher and loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("labels", [torch.zeros(1, dtype=torch.long), torch.zeros(8, 10, dtype=torch.long)])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels of shape .* do not match logits of shape \(8, 10\)"):
        cross_entropy(torch.zeros(8, 10), labels)


def test_mixed_images_have_two_classes() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    own, other = tensor([0, 1, 2, -1]), tensor([1, 1, -1, 0])
    actual = cross_entropy(logits, own, 0.1, other, mix_lambda=0.3)
    soft = torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]) * 0.9 + 0.1 / 3  # the last two have an unknown half
    by_hand = -(soft * logits[:2].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(actual, by_hand)


def test_class_weights_are_those_of_torch_but_divided_by_the_number_of_samples():
    generator = torch.Generator().manual_seed(0)
    logits, labels, weights = (
        torch.randn(6, 3, generator=generator),
        tensor([0, 2, -1, 1, 2, 2]),
        tensor([0.5, 4.0, 1.0]),
    )
    actual = cross_entropy(logits, labels, class_weights_K=weights)
    torchs = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=-1, reduction="sum")
    assert actual.item() == pytest.approx(torchs.item() / 5)
    mixed = cross_entropy(logits, labels, 0.1, labels.flip(0), 0.3, class_weights_K=weights)
    parts = [
        torch.nn.functional.cross_entropy(logits[i], y[i], label_smoothing=0.1).item() * weights[y[i]].item() * share
        for i in (0, 1, 4, 5)
        for y, share in ((labels, 0.3), (labels.flip(0), 0.7))
    ]
    assert mixed.item() == pytest.approx(sum(parts) / 4)


def test_balanced_weights_give_each_class_the_same_total():
    labels = tensor([0] * 6 + [1] * 2 + [3] + [-1] * 5)
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([9 / 18, 9 / 6, 1.0, 9 / 3])
    assert balanced_weights(tensor([-1, -1]), 2).tolist() == [1, 1]
    term = CrossEntropy(CrossEntropy.Settings(class_weights="balanced"), FeatureShapes(classes=4, pooled=1), None)
    batch = Targets(tensor([0, 3]))
    with pytest.raises(ValueError, match="balanced needs the labels of the training split"):
        term(Features(logits=torch.zeros(2, 4)), None, batch)
    term.remember(labels)
    assert term(Features(logits=torch.zeros(2, 4)), None, batch).item() == pytest.approx(math.log(4) * (0.5 + 3) / 2)
    assert not term.state_dict(), "the weights follow from the data"


def test_given_class_weights_have_one_number_for_each_class():
    shapes, batch = FeatureShapes(classes=2, pooled=1), Targets(tensor([1]))
    term = CrossEntropy(CrossEntropy.Settings(class_weights=[1, 3]), shapes, None)
    assert term(Features(logits=torch.zeros(1, 2)), None, batch).item() == pytest.approx(3 * math.log(2))
    with pytest.raises(ValueError, match=r"ce\.class_weights has 3 numbers for 2 classes"):
        CrossEntropy(CrossEntropy.Settings(class_weights=[1, 3, 1]), shapes, None)


def test_among_present_leaves_out_classes_without_a_training_sample():
    shapes = FeatureShapes(classes=4, pooled=1)
    term = CrossEntropy(CrossEntropy.Settings(among="present", label_smoothing=0.1), shapes, None)
    logits, batch = torch.randn(3, 4).requires_grad_(), Targets(tensor([1, 3, -1]))
    with pytest.raises(ValueError, match="present needs the labels of the training split"):
        term(Features(logits=logits), None, batch)
    term.remember(tensor([1, 3, 3, -1]))
    loss = term(Features(logits=logits), None, batch)
    assert loss.item() == pytest.approx(cross_entropy(logits[:, [1, 3]], tensor([0, 1, -1]), 0.1).item())
    loss.backward()
    assert logits.grad is not None and not logits.grad[:, [0, 2]].any() and logits.grad[:2, [1, 3]].all()
    assert not term.state_dict(), "the classes follow from the data"
    weighted = CrossEntropy(CrossEntropy.Settings(among="present", class_weights=[1, 2, 3, 4]), shapes, None)
    weighted.remember(tensor([1, 3]))
    zero = Features(logits=torch.zeros(2, 4))
    assert weighted(zero, None, Targets(tensor([1, 3]))).item() == pytest.approx(3 * math.log(2))
