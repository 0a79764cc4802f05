"""The device for networks outside a fit. Lightning, which chooses that of a fit, is not imported."""

from __future__ import annotations

import torch

from distill.training.settings import TrainingSettings


def device_for(settings: TrainingSettings) -> torch.device:
    """The device for evaluation outside a fit: of the kind that the fit uses."""
    use_cuda = settings.accelerator == "cuda" or (settings.accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")
