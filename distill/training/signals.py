"""SIGTERM, SIGINT, SIGHUP and SIGUSR1: finish the step, save, exit with 128 + the number of the signal."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from augment.base import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(UserError):
    """A signal asked the run to stop, and a checkpoint is saved. ``exit_code`` is 128 + the number of the signal."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class StopSignal:
    """Remembers the first signal while its handlers are installed; a second signal has the default effect.

    A context manager for a whole run. At the start of a fit, Lightning replaces the handlers by its own, which would
    end the run with exit status 0 and without a checkpoint; so the fit calls :meth:`install` again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def install(self) -> None:
        """Set the handlers."""
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signal.Signals(number))
        self.received = number

    def agreed(self) -> int | None:
        """A signal that any rank has received, the same on all ranks, so that they stop at the same step; else None."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.received
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        number = torch.tensor(self.received or 0, device=device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number) or None

    def raise_if_received(self) -> None:
        """Raise ``Interrupted`` after a signal; for code between stages, where there is nothing to save."""
        if self.received is not None:
            raise Interrupted(self.received)
