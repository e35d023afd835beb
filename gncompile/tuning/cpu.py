"""The torch backend's problems on a CPU: operations that can be written in more than one way.

==================  ==========================================================================
symmetric_product   ``aᵀ b``, known to be symmetric: one plain product, or blocks of a width
second_moment       ``(1/N) Σ ā āᵀ``: the same choice
damped_inverse      ``(M + c I)⁻¹`` by Cholesky: M bordered to an even size, or as it is
affine              ``x Wᵀ + b``: b within the product, or added after it
==================  ==========================================================================

Every variant is the same mathematics in another order of rounding. Which of them is fastest depends on the
library that torch was built with, on the processor and on the shape, so it is measured.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .. import step_program as ir
from ..emit.torch_operations import Options
from ..runtime import linalg
from ..runtime.memory import ALIGNMENT, bind_shape, padded_shape
from ..step_program import Instruction, StepProgram
from .device import Device, processor
from .problem import DEFAULT, Candidate, Key

FLOPS, BANDWIDTH, CALL = 3e10, 1e10, 3e-6
"""The cost model: flops and bytes per second of one core, seconds per call. Only the ranking matters."""

SHORTEST = 2e-3
"""Seconds that one measurement takes at least, by repetition: the first execution after another candidate's
finds the caches cold."""

TOLERANCE = 16.0
"""Allowed relative error, in units of ``ε √k`` for sums of k terms.

Sums of k rounded terms err by about ε √k relative to their root mean square; the inverse multiplies that by
the condition number of its operand here, which is below 16.
"""


Shape = tuple[int, ...] | None
Maker = Callable[[int, int], Tensor]
"""Makes a random scratch tensor of so many rows and columns."""


class Operation(ABC):
    """One kind of operation: its options, its scratch operands, and what it must give."""

    name: str
    alternatives: tuple[Options, ...]
    """Options beside the default."""
    sources: tuple[Callable[..., None], ...]
    """The functions that are measured."""

    @abstractmethod
    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        """The sizes that decide an instruction's time; None if it is not of this kind."""

    @abstractmethod
    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        """Scratch operands like those in a step."""

    @abstractmethod
    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The result's shape."""

    @abstractmethod
    def reference(self, operands: tuple[Tensor, ...]) -> Tensor:
        """The result from operands in float64, by torch's plain operations."""

    @abstractmethod
    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        """What the emitted statement does."""

    @abstractmethod
    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        """Seconds by the cost model."""

    def options(self, shape: tuple[int, ...]) -> list[Options]:
        """The default, then the alternatives that differ from it and from each other at this shape."""
        distinct = {self.effect(shape, options): options for options in self.alternatives[::-1]}
        distinct.pop(self.effect(shape, DEFAULT), None)
        return [DEFAULT, *(o for o in self.alternatives if o in distinct.values())]

    @abstractmethod
    def effect(self, shape: tuple[int, ...], options: Options) -> object:
        """What the options come to at this shape; equal for options that do the same."""

    @cached_property
    def source(self) -> str:
        """Digest of the measured code and of the options on offer."""
        measured: list[Callable[..., object]] = [*self.sources, type(self)]
        text = "\n".join(inspect.getsource(code) for code in measured)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


WIDTHS: tuple[Options, ...] = tuple({"block": width} for width in (None, 128, 256, 384, 512))


def _blocks(size: int, options: Options) -> int:
    """How many diagonal blocks a symmetric product of this size has."""
    width = options.get("block", linalg.BLOCK)
    return 1 if width is None else -(-size // int(width))


def _product_seconds(inner: int, size: int, blocks: int) -> float:
    """Rows of blocks up to the diagonal, ``(1 + 1/blocks)/2`` of the flops, then mirrored."""
    flops = inner * size**2 * (1 + 1 / blocks)
    mirrored = 4 * size**2 * (1 - 1 / blocks)
    return flops / FLOPS + 2 * mirrored / BANDWIDTH + CALL * (3 * blocks - 2)


class SymmetricProduct(Operation):
    """``aᵀ b`` for ``b = M a``; shape ``(k, d)`` for ``a: [k, d]``."""

    name = "symmetric_product"
    alternatives = WIDTHS
    sources = (linalg.symmetric_product,)

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.SymmetricProduct):
            return None
        return bind_shape(program[i.inputs[0]].spec.shape, dims)

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        rows, size = shape
        a, b = make(rows, size), make(rows, size)
        # M is diagonal here: the time of the product does not depend on it.
        torch.mul(a, make(rows, 1), out=b)
        return a, b

    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[1], shape[1]

    def reference(self, operands: tuple[Tensor, ...]) -> Tensor:
        a, b = operands
        return a.T @ b

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        a, b = operands
        linalg.symmetric_product(a, b, out, **options)  # type: ignore[arg-type]

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        return _product_seconds(shape[0], shape[1], _blocks(shape[1], options))

    def effect(self, shape: tuple[int, ...], options: Options) -> object:
        return _blocks(shape[1], options)


