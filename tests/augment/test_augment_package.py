"""The names that ``import augment`` offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import augment
import distill


def test_the_import_loads_no_torch():
    code = (
        "import augment, sys; assert {'DualAugment', 'list_operations'} <= set(dir(augment)), dir(augment);"
        "heavy = {'torch', 'kornia', 'pydantic'} & sys.modules.keys(); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_every_name_is_there_and_known_to_type_checkers():
    for name in augment.__all__:
        assert getattr(augment, name) is not None
    tree = ast.parse(Path(str(augment.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for statement in block.body for alias in statement.names}
    assert typed == set(augment.__all__) == set(augment._HOMES)


def test_a_misspelt_name_is_an_error_that_names_the_nearest():
    with pytest.raises(AttributeError, match=r"module 'augment' has no attribute 'DualAugmnt'.*DualAugment"):
        augment.DualAugmnt  # noqa: B018


def test_the_list_of_operations_is_that_of_the_front_door():
    assert distill.list_operations is augment.list_operations
    assert {"PadCrop", "RandomResizedCrop"} <= set(augment.list_operations())
    assert augment.list_operations("*resizedcrop") == ["RandomResizedCrop"]


def test_printed_modules_show_what_they_do():
    settings = augment.AugmentSettings(policy="independent", student=["RandomHorizontalFlip", "GaussianNoise"])
    dual = augment.DualAugment(settings, [augment.InputSpec((16, 16))], augment.InputSpec((8, 12)), seed=3)
    text = repr(dual)
    assert "policy=independent, student=8x12, teacher=16x16, seed=3" in text
    assert "size=8x12, engine=fused, compile=auto" in text and "size=16x16" in text
    assert "RandomHorizontalFlip, affine, geometric" in text and "GaussianNoise, not fused" in text
