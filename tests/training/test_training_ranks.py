"""Two real processes, connected by gloo: the same training as in one, and no rank left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import HERE, Start
from toy_training import FITS_IN_RANKS, SIZES, STEPS, all_views, experiment, noting_views, student_fit

from distill.run.stages import linear_probe
from distill.run.workshop import Workshop, make_data, predict_student
from distill.training.checkpoints import VerifiedCheckpointIO, newest_good
from distill.training.signals import StopSignal

pytestmark = pytest.mark.slow


def test_two_ranks_train_as_one_and_evaluate_each_sample_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(HERE / "fits_in_ranks.py"), str(tmp_path)], check=True, timeout=250)
    for name, changes in FITS_IN_RANKS.items():
        settings = experiment(tmp_path, **changes)
        with noting_views(made := []):
            alone = student_fit(settings, tmp_path / "alone" / name)
        together = VerifiedCheckpointIO().load_checkpoint(tmp_path / name / "result.ckpt")["student"]
        for key, weight in alone.weights.items():
            assert torch.allclose(together[key], weight, rtol=1e-4, atol=1e-5), (name, key)
        for rank in (0, 1):
            of_rank = torch.load(tmp_path / name / f"views-{rank}")
            assert len(of_rank) == len(made) == 2 * STEPS
            for (epoch, ids, views), (epoch_of_one, all_ids, whole) in zip(of_rank, made):
                rows = slice(4 * rank, 4 * rank + 4)
                assert (epoch, ids) == (epoch_of_one, all_ids[rows])
                for ours, theirs in zip(views, all_views(whole), strict=True):
                    torch.testing.assert_close(ours, theirs[rows], rtol=0, atol=1e-5)
    ids, labels, logits, probe = torch.load(tmp_path / "predictions.pt")
    with StopSignal() as stop:
        shop = Workshop(settings, make_data(settings), None, stop)
        assert alone.student is not None
        whole = predict_student(shop, alone.student, "val")
        assert len(ids) == len(set(ids.tolist())) == SIZES["val"]
        assert torch.equal(ids, whole.ids) and torch.equal(labels, whole.labels)
        assert torch.allclose(logits, whole.logits, rtol=1e-3, atol=1e-4)
        assert torch.allclose(probe, linear_probe(shop)[0].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_all(rank: int, tmp_path: Path, start: Start) -> None:
    run = start(fault=f"{STEPS + 2} {rank} 0", training={"devices": 2, "epochs": 100})
    run.after_steps(STEPS + 2)
    assert run.wait(60) != 0, "and soon"
    assert run.ended(), "every process of the run is gone"
    assert newest_good(run.folder / "fits" / "student") is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_two_ranks_at_the_same_step(number: signal.Signals, tmp_path: Path, start: Start) -> None:
    """SIGTERM reaches the first rank alone, Ctrl-C all of them."""
    run = start(fault="-1 0 0", training={"devices": 2, "epochs": 100})
    run.after_steps(STEPS + 2)
    if number == signal.SIGINT:
        run.signal_all(number)
    else:
        os.kill(run.process.pid, number)
    assert run.wait() == 128 + number, run.output.read_text()
    assert run.ended() and run.status == "interrupted"
    assert len(run.trace(0)) == len(run.trace(1)), "both made the same steps"
    checkpoint = newest_good(run.folder / "fits" / "student")
    assert checkpoint is not None and int(checkpoint.stem.removeprefix("step-")) == len(run.trace(0))
