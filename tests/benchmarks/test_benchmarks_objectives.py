"""The count of bytes behind ``benchmarks/objectives.py``, by hand, and CRD's own under its limit."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import objectives


def test_traffic_by_hand() -> None:
    bank, places, rows = torch.zeros(1000, 4), torch.arange(10), torch.ones(10, 4)
    with objectives.Traffic() as traffic:
        taken = bank[places]  # 10 rows of 16 bytes, read and written, and 10 places of 8
    assert traffic.bytes == 2 * 160 + 80
    with objectives.Traffic() as traffic:
        taken.T.reshape(4, 10)[:2]  # views: nothing moves
    assert traffic.bytes == 0
    with objectives.Traffic() as traffic:
        rows + torch.ones(1, 4).expand(10, 4)
    assert traffic.bytes == 16 + 160 + 16 + 160  # the row is made, then both are read and the sum is written


def test_crd_moves_at_most_a_quarter_of_the_usual_gigabyte() -> None:
    rows = {row.name: row.value for row in objectives.crd_rows()}
    assert rows["crd_bytes_vs_reference"] <= objectives.TARGETS["crd_bytes_vs_reference"]
    assert rows["crd_bytes_plain"] > 1000, "the usual way takes more than a gigabyte"


@pytest.mark.parametrize("name", ["kd", "at", "simkd"])
def test_an_example_is_what_its_objective_reads(name: str) -> None:
    term, student, teacher, batch = objectives.example(name, 4, 64, torch.device("cpu"))
    term(student, teacher, batch).backward()
    assert all(tensor.grad is not None for tensor in student.tensors())
