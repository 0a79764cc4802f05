"""The laws of the algebra of delta files, on the weights that come out when the results are loaded."""

from dataclasses import replace

import pytest
import torch
from delta_files import weights, write_file
from export_students import LABELS, make_backbone

from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import StructuralDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.algebra import add, compose, interpolate, negate, scale, subtract
from distill.export.delta.compare import diff, logits_change, seeded_images
from distill.export.delta.io import load_delta, read_delta, save_delta, write_delta_files
from distill.export.delta.model import open_delta, save_delta_file
from distill.export.targets.timm_folder import TimmFolder, write_timm_folder
from distill.export.verify import _fresh_process, verify
from distill.models.fingerprint import fingerprint

CONV = "blocks.*.conv_pw*"
LOW = LowRank.Settings(rank=2, alpha=4, sites=CONV)
SCALE = ScaleShift.Settings(sites=("*.conv_dw", "bn1", CONV))


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name → opened file."""
    specs = {
        "low": [LOW],
        "other": [LowRank.Settings(rank=3, sites=CONV), Bias.Settings(sites="bn1")],
        "scale": [SCALE],
        "dense": [Dense.Settings(sites="conv_stem")],
        "chain": [LOW, SCALE],
    }
    folder = tmp_path_factory.mktemp("files")
    return {name: open_delta(write_file(folder / name, s, seed=n)) for n, (name, s) in enumerate(specs.items())}


def changes(file, backbone, folder) -> dict[str, torch.Tensor]:
    """What a file changes, found by writing it and loading it again; also proves that the written file is valid."""
    save_delta_file(folder, file, "test")
    before, after = weights(backbone), weights(load_delta(folder, backbone))
    # The head is a value of the file, not a change.
    return {n: after[n] - before[n] for n in after if not n.startswith("classifier")}


def same(actual, expected):
    for name in expected:
        bound = 3e-6 * max(1.0, float(expected[name].abs().max()))
        assert float((actual[name] - expected[name]).abs().max()) <= bound, name


@pytest.mark.parametrize(
    ("first", "second"), [("low", "other"), ("low", "scale"), ("scale", "chain"), ("dense", "low")]
)
def test_sums_are_sums_of_weights(files, backbone, tmp_path, first, second):
    a, b = files[first], files[second]
    given = None if "chain" not in (first, second) else backbone
    done = add(a, b, given, factors=(0.5, -2.0))
    assert bool(done.dense) == (given is not None)
    x, y = changes(a, backbone, tmp_path / "a"), changes(b, backbone, tmp_path / "b")
    same(changes(done.file, backbone, tmp_path / "sum"), {n: 0.5 * x[n] - 2 * y[n] for n in x})


def tensors_of(file):
    return {
        f"{link.site}.{order}.{name}": tensor
        for chain in file.layers.values()
        for order, link in enumerate(chain)
        for name, tensor in link.learned.tensors.items()
    }


def bit_equal(a, b):
    a, b = tensors_of(a), tensors_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_added_can_be_taken_away_again(files, backbone, tmp_path):
    a, b = files["low"], files["other"]
    back = subtract(add(a, b).file, b).file
    same(changes(back, backbone, tmp_path / "back"), changes(a, backbone, tmp_path / "a"))
    site = next(iter(a.layers))
    assert back.layers[site][0].learned.settings.rank == 2  # no ranks of b are left behind


def test_negation_and_the_ends_of_interpolation_are_bit_equal(files):
    a, b = files["low"], files["other"]
    assert bit_equal(negate(negate(a).file).file, a)
    assert bit_equal(scale(a, 1.0).file, a)
    assert bit_equal(interpolate(a, b, 0.0).file, a) and bit_equal(interpolate(a, b, 1.0).file, b)


def test_scale_distributes_over_addition(files, backbone, tmp_path):
    a, b = files["low"], files["scale"]
    left, right = scale(add(a, b).file, 3.0).file, add(scale(a, 3.0).file, scale(b, 3.0).file).file
    same(changes(left, backbone, tmp_path / "left"), changes(right, backbone, tmp_path / "right"))


def test_compose_applies_the_second_to_what_the_first_made(files, backbone, tmp_path):
    a, b = files["low"], files["scale"]
    first = load_delta(_saved(a, tmp_path / "a"), backbone)
    merge(first)
    by_hand = weights(_put(b, first, backbone))
    actual = weights(load_delta(_saved(compose(a, b).file, tmp_path / "ab"), backbone))
    assert all(torch.equal(actual[n], by_hand[n]) for n in by_hand)
    other = weights(load_delta(_saved(compose(b, a).file, tmp_path / "ba"), backbone))
    assert any(not torch.allclose(actual[n], other[n]) for n in actual)


def _saved(file, folder):
    save_delta_file(folder, file, "test")
    return folder


def _put(file, model, backbone):
    """The file's deltas on another model than its own backbone."""
    settings = next(iter(file.layers.values()))[0].learned.settings
    sites = tuple(link.site for chain in file.layers.values() for link in chain)
    attach(model, [settings.model_copy(update={"sites": sites})], classifier_names(backbone))
    for site in deltas(model):
        (link,) = file.layers[site.name]
        site.delta.load_state_dict(link.learned.tensors)
    return model


