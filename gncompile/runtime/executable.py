"""An executable program: a StepProgram with its memory and a backend, fed one batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ..base.debug import dump
from ..base.tables import binary_size
from ..emit.step_source import StepSource, emit_step
from ..emit.torch_operations import Options
from ..errors import BatchError, CompileError
from ..graph.model_graph import TracedModel
from ..losses.constants import constants_of
from ..losses.vocabulary import Loss
from ..program.buffers import plan_buffers
from ..program.costs import column_bytes, columns_within, samples_within
from ..program.phases import Repeat
from ..program.shards import segmented
from ..program.specs import SAMPLES
from ..program.step_program import StepProgram
from .draws import PhiloxDraws, TorchDraws
from .memory import Memory, require_buffers, require_states
from .parts import ALL, Part
from .processes import Processes
from .reference import ReferenceStep
from .shards import ShardedStep, Step
from .source_files import load_source

Backend = Literal["torch", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS = ("highest", "high", "medium")
BOUND_SHAPES_KEPT = 4
"""Batch sizes whose buffers stay bound; views of the same memory, so keeping a few is cheap."""


Bind = Callable[..., tuple[dict[str, Callable[..., None]], dict[str, Tensor]]]
"""An emitted module's function from memory, N, F, Q, L and S to its phases and values."""


