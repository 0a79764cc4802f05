"""The teacher's cache in fits: the same students as without it, and no teacher for the second one."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_training import (
    SIZES,
    STEPS,
    StraightFit,
    Watched,
    assert_bit_equal,
    experiment,
    network,
    raising,
    straight_fit,
    student_fit,
)

from augment.dual import DualAugment
from distill.commands.cache import fill_cache
from distill.models.features import Features
from distill.models.teacher import Teacher
from distill.training.cache_rows import CacheError
from distill.training.signals import Interrupted

Weights = dict[str, torch.Tensor]
EXACT = {"logits": "full", "pooled": True, "dtype": "float32"}
NEEDED = {"logits": "full", "pooled": True}


@pytest.fixture
def teacher_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every batch that a teacher looks at in training: how many views, over all networks."""
    seen: list[int] = []
    forward = Teacher.forward

    def counted(teacher: Teacher, views: tuple[tuple[torch.Tensor, ...], ...]) -> list[list[Features]]:
        seen.append(sum(map(len, views)))
        return forward(teacher, views)

    monkeypatch.setattr(Teacher, "forward", counted)
    return seen


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """The output folder of a fit that has written the cache, and the weights it came to."""
    output = tmp_path_factory.mktemp("written")
    return output, student_fit(experiment(output, teacher={"cache": NEEDED}), output / "first").weights


def rows_of(output: Path) -> Path:
    [path] = output.glob("teachers/cache-*/rows")
    return path


def fits(
    output: Path, cache: dict[str, Any], teacher_batches: list[int], **changes: Any
) -> tuple[StraightFit, Watched, Watched]:
    """Without a cache, writing it, reading it; the last one asks no teacher."""
    live = straight_fit(experiment(output, **changes))
    teacher_batches.clear()
    cached = {**changes, "teacher": {**changes.get("teacher", {}), "cache": cache}}
    first = student_fit(experiment(output, **cached), output / "first")
    assert len(teacher_batches) == 2 * STEPS
    teacher_batches.clear()
    second = student_fit(experiment(output, **cached), output / "second")
    assert teacher_batches == []
    return live, first, second


