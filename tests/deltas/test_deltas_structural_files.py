"""Structural deltas in files, in other processes and in several ranks."""

import copy
import json
from pathlib import Path

import pytest
import torch
from deltas_models import build, disturb, relative
from deltas_processes import run_apart
from structural_deltas import METHODS, VARIANTS, every_method, view, with_delta
from torch import nn

from distill.deltas.attach import attach, deltas
from distill.deltas.dense import Dense
from distill.deltas.ladder import Ladder
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, save_delta
from distill.models.fingerprint import fingerprint

WRITTEN = VARIANTS | {"ladder bfloat16": Ladder.Settings(init="random", trunk="bfloat16")}
"""A trunk in bfloat16 is not bit-equal to the backbone before training, but what is read is to what was written."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A delta file of every variant on a CNN and a ViT, and the logits of the model that was saved."""
    folder = tmp_path_factory.mktemp("saved")
    logits = {}
    for model in ("test_efficientnet", "test_vit"):
        for name in WRITTEN:
            network = build(model)
            backbone = fingerprint(backbone_state(network, classifier_names(network)))
            attach(network, [WRITTEN[name]], classifier_names(network))
            network.eval()
            disturb(network)
            save_delta(folder / f"{model} {name}", network, backbone, origin="random")
            with torch.no_grad():
                logits[f"{model} {name}"] = network(view(model))
    return folder, logits


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, logits = saved
    run_apart(_load, (str(folder), list(logits)))
    actual = torch.load(folder / "found.pt", weights_only=True)
    assert actual.keys() == logits.keys()
    assert [name for name in logits if not torch.equal(actual[name], logits[name])] == []


def _load(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    actual = {}
    with torch.no_grad():
        for name in names:
            model = name.partition(" ")[0]
            actual[name] = load_delta(Path(folder) / name, build(model))(view(model))
    torch.save(actual, f"{folder}/found.pt")


def test_several_deltas_come_back_in_their_order(tmp_path: Path) -> None:
    """Correctors do not commute; weight deltas and structural ones lie in one file."""
    specs = [
        METHODS["deep_delta"].model_copy(update={"sites": ("layer2.*",)}),
        METHODS["adapter"],
        Dense.Settings(sites="layer1.0.conv1"),
        METHODS["deep_delta"].model_copy(update={"sites": ("layer2.*",)}),
    ]
    network = build("test_resnet")
    backbone = fingerprint(backbone_state(network, ("fc",)))
    attach(network, specs, "fc")
    assert [site.delta.settings.type for site in deltas(network)] == ["dense", "deep_delta", "adapter", "deep_delta"]
    network.eval()
    disturb(network)
    manifest = save_delta(tmp_path / "delta", network, backbone, origin="random")
    assert [group.sites for group in manifest.deltas][1:] == [("structural_0",), ("structural_1",), ("structural_2",)]
    with torch.no_grad():
        again = load_delta(tmp_path / "delta", build("test_resnet"))
        assert torch.equal(again(view("")), network(view("")))


@every_method
def test_what_was_not_learned_is_not_written(name: str, tmp_path: Path) -> None:
    network = build("test_resnet")
    backbone = fingerprint(backbone_state(network, ("fc",)))
    attach(network, [METHODS[name]], "fc")
    with pytest.raises(ExportError, match="all 1 deltas leave the backbone unchanged"):
        save_delta(tmp_path, network, backbone, origin="random")


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    run_apart(_ddp_rank, (str(tmp_path), list(METHODS)), count=2)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert differences.keys() == METHODS.keys() and max(differences.values()) < 1e-3, differences


def _ddp_rank(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    differences = {}
    for name in names:
        network = with_delta("test_resnet", name)
        disturb(network)
        alone = copy.deepcopy(network)
        (alone(view("", 4)).square().sum() / 2).backward()
        x = view("", 4)[2 * rank : 2 * rank + 2]
        parallel = nn.parallel.DistributedDataParallel(network)  # it must outlive the backward pass
        parallel(x).square().sum().backward()
        pairs = [(p.grad, q.grad) for p, q in zip(network.parameters(), alone.parameters()) if p.requires_grad]
        differences[name] = max(relative(p, q) for p, q in pairs)
    if rank == 0:
        (Path(folder) / "differences.json").write_text(json.dumps(differences))
    torch.distributed.destroy_process_group()
