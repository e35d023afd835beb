"""What a Triton launch computes, as the tuner sees it: sizes, settings to choose among, predicted seconds.

The model knows waves of tiles over the multiprocessors, arithmetic, traffic from the second-level cache and
from memory, and the latency that a pipeline's stages and resident blocks hide. It decides what is measured
first and what never is; which settings are chosen is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import CompileError
from ..triton_kernels.elementwise import ElementwiseSettings
from ..triton_kernels.reduce import ReduceSettings
from ..triton_kernels.settings import (
    SHARED_MEMORY,
    MatrixSettings,
    Precision,
    Shape,
    accumulator,
    cdiv,
    misfit,
    shared_memory,
    tile_counts,
)

Settings = MatrixSettings | ElementwiseSettings | ReduceSettings

LAUNCH = 2e-6
"""Seconds between two kernels of a graph."""
LATENCY = 7e-7
"""Seconds until a tile asked for is there."""
BLOCKS, WARPS = 32, 64
"""Blocks and warps that a multiprocessor holds at most."""
REGISTERS = 160
"""Registers of a thread that the tiles of an elementwise kernel may take, of 255."""
SMALL = 1024
"""Elements up to which a launch of tiles is one program, and nothing is chosen."""


@dataclass(frozen=True)
class Figures:
    """Data sheet of a device: multiprocessors, bytes of shared memory of a block, flops and bytes a second.

    ``flops`` are by how products are taken: ``float64``, ``ieee`` (float32 without tensor cores), ``tf32``
    and ``half``.
    """

    capability: int
    processors: int
    shared: int
    bandwidth: float
    cache: float
    flops: Mapping[str, float]

    def rate(self, dtype: torch.dtype, precision: Precision) -> float:
        """Flops a second of products; at ``high`` three are taken for one."""
        if dtype == torch.float64:
            return self.flops["float64"]
        if dtype != torch.float32:
            return self.flops["half"]
        if precision == "highest":
            return self.flops["ieee"]
        return self.flops["tf32"] / (3 if precision == "high" else 1)


FIGURES = {
    80: Figures(80, 108, SHARED_MEMORY[80], 2.0e12, 5e12,
                {"float64": 9.7e12, "ieee": 19.5e12, "tf32": 156e12, "half": 312e12}),
    90: Figures(90, 132, SHARED_MEMORY[90], 3.4e12, 7e12,
                {"float64": 34e12, "ieee": 67e12, "tf32": 495e12, "half": 990e12}),
    100: Figures(100, 148, SHARED_MEMORY[100], 8.0e12, 10e12,
                 {"float64": 37e12, "ieee": 75e12, "tf32": 1100e12, "half": 2250e12}),
}  # fmt: skip
"""By compute capability: A100, H100 and B200, from NVIDIA's data sheets; the cache's traffic is estimated."""


def figures_of(target: str) -> Figures:
    """The figures of ``sm_80``, ``sm_90`` or ``sm_100``; ``CompileError`` for anything else."""
    known = {f"sm_{capability}": figures for capability, figures in FIGURES.items()}
    if target not in known:
        raise CompileError(f"unknown target {target!r}", instead=f"use one of {', '.join(known)}")
    return known[target]


def nearest_figures(capability: int) -> Figures:
    """The figures of the newest device that is not newer, or of the oldest."""
    return FIGURES[max((known for known in FIGURES if known <= capability), default=min(FIGURES))]


class Work(Protocol):
    """What a launch, or several that share their settings, computes."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers that decide its time."""

    @property
    def has_choice(self) -> bool:
        """Whether settings make a difference."""

    def space(self) -> tuple[Settings, ...]:
        """The template's settings for these sizes; the default is the first."""

    def misfit(self, settings: Settings, figures: Figures) -> str | None:
        """What a device lacks for these settings, or None."""

    def seconds(self, settings: Settings, figures: Figures) -> float:
        """Predicted seconds of one execution."""


