"""Many processes, one choice: where ``torch.distributed`` runs, rank 0 finds it and the others take it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import torch.distributed as dist

from ..errors import GncompileError

T = TypeVar("T")

WAITING = timedelta(hours=2)
"""How long a rank waits for rank 0: longer than any tuning takes, and than NCCL waits by default."""


def from_rank_zero(find: Callable[[], T]) -> T:
    """What ``find`` returns on rank 0, on every rank; without ``torch.distributed`` what it returns here.

    A collective call: all ranks of the default group have to make it. An exception on rank 0 is raised
    there, and as a :class:`~gncompile.errors.GncompileError` on the others. The result must be picklable.
    """
    if not several_ranks():
        return find()
    group = _on_the_host(dist.group.WORLD)
    rank = dist.get_rank()
    if rank == 0:
        try:
            found = find()
        except BaseException as error:  # an interrupt too: the others are waiting
            _broadcast((False, f"{type(error).__name__}: {error}"), group)
            raise
        _broadcast((True, found), group)
        return found
    succeeded, found = _broadcast(None, group)
    if not succeeded:
        raise GncompileError(
            f"rank 0 found no settings. {found}",
            where=f"rank {rank}",
            instead="mend what went wrong on rank 0, or compile with tune='off'",
        )
    return found


def several_ranks() -> bool:
    """Whether this process is one of several that ``torch.distributed`` connects."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@lru_cache(maxsize=1)
def _on_the_host(world: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """All ranks of ``world`` on the host: no device is needed, and waiting is not cut short.

    It is kept as long as the world is, for a group must not be closed while another rank still reads.
    """
    backend = "gloo" if dist.is_gloo_available() else None
    group = dist.new_group(backend=backend, timeout=WAITING)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _broadcast(content: object, group: dist.ProcessGroup) -> tuple[bool, T]:
    """``content`` of rank 0."""
    box = [content]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]  # type: ignore[return-value]
