"""Pushing to the hub, and loading from its cache by name. There is no network: the cache is laid out as the hub's."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from delta_files import fill
from export_students import LABELS, logits
from typer.testing import CliRunner

import distill
from distill.cli import app
from distill.deltas.attach import attach
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state
from distill.export.checksummed import ExportError
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import read_delta, save_delta
from distill.export.manifest import Result
from distill.export.targets.timm_folder import write_timm_folder
from distill.models import hub as hub_module
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.weights import NetworkError
from distill.run.from_delta import delta_folder

RESULTS = (Result(name="test/top1", value=0.875, seed=0), Result(name="test/top1", value=0.885, seed=1))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EMBEDDED = "embedded:tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A folder with the exports of a run."""
    folder = tmp_path_factory.mktemp("run")
    model = create_network(NetworkSettings(model=EMBEDDED), len(LABELS)).model
    head = classifier_names(model)
    before = fingerprint(backbone_state(model, head))
    attach(model, [LowRank.Settings(rank=2, sites="blocks.5.*.conv_pw")], head)
    fill(delta_state(model).values(), 1)
    save_delta(folder / "export" / "delta", model, before, origin=EMBEDDED, labels=LABELS, results=RESULTS)
    write_timm_folder(folder / "export" / "merged", model, origin=EMBEDDED, labels=LABELS, results=RESULTS)
    return folder


@pytest.fixture
def offline(monkeypatch):
    hub_module.hub_folder.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield
    hub_module.hub_folder.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch, offline) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache: Path, repository: str, source: Path) -> Path:
    """A folder's files in the cache, as huggingface_hub lays them out: links in snapshots to blobs."""
    own = cache / f"models--{repository.replace('/', '--')}"
    snapshot = own / "snapshots" / COMMIT
    for folder in (own / "blobs", own / "refs", snapshot):
        folder.mkdir(parents=True)
    (own / "refs" / "main").write_text(COMMIT)
    for path in source.iterdir():
        blob = own / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    return snapshot


