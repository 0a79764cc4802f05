"""A stream that is killed goes on bit by bit; evaluation depends on no batch and changes nothing."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from dying_stream import changes, learn_and_die
from toy_stream import learn, stream, verified_here
from warm_server import warm_server

from distill.continual.known_outputs import predict_part
from distill.continual.learned import LearnedNetwork
from distill.continual.open_stream import open_stream
from distill.models.network import create_network
from distill.run.context import RunContext
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import StopSignal


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a stream has learned and measured, but for times."""
    results = json.loads((run / "results.json").read_text())["results"]
    numbers = {r["name"]: r["value"] for r in results if "seconds" not in r["name"] and "peak" not in r["name"]}
    files = {}
    for task in ("task-1", "task-2"):
        files[task] = (run / task / "student/delta/delta.safetensors").read_bytes()
        files[f"{task}-test"] = (run / task / "student-test/predictions.safetensors").read_bytes()
    return {"numbers": numbers, **files}


@pytest.mark.slow
def test_killed_between_two_tasks_inside_one_and_in_an_evaluation(tmp_path: Path) -> None:
    """The run that is killed three times ends as one that is never stopped, with the old model as a teacher."""
    (tmp_path / "killed").mkdir()
    log = tmp_path / "output.txt"
    run = tmp_path / "killed" / "stream"
    finished: dict[str, list[str]] = {}
    for number, point in enumerate(("between two tasks", "inside a task", "in an evaluation")):
        arguments = (tmp_path / "killed", point, number > 0, str(log))
        process = warm_server().Process(target=learn_and_die, args=arguments)  # type: ignore[arg-type]
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        finished[point] = sorted(str(path.parent.relative_to(run)) for path in run.rglob("stage.json"))
    assert finished == {
        "between two tasks": ["task-1/student", "task-1/student-test"],
        "inside a task": ["task-1/student", "task-1/student-test"],
        "in an evaluation": ["task-1/student", "task-1/student-test", "task-2/student"],
    }
    with verified_here():
        resumed = learn(stream(tmp_path / "killed", **changes()), resume=True)
        # A name as long as the other: manifests hold paths, and their bytes are measured.
        whole = learn(stream(tmp_path / "intact", **changes()))
    assert resumed == run and outcome(resumed) == outcome(whole)
    states = [
        VerifiedCheckpointIO().load_checkpoint(folder / "task-2/student/fit/result.ckpt")["student"]
        for folder in (resumed, whole)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_evaluation_depends_on_no_batch_and_changes_no_buffer(tmp_path: Path) -> None:
    settings = stream(tmp_path)
    tasks = tuple(open_stream(settings))
    torch.manual_seed(0)
    network = create_network(settings.student.network, 2)
    network.model.train()  # whatever mode it is in
    buffers = {name: buffer.clone() for name, buffer in network.model.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    part = LearnedNetwork("task-1", tasks[0].classes, lambda: network, 0, 0)
    predictions = []
    for batch in (1, 256):
        data = settings.data.model_copy(update={"batch_size": batch})
        with StopSignal() as stop:
            context = RunContext.of(settings.model_copy(update={"data": data}), stop)
            made = predict_part(context, part, {"task-1": tasks[0]}, {"task-1": None})
            predictions.append(made["task-1", "task-1"])
    alone, together = predictions
    assert len(alone.ids) > 1 and torch.equal(alone.ids, together.ids)
    assert torch.equal(alone.classes, together.classes)
    torch.testing.assert_close(alone.logits, together.logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.model.named_buffers())
    assert network.model.training
