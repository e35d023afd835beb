"""The order in which a step reads the rows of its batch: a random one, where parts stand for the whole.

Factors are computed on the last rows of a batch and the quadratic model's curvature on the first. Read as
given, the parts of a batch that is sorted, joined class by class or alternates would be other samples than
the rest, and of a full batch always the same. Rows at a stride would do for a sorted batch, but fall into
step with one that alternates. No order that a user may give can agree with a random one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..base.settings import Settings
from .batches import Target, part_of, samples_of
from .compiled import Compiled


def reading_order(
    settings: Settings, count: int, number: int, seed: int, device: torch.device
) -> Tensor | None:
    """The rows of a batch of ``count`` in the order in which step ``number`` reads them: ``[N]``.

    None as they are, where no part stands for the whole. The order depends on the step's number and the
    trainer's seed only, so that a training goes on to the bit from wherever it was saved. It costs next to
    nothing: the batch, which is copied into the program's memory anyway, is gathered into it.
    """
    if not settings.second_order or min(settings.rows(count).values()) == count:
        return None
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(mixed(seed, number)))
    if device.type == "cuda":
        rows = rows.pin_memory()  # so that the copy does not wait for the steps that are running
    return rows.to(device, non_blocking=device.type == "cuda")


class Reads(Protocol):
    """What decides how the next step reads its batch."""

    compiled: Compiled

    @property
    def updates(self) -> int:
        """Steps taken so far."""


def as_read(trainer: Reads, x: Tensor, y: Target) -> tuple[Tensor, Target]:
    """A batch with its rows in the order in which the trainer's next step reads them, to compare with."""
    memory, settings = trainer.compiled.executable.memory, trainer.compiled.settings
    rows = reading_order(settings, samples_of(y), trainer.updates, memory.draws.seed, memory.device)
    return (x, y) if rows is None else (x[rows], part_of(y, rows))


def mixed(seed: int, number: int) -> int:
    """A seed of 32 bits, which is what torch's generator takes, far apart for other seeds."""
    return (seed * 0x9E3779B1 + number) % (1 << 32)
