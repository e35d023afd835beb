"""CUDA graphs: a sequence of phases run once as it is, captured the second time, replayed from then on."""

from __future__ import annotations

from itertools import groupby
from weakref import WeakKeyDictionary

import torch

from .executable import Executable

Plan = tuple[str, ...]

UNCAPTURED = frozenset({"invert"})
"""Phases launched one by one between graphs: cuSOLVER's factorisations are not captured."""


class Graphs:
    """Runs sequences of phases of one executable; on CUDA devices by replaying what was captured.

    The first run of a sequence compiles its kernels and allocates what they need, so that the second can be
    captured. A graph belongs to the buffers of one batch size and goes with them.
    """

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self._known: WeakKeyDictionary[object, dict[Plan, torch.cuda.CUDAGraph | None]] = (
            WeakKeyDictionary()
        )

    def run(self, plan: Plan) -> None:
        """Run the phases in order on the loaded batch."""
        if self._executable.memory.device.type != "cuda":
            self._executable.run(*plan)
            return
        for uncaptured, part in groupby(plan, UNCAPTURED.__contains__):
            if uncaptured:
                self._executable.run(*part)
            else:
                self._run_captured(tuple(part))

    def _run_captured(self, plan: Plan) -> None:
        known = self._known.setdefault(self._executable.step, {})
        if plan not in known:
            known[plan] = None
            self._executable.run(*plan)
            return
        graph = known[plan]
        if graph is None:
            graph = known[plan] = self._capture(plan)
        graph.replay()

    def _capture(self, plan: Plan) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Draws go on from replay to replay instead of repeating those of the capture.
        graph.register_generator_state(self._executable.memory.generator)
        with torch.cuda.graph(graph):
            self._executable.run(*plan)
        return graph
