"""Protects the weights from non-finite losses and loss spikes, without synchronizing the device.

A non-finite term or gradient sets a latch on the device, and from then on the fused optimizer skips every update. The
weights stay the last good ones until the host reads the latch and stops the run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augment.base import UserError
from distill.training.settings import SpikeSettings

_WARMUP_STEPS = 20
_MEAN_DECAY = 0.98


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term or the gradient became NaN or infinite; the text says at which step and in which term."""


class LossGuard(nn.Module):
    """Checks the loss terms and the gradient norm of every step; all state is on the device.

    Args:
        terms: names of the loss terms, in the order of the vectors given to ``watch``.
        spike: what counts as a spike, and whether its update is skipped.
    """

    mean: Tensor
    spikes: Tensor
    bad: Tensor
    bad_step: Tensor

    def __init__(self, terms: list[str], spike: SpikeSettings):
        super().__init__()
        self.terms = [*terms, "gradient"]
        self.spike = spike
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spikes", torch.zeros((), dtype=torch.int64))
        # The latch is not saved: a run that it stopped is resumed from a checkpoint before it was set.
        self.register_buffer("bad", torch.zeros(len(self.terms), dtype=torch.bool), persistent=False)
        self.register_buffer("bad_step", torch.full((), -1, dtype=torch.int64), persistent=False)

    def extra_repr(self) -> str:
        return f"terms={'|'.join(self.terms)}, spike={self.spike.factor:g}"

    @torch.no_grad()
    def watch(self, step: int, loss: Tensor, terms: Tensor, gradient_norm: Tensor) -> Tensor:
        """Check the metrics of one step.

        Args:
            step: number of the step, counted from 0.
            loss: scalar.
            terms: [T], in the order of ``terms`` of the class.
            gradient_norm: scalar.

        Returns:
            The optimizer's ``found_inf``, a scalar: 1.0 if the update must be skipped, else 0.0.
        """
        bad = ~torch.isfinite(torch.cat([terms, gradient_norm.reshape(1)]))
        fresh = bad.any() & (self.bad_step < 0)
        self.bad.copy_(torch.where(fresh, bad, self.bad))
        self.bad_step.copy_(torch.where(fresh, step, self.bad_step))
        stopped = self.bad_step >= 0

        known = step >= _WARMUP_STEPS
        spiked = known & (loss > self.spike.factor * self.mean) & ~stopped if known else torch.zeros_like(stopped)
        self.spikes += spiked
        mean = loss if step == 0 else torch.lerp(loss, self.mean, _MEAN_DECAY)
        self.mean.copy_(torch.where(stopped | spiked, self.mean, mean))
        skipped = stopped | spiked if self.spike.action == "skip" else stopped
        return skipped.float()

    def check(self) -> None:
        """Read the latch, which synchronizes the device. Raises ``NonFiniteLossError`` if it is set."""
        step = int(self.bad_step)
        if step >= 0:
            names = [name for name, bad in zip(self.terms, self.bad.tolist()) if bad]
            raise NonFiniteLossError(  # steps are named as in the log, where the first is 1
                f"step {step + 1}: {', '.join(names)} became NaN or infinite. The update was skipped, the weights are "
                "those of the step before. Common causes: a learning rate too high, bf16 overflow, a bad input"
            )
