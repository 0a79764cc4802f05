"""The part ``load`` of ``serving.py``: a server on loopback, whose answers prove whose delta and head they are from.

Task n shifts ten channels of the last norm, so that behind the activation they are 6 where a bit of n is 1, else 0. Its
head has three kinds of rows: ten read these channels with signs that are a key of n, ten give the bits of n alone, and
one reads the channels that no task shifts, which tell the images apart. So the second ten logits say whose head
answered, the first ten whose delta, and the last one which image. Low-rank deltas with small numbers are the load.
"""

from __future__ import annotations

import copy
import http.client
import io
import json
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distill.deltas.attach import attach
from distill.deltas.bias import Bias
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state, head_state
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import read_manifest, save_delta, write_delta_files
from distill.models.fingerprint import fingerprint
from distill.models.timm_models import new_classifier

BITS = 10
CLASSES = 2 * BITS + 1
PROOF, LOAD = Bias.Settings(sites=("bn2",)), LowRank.Settings(sites=("blocks.[456].*.conv_pw",), rank=2)
IMAGES = 8


def bits_of(number: int) -> Tensor:
    """[10], ±1."""
    return torch.tensor([1.0 if number >> bit & 1 else -1.0 for bit in range(BITS)])


def key_of(number: int) -> Tensor:
    """[10], ±1, random by the number of a task."""
    return bits_of(random.Random(number).getrandbits(BITS))


def write_tenants(folder: Path, backbone: nn.Module, count: int) -> list[str]:
    """Write the delta files of tasks ``0`` to ``count − 1``.

    Args:
        folder: gets a folder for each.
        backbone: an EfficientNet of timm whose last activation is a ReLU6.
        count: at most 1,024.

    Returns:
        The tasks.
    """
    model = copy.deepcopy(backbone)
    new_classifier(model, CLASSES)
    head = classifier_names(model)
    identity = fingerprint(backbone_state(model, head))
    attach(model, [PROOF, LOAD], head)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in delta_state(model).values():
            tensor.copy_(1e-3 * torch.randn(tensor.shape, generator=generator))
    save_delta(folder / "0", model, identity, origin="random")
    about = read_manifest(folder / "0").model_dump(exclude={"sha256", "packed"})
    state = {f"delta/{name}": tensor.detach() for name, tensor in delta_state(model).items()}
    state |= {f"head/{name}": tensor.detach() for name, tensor in head_state(model, head).items()}
    image_row = torch.randn(state["head/classifier.weight"].shape[1], generator=generator)
    image_row[:BITS] = 0
    for number in range(count):
        shift = torch.zeros_like(state["delta/bn2.0.shift"])
        shift[:BITS] = 1e3 * bits_of(number)
        weight = torch.zeros_like(state["head/classifier.weight"])
        weight[:BITS, :BITS] = torch.diag(key_of(number))
        weight[-1] = image_row
        bias = torch.cat([-3 * key_of(number), bits_of(number), torch.zeros(1)])
        own = {"delta/bn2.0.shift": shift, "head/classifier.weight": weight, "head/classifier.bias": bias}
        for name, tensor in state.items():
            if name.endswith((".A", ".B")):
                own[name] = tensor * (1 + number / 1e3)
        write_delta_files(folder / str(number), own, **about)
    return [str(number) for number in range(count)]


def answered_by(logits: Sequence[float]) -> tuple[int, int]:
    """The numbers of the tasks whose delta and whose head gave the logits."""
    values = torch.tensor(logits)
    head = sum(1 << bit for bit in range(BITS) if values[BITS + bit] > 0)
    delta = sum(1 << bit for bit, sign in enumerate(values[:BITS] * key_of(head)) if sign > 0)
    return delta, head


def pictures(size: int) -> list[bytes]:
    """PNG files that differ much."""
    generator = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        coarse = generator.integers(0, 256, (2 + number, 2 + number, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST).save(file, "PNG")
        files.append(file.getvalue())
    return files


@dataclass
class Answers:
    """What a load test counted."""

    wrong: list[str] = field(default_factory=list)
    """Task, and what was wrong."""
    seconds: list[float] = field(default_factory=list)
    """Of each request."""
    batches: list[int] = field(default_factory=list)
    """Images of each pass."""
    reads: int = 0
    """Delta files that were read and checked."""
    wall: float = 0.0


@contextmanager
def server(bank: DeltaBank, size: int) -> Iterator[int]:
    """The example's server in a thread of this process; gives its port on loopback."""
    import uvicorn

    examples = str(Path(__file__).parents[1] / "examples")
    sys.path.insert(0, examples)
    try:
        from delta_server import create_app  # type: ignore[import-not-found]
    finally:
        sys.path.remove(examples)
    running = uvicorn.Server(uvicorn.Config(create_app(bank, size), port=0, log_level="critical"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


def connected(port: int) -> closing[http.client.HTTPConnection]:
    """A connection to the server."""
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))


def ask(connection: http.client.HTTPConnection, name: str, data: bytes) -> tuple[int, Any]:
    """Status and content of an answer."""
    connection.request("POST", f"/{name}", data)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def wrong_in(status: int, content: Any, name: str, image: int, of_image: Sequence[float]) -> str:
    """What is wrong in an answer.

    Args:
        status: of the answer.
        content: of the answer.
        name: task of the request.
        image: number of its image.
        of_image: the last logit of each image.

    Returns:
        Empty if nothing is.
    """
    if status != 200 or content["task"] != name:
        return f"{status} {content}"
    delta, head = answered_by(content["logits"])
    closest = min(range(len(of_image)), key=lambda number: abs(of_image[number] - content["logits"][-1]))
    is_right = (delta, head, closest) == (int(name), int(name), image)
    return "" if is_right else f"the delta of {delta}, the head of {head}, image {closest}"


def load_test(bank: DeltaBank, tenants: Sequence[str], requests: int, size: int, clients: int = 32) -> Answers:
    """Ask the example's server on loopback, with several connections at once, and check whose answers these are.

    Args:
        bank: has the tasks of ``write_tenants``.
        tenants: their names.
        requests: to send, to random tasks with random images.
        size: of the images, in pixels.
        clients: connections.

    Returns:
        Counts and times.
    """
    answers, files = Answers(), pictures(size)
    run_pass, read = bank._pass, bank._read

    def counted_pass(images: Tensor, tasks: Any) -> list[Tensor]:
        answers.batches.append(len(images))
        return run_pass(images, tasks)

    def counted_read(name: str, entry: Any) -> Any:
        answers.reads += 1
        return read(name, entry)

    bank._pass, bank._read = counted_pass, counted_read  # type: ignore[method-assign]
    chosen = random.Random(0)
    todo: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
    for _ in range(requests):
        todo.put((chosen.choice(tenants), chosen.randrange(IMAGES)))
    for _ in range(clients):
        todo.put(None)
    with server(bank, size) as port:
        with connected(port) as own:
            of_image = [ask(own, tenants[0], data)[1]["logits"][-1] for data in files]
        answers.batches.clear()
        answers.reads = 0

        def client() -> None:
            with connected(port) as own:
                while (request := todo.get()) is not None:
                    name, image = request
                    begun = time.perf_counter()
                    status, content = ask(own, name, files[image])
                    answers.seconds.append(time.perf_counter() - begun)
                    if wrong := wrong_in(status, content, name, image, of_image):
                        answers.wrong.append(f"{name}, image {image}: {wrong}")

        begun = time.perf_counter()
        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers.wall = time.perf_counter() - begun
    del bank._pass, bank._read
    return answers
