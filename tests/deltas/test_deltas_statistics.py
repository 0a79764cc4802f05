"""Batch-norm statistics of a target domain as a delta: exact merge, the delta file, per-domain forward, EMA teacher."""

import copy
from pathlib import Path

import pytest
import torch
from deltas_models import build, disturb, images
from torch import nn

import distill
from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError, stored_bytes
from distill.deltas.inventory import inventory
from distill.deltas.low_rank import LowRank
from distill.deltas.state import backbone_state, whole_state
from distill.deltas.statistics import Statistics
from distill.export.delta.io import load_delta, read_delta, save_delta
from distill.models.fingerprint import fingerprint
from distill.models.normalization import forward_by_domain, mean_of, normalized_by, statistics_of
from distill.training.momentum import MomentumNetwork
from distill.transfer.moments import batch_norms_of


def adapted(*more) -> nn.Module:
    network = build("test_efficientnet")
    attach(network, [Statistics.Settings(), *more], "classifier")
    for number, own in enumerate(statistics_of(network)):
        own.fill(own.mean + 0.1 * (number + 1), own.var * 1.5)
    return network.eval()


@torch.no_grad()
def test_statistics_of_the_target_merge_to_the_bit() -> None:
    plain, network, x = build("test_efficientnet"), adapted(LowRank.Settings(rank=2)), images(2)
    disturb(network)
    before = network(x)
    with normalized_by(statistics_of(network), "source"):
        assert not torch.equal(network(x), before)
    assert torch.equal(network(x), before), "the target's again"
    assert all(torch.equal(t, whole_state(plain)[n]) for n, t in whole_state(network).items()), "the network's are kept"
    merge(network)
    assert torch.equal(network(x), before) and not deltas(network)
    assert network.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_by_hand_they_are_those_of_a_batch_norm_with_other_buffers() -> None:
    network, other, x = adapted(), build("test_efficientnet"), images(2)
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    for own, norm in zip(statistics_of(network), norms, strict=True):
        norm.running_mean.copy_(own.mean)
        norm.running_var.copy_(own.var)
    assert torch.equal(network(x), other(x))


@torch.no_grad()
def test_the_delta_file_holds_them_as_moved_statistics(tmp_path: Path) -> None:
    network, x = adapted(LowRank.Settings(rank=2)), images(2)
    disturb(network)
    backbone = fingerprint(backbone_state(build("test_efficientnet"), ("classifier",)))
    manifest = save_delta(tmp_path, network, backbone, origin="random")
    names = read_delta(tmp_path)[1]
    norms = len(statistics_of(network))
    assert sum(name.startswith("moved/") for name in names) == 2 * norms
    assert [group.settings["type"] for group in manifest.deltas] == ["low_rank"]
    assert torch.equal(load_delta(tmp_path, build("test_efficientnet"))(x), network(x))
    alone = adapted()
    save_delta(tmp_path / "alone", alone, backbone, origin="random")
    assert torch.equal(load_delta(tmp_path / "alone", build("test_efficientnet"))(x), alone(x))


def test_a_delta_of_two_tensors_of_a_layer_is_stored_once() -> None:
    student = distill.create_student(build("test_efficientnet"), ["statistics", "norm_affine"], num_classes=4, size=64)
    listed = sum(own.bytes for own in inventory(student.model))
    classifier = 4 * sum(p.numel() for p in student.model.classifier.parameters())
    assert stored_bytes(student.own_state()) == listed + classifier


@pytest.mark.parametrize("kind", ["ladder", "adapter"])
def test_they_go_with_structural_deltas(kind: str, tmp_path: Path) -> None:
    """They need no gradient, so a delta into whose backbone none enters goes with them; the file holds both."""
    student = distill.create_student(build("test_efficientnet"), ["statistics", kind], size=64).eval()
    norms = batch_norms_of(student.model)
    assert norms == [site.name for site in student.sites if isinstance(site.delta, Statistics)]
    assert norms == batch_norms_of(build("test_efficientnet")), "not those of the side network"
    for own in statistics_of(student.model):
        own.fill(own.mean + 0.1, own.var * 1.5)
    disturb(student.model)
    x = images(2)
    with torch.no_grad():
        before = student(x).logits
        with normalized_by(statistics_of(student.model), "source"):
            assert not torch.allclose(student(x).logits, before)
        save_delta(tmp_path, student.model, student.backbone, origin="random")
        torch.testing.assert_close(load_delta(tmp_path, build("test_efficientnet"))(x), before, rtol=1e-4, atol=1e-5)


def test_layers_without_running_statistics_are_refused() -> None:
    with pytest.raises(DeltaError, match="only batch norms do"):
        attach(build("test_vit"), [Statistics.Settings()])
    with pytest.raises(DeltaError, match="name the entry once"):
        attach(build("test_efficientnet"), [Statistics.Settings(), Statistics.Settings()])


def test_a_copy_is_independent() -> None:
    network = adapted()
    twin = copy.deepcopy(network)
    statistics_of(twin)[0].mean.fill_(9)
    assert not (statistics_of(network)[0].mean == 9).any()


@pytest.fixture(scope="module")
def student() -> distill.Student:
    network = build("test_efficientnet")
    made = distill.create_student(network, ["statistics", {"type": "low_rank", "rank": 2}], size=64)
    disturb(made.model)
    return made.eval()


@torch.no_grad()
def test_each_sample_is_normalized_by_the_statistics_of_its_domain(student: distill.Student) -> None:
    x, domains, own = images(5), torch.tensor([1, 0, 0, 1, 0]), statistics_of(student.model)
    with normalized_by(own, "source"):
        of_source = student(x).logits
    of_target = student(x).logits
    made = forward_by_domain(student, own, x, domains).logits
    expected = torch.where(domains[:, None] == 1, of_target, of_source)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(of_source, of_target)


@torch.no_grad()
def test_the_ema_teacher_gives_the_mean_of_both_normalizations_for_the_target(student: distill.Student) -> None:
    needs = frozenset({"logits"})
    x, domains = images(4), torch.tensor([0, 1, 0, 1])
    teacher = MomentumNetwork(student, (0.9, 0.9), needs, ("source", "target"), target_only=True)
    [made] = teacher((x,), domains)
    assert made.logits[::2].isnan().all(), "the source's rows are not computed"
    with normalized_by(statistics_of(student.model), "source"):
        of_source = student(x[1::2]).logits.softmax(1)
    mean = (of_source + student(x[1::2]).logits.softmax(1)) / 2
    torch.testing.assert_close(made.logits[1::2].softmax(1), mean, rtol=1e-4, atol=1e-5)
    extra = sum(t.numel() for n, t in teacher.state_dict().items() if n in teacher.own_state())
    own = sum(t.numel() for t in student.own_state().values())
    assert extra == own, "averaged are the deltas and the head"
    frozen = {id(parameter) for parameter in student.model.parameters() if not parameter.requires_grad}
    assert frozen and frozen <= {id(parameter) for parameter in teacher.model.parameters()}, (
        "there is no second network"
    )
    single = MomentumNetwork(student, (0.9, 0.9), needs)
    torch.testing.assert_close(single((x,))[0].logits, student(x).logits, rtol=1e-4, atol=1e-5)


def test_a_mean_of_normalizations_needs_two_of_them() -> None:
    plain = distill.create_student(build("test_efficientnet"), "bias", size=64)
    with pytest.raises(ValueError, match="add a statistics delta"):
        MomentumNetwork(plain, (0.9, 0.9), frozenset({"logits"}), ("source", "target"))
    single_output = distill.Features(logits=torch.zeros(1, 2))
    assert mean_of([single_output]) is single_output