@dataclass(frozen=True)
class MatrixWork:
    """Matrix products cut into tiles of one size; ``stages`` are those of each launch in turn.

    ``settings`` is the template's space, ``triangle`` says that tiles above the diagonal are left out, and
    ``accumulators`` how many sums a tile has.
    """

    stages: tuple[tuple[Shape, ...], ...]
    settings: Callable[[Shape, torch.dtype, Precision], tuple[MatrixSettings, ...]]
    dtype: torch.dtype
    precision: Precision
    triangle: bool = False
    accumulators: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        every = (shape for stage in dict.fromkeys(self.stages) for shape in stage)
        return tuple(n for s in every for n in (s if s.batch > 1 else s[:3]))

    has_choice = True

    def space(self) -> tuple[Settings, ...]:
        # As the templates choose for a group: the largest product, as often as all together hold it.
        first = self.stages[0]
        largest = max(first, key=lambda shape: shape.rows * shape.columns)
        whole = sum(shape.rows * shape.columns * shape.batch for shape in first)
        batch = max(1, whole // (largest.rows * largest.columns))
        return self.settings(largest._replace(batch=batch), self.dtype, self.precision)

    def misfit(self, settings: Settings, figures: Figures) -> str | None:
        assert isinstance(settings, MatrixSettings)
        return misfit(settings, self.dtype, self.precision, self.accumulators, figures.shared)

    def seconds(self, settings: Settings, figures: Figures) -> float:
        assert isinstance(settings, MatrixSettings)
        return sum(self._stage_seconds(stage, settings, figures) for stage in self.stages)

    def _stage_seconds(
        self, stage: tuple[Shape, ...], settings: MatrixSettings, figures: Figures
    ) -> float:
        size = self.dtype.itemsize
        tiles = [tile_counts(shape, settings, self.triangle) for shape in stage]
        programs = sum(tiles) * settings.split
        waves = cdiv(programs, figures.processors)
        step = self._step_seconds(settings, figures, waves)
        steps = [
            n * settings.split * cdiv(cdiv(shape.inner, settings.split), settings.block_k)
            for n, shape in zip(tiles, stage, strict=True)
        ]
        elements = (
            s.batch * (s.rows * s.inner + s.inner * s.columns + s.rows * s.columns) for s in stage
        )
        products = max(
            waves * step * sum(steps) / programs, sum(elements) * size / figures.bandwidth
        )
        if settings.split == 1:
            return LAUNCH + products
        parts = programs * settings.block_m * settings.block_n * accumulator(self.dtype).itemsize
        return 2 * LAUNCH + products + 2 * parts / figures.cache

    def _step_seconds(self, settings: MatrixSettings, figures: Figures, waves: int) -> float:
        """Seconds a multiprocessor takes for one step along k of one of its tiles."""
        area, edge = settings.block_m * settings.block_n, settings.block_m + settings.block_n
        flops = 2 * area * settings.block_k
        moved = edge * settings.block_k * self.dtype.itemsize
        shared = max(shared_memory(settings, self.dtype), 1)
        resident = max(1, min(figures.shared // shared, WARPS // settings.num_warps, waves))
        # They overlap, but not quite; so of tiles that are bound by arithmetic the larger ones come first.
        return math.hypot(
            flops * figures.processors / figures.rate(self.dtype, self.precision),
            moved * figures.processors / figures.cache,
            LATENCY / (resident * max(settings.num_stages - 1, 1)),
        )


@dataclass(frozen=True)
class TileWork:
    """Elementwise work or sums over matrices ``shapes``, with ``operands`` tensors a tile.

    ``grouped`` launches have many matrices and a default tile of their own.
    """

    shapes: tuple[tuple[int, int], ...]
    operands: int
    dtype: torch.dtype
    default: Settings
    settings: Callable[[int, int], tuple[Settings, ...]]
    summed: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(n for shape in self.shapes for n in shape)

    @property
    def has_choice(self) -> bool:
        return sum(map(math.prod, self.shapes)) > SMALL

    def space(self) -> tuple[Settings, ...]:
        largest = max(self.shapes, key=math.prod)
        return tuple(dict.fromkeys((self.default, *self.settings(*largest))))

    def misfit(self, settings: Settings, figures: Figures) -> str | None:
        assert not isinstance(settings, MatrixSettings)
        elements = cdiv(settings.block_m * settings.block_n, 32 * settings.num_warps)
        sums = 2 if self.summed else 0  # in float64
        words = self.operands * self.dtype.itemsize // 4 + sums
        return "registers" if elements * words > REGISTERS else None

    def seconds(self, settings: Settings, figures: Figures) -> float:
        assert not isinstance(settings, MatrixSettings)
        area = settings.block_m * settings.block_n
        tiles = sum(cdiv(m, settings.block_m) * cdiv(n, settings.block_n) for m, n in self.shapes)
        resident = min(BLOCKS, WARPS // settings.num_warps) * figures.processors
        if isinstance(settings, ReduceSettings):
            resident = min(resident, settings.programs)
        moved = tiles * area * self.operands * self.dtype.itemsize
        passes = 2 if self.summed else 1
        return passes * LAUNCH + max(moved / figures.bandwidth, cdiv(tiles, resident) * LATENCY)
