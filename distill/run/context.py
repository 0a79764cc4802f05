"""The context of a run, which every stage gets: data, device, console, and outputs of earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from augment.views import InputSpec
from distill.data.base import UNLABELED, Split
from distill.data.experiment_data import ExperimentData
from distill.data.reader import Batch
from distill.data.settings import DataSettings
from distill.report.items import Item
from distill.run.folder import RunFolder, local_rank
from distill.run.stage import Ref
from distill.run.trial import Trial
from distill.training.device import device_for
from distill.training.evaluate import Predictions, predict
from distill.training.settings import TrainingSettings
from distill.training.signals import StopSignal

Output = TypeVar("Output")


class RunSettings(Protocol):
    """Settings that the config of every kind of run has."""

    @property
    def output(self) -> Path: ...
    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataSettings: ...
    @property
    def training(self) -> TrainingSettings: ...
    def describe(self, data: ExperimentData) -> list[str]: ...


@dataclass
class RunContext:
    """Data and state that the stages of a run share.

    Args:
        seed: of all random numbers.
        root: the folder of all run folders; it also holds outputs that several runs use.
        data: of the run, opened once.
        device: for networks outside a fit; Lightning chooses that of a fit.
        console: where to print; None on ranks other than the first.
        stop: remembers a signal that asks the run to stop.
        folder: the run folder; None outside a run.
    """

    seed: int
    root: Path
    data: ExperimentData
    device: torch.device
    console: Console | None
    stop: StopSignal
    folder: RunFolder | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    """Stage → its output, for the stages that are done."""
    items: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    """Stage → the items that it reports."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Stage → its key, computed once, since it may have to build a network."""
    digests: dict[str, str] = field(default_factory=dict)
    """Stage → the digest of its key and of the keys of all stages that it depends on."""
    trial: Trial | None = None
    """Set in the checks before a run, which try the stages on one small batch of a split; None in the run itself."""

    @classmethod
    def of(cls, settings: RunSettings, stop: StopSignal, console: Console | None = None) -> RunContext:
        """Open the data of these settings.

        Args:
            settings: of the run.
            stop: remembers a signal that asks the run to stop.
            console: where to print; None prints nothing.

        Returns:
            A context without outputs and without a run folder.
        """
        data, device = make_data(settings), device_for(settings.training)
        return cls(settings.seed, settings.output, data, device, console, stop)

    def get(self, ref: Ref[Output]) -> Output:
        """The output of an earlier stage."""
        return self.outputs[ref.stage]

    def find(self, ref: Ref[Output]) -> Output | None:
        """The output of an earlier stage; None if there is none, since a check may have returned nothing."""
        return self.outputs.get(ref.stage)

    @property
    def images_read(self) -> bool:
        """Whether an earlier start of this run has read all images of evaluation in its checks."""
        return self.folder is not None and self.folder.record.get("images_read", False)

    @property
    def connected(self) -> bool:
        """Whether the ranks of a run are connected, and so divide predictions among them: since its first fit."""
        return dist.is_available() and dist.is_initialized()

    def wait_for_ranks(self) -> None:
        """Wait until every rank is here, if they are connected, so that all read what the first one has written."""
        if self.connected:
            dist.barrier()

    def loader(self, split: Split, spec: InputSpec) -> Iterable[Batch]:
        """The split in order, for the network that ``spec`` describes: this rank's part if the ranks are connected.

        In a trial it is one batch of a few samples.
        """
        if self.trial is not None:
            return [self._few(split, np.arange(len(self.data.subset(split))), spec)]
        return self.data.eval_loader(split, self.connected, spec)

    def labeled_loader(self, spec: InputSpec) -> Iterable[Batch]:
        """The training samples with a visible label, as :meth:`loader` gives those of a split."""
        if self.trial is not None:
            return [self._few("train", np.flatnonzero(self.data.subset("train").labels != UNLABELED), spec)]
        return self.data.labeled_loader(self.connected, spec)

    def _few(self, split: Split, indices: np.ndarray, spec: InputSpec) -> Batch:
        """Samples from the whole range of the indices, which are often sorted by class."""
        assert self.trial is not None
        places = np.linspace(0, len(indices) - 1, min(self.trial.images, len(indices))).round().astype(int)
        return self.data.eval_batch(split, indices[places].tolist(), spec)

    def predict(
        self, module: nn.Module, logits_of: Callable[[Tensor], Tensor], spec: InputSpec, loader: Iterable[Batch]
    ) -> Predictions:
        """Predictions of a module in eval mode, on the device; its own device and modes are restored.

        Args:
            module: holds all parameters that ``logits_of`` uses.
            logits_of: normalized views [B, 3, H, W] → logits [B, K].
            spec: size and normalization of the module's input.
            loader: batches of a split.

        Returns:
            One row for each sample of the split, ordered by id, on the CPU.
        """
        before, modes = next(module.parameters()).device, [(part, part.training) for part in module.modules()]
        module.to(self.device).eval()
        try:
            return predict(logits_of, loader, spec, self.device)
        finally:
            module.to(before)
            for part, training in modes:
                part.training = training

    def waiting(self, text: str) -> AbstractContextManager:
        """Show a line while something takes time, on a terminal."""
        return nullcontext() if self.console is None else self.console.status(f"{text} …")

    def print(self, text: str) -> None:
        """Print a line on the console, if there is one."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def open_context(settings: RunSettings, console: Console | None = None) -> Iterator[RunContext]:
    """A context outside a run, for commands. While it is open, ``context.stop`` remembers signals."""
    with StopSignal() as stop:
        yield RunContext.of(settings, stop, console)


def make_data(settings: RunSettings) -> ExperimentData:
    """The run's data for the rank of this process."""
    device, rank = device_for(settings.training), local_rank()
    if device.type == "cuda":
        device = torch.device("cuda", rank)  # before the ranks are connected, the current device of each is the first
    return ExperimentData(settings.data, settings.seed, settings.training.devices, rank, device)
