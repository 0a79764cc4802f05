"""Fits with weight deltas that look at the data first, or are another delta in the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import experiment, student_fit

from distill.deltas.base import WeightDelta
from distill.deltas.sign import Sign
from distill.deltas.sites import classifier_names
from distill.deltas.sparse import Sparse
from distill.deltas.state import backbone_state, delta_state
from distill.export.delta.io import load_delta, save_delta
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network
from distill.models.student import Student

SITES = ["conv_stem", "blocks.[01].*"]


def fitted(tmp_path: Path, **delta: Any) -> Student:
    settings = experiment(tmp_path, student={"deltas": [{"sites": SITES, **delta}]})
    student = student_fit(settings, tmp_path / "fit").student
    assert student is not None
    student.eval()
    assert all(not site.delta.training for site in student.sites)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = create_network(settings.student.network, 4).model.eval().to(memory_format=torch.channels_last)
    before = fingerprint(backbone_state(plain, classifier_names(plain)))
    save_delta(tmp_path / "delta", student.model, before, origin="random")
    with torch.no_grad():
        assert torch.equal(load_delta(tmp_path / "delta", plain)(x), student.model(x))
    return student


def weight_deltas(student: Student) -> dict[str, WeightDelta]:
    return {site.name: site.delta for site in student.sites if isinstance(site.delta, WeightDelta)}


@pytest.mark.parametrize("choice", [{"by": "gradient"}, {"by": "difference", "scope": "model"}], ids=str)
def test_sparse_chooses_its_entries_and_trains_them(choice: dict[str, str], tmp_path: Path) -> None:
    student = fitted(tmp_path, type="sparse", density=0.05, **choice)
    chosen = weight_deltas(student)
    assert chosen and all(isinstance(delta, Sparse) and delta.values.any() for delta in chosen.values())
    largest = {
        site: student.model.get_submodule(site).parametrizations.weight.original.abs().flatten()  # type: ignore
        for site in chosen
    }
    by_size = {site: w.topk(len(chosen[site].index)).indices.sort().values for site, w in largest.items()}
    assert any(not torch.equal(chosen[site].index, by_size[site].int()) for site in chosen), "not by the data"
    if "scope" in choice:
        assert len({len(d.index) / largest[site].numel() for site, d in chosen.items()}) > 1


def test_sign_keeps_the_signs_of_a_free_training(tmp_path: Path) -> None:
    deltas = weight_deltas(fitted(tmp_path, type="sign"))
    assert deltas
    for delta in deltas.values():
        assert isinstance(delta, Sign) and delta.scale.all() and not (delta.bits == 255).all()


@pytest.mark.parametrize(
    "mask", [{"mask": "l1", "threshold": 0.035}, {"mask": "l0", "cost": 0.01}], ids=lambda m: m["mask"]
)
def test_a_learned_mask_is_sparse_in_the_end(mask: dict[str, Any], tmp_path: Path) -> None:
    student = fitted(tmp_path, type="sparse_mask", **mask)
    kinds = {delta.settings.type for delta in weight_deltas(student).values()}
    assert kinds <= {"sparse", "dense"}
    if mask["mask"] == "l1":
        assert "sparse" in kinds and any(t.dtype == torch.int32 for t in delta_state(student.model).values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "delta_rule"])
def test_ranks_and_starts_from_a_warm_up(method: str, tmp_path: Path) -> None:
    student = fitted(tmp_path, type=method, ranks={"budget": "6KB", "start": "warm_up"})
    assert sum(t.numel() * t.element_size() for t in delta_state(student.model).values()) <= 6000
    assert {delta.settings.type for delta in weight_deltas(student).values()} == {method}
