"""Steps that run ahead of the host: it only starts them, by number, and reads statistics when asked.

The program refuses bad steps by itself (``guards.py``), so nothing of a step waits for a number; on a CUDA
device every sequence of phases is a captured graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..base.settings import Settings
from ..derivation.guards import reported
from ..errors import BatchError
from ..program.phases import plan
from ..program.timetable import Due, due
from ..runtime.executable import Executable
from ..runtime.graphs import Graphs, Plan
from .records import StepStats

KEPT = 4096
"""Steps whose statistics can still be read."""
COUNTS = ("rejected", "products")
"""What of these is a whole number."""


class AheadOfHost:
    """Runs the steps of a guarded program."""

    def __init__(
        self,
        executable: Executable,
        settings: Settings,
        before: Callable[[Plan], None] = lambda phases: None,
    ) -> None:
        self._before = before  # told of the phases of a step before they run
        self._executable = executable
        self._settings = settings
        self._graphs = Graphs(executable)
        self.keep_parameters()
        memory = executable.memory
        width = len(reported(settings))
        self._rows = torch.zeros(KEPT, width, dtype=memory.dtype, device=memory.device)
        self._written = 0

    def keep_parameters(self) -> None:
        """Take the parameters as they are for the last good ones, before the first step or after a load."""
        memory = self._executable.memory
        for leaf in self._executable.program.leaves("parameter"):
            saved = memory.states.get(f"last_good.{leaf.name}")
            if saved is not None:
                key, shape = leaf.op.key, tuple(saved.shape)  # type: ignore[union-attr]
                saved.copy_(memory.parameter(key, shape))

    def step(self, updates: int, since_refresh: int, drops: bool) -> tuple[DeferredStats, Due]:
        """One step on the loaded batch; returns its statistics, to be read later, and what was due."""
        now = replace(due(self._settings, updates, since_refresh), dropout=drops)
        phases = plan(self._executable.program.step, now)
        self._before(phases)
        self._graphs.run(phases)
        row = self._written % KEPT
        self._rows[row].copy_(self._executable.result("report"))
        self._written += 1
        return DeferredStats(self, self._written, updates + 1, now), now

    def read(self, number: int) -> dict[str, Any]:
        """The report of the ``number``-th step, on the host, by name."""
        if self._written - number >= KEPT:
            raise BatchError(
                f"the statistics of step {number} are gone, {self._written - number} steps later",
                instead=f"read them within {KEPT} steps",
            )
        row = self._rows[(number - 1) % KEPT].tolist()
        numbers = dict(zip(reported(self._settings), row, strict=True))
        return numbers | {name: int(numbers[name]) for name in COUNTS if name in numbers}

    def momentum_is_chosen(self) -> bool:
        """Whether steps have a momentum."""
        return self._settings.momentum


class DeferredStats:
    """The :class:`~gncompile.training.records.StepStats` of a step that may still be running.

    Its fields are those of StepStats; the first that is read waits for the step.
    """

    def __init__(self, steps: AheadOfHost, number: int, update: int, now: Due) -> None:
        self._steps = steps
        self._number = number
        self._now = now
        self.update = update
        self._resolved: StepStats | None = None

    def resolved(self) -> StepStats:
        """The statistics themselves; waits for the step."""
        if self._resolved is None:
            numbers = self._steps.read(self._number)
            if not (numbers.pop("measured") and self._now.damping):
                numbers["rho"] = None
            if not self._now.noise:
                numbers["noise"] = None
            if not self._steps.momentum_is_chosen():
                numbers["momentum"] = None
            self._resolved = StepStats(self.update, **numbers)
        return self._resolved

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.resolved(), name)

    def __repr__(self) -> str:
        return repr(self.resolved())
