"""The guide's examples run: every block of it, in one folder, as a reader would."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from augment import __main__ as command
from augment.dual import AugmentSettings, DualAugment
from augment.views import InputSpec
from distill.data.experiment_data import DataSettings, ExperimentData

README = Path(__file__).parents[2] / "augment/README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), flags=re.DOTALL)
MINE = "# my_ops.py\n"


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the reader works: ``my_ops.py`` from its pieces, and a package that declares the guide's entry point."""
    mine = [text.removeprefix(MINE) for text in blocks("python") if text.startswith(MINE)]
    assert len(mine) == 5
    (tmp_path / "my_ops.py").write_text("\n\n".join(mine))
    (points,) = blocks("toml")
    info = tmp_path / "faders-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faders\nVersion: 1.0\n")
    assert '[project.entry-points."distill.augment"]\n' in points
    (info / "entry_points.txt").write_text("[distill.augment]\n" + points.split("\n", 1)[1].replace('"', ""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_ops", None)  # other guides have one, too


@pytest.mark.parametrize("block", [text for text in blocks("python") if not text.startswith(MINE)])
def test_python(block):
    exec(compile(block, "README.md", "exec"), {})


def test_yaml(folder):
    actual = [yaml.safe_load(text) for text in blocks("yaml")]
    assert len(actual) == 6
    for tree in actual:
        assert tree.keys() <= {"data", "augment"}
        if "data" in tree:
            settings = DataSettings.model_validate({**tree["data"], "workers": 0})
            batch = next(iter(ExperimentData(settings).train_loader()))
            assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 32, 32)
        if "augment" in tree:
            dual = DualAugment(AugmentSettings.model_validate(tree["augment"]), [], InputSpec((16, 16)), seed=0)
            images, ids = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8), torch.arange(4)
            views, again = dual(images, ids, 0), dual(images.flip(0), ids.flip(0), 0)
            torch.testing.assert_close(views.student[0], again.student[0].flip(0))
            assert not torch.equal(views.student[0], dual(images, ids, 1).student[0])


@pytest.mark.slow
def test_commands(folder):
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    assert len(commands) == 2
    for line in commands:
        program, *arguments = line.split()
        assert program == "augment"
        with pytest.raises(SystemExit) as left:
            command.main(arguments)
        assert left.value.code == 0, line


@pytest.mark.parametrize("name", ["Zoom", "Fog", "Shake", "Sort", "Speckle"])
def test_every_example_meets_the_requirements(folder, name):
    with pytest.raises(SystemExit) as left:
        command.main(["check", f"my_ops:{name}", "--size", "24"])
    assert left.value.code == 0


def test_links():
    for path in re.findall(r"\]\(([\w/.]+)\)", README.read_text()):
        assert (README.parent / path).exists(), path
