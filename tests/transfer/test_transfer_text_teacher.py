"""A teacher with other classes, mapped by text: no label of the data changes the student."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from run_here import run_here, summary
from toy_training import tree

from distill.config import merge_trees, validate_tree
from distill.export.targets.timm_folder import write_timm_folder


@pytest.mark.slow
def test_permuted_labels_change_no_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "named"
    teacher = timm.create_model("test_resnet", num_classes=3)
    write_timm_folder(folder, teacher, origin="random", labels=("black cat", "white dog", "gray cow"))
    labels = {"by": "text", "encoder": "toy_text_encoder:BagOfWords", "method": "map"}
    exported = []
    for permuted in (0, 1):
        changes = {
            "data": {"source": {"type": "toy_domains:Inverted", "permuted": permuted}},
            "teacher": {
                "networks": [{"model": f"local-dir:{folder}", "size": 32, "labels": labels}],
                "cache": {"logits": "full"},
            },
            "objectives": [{"type": "kd", "temperature": 1}],
            "training": {"epochs": 1, "validate_every": 1},
            "controls": {"linear_probe": False, "labels_only": False},
        }
        plain = merge_trees(tree(tmp_path, name=f"labels-{permuted}"), changes)
        plain["objectives"] = changes["objectives"]
        run = run_here(validate_tree(plain, "text"))
        exported.append(safetensors.torch.load((run / "export/delta/delta.safetensors").read_bytes()))
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    tables = {table["title"]: table for table in summary(run)["tables"]}
    [entries] = [table for title, table in tables.items() if title.startswith("Classes of ")]
    assert len(entries["rows"]) == 4 and "black cat" in str(entries["rows"]), (
        "the report shows the map's largest entries"
    )
