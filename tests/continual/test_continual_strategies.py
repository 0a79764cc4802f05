"""Strategies: where a task starts, what it keeps, and what files hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_stream import learn, learn_only, results, stream, stream_tree

from distill.config import validate_tree
from distill.continual.learned import folder_bytes
from distill.continual.strategies.stack import Stack
from distill.export.delta.io import load_delta
from distill.export.delta.mean import ties_mean
from distill.export.delta.model import open_delta
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.models.student import Student
from distill.training.module import Distillation
from distill.yaml_tree import ConfigError

VIEWS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Starts:
    """What the student of each task computes before its first step, and what it is afterwards."""

    def __init__(self, patch: pytest.MonkeyPatch, at_start: Callable[[Distillation], None] = lambda module: None):
        self.logits: list[Tensor] = []
        self.students: list[Student] = []
        original = Distillation.on_fit_start

        def noting(module: Distillation) -> None:
            original(module)
            self.students.append(module.step.student)
            self.logits.append(logits(module.step.student.model))
            at_start(module)

        patch.setattr(Distillation, "on_fit_start", noting)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """In eval mode; the modes are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    out: Tensor = model.eval()(VIEWS)
    for module, training in modes:
        module.training = training
    return out


def with_delta(network: NetworkSettings, folder: Path, classes: int) -> nn.Module:
    return load_delta(folder, create_network(network, classes).model)


@pytest.mark.parametrize("strategy", ["stack", "merge"])
def test_deltas_are_needed(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"student\.deltas: strategy {strategy} combines the deltas of tasks"):
        validate_tree(stream_tree(tmp_path, strategy={"type": strategy}, student={"deltas": []}), "stream")


def test_reprune_needs_a_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reprune: there is no bound to prune to; set growth"):
        validate_tree(stream_tree(tmp_path, strategy={"type": "bank", "reprune": True}), "stream")


@pytest.mark.slow
def test_a_stack_begins_where_it_ended_and_keeps_each_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    settings = stream(tmp_path, strategy={"type": "stack"})
    folder = learn_only(settings)
    network = settings.student.network
    first = with_delta(network, folder / "task-1/student/delta", 2)
    torch.testing.assert_close(starts.logits[1][:, :2], logits(first), atol=1e-5, rtol=1e-5)
    served = with_delta(network, folder / "task-2/student/delta", 4)
    torch.testing.assert_close(logits(served), logits(starts.students[1].model), atol=1e-5, rtol=1e-5)
    parts = [open_delta(folder / name) for name in ("task-1/student/delta", "task-2/student/own-delta")]
    composed = open_delta(folder / "task-2/student/delta")
    assert composed.manifest.backbone == parts[0].manifest.backbone != parts[1].manifest.backbone
    assert composed.delta_bytes == sum(part.delta_bytes for part in parts)
    assert "compose" in composed.manifest.made_by


def test_learned_scales_need_low_rank_deltas(tmp_path: Path) -> None:
    tree = stream_tree(
        tmp_path, strategy={"type": "stack", "scales": "learned"}, student={"deltas": [{"type": "halrp"}]}
    )
    with pytest.raises(ConfigError, match=r"strategy\.scales: learned scales belong to low-rank deltas, not to halrp"):
        validate_tree(tree, "stream")


