"""Streams in two real processes, connected by gloo: memory, regularizers and stored logits as in one."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from stream_in_ranks import STREAMS, forked, learn_alone, settings_of
from warm_server import warm_server

from distill.continual.memory.keep import FILE
from distill.continual.memory.store import Store
from distill.continual.regularizers.carried import FILE as REGULARIZERS
from distill.training.checkpoints import VerifiedCheckpointIO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the streams that two ranks have learned."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in STREAMS:
        settings_of(folder, name)  # writes the network, which both ranks read
    first = warm_server().Process(target=forked, args=(str(folder),))
    first.start()
    first.join(250)
    first.kill()
    assert first.exitcode == 0
    return folder


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys() and actual
    for key, value in actual.items():
        assert torch.allclose(value.float(), expected[key].float(), rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("name", STREAMS)
def test_two_ranks_learn_a_stream_as_one(name: str, together: Path, tmp_path: Path) -> None:
    alone = learn_alone(tmp_path, name)
    [run] = (together / name).glob("stream*")
    for task in ("task-1", "task-2"):
        folders = [base / task / "student" for base in (run, alone)]
        results = [VerifiedCheckpointIO().load_checkpoint(base / "fit/result.ckpt") for base in folders]
        assert_close(*(result["student"] for result in results))
        first, second = (Store.load(base / FILE) for base in folders)
        assert first.names == second.names and first.labels == second.labels
        assert torch.equal(first.canvases, second.canvases)
        torch.testing.assert_close(first.logits, second.logits, rtol=1e-3, atol=1e-4, equal_nan=True)
        states = [safetensors.torch.load((base / REGULARIZERS).read_bytes()) for base in folders]
        assert_close(*states)
