"""Logits of a torch model, computed the same way for every model that is compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function of images [N, 3, H, W] that gives the model's logits [N, K] on the CPU.

    fp32, eval mode, plain memory layout, 32 images at a time. Modules that were in training mode are so again
    afterwards.
    """

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        training = [module for module in model.modules() if module.training]
        device = next(model.parameters()).device
        model.eval()
        logits = torch.cat([model(batch.to(device)).float().cpu() for batch in images.split(32)])
        for module in training:
            module.training = True
        return logits

    return run
