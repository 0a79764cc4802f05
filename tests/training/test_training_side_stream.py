"""The teacher beside the student: which stream waits for which, played with streams that only take notes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.training.side_stream import SideStream


class Stream:
    def __init__(self, name: str, notes: list[str]):
        self.name, self.notes, self.device = name, notes, "cuda"

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.notes.append("beside")

    def __exit__(self, *unused: Any) -> None:
        self.notes.append("back")


def tensor(name: str, notes: list[str]) -> Any:
    note = lambda stream: notes.append(f"{name} is used on {stream.name}")  # noqa: E731
    return SimpleNamespace(device=SimpleNamespace(type="cuda"), record_stream=note)


def test_each_waits_for_what_it_reads_and_memory_is_kept_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    main = Stream("main", notes)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", notes))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    side = SideStream()
    side.join([tensor("nothing", notes)])
    assert notes == [], "nothing was computed beside it"
    for _ in range(2):
        notes.clear()
        with side.beside([tensor("view", notes)]):
            notes.append("teacher")
        notes.append("student")
        side.join([tensor("logits", notes)])
        assert notes == [
            "side waits for main",
            "beside",
            "teacher",
            "back",
            "view is used on side",
            "student",
            "main waits for side",
            "logits is used on main",
        ]


def test_on_a_cpu_one_comes_after_the_other() -> None:
    side = SideStream()
    with side.beside([torch.ones(1)]):
        made = torch.ones(1)
    side.join([made])
