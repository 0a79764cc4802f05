"""What must be in the environment before torch is imported, and the order in which files run."""

from __future__ import annotations

import gc
import logging
import os
import sys
from functools import cache
from pathlib import Path

import pytest
from blank_figures import blank_figures as make_figures_blank
from blank_figures import blank_previews as make_previews_blank
from clean_checkout import CleanCheckout
from warm_server import verify_in_fork

# Where Python may not write bytecode, as in many containers, each process that a test starts compiles our files again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Threads that spin while they wait take the cores of the tests beside them, and of the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What Inductor does for speed costs more here than it saves: for vector extensions of the processor it compiles probes
# and loads them in interpreters of their own, it compiles headers for two kernels, and it starts workers that compile.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker for each core is threads enough


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # once, not for each worker
        config.pluginmanager.register(CleanCheckout(Path(__file__).parents[1]), "clean_checkout")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold slow tests come first: what is left for the end is short, so that no worker waits for another.

    The order within a file stays, since its tests share fixtures.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """The garbage collector need not look at a million objects of imported modules again and again."""
    gc.collect()
    gc.freeze()
    if (registry := sys.modules.get("lightning.fabric.utilities.registry")) is not None:
        # Each of hundreds of fits looks in all installed packages for callbacks that Lightning is to add.
        registry.entry_points = cache(registry.entry_points)
    # pytest listens to loggers that do not propagate, and to this one torch would write every graph that it compiles.
    logging.getLogger("torch.__trace").propagate = True


def pytest_sessionfinish() -> None:
    gc.unfreeze()
    gc.collect()


@pytest.fixture
def verification_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For exports that are not about the interpreter's start: verification is spared its ten seconds of imports.

    It still runs in another process, from the files alone.
    """
    monkeypatch.setattr("distill.export.verify._run_fresh", verify_in_fork)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reports whose pixels are not looked at."""
    make_figures_blank(monkeypatch)


@pytest.fixture
def blank_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs whose pictures of views are not looked at."""
    make_previews_blank(monkeypatch)
