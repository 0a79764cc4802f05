"""distill delta on real files: what it writes, and what it says about it."""

import pytest
import torch
from delta_files import fill, write_file
from typer.testing import CliRunner

from distill.cli import app
from distill.deltas.attach import attach
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import read_delta, save_delta
from distill.export.delta.model import open_delta
from distill.export.manifest import Preprocessing
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network
from distill.models.settings import NetworkSettings

SITES = "blocks.*.conv_pw*"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("deltas")
    low = [LowRank.Settings(rank=4, sites=SITES)]
    write_file(root / "a", low, seed=1)
    write_file(root / "b", [LowRank.Settings(rank=2, sites=SITES)], seed=2, head_seed=2)
    write_file(root / "mixed", [*low, ScaleShift.Settings(sites=SITES)], seed=3)
    return root


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["delta", *map(str, arguments)], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_operations_write_files_and_say_that_they_are_exact(folders, tmp_path):
    a, b = folders / "a", folders / "b"
    for number, command in enumerate(
        [
            ("add", a, b, "--head", "first"),
            ("subtract", a, b, "--head", "second"),
            ("interpolate", a, b, 0.25),
            ("compose", a, b, "--head", "first"),
            ("scale", a, 0.5),
            ("negate", a),
        ]
    ):
        to = tmp_path / str(number)
        output = run(*command, "--to", to)
        assert "exact: every layer" in output and f"{open_delta(to).delta_bytes:,} bytes" in output
        assert read_delta(to)[0].made_by.startswith(command[0] if command[0] != "subtract" else "add 1 of")


def test_what_is_not_exact_needs_the_backbone_and_says_so(folders, tmp_path):
    with pytest.raises(ExportError, match=r"low_rank then scale_shift.*its weights were random: give the experiment"):
        run("scale", folders / "mixed", 2, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncate_and_quantize_tell_sizes_and_what_was_not_measured(folders, tmp_path):
    output = run("truncate", folders / "a", "--rank", 2, "--to", tmp_path / "t")
    assert (
        "ranks 2 to 2 at" in output
        and "% of the squared change" in output
        and "was not measured: its weights" in output
    )
    whole = open_delta(folders / "a").delta_bytes
    output = run("truncate", folders / "a", "--budget", f"{whole // 2}B", "--to", tmp_path / "u")
    assert open_delta(tmp_path / "u").delta_bytes <= whole // 2
    output = run("quantize", folders / "a", "--as", "int8", "--to", tmp_path / "q")
    assert f"before {whole:,}" in output
    with pytest.raises(ExportError, match="--budget: expected bytes such as 200KB"):
        run("truncate", folders / "a", "--budget", "many", "--to", tmp_path / "v")


def test_the_change_of_the_logits_is_measured_where_the_backbone_is_at_hand(tmp_path):
    torch.manual_seed(0)
    model = create_network(NetworkSettings(model="embedded:tf_efficientnet_lite0", size=64), 5).model
    head = classifier_names(model)
    before = fingerprint(backbone_state(model, head))
    attach(model, [LowRank.Settings(rank=4, sites="blocks.6*")], head)
    fill(delta_state(model).values(), 1)
    rendered = Preprocessing.of(model, (64, 64))
    save_delta(tmp_path / "a", model, before, origin="embedded:tf_efficientnet_lite0", preprocessing=rendered)
    output = run("quantize", tmp_path / "a", "--as", "float16", "--to", tmp_path / "q")
    change = float(output.split("logits change by at most ")[1].split()[0])
    assert 0 < change < 5e-3 and "top-1 is the same on" in output and "64 images of seeded noise" in output


def test_diff_is_a_table_with_a_line_for_all(folders):
    output = run("diff", folders / "a", folders / "b")
    assert "blocks.1.0.conv_pwl" in output and " all " in output and "the heads are" in output


def test_factors_are_finite(folders, tmp_path):
    for command in (["scale", folders / "a", "nan"], ["interpolate", folders / "a", folders / "b", "inf"]):
        with pytest.raises(ExportError, match="is no factor: expected a finite number"):
            run(*command, "-o", tmp_path / "new", *["--head", "first"] * (command[0] == "interpolate"))
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_alone(folders):
    with pytest.raises(ExportError, match="is not empty; name a new folder"):
        run("negate", folders / "a", "--to", folders / "b")
    with pytest.raises(ExportError, match="is a file; name a folder"):
        run("negate", folders / "a", "--to", folders / "b" / "delta.json")


def test_force_replaces_the_files_of_a_folder_in_use(folders, tmp_path):
    run("negate", folders / "a", "--to", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run("scale", folders / "a", 2, "--to", tmp_path / "out", "--force")
    again = run("scale", folders / "a", 2, "--to", tmp_path / "new")
    for file in ("delta.safetensors", "delta.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "new" / file).read_bytes()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and "exact" in again
