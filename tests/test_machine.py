"""Memory and cores that a run may use."""

import pytest

from distill import machine

GIB = 2**30


def test_container_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/cpu.max": "100000 100000\n",
        "/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   8388608 kB\n",
        "/sys/fs/cgroup/memory.max": f"{3 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{GIB}\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.usable_cores() == 1
    assert machine.free_memory() == 2 * GIB
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.free_memory() == 8 * GIB
    files.clear()
    assert machine.free_memory() is None
