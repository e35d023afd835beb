"""Whether processes that train one model still have the same parameters, looked at now and then.

All of them compute the same step of the same sums, so they should agree to the bit. Where they do not, as
with machines of different kinds, or a parameter that was written on one of them, they part ways, step by
step, and nothing else would tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ProcessesError
from ..runtime.processes import Processes
from .compiled import Compiled

EVERY = 100
"""Steps between two looks."""


def require_unison(compiled: Compiled, updates: int) -> None:
    """Compare the trained parameters of all processes before the first step and every so many.

    A collective call then. ``updates`` are those so far. Raises
    :class:`~gncompile.errors.ProcessesError` with the first parameter that differs, if one does.
    """
    processes = compiled.executable.processes
    if processes is not None and updates % EVERY == 0:
        require_same(processes, compiled.trained(), f"before update {updates + 1}")


def require_same(processes: Processes, tensors: Mapping[str, Tensor], when: str) -> None:
    """Raise :class:`~gncompile.errors.ProcessesError` unless all processes have the same tensors."""
    own = {name: _digest(tensor) for name, tensor in tensors.items()}
    together = hashlib.blake2b(repr(own).encode(), digest_size=7).digest()
    told = processes.numbers([int.from_bytes(together, "big")])
    if all(each == told[0] for each in told):
        return
    every = processes.gathered(own)
    for name in own:
        apart = [rank for rank, found in enumerate(every) if found.get(name) != every[0].get(name)]
        if apart:
            raise ProcessesError(
                f"the parameter {name!r} of process {apart[0]} is not that of process 0",
                where=f"{when}, on {processes.size} processes",
                instead="build the model from the same seed on all processes, or load the same file; where "
                "it was the same at first, look for what writes to it on one of them only",
            )
    raise ProcessesError(
        "the processes train different parameters",
        where=f"{when}, on {processes.size} processes",
        instead="compile the same model on all of them",
    )


def require_none_failed(processes: Processes, failed: Sequence[int]) -> None:
    """Raise :class:`~gncompile.errors.ProcessesError` where one of the processes, by rank, has failed."""
    for rank, flag in enumerate(failed):
        if flag:
            raise ProcessesError(
                f"process {rank} of {processes.size} has failed",
                where="reading a batch",
                instead="its own message tells why",
            )


def require_same_program(processes: Processes, text: str) -> None:
    """Raise :class:`~gncompile.errors.ProcessesError` unless all processes run the same program."""
    own = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
    if len({number for (number,) in processes.numbers([own])}) > 1:
        raise ProcessesError(
            "the processes have compiled different programs",
            where=f"compile, on {processes.size} processes",
            instead="compile the same model, with the same loss and options, on all of them",
        )


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(numbers.data, digest_size=8).hexdigest()
