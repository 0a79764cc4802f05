"""Accuracy on the test split during training, which is only reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer

from distill.training.callbacks import MetricsReader
from distill.training.evaluate import Predictions
from distill.training.module import Distillation


class TestCurve(Callback):
    """Tests after every ``every`` epochs and after the last one; see ``training.test_every``.

    Training does not depend on the results. Papers on CIFAR often give the highest one as the accuracy of the "best
    epoch". It is chosen on the test split, so it is too high; the report shows it beside the last epoch and says so.

    Args:
        predict: makes the student's predictions for the test split.
        metrics: testing time is excluded from its speed.
        every: epochs between tests.
    """

    __test__ = False  # pytest collects classes named Test…

    def __init__(self, predict: Callable[[], Predictions], metrics: MetricsReader, every: int):
        self.predict, self.metrics, self.every = predict, metrics, every
        self.accuracies: dict[int, float] = {}
        """Epoch, counted from 0 → top-1 accuracy in [0, 1]."""

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs or trainer.should_stop
        if (epoch + 1) % self.every and not last:
            return
        begun = time.perf_counter()
        with module.as_result():
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
