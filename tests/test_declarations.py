"""Modules imported with stand-ins for slow packages, and forgotten afterwards."""

import importlib
import sys

import pytest

from distill.declarations import StandIn, declarations_only

MODULE = """
from collections.abc import Callable
from dataclasses import dataclass

import slow_package.nn.functional as F
from slow_package import Tensor, nn
from slow_package.autograd import once

TABLE: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
DTYPES = {nn.float16: 1, nn.int8: 2}


@dataclass
class Features:
    logits: Tensor | None = None


class Method(nn.Module):
    "What it does."
    rank = 4

    @once
    def forward(self, x): return x

    @nn.no_grad()
    def free(self, x): return x


class Wrong(nn.Module):
    rank = Method.no_such_thing if hasattr(Method, "no_such_thing") else 1
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "declared.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("declared", None)


def test_declarations_are_read_without_the_package(package):
    with declarations_only(["slow_package"]):
        declared = importlib.import_module("declared")
        assert declared.Method.__bases__ == (object,) and declared.Method.rank == 4 and declared.Wrong.rank == 1
        assert declared.Method().forward(3) == 3 and declared.Method().free(3) == 3
        assert len(declared.DTYPES) == 2 and isinstance(declared.TABLE["gelu"], StandIn)
        assert "slow_package.nn.functional" in sys.modules
    assert not any(name.startswith("slow_package") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError, match="slow_package"):
        importlib.import_module("slow_package")


def test_what_was_imported_with_stand_ins_is_forgotten():
    import distill.api

    known = sys.modules.pop("distill.api.arguments", None)
    vars(distill.api).pop("arguments", None)
    try:
        with declarations_only(["slow_package"]):
            importlib.import_module("distill.api.arguments")
        assert "distill.api.arguments" not in sys.modules and not hasattr(distill.api, "arguments")
    finally:
        if known is not None:
            sys.modules["distill.api.arguments"] = known
            distill.api.arguments = known


def test_packages_that_are_imported_stay():
    import json

    before = set(sys.modules)
    with declarations_only(["json"]):
        assert importlib.import_module("json") is json
    assert set(sys.modules) == before
