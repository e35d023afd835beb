"""An executable program: a StepProgram with its memory and a backend, fed one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..costs import columns_within
from ..debug import dump
from ..emit.reference import ReferenceStep
from ..emit.torch_source import emit_torch
from ..errors import CompileError, message
from ..losses import Loss
from ..model_graph import TracedModel
from ..step_program import StepProgram
from .memory import Memory
from .source_files import load_source

BACKENDS = ("torch", "reference")
BOUND_SHAPES_KEPT = 4
"""Batch sizes whose buffers stay bound; views of the same memory, so keeping a few is cheap."""


class EmittedStep:
    """A bound instance of an emitted torch module; same interface as ``ReferenceStep``."""

    def __init__(
        self, module: ModuleType, program: StepProgram, memory: Memory, dims: Mapping[str, int]
    ) -> None:
        self.program = program
        self.column_start = 0
        self._phases, self._values = module.bind(memory, *(dims[d] for d in "NFQS"))
        self._inputs = {leaf.op.key: leaf.name for leaf in program.leaves("input")}  # type: ignore
        self._targets = [leaf.name for leaf in program.leaves("target")]

    def load(self, inputs: tuple[Tensor, ...], target: Tensor | None) -> None:
        """Copy the batch into the program's own buffers."""
        for position, x in enumerate(inputs):
            if str(position) in self._inputs:
                self._values[self._inputs[str(position)]].copy_(x)
        for name in self._targets if target is not None else []:
            self._values[name].copy_(target)

    def run(self, phase: str) -> None:
        """Execute one phase."""
        if phase == "columns":
            self._phases[phase](self.column_start)
        else:
            self._phases[phase]()

    def value(self, name: str) -> Tensor:
        """The tensor a value lives in."""
        return self._values[name]


class Executable:
    """Runs the phases of a program on batches of any size.

    ``backend`` is ``"torch"`` (emitted source) or ``"reference"`` (interpreted). ``memory_budget`` bounds
    the bytes that a chunk of KFLR's columns uses; ``rows`` gives the dimensions F and Q for a batch of N.
    """

    def __init__(
        self,
        program: StepProgram,
        traced: TracedModel,
        loss: Loss,
        *,
        backend: str = "torch",
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        rows: Callable[[int], dict[str, int]] = lambda batch: {"F": batch, "Q": batch},
        memory_budget: int = 1 << 30,
    ) -> None:
        if backend not in BACKENDS:
            raise CompileError(
                message(f"unknown backend {backend!r}", instead=f"use one of {', '.join(BACKENDS)}")
            )
        self.program = program
        self.loss = loss
        self.backend = backend
        self.rows = rows
        self.memory_budget = memory_budget
        self.memory = Memory(program, traced.parameters, traced.constants, dtype, device, seed)
        self.source_file: Path | None = None
        dump("step_program.txt", program.to_text())
        self._module = None
        if backend == "torch":
            text = emit_torch(program, f"A training step of {traced.name}.", traced.graph.to_text())
            dump("training_step.py", text)
            self._module, self.source_file = load_source(text, traced.name)
        self._bound: dict[tuple[int, ...], ReferenceStep | EmittedStep] = {}
        self._step: ReferenceStep | EmittedStep | None = None
        self._chunk = 1

    @property
    def step(self) -> ReferenceStep | EmittedStep:
        """The step bound to the current batch."""
        assert self._step is not None
        return self._step

    def load(
        self, inputs: tuple[Tensor, ...], target: Tensor | None = None, whole: int | None = None
    ) -> None:
        """Bind the batch: flat inputs ``[N, size]`` and target rows ``[N, K]``.

        ``whole`` is the size of the batch these rows are a part of, for losses summed over the batch.
        """
        batch = inputs[0].shape[0]
        self._step = self._bind(batch)
        self._chunk = self.chunk(batch)
        self.memory.batch_size.fill_(whole or batch)
        self._step.load(inputs, target)

    def _bind(self, batch: int) -> ReferenceStep | EmittedStep:
        dims = {"N": batch, **self.rows(batch), "S": self.chunk(batch)}
        key = tuple(dims.values())
        if key not in self._bound:
            for old in list(self._bound)[: len(self._bound) - BOUND_SHAPES_KEPT + 1]:
                del self._bound[old]
            if self._module is None:
                self._bound[key] = ReferenceStep(self.program, self.memory, dims)
            else:
                self._bound[key] = EmittedStep(self._module, self.program, self.memory, dims)
        return self._bound[key]

    def chunk(self, batch: int) -> int:
        """How many of KFLR's columns go through the network at once within the memory budget."""
        itemsize = self.memory.dtype.itemsize
        return columns_within(self.program, batch, itemsize, self.memory_budget)

    def run(self, *phases: str) -> None:
        """Execute phases in order; phases that the program does not have are skipped."""
        for phase in phases:
            if phase not in self.program.phases:
                continue
            if phase == "columns":
                for start in range(0, self.program.columns, self._chunk):
                    self.step.column_start = start
                    self.step.run(phase)
            else:
                self.step.run(phase)

    def result(self, role: str) -> Tensor:
        """The tensor of a named result; valid until its phase runs again."""
        return self.step.value(self.program.results[role])
