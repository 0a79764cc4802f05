"""Bars of the figures of ``continual.py``."""

from __future__ import annotations

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from lab import Bars, figure_with

BARS: Bars = {
    "slda_last_flowers": ("≥", 0.90),
    "ridge_last_flowers": ("≥", 0.89),
    "ncm_last_flowers": ("≥", 0.825),
    "slda_last_cifar": ("≥", 0.535),
    "bank_forgetting": ("=", 0.0),
    "bank_opd": ("=", 0.0),
    "bank_served_bytes_a_task": ("≤", 200_000),
    "bank_til_minus_heads": ("≥", 0.01),
    "adapted_slda_minus_slda": ("≥", 0.01),
    "halrp_acc_minus_sequential": ("≥", 0.10),
    "halrp_growth": ("≤", 0.2),
    "stream_overhead": ("≤", 0.05),
    "quick_bank_forgetting": ("=", 0.0),
    "quick_stream_seconds": ("≤", 300.0),
}

figure = figure_with(BARS)
