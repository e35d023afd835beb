"""What memory there is, asked before it is taken: a refusal with sizes, not a process that is killed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CompileError, GncompileError
from .tables import binary_size

if TYPE_CHECKING:
    import torch

SHOWN = 5
"""Largest items that an error lists."""

_UNLIMITED = 1 << 62


def require_memory(
    needed: int | Mapping[str, int],
    what: str,
    *,
    held: int = 0,
    device: torch.device | None = None,
    where: str | None = None,
    instead: str = "use smaller layers, or a machine with more memory",
    error: type[GncompileError] = CompileError,
) -> None:
    """Raise ``error`` unless ``needed`` bytes can be had on ``device``, by default in main memory.

    ``needed`` may be bytes by name; the error then lists the largest. ``held`` of them are there already.
    Nothing is allocated: memory may still run out where others take it meanwhile.
    """
    parts = dict(needed) if isinstance(needed, Mapping) else {}
    total = sum(parts.values()) if isinstance(needed, Mapping) else needed
    available = available_bytes(device)
    if total - held <= available:
        return
    largest = sorted(parts.items(), key=lambda item: -item[1])[:SHOWN]
    rows = [f"  {binary_size(size):>10}  {name}" for name, size in largest]
    more = len(parts) - len(largest)
    rows += [f"  and {more} more"] if more else []
    place = "" if device is None or device.type == "cpu" else f" on {device}"
    found = f"{what} need {binary_size(total)}, and {binary_size(available)} are free{place}"
    raise error("\n".join([found, *rows]), where=where, instead=instead)


def available_bytes(device: torch.device | None = None) -> int:
    """Bytes that can still be allocated; a very large number where the system does not say.

    In main memory that is what the system calls available, within the limits of the control group and of
    the process's address space; on a CUDA device the free memory and what torch's allocator holds in reserve.
    """
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserve)
    return min(_system(), _control_group(), _address_space())


def _system() -> int:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _UNLIMITED


def _control_group() -> int:
    """The limit of a container, whole: its use counts cached files, which make way."""
    names = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    limits = [text for name in names if (text := _text(name).strip()).isdigit()]
    return min(map(int, limits), default=_UNLIMITED)


def _address_space() -> int:
    try:
        import resource
    except ImportError:
        return _UNLIMITED
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    pages = _text("/proc/self/statm").split()
    used = int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0
    return max(0, limit - used)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