def test_without_a_common_form_the_backbone_is_asked_for(files):
    with pytest.raises(
        ExportError, match=r"scale 2 of [0-9a-f]{64}: \d+ layers have no form .*\(low_rank then scale_shift\)"
    ):
        scale(files["chain"], 2.0)


def test_slices_of_a_fused_projection_are_places_of_their_own(tmp_path):
    vit = make_backbone("test_vit")
    qkv = ScaleShift.Settings(sites="blocks.*.attn.qkv[qv]")
    a = open_delta(write_file(tmp_path / "a", [qkv], 1, "test_vit"))
    whole = LowRank.Settings(rank=2, sites="blocks.*.attn.qkv")
    b = open_delta(write_file(tmp_path / "b", [whole], 2, "test_vit"))
    x, y = changes(a, vit, tmp_path / "x"), changes(b, vit, tmp_path / "y")
    same(changes(add(a, a).file, vit, tmp_path / "2x"), {n: 2 * x[n] for n in x})  # exact, slice by slice
    done = add(a, b, vit)
    same(changes(done.file, vit, tmp_path / "xy"), {n: x[n] + y[n] for n in x})


def test_heads_have_no_sum(backbone, tmp_path):
    a, b = (open_delta(write_file(tmp_path / n, [LOW], head_seed=s)) for n, s in (("a", 1), ("b", 2)))
    with pytest.raises(ExportError, match="the heads of the two files differ, and heads cannot be summed; choose head"):
        add(a, b)
    name = "head/classifier.weight"
    assert torch.equal(add(a, b, head="second").file.values[name], b.values[name])
    half = interpolate(a, b, 0.5).file.values[name]
    assert torch.allclose(half, (a.values[name] + b.values[name]) / 2)
    c = open_delta(write_file(tmp_path / "c", [LOW], labels=tuple(reversed(LABELS)), head_seed=1))
    with pytest.raises(ExportError, match="are for different classes"):
        interpolate(a, c, 0.5)
    assert interpolate(a, c, 0.5, head="second").file.manifest.labels == tuple(reversed(LABELS))


def test_files_of_different_backbones_are_refused(files, tmp_path):
    foreign = open_delta(write_file(tmp_path / "f", [LOW], backbone_seed=5))
    with pytest.raises(ExportError, match=r"different backbones .*\n  \S+ has other values"):
        add(files["low"], foreign)
    vit = open_delta(write_file(tmp_path / "v", [LowRank.Settings(rank=2)], architecture="test_vit"))
    with pytest.raises(ExportError, match="architecture is test_vit, expected test_efficientnet"):
        compose(files["low"], vit)


