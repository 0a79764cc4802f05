"""Checkpoints without a head, or with one of another name or form."""

from pathlib import Path

import pytest
from checkpoint_files import assert_equal, make, network, prefixed, saved


def test_files_without_a_head(tmp_path: Path) -> None:
    source = make("test_resnet")
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("fc.")}
    file = saved(prefixed(state, "backbone."), tmp_path / "w.pth")
    made = network("test_resnet", file, 7)
    assert made.model.num_classes == 7 and made.notes == ("w.pth has no head",)
    bare = network("test_resnet", file)
    source.reset_classifier(0)
    assert_equal(bare.model, source)


@pytest.mark.parametrize("head", ["head.fc", "linear", "cls_head.fc", "last_linear", "backbone.fc.1"])
def test_heads_of_other_names_and_places(head: str, tmp_path: Path) -> None:
    source = make("test_resnet", num_classes=5)
    state = prefixed(source.state_dict(), "backbone.")
    for part in ("weight", "bias"):
        state[f"{head}.{part}"] = state.pop(f"backbone.fc.{part}")
    made = network("test_resnet", saved({"state_dict": state}, tmp_path / "w.pth"))
    assert_equal(made.model, source)
    assert not made.notes


@pytest.mark.parametrize(("name", "size"), [("eva02_tiny_patch14_224", 224), ("repvit_m0_9", 64)])
def test_a_head_where_timm_creates_none_or_one_of_another_form(name: str, size: int, tmp_path: Path) -> None:
    source = make(name, num_classes=5)
    assert_equal(network(name, saved(source.state_dict(), tmp_path / "w.pth")).model, source, size)
