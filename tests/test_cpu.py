from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from ryzanstein import ValidationError, _core
from ryzanstein.cpu import default_threads, doctor, peak_resident_bytes, read_host

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(root: Path, siblings: list[str], **files: str) -> Path:
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text
        for cpu, text in enumerate(siblings)
    }
    meminfo = f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {12 << 20} kB\n"
    cpuinfo = "processor\t: 0\nmodel name\t: Test CPU @ 3 GHz\n"
    return write(root, {"proc/meminfo": meminfo, "proc/cpuinfo": cpuinfo, **topology, **files})


def test_siblings_count_once(tmp_path: Path) -> None:
    machine(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    host = read_host(tmp_path, frozenset(range(4)))
    assert (host.logical_cpus, host.physical_cores, host.cpu_quota) == (4, 2, None)
    assert host.usable_cores == 2
    assert host.model == "Test CPU @ 3 GHz"
    assert (host.memory_bytes, host.free_bytes) == (16 * GIB, 12 * GIB)


def test_affinity_limits_cores(tmp_path: Path) -> None:
    machine(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert read_host(tmp_path, frozenset({0, 2})).usable_cores == 1
    assert read_host(tmp_path, frozenset({1, 2})).usable_cores == 2


def test_unknown_topology_counts_cpus(tmp_path: Path) -> None:
    assert read_host(tmp_path, frozenset({0, 1, 2})).usable_cores == 3


@pytest.mark.parametrize(
    ("limit", "quota", "cores"),
    [("250000 100000", 2.5, 2), ("50000 100000", 0.5, 1), ("max 100000", None, 4), ("", None, 4)],
)
def test_quota_of_cgroup_2(limit: str, quota: float | None, cores: int, tmp_path: Path) -> None:
    machine(tmp_path, ["0", "1", "2", "3"])
    write(tmp_path, {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": limit})
    host = read_host(tmp_path, frozenset(range(4)))
    assert (host.cpu_quota, host.usable_cores) == (quota, cores)


def test_an_ancestor_may_be_stricter(tmp_path: Path) -> None:
    machine(tmp_path, ["0", "1", "2", "3"])
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            "sys/fs/cgroup/a/cpu.max": "100000 100000",
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/memory.max": str(4 * GIB),
            "sys/fs/cgroup/a/memory.current": str(3 * GIB),
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    host = read_host(tmp_path, frozenset(range(4)))
    assert host.usable_cores == 1
    assert (host.memory_bytes, host.free_bytes) == (4 * GIB, 2 * GIB)


def test_cgroup_1(tmp_path: Path) -> None:
    machine(tmp_path, ["0", "1", "2", "3"])
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(3 * GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    host = read_host(tmp_path, frozenset(range(4)))
    assert (host.cpu_quota, host.usable_cores) == (3.0, 3)
    assert (host.memory_bytes, host.free_bytes) == (2 * GIB, 0)


def test_this_machine() -> None:
    host = read_host()
    assert 1 <= host.usable_cores <= host.logical_cpus
    assert 0 < host.free_bytes <= host.memory_bytes
    assert 1 << 20 < peak_resident_bytes() < host.memory_bytes


def test_threads_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RYZANSTEIN_THREADS", raising=False)
    assert default_threads() == read_host().usable_cores
    monkeypatch.setenv("RYZANSTEIN_THREADS", "3")
    assert default_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025"])
def test_bad_threads_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_THREADS", text)
    with pytest.raises(ValidationError, match=r"RYZANSTEIN_THREADS must be in 1\.\.1024, got"):
        default_threads()


def test_doctor_is_complete_and_serialisable(monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor()
    assert report.isa == _core.resolve_isa()
    assert report.isa in report.available_isas
    assert set(report.available_isas) <= set(report.compiled_isas)
    assert report.kernels
    assert all(report.kernels.values())
    assert report.version
    assert report.threads >= 1
    json.dumps(asdict(report))
    monkeypatch.setenv("RYZANSTEIN_ISA", "scalar")
    assert doctor().isa == "scalar"
    assert doctor().kernels == _core.kernels("scalar")
