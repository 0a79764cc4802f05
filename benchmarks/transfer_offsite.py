"""The part ``offsite`` of ``transfer.py``: a network that is not given away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import source
from transfer_lab import Figure, Lab, figure, run, seeds

ROWS = {"linear probe": "probe", "emulator, tuned": "emulator", "plugged in": "plugged", "on site": "onsite"}
"""Row of a run → end of the figure's name."""
SHORT: dict[str, Any] = {"training": {"epochs": 1}, "distill": {"epochs": 1}}


def offsite(lab: Lab) -> Iterator[Figure]:
    """Flowers, half of the middle."""
    of = seeds(lab)
    data = {"source": source(lab.given.data / "flowers61", lab.given.out), "workers": 0, "on_device": True}
    short = SHORT if lab.given.quick else {}
    lines = [run(lab, "offsite", "offsite.yaml", {"seed": seed, "data": data, **short}) for seed in of]
    detail = (
        "flowers61, EfficientNet-Lite0 at 128 px, half of the blocks of the middle that can be dropped; seeds "
        f"{', '.join(map(str, of))}"
    )
    accuracy = {own: [line["rows"][name] for line in lines] for name, own in ROWS.items()}
    for own, values in accuracy.items():
        yield figure(f"offsite_{own}", values, "fraction", detail)
    for better, worse in (("plugged", "probe"), ("plugged", "emulator"), ("onsite", "plugged")):
        gap = [a - b for a, b in zip(accuracy[better], accuracy[worse])]
        yield figure(f"offsite_{better}_minus_{worse}", gap, "fraction", detail)
    tables = [given_away(Path(line["folder"])) for line in lines]
    yield figure("offsite_verbatim_share", [table["verbatim"] for table in tables], "fraction", detail)
    yield figure("offsite_emulator_bytes", [table["emulator"] for table in tables], "B", detail)
    yield figure("offsite_delta_bytes", [table["delta file"] for table in tables], "B", detail)


def given_away(folder: Path) -> dict[str, float]:
    """Share of verbatim weights, and bytes of the emulator and of the delta file, of a finished run."""
    tables = json.loads((folder / "results.json").read_text())["summary"]["tables"]
    cells = {table["title"]: [row["cells"] for row in table["rows"]] for table in tables}
    sent = {row[0]: row[2] for row in cells["What is sent"]}
    return {"verbatim": cells["What the owner gives away"][2][2], **sent}
