"""Two real processes, connected by gloo: the same training as in one, and no rank left behind."""

import os
import signal
from pathlib import Path

import pytest
import timm
import torch
from fits_in_ranks import forked
from processes import StartRun
from toy_training import (
    FITS_IN_RANKS,
    PREPARED_IN_RANKS,
    SIZES,
    STEPS,
    all_views,
    assert_bit_equal,
    experiment,
    noting_views,
    probe_fit,
    student_fit,
)
from warm_server import warm_server

from distill.deltas.attach import merge
from distill.deltas.inventory import inventory
from distill.export.delta.io import load_delta
from distill.models.network import create_network
from distill.run.context import RunContext
from distill.run.predict import predict_student
from distill.training.checkpoints import VerifiedCheckpointIO, newest_good
from distill.training.signals import StopSignal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two ranks have fitted: they start once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    first = warm_server().Process(target=forked, args=(str(folder),))
    first.start()
    first.join(250)
    first.kill()
    assert first.exitcode == 0
    return folder


def quantized_ranges(folder: Path) -> torch.Tensor:
    checkpoint = newest_good(folder)
    assert checkpoint is not None
    return VerifiedCheckpointIO().load_checkpoint(checkpoint)["state_dict"]["step.quantization.ranges"]


def test_two_ranks_train_as_one_and_evaluate_each_sample_once(fitted: Path, tmp_path: Path) -> None:
    for name, changes in FITS_IN_RANKS.items():
        settings = experiment(fitted, **changes)
        with noting_views(made := []):
            alone = student_fit(settings, tmp_path / name)
        together = VerifiedCheckpointIO().load_checkpoint(fitted / name / "result.ckpt")["student"]
        for key, weight in alone.weights.items():
            assert torch.allclose(together[key], weight, rtol=1e-4, atol=1e-5), (name, key)
        if settings.training.quantize is not None:
            expected = quantized_ranges(tmp_path / name)
            assert expected.isfinite().all()
            assert torch.allclose(quantized_ranges(fitted / name), expected, rtol=1e-3, atol=1e-3)
        for rank in (0, 1):
            of_rank = torch.load(fitted / name / f"views-{rank}")
            # Half of a batch is of the target domain, and a source-only fit comes first.
            steps = STEPS - (-SIZES["train"] // 4) if "kind" in changes else settings.training.epochs * STEPS
            assert len(of_rank) == len(made) == steps
            for (epoch, ids, views), (epoch_of_one, all_ids, whole) in zip(of_rank, made):
                rows = slice(4 * rank, 4 * rank + 4)
                assert (epoch, ids) == (epoch_of_one, all_ids[rows])
                for of_this_rank, of_all in zip(views, all_views(whole), strict=True):
                    torch.testing.assert_close(of_this_rank, of_all[rows], rtol=0, atol=1e-5)
    ids, labels, logits, probe = torch.load(fitted / "predictions.pt")
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        assert alone.student is not None
        whole = predict_student(context, alone.student, "val")
        assert len(ids) == len(set(ids.tolist())) == SIZES["val"]
        assert torch.equal(ids, whole.ids) and torch.equal(labels, whole.labels)
        assert torch.allclose(logits, whole.logits, rtol=1e-3, atol=1e-4)
        assert torch.allclose(probe, probe_fit(settings, context, fitted / "alone").probe.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PREPARED_IN_RANKS)
def test_two_ranks_prepare_and_export_what_one_does(name: str, fitted: Path, tmp_path: Path) -> None:
    """Ranks, masks and starts come from the data of both ranks, so from the same data as with one."""
    settings = experiment(fitted, student={"deltas": PREPARED_IN_RANKS[name]}, training={"epochs": 1})
    alone = student_fit(settings, tmp_path / "fit").student
    assert alone is not None
    first, second = (torch.load(fitted / name / f"student-{rank}") for rank in (0, 1))
    assert_bit_equal(first, second)

    torch.manual_seed(settings.seed)
    loaded = load_delta(fitted / name / "export" / "delta", create_network(settings.student.network, 4).model)
    assert [(layer.site, layer.type, layer.rank, layer.bytes) for layer in inventory(loaded)] == [
        (layer.site, layer.type, layer.rank, layer.bytes) for layer in inventory(alone.model)
    ]
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = alone.model.eval()(x)
        assert float((loaded(x) - expected).abs().max() / expected.abs().max()) < 1e-4
        if not (fitted / name / "export" / "merged").exists():
            assert name == "ladder"
            return
        merged = timm.create_model(f"local-dir:{fitted / name / 'export' / 'merged'}", pretrained=True).eval()
        assert float((merged(x) - loaded(x)).abs().max() / expected.abs().max()) < 1e-5
        merge(alone.model)
    for key, weight in alone.model.state_dict().items():
        assert torch.allclose(merged.state_dict()[key], weight, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_all(rank: int, tmp_path: Path, start: StartRun) -> None:
    run = start(fault=f"{STEPS + 2} {rank} 0", spare=True, training={"devices": 2, "epochs": 100})
    run.after_steps(STEPS + 2)
    assert run.wait(60) != 0, "and soon"
    assert run.ended(), "every process of the run is gone"
    assert newest_good(run.folder / "student") is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_two_ranks_at_the_same_step(number: signal.Signals, tmp_path: Path, start: StartRun) -> None:
    """SIGTERM reaches the first rank alone, Ctrl-C all of them, of which one is started by Lightning itself here."""
    run = start(fault="-1 0 0", spare=number == signal.SIGTERM, training={"devices": 2, "epochs": 100})
    run.after_steps(STEPS + 2)
    if number == signal.SIGINT:
        run.signal_all(number)
    else:
        os.kill(run.process.pid, number)
    assert run.wait() == 128 + number, run.output.read_text()
    assert run.ended() and run.status == "interrupted"
    assert len(run.trace(0)) == len(run.trace(1)), "both made the same steps"
    checkpoint = newest_good(run.folder / "student")
    assert checkpoint is not None and int(checkpoint.stem.removeprefix("step-")) == len(run.trace(0))
