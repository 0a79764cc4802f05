"""Each image of a batch gets what the merged model of its own task gives, whatever is added, dropped or evicted."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from delta_files import write_file
from export_students import make_backbone, train

from distill.deltas.attach import merge
from distill.deltas.dora import DoRA
from distill.deltas.ia3 import IA3
from distill.deltas.low_rank import LowRank
from distill.deltas.norm_affine import NormAffine
from distill.deltas.output import OutputDelta
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sparse import Sparse
from distill.deltas.state import whole_state
from distill.export.checksummed import ExportError
from distill.export.delta import bank as bank_module
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import load_delta, read_manifest, save_delta
from distill.models.timm_models import new_classifier

LOW = [LowRank.Settings(rank=2)]
CNN = {
    "low": (LOW, "abcde"),
    "wide": ([LowRank.Settings(rank=3)], "abcdefg"),
    "several": ([ScaleShift.Settings(), DoRA.Settings(rank=1), NormAffine.Settings()], "abc"),
    "columns": ([IA3.Settings(side="input"), LowRank.Settings(sites=("classifier",), rank=1)], "abcde"),
    "probe": ([], "ab"),
    "sparse": ([Sparse.Settings()], "abcd"),
    "output": ([OutputDelta.Settings()], "abcde"),
}
VIT = {
    "rows": ([LowRank.Settings(rank=2, sites=("*.qkv[qv]",)), DoRA.Settings(rank=1, sites=("*.qkv[k]",))], "abcde"),
    "norms": ([NormAffine.Settings(), IA3.Settings(sites=("*.fc1",))], "abc"),
}


def write_all(root, recipes, architecture):
    return {
        name: write_file(root / name, specs, seed=n, head_seed=n, architecture=architecture, labels=tuple(labels))
        for n, (name, (specs, labels)) in enumerate(recipes.items())
    }


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, backbone):
    folders = write_all(root := tmp_path_factory.mktemp("tasks"), CNN, "test_efficientnet")
    model, identity = train(make_backbone(), LOW, moved=True)
    save_delta(root / "moved", model, identity, origin="random")
    return {**folders, "moved": root / "moved"}


def images(count, seed=0, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


HEADS = ("classifier", "head")


@cache
def merged(folder, architecture):
    """The model of a delta file, with its number of classes; merged unless its delta is structural."""
    plain = make_backbone(architecture)
    new_classifier(plain, read_manifest(folder).num_classes)
    model = load_delta(folder, plain)
    if not hasattr(model, "structural_0"):
        merge(model)
    return model


@torch.no_grad()
def expected(folder, backbone, image):
    """Logits of the model of this file, which sees this image alone."""
    return merged(folder, backbone.pretrained_cfg["architecture"])(image[None])[0]


def check(bank, folders, backbone, names, size=64):
    x = images(len(names), size=size)
    for logits, image, name in zip(bank.batch(x, names), x, names, strict=True):
        right = expected(folders[name], backbone, image)
        assert logits.shape == right.shape and (logits - right).abs().max() <= 5e-6 * right.abs().max(), name


def test_every_image_gets_its_own_delta_and_head(backbone, folders, caplog):
    bank = DeltaBank(backbone)
    for name, folder in folders.items():
        bank.add(name, folder)
    names = list(folders)
    check(bank, folders, backbone, [*reversed(names), *names, "low", "low", "sparse"])
    check(bank, folders, backbone, ["wide"])
    check(bank, folders, backbone, ["several"] * 3)
    warnings = [record.getMessage() for record in caplog.records if "no activation form" in record.getMessage()]
    assert [text.partition(" has")[0] for text in warnings] == ["a output delta", "a sparse delta of a conv layer"]
    assert [name for name in names if bank.load(name).model is not None] == ["sparse", "output"]
    assert bank.load("wide").labels == tuple("abcdefg") and bank.load("wide").num_classes == 7


def test_a_batch_of_nothing_and_of_other_lengths(backbone, folders):
    bank = DeltaBank(backbone)
    bank.add("low", folders["low"])
    assert bank.batch(images(0), []) == []
    with pytest.raises(ExportError, match="2 images, but 1 names"):
        bank.batch(images(2), ["low"])
    with pytest.raises(ExportError, match="no task 'z'; there are low"):
        bank.batch(images(2), ["low", "z"])


@pytest.mark.parametrize("classes", [5, 0])
def test_a_transformer_and_a_backbone_without_a_head(tmp_path, classes):
    backbone = make_backbone("test_vit")
    folders = write_all(tmp_path, VIT, "test_vit")
    new_classifier(backbone, classes)
    bank = DeltaBank(backbone.eval())
    for name, folder in folders.items():
        bank.add(name, folder)
    check(bank, folders, backbone, ["rows", "norms", "rows"], size=backbone.pretrained_cfg["input_size"][-1])


def test_a_model_is_what_loading_gives_over_one_backbone(backbone, folders):
    bank = DeltaBank(backbone)
    for name in ("low", "moved", "wide"):
        bank.add(name, folders[name])
    models = {name: bank.model(name) for name in bank.names}
    for name in ("low", "moved"):
        assert torch.equal(models[name](images(2)), load_delta(folders[name], backbone)(images(2))), name
    kept = [
        {k: t.data_ptr() for k, t in whole_state(model).items() if not k.startswith(HEADS) and t.numel() > 1}
        for model in models.values()
    ]
    assert kept[0] == kept[2]
    assert {key for key in kept[0] if kept[0][key] != kept[1][key]} == {"bn1.running_mean"}
    merge(models["low"])
    assert torch.equal(bank.model("low")(images(2)), load_delta(folders["low"], backbone)(images(2)))


def test_what_does_not_fit_is_refused_and_changes_nothing(backbone, folders, tmp_path):
    bank = DeltaBank(backbone)
    bank.add("low", folders["low"])
    with pytest.raises(ExportError, match="there is a task 'low' already"):
        bank.add("low", folders["wide"])
    foreign = write_file(tmp_path / "f", LOW, backbone_seed=3)
    for method, name in ((bank.add, "foreign"), (bank.replace, "low")):
        with pytest.raises(ExportError, match=f"task '{name}': .*made for another backbone"):
            method(name, foreign)
    with pytest.raises(ExportError, match="no task 'z'; there are low"):
        bank.replace("z", folders["low"])
    assert bank.names == ("low",)
    check(bank, folders, backbone, ["low"])
    bank.drop("low")
    with pytest.raises(ExportError, match="no task 'low'; there are none"):
        bank.drop("low")


def test_the_least_recently_used_task_leaves_and_is_checked_when_it_comes_back(backbone, folders, tmp_path):
    own = {name: shutil.copytree(folders["low"], tmp_path / name) for name in "abc"}
    size = DeltaBank(backbone)
    size.add("a", own["a"])
    bytes_of_a = size.load("a").size
    bank = DeltaBank(backbone, max_bytes=2 * bytes_of_a)
    for name, folder in own.items():
        bank.add(name, folder)
    assert bank.size == 0 and bank.in_memory == ()
    bank.load("a")
    bank.load("b")
    bank.load("a")
    bank.load("c")
    assert bank.in_memory == ("a", "c") and bank.size == 2 * bytes_of_a
    held = bank.load("a")

    for path in (own["b"] / "delta.safetensors", own["a"] / "delta.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(ExportError, match=r"task 'b': .*b/delta\.safetensors: damaged or replaced"):
        bank.batch(images(2), ["a", "b"])
    check(bank, own | folders, backbone, ["c"])
    assert bank.in_memory == ("a", "c"), "a file that fails evicts nobody"
    assert len(bank.batch(images(2), ["a", held])) == 2, "a is in memory and was right when it was read"
    other = write_file(tmp_path / "other", LOW, seed=5)
    bank.add("other", other)
    bank.load("other")
    bank.load("c")
    with pytest.raises(ExportError, match=r"task 'a': .*damaged or replaced"):
        bank.load("a")
    assert len(bank.batch(images(1), [held])) == 1

    shutil.copytree(folders["wide"], other, dirs_exist_ok=True)
    bank.load("c")
    bank._kept.pop("other", None)
    with pytest.raises(ExportError, match=r"task 'other': .*not the file that was added"):
        bank.load("other")
    bank.max_bytes = bytes_of_a - 1
    bank.add("large", folders["low"])
    with pytest.raises(ExportError, match=rf"task 'large': .*{bytes_of_a:,} bytes .* more than max_bytes"):
        bank.load("large")


def test_a_batch_ends_with_what_it_began_with(backbone, folders, monkeypatch):
    """The task is replaced and another one dropped between loading and the pass."""
    bank = DeltaBank(backbone)
    bank.add("x", folders["low"])
    bank.add("y", folders["wide"])
    original = DeltaBank._pass

    def late(self, *given):
        bank.replace("x", folders["several"])
        bank.drop("y")
        return original(self, *given)

    monkeypatch.setattr(DeltaBank, "_pass", late)
    x = images(3)
    logits = bank.batch(x, ["x", "y", "x"])
    monkeypatch.undo()
    for row, image, name in zip(logits, x, ("low", "wide", "low")):
        torch.testing.assert_close(row, expected(folders[name], backbone, image), rtol=1e-5, atol=1e-6)
    assert bank.names == ("x",) and len(bank.batch(x[:1], ["x"])[0]) == 3


def test_threads_see_the_old_or_the_new_delta_and_a_file_is_read_once(backbone, tmp_path, monkeypatch):
    """Two files of one task, which a thread replaces by each other while others serve it and tasks that are evicted."""
    labels = tuple("abc")
    files = [
        write_file(tmp_path / str(n), [LowRank.Settings(rank=1 + n)], n, labels=labels, head_seed=n) for n in (0, 1)
    ]
    others = {f"t{n}": write_file(tmp_path / f"t{n}", LOW, n + 5, labels=labels, head_seed=n + 5) for n in range(3)}
    size = DeltaBank(backbone)
    size.add("t0", others["t0"])
    bank = DeltaBank(backbone, max_bytes=3 * size.load("t0").size)
    bank.add("x", files[0])
    for name, folder in others.items():
        bank.add(name, folder)
    x = images(1, size=32)
    of_x = [expected(file, backbone, x[0]) for file in files]
    right = {name: expected(folder, backbone, x[0]) for name, folder in others.items()}
    assert (of_x[0] - of_x[1]).abs().max() > 1e-2
    done, seen = threading.Event(), set()

    def is_near(a, b):
        return bool((a - b).abs().max() <= 1e-5 * b.abs().max())

    def serve(seed):
        count = 0
        while not done.is_set() or count < 3:
            other = f"t{(seed + count) % 3}"
            first, served, second = bank.batch(x.expand(3, -1, -1, -1), ["x", other, "x"])
            assert is_near(served, right[other])
            matches = [n for n in (0, 1) if is_near(first, of_x[n])]
            assert len(matches) == 1 and is_near(second, of_x[matches[0]]), "a mix of both"
            seen.add(matches[0])
            count += 1

    with ThreadPoolExecutor(3) as pool:
        serving = [pool.submit(serve, seed) for seed in range(3)]
        for number in range(12):
            bank.replace("x", files[(number + 1) % 2])
        done.set()
        for each in serving:
            each.result()
    assert seen == {0, 1}

    reads = []
    original = bank_module.read_delta
    monkeypatch.setattr(bank_module, "read_delta", lambda folder: reads.append(folder) or original(folder))
    bank.add("fresh", files[0])
    barrier = threading.Barrier(4)

    def load():
        barrier.wait()
        return bank.load("fresh")

    with ThreadPoolExecutor(4) as pool:
        loaded = {id(each.result()) for each in [pool.submit(load) for _ in range(4)]}
    assert len(reads) == 1 and len(loaded) == 1
