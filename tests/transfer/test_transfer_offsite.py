"""Offsite-tuning: which blocks are dropped, a whole run of both roles, the two commands, what is refused."""

import json
import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
from rich.console import Console
from toy_domains import run_here, summary
from toy_training import network, tree, watching

import distill
from distill.commands.delta_files import find_backbone
from distill.commands.exported import evaluate_run
from distill.commands.offsite import make_emulator, plug
from distill.commands.runs import export_run
from distill.config import merge_trees, validate_tree
from distill.deltas.base import DeltaError, DeltaSettings, WeightDelta
from distill.experiments.offsite import OffsiteExperiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta, save_delta
from distill.export.targets.timm_folder import check_timm_folder, write_timm_folder
from distill.export.verify import Comparison, VerificationReport, _fresh_process
from distill.models.closed_form_head import RandomFeatureClassifier, give_head
from distill.models.emulator import DroppedBlock, evenly, plan_emulator
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network, timm_with_own_models
from distill.models.settings import NetworkSettings, ReusedHead, StudentSettings
from distill.models.weights import NetworkError
from distill.run.from_delta import student_tree
from distill.run.prepare import StudentSpec, trial_student
from distill.run.stage import StageError
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import Interrupted
from distill.transfer.offsite import check_ends, plugged_student
from distill.yaml_tree import ConfigError

QUIET = Console(quiet=True)
GIVEN = {"config.json", "manifest.json", "model.safetensors", "README.md"}
SENT = "plugged-in/delta"
ENDS = ("blocks.0.", "blocks.5.", "cls_token", "pos_embed", "patch_embed.", "norm.", "fc_norm.", "reg_token")


def offsite_tree(output: Path, **changes: Any) -> dict[str, Any]:
    """A tiny ViT of six blocks, of which the emulator keeps four."""
    plain = tree(output, name="offsite")
    del plain["teacher"]
    own = {
        "kind": "offsite",
        "front": ["blocks.0"],
        "back": ["blocks.5"],
        "keep": 0.5,
        "distill": {"accelerator": "cpu"},
        "augment": {"policy": "identical"},
        "student": {"network": network(output, "test_vit"), "deltas": [{"type": "low_rank", "rank": 2}]},
        "objectives": [{"type": "ce"}],
        "training": {"epochs": 1},
    }
    return merge_trees(merge_trees(plain, own), changes)


def offsite(output: Path, **changes: Any) -> OffsiteExperiment:
    made = validate_tree(offsite_tree(output, **changes), "toy")
    assert isinstance(made, OffsiteExperiment)
    return made


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offsite")


@pytest.fixture(scope="module")
def run(output: Path) -> Path:
    return run_here(offsite(output))


@pytest.fixture(scope="module")
def given(output: Path) -> Path:
    """An emulator as ``distill emulator`` writes it, undistilled."""
    make_emulator(offsite(output, distill=None), output / "given", QUIET)
    return output / "given"


def full(output: Path) -> NetworkSettings:
    return NetworkSettings.model_validate(network(output, "test_vit"))


def test_blocks_are_kept_evenly_by_the_formula() -> None:
    assert evenly(12, 6) == [0, 2, 4, 7, 9, 11] and evenly(8, 4) == [0, 2, 5, 7] and evenly(5, 2) == [0, 4]
    for m, text in ((1, "2 or more"), (0, "2 or more"), (4, "nothing to drop"), (9, "nothing to drop")):
        with pytest.raises(NetworkError, match=text):
            evenly(4, m)


def test_of_a_cnn_only_blocks_of_equal_shapes_are_dropped() -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    plan = plan_emulator(model, ["blocks.[01]"], ["blocks.5", "blocks.6"], 0.5)
    assert plan.dropped == ("blocks.3.1", "blocks.3.2", "blocks.4.1")
    assert plan.kept == ("blocks.2.0", "blocks.2.1", "blocks.3.0", "blocks.4.0", "blocks.4.2")
    assert plan.owners == ("blocks.2", "blocks.3", "blocks.4")
    assert "13 of 16 blocks: of the middle 5 of 8 (blocks.2.0" in str(plan)
    assert plan_emulator(model, ["blocks.[01]"], ["blocks.6"], 0.5).kept.count("blocks.5.0") == 1
    part = plan_emulator(model, ["blocks.0", "blocks.1", "blocks.2.0"], ["blocks.5", "blocks.6"], 3)
    assert part.owners == ("blocks.3", "blocks.4", "blocks.2.1") and len(part.dropped) == 2