@pytest.mark.slow
def test_learned_scales_keep_the_directions_of_earlier_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    deltas = [{"type": "low_rank", "rank": 2, "alpha": 4, "sites": ["blocks.*.conv_pw*", "conv_stem"]}]
    settings = stream(tmp_path, strategy={"type": "stack", "scales": "learned"}, student={"deltas": deltas})
    folder = learn_only(settings)
    files = [open_delta(folder / f"task-{number}/student/delta") for number in (1, 2)]
    models = [with_delta(settings.student.network, folder / f"task-{n}/student/delta", 2 * n) for n in (1, 2)]
    torch.testing.assert_close(starts.logits[1][:, :2], logits(models[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(models[1]), logits(starts.students[1].model), atol=1e-5, rtol=1e-5)
    assert files[0].manifest.backbone == files[1].manifest.backbone, "deltas of the pretrained network"
    changed = 0
    for layer, (first,) in files[0].layers.items():
        old, new = files[1].layers[layer]
        assert {link.learned.settings.type for link in (old, new)} == {"low_rank"} and new.learned.tensors["B"].any()
        products = [link.learned.tensors["B"].double() @ link.learned.tensors["A"].double() for link in (first, old)]
        before, after = 2.0 * products[0], products[1]
        assert float((before / before.norm() * after.norm() - after).norm()) < 1e-5 * float(after.norm())
        changed += abs(float(after.norm() / before.norm()) - 1) > 1e-4
    assert changed > len(files[0].layers) / 2, "scales are trained"
    scales = {name for name, p in starts.students[1].named_parameters() if name.endswith("scale") and p.requires_grad}
    assert len(scales) == len(files[0].layers)
    (note,) = Stack(settings.strategy).notes(folder / "task-2/student")  # type: ignore[arg-type]
    assert note.startswith("scales of the deltas of earlier tasks, mean over layers: ")


@pytest.mark.slow
def test_merged_deltas_have_the_heads_of_all_tasks(tmp_path: Path) -> None:
    settings = stream(
        tmp_path, strategy={"type": "merge", "by": "fisher", "images": 6}, heads=[], controls={"heads": False}
    )
    folder = learn(settings)
    own = [open_delta(folder / f"task-{number}/student/own-delta") for number in (1, 2)]
    merged = open_delta(folder / "task-2/student/delta")
    assert merged.manifest.labels == ("a", "b", "c", "d")
    for name in ("head/classifier.weight", "head/classifier.bias"):
        assert torch.equal(merged.values[name], torch.cat([file.values[name] for file in own]))
    assert merged.delta_bytes == sum(file.delta_bytes for file in own), "a mean of low-rank deltas is low-rank"
    measured = results(folder)
    assert 0 <= measured["student, class: accuracy_micro"] <= 1


def test_ties_by_hand() -> None:
    changes = torch.tensor([[4.0, -3.0, 0.1, 0.0], [2.0, 5.0, -0.2, 0.0], [-1.0, -4.0, 0.3, 0.0]])
    # The two largest of each: (4, -3), (2, 5), (-1, -4); signs of the sums: 5 > 0 and -2 < 0.
    assert ties_mean(changes, 0.5).tolist() == [3.0, -3.5, 0.0, 0.0]
    assert torch.equal(ties_mean(changes[:1], 1.0), changes[0])


@pytest.mark.slow
def test_merge_and_go_with_a_momentum_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches are merged within rounding; new ones start as zero: the student begins as the last one ended."""
    momentum: list[Tensor] = []

    def noting(module: Distillation) -> None:
        assert module.step.momentum is not None
        momentum.append(logits(module.step.momentum.model))

    starts = Starts(monkeypatch, noting)
    settings = stream(
        tmp_path,
        strategy={"type": "merge_and_go"},
        student={"deltas": [{"type": "branch"}]},
        teacher={"networks": [{"model": "momentum"}]},
        augment={"policy": "both_to_both"},
        objectives=[{"type": "ce"}, {"type": "byol"}],
    )
    folder = learn_only(settings)
    network = settings.student.network.model_copy(update={"model": f"local-dir:{folder}/task-1/student/merged"})
    merged = logits(create_network(network).model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    torch.testing.assert_close(merged, logits(starts.students[0].model), atol=1e-5, rtol=1e-5)
    assert torch.equal(starts.logits[1][:, :2], merged), "bit by bit"
    assert not torch.equal(momentum[1], starts.logits[1]), "the average goes on; it does not begin anew"


@pytest.mark.slow
def test_going_on_keeps_the_ranks_of_the_first_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    ranks = {"budget": "6KB", "importance": "fisher"}
    settings = stream(
        tmp_path,
        strategy={"type": "sequential"},
        student={
            "deltas": [
                {"type": "low_rank", "ranks": ranks, "sites": ["blocks.[12].*"]},
                {
                    "type": "adalora",
                    "rank": 4,
                    "interval": 1,
                    "budget": "8KB",
                    "kinds": ["conv"],
                    "sites": ["conv_stem", "blocks.3.*"],
                },
            ]
        },
    )
    learn_only(settings)
    first, second = starts.students[-2:]  # after the warm-ups
    torch.testing.assert_close(starts.logits[-1][:, :2], logits(first.model), atol=1e-6, rtol=1e-6)
    assert [dict(entry).keys() for entry in first.entries] == [dict(entry).keys() for entry in second.entries]


@pytest.mark.parametrize(
    "student, error",
    [
        ({"deltas": [{"type": "delta_rule", "rank": 1}]}, "delta_rule cannot be truncated"),
        ({"deltas": [{"type": "low_rank"}, {"type": "delta_rule", "sites": "*.conv_pwl"}]}, "delta_rule cannot"),
        ({"deltas": [{"type": "adapter"}]}, "adapter cannot be truncated"),
        ({"deltas": [{"type": "ia3"}]}, "ia3 cannot be truncated"),
        ({"deltas": []}, "bounds the bytes of deltas, and the student has none"),
    ],
)
def test_what_cannot_be_repruned_is_an_error_before_training(
    student: dict[str, Any], error: str, tmp_path: Path
) -> None:
    strategy = {"type": "bank", "growth": 0.2, "reprune": True}
    with pytest.raises(ConfigError, match=rf"strategy\.growth: {error}"):
        validate_tree(stream_tree(tmp_path, strategy=strategy, student=student), "stream")


@pytest.mark.slow
@pytest.mark.parametrize("kind, reprune, growth", [("low_rank", False, 0.2), ("halrp", True, 0.22)])
def test_a_bank_grows_within_its_bound(kind: str, reprune: bool, growth: float, tmp_path: Path) -> None:
    strategy = {"type": "bank", "growth": growth, "reprune": reprune}
    ranks = {"ranks": {"alpha": 0.9, "warm_up": 1}} if kind == "halrp" else {"rank": 4}
    settings = stream(tmp_path, strategy=strategy, student={"deltas": [{"type": kind, "oversized": "skip", **ranks}]})
    folder = learn(settings) if reprune else learn_only(settings)
    size = sum(
        t.numel() * 4
        for n, t in create_network(settings.student.network).model.state_dict().items()
        if "classifier" not in n and t.is_floating_point()
    )
    files = [folder / f"task-{number}/student/delta" for number in (1, 2)]
    again = folder / "task-2/student/repruned/task-1/delta"
    assert again.is_dir() == reprune
    if reprune:
        files[0] = again
        content = (folder / "results.json").read_text()
        assert "the deltas of task-1 were truncated again" in content
        deltas = open_delta(again).layers.values()
        assert {link.learned.settings.type for chain in deltas for link in chain} == {kind}
        tasks = [
            json.loads((folder / f"task-{number}/student-test/scores.json").read_text())["scores"]["scores"]
            for number in (1, 2)
        ]
        before, after = (of["student"]["task"]["task-1"] for of in tasks)
        cost = (before["correct"] - after["correct"]) / before["images"]
        assert results(folder)["student: cost of re-pruning after task-2"] == pytest.approx(cost)
        assert "truncating the deltas of earlier tasks again cost" in content
    assert sum(map(folder_bytes, files)) <= growth * size
