"""Moments of domains, the standardized head, scores without labels, and warnings."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import distill
from distill.data.reader import Batch
from distill.experiments.student import tree_of_start
from distill.export.checksummed import ExportError
from distill.export.delta.io import save_delta
from distill.export.delta.source_moments import read_source_moments, write_source_moments
from distill.models.network import as_network
from distill.models.normalization import statistics_of
from distill.models.settings import StudentSettings
from distill.run.prepare import StudentSpec
from distill.stages.measure_domains import moments_of, with_statistics
from distill.stages.outputs import TrainedStudent
from distill.training.fit import FitSummary
from distill.transfer.label_free import class_fractions, scores, warnings_about
from distill.transfer.moments import (
    FeatureMoments,
    aligned,
    batch_norm_inputs,
    batch_norm_moments,
    batch_norms_of,
    standardized,
)


@pytest.fixture(scope="module")
def student() -> distill.Student:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=5)
    return distill.create_student(network, ["statistics", {"type": "bias"}], size=32)


def batches(count: int, size: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(size)
    return [
        Batch(torch.randint(0, 200 + 20 * n, (size, 3, 32, 32), generator=generator).to(torch.uint8), ids, ids)
        for n in range(count)
    ]


@torch.no_grad()
def test_moments_are_those_of_the_layers_inputs_over_all_images(student: distill.Student) -> None:
    """Of one batch, they are what torch computes in training mode; of two, the pooled ones, not their means."""
    own = statistics_of(student.model)
    before = [s.mean.clone() for s in own]
    [first, second] = batches(2)
    single = batch_norm_moments(student, [first], torch.device("cpu"))
    both = batch_norm_moments(student, [first, second], torch.device("cpu"))
    assert len(single) == len(own) and all(torch.equal(a, s.mean) for a, s in zip(before, own)), "values are restored"
    name = next(site.name for site in student.sites if site.delta is own[0])
    layer, seen = student.model.get_submodule(name), []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    from augment.chain import eval_view

    for batch in (first, second):  # the first batch norm reads the stem, which no statistics have changed
        student(eval_view(batch.images, student.input).contiguous(memory_format=torch.channels_last))
    handle.remove()
    x = torch.cat(seen)
    torch.testing.assert_close(both[name][0], x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[name][1], x.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single[name][0], seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_moments_lie_beside_a_delta_file_and_belong_to_it(student: distill.Student, tmp_path: Path) -> None:
    """Those of a student as it computes, with or without statistics deltas; damage and another delta are errors."""
    sites = batch_norms_of(student.model)
    made = batch_norm_inputs(student, batches(2), torch.device("cpu"), sites)
    same = batch_norm_moments(student, batches(2), torch.device("cpu"), adapt=False)
    assert made.keys() == same.keys() and all(torch.equal(made[site][0], same[site][0]) for site in sites)
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert read_source_moments(tmp_path) == {} and write_source_moments(tmp_path, {}) == 0
    save_delta(tmp_path, student.model, student.backbone, origin="random")
    write_source_moments(tmp_path, made)
    read = read_source_moments(tmp_path)
    assert all(torch.equal(a, b) for site in sites for a, b in zip(read[site], made[site], strict=True))
    save_delta(tmp_path, student.model, student.backbone, origin="random", made_by="again")
    assert read_source_moments(tmp_path).keys() == read.keys(), "the same tensors"
    with torch.no_grad():
        next(p for p in student.model.parameters() if p.requires_grad).add_(0.1)
    save_delta(tmp_path, student.model, student.backbone, origin="random")
    with pytest.raises(ExportError, match=r"source_moments\.json: belongs to the delta"):
        read_source_moments(tmp_path)
    write_source_moments(tmp_path, made)
    (tmp_path / "source_moments.safetensors").write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"source_moments\.safetensors: damaged or replaced"):
        read_source_moments(tmp_path)


def test_a_student_of_a_structural_delta_gets_statistics_too(tmp_path: Path) -> None:
    """One with a side network: its own batch norms keep theirs; its file is trained further with ``statistics``."""
    import timm

    settings = StudentSettings.model_validate({"network": {"model": "x", "size": 64}, "deltas": ["ladder"]})
    spec = StudentSpec(settings, 0, 4, network=lambda: as_network(timm.create_model("test_efficientnet"), size=64))
    student = spec.build()
    trained = TrainedStudent("s", "", student, None, spec, FitSummary(0, 0, 0.0, 0.0, {}, 0, -1), tmp_path)
    made = with_statistics(trained)
    assert made is not None and [*moments_of(made)] == batch_norms_of(student.model)
    for site, (mean, var) in moments_of(made).items():
        layer = student.model.get_submodule(site)
        assert torch.equal(mean, layer.running_mean) and torch.equal(var, layer.running_var)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    save_delta(tmp_path, student.model, student.backbone, origin="random")
    write_source_moments(tmp_path, moments_of(made))
    tree = tree_of_start(tmp_path, "start", network=False, measures=True)
    assert [entry["type"] for entry in tree["deltas"]] == ["statistics", "ladder"]
    write_source_moments(tmp_path, {})
    assert read_source_moments(tmp_path) == {} and not [*tmp_path.glob("source_moments.*")], "those of before are gone"


@torch.no_grad()
def test_aligned_statistics_give_the_target_what_the_source_gets() -> None:
    """By hand: the outputs of both domains have equal moments; where the layer's statistics are the source's, AdaBN."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(500, 3, generator=generator) * scale + shift for scale, shift in ((2, 1), (5, -3)))
    moments = [(x.mean(0), x.var(0, correction=0)) for x in (source, target)]
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.copy_(torch.tensor([0.5, -1, 2]))
    norm.running_var.copy_(torch.tensor([1.0, 4, 0.5]))
    mean, var = aligned(norm, *moments)
    other = nn.BatchNorm1d(3).eval()
    other.running_mean.copy_(mean)
    other.running_var.copy_(var)
    torch.testing.assert_close(other(target).mean(0), norm(source).mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other(target).std(0), norm(source).std(0), rtol=1e-3, atol=1e-3)
    norm.running_mean.copy_(moments[0][0])
    norm.running_var.copy_(moments[0][1])
    for made, expected in zip(aligned(norm, *moments), moments[1]):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_head_equals_standardizing_the_features(bias: bool) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3, bias=bias)

        def get_classifier(self) -> nn.Module:
            return self.head

    model, generator = Plain(), torch.Generator().manual_seed(0)
    source = FeatureMoments.of(torch.randn(30, 4, generator=generator) * 2 + 1)
    features = torch.randn(20, 4, generator=generator) * 5 - 2
    target = FeatureMoments.of(features)
    moved = (features - target.mean) / target.std * source.std + source.mean
    made = standardized(model, source, target)
    torch.testing.assert_close(made.get_classifier()(features), model.head(moved), rtol=1e-4, atol=1e-4)
    assert (model.head.bias is not None) == bias, "the model itself is not changed"
    features[:, 1] = 0.5  # dead on the images that are measured
    made = standardized(model, source, FeatureMoments.of(features)).get_classifier()
    torch.testing.assert_close(made.weight[:, 1], model.head.weight[:, 1], msg="a dead feature is not scaled")
    mean = FeatureMoments.of(features).mean
    moved = (features - mean) / features.std(0, correction=0).clamp(min=1e-9) * source.std + source.mean
    moved[:, 1] = source.mean[1] + 0.3
    features[:, 1] += 0.3  # and alive on others
    torch.testing.assert_close(made(features), model.head(moved), rtol=1e-4, atol=1e-4)


