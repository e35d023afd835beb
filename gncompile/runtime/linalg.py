"""Small linear algebra shared by the backends: damped inverses, symmetric products, step sizes.

These are the operations of a step that are more than one tensor call. Both backends call the ones whose
result depends on a numerical decision (a fallback, a guard), so that they cannot drift apart.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor

from . import scalars

BLOCK, FEWEST_ROWS = 256, 128
"""Default width of the diagonal blocks of a symmetric product: below it, and for sums of fewer rows, one
plain product is faster."""
TALL, TALL_BLOCK = 4096, 72
"""From so many rows on, as vectors and patches at places have, narrower blocks are faster: 288 columns of
16384 rows take 22 ms for 28, 150 of 25600 12 for 14.5."""


BORDER, CONFLICT = 8, 128
"""What the size of a matrix for LAPACK is by default a multiple of, and what it should not be."""


def damped_inverse(m: Tensor, damping: Tensor, out: Tensor, border: int = BORDER) -> None:
    """``out ← (M + c I)⁻¹`` for a symmetric M ``[d, d]`` or a diagonal one ``[d]``.

    By Cholesky, with c at least ``ε tr M``: the small eigenvalues of a computed M are rounding of this size,
    and a smaller c would make steps of it. Where ``M + c I`` is indefinite even so, the eigenvalues are
    clipped at c, so the result is always positive definite; on a device, where nothing may wait for the
    host, ``out`` stays as it is. Cost d³ flops. On a CPU the matrix is bordered by an identity to
    :func:`bordered`'s size.
    """
    if m.dim() < 2:
        torch.reciprocal(m + damping, out=out)
        return
    size = m.shape[0]
    damping = torch.maximum(damping, m.diagonal().sum() * torch.finfo(m.dtype).eps)
    whole = bordered(size, border) if m.device.type == "cpu" else size
    shifted = torch.eye(whole, dtype=m.dtype, device=m.device)
    shifted[:size, :size] = m
    shifted.diagonal()[:size].add_(damping)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if m.device.type != "cpu":
        # Without asking the host: where there is no factor, the inverse of before stays.
        inverse = torch.cholesky_inverse(factor)[:size, :size]
        torch.where((info == 0) & torch.isfinite(inverse).all(), inverse, out, out=out)
        return
    if int(info) == 0:
        out.copy_(torch.cholesky_inverse(factor)[:size, :size])
        return
    if not bool(torch.isfinite(shifted).all()):
        out.fill_(float("nan"))
        return
    values, vectors = symmetric_eigen(m)
    values = values.clamp(min=0) + damping
    torch.mm(vectors / values, vectors.T, out=out)


def bordered(size: int, border: int = BORDER) -> int:
    """The multiple of ``border`` above ``size``, or with a border the next where 128 divides it.

    LAPACK is slower on odd sizes, and by a third where rows start a power of two apart, for then they
    contend for the same places in the cache: 501 as 504 takes 3.5 ms, as 512 4.8; 1024 29, as 1032 22.
    """
    whole = -(-size // border) * border
    return whole + border if border > 1 and whole % CONFLICT == 0 else whole


def symmetric_eigen(m: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh``; in float64, where LAPACK's float32 routine fails to converge."""
    try:
        values, vectors = torch.linalg.eigh(m)
    except RuntimeError:  # torch.linalg.LinAlgError, a subclass that torch exports without a type
        values, vectors = (t.to(m.dtype) for t in torch.linalg.eigh(m.double()))
    return values, vectors


def eigen(m: Tensor, out: Tensor) -> None:
    """Eigenvalues (clipped at 0) above eigenvectors, packed ``[d+1, d]``; a diagonal ``[d]`` is copied."""
    if m.dim() < 2:
        out.copy_(m.clamp(min=0))
        return
    values, vectors = symmetric_eigen(m)
    out[0] = values.clamp(min=0)
    out[1:] = vectors


def precondition_eigen(
    gradient: Tensor, g: Tensor, q: Tensor, damping: Tensor, out: Tensor
) -> None:
    """``−U_G ((U_Gᵀ ∇ U_Q) / (g qᵀ + κ)) U_Qᵀ``, the exact inverse of ``G ⊗ Q + κ I`` times ``−∇``."""
    u_g, u_q = (None if f.dim() < 2 else f[1:] for f in (g, q))
    values_g, values_q = (
        (f if f.dim() < 2 else f[0]).expand(n) for f, n in zip((g, q), gradient.shape, strict=True)
    )
    rotated = gradient if u_g is None else u_g.T @ gradient
    rotated = rotated if u_q is None else rotated @ u_q
    rotated = -rotated / (torch.outer(values_g, values_q) + damping)
    rotated = rotated if u_g is None else u_g @ rotated
    out.copy_(rotated if u_q is None else rotated @ u_q.T)