class SecondMoment(Operation):
    """``(1/N) Σ ā āᵀ``; shape ``(rows, d, homogeneous)``, rows of all columns together."""

    name = "second_moment"
    alternatives = WIDTHS
    sources = (linalg.second_moment, linalg.symmetric_product)

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.Moment) or len(i.inputs) > 1:
            return None
        *rows, size = bind_shape(program[i.inputs[0]].spec.shape, dims)
        return math.prod(rows), size, int(i.op.homogeneous)

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        return (make(shape[0], shape[1]),)

    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return (sum(shape[1:]),) * 2

    def reference(self, operands: tuple[Tensor, ...]) -> Tensor:
        (a,) = operands
        extended = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
        return extended.T @ extended / len(a)

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        (a,) = operands
        linalg.second_moment(a, out.shape[0] > a.shape[1], out, **options)  # type: ignore[arg-type]

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        return _product_seconds(shape[0], shape[1], _blocks(shape[1], options))

    def effect(self, shape: tuple[int, ...], options: Options) -> object:
        return _blocks(shape[1], options)


class DampedInverse(Operation):
    """``(M + c I)⁻¹``; shape ``(d,)``."""

    name = "damped_inverse"
    alternatives = ({"border": 1},)
    sources = (linalg.damped_inverse,)

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.DampedInverse) or len(i.spec.shape) < 2:
            return None
        return bind_shape(i.spec.shape[:1], dims)

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        (size,) = shape
        samples, m = make(2 * size, size), make(size, size)
        torch.mm(samples.T, samples, out=m)
        # Eigenvalues between (1 − √½)² + 0.1 and (1 + √½)² + 0.1: a condition number below 16.
        return m.div_(2 * size), torch.tensor(0.1, dtype=m.dtype)

    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], shape[0]

    def reference(self, operands: tuple[Tensor, ...]) -> Tensor:
        m, damping = operands
        return torch.linalg.inv(m + damping * torch.eye(len(m), dtype=m.dtype))

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        m, damping = operands
        linalg.damped_inverse(m, damping, out, **options)  # type: ignore[arg-type]

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        size = int(self.effect(shape, options))
        return size**3 / FLOPS + 4 * CALL

    def effect(self, shape: tuple[int, ...], options: Options) -> int:
        border = int(options.get("border") or ALIGNMENT)
        return -(-shape[0] // border) * border


class Affine(Operation):
    """``x Wᵀ + b``; shape ``(rows, inputs, outputs)``."""

    name = "affine"
    alternatives = ({"bias": "after"},)
    sources = ()

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        shapes = [program[name].spec.shape for name in i.inputs]
        if not isinstance(i.op, ir.Affine) or len(shapes) != 3 or len(shapes[0]) > 2:
            return None
        return *bind_shape(shapes[0], dims), int(shapes[1][0])

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        rows, inputs, outputs = shape
        return make(rows, inputs), make(outputs, inputs), make(1, outputs)[0]

    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], shape[2]

    def reference(self, operands: tuple[Tensor, ...]) -> Tensor:
        x, weight, bias = operands
        return x @ weight.T + bias

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        x, weight, bias = operands
        if options.get("bias") == "after":
            torch.mm(x, weight.T, out=out)
            out.add_(bias)
        else:
            torch.addmm(bias, x, weight.T, out=out)

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        rows, inputs, outputs = shape
        # The bias is written first and read by the product, or the result is read and written again.
        passes = 2 if options else 1
        return (
            2 * rows * inputs * outputs / FLOPS
            + 4 * passes * rows * outputs / BANDWIDTH
            + passes * CALL
        )

    def effect(self, shape: tuple[int, ...], options: Options) -> object:
        return options.get("bias")


OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation
    for operation in (SymmetricProduct(), SecondMoment(), DampedInverse(), Affine())
}


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

    def check(self, candidate: Candidate) -> str | None:
        """Compare with the float64 reference: relative error in the Frobenius norm."""
        scratch = self._operands()
        scratch.out.fill_(float("nan"))
        self.operation.run(scratch.operands, scratch.out, candidate.options)
        error = float((scratch.out - scratch.reference).norm() / scratch.reference.norm())
        terms = max(*self.key.shape, 1)
        allowed = TOLERANCE * torch.finfo(scratch.out.dtype).eps * math.sqrt(terms)
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
            reference = self.operation.reference(tuple(t.double() for t in operands))
            out = make(*self.operation.output(self.key.shape))
            self._scratch = Scratch(operands, out, reference[: len(out), : out.shape[1]])
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
    for i in program:
        for operation in OPERATIONS.values():
            shape = operation.shape_of(i, program, dims)
            if shape is not None and len(operation.options(shape)) > 1:
                name = str(dtype).removeprefix("torch.")
                found[i.name] = Key(operation.name, operation.source, shape, name, precision)
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
