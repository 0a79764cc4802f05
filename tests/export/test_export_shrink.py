"""Fewer bytes: packing's error bounds, truncation's optimality and budget, and the files that come out."""

import pytest
import torch
from delta_files import weights, write_file
from export_students import make_backbone

from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.dora import DoRA
from distill.deltas.halrp import HALRP
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.export.checksummed import ExportError
from distill.export.delta.compare import diff
from distill.export.delta.io import TENSORS, load_delta, read_delta
from distill.export.delta.model import open_delta, save_delta_file
from distill.export.delta.packing import pack, unpack
from distill.export.delta.quantize import quantize
from distill.export.delta.truncate import truncate

SITES = "blocks.*.conv_pw*"


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- Packing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 3, 3), (1, 4, 30), (2, 30, 4), (2, 5, 5)])
@pytest.mark.parametrize("form", ["float16", "int8", "sign"])
def test_packed_numbers_come_back_within_their_bounds(shape, form):
    x = tensor(*shape)
    stored, marks = pack({"x": x}, {"x": form})
    back = unpack(stored, marks)["x"]
    assert back.shape == x.shape and back.dtype == torch.float32 and back.is_contiguous()
    across = len(shape) == 3 and shape[1] > shape[2]
    rows = (x.transpose(1, 2) if across else x).flatten(0, 1) if len(shape) == 3 else x.flatten(1)
    lines = (back.transpose(1, 2) if across else back).flatten(0, 1) if len(shape) == 3 else back.flatten(1)
    error = (lines - rows).abs()
    if form == "float16":
        assert bool((error <= rows.abs() / 2048 + 3e-8).all())
    elif form == "int8":
        assert bool((error <= rows.abs().amax(1, keepdim=True) / 254 * 1.0001).all())
    else:
        mean = rows.abs().mean(1, keepdim=True)
        assert torch.allclose(lines, torch.where(rows >= 0, mean, -mean))
        # No other scale is nearer in the sense of least squares.
        for other in (0.95, 1.05):
            assert ((lines * other - rows) ** 2).sum() > ((lines - rows) ** 2).sum()


def test_packed_bytes_are_what_the_table_says():
    x = {"x": tensor(1, 8, 1000)}
    sizes = {}
    for form in ("float16", "int8", "sign"):
        stored, _ = pack(x, {"x": form})
        sizes[form] = sum(t.numel() * t.element_size() for t in stored.values())
    assert sizes == {"float16": 16000, "int8": 8000 + 8 * 4, "sign": 1000 + 8 * 4}


def test_vectors_zeros_booleans_and_what_cannot_be_packed():
    flags = tensor(3, 5) > 0
    zeros = torch.zeros(2, 9)
    stored, marks = pack({"f": flags, "v": tensor(9), "z": zeros, "n": torch.arange(4)}, {"v": "sign", "z": "int8"})
    assert stored["f"].numel() == 2 and marks == {"f": "bits[3,5]", "v": "float16[9]", "z": "int8[2,9]"}
    back = unpack(stored, marks)
    assert torch.equal(back["f"], flags) and torch.equal(back["z"], zeros) and torch.equal(back["n"], torch.arange(4))
    with pytest.raises(ExportError, match=r"n: only float32 can be stored as int8, this is torch.int64"):
        pack({"n": torch.arange(4)}, {"n": "int8"})
    with pytest.raises(ExportError, match=r"x: 1e\+06 is more than half precision can hold"):
        pack({"x": torch.full((2,), 1e6)}, {"x": "float16"})


@pytest.mark.parametrize("mark", ["int8[7,6]", "sign[7,5]", "float99[7,5]", "int8[7,5]; rm"])
def test_marks_that_do_not_fit_are_refused(mark):
    stored, _ = pack({"x": tensor(7, 5)}, {"x": "int8"})
    with pytest.raises(ExportError, match="x: "):
        unpack(stored, {"x": mark})


# --- Quantized files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    specs = [LowRank.Settings(rank=4, sites=SITES), Dense.Settings(sites="conv_stem"), Bias.Settings(sites="bn1")]
    return open_delta(write_file(tmp_path_factory.mktemp("mixed") / "delta", specs))