def test_scores_by_hand() -> None:
    sure = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]] * 50
    made = scores(sure)
    assert made["entropy"] == pytest.approx(0, abs=1e-6)
    assert made["information"] == pytest.approx(math.log(4))
    assert made["nuclear_norm"] == pytest.approx(math.sqrt(2) * 4 / 8)
    assert made["neighborhood"] == pytest.approx(0, abs=1e-6), "each image has one neighbor of its class"
    flat = scores(torch.zeros(4, 4))
    assert flat["entropy"] == pytest.approx(math.log(4)) and flat["information"] == pytest.approx(0, abs=1e-9)
    assert flat["neighborhood"] == pytest.approx(math.log(3))
    assert all(math.isfinite(value) for value in scores(torch.eye(4)[:1]).values()), "a single image"


def test_classes_that_run_away_and_a_collapse_are_told() -> None:
    names = ("cat", "dog", "horse", "house")
    even = torch.eye(4)[[0, 1, 2, 3] * 5]
    assert warnings_about("student", class_fractions(even), None, names) == []
    source = torch.tensor([0.1, 0.3, 0.3, 0.3])
    away = torch.eye(4)[[0] * 8 + [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]]
    [line] = warnings_about("student", class_fractions(away), source, names)
    assert "40% of the target images are predicted as 'cat', which has 10% of the source" in line
    gone = torch.eye(4)[[1] * 10 + [2] * 10]
    assert any(
        "2 of 4 classes are hardly predicted" in each
        for each in warnings_about("s", class_fractions(gone), None, names)
    )
    [line] = warnings_about("s", class_fractions(torch.eye(4)[[1] * 19 + [0]]), None, names)[:1]
    assert "95% of the target images are predicted as 'dog', 25% in equal shares" in line
    few = torch.tensor([0.01, 0.33, 0.33, 0.33])
    rare = torch.eye(4)[[0] * 4 + [1] * 32 + [2] * 32 + [3] * 32]
    assert warnings_about("s", class_fractions(rare), few, names) == [], "four times as often, but still rare"
