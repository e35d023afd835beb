"""Commands that ``torchrun`` has started several times: their group, and who speaks.

``torchrun``, as other launchers do, tells each process its place in the environment: ``RANK``,
``WORLD_SIZE``, on its machine ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``, and where all meet. If one of them
ends with an error it stops the others; with ``--max-restarts`` it then starts all anew, with the same
arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import ProcessesError

if TYPE_CHECKING:
    import torch

TIMEOUT = 600.0
"""Seconds that processes wait for each other, unless told otherwise."""
JOINING = ("train", "resume")
"""Commands that several processes do together; of any other the first does all."""


@dataclass(frozen=True)
class Launch:
    """This process's place among those that a launcher has started."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    restarts: int
    """How often the launcher has started all anew."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @classmethod
    def now(cls, told: Mapping[str, str] = os.environ) -> Launch | None:
        """What the environment tells; None where no launcher has started this process."""
        if "RANK" not in told or "WORLD_SIZE" not in told:
            return None
        try:
            rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
            local_rank = int(told.get("LOCAL_RANK", "0"))
            local = int(told.get("LOCAL_WORLD_SIZE", "1"))
            restarts = int(told.get("TORCHELASTIC_RESTART_COUNT", "0"))
        except ValueError:
            rank, size, local_rank, local, restarts = -1, 0, -1, 0, 0
        if not 0 <= rank < size or local_rank < 0 or local < 1:
            raise ProcessesError(
                "the environment does not tell which of how many processes this is",
                where=f"RANK={told['RANK']} WORLD_SIZE={told['WORLD_SIZE']}",
                instead="start with torchrun --nproc-per-node N -m gncompile, or unset both",
            )
        return cls(rank, size, local_rank, local, restarts)


@contextmanager
def together(seconds: float, device: torch.device) -> Iterator[Launch | None]:
    """Connect this process, which computes on ``device``, with the others of its launch for this block.

    By gloo on a CPU; on GPUs, where each process has its own, tensors go by NCCL and what the host tells by
    gloo. A process that is lost ends a collective call of the others at once, and one that hangs after
    ``seconds``. Where the launcher has not said how many threads a process has (``torchrun`` does, one), they
    share the machine's cores.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL, Triton and reports take for this process's
    launch = Launch.now()
    if launch is None or launch.size == 1:
        yield launch
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from ..runtime.first_process import close

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // launch.local_size))
    waits = timedelta(seconds=seconds)
    store, *_ = next(rendezvous("env://", launch.rank, launch.size, timeout=waits))
    # The store may outlive an attempt, and then has the addresses of processes that are dead.
    store = dist.PrefixStore(  # type: ignore[attr-defined]
        f"attempt {launch.restarts}", store
    )
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=store,
        rank=launch.rank,
        world_size=launch.size,
        timeout=waits,
    )
    try:
        yield launch
    finally:
        close()


def recorded(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` so that a launcher hears of what it raises, and names the first process that failed."""
    if Launch.now() is None:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)
