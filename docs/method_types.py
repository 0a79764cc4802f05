"""The methods that a config can name, and those that a page of the site lists."""

from __future__ import annotations

import re
from pathlib import Path

CONTRACTS = {
    "objective": ("distill.objectives", "Objective"),
    "delta": ("distill.deltas", "Delta"),
    "source": ("distill.data", "Source"),
    "stream": ("distill.continual.streams", "Stream"),
    "head": ("distill.continual.heads", "Head"),
    "inference": ("distill.continual.inference", "TaskInference"),
    "strategy": ("distill.continual.strategies", "Strategy"),
    "memory": ("distill.continual.memory", "Memory"),
    "regularizer": ("distill.continual.regularizers", "Regularizer"),
    "few_shot": ("distill.transfer.few_shot", "FewShotHead"),
    "anomaly": ("distill.transfer.anomaly", "AnomalyMethod"),
    "detector": ("distill.detection.detectors", "Detector"),
}


def known(kind: str) -> dict[str, type]:
    """Type name → class, of everything that a config can name."""
    if kind == "operation":
        from augment.ops import operations

        return operations()
    from augment.base.registry import Registry

    return {name: settings.component for name, settings in Registry(*CONTRACTS[kind]).known().items()}  # type: ignore[misc]


def named_on_pages(folder: Path, kind: str) -> set[str]:
    """Types that some page asks for by name."""
    asked = re.compile(rf"^\.\. methods:: {kind} +(.+(?:\n +\S.*)*)$", re.MULTILINE)
    return {
        name for page in folder.rglob("*.rst") for names in asked.findall(page.read_text()) for name in names.split()
    }
