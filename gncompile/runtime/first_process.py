"""Many processes, one answer: the first of them finds it, and the others take it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import torch.distributed as dist

from ..errors import GncompileError
from .processes import Processes

T = TypeVar("T")

WAITING = timedelta(hours=2)
"""How long the others wait: longer than any tuning takes, and than other collective calls wait by default."""


def from_first(
    processes: Processes | None,
    find: Callable[[], T],
    instead: str = "mend what went wrong on rank 0",
) -> T:
    """What ``find`` returns on the first process, on every one; for None what it returns here.

    A collective call: all processes have to make it. An exception on the first is raised there, and as a
    :class:`~gncompile.errors.GncompileError` on the others. The result must be picklable.
    """
    if processes is None:
        return find()
    group = _patient(processes.group)
    if processes.leads:
        try:
            found = find()
        except BaseException as error:  # an interrupt too: the others are waiting
            _broadcast((False, f"{type(error).__name__}: {error}"), group)
            raise
        _broadcast((True, found), group)
        return found
    with processes.reached():
        succeeded, found = _broadcast(None, group)
    if not succeeded:
        raise GncompileError(
            f"rank 0 has failed. {found}", where=f"rank {processes.rank}", instead=instead
        )
    return found


@lru_cache(maxsize=1)
def _patient(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """The same processes on the host: no device is needed, and waiting is not cut short.

    It is kept as long as the group is, for one must not be closed while another rank still reads.
    """
    made = dist.new_group(
        dist.get_process_group_ranks(group),
        backend="gloo" if dist.is_gloo_available() else None,
        timeout=WAITING,
        use_local_synchronization=True,
    )
    assert isinstance(made, dist.ProcessGroup)
    return made


def close() -> None:
    """Leave all groups, for a process that is about to end; one that is still known then would abort it."""
    _patient.cache_clear()
    dist.destroy_process_group()


def _broadcast(content: object, group: dist.ProcessGroup) -> tuple[bool, T]:
    """``content`` of the first process."""
    box = [content]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    return box[0]  # type: ignore[return-value]