def test_a_result_that_changes_nothing_is_not_written(files, tmp_path):
    with pytest.raises(ExportError, match="changes nothing"):
        save_delta_file(tmp_path / "none", subtract(files["low"], files["low"]).file, "subtract")
    assert not (tmp_path / "none").exists()


class Aside(StructuralDelta):
    """A user's own."""


def test_structural_deltas_are_refused_by_name(files, tmp_path):
    manifest = files["low"].manifest
    group = manifest.deltas[0].model_copy(update={"settings": {"type": f"{__name__}:Aside"}})
    about = {n: getattr(manifest, n) for n in ("architecture", "model_args", "num_classes", "origin", "backbone")}
    about |= {"labels": (), "preprocessing": manifest.preprocessing, "deltas": (group,)}
    write_delta_files(tmp_path / "structural", {}, **about)
    with pytest.raises(ExportError, match="Aside"):
        open_delta(tmp_path / "structural", allow_plugins=True)


def test_results_tell_how_they_were_made_and_carry_no_figures(files, backbone, tmp_path):
    from distill.export.manifest import Result

    model = load_delta(_saved(files["low"], tmp_path / "a"), backbone)
    identity = fingerprint(backbone_state(model, classifier_names(model)))
    save_delta(tmp_path / "r", model, identity, origin="random", results=[Result(name="test/top1", value=0.9)])
    done = scale(open_delta(tmp_path / "r"), 0.5)
    save_delta_file(tmp_path / "half", done.file, done.made_by)
    manifest = read_delta(tmp_path / "half")[0]
    assert manifest.results == ()
    assert manifest.made_by == f"scale 0.5 of {read_delta(tmp_path / 'r')[0].sha256}"


def test_a_result_passes_the_proof_of_exports(files, backbone, tmp_path, monkeypatch):
    """Merged equals unmerged, as for any delta file; the proof runs in this process, which is faster."""
    monkeypatch.setattr("distill.export.verify._run_fresh", _fresh_process)
    done = add(files["low"], files["scale"])
    save_delta_file(tmp_path / "delta", done.file, done.made_by)
    write_timm_folder(tmp_path / "merged", load_delta(tmp_path / "delta", backbone), origin="random", labels=LABELS)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = {tmp_path / "merged": TimmFolder(TimmFolder.Settings())}
    report = verify(targets, images, delta=tmp_path / "delta", make_backbone=make_backbone, min_images=8)
    assert report.passed


def test_diff_is_the_geometry_of_the_changes(files, backbone, tmp_path):
    a, b = files["low"], files["other"]
    x, y = changes(a, backbone, tmp_path / "a"), changes(b, backbone, tmp_path / "b")
    u, v = (torch.cat([t.flatten() for t in c.values()]) for c in (x, y))
    *lines, whole = diff(a, b, backbone, knows_values=False)
    assert {line.site for line in lines} == {*a.layers, *b.layers}
    assert whole.first == pytest.approx(float(u.norm()), rel=1e-5)
    assert whole.distance == pytest.approx(float((u - v).norm()), rel=1e-5)
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(u, v, dim=0)), abs=1e-5)
    assert diff(a, negate(a).file, backbone, knows_values=False)[-1].cosine == pytest.approx(-1)
    assert diff(a, a, backbone, knows_values=False)[-1].distance == 0
    with pytest.raises(ExportError, match="depends on the backbone's weights"):
        diff(a, files["scale"], backbone, knows_values=False)


def test_logits_change_is_relative_and_counts_images(backbone):
    images = seeded_images((3, 32, 32), 5)
    assert torch.equal(images, seeded_images((3, 32, 32), 5)) and images.shape == (5, 3, 32, 32)
    assert logits_change(backbone, backbone, images) == replace(
        logits_change(backbone, backbone, images), relative=0.0, same_top1=5, images=5
    )

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * backbone(x)

    actual = logits_change(backbone, Twice(), images)
    assert actual.relative == pytest.approx(1.0) and actual.same_top1 == 5
