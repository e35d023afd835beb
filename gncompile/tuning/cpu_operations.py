"""Operations of the torch backend that can be written in more than one way on a CPU.

==================  ==========================================================================
symmetric_product   ``aᵀ b``, known to be symmetric: one plain product, or blocks of a width
second_moment       ``(1/N) Σ ā āᵀ``: the same choice
damped_inverse      ``(M + c I)⁻¹`` by Cholesky: M bordered to a size that suits LAPACK, or as it is
affine              ``x Wᵀ + b``: b within the product, or added after it
slope_tanh, …       ``u ⊙ f'``: the slope computed within the product, or kept in memory
==================  ==========================================================================

Every variant is the same mathematics in another order of rounding. Which of them is fastest depends on the
library that torch was built with, on the processor and on the shape, so it is measured.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..emit.torch_operations import Options
from ..emit.torch_slopes import PRODUCTS
from ..emit.torch_statements import torch_statements
from ..program import operations as ir
from ..program.recompute import KEPT, SLOPES, U, X, products, slope_of
from ..program.step_program import Instruction, StepProgram
from ..runtime import linalg
from ..runtime.linalg import BORDER, bordered
from ..runtime.memory import bind_shape
from ..runtime.source_files import function_of
from .problem import DEFAULT

FLOPS, BANDWIDTH, CALL = 3e10, 1e10, 3e-6
"""The cost model: flops and bytes per second of one core, seconds per call. Only the ranking matters."""

Shape = tuple[int, ...] | None
Maker = Callable[[int, int], Tensor]
"""Makes a random scratch tensor of so many rows and columns."""


class Operation(ABC):
    """One kind of operation: its options, its scratch operands, and what it must give."""

    name: str
    alternatives: tuple[Options, ...]
    """Options beside the default."""
    sources: tuple[Callable[..., object], ...]
    """The functions that are measured."""

    @abstractmethod
    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        """The sizes that decide an instruction's time; None if it is not of this kind."""

    @abstractmethod
    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        """Scratch operands like those in a step."""

    @abstractmethod
    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        """The result from operands in float64, by torch's plain operations."""

    def tolerance(self, shape: tuple[int, ...], epsilon: float) -> float:
        """Allowed error, relative in the Frobenius norm: sums of k rounded terms err by about ``ε √k``."""
        return 16 * epsilon * math.sqrt(max(*shape, 1))

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
        return hashlib.sha256("\n".join(self.measured_code()).encode()).hexdigest()[:12]

    def measured_code(self) -> list[str]:
        """Texts of everything whose change makes a measurement void."""
        measured: list[Callable[..., object]] = [*self.sources, type(self)]
        return [inspect.getsource(code) for code in measured]


WIDTHS: tuple[Options, ...] = tuple({"block": width} for width in (None, 128, 256, 384, 512))


class BlockedProduct(Operation):
    """A product that is symmetric: one plain product, or rows of blocks up to the diagonal, then mirrored."""

    alternatives = WIDTHS

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        """With ``(1 + 1/blocks)/2`` of the flops."""
        inner, size, blocks = shape[0], shape[1], self.effect(shape, options)
        flops = inner * size**2 * (1 + 1 / blocks)
        mirrored = 4 * size**2 * (1 - 1 / blocks)
        return flops / FLOPS + 2 * mirrored / BANDWIDTH + CALL * (3 * blocks - 2)

    def effect(self, shape: tuple[int, ...], options: Options) -> int:
        """How many diagonal blocks there are."""
        return linalg.block_count(shape[0], shape[1], options.get("block", "auto"))


class SymmetricProduct(BlockedProduct):
    """``aᵀ b`` for ``b = M a``; shape ``(k, d)`` for ``a: [k, d]``."""

    name = "symmetric_product"
    sources = (linalg.symmetric_product, linalg.block_count)

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

    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        a, b = operands
        return a.T @ b

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        a, b = operands
        linalg.symmetric_product(a, b, out, **options)  # type: ignore[arg-type]


class SecondMoment(BlockedProduct):
    """``(1/N) Σ ā āᵀ``; shape ``(rows, d, homogeneous)``, rows of all columns together."""

    name = "second_moment"
    sources = (linalg.second_moment, linalg.symmetric_product, linalg.block_count)

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.Moment) or len(i.inputs) > 1:
            return None
        *rows, size = bind_shape(program[i.inputs[0]].spec.shape, dims)
        return math.prod(rows), size, int(i.op.homogeneous)

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        return (make(shape[0], shape[1]),)

    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        (a,) = operands
        extended = torch.cat([a, a.new_ones(len(a), shape[2])], dim=1)
        return extended.T @ extended / len(a)

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        (a,) = operands
        linalg.second_moment(a, out.shape[0] > a.shape[1], out, **options)  # type: ignore[arg-type]


