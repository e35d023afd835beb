"""The command line on several processes of this machine, as a launcher starts it; what hangs fails."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from processes import forkserver

SECONDS = 60.0
"""What all processes of a launch may take."""
Prepare = Callable[[int], object]
"""Is called with the rank before the command, in its process."""


@dataclass
class Launched:
    """Processes that run the command; ``codes`` and ``told`` (standard output and errors) by rank."""

    processes: list[BaseProcess]
    files: list[Path]
    codes: list[int | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def ended(self, ranks: range | None = None, seconds: float = SECONDS) -> Launched:
        """Wait until these have ended, by default all; AssertionError if they do not."""
        until = time.monotonic() + seconds
        waited = self.processes if ranks is None else [self.processes[rank] for rank in ranks]
        for process in waited:
            process.join(max(until - time.monotonic(), 0))
        self.told = [file.read_text() for file in self.files]
        hang = [
            rank
            for rank, process in enumerate(self.processes)
            if process in waited and process.is_alive()
        ]
        assert not hang, f"processes {hang} hang\n" + "\n".join(self.told)
        self.codes = [process.exitcode for process in self.processes]
        return self


@contextlib.contextmanager
def launched(size: int, *arguments: object, prepare: Prepare | None = None) -> Iterator[Launched]:
    """``gncompile ARGUMENTS`` on ``size`` processes of one group, none of which outlives the block.

    They are forked from a server that has imported torch once, so that a launch takes a second.
    """
    context = forkserver()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        files = [Path(folder) / f"rank{rank}" for rank in range(size)]
        free.bind(("127.0.0.1", 0))
        place = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        free.close()
        words = [str(word) for word in arguments]
        processes: list[BaseProcess] = [
            context.Process(
                target=_command,
                args=(words, {**place, "RANK": str(rank)}, os.getcwd(), files[rank], prepare, rank),
                daemon=True,
            )
            for rank in range(size)
        ]
        try:
            for file, process in zip(files, processes, strict=True):
                file.touch()
                process.start()
            yield Launched(processes, files)
        finally:
            for process in processes:
                process.kill()
                process.join()


def run_launched(size: int, *arguments: object, prepare: Prepare | None = None) -> Launched:
    """The same, ended."""
    with launched(size, *arguments, prepare=prepare) as found:
        return found.ended()


def _command(
    words: list[str],
    place: dict[str, str],
    folder: str,
    output: Path,
    prepare: Prepare | None,
    rank: int,
) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(place)
    import torch

    from gncompile.app.cli import main

    torch.set_num_threads(1)
    if prepare is not None:
        prepare(rank)
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.stdout.flush()
    os._exit(code)  # a daemon's exit code, whatever threads there are


def torchrun(
    size: int, *arguments: object, seconds: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``torchrun --standalone --nproc-per-node SIZE ARGUMENTS`` to its end."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
        *map(str, arguments),
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