class EmittedStep:
    """Phases and values of an emitted module, bound to a batch size; same interface as ``ReferenceStep``."""

    def __init__(
        self, bind: Bind, program: StepProgram, memory: Memory, dims: Mapping[str, int]
    ) -> None:
        self.program, self.dims = program, dims
        self.column_start = 0
        self.phase_functions, self._values = bind(memory, *(dims[d] for d in (*SAMPLES, "S")))
        self._inputs = {leaf.op.key: leaf.name for leaf in program.leaves("input")}  # type: ignore
        self._targets = [leaf.name for leaf in program.leaves("target")]

    def load(
        self, inputs: tuple[Tensor, ...], target: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Copy the batch, or these rows of it, into the program's own buffers."""

        def copy(name: str, values: Tensor) -> None:
            if rows is None:
                self._values[name].copy_(values)
            else:
                torch.index_select(values, 0, rows, out=self._values[name])

        for position, x in enumerate(inputs):
            if str(position) in self._inputs:
                copy(self._inputs[str(position)], x)
        for name in self._targets if target is not None else []:
            assert target is not None
            copy(name, target)

    def run(self, phase: str) -> None:
        """Execute one phase."""
        start = (self.column_start,) if self.program.goes_by_columns(phase) else ()
        self.phase_functions[phase](*start)

    def value(self, name: str) -> Tensor:
        """The tensor a value lives in."""
        return self._values[name]


class Executable:
    """Runs the phases of a program on batches of any size.

    ``backend`` is ``"torch"`` or ``"triton"`` (emitted source) or ``"reference"`` (interpreted).
    ``memory_budget`` bounds the bytes that a chunk of KFLR's columns uses; ``rows`` gives the dimensions F,
    Q and L for a batch of N; ``precision`` is that of the Triton backend's float32 products; ``variants`` are
    the options of instructions, or settings of launches, that are not computed in the default way. A program
    of many ``processes`` (:mod:`gncompile.program.reductions`) is joined with theirs where a part of a batch
    is loaded; else each works for itself. With ``shards`` a part lies in so many, for results that do not
    depend on the number of processes (:mod:`gncompile.runtime.shards`).
    """

    def __init__(
        self,
        program: StepProgram,
        traced: TracedModel,
        loss: Loss,
        *,
        backend: str = "torch",
        precision: str = "highest",
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        rows: Callable[[int], dict[str, int]] = lambda batch: dict.fromkeys(SAMPLES, batch),
        memory_budget: int = 1 << 30,
        variants: Mapping[str, Options] | None = None,
        processes: Processes | None = None,
        shards: int = 0,
    ) -> None:
        if backend not in BACKENDS:
            raise CompileError(
                f"unknown backend {backend!r}", instead=f"use one of {', '.join(BACKENDS)}"
            )
        if precision not in PRECISIONS:
            raise CompileError(
                f"unknown precision {precision!r}", instead=f"use one of {', '.join(PRECISIONS)}"
            )
        if backend == "triton":
            require_triton(device)
        self.program = program
        self.loss = loss
        self.backend = backend
        self.rows = rows
        self.variants = dict(variants or {})
        self.memory_budget = memory_budget
        self.shards = shards
        self._segmented = segmented(program) if shards else None
        self._run = self._segmented.program if self._segmented else program
        """What is emitted, and run."""
        self._buffers = plan_buffers(program)  # at most: a backend may need fewer
        require_states(program, self._buffers, dtype, device)
        self._own = constants_of(loss, {leaf.op.key for leaf in program.leaves("constant")})  # type: ignore
        tensors = traced.parameters, {**traced.constants, **self._own}
        draws = (PhiloxDraws if backend == "triton" else TorchDraws)(seed, device)
        self.memory = Memory(program, *tensors, dtype, device, draws, precision, processes)
        self._about = f"A training step of {traced.name}.", traced.graph.to_text()
        self.source_file: Path | None = None
        dump("step_program.txt", program.to_text)
        self._bind_emitted = None if backend == "reference" else self._load(traced.name)
        self._trunk = traced.trunk
        self._bound: dict[tuple[tuple[int, ...], ...], Step] = {}
        self._largest = 0
        self._step: Step | None = None

    def rebind(self, traced: TracedModel) -> None:
        """Go on with other tensors of the same names and shapes; captured graphs go with what was bound."""
        self.memory.rebind(traced.parameters, {**traced.constants, **self._own})
        self._trunk = traced.trunk
        self._bound.clear()
        self._step = None

    @cached_property
    def source(self) -> StepSource:
        """The step as it is emitted: what runs, or for the interpreter the torch backend's form of it."""
        memory, triton = self.memory, self.backend == "triton"
        # A guarded step never asks the host, and in float32 the rounding of every operation matters.
        host = not triton and memory.device.type == "cpu" and memory.dtype is torch.float64
        host = host and "report" not in self.program.results
        backend = "triton" if triton else "torch"
        return emit_step(
            self._run, *self._about, backend=backend, variants=self.variants, host=host
        )

    def _load(self, name: str) -> Bind:
        """Import the emitted source, and return its ``bind``."""
        source = self.source
        if self.backend == "torch":
            dump("training_step.py", lambda: source.text)
            module, self.source_file = load_source(source.text, name)
            return cast(Bind, module.bind)
        dump("kernels.py", lambda: source.kernels)
        dump("step.py", lambda: source.text)
        kernels, _ = load_source(source.kernels, f"{name}_kernels")
        module, self.source_file = load_source(source.text, f"{name}_step")
        return lambda memory, *dims: module.bind(memory, kernels, *dims)

    @property
    def processes(self) -> Processes | None:
        """Those that train the model together, if they are several."""
        return self.memory.processes

    @property
    def step(self) -> Step:
        """The step bound to the current batch."""
        assert self._step is not None
        return self._step

    def load(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor | None = None,
        whole: int | None = None,
        rows: Tensor | None = None,
        part: Part = ALL,
    ) -> None:
        """Bind the batch: flat inputs ``[N, size]`` and target rows ``[N, K]``; a frozen trunk runs here.

        ``whole`` is the size of the batch these rows are a part of, for losses summed over the batch;
        ``rows`` is the order they are read in, if not as they are: ``[N]``. ``part`` says which of all
        processes' samples these are, if they are to be one batch.
        """
        batch = inputs[0].shape[0]
        with self.on_device():
            if part is ALL:
                parts, dims = [ALL], [{"N": batch, **self.rows(batch)}]
            else:
                parts = part.shards(self.shards) if self.shards else [part]
                dims = [each.dims for each in parts]
            self._step = self._bind(dims)
            if isinstance(self._step, ShardedStep):
                self._step.take(parts)
            inputs = self._trunk(inputs) if self._trunk else inputs
        self.memory.part = part
        self.memory.batch_size.fill_(whole or part.whole.get("N", batch))
        self._step.load(inputs, target, rows)

    def _bind(self, shards: Sequence[Mapping[str, int]]) -> Step:
        key = tuple(tuple(rows.values()) for rows in shards)
        if key not in self._bound:
            for old in list(self._bound)[: len(self._bound) - BOUND_SHAPES_KEPT + 1]:
                del self._bound[old]
            whole = {name: sum(rows[name] for rows in shards) for name in shards[0]}
            self._require_columns(whole["N"])
            chunk = self.chunk(max(rows["N"] for rows in shards))
            self._require_buffers({**whole, "S": chunk})
            dims = [{**rows, "S": chunk} for rows in shards]
            if self._segmented:
                self._bound[key] = ShardedStep(self._segmented, self.memory, dims, self._step_of)
            else:
                self._bound[key] = self._step_of(self.memory, dims[0])
        return self._bound[key]

    def _step_of(self, memory: Memory, dims: Mapping[str, int], first: Step | None = None) -> Step:
        if self._bind_emitted is None:
            assert first is None or isinstance(first, ReferenceStep)
            return ReferenceStep(self._run, memory, dims, first)
        return EmittedStep(self._bind_emitted, self._run, memory, dims)

    def _require_buffers(self, dims: Mapping[str, int]) -> None:
        """Ask for memory once for every batch larger than those before."""
        if dims["N"] > self._largest:
            memory = self.memory
            held = memory.buffer_bytes
            require_buffers(self.program, self._buffers, dims, held, memory.dtype, memory.device)
            self._largest = dims["N"]

    def _require_columns(self, batch: int) -> None:
        """Refuse a batch whose columns have to be there at once and take more than the memory budget."""
        program, itemsize = self.program, self.memory.dtype.itemsize
        if not program.columns_meet:
            return
        needed = column_bytes(program, batch, itemsize, program.columns)
        if needed > self.memory_budget:
            raise BatchError(
                f"the {program.columns} columns of a batch of {batch} samples meet in a matrix of "
                f"{batch * program.columns:,} rows; that takes {binary_size(needed)}, and memory_budget is "
                f"{binary_size(self.memory_budget)}",
                instead="use smaller batches, a larger memory_budget, or exact_form='primal', whose matrix "
                "has a row for each parameter",
            )

    def chunk(self, batch: int) -> int:
        """How many of KFLR's columns go through the network at once within the memory budget."""
        itemsize = self.memory.dtype.itemsize
        return columns_within(self.program, batch, itemsize, self.memory_budget)

    def samples_within(self, budget: int) -> int:
        """The size of a batch whose work buffers take up ``budget`` bytes."""
        itemsize = self.memory.dtype.itemsize
        return samples_within(self.program, self._buffers, self.rows, itemsize, budget)

    def run(self, *phases: str) -> None:
        """Execute phases in order; one that goes by columns for every chunk of them, one of curvature
        products for each.

        Raises :class:`~gncompile.errors.InternalError` for a phase that the program does not have.
        """
        with self.on_device():
            for phase in phases:
                for start in self._starts(phase):
                    self.step.column_start = start
                    self.step.run(phase)

    def _starts(self, phase: str) -> Iterable[int]:
        """Where the runs of a phase begin: at the first column of each chunk; products by number; or 0."""
        repeat = self.program.record(phase).repeat
        if phase not in self.program.phases:
            return ()  # nothing is left to do in it
        if repeat is Repeat.PRODUCTS:
            return takewhile(lambda _: self._going, range(self.program.products))
        columns = range(0, self.program.columns, self.step.dims["S"])
        return columns if repeat is Repeat.COLUMNS else (0,)

    @property
    def _going(self) -> bool:
        """Whether more products are needed, as far as asking costs no waiting for a device."""
        return self.memory.device.type != "cpu" or float(self.result("going")) > 0

    def on_device(self) -> AbstractContextManager[object]:
        """Triton and graphs use the current CUDA device, which need not be the model's."""
        device = self.memory.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def result(self, role: str) -> Tensor:
        """The tensor of a named result; valid until its phase runs again."""
        return self.step.value(self.program.results[role])


def require_triton(device: torch.device) -> None:
    """Raise :class:`CompileError` unless Triton is installed and can run on ``device``."""
    if find_spec("triton") is None:
        raise CompileError(
            "the backend 'triton' needs Triton, which is not installed",
            instead="pip install 'gncompile[gpu]', or use backend='torch'",
        )
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        raise CompileError(
            f"the backend 'triton' runs on CUDA devices, and the model is on {device}",
            instead="move the model with model.cuda(), or give --device cuda to the command, use "
            "backend='torch', or set TRITON_INTERPRET=1 before starting Python to run the kernels slowly "
            "on the CPU",
        )