def test_what_is_between_the_blocks_of_the_middle_is_the_owners() -> None:
    model = timm.create_model("test_convnext").eval()
    plan = plan_emulator(model, ["stages.0"], ["stages.3"], 3)
    assert plan.owners == ("stages.1", "stages.2"), "with their downsamplings"
    assert plan.dropped == ("stages.1.blocks.1", "stages.2.blocks.1", "stages.2.blocks.2"), "0, 2 and 5 of 6"


WRONG_BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"front": ["blocks.9"]}, r"front: 'blocks\.9' names no block; did you mean"),
    ({"front": ["blocks.1"]}, r"front must be the first blocks of the network, and leaves out 'blocks\.0'"),
    ({"back": ["blocks.4"]}, r"back must be the last blocks of the network, and leaves out 'blocks\.5'"),
    ({"back": ["blocks.[0-5]"]}, r"front and back both have 'blocks\.0'"),
    ({"front": ["blocks.[0-2]"], "back": ["blocks.[345]"]}, "front and back are all blocks"),
    ({"front": ["blocks.[01]"], "back": ["blocks.[45]"]}, r"nothing to drop: blocks\.2, blocks\.3 of the middle have"),
    ({"keep": 0.3}, "keep: 1 of 4 blocks would be kept; .*2 or more"),
    ({"keep": 0.99}, "keep: 4 of 4 blocks would be kept, so there is nothing to drop"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG_BLOCKS)