@pytest.mark.parametrize(("form", "most"), [("float16", 0.52), ("int8", 0.30), ("sign", 0.10)])
def test_quantized_files_load_and_are_smaller(mixed, backbone, tmp_path, form, most):
    manifest = quantize(mixed, tmp_path / "q", form, "float16")
    back = open_delta(tmp_path / "q")
    assert back.manifest == manifest and manifest.results == ()
    # The numbers alone: a file this small is half names.
    stored = sum(t.nbytes for n, t in _stored(tmp_path / "q").items() if n.startswith("delta/"))
    assert stored <= most * mixed.delta_bytes
    error = diff(mixed, back, backbone, knows_values=False)[-1]
    assert error.distance / error.first < {"float16": 1e-3, "int8": 0.02, "sign": 1.2}[form]
    model = load_delta(tmp_path / "q", backbone)
    read = read_delta(tmp_path / "q")[1]
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert torch.isfinite(model(torch.randn(2, 3, 64, 64))).all()


def _stored(folder):
    import safetensors.torch

    return safetensors.torch.load((folder / TENSORS).read_bytes())


def test_quantizing_twice_changes_nothing_more(mixed, tmp_path):
    quantize(mixed, tmp_path / "1", "int8", "int8")
    once = open_delta(tmp_path / "1")
    quantize(once, tmp_path / "2", "int8", "int8")
    a, b = read_delta(tmp_path / "1")[1], read_delta(tmp_path / "2")[1]
    assert all(torch.allclose(a[n], b[n], rtol=1e-6) for n in a)


# --- Truncation ---------------------------------------------------------------------------------------------------


def changes(file, backbone, folder):
    save_delta_file(folder, file, "test")
    before, after = weights(backbone), weights(load_delta(folder, backbone))
    return {n: (after[n] - before[n]).double() for n in after if not n.startswith("classifier")}


def test_full_rank_keeps_every_bit(mixed):
    done = truncate(mixed, make_backbone(seed=3), rank=4)
    for layer, chain in mixed.layers.items():
        if layer != "conv_stem":
            assert done.file.layers[layer] == chain
    low = [rank for site, rank in done.ranks.items() if site != "conv_stem"]
    assert set(low) == {4} and done.ranks["conv_stem"] <= 4


def test_a_rank_is_the_nearest_there_is(mixed, backbone, tmp_path):
    done = truncate(mixed, make_backbone(seed=3), rank=2)
    x, y = changes(mixed, backbone, tmp_path / "x"), changes(done.file, backbone, tmp_path / "y")
    kept = whole = 0.0
    for name, change in x.items():
        if name == "bn1.bias":
            assert torch.equal(change, y[name])
        elif change.any():
            sigma = torch.linalg.svdvals(change.flatten(1))
            error = float((change - y[name]).norm())
            assert error == pytest.approx(float(sigma[2:].norm()), rel=1e-4, abs=1e-5), name
            kept, whole = kept + float(sigma[:2].square().sum()), whole + float(sigma.square().sum())
    assert done.kept == pytest.approx(kept / whole, rel=1e-4)


def test_ranks_of_a_sum_come_back(mixed, backbone, tmp_path):
    """Two low ranks on one layer are truncated together, and grouped and depthwise convs block by block."""
    specs = [LowRank.Settings(rank=2, sites=SITES), LowRank.Settings(rank=3, sites=SITES)]
    file = open_delta(write_file(tmp_path / "two", specs))
    done = truncate(file, backbone, rank=5)
    assert set(done.ranks.values()) == {5} and all(len(chain) == 1 for chain in done.file.layers.values())
    x, y = changes(file, backbone, tmp_path / "x"), changes(done.file, backbone, tmp_path / "y")
    assert all(float((x[n] - y[n]).abs().max()) < 2e-6 for n in x)