CASES: dict[str, dict[str, Any]] = {
    "identical": {"augment": {"policy": "identical"}},
    "two networks, all pairs": {"augment": {"policy": "both_to_both"}},
    "mixed": {"augment": {"mix": {"mixup": 0.8, "cutmix": 1.0}}, "objectives": [{"type": "kd"}, {"type": "pooled"}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_full_float32_is_bit_equal_to_no_cache(case: str, tmp_path: Path, teacher_batches: list[int]) -> None:
    changes = dict(CASES[case])
    if "two networks" in case:
        other = {**network(tmp_path, "test_resnet", 1), "size": 48, "weight": 2}
        changes["teacher"] = {"networks": [network(tmp_path, "test_resnet"), other]}
    live, first, second = fits(tmp_path, EXACT, teacher_batches, **changes)
    assert_bit_equal(first.weights, live.weights)
    assert_bit_equal(second.weights, live.weights)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [{**NEEDED, "dtype": "float16"}, {**NEEDED, "logits": 3}])
def test_less_is_close_and_the_same_for_every_student(
    cache: dict[str, Any], tmp_path: Path, teacher_batches: list[int]
) -> None:
    live, first, second = fits(tmp_path, cache, teacher_batches)
    assert_bit_equal(second.weights, first.weights)
    names = ("weight", "bias")
    for name, weight in live.weights.items():
        if name.endswith(names):
            torch.testing.assert_close(first.weights[name], weight, rtol=0.05, atol=5e-3)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_equal(
    tmp_path: Path, teacher_batches: list[int], written: tuple[Path, Weights]
) -> None:
    """Its last steps are in the cache already, in float16, but were not seen by a checkpoint."""
    settings = experiment(tmp_path, teacher={"cache": NEEDED})
    with pytest.raises(Interrupted):
        student_fit(settings, tmp_path / "stopped", raising(signal.SIGTERM, STEPS + 1))
    for path in (tmp_path / "stopped").glob(f"step-*{STEPS + 2}.ckpt"):
        path.unlink()  # killed before it was saved: those two steps are made again
    teacher_batches.clear()
    again = student_fit(settings, tmp_path / "stopped")
    assert len(teacher_batches) == STEPS - 2
    assert_bit_equal(again.weights, written[1])


@pytest.mark.slow
def test_written_in_advance_by_parts(
    tmp_path: Path, teacher_batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``distill cache``: stopped in the middle, it goes on; training then asks no teacher, at any batch size."""
    settings = experiment(tmp_path, teacher={"cache": NEEDED})
    forward, stop = Teacher.forward, raising(signal.SIGTERM, 3)

    def stopping(teacher: Teacher, views: Any) -> Any:
        stop(SimpleNamespace(global_step=len(teacher_batches)))  # type: ignore[arg-type]
        return forward(teacher, views)

    monkeypatch.setattr(Teacher, "forward", stopping)
    with pytest.raises(Interrupted):
        fill_cache(settings, Console(quiet=True))
    assert len(teacher_batches) == 4
    monkeypatch.setattr(Teacher, "forward", forward)
    fill_cache(settings, Console(quiet=True))
    assert len(teacher_batches) == 2 * STEPS
    student_fit(settings, tmp_path / "fit")
    assert len(teacher_batches) == 2 * STEPS
    student_fit(experiment(tmp_path, teacher={"cache": NEEDED}, data={"batch_size": 9}), tmp_path / "other batches")
    assert len(teacher_batches) == 2 * STEPS, "every sample of an epoch is in the cache, whatever the batches"


@pytest.mark.slow
def test_workers_leave_out_what_the_cache_knows(
    tmp_path: Path, teacher_batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_loader: dict[str, Any] = {
        "augment": {"placement": "loader"},
        "data": {"workers": 1},
        "teacher": {"cache": NEEDED},
    }
    came: list[set[str]] = []
    forward = DualAugment.forward

    def noted(augment: DualAugment, images: Any, *rest: Any, **parts: bool) -> Any:
        came.append(set(images))
        return forward(augment, images, *rest, **parts)

    monkeypatch.setattr(DualAugment, "forward", noted)
    first = student_fit(experiment(tmp_path, **in_loader), tmp_path / "first")
    assert came == [{"student 32x32", "teacher 32x32"}] * 2 * STEPS
    came.clear(), teacher_batches.clear()
    second = student_fit(experiment(tmp_path, **in_loader), tmp_path / "second")
    assert came == [{"student 32x32"}] * 2 * STEPS and teacher_batches == []
    assert_bit_equal(second.weights, first.weights)


@pytest.mark.slow
def test_another_stream_has_another_cache(
    tmp_path: Path, teacher_batches: list[int], written: tuple[Path, Weights]
) -> None:
    """And what does not change what the teacher sees shares it."""
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    same: list[dict[str, Any]] = [
        {"student": {"deltas": [{"type": "low_rank", "rank": 1}]}},
        {"data": {"labels_per_class": 2}},
        {"augment": {"teacher": ["RandomHorizontalFlip", {"type": "ColorJitter", "hue": 0.1}], "student": []}},
    ]
    for number, changes in enumerate(same):
        teacher_batches.clear()
        student_fit(experiment(tmp_path, teacher={"cache": NEEDED}, **changes), tmp_path / f"same {number}")
        assert teacher_batches == [], changes
    other: dict[str, dict[str, Any]] = {
        "stream.seed": {"seed": 1},
        "stream.views.0.recipe": {"augment": {"student": ["RandomHorizontalFlip"]}},
        "stream.views.0.draws": {"augment": {"policy": "shared_geometry"}},
        "stream.data.canvas": {"data": {"size": 40}},
        "stream.data.source": {"data": {"source": {"type": "toy_training:Blobs", "labeled": False}}},
        "stream.teacher.0.weights": {"teacher": {"networks": [network(tmp_path, "test_resnet", 1)]}},
        "row": {"teacher": {"cache": {**NEEDED, "logits": 2}}},
    }
    for key, changes in other.items():
        cache = {**NEEDED, **changes.get("teacher", {}).get("cache", {}), "write": False}
        changes = {**changes, "teacher": {**changes.get("teacher", {}), "cache": cache}}
        if "source" in key:
            changes["objectives"] = [{"type": "kd"}]
        with pytest.raises(CacheError, match=rf"there is no cache for these views.* differs in .*{key} "):
            student_fit(experiment(tmp_path, **changes), tmp_path / "refused")


def test_a_changed_image_or_operation_is_another_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_training

    module = tmp_path / "own_op.py"
    module.write_text(
        "import torch\n\nclass Dim(torch.nn.Module):\n    def forward(self, x):\n        return x * 0.9\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"augment": {"student": ["own_op:Dim"]}, "objectives": [{"type": "kd"}]}
    student_fit(experiment(tmp_path, teacher={"cache": {}}, **changes), tmp_path / "first")
    refused = experiment(tmp_path, teacher={"cache": {"write": False}}, **changes)
    module.write_text(module.read_text().replace("0.9", "0.8"))
    with pytest.raises(CacheError, match=r"differs in stream\.views\.0\.code\.own_op:Dim"):
        student_fit(refused, tmp_path / "refused")
    module.write_text(module.read_text().replace("0.8", "0.9"))
    sample = toy_training.BlobSamples.__getitem__
    monkeypatch.setattr(
        toy_training.BlobSamples,
        "__getitem__",
        lambda samples, at: sample(samples, at)._replace(image=255 - sample(samples, at).image),
    )
    with pytest.raises(CacheError, match=r"differs in stream\.data\.pixels"):
        student_fit(refused, tmp_path / "refused")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["byte", "moved", "zeros", "cut"])
def test_a_row_that_is_not_whole_is_made_again(
    damage: str, tmp_path: Path, teacher_batches: list[int], written: tuple[Path, Weights]
) -> None:
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    settings = experiment(tmp_path, teacher={"cache": NEEDED})
    path = rows_of(tmp_path)
    good, size = path.read_bytes(), path.stat().st_size // (2 * SIZES["train"])
    content = bytearray(good)
    place = next(at for at in range(SIZES["train"]) if any(good[at * size : (at + 1) * size]))
    later = place + SIZES["train"]
    here, there = slice(place * size, (place + 1) * size), slice(later * size, (later + 1) * size)
    if damage == "byte":
        content[here.start + 3] ^= 1
    elif damage == "moved":
        content[here] = content[there]
    elif damage == "zeros":
        content[here.start : here.start + 16] = bytes(16)
    else:
        del content[here.start + 5 :]
    path.write_bytes(content)
    teacher_batches.clear()
    again = student_fit(settings, tmp_path / "again")
    assert len(teacher_batches) == 1 if damage != "cut" else len(teacher_batches) > STEPS
    assert_bit_equal(again.weights, written[1])
    assert path.read_bytes() == good