def test_an_emulator_that_cannot_be_is_refused_before_the_run(changes: dict[str, Any], text: str, output: Path) -> None:
    [stage] = [stage for stage in offsite(output, **changes).plan() if stage.name == "emulator"]
    with pytest.raises(StageError, match=text):
        stage.check_files()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep": 1}, r"keep: 1: the first and the last block of the middle are always kept, so 2 or more"),
    ({"keep": 0.0}, r"keep"),
    ({"front": []}, r"front"),
    ({"student": {"train": "full", "deltas": []}}, r"student\.train: full would train the middle too"),
    ({"student": {"network": {"model": "test_vit", "pretrained": False}}}, r"student\.network\.pretrained: false"),
    ({"distill": {"keep": "best"}}, r"distill\.keep: the emulator has no classifier"),
    ({"distill": {"test_every": 1}}, r"distill\.test_every: the emulator has no classifier"),
    ({"distil": {}}, r"distil.*distill"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_configs_are_refused(changes: dict[str, Any], text: str, output: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        offsite(output, **changes)


def test_defaults_are_cross_entropy_and_the_papers_distillation(output: Path) -> None:
    plain = offsite_tree(output)
    del plain["objectives"]
    made = validate_tree(merge_trees(plain, {"distill": {"optimizer": {"lr": 1e-3}}}), "toy")
    assert isinstance(made, OffsiteExperiment) and made.distill is not None
    assert [own.type for own in made.objectives] == ["ce"]
    assert (made.distill.epochs, made.distill.optimizer.lr, made.distill.optimizer.weight_decay) == (1, 1e-3, 0.1)


@pytest.mark.slow
def test_the_rows_and_what_leaves_the_owner(run: Path) -> None:
    content = summary(run)
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["linear probe", "emulator, tuned", "plugged in", "on site"]
    assert all(row["accuracy"] is not None for row in rows.values()) and content["student"] == "plugged in"
    tables = {table["title"]: [row["cells"] for row in table["rows"]] for table in content["tables"]}
    (_, whole, _), (_, emulator, part), (_, verbatim, share) = tables["What the owner gives away"]
    assert emulator / whole == part and verbatim / whole == share and 0 < verbatim < emulator < whole
    sent = {row[0]: row[1:] for row in tables["What is sent"]}
    sizes = [sum(path.stat().st_size for path in (run / name).iterdir()) for name in ("emulator/network", SENT)]
    assert sent["emulator"] == ["owner → user", sizes[0]] and sent["delta file"] == ["user → owner", sizes[1]]
    assert str(run).encode() not in (run / SENT / "delta.json").read_bytes(), "it goes to the owner"
    assert read_delta(run / SENT)[0].origin == "emulator of test_vit"


@pytest.mark.slow
def test_distillation_changes_the_kept_blocks_alone(run: Path, output: Path) -> None:
    own = fingerprint(create_network(full(output), 0).model.state_dict()).tensors
    given = fingerprint(
        create_network(NetworkSettings(model=f"local-dir:{run / 'emulator/network'}")).model.state_dict()
    )
    assert not any(name.startswith(("blocks.2", "blocks.3")) for name in given.tensors), "they are dropped"
    changed = {name for name, mark in given.tensors.items() if mark != own[name]}
    assert changed and {name.split(".")[1] for name in changed} == {"1", "4"}
    assert all(name.endswith("weight") and "norm" not in name for name in changed)


@pytest.mark.slow
def test_the_plugged_in_student_is_one_of_the_full_network(run: Path, output: Path) -> None:
    sent, of_emulator = read_delta(run / "plugged-in/delta")
    exported, of_full = read_delta(run / "export/delta")
    assert sent.architecture == "emulator" and exported.architecture == "test_vit"
    assert of_emulator.keys() == of_full.keys()
    assert all(torch.equal(of_emulator[name], of_full[name]) for name in of_full), "bit by bit what the user has sent"
    sites = {site for group in exported.deltas for site in group.sites}
    assert sites and all(site.startswith(ENDS) for site in sites)
    config = json.loads((run / "export/merged/config.json").read_text())
    assert config["architecture"] == "test_vit", "the merged folder needs timm alone"
    merged = create_network(NetworkSettings(model=f"local-dir:{run / 'export/merged'}")).model
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = load_delta(run / "export/delta", create_network(full(output), 4).model)(x)
        torch.testing.assert_close(merged(x), logits, rtol=1e-4, atol=1e-5)
        emulator = create_network(NetworkSettings(model=f"local-dir:{run / 'emulator/network'}", size=32), 4).model
        on_emulator = load_delta(run / "plugged-in/delta", emulator)(x)
    assert not torch.allclose(on_emulator, logits, atol=1e-3), "the middle is another one"
    with pytest.raises(ExportError, match="made for another backbone"):
        load_delta(run / "plugged-in/delta", create_network(full(output), 4).model)


@pytest.mark.slow
def test_the_commands_on_a_run(run: Path, output: Path) -> None:
    row = next(row for row in summary(run)["rows"] if row["name"] == "plugged in")
    assert evaluate_run(run, "test", QUIET).accuracy() == pytest.approx(row["accuracy"])
    export_run(run, output / "again", QUIET)
    with pytest.raises(ConfigError, match=r"student\.start: a delta file of the full network does not fit"):
        offsite(output, student={"start": str(run / "export/delta")})
    assert read_delta(output / "again/delta")[0].sha256 == read_delta(run / "export/delta")[0].sha256


@pytest.mark.slow
def test_plug_writes_and_verifies_the_same_student(run: Path, output: Path) -> None:
    with patch("distill.export.verify._run_fresh", _fresh_process):
        plug(run / "plugged-in/delta", full(output).model, output / "plugged", QUIET)
    manifest, tensors = read_delta(output / "plugged/delta")
    exported, expected = read_delta(run / "export/delta")
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert manifest.backbone == exported.backbone and manifest.labels == tuple("abcd")
    assert manifest.made_by == f"plug: {read_delta(run / 'plugged-in/delta')[0].sha256}"
    check_timm_folder(output / "plugged/merged")
    with pytest.raises(ExportError, match="which is no emulator"):
        plug(run / "export/delta", full(output).model, output / "twice", QUIET)


class Gain(WeightDelta):
    """A user's own delta."""

    class Settings(DeltaSettings):
        type: str = f"{__name__}:Gain"

    def __init__(self, settings: DeltaSettings, layer: torch.nn.Module):
        super().__init__(settings, layer)
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (1 + self.gain)


def test_a_users_own_delta_is_plugged_in_only_if_allowed(given: Path, output: Path) -> None:
    network = NetworkSettings(model=f"local-dir:{given}", size=32)
    settings = StudentSettings(network=network).model_copy(update={"deltas": (Gain.Settings(),)})
    student = StudentSpec(settings, 0, 4).build()
    save_delta(output / "own", student.model, student.backbone, origin=student.network.origin)
    with pytest.raises(DeltaError, match=rf"needs the class '{__name__}:Gain'; .* \(--allow-plugins\)"):
        plug(output / "own", full(output).model, output / "own-plugged", QUIET)
    with patch("distill.export.verify._run_fresh", _fresh_process):
        weights = Path(full(output).model.removeprefix("local-dir:")) / "model.safetensors"
        plug(output / "own", "test_vit", output / "own-plugged", QUIET, checkpoint=weights, allow_plugins=True)
    assert {path.name for path in (output / "own-plugged").iterdir()} == {"delta", "merged"}
    assert read_delta(output / "own-plugged/delta")[0].origin == "test_vit@model.safetensors"


@pytest.mark.slow
def test_what_fails_its_verification_is_not_written(run: Path, output: Path) -> None:
    failed = Comparison(what="a", against="b", relative_difference=1.0, tolerance=1e-3, same_top1=0, images=32)
    report = VerificationReport(images=32, hashes={}, comparisons=(failed,))
    kept = output / "kept"
    (kept / "merged").mkdir(parents=True)
    with patch("distill.commands.offsite.verify", lambda *_, **__: report):
        for to in (output / "failed", kept):
            with pytest.raises(ExportError, match="so nothing was written"):
                plug(run / "plugged-in/delta", full(output).model, to, QUIET)
    assert not (output / "failed").exists() and [*kept.rglob("*")] == [kept / "merged"]
    assert not [*output.glob("*.unfinished")]


@pytest.mark.slow
def test_the_owner_gives_the_emulator_alone_and_continues_an_interrupted_command(run: Path, output: Path) -> None:
    """The checkpoints of the distillation hold the owner's weights."""
    to, settings = output / "distilled", offsite(output)

    def kill(module: Any) -> None:
        if module.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    console = Console(record=True, width=400, file=StringIO())
    with watching(kill, lambda *_: None), pytest.raises(Interrupted):
        make_emulator(settings, to, console)
    assert "offsite-emulator is saved; the same command continues it" in console.export_text() and not to.exists()
    make_emulator(settings, to, console)
    assert {path.name for path in to.rglob("*")} == GIVEN
    assert (to / "model.safetensors").read_bytes() == (run / "emulator/network/model.safetensors").read_bytes()
    assert [path.name for path in settings.output.glob("offsite-emulator*")] == ["offsite-emulator"]
    (to / "run").mkdir()
    with pytest.raises(ExportError, match="holds 'run', and the folder of an emulator is given away"):
        make_emulator(settings, to, QUIET)
    with pytest.raises(ConfigError, match=r"output: .* is in .*, which is given away"):
        make_emulator(settings.model_copy(update={"output": output / "new/runs"}), output / "new", QUIET)


@pytest.mark.slow
def test_foreign_ends_are_refused_by_their_layer(run: Path, output: Path) -> None:
    folder = run / "plugged-in/delta"
    manifest, _ = read_delta(folder)
    model = create_network(full(output), 4).model
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight.zero_()
        model.blocks[4].mlp.fc1.bias.add_(1)
    assert check_ends(manifest, model, folder) == tuple(f"blocks.{n}" for n in range(1, 5)), "the middle may differ"
    with torch.no_grad():
        model.blocks[5].norm2.bias[0] = 2**-20
    with pytest.raises(
        ExportError, match=r"the ends of its emulator are not those of this network:\n  blocks\.5\.norm2\.bias has"
    ):
        check_ends(manifest, model, folder)
    other = NetworkSettings.model_validate(network(output, "test_vit", seed=1))
    with pytest.raises(ExportError, match=r"blocks\.0\.attn\.proj\.weight has other values"):
        plugged_student(folder, other)
    with pytest.raises(ExportError, match="architecture is test_efficientnet, expected test_vit"):
        plugged_student(folder, NetworkSettings.model_validate(network(output, "test_efficientnet")))
    [group, *_] = manifest.deltas
    foreign = manifest.model_copy(update={"deltas": (group.model_copy(update={"sites": ("blocks.1.mlp.fc1",)}),)})
    with pytest.raises(ExportError, match=r"changes 'blocks\.1\.mlp\.fc1' in the emulator's middle"):
        check_ends(foreign, model, folder)


def test_a_head_on_an_emulator_is_merged_and_plugged_in(given: Path, output: Path) -> None:
    """The entry points of emulators and of heads have arguments of the same names, so they are nested."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = NetworkSettings(model=f"local-dir:{given}", size=32)
    plain = StudentSettings.model_validate({"network": settings.model_dump(), "deltas": [{"type": "norm_affine"}]})
    student = StudentSpec(plain, 0, 4, head=ReusedHead(width=6)).build()
    with torch.no_grad():
        for site in student.sites:
            for tensor in site.delta.parameters():
                tensor.add_(0.1)
    origin = student.network.origin
    write_timm_folder(output / "reused", student.model, origin=origin)
    save_delta(output / "reused-delta", student.model, student.backbone, origin=origin)
    closed = create_network(settings, 4).model
    give_head(closed, RandomFeatureClassifier(closed.num_features, 5, 4, seed=0), 4)
    with torch.no_grad():
        closed.get_classifier().weight.fill_(0.5)
    write_timm_folder(output / "closed", closed, origin=origin)
    with torch.no_grad():
        for name, model in {"reused": student.model.eval(), "closed": closed.eval()}.items():
            again = create_network(NetworkSettings(model=f"local-dir:{output / name}", size=32)).model
            torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
            assert isinstance(again.blocks[2], DroppedBlock) and not isinstance(again.blocks[1], DroppedBlock)
        plugged, _ = plugged_student(output / "reused-delta", full(output))
        write_timm_folder(output / "reused-full", plugged.model, origin="x")
        whole = create_network(NetworkSettings(model=f"local-dir:{output / 'reused-full'}", size=32)).model
        torch.testing.assert_close(whole(x), plugged.model.eval()(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(whole(x), student.model(x), atol=1e-3)
    assert origin == "emulator of test_vit", "not a folder of its user"
    manifest, _ = read_delta(output / "reused-delta")
    with pytest.raises(ExportError, match="belongs to an emulator of test_vit; name its folder as student"):
        student_tree(manifest, moved=False)
    with pytest.raises(ExportError, match="made for an emulator of test_vit; give its folder as backbone"):
        distill.load_delta(output / "reused-delta")
    assert "it is an emulator of test_vit: give an experiment" in str(find_backbone(manifest, None))


@pytest.mark.parametrize(
    ("name", "own"),
    [("emulator", {"dropped": [], "middle": []}), ("reused_head", {"width": 2}), ("closed_form_head", {"head": {}})],
)
def test_a_folder_names_an_architecture_and_no_other_weights(name: str, own: dict[str, Any]) -> None:
    create = timm_with_own_models().create_model
    for body in ("hf-hub:timm/test_vit", "local-dir:/tmp", 7):
        with pytest.raises(NetworkError, match=f"body: {body!r} is no architecture of timm"):
            create(name, body=body, **own)
    refused = r"has no weights of its own, so leave (checkpoint_path|pretrained|cache_dir) out"
    for wrong in ({"checkpoint_path": "x"}, {"body_args": {"pretrained": True}}, {"cache_dir": "x"}):
        with pytest.raises(NetworkError, match=refused):
            create("emulator", body=name, body_args={"body": "test_vit", **own, **wrong}, dropped=[], middle=[])


def test_a_folder_without_classifier_gets_one_as_a_pretrained_network_does(tmp_path: Path) -> None:
    """Uniform in ±1/√inputs; timm's own initialization of an EfficientNet is ±1/√classes, with logits far too large."""
    model = timm.create_model("test_efficientnet", num_classes=0)
    write_timm_folder(tmp_path / "headless", model, origin="x")
    head = create_network(
        NetworkSettings(model=f"local-dir:{tmp_path / 'headless'}", size=32), 4
    ).model.get_classifier()
    assert head.weight.shape[0] == 4 and 0 < head.weight.abs().max() <= head.in_features**-0.5


def test_the_emulator_is_a_folder_whose_user_changes_the_ends_alone(given: Path, output: Path) -> None:
    check_timm_folder(given)
    assert {path.name for path in given.rglob("*")} == GIVEN
    settings = NetworkSettings(model=f"local-dir:{given}", size=32)
    made = create_network(settings, 4)
    assert isinstance(made.model.blocks[2], DroppedBlock) and isinstance(made.model.blocks[3], DroppedBlock)

    def student(*deltas: dict[str, Any]) -> Any:
        plain = {"network": settings.model_dump(), "deltas": list(deltas)}
        return trial_student(StudentSpec(StudentSettings.model_validate(plain), 0, 4))

    everywhere = student({"type": "low_rank", "rank": 2}, {"type": "norm_affine"})
    assert {site.name.split(".")[1] for site in everywhere.sites if site.name.startswith("blocks.")} == {"0", "5"}
    adapter = student({"type": "adapter", "hidden": 2}).sites[0].delta
    assert adapter.settings.sites == ("blocks.0", "blocks.5"), "as names, since patterns match more in the full network"
    middle = r"student\.deltas\.0: {}: .*matche?s? .* of the emulator's middle alone, such as 'blocks\.[14]"
    for delta in ({"type": "low_rank", "sites": "blocks.4.*"}, {"type": "adapter", "sites": "blocks.1"}):
        with pytest.raises(DeltaError, match=middle.format(delta["type"])):
            student(delta)
    with pytest.raises(DeltaError, match="ladder: it reads the whole backbone"):
        student({"type": "ladder", "init": "random"})


@pytest.mark.slow
def test_a_structural_delta_is_plugged_in_at_the_same_blocks(given: Path, output: Path) -> None:
    settings = NetworkSettings(model=f"local-dir:{given}", size=32)
    plain = StudentSettings.model_validate(
        {"network": settings.model_dump(), "deltas": [{"type": "adapter", "hidden": 2}]}
    )
    student = StudentSpec(plain, 0, 4).build()
    with torch.no_grad():
        for adapter in student.sites[0].delta.adapters:
            adapter.up.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_delta(output / "adapters", student.model, student.backbone, origin="x")
    plugged, _ = plugged_student(output / "adapters", full(output))
    save_delta(output / "whole", plugged.model, plugged.backbone, origin="x")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loaded = load_delta(output / "whole", create_network(full(output), 4).model)
        assert torch.equal(loaded(x), plugged.model.eval()(x))
    assert set(loaded.structural_0.names) == set(student.sites[0].delta.names)


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_equal(run: Path, output: Path) -> None:
    again, stages = offsite(output, name="again"), ("emulator", "student", "plugged-in")
    steps: list[int] = []

    def kill(module: Any) -> None:
        steps.append(module.global_step)
        if len(steps) == 8:  # within the second fit
            os.kill(os.getpid(), signal.SIGTERM)

    with watching(kill, lambda *_: None), pytest.raises(Interrupted):
        run_here(again, only=stages)
    resumed = run_here(again, resume=True, only=stages)
    for path in ("emulator/network/model.safetensors", "plugged-in/delta/delta.safetensors"):
        assert (resumed / path).read_bytes() == (run / path).read_bytes()
    first, second = (VerifiedCheckpointIO().load_checkpoint(each / "student/result.ckpt") for each in (run, resumed))
    assert all(torch.equal(first["student"][name], second["student"][name]) for name in first["student"])
