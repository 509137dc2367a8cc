"""What this process may use of the machine: cores, memory, instruction sets."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

from ryzanstein import _core
from ryzanstein.config import check_integer
from ryzanstein.errors import ValidationError

__all__ = [
    "DoctorReport",
    "Host",
    "cache_sizes",
    "check_threads",
    "default_threads",
    "doctor",
    "peak_resident_bytes",
    "read_host",
]

_THREADS_VARIABLE = "RYZANSTEIN_THREADS"
_MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Host:
    """What this process may use.

    Args:
        model: the CPU's name.
        logical_cpus: CPUs the process may be scheduled on.
        physical_cores: cores behind them; SMT siblings count once.
        cpu_quota: CPUs' worth of time the control group allows, None if it sets no limit.
        memory_bytes: the machine's memory or the control group's limit, whichever is less.
        free_bytes: how much of it may still be used.
    """

    model: str
    logical_cpus: int
    physical_cores: int
    cpu_quota: float | None
    memory_bytes: int
    free_bytes: int

    @property
    def usable_cores(self) -> int:
        """Return the threads worth running: physical cores, less what the quota withholds."""
        if self.cpu_quota is None:
            return self.physical_cores
        # Rounded down: a thread that is throttled makes every other wait at the next barrier.
        return max(1, min(self.physical_cores, int(self.cpu_quota)))


def read_host(root: Path = Path("/"), cpus: frozenset[int] | None = None) -> Host:
    """Read the host's limits from /proc and /sys.

    Args:
        root: where /proc and /sys are.
        cpus: CPUs the process may run on; None asks the system.
    """
    usable = cpus if cpus is not None else frozenset(os.sched_getaffinity(0))
    groups = _control_groups(root)
    total, free = _memory(root)
    for group in groups["memory"]:
        limit = _memory_limit(group)
        if limit is not None:
            total = min(total, limit)
            free = min(free, max(0, limit - _memory_in_use(group)))
    quotas = [quota for group in groups["cpu"] if (quota := _cpu_quota(group)) is not None]
    return Host(
        model=_cpu_model(root),
        logical_cpus=len(usable),
        physical_cores=_physical_cores(root, usable),
        cpu_quota=min(quotas, default=None),
        memory_bytes=total,
        free_bytes=free,
    )


def cache_sizes(root: Path = Path("/")) -> list[str]:
    """Return what /sys says of the sizes of CPU 0's caches, first level first."""
    caches = sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return [_first_line(path) for path in caches]


def default_threads() -> int:
    """Return RYZANSTEIN_THREADS, or one thread per usable physical core.

    Raises:
        ValidationError: the variable is not a number in 1..1024.
    """
    text = os.environ.get(_THREADS_VARIABLE, "")
    if not text:
        return read_host().usable_cores
    try:
        value = int(text)
    except ValueError:
        raise ValidationError(
            f"{_THREADS_VARIABLE} must be in 1..{_MAX_THREADS}, got {text!r}"
        ) from None
    return check_threads(value, _THREADS_VARIABLE)


def check_threads(value: object, name: str = "threads") -> int:
    """Return `value` if it is a usable number of threads.

    Raises:
        ValidationError: it is not in 1..1024.
    """
    return check_integer(name, value, 1, _MAX_THREADS)


def peak_resident_bytes() -> int:
    """Return the most memory this process has held at any time."""
    # VmHWM, unlike getrusage, does not count the parent's memory from before exec.
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything a bug report needs: the build, the machine, and what was chosen for it."""

    version: str
    commit: str
    compiler: str
    python: str
    system: str
    isa: str
    available_isas: tuple[str, ...]
    compiled_isas: tuple[str, ...]
    features: dict[str, bool]
    kernels: dict[str, str]
    host: Host
    usable_cores: int
    threads: int


def doctor() -> DoctorReport:
    """Return what `ryzanstein doctor` prints.

    Example:
        >>> doctor().isa in doctor().available_isas
        True
    """
    build = _core.build_info()
    compiled = build["compiled_isas"]
    assert isinstance(compiled, list)
    isa = _core.resolve_isa()
    host = read_host()
    return DoctorReport(
        version=str(build["version"]),
        commit=str(build["commit"]),
        compiler=str(build["compiler"]),
        python=platform.python_version(),
        system=platform.platform(),
        isa=isa,
        available_isas=tuple(_core.available_isas()),
        compiled_isas=tuple(compiled),
        features=_core.cpu_features(),
        kernels=_core.kernels(isa),
        host=host,
        usable_cores=host.usable_cores,
        threads=default_threads(),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")


def _cpu_model(root: Path) -> str:
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _physical_cores(root: Path, cpus: frozenset[int]) -> int:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {_first_line(root / topology.format(cpu)) or f"cpu {cpu}" for cpu in cpus}
    return max(1, len(siblings))


def _memory(root: Path) -> tuple[int, int]:
    fields = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0]) * 1024
    total = fields.get("MemTotal", 0)
    return total, fields.get("MemAvailable", total)


def _control_groups(root: Path) -> dict[str, list[Path]]:
    """Return, per controller, the directories of this process's group and all its ancestors."""
    mounts = root / "sys/fs/cgroup"
    groups: dict[str, list[Path]] = {"cpu": [], "memory": []}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in groups.keys() & set(controllers.split(",")):
            groups[name] += _ancestors(mounts / name, path)
        if not controllers:
            for paths in groups.values():
                paths += _ancestors(mounts, path)
    return groups


def _ancestors(mount: Path, path: str) -> list[Path]:
    # Inside a container the path may name a directory that only the host can see; the mount's root
    # is then the container's own group.
    group = mount / path.strip("/")
    return [group, *(p for p in group.parents if p == mount or mount in p.parents)]


def _cpu_quota(group: Path) -> float | None:
    fields = _first_line(group / "cpu.max").split()  # version 2
    if len(fields) != 2:  # version 1
        fields = [_first_line(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    # Without a limit the quota is "max" in version 2, -1 in version 1.
    if not all(field.isdigit() and int(field) for field in fields):
        return None
    quota, period = map(int, fields)
    return quota / period


def _memory_limit(group: Path) -> int | None:
    text = _first_line(group / "memory.max") or _first_line(group / "memory.limit_in_bytes")
    return int(text) if text.isdigit() else None


def _memory_in_use(group: Path) -> int:
    """Return the group's memory, less the file cache, which gives way when memory is wanted."""
    text = _first_line(group / "memory.current") or _first_line(group / "memory.usage_in_bytes")
    used = int(text) if text.isdigit() else 0
    for line in _lines(group / "memory.stat"):
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file"):
            return max(0, used - int(value))
    return used
