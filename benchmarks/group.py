"""Several processes of this machine, of one thread each, joined by gloo."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import multiprocessing

T = TypeVar("T")


def on(size: int, act: Callable[..., T], *asked: Any) -> list[T]:
    """What ``act(size, *asked)``, a function of a module, finds on each of ``size`` processes, by rank.

    One alone is in no group. A process that raises ends all, and its traceback is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(  # type: ignore[attr-defined]
            _process, (size, folder, act, asked), nprocs=size
        )
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]


def _process(rank: int, size: int, folder: str, act: Callable[..., Any], asked: Any) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(act(size, *asked)))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
