"""Rows of the Jacobian, their Gram matrix, and solutions with it; see ``program/exact.py``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .linalg import symmetric_eigen

ROUNDING = 64
"""Roundings of a number that are taken for none of it."""
TILE = 64
"""Rows of a Gram matrix that are made together on a CPU."""
EIGEN_ROUNDING = 4
"""Roundings of a matrix's trace that are taken for no eigenvalue."""


def rows(left: Tensor, right: Tensor, homogeneous: bool, coordinate: float, out: Tensor) -> None:
    """``out[k, n] ← Σ_s l_s [r_s, c]ᵀ``, row by row."""
    width = right.shape[-1]
    whole = out.unflatten(-1, (left.shape[-1], width + int(homogeneous)))
    _over_places(left, right, out=whole[..., :width])
    if homogeneous:
        whole[..., width] = coordinate * left.sum(-2)


def _over_places(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``Σ_s l_s r_sᵀ``.

    At one place that is no sum, and as a product of matrices of one row each would take ten times as long.
    """
    product = torch.mul if left.shape[-2] == 1 else torch.matmul
    return product(left.mT, right, out=out)


def row_gram(
    weight: Tensor, sides: list[Tensor], bias: bool, before: Tensor | None, out: Tensor
) -> None:
    """``out ← K + (1/N) J w Jᵀ`` of one parameter, K where there is one ``before``.

    By Hadamard products of the sides' Grams at every pair of places, or, at many places of a small weight and
    where each of its elements has a weight of its own, by its rows a few at a time: for T places
    ``T² (a + b)`` numbers a pair of rows against ``a b``.
    """
    share = weight / out.shape[1]
    if before is None:
        out.zero_()
    else:
        out.copy_(before)
    if bias:
        total = _summed(sides)
        _add_lower(total * share.flatten(), total, out)
    else:
        _add_weight(sides, share, out)
    for tile in _tiles(out):
        first = tile.start
        out[:, :first, :, tile] = out[:, tile, :, :first].permute(2, 3, 0, 1)


def row_squares(
    sides: list[Tensor], vector: bool, coordinates: tuple[float, ...], out: Tensor
) -> None:
    """``out ← (1/N) Σ_kn J_kn²`` as W̄ lies, its rows a few left features at a time."""
    lefts = sides if vector else sides[::2]
    samples = lefts[0].shape[-3]
    if not vector:
        uses = list(zip(lefts, sides[1::2], strict=True))
        width = sides[1].shape[-1]
        columns = max(len(_with_columns(side)) for side in sides)
        for part, made in _made(uses, max(1, columns * samples // width)):
            out[part, :width] = made.square().sum((0, 1)) / samples
    if vector or coordinates:
        kept = coordinates or (1.0,) * len(lefts)
        bias = _summed([c * left for c, left in zip(kept, lefts, strict=True)])
        out[:, -1] = bias.square().sum((0, 1)) / samples


def _summed(sides: list[Tensor]) -> Tensor:
    """``Σ_s l_s`` over the places of all uses."""
    return sum((side.sum(-2) for side in sides[1:]), start=sides[0].sum(-2))


def _add_weight(sides: list[Tensor], share: Tensor, out: Tensor) -> None:
    """``out += J share Jᵀ`` of a weight, by pairs or by rows, below its diagonal."""
    columns, samples = out.shape[:2]
    own = share.dim() > 0
    uses = list(zip(sides[::2], sides[1::2], strict=True))
    a, b = uses[0][0].shape[-1], uses[0][1].shape[-1]
    places = sum(left.shape[-2] for left, _ in uses)
    if not own and (places == 1 or places**2 * (a + b) <= a * b):
        _add_by_pairs(uses, share, out)
        return
    for part, made in _made(uses, max(1, columns * samples // b)):
        j = made.flatten(2)
        _add_lower(j * (share[part].flatten() if own else share), j, out)


def _add_by_pairs(uses: list[tuple[Tensor, Tensor]], share: Tensor, out: Tensor) -> None:
    """``out += share Σ_st (l_s l_tᵀ) ⊙ (r_s r_tᵀ)`` over the places of all uses, below its diagonal."""
    places = [
        tuple(_with_columns(side)[..., s, :].contiguous() for side in (left, right))
        for left, right in uses
        for s in range(left.shape[-2])
    ]
    for tile in _tiles(out):
        part = out[:, tile, :, : tile.stop]
        rows = [(left[:, tile] * share, right[:, tile]) for left, right in places]
        columns = [(left[:, : tile.stop], right[:, : tile.stop]) for left, right in places]
        for left, right in rows:
            for other_left, other_right in columns:
                part.addcmul_(_gram(left, other_left), _gram(right, other_right))


def _add_lower(weighted: Tensor, j: Tensor, out: Tensor) -> None:
    """``out += (J w) Jᵀ`` of rows ``[S, N, p]``, below its diagonal."""
    for tile in _tiles(out):
        out[:, tile, :, : tile.stop] += _gram(weighted[:, tile], j[:, : tile.stop])


def _tiles(out: Tensor) -> Iterator[slice]:
    """Samples whose rows of a Gram matrix are made together, of the columns that do not come after them.

    On a CPU as many as keep two Grams of rows in its cache, elsewhere as few products as save most of the
    half above the diagonal.
    """
    columns, samples = out.shape[:2]
    count = max(1, TILE // columns, 0 if out.device.type == "cpu" else samples // 8)
    for first in range(0, samples, count):
        yield slice(first, min(first + count, samples))


def _with_columns(side: Tensor) -> Tensor:
    """A side ``[S, N, T, a]``, S = 1 where it is the same for all columns."""
    return side if side.dim() == 4 else side[None]


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """``⟨x_kn, y_lm⟩``: ``[S, N, S, M]``, S = 1 for a side that is the same for all columns."""
    product = x.flatten(0, 1) @ y.flatten(0, 1).T
    return product.view(*x.shape[:2], *y.shape[:2])


def _made(uses: list[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[slice, Tensor]]:
    """``Σ_uses Σ_s l_s r_sᵀ`` of ``count`` left features at a time: ``[S, N, count, b]``."""
    for first in range(0, uses[0][0].shape[-1], count):
        part = slice(first, first + count)
        total: Tensor | None = None
        for left, right in uses:
            made = _over_places(left[..., part], right)
            total = made if total is None else total.add_(made)
        assert total is not None
        yield part, total


def join(matrices: list[Tensor], out: Tensor) -> None:
    """``out ← vec``, row by row; the matrices may be transposed in memory."""
    torch.cat([m.reshape(-1) for m in matrices], out=out)


def root_solve(columns: Tensor, g: Tensor, diagonal: bool, out: Tensor) -> None:
    """``out ← r``, the least with ``Σ_k C_k r_k = g``; where C is 0, or g more than it reaches, so is r.

    By singular values of the columns scaled to length 1, for these may differ by many orders (``√p_k``).
    """
    if diagonal:
        root = columns.diagonal(dim1=0, dim2=2)  # [N, K]
        r = (g / root).masked_fill(root == 0, 0.0)
        out.copy_(r.masked_fill(r.isinf(), 0.0).T[..., None])
        return
    c = columns.permute(1, 2, 0)  # [N, K, S]
    finite = (c.isfinite().all(1).all(1) & g.isfinite().all(1))[:, None, None]
    c = torch.where(finite, c, 0.0)
    length = torch.linalg.vector_norm(c, dim=1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    u, values, vh = torch.linalg.svd(c / length, full_matrices=False)
    small = values <= c.shape[-1] * torch.finfo(c.dtype).eps * values.amax(-1, keepdim=True)
    inverse = (1 / values).masked_fill(small, 0.0)[..., None]
    scaled_g = torch.where(finite, g[..., None], 0.0)
    r = (vh.mT @ (inverse * (u.mT @ scaled_g))) / length.mT
    # What C maps to 0 is no part of the least r.
    null = (vh.mT / length.mT) * small[:, None, :]
    null = null / torch.linalg.vector_norm(null, dim=1, keepdim=True).clamp(min=1e-30)
    r = r - null @ (torch.linalg.pinv(null) @ r)
    r = torch.where(finite, r, torch.nan)
    out.copy_(r[:, :, 0].T[..., None])


def root_rest(columns: Tensor, g: Tensor, r: Tensor, out: Tensor) -> None:
    """``out ← g − Σ_k C_k r_k``, 0 for samples of which no more than rounding is left."""
    rest = g - (columns * r).sum(0)
    bound = ROUNDING * g.shape[1] * torch.finfo(g.dtype).eps
    left = rest.norm(dim=1, keepdim=True) <= bound * g.norm(dim=1, keepdim=True)
    out.copy_(rest.masked_fill(left, 0.0))


def dual_solve(gram: Tensor, damping: Tensor, r: Tensor, out: Tensor) -> None:
    """``out ← (K + κ I)⁻¹ r``; the part of r whose eigenvalue is rounding is left out.

    No parameter moves such residuals, so what the solution has there, r/κ, would only be rounded away
    afterwards, and for a κ near the roundings of K would not be small then.
    """
    size = gram.shape[0] * gram.shape[1]
    m, rhs = gram.reshape(size, size), r.reshape(size, 1)
    solution = _by_cholesky(m, damping, rhs)
    if solution is None:
        values, vectors = _eigenvalues(m)
        weights = 1 / (values.clamp(min=0) + damping)
        weights = torch.where(values > _cut(values), weights, 0.0)[:, None]
        solution = vectors @ (weights * (vectors.T @ rhs))
    out.copy_(solution.view(out.shape))


def primal_solve(
    g: Tensor, damping: Tensor, gradient: Tensor, scale: Tensor | None, out: Tensor
) -> None:
    """``out ← −(G + κ D)⁻¹ ∇``, without what is rounding both of G and of ∇.

    With a scale D in coordinates in which it is 1: ``D^½ Δ = −(D^-½ G D^-½ + κ)⁻¹ D^-½ ∇``.
    """
    if scale is not None:
        root = scale.rsqrt()
        g, gradient = root[:, None] * g * root, root * gradient
    solution = _by_cholesky(g, damping, gradient[:, None])
    if solution is None:
        values, vectors = _eigenvalues(g)
        along = vectors.T @ gradient
        noise = ROUNDING * len(g) * torch.finfo(g.dtype).eps * gradient.norm()
        rounding = (values <= _cut(values)) & (along.abs() <= noise)
        weights = 1 / (values.clamp(min=0) + damping)
        solution = vectors @ torch.where(rounding, 0.0, weights * along)
    torch.neg(solution.view(out.shape), out=out)
    if scale is not None:
        out.mul_(root)


def _eigenvalues(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, NaN where M is not finite, which no routine takes."""
    finite = m.isfinite().all()
    values, vectors = symmetric_eigen(torch.where(finite, m, 0.0))
    return torch.where(finite, values, torch.nan), torch.where(finite, vectors, torch.nan)


def _cut(values: Tensor) -> Tensor:
    """Below it an eigenvalue is rounding.

    The trace's, for what is usual, the greatest eigenvalue's times their number, is more in float32 than the
    directions along which a fit still improves.
    """
    return EIGEN_ROUNDING * torch.finfo(values.dtype).eps * values.clamp(min=0).sum()


def _by_cholesky(m: Tensor, damping: Tensor, rhs: Tensor) -> Tensor | None:
    """``(M + c I)⁻¹ b``, where on a CPU c is well above the roundings of M; else nothing.

    M stays as it is, for another c: a factorisation takes an eighth to a quarter of what M takes to make, and
    an eigendecomposition, which would serve every c, 10 to 60 times as long. On a device a host that asked
    would wait.
    """
    if m.device.type != "cpu":
        return None
    if not bool(m.isfinite().all() and rhs.isfinite().all()):
        return torch.full_like(rhs, torch.nan)
    if not bool(damping > ROUNDING * torch.finfo(m.dtype).eps * m.diagonal().sum()):
        return None
    shifted = m.clone()
    shifted.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(shifted)
    return torch.cholesky_solve(rhs, factor) if int(info) == 0 else None
