"""The delta file: bit-equal round trips, and everything that must be refused."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from export_students import LABELS, Trained, logits, make_backbone, train

from distill.deltas.attach import attach, deltas
from distill.deltas.base import DeltaSettings, WeightDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError, write_checksummed
from distill.export.delta.io import load_delta, read_delta, save_delta
from distill.export.manifest import Preprocessing, Result
from distill.models.fingerprint import fingerprint


def write(folder: Path, trained: Trained) -> None:
    save_delta(
        folder,
        trained.model,
        trained.identity,
        origin="random",
        labels=LABELS,
        preprocessing=Preprocessing.of(trained.model, (96, 96)),
        results=[Result(name="test/top1", value=0.25, seed=3)],
    )


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet", "test_vit", "test_nfnet"])
def test_round_trip_is_bit_equal(folder: Path, architecture: str) -> None:
    specs: list[DeltaSettings] = [
        LowRank.Settings(rank=2, alpha=4),
        ScaleShift.Settings(),
        Bias.Settings(),
    ]
    if architecture == "test_vit":
        specs += [Dense.Settings(sites="blocks.*.attn.qkv[qv]")]
    trained = train(make_backbone(architecture), specs)
    write(folder, trained)
    backbone = make_backbone(architecture)
    with torch.no_grad():
        for name in classifier_names(backbone):
            backbone.get_submodule(name).weight.fill_(7)  # the head's own values must not matter
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    drawn = torch.get_rng_state()
    loaded = load_delta(folder, backbone)
    assert torch.equal(torch.get_rng_state(), drawn), "loading drew from the caller's generator"
    assert torch.equal(logits(loaded), logits(trained.model))
    assert not deltas(backbone) and all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    assert [(s.key, s.delta.settings.type) for s in deltas(loaded)] == [
        (s.key, s.delta.settings.type) for s in deltas(trained.model)
    ]


def test_moved_statistics_come_back(folder: Path, trained: Trained) -> None:
    """In a fresh process too: see the tests of ``verify``."""
    write(folder, trained)
    loaded = load_delta(folder, make_backbone())
    assert torch.equal(logits(loaded), logits(trained.model))
    assert not torch.equal(loaded.bn1.running_mean, make_backbone().bn1.running_mean)


def test_manifest_says_what_is_needed(folder: Path, trained: Trained) -> None:
    write(folder, trained)
    manifest, tensors = read_delta(folder)
    assert (manifest.architecture, manifest.num_classes, manifest.labels) == ("test_efficientnet", 5, LABELS)
    assert manifest.preprocessing.input_size == (3, 96, 96) and manifest.results[0].seed == 3
    assert manifest.backbone == trained.identity
    expected = {"type": "low_rank", "rank": 2, "ranks": None, "alpha": None, "oversized": "skip"}
    assert manifest.deltas[0].settings == expected
    assert "head/classifier.weight" in tensors and "moved/bn1.running_mean" in tensors
    assert sum(name.startswith("moved/") for name in tensors) == 1
    names = {name for name in tensors if name.startswith("delta/")}
    assert {"delta/conv_stem.0.A", "delta/bn1.0.scale", "delta/bn1.0.shift"} <= names


def test_linear_probe_is_a_delta_file_with_a_head_alone(folder: Path) -> None:
    trained = train(make_backbone(), [])
    write(folder, trained)
    assert torch.equal(logits(load_delta(folder, make_backbone())), logits(trained.model))


@pytest.mark.parametrize("name", ["delta.safetensors", "delta.json"])
def test_every_flipped_bit_is_detected(folder: Path, trained: Trained, name: str) -> None:
    write(folder, trained)
    good = (folder / name).read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(bad)
        with pytest.raises(ExportError, match=name):
            read_delta(folder)
    (folder / name).write_bytes(good)
    read_delta(folder)


@pytest.mark.parametrize("name", ["delta.safetensors", "delta.json"])
@pytest.mark.parametrize("keep", [0, 1, 8, 1000, -1])
def test_truncated_or_absent_files_are_named(folder: Path, trained: Trained, name: str, keep: int) -> None:
    write(folder, trained)
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    with pytest.raises(ExportError, match=name):
        load_delta(folder, make_backbone())
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name}: cannot be read"):
        load_delta(folder, make_backbone())


def test_another_backbone_is_refused_with_its_tensors(folder: Path, trained: Trained) -> None:
    write(folder, trained)
    with pytest.raises(ExportError, match=r"conv_stem\.weight has other values"):
        load_delta(folder, make_backbone(seed=1))
    with pytest.raises(
        ExportError, match=r"(?s)architecture is test_resnet, expected test_efficientnet.*missing blocks"
    ):
        load_delta(folder, make_backbone("test_resnet"))
    torch.manual_seed(0)
    with pytest.raises(ExportError, match="7 classes, expected 5"):
        load_delta(folder, timm.create_model("test_efficientnet", num_classes=7))
    with pytest.raises(ExportError, match="already has deltas"):
        load_delta(folder, trained.model)
    shapes = r"conv_stem\.weight is float32\[24,1,3,3\], expected float32\[24,3,3,3\]"
    with pytest.raises(ExportError, match=rf"(?s)backbone \(random\):\s+{shapes}"):
        load_delta(folder, make_backbone(in_chans=1))


def test_a_head_of_two_classifiers(folder: Path) -> None:
    def make() -> torch.nn.Module:
        return make_backbone("deit_tiny_distilled_patch16_224", depth=1, img_size=160)

    trained = train(make(), [LowRank.Settings(rank=2)])
    write(folder, trained)
    manifest, tensors = read_delta(folder)
    assert {"head/head.weight", "head/head_dist.bias"} <= tensors.keys()
    assert manifest.model_args == {"depth": 1, "img_size": 160}
    assert torch.equal(logits(load_delta(folder, make())), logits(trained.model))


def test_a_delta_that_changes_nothing_is_refused(folder: Path, trained: Trained) -> None:
    fresh = make_backbone()
    identity = fingerprint(backbone_state(fresh, ("classifier",)))
    attach(fresh, [LowRank.Settings(rank=2)], "classifier")
    with pytest.raises(ExportError, match=r"all \d+ deltas leave the backbone unchanged"):
        save_delta(folder, fresh, identity, origin="random")
    write(folder, trained)
    _rewrite(folder, lambda tensors: {n: t * (not n.startswith("delta/")) for n, t in tensors.items()})
    with pytest.raises(ExportError, match="all-zero delta"):
        load_delta(folder, make_backbone())


def _rewrite(folder: Path, change) -> None:
    """Replace the tensors and write correct checksums, as someone who does it on purpose could."""
    manifest, tensors = read_delta(folder)
    data = safetensors.torch.save(change(tensors))
    (folder / "delta.safetensors").write_bytes(data)
    write_checksummed(folder / "delta.json", manifest.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "delta/conv_stem.0.A"}, "missing conv_stem.0.A"),
        (lambda t: t | {"delta/conv_stem.1.A": torch.zeros(1)}, "unexpected conv_stem.1.A"),
        (
            lambda t: t | {"delta/conv_stem.0.A": torch.zeros(1, 3, 27)},
            r"conv_stem.0.A is \(1, 3, 27\) float32, expected",
        ),
        (lambda t: t | {"head/classifier.bias": torch.zeros(5).half()}, "float16, expected"),
        (lambda t: t | {"moved/conv_stem.weight": torch.zeros(1)}, "unexpected conv_stem.weight"),
        (lambda t: t | {"extra": torch.zeros(1)}, "unexpected tensor 'extra'"),
    ],
)
def test_loading_is_strict_both_ways(folder: Path, trained: Trained, change, message: str) -> None:
    write(folder, trained)
    _rewrite(folder, change)
    with pytest.raises(ExportError, match=message):
        load_delta(folder, make_backbone())


def test_links_and_foreign_manifests_are_refused(folder: Path, trained: Trained, tmp_path: Path) -> None:
    write(folder, trained)
    (tmp_path / "elsewhere").write_bytes((folder / "delta.safetensors").read_bytes())
    (folder / "delta.safetensors").unlink()
    (folder / "delta.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="leads out of its folder"):
        read_delta(folder)
    (folder / "delta.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(ExportError, match="not a manifest with a seal"):
        read_delta(folder)


def test_a_newer_schema_is_refused(folder: Path, trained: Trained) -> None:
    write(folder, trained)
    manifest = read_delta(folder)[0]
    write_checksummed(folder / "delta.json", manifest.model_copy(update={"schema_version": 2}))
    with pytest.raises(ExportError, match="schema_version"):
        read_delta(folder)


def test_a_changed_backbone_weight_is_refused(folder: Path, trained: Trained) -> None:
    with torch.no_grad():
        trained.model.bn1.parametrizations.weight.original += 1
    with pytest.raises(ExportError, match=r"frozen, but 1 of its tensors have changed: bn1\.weight"):
        write(folder, trained)


def test_a_failed_write_leaves_the_old_file(folder: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, trained)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("os.fsync", _disk_full)
    with pytest.raises(OSError, match=r"delta.safetensors"):
        write(folder, train(make_backbone(), [Dense.Settings()]))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _disk_full(_: int) -> None:
    raise OSError(28, "No space left on device")


class Mine(WeightDelta):
    """A user's own delta."""

    class Settings(DeltaSettings):
        type: str = f"{__name__}:Mine"

    def __init__(self, settings: DeltaSettings, layer: torch.nn.Module):
        super().__init__(settings, layer)
        self.gain = torch.nn.Parameter(torch.zeros(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (1 + self.gain)


def test_a_users_own_class_is_imported_only_if_allowed(folder: Path) -> None:
    trained = train(make_backbone(), [Mine.Settings()])
    write(folder, trained)
    with pytest.raises(ExportError, match=rf"needs the class '{__name__}:Mine'; pass allow_plugins=True"):
        load_delta(folder, make_backbone())
    assert torch.equal(logits(load_delta(folder, make_backbone(), allow_plugins=True)), logits(trained.model))


def test_a_moved_folder_loads(folder: Path, trained: Trained, tmp_path: Path) -> None:
    write(folder, trained)
    shutil.move(folder, tmp_path / "moved")
    load_delta(tmp_path / "moved", make_backbone())