def step_sizes(
    terms: list[Tensor],
    groups: tuple[int, ...],
    momentum: bool,
    growth: float | None,
    cap: float | None,
    out: Tensor,
) -> None:
    """Coefficients minimising ``bᵀc + ½ cᵀMc`` [MG §7] within the bounds of :class:`StepSizes`, laid out so.

    ``terms``: the upper triangle of M row by row, b, the usual length, and maybe the momentum's largest
    coefficient; solved in float64, scaled to a unit diagonal. In float32 on a CPU the host does it with the
    same LAPACK: of what differs, the order of sums in float64, nothing is left once ``out`` is rounded.
    """
    if out.dtype is torch.float32 and out.device.type == "cpu":
        numbers = [term.item() for term in terms]
        scalars.step_sizes(numbers, groups, momentum, growth, cap, out, small=0)
        return
    count = max(groups) + 1 + int(momentum)
    place = {pair: k for k, pair in enumerate(combinations_with_replacement(range(count), 2))}
    every = [place[min(i, j), max(i, j)] for i in range(count) for j in range(count)]
    every += range(len(place), len(terms))
    values = torch.stack([terms[k].reshape(()) for k in every]).double()
    m, vector = values[: count**2].view(count, count), values[count**2 :]
    b, usual, most = vector[:count], vector[count], vector[count + 1 :]
    c = _minimiser(m, b)
    own = slice(0, count - 1 if momentum else count)
    if cap is not None:
        c[own] = c[own].clamp(-cap, cap)
        if momentum:
            rest = b[-1] + m[-1, own] @ c[own]
            c[-1] = torch.where(m[-1, -1] > 0, -rest / m[-1, -1], 0.0)
    if momentum:
        bounded = c[-1].clamp(0, 1)
        if len(most):
            bounded = torch.minimum(bounded, most[0])
        others = _minimiser(m[own, own], b[own] + m[own, -1] * bounded)
        if cap is not None:
            others = others.clamp(-cap, cap)
        c = torch.where(c[-1] == bounded, c, torch.cat([others, bounded[None]]))
    length = torch.maximum(c @ m @ c, -(b @ c))
    if growth is not None:
        longest = torch.where(usual > 0, growth * usual, torch.inf)
        c = c * (longest / length).clamp(max=1)
        length = torch.minimum(length, longest)
    predicted = b @ c + c @ m @ c / 2
    slope = b[own].sum()
    effective = torch.where(slope == 0, 0.0, (b[own] @ c[own]) / slope)
    last = c[-1] if momentum else torch.zeros_like(predicted)
    sizes = [c[group] for group in groups]
    out.copy_(torch.stack([*sizes, length, last, predicted, effective]))


def _minimiser(m: Tensor, b: Tensor) -> Tensor:
    """``-m⁻¹ b``, scaled to a unit diagonal; 0 for directions without curvature."""
    diagonal = m.diagonal()
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    scaled = (scale[:, None] * m).mul_(scale)
    scaled.diagonal().add_(scalars.RIDGE)
    return _solve(scaled, scale * b).mul_(scale).neg_()


def _solve(m: Tensor, b: Tensor) -> Tensor:
    """``m⁻¹ b`` for a small positive definite m; on a device by Gauss and Jordan: a library would wait."""
    if m.device.type == "cpu":
        return torch.linalg.solve_ex(m, b)[0]
    rows = torch.cat([m, b[:, None]], dim=1)
    for k in range(len(m)):
        pivot = rows[k] / rows[k, k]
        rows = rows - rows[:, k, None] * pivot
        rows[k] = pivot
    return rows[:, -1]


def symmetric_product(
    a: Tensor, b: Tensor, out: Tensor, alpha: float = 1.0, block: int | str | None = "auto"
) -> None:
    """``out ← α aᵀ b`` where the result is known to be symmetric (``b = M a``, or ``b = a``).

    Only blocks on and below the diagonal are multiplied, then mirrored: about half the flops of a plain
    product once ``d`` is a few times ``block``. None makes it one plain product, "auto" decides by shape.
    """
    size = a.shape[-1]
    blocks = block_count(a.shape[0], size, block)
    if blocks < 2:
        torch.mm(a.T, b, out=out)
        if alpha != 1.0:
            out.mul_(alpha)
        return
    edges = [round(i * size / blocks) for i in range(blocks + 1)]
    for i in range(blocks):
        rows = slice(edges[i], edges[i + 1])
        # One tall product per block row keeps the multiplication efficient.
        left = slice(0, edges[i + 1])
        torch.addmm(
            out[rows, left], a[:, rows].T, b[:, left], beta=0, alpha=alpha, out=out[rows, left]
        )
    for i in range(1, blocks):
        rows, left = slice(edges[i], edges[i + 1]), slice(0, edges[i])
        out[left, rows] = out[rows, left].T


