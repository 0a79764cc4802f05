"""CPUs, threads and memory that a run may use, within the limits of containers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from augment.base import machine

GIB = 2**30


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "affinity", lambda: 8)


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, math.inf),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # the smallest on the path to the root counts, wherever it is
        (
            {
                "proc/self/cgroup": "0::/user/job/step\n",
                "sys/fs/cgroup/user/job/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/user/job/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
            },
            3,
        ),
        # version 1, seen from within a container: the path is the one outside
        (
            {
                "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "0::/../../job\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
    ],
)
def test_container_limits_of_cpus(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    root = write(tmp_path, files)
    assert machine.container_cpus(root) == cpus
    assert machine.available_cpus(root) == min(cpus, 8)
    assert machine.default_threads(root) == {0.5: 1, 1.5: 1}.get(cpus, min(cpus, 8))


def test_threads_follow_a_limit_unless_the_user_chose(tmp_path: Path, not_loaded: None) -> None:
    environment: dict[str, str] = {}
    machine.set_threads(environment, tmp_path)
    assert environment == {}, "without a limit, OpenMP chooses"
    root = write(tmp_path, {"sys/fs/cgroup/cpu.max": "250000 100000\n"})
    machine.set_threads(environment, root)
    assert environment == {"OMP_NUM_THREADS": "2", "DISTILL_OMP_NUM_THREADS": "2"}
    chosen = {"OMP_NUM_THREADS": "5"}
    machine.set_threads(chosen, root)
    assert chosen == {"OMP_NUM_THREADS": "5"}


@pytest.mark.parametrize(("ranks", "threads"), [("1", "6"), ("2", "3"), ("4", "1"), ("9", "1"), ("", "6")])
def test_ranks_that_torchrun_has_started_get_a_part_each(
    ranks: str, threads: str, tmp_path: Path, not_loaded: None
) -> None:
    root = write(tmp_path, {"sys/fs/cgroup/cpu.max": "600000 100000\n"})
    environment = {"LOCAL_WORLD_SIZE": ranks}
    machine.set_threads(environment, root)
    assert environment["OMP_NUM_THREADS"] == threads
    chosen = {"LOCAL_WORLD_SIZE": ranks, "OMP_NUM_THREADS": "5"}
    machine.set_threads(chosen, root)
    assert chosen["OMP_NUM_THREADS"] == "5"


def test_ranks_on_a_machine_without_a_limit_get_a_part_each(tmp_path: Path, not_loaded: None) -> None:
    environment = {"LOCAL_WORLD_SIZE": "2"}
    machine.set_threads(environment, tmp_path)
    assert environment["OMP_NUM_THREADS"] == "4"


def test_ranks_that_a_run_starts_get_a_part_each_unless_the_user_chose(tmp_path: Path, not_loaded: None) -> None:
    root = write(tmp_path, {"sys/fs/cgroup/cpu.max": "600000 100000\n"})
    first: dict[str, str] = {}
    machine.set_threads(first, root)
    assert first["OMP_NUM_THREADS"] == "6"
    assert machine.divide_threads(2, first, root) == 3
    further = dict(first)  # inherited, before torch is loaded there
    machine.set_threads(further, root)
    assert further["OMP_NUM_THREADS"] == "3"
    assert machine.divide_threads(2, further, root) == 3, "not divided twice"
    assert machine.divide_threads(8, further, root) == 1
    assert machine.divide_threads(2, {}, tmp_path / "no limit") == 4
    for chosen in ({"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "5", "DISTILL_OMP_NUM_THREADS": "6"}):
        assert machine.divide_threads(2, chosen, root) is None
        assert chosen["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("name", machine.WAIT_SETTINGS)
def test_the_wait_policy_is_passive_unless_the_user_chose(name: str, not_loaded: None) -> None:
    environment: dict[str, str] = {}
    machine.set_wait_policy(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}
    chosen = {name: "1000"}
    machine.set_wait_policy(chosen)
    assert chosen == {name: "1000"}


def test_nothing_is_set_once_torch_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environment: dict[str, str] = {}
    machine.set_openmp_defaults(environment, write(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000\n"}))
    assert environment == {}


def test_a_process_sets_it_before_torch_and_its_children_inherit_it() -> None:
    """The imports of ``train.py`` and of the console script load no torch, and set it."""
    code = (
        "import os, sys, subprocess\n"
        "import distill.cli\n"
        "assert 'torch' not in sys.modules\n"
        "child = [sys.executable, '-c', 'import os; print(os.environ[\"OMP_WAIT_POLICY\"])']\n"
        "print(subprocess.run(child, capture_output=True, text=True, check=True).stdout)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in machine.WAIT_SETTINGS}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["PASSIVE"], done.stderr


def test_free_memory_is_within_a_containers_limit(tmp_path: Path) -> None:
    assert machine.free_memory(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   8388608 kB\n"})
    assert machine.free_memory(tmp_path) == 8 * GIB
    write(tmp_path, {"sys/fs/cgroup/memory.max": f"{3 * GIB}\n", "sys/fs/cgroup/memory.current": f"{GIB}\n"})
    assert machine.free_memory(tmp_path) == 2 * GIB
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert machine.free_memory(tmp_path) == 8 * GIB