@pytest.mark.parametrize("settings", [HALRP.Settings(rank=4), DoRA.Settings(rank=4, alpha=8.0)])
def test_a_product_is_truncated_within_its_delta(settings, backbone, tmp_path):
    file = open_delta(write_file(tmp_path / "delta", [settings.model_copy(update={"sites": (SITES,)})]))
    names = settings.component.product
    done = truncate(file, backbone, rank=2)
    for site, (link,) in done.file.layers.items():
        (before,) = file.layers[site]
        own, old = link.learned, before.learned
        assert own.settings.rank == 2 and type(own.settings) is type(settings)
        assert own.tensors.keys() == old.tensors.keys()
        assert all(torch.equal(own.tensors[name], old.tensors[name]) for name in old.tensors if name not in names)
        scale = 2.0 if isinstance(settings, DoRA.Settings) else 1.0
        whole = scale * old.tensors[names[0]].double() @ old.tensors[names[1]].double()
        cut = own.tensors[names[0]].double() @ own.tensors[names[1]].double()
        error = torch.linalg.svdvals(whole)[..., 2:].norm()
        assert float((whole - cut).norm()) == pytest.approx(float(error), rel=1e-4)
    assert truncate(file, backbone, rank=4).file.layers == file.layers, "every bit"
    save_delta_file(tmp_path / "cut", done.file, done.made_by)
    assert torch.isfinite(load_delta(tmp_path / "cut", backbone)(torch.randn(2, 3, 64, 64))).all()
    smallest = truncate(file, backbone, rank=1).file.delta_bytes
    assert truncate(file, backbone, budget=smallest).file.delta_bytes == smallest
    with pytest.raises(ExportError, match=rf"the smallest ranks take {smallest:,} bytes"):
        truncate(file, backbone, budget=smallest - 1)
    budget = (smallest + file.delta_bytes) // 2
    assert budget - 4096 < truncate(file, backbone, budget=budget).file.delta_bytes <= budget


def test_an_entry_of_a_product_counts_as_often_as_it_is_added(backbone, tmp_path):
    """HALRP adds K2 K1 to each position of the window of 3 × 3, and the error of the weights counts all of them."""
    file = open_delta(write_file(tmp_path / "delta", [HALRP.Settings(rank=3, sites=("conv_stem",))]))
    done = truncate(file, backbone, rank=1)
    save_delta_file(tmp_path / "cut", done.file, done.made_by)
    old, new = (weights(load_delta(tmp_path / name, backbone))["conv_stem.weight"] for name in ("delta", "cut"))
    (link,) = file.layers["conv_stem"]
    squares = 9 * torch.linalg.svdvals(link.learned.tensors["K2"] @ link.learned.tensors["K1"]).square().flatten()
    assert float((old - new).square().sum()) == pytest.approx(float(squares[1:].sum()), rel=1e-3)
    assert done.kept == pytest.approx(float(squares[0] / squares.sum()), rel=1e-4)


def test_a_budget_is_kept_and_spent_on_the_largest(mixed, backbone):
    budget = mixed.delta_bytes * 2 // 3
    done = truncate(mixed, backbone, budget=budget)
    size = done.file.delta_bytes
    assert budget - 2048 < size <= budget
    uniform = truncate(mixed, backbone, rank=2)
    same = truncate(mixed, backbone, budget=uniform.file.delta_bytes)
    assert same.kept >= uniform.kept - 1e-9


def test_truncation_says_what_cannot_be(mixed, backbone, tmp_path):
    with pytest.raises(ExportError, match="one of the two"):
        truncate(mixed, backbone)
    with pytest.raises(ExportError, match=r"the budget is too small"):
        truncate(mixed, backbone, budget=70)
    scale = open_delta(write_file(tmp_path / "s", [ScaleShift.Settings()]))
    with pytest.raises(ExportError, match=r"the budget is too small: deltas without ranks alone take [\d,]+ bytes"):
        truncate(scale, backbone, budget=100)
    assert truncate(scale, backbone, rank=1).file.layers == scale.layers  # nothing in it has a rank


def test_depthwise_layers_stay_as_they_are(backbone, tmp_path):
    file = open_delta(write_file(tmp_path / "d", [Dense.Settings(sites="*.conv_dw")]))
    assert truncate(file, backbone, rank=1).file.layers == file.layers
