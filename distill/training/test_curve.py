"""The test split's accuracy while training goes on, for the record only."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, Trainer

from distill.training.callbacks import MetricsReader
from distill.training.evaluate import Predictions
from distill.training.module import Distillation


class TestCurve(Callback):
    """Tests after every ``every`` epochs and after the last one; see ``training.test_every``.

    Nothing of a training reads what is found here: no checkpoint, no stop, no rate. Its highest point is what papers
    on CIFAR often print as their result, "best epoch". That is a choice made on the test split, so it is too high; the
    report shows it beside the last epoch and says so.
    """

    __test__ = False  # pytest takes a class for tests by its name

    def __init__(self, predict: Callable[[], Predictions], metrics: MetricsReader, every: int):
        self.predict, self.metrics, self.every = predict, metrics, every
        self.accuracies: dict[int, float] = {}
        """By epoch, counted from 0."""

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs or trainer.should_stop
        if (epoch + 1) % self.every and not last:
            return
        begun = time.perf_counter()
        with module.average.in_place() if module.average is not None else nullcontext():
            accuracy = self.predict().accuracy()
        assert accuracy is not None, "a split without labels is refused before training"
        self.accuracies[epoch] = accuracy
        module.train()
        if trainer.logger is not None:
            trainer.logger.log_metrics({"test/accuracy": accuracy, "epoch": epoch}, trainer.global_step)
        self.metrics.progress.epoch_end(epoch, {"test/accuracy": accuracy})
        self.metrics.shift(time.perf_counter() - begun)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": self.accuracies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracies = state["accuracies"]