def block_count(rows: int, size: int, block: int | str | None) -> int:
    """How many diagonal blocks of a width a symmetric product of ``[rows, size]`` has."""
    if block == "auto":
        block = TALL_BLOCK if rows >= TALL else BLOCK if rows >= FEWEST_ROWS else None
    return 1 if block is None else -(-size // int(block))


def second_moment(
    a: Tensor,
    homogeneous: bool,
    out: Tensor,
    block: int | str | None = "auto",
    samples: int | None = None,
    coordinate: float = 1.0,
) -> None:
    """``out ← (1/N) Σ ā āᵀ`` over the rows of a ``[.., N, d]``, ``ā = [a, c]`` where homogeneous.

    N is the number of ``samples`` where it is not the last dimension but one, c the ``coordinate``. ``block``
    is that of :func:`symmetric_product`.
    """
    batch, size = samples or a.shape[-2], a.shape[-1]
    a = a.flatten(end_dim=-2)
    symmetric_product(a, a, out[:size, :size] if homogeneous else out, 1 / batch, block)
    if homogeneous:
        mean = torch.div(a.sum(dim=0), batch, out=out[size, :size])
        if coordinate != 1.0:
            mean.mul_(coordinate)
        out[:size, size].copy_(mean)
        out[size, size] = a.shape[0] / batch * coordinate**2


def cross_moment(
    a: Tensor,
    b: Tensor,
    homogeneous: bool,
    out: Tensor,
    samples: int | None = None,
    coordinate: float = 1.0,
) -> None:
    """``out ← (1/N) Σ a b̄ᵀ`` over rows of ``[.., N, d]``, ``b̄ = [b, c]`` where homogeneous.

    ``samples`` and ``coordinate`` are those of :func:`second_moment`.
    """
    batch = samples or a.shape[-2]
    a, b = a.flatten(end_dim=-2), b.flatten(end_dim=-2)
    product = out[:, :-1] if homogeneous else out
    torch.addmm(product, a.T, b, beta=0, alpha=1 / batch, out=product)
    if homogeneous:
        torch.div(a.sum(dim=0), batch, out=out[:, -1])
        if coordinate != 1.0:
            out[:, -1].mul_(coordinate)


def place_blocks(m: Tensor, places: int, last: bool, out: Tensor) -> None:
    """``out ← Σ_s M[s, s]`` over ``places``, neighbours of one feature where ``last``; M as it is stored."""
    if m.dim() == 0:
        torch.mul(m, places, out=out)
        return
    features = len(m) // places
    split = m.unflatten(0, (features, places) if last else (places, features))
    place = 1 if last else 0
    if m.dim() == 1:
        torch.sum(split, dim=place, out=out)
        return
    split = split.unflatten(-1, (features, places) if last else (places, features))
    blocks = split.diagonal(dim1=place, dim2=place + 2)  # the places become the last dimension
    torch.sum(blocks, dim=-1, out=out)


def weighted_blocks(m: Tensor, weights: Tensor, out: Tensor) -> None:
    """``out ← Σ_st w_st M[s, t]`` for M ``[P·d, P·d]``, and symmetric to the bit."""
    places, features = len(weights), len(m) // len(weights)
    pairs = m.unflatten(1, (places, features)).unflatten(0, (places, features))
    total = torch.einsum("sitj,st->ij", pairs, weights)
    torch.add(total, total.T, out=out).mul_(0.5)


def place_dots(m: Tensor, v: Tensor, out: Tensor) -> None:
    """``out[s, t] ← Σ_ij M[s, t]_ij V_ij`` for M ``[P·d, P·d]`` and V ``[d, d]``."""
    places, features = len(m) // len(v), len(v)
    pairs = m.unflatten(1, (places, features)).unflatten(0, (places, features))
    out.copy_(torch.einsum("sitj,ij->st", pairs, v))


def diagonal_moment(a: Tensor, samples: int, out: Tensor) -> None:
    """``out ← (1/N) Σ a ⊙ a`` over the rows of a ``[.., N, d]``."""
    torch.linalg.vector_norm(a.flatten(end_dim=-2), dim=0, out=out)
    out.square_().div_(samples)


def dot(a: Tensor, b: Tensor, mean: bool, out: Tensor) -> None:
    """``out ← Σ a ⊙ b``, divided by the number of rows if ``mean``."""
    if a.is_contiguous() and b.is_contiguous():
        torch.dot(a.view(-1), b.view(-1), out=out)
    else:
        torch.sum(a * b, dim=None, out=out)
    if mean:
        out.div_(a.shape[0])


def precondition(gradient: Tensor, g: Tensor, q: Tensor, scratch: Tensor, out: Tensor) -> None:
    """``out ← −G⁻¹ ∇ Q⁻¹`` for inverses stored in full, as a diagonal, or as a scalar."""
    if q.dim() == 2:
        torch.mm(gradient, q, out=scratch)
    else:
        torch.mul(gradient, q, out=scratch)
    if g.dim() == 2:
        torch.addmm(out, g, scratch, beta=0, alpha=-1, out=out)
    else:
        torch.mul(scratch, -(g[:, None] if g.dim() else g), out=out)


def sample_categorical(p: Tensor, u: Tensor, out: Tensor) -> None:
    """One-hot of the first class whose cumulative probability exceeds u ``[N, 1]``."""
    chosen = (p.cumsum(dim=-1) <= u).sum(dim=-1, keepdim=True).clamp_(max=p.shape[-1] - 1)
    out.zero_().scatter_(-1, chosen, 1.0)


def sample_roots(m: Tensor, out: Tensor) -> None:
    """``out[n] ← U √max(λ, 0)`` for each symmetric ``M_n = U λ Uᵀ``: ``[N, d, d]``.

    NaN where M is not finite. Eigenvalues rather than Cholesky, because output Hessians are often singular.
    """
    finite = m.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    values, vectors = symmetric_eigen(torch.where(finite, m, 0.0))
    torch.mul(vectors, values.clamp(min=0).sqrt()[:, None, :], out=out)
    out.masked_fill_(~finite, float("nan"))


def root_columns(r: Tensor, p: Tensor | None, start: int, out: Tensor) -> None:
    """``out[s] ← r_k (e_k − p)`` for columns k = start + s; zero for those that there are not.

    A root ``r [N, K, K]`` without p has its own columns; with p, r is ``[N, P, K]``, and a column is zero at
    all places but its own.
    """
    whole = p is None and r.dim() == 3
    count = r.shape[-1] if whole else r[0].numel()
    low, high = max(-start, 0), max(min(count - start, out.shape[0]), 0)
    out[:low].zero_()
    out[max(low, high) :].zero_()
    if low >= high:
        return
    if whole:
        out[low:high] = r[:, :, start + low : start + high].permute(2, 0, 1)
        return
    placed = r.dim() == 3
    if p is None or placed:
        out[low:high].zero_()
    else:
        torch.mul(p, -1, out=out[low])
        out[low + 1 : high] = out[low]
    for s in range(low, high):
        place, k = divmod(start + s, r.shape[-1])
        own, weight = (out[s, :, place], r[:, place]) if placed else (out[s], r)
        if placed and p is not None:
            torch.neg(p[:, place], out=own)
        own[:, k] += 1
        own.mul_(weight[:, k : k + 1])


def scatter(x: Tensor, places: Tensor, kept: Tensor, axis: int, out: Tensor) -> None:
    """``out[places] += x[kept]`` along ``axis``, from zero."""
    out.zero_().index_add_(axis, places, x.index_select(axis, kept))


Loops = tuple[int, ...]


def strided_copy(
    x: Tensor, sizes: Loops, to: Loops, strides: Loops, first_to: int, first: int, out: Tensor
) -> None:
    """``out[first_to + Σ i_k to_k] = x[first + Σ i_k strides_k]`` for all ``i_k < sizes_k``, by features."""
    _strided(out, sizes, to, first_to).copy_(_strided(x, sizes, strides, first))


def strided_sum(
    x: Tensor, sizes: Loops, to: Loops, strides: Loops, first_to: int, first: int, out: Tensor
) -> None:
    """The same with a sum over the ``i_k`` that stay at one place, ``to_k = 0``."""
    dims = [k - len(to) for k, step in enumerate(to) if not step]
    moving = [k for k, step in enumerate(to) if step]
    target = _strided(out, tuple(sizes[k] for k in moving), tuple(to[k] for k in moving), first_to)
    torch.sum(_strided(x, sizes, strides, first), dim=dims, out=target)


def _strided(x: Tensor, sizes: Loops, strides: Loops, first: int) -> Tensor:
    step = x.stride(-1)
    inner = tuple(step * stride for stride in strides)
    shape, outer = (*x.shape[:-1], *sizes), (*x.stride()[:-1], *inner)
    return x.as_strided(shape, outer, x.storage_offset() + step * first)
