"""A memory beside images of 8 or 16 bits, read by the loader or from the device: the same batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_stream import stream

from distill.continual.memory.keep import capacity, exemplars_alone, keep, with_memory
from distill.continual.memory.keyed import KeyedMemory
from distill.continual.memory.store import HEADER, Store, bytes_per_image, text_bytes
from distill.continual.open_stream import open_stream
from distill.data.experiment_data import ExperimentData
from distill.data.reader import Batch
from distill.models.network import create_network
from distill.run.context import RunContext
from distill.training.signals import StopSignal

MEMORY = KeyedMemory(KeyedMemory.Settings(budget=6, logits=True))


def batches(data: ExperimentData) -> list[Batch]:
    """Those of two epochs."""
    loader = data.train_loader()
    try:
        return [*loader, *loader]
    finally:
        loader.close()


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 1
    for left, right in zip(first, second):
        for name, value, expected in zip(Batch._fields, left, right):
            assert (value is None) == (expected is None), name
            if value is not None:
                assert value.dtype == expected.dtype
                torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_device_gives_the_batches_of_the_loader(depth: int, tmp_path: Path) -> None:
    kept: list[Store] = []
    read: dict[bool, list[Any]] = {}
    for on_device in (False, True):
        settings = stream(tmp_path, data={"depth": depth, "on_device": on_device, "workers": 0})
        first, second = open_stream(settings)
        torch.manual_seed(0)
        network = create_network(settings.student.network, 2)
        with StopSignal() as stop:
            context = RunContext.of(settings, stop)
            store = keep(MEMORY, context, first, None, network, first.classes, settings.augment)
        store.save(tmp_path / "memory.safetensors")
        kept.append(store := Store.load(tmp_path / "memory.safetensors"))
        data = second.data(context.data, tuple("abcd"), 0)
        joined = with_memory(data, store, 0.5)
        read[on_device] = [batches(joined), batches(exemplars_alone(data, store))]
        held = joined.eval_batch("train", [len(data.subset("train"))]).images
        assert torch.equal(held[0], store.canvases[0]), "its pixels are those of the file"
    assert torch.equal(kept[0].canvases, kept[1].canvases) and kept[0].names == kept[1].names
    assert kept[0].canvases.dtype == (torch.uint16 if depth == 16 else torch.uint8)
    assert kept[0].logits is not None and kept[0].logits.isfinite().all()
    for plain, of_device in zip(*read.values()):
        assert_same(plain, of_device)
    batch = read[True][0][0]
    assert batch.is_memory is not None and batch.is_memory.any()
    assert batch.view_keys is not None and (batch.view_keys >= 0).any()


def test_bytes_of_16_bits_count_twice(tmp_path: Path) -> None:
    settings = stream(tmp_path, data={"depth": 16})
    data = ExperimentData(settings.data)
    canvas = data.canvas()
    assert canvas.dtype == np.uint16
    of_image = bytes_per_image((3, *canvas.size), pixel=2)
    assert of_image == 2 * 3 * canvas.size[0] ** 2 + 16
    budget = f"{5 * (of_image + text_bytes('a') + text_bytes('a/07')) + HEADER}B"
    assert capacity(KeyedMemory(KeyedMemory.Settings(budget=budget)), data, "abcd", ["a/07"]) == 5


@pytest.mark.parametrize("logits", [False, True])
def test_a_file_is_within_its_bytes(logits: bool, tmp_path: Path) -> None:
    data = ExperimentData(stream(tmp_path).data)
    memory = KeyedMemory(KeyedMemory.Settings(budget="60KB", logits=logits))
    classes, names = ['Größe "L"', "oak"], [f"{number:03}/" + 'é"\\' * 50 for number in range(30)]
    count = capacity(memory, data, classes, names)
    rows = torch.arange(count)
    canvases = torch.zeros(count, 3, *data.canvas().size, dtype=torch.uint8)
    own = (rows.clone(), torch.zeros(count, 2), tuple(classes)) if logits else ()
    store = Store(rows, canvases, (classes[0],) * count, rows.clone(), *own)
    replace(store, names=tuple(names[:count])).save(tmp_path / "memory")
    assert 0 < count < 30 and 0.9 * 60_000 < (tmp_path / "memory").stat().st_size <= 60_000
