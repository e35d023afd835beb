"""Tests on several processes of this machine, connected by gloo; what hangs fails, and ends with the test."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

SECONDS = 240
"""What a whole group may take."""
PRELOADED = (
    "torch", "torch.distributed", "torch.export._trace", "gncompile.app.compile", "gncompile.app.cli",
    "pytest", "hypothesis", "matplotlib.figure", "rich.console", "safetensors.torch",
)  # fmt: skip
"""What a first compilation and the files of tests import, a second and more for each process."""


def forkserver() -> ForkServerContext:
    """Starts processes that are forked from a server which has imported all this once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


def run_on(
    size: int, act: Callable[[Any], Any], cases: Iterable[Any], seconds: float = SECONDS
) -> Any:
    """``act(case)`` for every case on ``size`` processes: the results by case, then by rank.

    ``act`` and its results have to be picklable. A process that raises, dies, or is not done in time fails
    the test with what it was about.
    """
    context = forkserver()
    cases = list(cases)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        started = [
            context.Process(
                target=_process, args=(rank, size, store, act, cases, pipe, seconds), daemon=True
            )
            for rank, (_, pipe) in enumerate(pipes)
        ]
        try:
            for process, (_, pipe) in zip(started, pipes, strict=True):
                process.start()
                pipe.close()
            found = _read([own for own, _ in pipes], time.monotonic() + seconds)
        finally:
            for process in started:
                process.kill()
                process.join()
    return {case: [results[number] for results in found] for number, case in enumerate(cases)}


def elsewhere(act: Callable[..., Any], *given: Any, seconds: float = SECONDS) -> Any:
    """``act(*given)`` in another process, which has compiled nothing and hashes strings by another seed.

    What is given and what is found have to be picklable; what is raised fails the test.
    """
    context = forkserver()
    own, pipe = context.Pipe(duplex=False)
    process = context.Process(target=_elsewhere, args=(act, given, pipe), daemon=True)
    try:
        process.start()
        pipe.close()
        return _read([own], time.monotonic() + seconds)[0]
    finally:
        process.kill()
        process.join()


def _elsewhere(act: Callable[..., Any], given: tuple[Any, ...], pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send_bytes(pickle.dumps(("", act(*given))))
    except BaseException:
        pipe.send_bytes(pickle.dumps((traceback.format_exc(), None)))


def _read(pipes: list[Connection], until: float) -> list[Any]:
    """What all processes found; AssertionError for the first that has not."""
    waiting, found = dict(enumerate(pipes)), dict[int, Any]()
    while waiting:
        left = until - time.monotonic()
        ready = multiprocessing.connection.wait(waiting.values(), max(left, 0))
        assert ready, f"processes {sorted(waiting)} hang"
        for rank, pipe in list(waiting.items()):
            if pipe in ready:
                try:
                    error, found[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    error = "it died"
                assert not error, f"process {rank}: {error}"
                del waiting[rank]
    return [found[rank] for rank in range(len(pipes))]


def _process(
    rank: int,
    size: int,
    store: str,
    act: Callable[[Any], Any],
    cases: list[Any],
    pipe: Connection,
    seconds: float,
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    case = None
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
        )
        found = []
        for case in cases:
            found.append(act(case))
        pipe.send_bytes(pickle.dumps(("", found)))  # by value: torch would share memory
        dist.barrier()  # a group that is left while another still reads is an error there
    except BaseException:
        pipe.send_bytes(pickle.dumps((f"in {case!r}\n{traceback.format_exc()}", [])))
