"""A memory beside images of 8 or 16 bits, read by the loader or from the device: the same batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_stream import stream

from distill.continual.memory.keep import capacity, exemplars_alone, keep, with_memory
from distill.continual.memory.keyed import KeyedMemory
from distill.continual.memory.store import Store, bytes_per_image
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
    for one, other in zip(first, second):
        for name, value, expected in zip(Batch._fields, one, other):
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
    assert capacity(KeyedMemory(KeyedMemory.Settings(budget=f"{5 * of_image}B")), data, 4) == 5
