"""Tasks of one image per class: closed-form heads, controls and a bank, with and without a prior of earlier tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_stream import learn, stream
from toy_training import Blobs, BlobSamples

from distill.continual.strategies.prior import PRIOR, read_prior
from distill.continual.strategies.sequential import FIT
from distill.data.base import Samples, Split
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT
from distill.training.reptile import reptile


class OneImage(Blobs):
    """One training image of each class."""

    class Settings(Blobs.Settings):
        pass

    def split(self, name: Split) -> Samples:
        samples = BlobSamples(name, self.settings, self.channels)
        if name == "train":
            samples.ids, samples.labels = samples.ids[:4], samples.labels[:4]
        return samples


def test_reptile_is_the_mean_of_all_tasks() -> None:
    trained = [{"A": torch.randn(3, 2), "count": torch.tensor(number)} for number in range(3)]
    prior = dict(trained[0])
    for number, own in enumerate(trained, 1):
        prior = reptile(prior, own, 1 / number)
    torch.testing.assert_close(prior["A"], torch.stack([own["A"] for own in trained]).mean(0))
    assert prior["count"] == 2


@pytest.mark.slow
def test_one_image_per_class(tmp_path: Path) -> None:
    settings = stream(
        tmp_path,
        data={"source": {"type": "test_continual_few_shot:OneImage"}},
        strategy={"type": "bank", "prior": "reptile"},
        heads=[{"type": "slda"}, {"type": "ridge"}, {"type": "ncm"}, {"type": "fecam", "tukey": None}],
        student={"deltas": [{"type": "low_rank", "rank": 2}]},
    )
    folder = learn(settings)
    content = json.loads((folder / "results.json").read_text())
    measured = {result["name"]: result["value"] for result in content["results"]}
    for name in ("slda, class", "ridge, class", "ncm, class", "fecam, class", "joint head, class", "student, task"):
        assert 0.2 < measured[f"{name}: accuracy_micro"] <= 1, name

    def deltas(task: str) -> dict[str, Any]:
        state = VerifiedCheckpointIO().load_checkpoint(folder / task / "student" / FIT / RESULT)["student"]
        return {key: value for key, value in state.items() if "parametrizations" in key}

    first, second = (deltas(task) for task in ("task-1", "task-2"))
    assert any(key.endswith(".B") for key in first), "names of the factors"
    of_first, of_both = (read_prior(folder / task / "student") for task in ("task-1", "task-2"))
    torch.testing.assert_close(of_first, first, rtol=0, atol=0)
    torch.testing.assert_close(of_both, {key: (first[key] + second[key]) / 2 for key in first})
    steps = [(second[key] - first[key]).norm() / first[key].norm() for key in first if key.endswith(".A")]
    assert 0 < max(steps) < 0.5, "the second task started from the prior, not from other random factors"
    kept = measured["student, task: kept bytes after task-2"] - measured["student, task: served bytes after task-2"]
    assert kept == (folder / "task-2/student" / PRIOR).stat().st_size, "only the newest prior is kept"
