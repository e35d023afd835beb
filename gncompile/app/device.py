"""Where the commands compute: ``--device``, and the torch device that it means on this machine.

    cpu       the processor; the default
    cuda      a GPU: the first, under ``torchrun`` for each process of a machine one of its own
    cuda:N    the GPU of that number

Where a network is computed belongs to the machine and not to the model. So no model file says it; the run
folder notes it, for ``resume``; and a checkpoint, whose tensors are those of the host, goes on anywhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.untrusted import shown
from ..errors import GncompileError, ProcessesError
from .launched import Launch

if TYPE_CHECKING:
    import torch

    from ..training.trainer import Trainer

CPU = "cpu"
WORDS = r"^(cpu|cuda(:[0-9]{1,3})?)$"
"""What ``--device`` takes."""

Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="cpu, cuda (under torchrun a GPU a process), or cuda:N."),
]


def device_of(word: str) -> torch.device:
    """The device that a word of ``--device`` means.

    For ``cpu`` nothing of CUDA is touched. Raises :class:`~gncompile.errors.GncompileError` for another
    word, for a GPU where torch has none, or none of that number, and
    :class:`~gncompile.errors.ProcessesError` where the processes of this machine are more than its GPUs.
    """
    if not re.fullmatch(WORDS, word):
        raise GncompileError(
            f"unknown device {shown(word)}",
            where="--device",
            instead="give cpu, cuda, or cuda:N for the GPU of a number",
        )
    import torch

    if word == CPU:
        return torch.device(CPU)
    _require_cuda(word)
    return torch.device("cuda", _index(word, torch.cuda.device_count()))


def _require_cuda(word: str) -> None:
    import torch

    if torch.cuda.is_available():
        return
    if torch.backends.cuda.is_built():
        found = f"torch {torch.__version__} finds no GPU on this machine"
        remedy = "look whether nvidia-smi lists one, with a driver new enough for this torch"
    else:
        found = f"torch {torch.__version__} is built without CUDA"
        remedy = "install a build with CUDA, see https://pytorch.org/get-started/locally"
    raise GncompileError(
        found, where=f"--device {word}", instead=f"{remedy}; or --device cpu, which needs none"
    )


def _index(word: str, count: int) -> int:
    """The number of this process's GPU among the ``count`` that torch sees."""
    launch, (_, _, number) = Launch.now(), word.partition(":")
    processes = launch.local_size if launch else 1
    if processes > 1 and number:
        raise ProcessesError(
            f"{processes} processes would share one GPU",
            where=f"--device {word}",
            instead="give --device cuda: each process takes a GPU of its own",
        )
    index = int(number or (launch.local_rank if launch else 0))
    if index < count:
        return index
    gpus = "one GPU" if count == 1 else f"{count} GPUs"
    if processes > 1:
        raise ProcessesError(
            f"process {index} of the {processes} on this machine has no GPU: torch sees {gpus}",
            where=f"--device {word}",
            instead=f"start one process a GPU, torchrun --nproc-per-node {count}, or give --device cpu",
        )
    raise GncompileError(
        f"there is no GPU of the number {index}: torch sees {gpus}, numbered from 0",
        where=f"--device {word}",
        instead="give another number, or --device cuda for the first",
    )


def resident(trainer: Trainer, x: Any, y: Any) -> tuple[Any, Any]:
    """Training data, on the trainer's device if they take no more than its ``memory_budget``; else as given.

    Of data that stay on the host every batch is copied when its step begins.
    """
    from ..losses.targets import mapped, tensors_of

    given = {id(each): each for each in (*tensors_of(x), *tensors_of(y))}
    fits = sum(each.nbytes for each in given.values()) <= trainer.settings.memory_budget
    if trainer.device.type == CPU or not fits:
        return x, y
    moved = mapped(lambda each: each.to(trainer.device), x)
    return moved, moved if y is x else mapped(lambda each: each.to(trainer.device), y)
