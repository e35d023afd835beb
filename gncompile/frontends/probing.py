"""Learn what an operator does by running it: index tables and matrices instead of one rule an operator.

A *selecting* operator is run on feature numbers instead of features, a *linear* one on the unit vectors.
Several samples go through at once, so that an operator that mixes samples shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

ROWS = 5
LARGEST_MATRIX = 64 * 2**20
LARGE_MATRIX = 2**20
"""From so many entries on it is worth asking whether all channels have the same matrix."""
_BLOCK = 2**22


class MixesSamplesError(Exception):
    """An output row depends on another sample's row."""


def select_index(
    apply: Callable[[list[torch.Tensor]], Any],
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
) -> list[np.ndarray]:
    """The flat index of every output of ``apply``, a selection from inputs of per-sample ``shapes``.

    ``apply`` gets one float64 tensor ``[ROWS, *shape]`` an input, holding feature numbers counted over the
    concatenation of all inputs; what it fills in must be -1.
    """
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes)
    table = torch.arange(ROWS * total, dtype=torch.float64, device=device).reshape(ROWS, total)
    parts = [
        part.reshape(ROWS, *shape)
        for part, shape in zip(table.split(sizes, 1), shapes, strict=True)
    ]
    result = apply(parts)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    return [_one_index(output, total) for output in outputs]


def _one_index(output: torch.Tensor, total: int) -> np.ndarray:
    if output.ndim == 0 or output.shape[0] != ROWS:
        raise MixesSamplesError
    rows = output.reshape(ROWS, -1).cpu().numpy().astype(np.int64)
    first = rows[0]
    expected = np.where(first < 0, -1, first + total * np.arange(ROWS)[:, None])
    if (first >= total).any() or not np.array_equal(rows, expected):
        raise MixesSamplesError
    return first


def linear_matrix(
    apply: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    outputs: int,
    device: torch.device,
) -> torch.Tensor:
    """The float64 matrix ``A: [outputs, inputs]`` of ``apply(x) = x Aᵀ``, checked on random samples."""
    inputs = math.prod(shape)
    rows = max(1, _BLOCK // max(inputs, outputs, 1))
    matrix = torch.empty(outputs, inputs, dtype=torch.float64, device=device)
    for start in range(0, inputs, rows):
        stop = min(start + rows, inputs)
        basis = torch.zeros(stop - start, inputs, dtype=torch.float64, device=device)
        basis[torch.arange(stop - start), torch.arange(start, stop)] = 1
        matrix[:, start:stop] = apply(basis.reshape(-1, *shape)).reshape(stop - start, outputs).mT
    generator = torch.Generator().manual_seed(0)
    # another number of rows than the basis had: what counts the rows of the batch shows
    samples = ROWS if (inputs - 1) % rows + 1 != ROWS else ROWS + 2
    x = torch.randn(samples, inputs, dtype=torch.float64, generator=generator).to(device)
    found = apply(x.reshape(-1, *shape)).reshape(samples, outputs)
    if not torch.allclose(found, x @ matrix.mT, atol=1e-9):
        raise MixesSamplesError
    return matrix


def channel_matrix(
    apply: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    outputs: int,
    device: torch.device,
) -> torch.Tensor | None:
    """The matrix by which ``apply`` maps every channel of samples ``[C, ...]``; None where it does not."""
    channels, points = shape[0], math.prod(shape[1:])
    if points * (outputs // channels) > LARGEST_MATRIX:
        return None

    def one(x: torch.Tensor) -> torch.Tensor:
        samples = x.new_zeros(len(x), *shape)
        samples[:, 0] = x
        return apply(samples).reshape(len(x), channels, -1)[:, 0]

    try:
        matrix = linear_matrix(one, shape[1:], outputs // channels, device)
    except MixesSamplesError:
        return None
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, *shape, dtype=torch.float64, generator=generator).to(device)
    found = apply(x).reshape(ROWS, channels, -1)
    expected = x.reshape(ROWS, channels, points) @ matrix.mT
    return matrix if torch.allclose(found, expected, atol=1e-9) else None
