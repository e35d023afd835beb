"""The torch backend's problems on a CPU: one of :mod:`~gncompile.tuning.cpu_operations` at one shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor

from ..emit.torch_operations import Options
from ..program.step_program import StepProgram
from ..runtime.memory import padded_shape
from .cpu_operations import OPERATIONS, Operation
from .device import Device, processor
from .problem import DEFAULT, Candidate, Key

SHORTEST = 2e-3
"""Seconds that one measurement takes at least, by repetition: the first execution after another candidate's
finds the caches cold."""


@dataclass
class CpuProblem:
    """One operation at one shape, measured on random operands of its own."""

    key: Key
    uses: int
    operation: Operation
    clock: Callable[[], float] = time.perf_counter
    _scratch: Scratch | None = field(default=None, init=False)

    @cached_property
    def candidates(self) -> Sequence[Candidate]:
        """The default first, then the alternatives in the order of their declaration."""
        shape = self.key.shape
        return [
            Candidate(options, self.operation.predicted(shape, options))
            for options in self.operation.options(shape)
        ]

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Nothing is compiled here."""

    def check(self, candidate: Candidate) -> str | None:
        """Compare with the float64 reference: relative error in the Frobenius norm."""
        scratch = self._operands()
        scratch.out.fill_(float("nan"))
        self.operation.run(scratch.operands, scratch.out, candidate.options)
        error = float((scratch.out - scratch.reference).norm() / scratch.reference.norm())
        epsilon = torch.finfo(scratch.out.dtype).eps
        allowed = self.operation.tolerance(self.key.shape, epsilon)
        # Not `error > allowed`, which a NaN would pass.
        if not error <= allowed:
            return f"relative error {error:.2g}, allowed {allowed:.2g}"
        return None

    def measure(self, candidate: Candidate) -> float:
        """Seconds of the quickest of as many executions as take :data:`SHORTEST` together."""
        scratch = self._operands()
        times: list[float] = []
        while sum(times) < SHORTEST:
            start = self.clock()
            self.operation.run(scratch.operands, scratch.out, candidate.options)
            times.append(self.clock() - start)
        return min(times)

    def release(self) -> None:
        """Forget the operands."""
        self._scratch = None

    def _operands(self) -> Scratch:
        if self._scratch is None:
            generator = torch.Generator().manual_seed(0)
            dtype = getattr(torch, self.key.dtype)

            def make(rows: int, columns: int) -> Tensor:
                # Rows as far apart as those of a step's own buffers, which matters to products.
                tensor = torch.zeros(padded_shape((rows, columns)), dtype=dtype)[:, :columns]
                return tensor.normal_(generator=generator)

            operands = self.operation.operands(self.key.shape, make)
            exact = tuple(t.double() for t in operands)
            reference = self.operation.reference(exact, self.key.shape)
            self._scratch = Scratch(operands, make(*reference.shape), reference)
        return self._scratch


@dataclass(frozen=True)
class Scratch:
    """Operands, the tensor written, and what it should hold."""

    operands: tuple[Tensor, ...]
    out: Tensor
    reference: Tensor


def keys(program: StepProgram, dims: Mapping[str, int], dtype: torch.dtype) -> dict[str, Key]:
    """The key of every instruction that can be computed in more than one way."""
    found = {}
    precision = torch.get_float32_matmul_precision()
    name = str(dtype).removeprefix("torch.")

    @cache
    def key_of(operation: Operation, shape: tuple[int, ...]) -> Key | None:
        if len(operation.options(shape)) < 2:
            return None
        return Key(operation.name, operation.source, shape, name, precision)

    for i in program:
        for operation in OPERATIONS.values():
            shape = operation.shape_of(i, program, dims)
            if shape is not None and (key := key_of(operation, shape)):
                found[i.name] = key
    return found


@dataclass(frozen=True)
class CpuBench:
    """The torch backend on a CPU, see :class:`~gncompile.tuning.problem.Bench`."""

    keys: Mapping[str, Key]

    @property
    def device(self) -> Device:
        return processor()

    def problems(self, wanted: Mapping[str, Key]) -> list[CpuProblem]:
        uses = list(wanted.values())
        return [CpuProblem(k, uses.count(k), OPERATIONS[k.kernel]) for k in dict.fromkeys(uses)]

    def allowed(self, kernel: str, options: Options) -> bool:
        operation = OPERATIONS.get(kernel)
        return operation is not None and options in (DEFAULT, *operation.alternatives)
