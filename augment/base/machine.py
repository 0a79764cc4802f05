"""CPUs and memory that this process may use within a container's limits, and OpenMP settings for them.

This imports only the standard library: OpenMP reads its environment variables when torch is imported, so they are set
before.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

ROOT = Path("/")
WAIT_POLICY = "OMP_WAIT_POLICY"
WAIT_SETTINGS = (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables for how threads wait; if the user has set one of them, none is changed."""
THREADS = "OMP_NUM_THREADS"
OWN_THREADS = "DISTILL_OMP_NUM_THREADS"
"""The value that this module set. Child processes inherit both; if they differ, the user has set the number."""
LOCAL_RANKS = "LOCAL_WORLD_SIZE"
"""Number of ranks on this machine, which ``torchrun`` sets."""


def set_openmp_defaults(environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """Set how OpenMP's threads wait and their number, unless the user has.

    Child processes inherit both: loader workers, ranks, the process of ``verify``. After torch is imported, it does
    nothing.

    Args:
        environment: the process's environment variables.
        root: root of the file system with the container's limits.
    """
    set_wait_policy(environment)
    set_threads(environment, root)


def set_wait_policy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE`` before torch is imported, unless the user has set how threads wait.

    By default OpenMP's threads spin while they wait for each other. On a busy machine they then take the CPU from the
    thread that they wait for: with six processes on two cores, a step took more than 25 s instead of 2.
    """
    if "torch" not in sys.modules and not any(name in environment for name in WAIT_SETTINGS):
        environment[WAIT_POLICY] = "PASSIVE"


def set_threads(environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """Set ``OMP_NUM_THREADS`` before torch is imported, if this process has fewer CPUs than there are cores.

    That is so in a container with a limit, and with several ranks on one machine, which divide the CPUs.
    """
    ranks = environment.get(LOCAL_RANKS, "1")
    threads = max(1, default_threads(root) // max(1, int(ranks) if ranks.isdigit() else 1))
    if "torch" not in sys.modules and THREADS not in environment and threads < affinity():
        environment[THREADS] = environment[OWN_THREADS] = str(threads)


def divide_threads(ranks: int, environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> int | None:
    """Divide the threads of this machine among its ranks, which inherit the environment.

    Args:
        ranks: processes on this machine that compute at the same time.
        environment: the process's environment variables.
        root: root of the file system with the container's limits.

    Returns:
        Number of threads for this rank, for a process that has imported torch; None if the user has set the number.
    """
    if environment.get(THREADS) != environment.get(OWN_THREADS):
        return None
    threads = max(1, default_threads(root) // ranks)
    environment[THREADS] = environment[OWN_THREADS] = str(threads)
    return threads


def default_threads(root: Path = ROOT) -> int:
    """Number of threads with a CPU each: the available CPUs rounded down, at least 1."""
    return max(1, int(available_cpus(root)))


def available_cpus(root: Path = ROOT) -> float:
    """Number of CPUs that this process may use: the smaller of its affinity and its container's limit."""
    return min(float(affinity()), container_cpus(root))


def affinity() -> int:
    """Number of cores that this process may run on, which ``taskset`` and cpusets can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def container_cpus(root: Path = ROOT) -> float:
    """CPUs that the control groups of this process allow: the smallest limit on the path to the root; inf without one.

    The limit is in ``cpu.max`` in version 2 ("200000 100000", or "max 100000"), and in ``cpu.cfs_quota_us`` (-1: no
    limit) and ``cpu.cfs_period_us`` in version 1: microseconds of CPU time in a period.
    """
    limit = math.inf
    for folder in _cpu_groups(root):
        quota, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            limit = min(limit, int(quota) / int(period))
    return limit


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process, and their parents.

    Within a container, the path may be the one outside of it; then only the root of the mount exists.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            hierarchies = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            hierarchies = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        inside = PurePosixPath(*(name for name in PurePosixPath(path).parts if name not in ("/", "..")))
        for hierarchy in hierarchies:
            yield from (hierarchy / group for group in (inside, *inside.parents))


def load_average() -> float:
    """Mean number of processes of the whole machine that ran or waited for a CPU in the last minute; 0 if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be used without swapping, within a container's limit; None if the system does not tell."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            group = root / "sys/fs/cgroup"
            limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
            return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
