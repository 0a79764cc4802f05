"""PODNet, ER-ACE and DER++, on hand-made tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.der import DER, der
from distill.objectives.er_ace import er_ace
from distill.objectives.podnet import PODNet, pod_spatial

NEW, OLD = False, True


def test_pod_spatial_on_paper():
    """All on the left against all on the right: the profiles over the height agree, those over the width do not."""
    left, right = tensor([[[[2.0, 0.0], [2.0, 0.0]]]]), tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    # sums of squares over the width (4, 4), over the height (8, 0); normalized by √96
    expected = math.sqrt(2 * (8 / math.sqrt(96)) ** 2)
    assert pod_spatial(left, right).item() == pytest.approx(expected)
    assert pod_spatial(left, -3 * left).item() == pytest.approx(0, abs=1e-6)


def test_podnet_adds_its_parts_and_wants_the_same_network():
    shapes = FeatureShapes(2, pooled=2, maps={"a": (1, 2, 2), "b": (1, 2, 2)})
    left, right = tensor([[[[2.0, 0.0], [2.0, 0.0]]]]), tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    term = PODNet(PODNet.Settings(spatial=3, flat=10), shapes, shapes)
    student = Features(pooled=tensor([[1.0, 0.0]]), maps={"a": left, "b": left})
    teacher = Features(pooled=tensor([[0.0, 1.0]]), maps={"a": right, "b": left})
    loss = term(student, teacher, Targets(tensor([0])))
    torch.testing.assert_close(loss, 3 * pod_spatial(left, right)[0] / 2 + 10)
    other = FeatureShapes(2, pooled=2, maps={"a": (1, 2, 2), "b": (3, 2, 2)})
    with pytest.raises(ValueError, match=r"itself before: \(1, 2, 2\) is not \(3, 2, 2\)"):
        PODNet(PODNet.Settings(), shapes, other)


def test_er_ace_restricts_new_samples_to_the_classes_of_new_samples():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = tensor([2, 3, 0, -1, 3])
    memory = tensor([NEW, NEW, OLD, NEW, OLD])
    new = F.cross_entropy(logits[:2, 2:], tensor([0, 1]))
    old = F.cross_entropy(logits[[2, 4]], tensor([0, 3]))
    torch.testing.assert_close(er_ace(logits, labels, memory), new + old)
    torch.testing.assert_close(er_ace(logits[:2], labels[:2]), new)
    torch.testing.assert_close(
        er_ace(logits, labels, torch.ones(5, dtype=torch.bool)),
        F.cross_entropy(logits[[0, 1, 2, 4]], labels[[0, 1, 2, 4]]),
    )


def test_new_samples_send_no_gradient_to_the_logits_of_old_classes():
    logits = torch.zeros(2, 4, requires_grad=True)
    er_ace(logits, tensor([2, 3]), tensor([NEW, NEW])).backward()
    assert logits.grad[:, :2].abs().sum() == 0 < logits.grad[:, 2:].abs().sum()


def test_der_on_paper():
    logits = torch.zeros(3, 2, requires_grad=True)
    stored = tensor([[9.0, 9.0], [1.0, 3.0], [2.0, torch.nan]])
    memory, labels = tensor([NEW, OLD, OLD]), tensor([0, 1, -1])
    squares = ((1 + 9) / 2 + 4) / 2  # the second memory sample knew one class
    loss = der(logits, labels, memory, stored, alpha=0.3, beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.3 * squares + 0.5 * math.log(2))
    assert logits.grad[0].abs().sum() == 0 and logits.grad.isfinite().all() and logits.grad[2, 1] == 0


def test_der_without_memory_is_zero_with_a_graph_and_without_stored_logits_an_error():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = der(logits, tensor([0, 1, 1]), None, None)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0
    memory = tensor([OLD, NEW, NEW])
    with pytest.raises(ValueError, match=r"der compares logits .* there are none"):
        der(logits, tensor([0, 1, 1]), memory, None)
    assert der(logits, tensor([0, 1, 1]), memory, None, alpha=0).item() > 0
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        der(logits, tensor([0, 1, 1]), memory, torch.zeros(3, 4))


def test_the_batch_tells_the_memory_and_its_logits():
    term = DER(DER.Settings(alpha=1, beta=0), FeatureShapes(2, pooled=2), None)
    stored = torch.ones(2, 2)
    batch = Targets(tensor([0, 1]), is_memory=tensor([OLD, NEW]), stored_logits=stored)
    assert term(Features(logits=torch.zeros(2, 2)), None, batch).item() == 1
    assert term.settings.needs_one_class
