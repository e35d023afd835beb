"""Damped inverses carried from step to step by Newton and Schulz's iteration: matrix products only.

For symmetric positive definite M = A + κI and a guess X, ``X ← X (2I - M X)``. Every iteration squares the
residual E = I - M X, so a slowly moving A needs two. For a spectral radius of E of 1 or more the iteration
diverges, and an eigenvalue of M X above 2 turns X indefinite; so ``‖E‖_F``, which bounds the radius, is
compared on the device with a limit below 1, in a way that a NaN fails. Where it fails, with no host involved,
the iteration starts afresh from ``X = I/‖M‖_F``, which converges from anywhere, at first by a factor of two
for each iteration: ``log2(cond M · √n) + 5`` iterations make a cold start. Those of ``restart`` are for this;
every tile of a matrix whose guess was good skips them.

κI is never stored. Only the lower triangle of the new X is multiplied; it is mirrored, so that X is symmetric
bit by bit. All matrices of a plan share each launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gncompile.errors import InternalError, expected_got

from .language import tl, triton
from .launches import Launch, Template, arithmetic
from .launches import launch as make_launch
from .pointwise_groups import Group, Problem, group_matrices, group_tile, plan_group
from .settings import MatrixSettings, Precision, Shape, matrix_default, matrix_space
from .tiles import Operand, load_tile, multiply_tile, store_symmetric, store_tile

Settings = MatrixSettings

LIMIT = 0.9
"""Largest residual ``‖I - M X‖_F`` that is refined: two iterations leave 0.66 of its worst direction."""

A, X, DAMPING, Q, Y = (tl.constexpr(i) for i in range(5))
"""Places in the table: the inputs, and the workspaces Q = X M and Y."""

Number = float | Tensor
"""A Python number, or a 0-d tensor in device memory."""


class Inverse(NamedTuple):
    """One damped inverse: A ``[n, n]``, the guess X, refined in place, and κ."""

    a: Tensor
    x: Tensor
    damping: Number


@dataclass(frozen=True)
class InversePlan:
    """Inverses that share their launches, with workspace.

    ``tripped`` ``[problems]`` is 1 where the last refinement found the guess too far off.
    """

    group: Group
    partial: Tensor
    firsts: Tensor
    tripped: Tensor
    start: Tensor
    precision: Precision
    settings: MatrixSettings


def default_settings(size: int, dtype: torch.dtype, precision: Precision) -> MatrixSettings:
    """Square tiles, as :func:`~gncompile.triton_kernels.settings.matrix_default` chooses them."""
    return matrix_default(Shape(size, size, size), dtype, precision, triangle=True)


def space(size: int, dtype: torch.dtype, precision: Precision) -> tuple[MatrixSettings, ...]:
    """Settings worth measuring; tiles must be square, because they are mirrored."""
    return matrix_space(Shape(size, size, size), dtype, precision, square=True)


def cost(size: int, iterations: int = 2, itemsize: int = 4) -> tuple[int, int]:
    """Flops and bytes: one and a half products an iteration, each reading two matrices and writing one."""
    return 3 * iterations * size**3, 6 * iterations * size**2 * itemsize


# Kernels --------------------------------------------------------------------------------------------------


@triton.jit
def symmetric_operand(x, size):
    """A matrix with contiguous rows, as either side of a product."""
    pointer, row, column, _ = x
    return Operand(pointer, row, column, 0, size, size)


@triton.jit
def residual_kernel(
    table, partial, tripped,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    CURRENT: tl.constexpr, GUARD: tl.constexpr, RESTARTED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``Q = X (A + κI)``; with ``GUARD`` each tile's part of ``‖I - Q‖_F²`` and ``‖A + κI‖_F²`` too."""
    entry, rows, columns, size, _ = group_tile(table, COUNT, PADDED, WIDTH, WHOLE, BLOCK, BLOCK)
    if RESTARTED:  # noqa: SIM102 - known when compiling, unlike the other
        if tl.load(tripped + tl.load(entry + 3)) == 0:
            return
    matrices = group_matrices(entry, 0, 5, TYPES, UNITS, ALIGNED)
    a, x, out = matrices[A], matrices[CURRENT], matrices[Q]
    product = multiply_tile(
        symmetric_operand(x, size), symmetric_operand(a, size), rows, columns, 0, size,
        None, False, False, BLOCK, BLOCK, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    row_mask = rows < size
    column_mask = columns < size
    damping = tl.load(matrices[DAMPING][0]).to(ACCUMULATOR)
    old = load_tile(x, rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
    product += damping * old
    store_tile(out, product, rows, columns, row_mask, column_mask)
    if GUARD:
        mask = row_mask[:, None] & column_mask[None, :]
        unit = (rows[:, None] == columns[None, :]).to(ACCUMULATOR)
        residual = tl.where(mask, unit - product, 0.0).to(tl.float64)
        moved = load_tile(a, rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
        moved = tl.where(mask, moved + damping * unit, 0.0).to(tl.float64)
        at = partial + 2 * tl.program_id(0)
        tl.store(at, tl.sum(tl.sum(residual * residual, axis=1), axis=0))
        tl.store(at + 1, tl.sum(tl.sum(moved * moved, axis=1), axis=0))


@triton.jit
def judge_kernel(partial, firsts, tripped, start, limit: tl.float64, BLOCK: tl.constexpr):
    """Program p compares problem p's residual with the limit, and finds ``1/‖M‖_F``."""
    problem = tl.program_id(0)
    last = tl.load(firsts + problem + 1)
    residual = tl.zeros((BLOCK,), tl.float64)
    moved = tl.zeros((BLOCK,), tl.float64)
    for first in range(tl.load(firsts + problem), last, BLOCK):
        at = first + tl.arange(0, BLOCK)
        residual += tl.load(partial + 2 * at, mask=at < last, other=0.0)
        moved += tl.load(partial + 2 * at + 1, mask=at < last, other=0.0)
    # A NaN is not below the limit either.
    good = tl.sqrt(tl.sum(residual, axis=0)) < limit
    tl.store(tripped + problem, tl.where(good, 0, 1))
    tl.store(start + problem, 1.0 / tl.sqrt(tl.sum(moved, axis=0)))


@triton.jit
def restart_kernel(
    table, tripped, start,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """``X = c I`` and ``Q = c M`` with ``c = 1/‖M‖_F`` where the guess failed; elsewhere nothing."""
    entry, rows, columns, size, _ = group_tile(table, COUNT, PADDED, WIDTH, WHOLE, BLOCK, BLOCK)
    problem = tl.load(entry + 3)
    if tl.load(tripped + problem) != 0:
        matrices = group_matrices(entry, 0, 5, TYPES, UNITS, ALIGNED)
        row_mask = rows < size
        column_mask = columns < size
        c = tl.load(start + problem).to(ACCUMULATOR)
        damping = tl.load(matrices[DAMPING][0]).to(ACCUMULATOR)
        unit = (rows[:, None] == columns[None, :]).to(ACCUMULATOR)
        a = load_tile(matrices[A], rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
        store_tile(matrices[X], c * unit, rows, columns, row_mask, column_mask)
        moved = c * (a + damping * unit)
        store_tile(matrices[Q], moved, rows, columns, row_mask, column_mask)


@triton.jit
def update_kernel(
    table, tripped,
    COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    CURRENT: tl.constexpr, NEXT: tl.constexpr, RESTARTED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The next X, ``2 X - X Qᵀ``, in tiles on and below the diagonal, mirrored."""
    entry, rows, columns, size, _ = group_tile(table, COUNT, PADDED, WIDTH, WHOLE, BLOCK, BLOCK)
    if RESTARTED:  # noqa: SIM102 - known when compiling, unlike the other
        if tl.load(tripped + tl.load(entry + 3)) == 0:
            return
    row = tl.min(rows, axis=0)
    column = tl.min(columns, axis=0)
    if row >= column:
        matrices = group_matrices(entry, 0, 5, TYPES, UNITS, ALIGNED)
        x, q, out = matrices[CURRENT], matrices[Q], matrices[NEXT]
        product = multiply_tile(
            symmetric_operand(x, size), symmetric_operand(q, size), rows, columns, 0, size,
            None, False, False, BLOCK, BLOCK, BLOCK_K, DTYPE, ACCUMULATOR, PRECISION,
        )  # fmt: skip
        row_mask = rows < size
        column_mask = columns < size
        old = load_tile(x, rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
        value = 2.0 * old - product
        store_symmetric(out, value, rows, columns, row_mask, column_mask, row == column)


@triton.jit
def settle_kernel(
    table, COUNT: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    TYPES: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr,
    CURRENT: tl.constexpr, BLOCK: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The last iterate into X."""
    entry, rows, columns, size, _ = group_tile(table, COUNT, PADDED, WIDTH, WHOLE, BLOCK, BLOCK)
    matrices = group_matrices(entry, 0, 5, TYPES, UNITS, ALIGNED)
    row_mask = rows < size
    column_mask = columns < size
    value = load_tile(matrices[CURRENT], rows, columns, row_mask, column_mask, "full", ACCUMULATOR)
    store_tile(matrices[X], value, rows, columns, row_mask, column_mask)


# Launches -------------------------------------------------------------------------------------------------


def plan_inverses(
    problems: Sequence[Inverse],
    *,
    precision: Precision = "high",
    settings: MatrixSettings | None = None,
) -> InversePlan:
    """Tables and workspace, two matrices for each problem, for inverses refined together.

    Args:
        problems: Matrices ``[n, n]`` of one type, symmetric, with contiguous rows or columns.
        precision: Of the products, in torch's words. Below ``high`` the result is as rough as the products.
        settings: :func:`default_settings` of the largest by default; its tile must be square.

    Raises:
        InternalError: There is none, or a matrix is not square or has no contiguous rows.
    """
    if not problems:
        raise InternalError("a plan of inverses has at least one")
    largest = max(problem.a.shape[0] for problem in problems)
    dtype = problems[0].a.dtype
    settings = settings or default_settings(largest, dtype, precision)
    block = settings.block_m
    device = problems[0].a.device
    group = plan_group([_problem(i, p) for i, p in enumerate(problems)], block, block)
    return InversePlan(
        group=group,
        partial=torch.empty(2 * group.tiles, dtype=torch.float64, device=device),
        firsts=torch.tensor(group.slots, dtype=torch.int32, device=device),
        tripped=torch.zeros(len(problems), dtype=torch.int32, device=device),
        start=torch.zeros(len(problems), dtype=torch.float64, device=device),
        precision=precision,
        settings=settings,
    )


def _problem(index: int, problem: Inverse) -> Problem:
    """The line of the table: inputs, and workspace with rows padded to whole vectors."""
    size = problem.a.shape[0]
    a, x = (_with_rows(tensor, size) for tensor in (problem.a, problem.x))
    padded = -(-size // 16) * 16
    q, y = (a.new_empty(size, padded)[:, :size] for _ in range(2))
    damping = problem.damping
    kappa = damping if isinstance(damping, Tensor) else a.new_tensor(float(damping))
    return Problem((a, x, kappa), (q, y), slot=index)


def _with_rows(tensor: Tensor, size: int) -> Tensor:
    """A symmetric matrix seen with contiguous rows: LAPACK's results have contiguous columns."""
    seen = tensor.mT if tensor.dim() == 2 and tensor.stride(0) == 1 else tensor
    if tensor.shape != (size, size) or (size > 1 and seen.stride(1) != 1):
        raise InternalError(
            "an inverse needs symmetric matrices with contiguous rows or columns",
            where=expected_got(
                f"{[size, size]}, strides [≥ {size}, 1]",
                f"{list(tensor.shape)}, strides {list(tensor.stride())}",
            ),
        )
    return seen


def _newton_schulz(
    plan: InversePlan, *, iterations: int = 2, restart: int = 0, limit: float = LIMIT
) -> list[Launch]:
    """Refine every X of a plan in place, ``X ≈ (A + κI)⁻¹``; see the module docstring.

    Args:
        plan: From :func:`plan_inverses`.
        iterations: Each squares the residual; 3 n³ flops.
        restart: Further iterations, an even number, of matrices that started afresh.
        limit: Largest residual in Frobenius norm, below 1, from which a guess is refined.

    Raises:
        InternalError: The limit is not between 0 and 1, or ``restart`` is odd: the results of matrices with
            and without these iterations would lie in different places.
    """
    if restart % 2:
        raise InternalError(f"iterations after a restart come in pairs, not {restart}")
    group, chosen = plan.group, plan.settings
    numbers = arithmetic(group.tensors[:1], plan.precision)
    shared = {
        name: value
        for name, value in group.arguments().items()
        if name not in ("KINDS", "BLOCK_M", "BLOCK_N")
    }
    shared |= {"BLOCK": group.block_m, "ACCUMULATOR": numbers["ACCUMULATOR"]}
    products = {**shared, **numbers, "BLOCK_K": chosen.block_k, "tripped": plan.tripped}
    grid = (group.tiles,)
    launches = []
    current, following = X.value, Y.value
    for iteration in range(iterations + restart):
        first = iteration == 0
        common = {**products, "CURRENT": current, "RESTARTED": iteration >= iterations}
        guard = {"partial": plan.partial, "GUARD": first}
        launches.append(make_launch(residual_kernel, grid, chosen, group, **common, **guard))
        if first:
            launches += _judged(plan, limit, grid, shared)
        launches.append(make_launch(update_kernel, grid, chosen, group, **common, NEXT=following))
        current, following = following, current
    if current != X.value:
        arguments = {**shared, "CURRENT": current}
        launches.append(Launch(settle_kernel, grid, arguments, 4, 1, group))
    return launches


newton_schulz = Template(_newton_schulz)


def _judged(
    plan: InversePlan, limit: float, grid: tuple[int, ...], shared: dict[str, object]
) -> list[Launch]:
    """Compare residuals with the limit, and prepare a fresh start where it is exceeded."""
    if not 0 < limit < 1:
        raise InternalError(f"the limit of a residual lies between 0 and 1, not at {limit}")
    results = {"tripped": plan.tripped, "start": plan.start}
    arguments = {"partial": plan.partial, "firsts": plan.firsts, **results}
    judged = Launch(
        judge_kernel, (len(plan.tripped),), {**arguments, "limit": limit, "BLOCK": 256}, 4, 1
    )
    return [judged, Launch(restart_kernel, grid, {**shared, **results}, 4, 1, plan.group)]


def inverse_reference(a: Tensor, damping: Number) -> Tensor:
    """``(A + κI)⁻¹`` by Cholesky."""
    moved = a + damping * torch.eye(len(a), dtype=a.dtype, device=a.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(moved))
