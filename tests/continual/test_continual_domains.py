"""Domains by ids, columns and recipes: what each task holds, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_kinds import Cameras, divided, ids, own, settings_of

from augment.recipe import Op
from distill.continual.errors import ContinualError
from distill.continual.open_stream import stream_in
from distill.data.base import DataError, Sample
from distill.data.recipe_samples import RecipeSamples
from distill.run.context import make_data


def test_domains_from_ids(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "domains", by="folder", pattern=r"(\d)$")
    assert [task.name for task in tasks] == list("0123456789")
    assert ids(data, tasks[1], "test") == ["test/001", "test/011", "test/021"]
    assert tasks[0].classes == ("a", "b", "c", "d")


def test_domains_from_a_column(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "domains", own(Cameras), by="column", column="camera")
    assert [task.name for task in tasks] == ["left", "right", "top"]
    assert all(int(id[-2:]) % 3 == 2 for id in ids(data, tasks[2], "val"))


def test_domains_by_recipe(tmp_path: Path) -> None:
    recipes = {"plain": [], "noisy": [{"type": "GaussianNoise", "std": [0.2, 0.3], "p": 1.0}]}
    tasks, data = divided(tmp_path, "domains", by="recipe", recipes=recipes)
    assert [task.name for task in tasks] == ["plain", "noisy"]
    plain, noisy = (task.data(data, task.classes, 0) for task in tasks)
    inner = data.subset("test")
    for index in (0, 3):
        assert (plain.subset("test")[index].image == inner[index].image).all()
        changed = noisy.subset("test")[index]
        assert changed.id == f"noisy/{inner.ids[index]}" and changed.label == inner[index].label
        assert changed.image.shape == inner[index].image.shape and changed.image.dtype == np.uint8
        assert not (changed.image == inner[index].image).all()
    again, _ = divided(
        tmp_path, "domains", by="recipe", recipes=dict(reversed(recipes.items())), task_order=["noisy", "plain"]
    )
    same = again[0].data(data, again[0].classes, 1).subset("test")
    assert (
        same[3].image == noisy.subset("test")[3].image
    ).all()  # whatever the order, the seed of the run, the process
    recipes["noisy"][0]["std"] = [0.3, 0.4]  # type: ignore[index]
    other, _ = divided(tmp_path, "domains", by="recipe", recipes=recipes)
    assert other[1].data(data, other[1].classes, 0).fingerprint() != noisy.fingerprint()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_recipe_keeps_the_depth_of_images(kind: type[np.unsignedinteger]) -> None:
    white = np.iinfo(kind).max
    image = np.array([[[0], [white // 3], [white]]], dtype=kind)
    inner = type("One", (), {"ids": ["x"], "labels": [2], "__getitem__": lambda self, index: Sample(image, 2, "x")})()
    invert = Op.model_validate({"type": "RandomInvert", "p": 1.0})
    changed = RecipeSamples(inner, "negative", [invert], seed=0)[0]
    assert changed.image.dtype == kind and changed.image.shape == (1, 3, 1)
    assert (changed.image == white - image).all() and changed.id == "negative/x"


def test_a_recipe_on_the_device(tmp_path: Path) -> None:
    keys = {"by": "recipe", "recipes": {"a": [], "b": [{"type": "RandomInvert", "p": 1.0}]}}
    settings = settings_of(tmp_path, "domains", keys, data={"on_device": True})
    data = make_data(settings)
    first, second = (task.data(data, task.classes, 0) for task in stream_in(settings).tasks(data))
    batches = [next(iter(part.eval_loader("test"))) for part in (first, second)]
    assert (batches[0].images == next(iter(data.eval_loader("test"))).images).all()
    assert not (batches[0].images == batches[1].images).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"by": "folder", "level": 3}, r"stream.level 3: the id 'train/000' has the parts"),
        ({"by": "folder", "pattern": "(x)"}, r"stream.pattern '\(x\)' finds nothing in the id 'train/000'"),
        ({"by": "folder", "level": 0}, "the task 'test' has no training images"),
        ({"by": "column", "column": "empty"}, "stream.column: 36 images of train have no value, such as train/000"),
    ],
)
def test_domains_that_the_data_does_not_have(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=message):
        divided(tmp_path, "domains", own(Cameras), **keys)


def test_a_source_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no table, so there is no column 'lens'"):
        divided(tmp_path, "domains", own(Cameras), by="column", column="lens")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"by": "folder"}, "stream.by: by: folder needs level or pattern"),
        ({"by": "folder", "level": 0, "pattern": "(a)"}, "stream.pattern: by: folder needs"),
        ({"by": "column"}, "stream.by: by: column needs column"),
        ({"by": "column", "column": "x", "level": 0}, "stream.level: it belongs to by: folder"),
        ({"by": "folder", "pattern": "ab"}, "stream.pattern: it needs one group"),
        ({"by": "folder", "pattern": "(a"}, "stream.pattern: no regular expression"),
        ({"by": "recipe", "recipes": {}}, "stream.recipes: name at least one domain"),
        ({"by": "recipe", "recipes": {"a": ["RandomResizedCrop"]}}, "stream.recipes.a: RandomResizedCrop needs a size"),
        ({"by": "recipe", "recipes": {"a": ["RandomInvrt"]}}, "stream.recipes.a.0.type: .*RandomInvert"),
    ],
)
def test_settings_of_domains(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path, "domains", keys)