class DampedInverse(Operation):
    """``(M + c I)⁻¹``; shape ``(d,)``."""

    name = "damped_inverse"
    alternatives = ({"border": 1},)
    sources = (linalg.damped_inverse,)
    condition = 1e4
    """Of the scratch operand, as in a step: a method that loses digits where Cholesky does not is seen."""

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.DampedInverse) or len(i.spec.shape) < 2:
            return None
        return bind_shape(i.spec.shape[:1], dims)

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        (size,) = shape
        # Half as many samples as features: eigenvalues 0, and up to (1 + √2)².
        half = max(1, size // 2)
        samples, m = make(half, size), make(size, size)
        torch.mm(samples.T, samples, out=m)
        largest = (1 + math.sqrt(2)) ** 2
        return m.div_(half), torch.tensor(largest / self.condition, dtype=m.dtype)

    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        m, damping = operands
        return torch.linalg.inv(m + damping * torch.eye(len(m), dtype=m.dtype))

    def tolerance(self, shape: tuple[int, ...], epsilon: float) -> float:
        """Cholesky errs by about ``ε κ / 4``."""
        return 2 * epsilon * self.condition

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        m, damping = operands
        linalg.damped_inverse(m, damping, out, **options)  # type: ignore[arg-type]

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        size = int(self.effect(shape, options))
        return size**3 / FLOPS + 4 * CALL

    def effect(self, shape: tuple[int, ...], options: Options) -> int:
        return bordered(shape[0], int(options.get("border") or BORDER))


class Affine(Operation):
    """``x Wᵀ + b``; shape ``(rows, inputs, outputs)``."""

    name = "affine"
    alternatives = ({"bias": "after"},)
    sources = ()

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if not isinstance(i.op, ir.Affine) or len(i.inputs) != 3:
            return None
        shapes = [program[name].spec.shape for name in i.inputs]
        if len(shapes[0]) > 2:
            return None
        return *bind_shape(shapes[0], dims), int(shapes[1][0])

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        rows, inputs, outputs = shape
        return make(rows, inputs), make(outputs, inputs), make(1, outputs)[0]

    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
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


class SlopeProduct(Operation):
    """``u ⊙ f'(x)``, for one f' and one u or more; shape ``(rows, size, products)``."""

    alternatives = (KEPT,)
    sources = ()

    def __init__(self, function: str) -> None:
        self.function = function
        self.name = f"slope_{function}"

    def shape_of(self, i: Instruction, program: StepProgram, dims: Mapping[str, int]) -> Shape:
        if slope_of(i) != self.function:
            return None
        readers = products(program, i)
        return (*bind_shape(i.spec.shape, dims), len(readers)) if readers else None

    def operands(self, shape: tuple[int, ...], make: Maker) -> tuple[Tensor, ...]:
        rows, size, readers = shape
        # A buffer for the slope, the activation, and what is multiplied.
        return tuple(make(rows, size) for _ in range(2 + readers))

    def reference(self, operands: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        _, x, *multiplied = operands
        slopes = {"tanh": 1 - x**2, "sigmoid": x * (1 - x), "relu": (x > 0).double()}
        return multiplied[-1] * slopes[self.function]

    def run(self, operands: tuple[Tensor, ...], out: Tensor, options: Options) -> None:
        slope, x, *multiplied = operands
        if options == KEPT:
            self._alone(slope, x, x, out)
            for u in multiplied:
                torch.mul(u, slope, out=out)
            return
        for u in multiplied:
            self._fused(slope, x, u, out)

    def predicted(self, shape: tuple[int, ...], options: Options) -> float:
        rows, size, readers = shape
        passes = readers + len(self._slope) if options == KEPT else readers
        return passes * (3 * 4 * rows * size / BANDWIDTH + CALL)

    def effect(self, shape: tuple[int, ...], options: Options) -> object:
        return options == KEPT

    def measured_code(self) -> list[str]:
        return [*super().measured_code(), *self._slope, self._product]

    @cached_property
    def _slope(self) -> list[str]:
        """The statements that compute the slope of x."""
        return torch_statements(SLOPES[self.function], {X: "x"}, "slope", lambda number: "out")

    @cached_property
    def _product(self) -> str:
        """The statement of a product that computes the slope itself."""
        product = PRODUCTS[ir.Pointwise(U * SLOPES[self.function], (U, X))]
        return product.format("u", "x", out="out")

    @cached_property
    def _alone(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
        return _function(self._slope)

    @cached_property
    def _fused(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
        return _function([self._product])


def _function(statements: Sequence[str]) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """Statements in ``slope``, ``x``, ``u`` and ``out``, as they stand in an emitted file."""
    return function_of(statements, ("slope", "x", "u", "out"), "import torch")


OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation
    for operation in (
        SymmetricProduct(),
        SecondMoment(),
        DampedInverse(),
        Affine(),
        *(SlopeProduct(function) for function in SLOPES),
    )
}
