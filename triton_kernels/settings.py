"""Settings of the matrix kernels: tile sizes, warps and stages, chosen from shape, type and precision only.

Nothing here looks at a clock or a device, so a run is the same on every machine. A tuner may measure the
settings of :func:`matrix_space` and pass the best to a template instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from gncompile.errors import InternalError

Precision = Literal["highest", "high", "medium"]

SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}
"""Bytes of shared memory that one block may use, by compute capability (CUDA C++ programming guide)."""

PROCESSORS = 132
"""Multiprocessors to keep busy: as many as on an H100 or H200, more than on an A100 (108)."""


class Shape(NamedTuple):
    """A product ``[rows, inner] [inner, columns]``, ``batch`` times."""

    rows: int
    columns: int
    inner: int
    batch: int = 1


@dataclass(frozen=True)
class MatrixSettings:
    """How a matrix kernel is cut up: the tile of C, the step along k, and what a program runs on.

    ``group`` rows of tiles are walked together; ``split`` programs share the sum of one tile, each
    taking a part of the inner dimension.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    group: int = 8
    split: int = 1


def input_precision(precision: Precision, dtype: torch.dtype) -> str:
    """Triton's word for how float32 operands are multiplied; other types have one way only.

    ``highest`` is IEEE float32 without tensor cores; ``high`` splits each operand into two TF32 parts and
    is nearly as exact; ``medium`` truncates operands to 10 bits, which biases products by about -7e-4.
    """
    words = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
    if precision not in words:
        raise InternalError(
            f"unknown precision {precision!r}", instead=f"one of {', '.join(words)}"
        )
    return words[precision] if dtype == torch.float32 else "ieee"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type products are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide_tile(rows: int, columns: int, widest: int, elements: int) -> tuple[int, int]:
    """Height and width of a tile as wide as the matrix, up to ``widest``, so that most have no idle lanes."""
    width = min(_power_of_two(columns), widest, elements)
    return min(_power_of_two(rows), elements // width), width


def _power_of_two(least: int) -> int:
    return 1 << (max(least, 1) - 1).bit_length()


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all elements, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def cdiv(a: int, b: int) -> int:
    """``⌈a / b⌉``."""
    return -(-a // b)


def shared_memory(settings: MatrixSettings, dtype: torch.dtype) -> int:
    """Estimated bytes of shared memory: the operands' tiles, once for each stage of the pipeline."""
    step = (settings.block_m + settings.block_n) * settings.block_k
    return settings.num_stages * step * dtype.itemsize


def accumulator_registers(
    settings: MatrixSettings, dtype: torch.dtype, accumulators: int = 1
) -> int:
    """Registers per thread that hold sums, of the 255 there are."""
    words = accumulator(dtype).itemsize // 4
    elements = accumulators * settings.block_m * settings.block_n
    return cdiv(elements * words, 32 * settings.num_warps)


def misfit(
    settings: MatrixSettings,
    dtype: torch.dtype,
    precision: Precision,
    accumulators: int = 1,
    shared: int = min(SHARED_MEMORY.values()),
) -> str | None:
    """Why settings are not worth compiling for a device with ``shared`` bytes of shared memory, or None.

    Sums may take 64 registers of a thread; half of that where the operands wait in registers too: split into
    two parts, on compute capability 80, or multiplied without tensor cores, where 128 spilled 20 kB.
    """
    if shared_memory(settings, dtype) > shared:
        return "shared memory"
    budget = 32 if dtype == torch.float32 and precision != "medium" else 64
    many = accumulator_registers(settings, dtype, accumulators) > budget
    return "registers" if many else None


def fits(
    settings: MatrixSettings, dtype: torch.dtype, precision: Precision, accumulators: int = 1
) -> bool:
    """Whether settings are worth compiling for every device of :data:`SHARED_MEMORY`."""
    return misfit(settings, dtype, precision, accumulators) is None


def tile_counts(shape: Shape, settings: MatrixSettings, triangle: bool = False) -> int:
    """Tiles of one product; only those on and below the diagonal for a ``triangle``."""
    rows, columns = cdiv(shape.rows, settings.block_m), cdiv(shape.columns, settings.block_n)
    return (rows * (rows + 1) // 2 if triangle else rows * columns) * shape.batch


def split_count(tiles: int, inner: int, block_k: int) -> int:
    """Programs per tile, so that ``tiles`` fill the device twice; each still takes four steps or more."""
    return max(1, min(cdiv(2 * PROCESSORS, tiles), inner // (4 * block_k)))


def matrix_default(
    shape: Shape,
    dtype: torch.dtype,
    precision: Precision,
    *,
    triangle: bool = False,
    split: bool = False,
    accumulators: int = 1,
    views: bool = False,
) -> MatrixSettings:
    """The largest square tile that still gives every multiprocessor work, or the smallest there is.

    Of operands that are ``views`` of grids the addresses and masks are in registers too: a tile of 128
    spilled, and one of 64 by 4 warps.
    """
    chosen = None
    for block in (64, 32) if views else (128, 64, 32):
        settings = _square(block, dtype, precision, accumulators)
        if views and block == 64:
            settings = short_steps(replace(settings, num_warps=8), dtype, precision)
        if not fits(settings, dtype, precision, accumulators):
            continue
        tiles = tile_counts(shape, settings, triangle)
        parts = split_count(tiles, shape.inner, settings.block_k) if split else 1
        chosen = replace(settings, split=parts)
        if tiles * parts >= PROCESSORS and block <= 2 * min(shape.rows, shape.columns):
            break
    assert chosen is not None, "a tile of 32 fits every type"
    return chosen


def _square(
    block: int, dtype: torch.dtype, precision: Precision, accumulators: int
) -> MatrixSettings:
    """A square tile with the warps it needs, and 128 bytes of each operand's row a step.

    Without tensor cores a whole step is unrolled into registers, so with two sums it is kept short, and
    threads get more of them: compiled with 8 warps, compute capability 80 spilled.
    """
    unrolled = dtype == torch.float32 and precision == "highest" and accumulators > 1
    warps = 8 if block * block * accumulators > (2 if unrolled else 1) * 64 * 64 else 4
    return MatrixSettings(block, block, 16 if unrolled else 128 // dtype.itemsize, warps, 3)


def short_steps(
    settings: MatrixSettings, dtype: torch.dtype, precision: Precision
) -> MatrixSettings:
    """The settings with steps of half the length, if a wide tile is multiplied without tensor cores.

    A step is unrolled into registers there, with the addresses of the next. For the same sum the loop then
    issues 1 % more instructions, while the last, masked step wastes half as much.
    """
    wide = settings.block_m * settings.block_n >= 64 * 64
    unrolled = dtype == torch.float32 and precision == "highest"
    return replace(settings, block_k=16) if wide and unrolled else settings


def with_results(
    settings: MatrixSettings, results: int, dtype: torch.dtype, precision: Precision
) -> MatrixSettings:
    """The settings for an epilogue of so many results, whose tiles are in registers together.

    A thread of 4 warps has 32 elements of each tile of 64 × 64: with three, compute capability 90 spilled,
    and 80 and 90 with two whose operands were unrolled beside them.
    """
    if results == 2:
        return short_steps(settings, dtype, precision)
    wide = settings.block_m * settings.block_n >= 64 * 64
    return replace(settings, num_warps=8) if wide and results > 2 else settings


def matrix_space(
    shape: Shape,
    dtype: torch.dtype,
    precision: Precision,
    *,
    square: bool = False,
    split: bool = False,
    accumulators: int = 1,
    views: bool = False,
) -> tuple[MatrixSettings, ...]:
    """Settings that make sense for this shape, in a fixed order; the default is the first.

    ``square`` keeps to square tiles of a triangle, ``split`` also varies how many programs share a sum.
    Which of them a device can run, :func:`misfit` tells.
    """
    default = matrix_default(
        shape, dtype, precision,
        triangle=square, split=split, accumulators=accumulators, views=views,
    )  # fmt: skip
    return tuple(dict.fromkeys((default, *_all_settings(shape, square, split))))


def _all_settings(shape: Shape, triangle: bool, split: bool) -> Iterator[MatrixSettings]:
    found = [
        replace(settings, split=count)
        for settings in _all_tiles(shape, triangle)
        for count in sorted({1, _parts(settings, shape, triangle) if split else 1})
    ]
    yield from found
    for settings in found if not triangle else ():
        if shape.rows > settings.block_m and shape.columns > settings.block_n:
            yield replace(settings, group=1)  # row by row


def _all_tiles(shape: Shape, triangle: bool) -> Iterator[MatrixSettings]:
    for block_m in (16, 32, 64, 128):
        for block_n in (block_m,) if triangle else (16, 32, 64, 128, 256):
            if block_m > 2 * max(16, shape.rows) or block_n > 2 * max(16, shape.columns):
                continue
            for block_k in (16, 32, 64):
                for num_warps, num_stages in ((4, 2), (4, 3), (4, 4), (8, 2), (8, 3)):
                    yield MatrixSettings(block_m, block_n, block_k, num_warps, num_stages)


def _parts(settings: MatrixSettings, shape: Shape, triangle: bool) -> int:
    return split_count(tile_counts(shape, settings, triangle), shape.inner, settings.block_k)