def push(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["hub", "push", *map(str, arguments)], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def uploads(monkeypatch) -> list[dict]:
    """What would be uploaded: the arguments, and the content of every file."""
    sent: list[dict] = []

    class Api:
        def create_repo(self, repository, **options):
            sent.append({"create": repository, **options})

        def upload_folder(self, *, folder_path, allow_patterns, **options):
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            assert sorted(files) == sorted(allow_patterns)
            sent.append({**options, "files": files})
            return SimpleNamespace(commit_url="https://huggingface.co/me/digits/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr("distill.models.weights.reach_hub", lambda: "huggingface.co")
    return sent


def test_a_push_is_dry_until_yes(run_folder, uploads):
    output = push(run_folder, "me/digits", "--license", "MIT")
    assert "https://huggingface.co/me/digits (public if it is new)" in output and "nothing was uploaded" in output
    assert "delta.safetensors" in output and 'distill.load_delta("hf-hub:me/digits")' in output and not uploads
    output = push(run_folder, "me/digits", "--private", "--message", "First", "--yes")
    assert "uploaded: https://huggingface.co/me/digits/commit/1" in output
    made, sent = uploads
    assert made == {"create": "me/digits", "private": True, "exist_ok": True, "repo_type": "model"}
    assert (sent["repo_id"], sent["commit_message"]) == ("me/digits", "First")
    delta = run_folder / "export" / "delta"
    assert sent["files"].keys() == {"README.md", "delta.json", "delta.safetensors"}
    assert all(sent["files"][path.name] == path.read_bytes() for path in delta.iterdir())


def test_cards_have_what_the_hub_reads(run_folder, uploads):
    push(run_folder, "me/delta", "--license", "apache-2.0", "--yes")
    push(run_folder, "me/whole", "--merged", "--yes", "--license", "My Own")
    delta, whole = (sent["files"]["README.md"].decode() for sent in uploads[1::2])
    header = yaml.safe_load(delta.split("---")[1])
    assert header["library_name"] == "delta-distill" and header["license"] == "apache-2.0"
    assert header["metrics"] == ["accuracy"] and "base_model" not in header
    sha256 = read_delta(run_folder / "export" / "delta")[0].backbone.sha256
    assert sha256 in delta and f"`{EMBEDDED}`" in delta and "is installed with delta-distill" in delta
    data = huggingface_hub.ModelCard(whole).data
    assert data.library_name == "timm" and data.license == "other" and data.license_name == "My Own"
    (measured,) = data.eval_results
    assert (measured.metric_type, measured.metric_name, measured.metric_value) == ("accuracy", "test/top1", 0.88)
    assert 'timm.create_model("hf-hub:me/whole", pretrained=True)' in whole and "PATH/OF" not in whole


def test_nothing_of_this_machine_is_pushed(run_folder, tmp_path, uploads):
    def with_origin(origin: str, made_by: str = "") -> Path:
        from distill.export.checksummed import write_checksummed

        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run_folder / "export" / "delta", folder)
        (folder / "photo.png").write_bytes(b"an image")
        manifest = read_delta(folder)[0].model_copy(update={"origin": origin, "made_by": made_by})
        write_checksummed(folder / "delta.json", manifest)
        return folder

    local = with_origin(f"local-dir:{tmp_path}/net")
    with pytest.raises(ExportError, match=r"names a folder of this machine as its backbone.*--backbone"):
        push(local, "me/digits", "--yes")
    with pytest.raises(ExportError, match=r"delta.json has a path of this machine, '/home/me/x'; it was not pushed"):
        push(with_origin("random", "from /home/me/x"), "me/digits", "--yes")
    with pytest.raises(ExportError, match="'me' is no repository of the hub: expected OWNER/NAME"):
        push(local, "me", "--yes")
    assert not uploads
    push(local, "me/digits", "--backbone", "hf-hub:me/net", "--yes")
    files = uploads[1]["files"]
    assert files.keys() == {"README.md", "delta.json", "delta.safetensors"}
    assert str(tmp_path) not in files["delta.json"].decode() and b"base_model: me/net" in files["README.md"]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert read_delta(tmp_path)[0].origin == "hf-hub:me/net"  # its seal is right


def test_offline_is_refused_in_seconds(run_folder, cache):
    begun = time.perf_counter()
    with pytest.raises(NetworkError, match=r"nothing was uploaded: the model hub is out of reach \(HF_HUB_OFFLINE"):
        push(run_folder, "me/digits", "--yes")
    for load in (
        lambda: distill.load_delta("hf-hub:me/digits"),
        lambda: delta_folder(Path("hf-hub:me/digits@v2")),
        lambda: read_delta(Path("hf-hub:me/digits")),
    ):
        with pytest.raises(
            NetworkError, match=r"hf-hub:me/digits.* is not in the local cache, and the model hub is out"
        ):
            load()
    with pytest.raises(NetworkError, match="the weights of 'hf-hub:me/net' are not in the local cache"):
        create_network(NetworkSettings(model="hf-hub:me/net"))
    with pytest.raises(NetworkError, match="is no name of the hub: expected hf-hub:OWNER/NAME"):
        read_delta(Path("hf-hub:digits"))
    assert time.perf_counter() - begun < 5


def test_deltas_load_by_name_from_the_cache(run_folder, cache):
    delta = run_folder / "export" / "delta"
    snapshot = put(cache, "me/digits", delta)
    expected = logits(distill.load_delta(delta), 64)
    for name in ("hf-hub:me/digits", "hf-hub:me/digits@main", f"hf-hub:me/digits@{COMMIT}"):
        assert delta_folder(Path(name)) == snapshot
    model = distill.load_delta("hf-hub:me/digits")
    assert torch.equal(logits(model, 64), expected)
    bank = DeltaBank(create_network(NetworkSettings(model=EMBEDDED), len(LABELS)).model)
    bank.add("digits", "hf-hub:me/digits")
    assert bank.load("digits") is not None
    settings = StudentSettings(network=NetworkSettings(model=EMBEDDED), start="hf-hub:me/digits")
    assert str(settings.start) == "hf-hub:me/digits"
    with pytest.raises(NetworkError, match="hf-hub:me/digits@v9 is not in the local cache"):
        read_delta(Path("hf-hub:me/digits@v9"))

    (snapshot / "delta.safetensors").unlink()
    (snapshot / "delta.safetensors").write_bytes(b"another")
    with pytest.raises(ExportError, match="damaged or replaced, its SHA-256 is not the one in the manifest"):
        distill.load_delta("hf-hub:me/digits")
    (snapshot / "delta.safetensors").unlink()
    (cache / "outside").write_bytes(b"")
    (snapshot / "delta.safetensors").symlink_to(cache / "outside")
    with pytest.raises(ExportError, match="leads out of its folder"):
        distill.load_delta("hf-hub:me/digits")


def test_networks_load_by_name_from_the_cache(run_folder, cache):
    merged = run_folder / "export" / "merged"
    snapshot = put(cache, "me/whole", merged)
    network = create_network(NetworkSettings(model="hf-hub:me/whole"))
    assert network.origin == "hf-hub:me/whole"
    local = create_network(NetworkSettings(model=f"local-dir:{merged}"))
    assert torch.equal(logits(network.model, 64), logits(local.model, 64))
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps(config | {"num_features": 3}))
    with pytest.raises(NetworkError, match=r"hf-hub:me/whole: config.json is damaged or replaced"):
        create_network(NetworkSettings(model="hf-hub:me/whole"))
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(NetworkError, match=r"has no safetensors; pickles of the hub are not read"):
        create_network(NetworkSettings(model="hf-hub:me/whole"))


def test_only_what_is_read_is_fetched(run_folder, cache, monkeypatch):
    snapshot = put(cache, "me/digits", run_folder / "export" / "delta")
    asked: list[dict] = []

    def download(repository, **options):
        asked.append({"repository": repository, **options})
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub_module, "reach_hub", lambda: "huggingface.co")
    for _ in range(2):  # once in a process
        read_delta(Path("hf-hub:me/digits@v1"))
    (call,) = asked
    assert (call["repository"], call["revision"], call["local_files_only"]) == ("me/digits", "v1", False)
    assert call["allow_patterns"][:2] == ["delta.json", "delta.safetensors"]
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in call["allow_patterns"])
