"""Recipes by name: what they stand for, where they may stand, and what a mistake is told."""

import pytest
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError

from augment.chain import Chain
from augment.draws import Draws
from augment.policy import AugmentSettings
from augment.presets import PRESETS, Recipe, strong, weak
from augment.recipe import Op

IMAGES = torch.randint(0, 256, (4, 3, 40, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPE = TypeAdapter(Recipe)


class Config(BaseModel):
    recipe: Recipe


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_runs(name):
    recipe = RECIPE.validate_python(name)
    assert recipe == PRESETS[name]() and PRESETS[name].__doc__
    for op in recipe:
        Op.model_validate(op.model_dump())  # refuses what its class does not know
    views = Chain(recipe, (32, 32))(IMAGES, Draws(0, 0, "student", torch.arange(4)))
    assert views.shape == (4, 3, 32, 32) and views.min() >= 0 and views.max() <= 1
    assert not torch.equal(views, Chain(recipe, (32, 32))(IMAGES, Draws(0, 1, "student", torch.arange(4))))


def test_the_issues_names_are_there():
    assert {"simclr", "mocov2", "dino", "deit3", "cifar", "weak", "strong"} <= set(PRESETS)
    assert AugmentSettings().student == strong() and AugmentSettings().teacher_recipe() == weak()


def test_a_preset_is_a_part_of_a_recipe():
    erasing = {"type": "RandomErasing", "p": 0.25}
    expected = [*PRESETS["dino"](), Op.model_validate(erasing)]
    for given in (["dino", erasing], [{"preset": "dino"}, erasing]):
        assert RECIPE.validate_python(given) == expected
    assert RECIPE.validate_python({"preset": "dino"}) == PRESETS["dino"]()
    assert AugmentSettings(student="mocov2", teacher=["weak"]).teacher == weak()
    assert RECIPE.validate_python([]) == []


def test_the_stored_recipe_has_its_operations():
    settings = AugmentSettings(student="simclr", teacher="weak")
    stored = settings.model_dump(mode="json")
    assert stored["teacher"] == [{"type": "RandomResizedCrop", "scale": [0.8, 1.0]}, "RandomHorizontalFlip"]
    assert AugmentSettings.model_validate(stored) == settings


@pytest.mark.parametrize(
    "given, path, message",
    [
        ("simclrr", "", "no preset is called 'simclrr'; did you mean 'simclr'?"),
        ("SimCLR", "", "no preset is called 'SimCLR'; did you mean 'simclr'?"),
        (["weak", "dyno"], "1", "no preset is called 'dyno'; did you mean 'dino'?"),
        ([{"preset": "dino", "p": 0.5}], "0", "preset 'dino' has no settings of its own"),
        (["simclr", {"type": "RandomRotation"}], "1.degrees", "needs the argument 'degrees'"),
        (["simclr", "RandomHorizontalFlp"], "1.type", "did you mean 'RandomHorizontalFlip'?"),
        (3, "", "valid list"),
    ],
)
def test_a_mistake_is_named_with_its_entry(given, path, message):
    with pytest.raises(ValidationError) as caught:
        Config(recipe=given)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == ".".join(filter(None, ["recipe", path])) and message in error["msg"]


def test_the_schema_lists_presets():
    schema = Config.model_json_schema()["properties"]["recipe"]
    names, operations = schema["anyOf"]
    assert names["enum"] == sorted(PRESETS)
    assert names in operations["items"]["anyOf"] and {"$ref": "#/$defs/Op"} in operations["items"]["anyOf"]
