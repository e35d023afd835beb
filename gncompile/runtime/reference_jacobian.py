"""Operations on the Jacobian's rows as defined: rows are formed, and systems solved by eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InternalError
from ..program import exact


def of_rows(op: exact.JacobianOp, v: list[Tensor]) -> Tensor:
    """``op(v)``, one formula each."""
    match op:
        case exact.Rows(homogeneous, coordinate):
            return _rows(v[0], v[1], coordinate if homogeneous else None).flatten(-2)
        case exact.RowGram(bias, adds):
            sides = v[1 : len(v) - int(adds)]
            if bias:
                j = torch.stack([side.sum(dim=2) for side in sides]).sum(0)
            else:
                pairs = zip(sides[::2], sides[1::2], strict=True)
                made = [torch.einsum("...nta,...ntb->...nab", *pair) for pair in pairs]
                j = torch.stack(made).sum(0).flatten(-2)
            gram = torch.einsum("knp,lmp->knlm", j * v[0].flatten(), j) / j.shape[1]
            return gram + v[-1] if adds else gram
        case exact.RowSquares(vector, coordinates):
            if vector:
                j = torch.stack([side.sum(dim=2) for side in v]).sum(0)[..., None]
            else:
                appended = coordinates or (None,) * (len(v) // 2)
                uses = zip(v[::2], v[1::2], appended, strict=True)
                made = [_rows(left, right, one) for left, right, one in uses]
                j = torch.stack(made).sum(0)
            return j.square().sum((0, 1)) / j.shape[1]
        case exact.Joined():
            return torch.cat([m.flatten() for m in v])
        case exact.RootSolve(diagonal):
            c, g = v[0].permute(1, 2, 0), v[1]
            if diagonal:
                root = c.diagonal(dim1=1, dim2=2)
                return (
                    torch.where(root != 0, g / root, 0.0)
                    .nan_to_num(posinf=0, neginf=0)
                    .T[..., None]
                )
            length = c.norm(dim=1, keepdim=True)
            length = torch.where(length > 0, length, 1.0)
            some = torch.linalg.pinv(c / length) @ g[:, :, None] / length.mT
            least = torch.linalg.pinv(c) @ (c @ some)
            return least[:, :, 0].T[..., None]
        case exact.RootRest():
            c, g, r = v
            rest = g - torch.einsum("knj,kni->nj", c, r)
            rounding = 64 * g.shape[1] * torch.finfo(g.dtype).eps * g.norm(dim=1, keepdim=True)
            return torch.where(rest.norm(dim=1, keepdim=True) > rounding, rest, 0.0)
        case exact.DualSolve():
            gram, damping, r = v
            values, vectors = _eigenvalues(gram.flatten(2).flatten(0, 1))
            weights = torch.where(values > _cut(values), 1 / (values.clamp(min=0) + damping), 0.0)
            return (vectors @ (weights * (vectors.T @ r.flatten()))).view(r.shape)
        case exact.PrimalSolve():
            g, damping, gradient, *scale = v
            root = scale[0].rsqrt() if scale else torch.ones_like(gradient)
            g, gradient = torch.outer(root, root) * g, root * gradient
            values, vectors = _eigenvalues(g)
            along = vectors.T @ gradient
            rounding = 64 * len(g) * torch.finfo(g.dtype).eps * gradient.norm()
            kept = (values > _cut(values)) | (along.abs() > rounding)
            solution = vectors @ torch.where(kept, along / (values.clamp(min=0) + damping), 0.0)
            return -root * solution
    raise InternalError(f"the reference backend does not know {op}")


def _rows(left: Tensor, right: Tensor, coordinate: float | None) -> Tensor:
    """``Σ_s l_s [r_s, c]ᵀ``, or without c: ``[S, N, a, b]``."""
    if coordinate is not None:
        right = torch.cat([right, torch.full_like(right[..., :1], coordinate)], dim=-1)
    return torch.einsum("...nta,...ntb->...nab", left, right)


def _eigenvalues(m: Tensor) -> tuple[Tensor, Tensor]:
    if not m.isfinite().all():
        return torch.full_like(m[0], torch.nan), torch.full_like(m, torch.nan)
    values, vectors = torch.linalg.eigh(m.double())
    return values.to(m.dtype), vectors.to(m.dtype)


def _cut(values: Tensor) -> Tensor:
    """Below it an eigenvalue is rounding."""
    return 4 * torch.finfo(values.dtype).eps * values.clamp(min=0).sum()
