"""A queue of features as a buffer: first in, first out."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def push(queue_QP: Tensor, pushed: Tensor, rows_GP: Tensor) -> None:
    """Overwrite the oldest rows of a queue in place, without synchronizing with the device.

    Args:
        queue_QP: the queue.
        pushed: scalar int64, the number of rows that were pushed so far; is increased.
        rows_GP: new rows, the same on all ranks; of more than Q, the last Q.
    """
    rows_GP = rows_GP[-len(queue_QP) :]
    indices = (pushed + torch.arange(len(rows_GP), device=rows_GP.device)) % len(queue_QP)
    queue_QP.index_copy_(0, indices, rows_GP)
    pushed += len(rows_GP)
