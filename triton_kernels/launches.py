"""The host's side of a template: tensors become kernel arguments, and launches are kept to be repeated.

A template builds a list of :class:`Launch` from tensors. Calling the template runs them once; a caller that
repeats the same step on the same tensors keeps ``template.launches(...)`` and runs that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, Protocol

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got

from .joining import joined
from .language import tl
from .random import Draw
from .settings import MatrixSettings, Precision, accumulator, input_precision
from .tiles import Matrix, Operand

P = ParamSpec("P")

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Launch:
    """One kernel with its grid and arguments.

    The tensors among them stay alive as long as the launch, and so does ``owner``: whatever holds tensors
    that the kernel finds through a table of addresses.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int
    owner: object = None

    def run(self) -> Any:
        """Start the kernel on the current stream; Triton's handle of what it compiled."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return self.kernel[self.grid](**self.arguments, **options)


class Runs(Protocol):
    """A launch, or a call of a library in its place."""

    def run(self) -> Any:
        """Start it on the current stream."""


def run(launches: Sequence[Runs]) -> None:
    """Start kernels one after the other on the current stream."""
    for each in launches:
        each.run()


class Template(Generic[P]):
    """A function that builds launches, made callable: calling it builds and runs them."""

    def __init__(self, build: Callable[P, list[Launch]]) -> None:
        functools.update_wrapper(self, build)
        self.launches = build

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        run(self.launches(*args, **kwargs))


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    settings: MatrixSettings,
    owner: object = None,
    **arguments: Any,
) -> Launch:
    """A launch with the warps and stages of ``settings``."""
    return Launch(kernel, grid, arguments, settings.num_warps, settings.num_stages, owner)


# --- tensors ------------------------------------------------------------------------------------------


Input = Tensor | Draw
"""What a generated function reads: a tensor in device memory, or random numbers that no memory holds."""


def in_memory(inputs: Sequence[Input]) -> list[Tensor]:
    """The inputs without draws."""
    return [each for each in inputs if isinstance(each, Tensor)]


def rows_of(tensor: Tensor) -> Tensor:
    """``[.., d]`` as rows ``[M, d]`` of the same memory; torch raises where no strides reach them."""
    return tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 2 else tensor


def as_matrices(
    tensors: Sequence[Input], shape: Sequence[int], kept: slice = slice(0, 0)
) -> list[Input]:
    """The tensors, broadcast to ``shape``, with their dimensions joined to two, or three, of a batch.

    The dimensions ``kept`` of the shape are never joined with others. Shapes of up to two dimensions stay as
    they are.
    """
    if len(shape) <= 2:
        return list(tensors)
    own = range(len(shape))[kept]
    free = [d for d in range(len(shape)) if d not in own]
    steps = [_strides(tensor, shape) for tensor in tensors]
    sizes, found = joined(
        [shape[d] for d in free], [[s[d] for d in free] for s in steps], 2 - len(own)
    )
    front = not own or own[0] > 0  # whether what is joined stands before what is kept
    every = []
    for tensor, stride, short in zip(tensors, steps, found, strict=True):
        there = [shape[d] for d in own], [stride[d] for d in own]
        here = sizes, short
        (m, a), (n, b) = (here, there) if front else (there, here)
        every.append(_seen(tensor, [*m, *n], [*a, *b]))
    return every


def _strides(tensor: Input, shape: Sequence[int]) -> Sequence[int]:
    """The strides of a tensor broadcast to a shape, 0 along what is not its own; of a draw its places."""
    if isinstance(tensor, Draw):
        require_draw(tensor, shape)
        return torch.empty(tuple(shape), device="meta").stride()
    return tensor.expand(tuple(shape)).stride()


def _seen(tensor: Input, sizes: Sequence[int], strides: Sequence[int]) -> Input:
    if isinstance(tensor, Draw):
        return replace(tensor, shape=tuple(sizes))
    return tensor.as_strided(sizes, strides)


def require_draw(draw: Draw, shape: Sequence[int]) -> None:
    """Raise unless a draw has this shape: its numbers are broadcast nowhere."""
    if tuple(draw.shape) != tuple(shape):
        raise InternalError(
            "a draw has another shape", where=expected_got(list(shape), _sizes(draw))
        )


def matrix(tensor: Input) -> Matrix:
    """A tensor ``[M, N]`` or ``[B, M, N]`` as the kernels see it; fewer dimensions have strides of zero."""
    if isinstance(tensor, Draw):
        if len(tensor.shape) != 2:
            raise InternalError(f"random numbers are drawn as matrices, not {_sizes(tensor)}")
        return Matrix(tensor.state, tensor.shape[1], tensor.number, 0)
    if tensor.dim() > 3:
        raise InternalError(f"no kernel reads {tensor.dim()} dimensions: {_sizes(tensor)}")
    strides = [0] * (3 - tensor.dim()) + list(tensor.stride())
    return Matrix(tensor, strides[1], strides[2], strides[0])


def padded_operand(tensor: Tensor) -> Operand:
    """A tensor ``[outer, inner]`` or ``[B, outer, inner]`` as one side of a product, its padding readable.

    Rows of a padded buffer begin every 16 elements. Where *outer* is the contiguous dimension, reading to
    the next multiple of 16 stays inside the row, and lets the kernel load whole vectors.
    """
    pointer, outer, inner, batch = matrix(tensor)
    size = tensor.shape[-2]
    padded = -(-size // 16) * 16
    readable = padded if _has_padding(tensor, padded) else size
    return Operand(pointer, outer, inner, batch, readable, size)


def _has_padding(tensor: Tensor, padded: int) -> bool:
    outer, inner = tensor.stride()[-2:]
    if tensor.dim() != 2 or outer != 1 or inner % 16 or inner < padded:
        return False
    last = tensor.storage_offset() + (tensor.shape[1] - 1) * inner + padded
    return tensor.shape[1] > 0 and last * tensor.element_size() <= tensor.untyped_storage().nbytes()


def padded_empty(rows: int, columns: int, like: Tensor) -> Tensor:
    """Memory for a matrix whose rows begin every 16 elements, as the kernels read it best."""
    return like.new_empty(rows, -(-columns // 16) * 16)[:, :columns]


KINDS = {
    (False, False): "full",
    (True, False): "row",
    (False, True): "column",
    (True, True): "scalar",
}
"""How a matrix is read that is broadcast along its rows, along its columns."""


def kind(tensor: Input, rows: int, columns: int) -> str:
    """How an input is broadcast to a tile: ``scalar``, ``row``, ``column``, ``full``; of a draw its kind."""
    if isinstance(tensor, Draw):
        if tensor.shape == (rows, columns):
            return tensor.kind
    elif tensor.dim() == 0:
        return "scalar"
    elif tensor.shape == (columns,):
        return "row"
    elif tensor.shape[-2:] == (rows, columns):
        once = [
            size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return KINDS[once[-2], once[-1]]
    elif tensor.shape[-2:] == (rows, 1):
        return "column"
    raise InternalError(
        "an input of a generated function fits no tile",
        where=expected_got(f"[], [{columns}], [{rows}, 1] or [{rows}, {columns}]", _sizes(tensor)),
    )


def kinds(tensors: Sequence[Input], rows: int, columns: int) -> tuple[str, ...]:
    """:func:`kind` of each input."""
    return tuple(kind(tensor, rows, columns) for tensor in tensors)


def common_kinds(groups: Sequence[tuple[Sequence[Input], int, int]]) -> tuple[str, ...]:
    """:func:`kinds` that the inputs have in every problem ``(inputs, rows, columns)`` of a group.

    In a problem of one column, ``column`` and ``full`` are the same: there the others decide.
    """
    wide = [group for group in groups if group[2] > 1] or groups[:1]
    found = {kinds(*group) for group in wide}
    if len(found) != 1:
        raise InternalError(f"a group broadcasts its inputs differently: {sorted(found)}")
    return found.pop()


def require(name: str, tensor: Tensor, *shape: int) -> None:
    """Raise unless ``tensor`` ends in ``shape``; anything else would read or write outside of it."""
    if tuple(tensor.shape[-len(shape) :]) != shape:
        raise InternalError(
            f"{name} has the wrong shape", where=expected_got(list(shape), _sizes(tensor))
        )


def _sizes(tensor: Input) -> list[int]:
    return list(tensor.shape)


# --- numbers ------------------------------------------------------------------------------------------


def arithmetic(tensors: Sequence[Tensor], precision: Precision) -> dict[str, Any]:
    """The compile-time arguments ``DTYPE``, ``ACCUMULATOR`` and ``PRECISION`` of a product of ``tensors``.

    Operands of different types are multiplied in the wider one.
    """
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if dtype not in TYPES:
        raise InternalError(
            f"no matrix kernel for {dtype}", instead=f"one of {', '.join(map(str, TYPES))}"
        )
    return {
        "DTYPE": TYPES[dtype],
        "ACCUMULATOR": TYPES[accumulator(dtype)],
        "PRECISION": input_precision(precision, dtype),
    }
