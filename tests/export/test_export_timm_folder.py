"""The merged folder: plain timm loads it, in a fresh process, bit-equal; a changed bit is seen."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from export_students import LABELS, Trained, make_backbone, train

from distill.deltas.attach import deltas, merge
from distill.deltas.low_rank import LowRank
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing, Result
from distill.export.targets.timm_folder import check_timm_folder, write_timm_folder

# What a user without this project would run.
ALONE = """
import json, sys
import safetensors.torch, timm, torch
assert not any(name.startswith(("distill", "augment")) for name in sys.modules)
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_data_config(model=model)
    print(json.dumps([model.num_classes, data["input_size"], data["mean"], data["std"], data["interpolation"],
                      data["crop_pct"], model.pretrained_cfg["label_names"]]))
    with torch.no_grad():
        logits = model(safetensors.torch.load_file(f"{folder}/../{folder[-1]}.x")["x"])
    safetensors.torch.save_file({"y": logits}, f"{folder}/../{folder[-1]}.y")
"""


@pytest.mark.slow
def test_timm_alone_loads_it_in_a_fresh_process(tmp_path: Path) -> None:
    # another input size changes the shape of a ViT's position embedding
    cases = [("test_efficientnet", {}), ("test_nfnet", {}), ("test_convnext", {}), ("test_vit", {"img_size": 96})]
    models, sizes = [], []
    for index, (architecture, arguments) in enumerate(cases):
        model = train(make_backbone(architecture, **arguments), [LowRank.Settings(rank=2)]).model
        size = arguments.get("img_size", 160)
        preprocessing = Preprocessing(
            input_size=(3, size, size),
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            interpolation="bilinear",
            crop_pct=0.9,
        )
        write_timm_folder(tmp_path / f"{index}", model, origin="random", labels=LABELS, preprocessing=preprocessing)
        safetensors.torch.save_file({"x": torch.randn(2, 3, size, size)}, tmp_path / f"{index}.x")
        models.append(model)
        sizes.append(size)
    folders = [str(tmp_path / f"{index}") for index in range(len(cases))]
    done = subprocess.run([sys.executable, "-c", ALONE, *folders], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for index, (line, model, size) in enumerate(zip(done.stdout.splitlines(), models, sizes, strict=True)):
        expected = [5, [3, size, size], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "bilinear", 0.9, list(LABELS)]
        assert json.loads(line) == expected
        assert deltas(model), "exporting merged the caller's own model"
        merge(model)
        with torch.no_grad():
            here = model(safetensors.torch.load_file(tmp_path / f"{index}.x")["x"])
        assert torch.equal(safetensors.torch.load_file(tmp_path / f"{index}.y")["y"], here)


def test_a_whole_student_of_another_class_count(folder: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    model.reset_classifier(3)
    write_timm_folder(folder, model, origin="random")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert loaded.num_classes == 3 and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_every_flipped_bit_is_detected(folder: Path, trained: Trained, name: str) -> None:
    write_timm_folder(folder, trained.model, origin="random")
    good = (folder / name).read_bytes()
    draw = random.Random(1)
    for _ in range(200):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(bad)
        with pytest.raises(ExportError, match=name):
            check_timm_folder(folder)


def test_weights_that_timm_might_take_instead(folder: Path, trained: Trained) -> None:
    write_timm_folder(folder, trained.model, origin="random")
    check_timm_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ExportError, match=r"pytorch_model.bin: weights that are not in the manifest"):
        check_timm_folder(folder)


def test_wrong_labels(folder: Path, trained: Trained) -> None:
    with pytest.raises(ExportError, match="2 labels for 5 classes"):
        write_timm_folder(folder, trained.model, origin="random", labels=["a", "b"])
    assert not folder.exists()


def test_card_and_config(folder: Path, trained: Trained) -> None:
    results = [Result(name="test/top1", value=v, seed=s) for s, v in [(0, 0.5), (1, 0.7)]]
    write_timm_folder(folder, trained.model, origin="some_tag", labels=LABELS, results=results)
    card = (folder / "README.md").read_text()
    assert "import distill" not in card, "timm alone loads it"
    assert "| test/top1 | 0.6 ± 0.1414 | 0, 1 |" in card and "`some_tag`" in card and "daisy, rose" in card
    config = json.loads((folder / "config.json").read_text())
    assert not {"url", "hf_hub_id", "file", "label_offset"} & set(config["pretrained_cfg"])
