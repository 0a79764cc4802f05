"""The emulator of offsite-tuning: which blocks are dropped, its folder, what its user can train on it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toy_offsite import full, give, offsite

import distill
from distill.commands.delta_files import find_backbone
from distill.deltas.base import DeltaError
from distill.export.checksummed import ExportError
from distill.export.delta.io import read_delta, save_delta
from distill.export.targets.timm_folder import check_timm_folder, write_timm_folder
from distill.models.closed_form_head import RandomFeatureClassifier, give_head
from distill.models.emulator import DroppedBlock, evenly, plan_emulator
from distill.models.network import create_network, timm_with_own_models
from distill.models.settings import NetworkSettings, ReusedHead, StudentSettings
from distill.models.weights import NetworkError
from distill.run.from_delta import student_tree
from distill.run.prepare import StudentSpec, trial_student
from distill.run.stage import StageError
from distill.transfer.offsite import plugged_student

GIVEN = {"config.json", "manifest.json", "model.safetensors", "README.md"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offsite")


@pytest.fixture(scope="module")
def given(output: Path) -> Path:
    return give(output)


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
