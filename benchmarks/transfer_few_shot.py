"""The parts of ``transfer.py`` about few labeled images: heads in episodes, and a start of deltas by Reptile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import safetensors.torch
from continual_data import source
from torch import Tensor
from transfer_lab import Figure, Lab, figure, run, seeds

HEADS = ("ridge", "prototype", "logistic", "lp_plus")
SHOTS = (1, 5)
META: dict[str, Any] = {
    "episodes": {"shots": [1]},
    "export": {"targets": []},
}
QUICK: dict[str, Any] = {"meta": {"iterations": 1, "tasks": 1, "test_episodes": 2, "test_steps": 1}}


def few_shot(lab: Lab) -> Iterator[Figure]:
    """Episodes of 5 of 20 classes of flowers61, by heads on cached features, and by deltas that Reptile started."""
    of = seeds(lab)
    lines = [run(lab, "few_shot", "few_shot.yaml", {"seed": seed, "data": flowers(lab)}) for seed in of]
    shown = ", ".join(map(str, of))
    detail = f"flowers61, frozen EfficientNet-Lite0, 128 px, 600 episodes of test images of 20 classes; seeds {shown}"
    for head in HEADS:
        for shots in SHOTS:
            values = [line["metrics"][f"5-way {shots}-shot accuracy of {head}"] for line in lines]
            name = f"fewshot_5way_{shots}shot" + ("" if head == "ridge" else f"_{head}")
            yield figure(name, values, "fraction", detail)
    seconds = [json.loads((Path(line["folder"]) / "episodes/episodes.json").read_text())["seconds"] for line in lines]
    yield figure("episodes_seconds", seconds, "s", "600 episodes, 1 and 5 shots, four heads, cached features")
    yield from reptile(lab, of)


def reptile(lab: Lab, of: list[int]) -> Iterator[Figure]:
    """Both ways to use the start: deltas trained in each episode, and prototypes of its features."""
    trained, features = [], []
    for seed in of:
        changes = {"seed": seed, "data": flowers(lab), **META, **(QUICK if lab.given.quick else {})}
        folder = Path(run(lab, "few_shot", "reptile.yaml", changes)["folder"])
        heads = read(folder / "episodes/accuracies.safetensors")
        own = read(folder / "trained-episodes/accuracies.safetensors")["1"]
        frozen = heads["backbone\nprototype\n1"]
        trained.append((own - frozen[: len(own)]).mean().item())
        features.append((heads["meta-learned deltas\nprototype\n1"] - frozen).mean().item())
    shown = ", ".join(map(str, of))
    detail = (
        "5-way 1-shot, low-rank deltas of rank 4 by Reptile on episodes of 41 other classes, trained in each test "
        f"episode, less prototypes of the frozen network in the same episodes; seeds {shown}"
    )
    yield figure("reptile_minus_prototype", trained, "fraction", detail)
    detail = "the same start without training in the episode: prototypes of its features, less those of the network"
    yield figure("reptile_features_minus_prototype", features, "fraction", detail)


def flowers(lab: Lab) -> dict[str, Any]:
    return {"source": source(lab.given.data / "flowers61", lab.given.out), "workers": 0}


def read(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load(path.read_bytes())
