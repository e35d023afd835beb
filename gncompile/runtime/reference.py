"""The reference backend: a StepProgram interpreted one instruction at a time, slow and obvious.

This file is the living definition of the step program: every operation is the formula of its docstring in
plain torch. Tests compare the emitted source with it; it runs in the dtype of the parameters.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from ..errors import InternalError
from ..functions.expressions import evaluate
from ..program import collectives, exact, lookups
from ..program import convolutions as grids
from ..program import operations as ir
from ..program.operations import Op
from ..program.specs import Spec
from ..program.step_program import Instruction, StepProgram
from . import scalars
from .memory import Memory, bind_shape, dense
from .reference_collectives import collected
from .reference_convolutions import windowed
from .reference_interpolation import interpolate
from .reference_jacobian import of_rows


class ReferenceStep:
    """Runs the phases of a program on a bound batch; same interface as an emitted ``Step``."""

    def __init__(
        self, program: StepProgram, memory: Memory, dims: Mapping[str, int], first: Any = None
    ) -> None:
        """``first`` is the step on the first shard of a batch, which has what is computed once for all."""
        self.program, self.memory, self.dims = program, memory, dict(dims)
        self.inputs: dict[str, Tensor] = {}
        self.column_start = 0
        self._values = ChainMap[str, Tensor]({}, first._values if first else {})

    def load(
        self, inputs: tuple[Tensor, ...], target: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Take the batch the next phases work on, or these rows of it."""
        if rows is not None:
            inputs = tuple(x[rows] for x in inputs)
            target = None if target is None else target[rows]
        self.inputs = {str(i): x for i, x in enumerate(inputs)}
        if target is not None:
            self.inputs["y"] = target

    def run(self, phase: str) -> None:
        """Execute one phase."""
        for instruction in self.program.phase(phase):
            self._execute(instruction)

    def value(self, name: str) -> Tensor:
        """A value computed so far, or a leaf."""
        instruction = self.program[name]
        if isinstance(instruction.op, ir.Leaf):
            return self._leaf(instruction.op, bind_shape(instruction.spec.shape, self.dims))
        return self._values[name]

    def _leaf(self, leaf: ir.Leaf, shape: tuple[int, ...]) -> Tensor:
        if leaf.kind in ("input", "target"):
            return self.inputs[leaf.key]
        if leaf.kind == "parameter":
            return self.memory.parameter(leaf.key, shape)
        return getattr(self.memory, leaf.kind)(leaf.key)

    def _execute(self, instruction: Instruction) -> None:
        operands = [self.value(name) for name in instruction.inputs]
        specs = [self.program[name].spec for name in instruction.inputs]
        result = self._apply(instruction.op, operands, specs)
        if tuple(result.shape) != bind_shape(instruction.spec.shape, self.dims):
            raise InternalError(f"{instruction} yields shape {tuple(result.shape)}")
        if instruction.into is not None:
            if not isinstance(self.program[instruction.into].op, ir.Leaf):
                self._values.setdefault(instruction.into, result)  # its own phase need not have run
            target = self.value(instruction.into)
            target.copy_(result)
            result = target
        self._values[instruction.name] = result

    def _apply(self, op: Op, v: list[Tensor], specs: list[Spec]) -> Tensor:
        match op:
            case ir.Random(kind, shape, joined=joined):
                out = self._new(torch.empty, bind_shape(shape, self.dims))
                self.memory.random(kind, out, str(shape[0]) if joined else "")
                return out
            case _ if isinstance(op, collectives.OPERATIONS):
                return collected(op, v, specs, self.memory)
            case ir.Zeros(spec):
                return self._new(torch.zeros, bind_shape(spec.shape, self.dims))
            case ir.Pointwise(expression) if not v:
                return self._new(torch.tensor, float(expression))
            case ir.Share(rows):
                first = self.dims["N"] - self.dims["F"] if rows == "F" else 0
                return v[0].narrow(specs[0].samples_axis, first, self.dims[str(rows)])
            case ir.Repeat(shape):
                return v[0].expand(bind_shape(shape, self.dims)).clone()
            case ir.Columns(first):
                return columns(v, self.column_start - first, self.dims["S"])
            case ir.DiagonalMoment():
                total = v[0].square().flatten(end_dim=-2).sum(dim=0)
                return total / self.dims[str(specs[0].samples)]
            case ir.Moment():
                return moment(op, v, self.dims[str(specs[0].samples)])
        return apply(op, v, specs)

    def _new(self, make: Callable[..., Tensor], of: object) -> Tensor:
        return make(of, dtype=self.memory.dtype, device=self.memory.device)


def columns(v: list[Tensor], start: int, count: int) -> Tensor:
    """``r_k (e_k − p)`` for k = start … start + count − 1, zero beyond the last; or columns of a root."""
    r, chosen = v[0], range(start, start + count)
    if r.dim() == 3 and len(v) == 1:
        zero = torch.zeros_like(r[:, :, 0])
        return torch.stack([r[:, :, k] if 0 <= k < r.shape[-1] else zero for k in chosen])
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    p = v[1] if len(v) > 1 else torch.zeros_like(r)
    r, p = (x.reshape(len(x), -1, x.shape[-1]) for x in (r, p))
    result = r.new_zeros(count, *r.shape)
    for s, column in enumerate(chosen):
        place, k = divmod(column, r.shape[-1])
        if 0 <= place < r.shape[1]:
            result[s, :, place] = r[:, place, k : k + 1] * (identity[k] - p[:, place])
    return result.reshape(count, *v[0].shape)


def moment(op: ir.Moment, v: list[Tensor], samples: int) -> Tensor:
    """``(1/N) Σ a bᵀ`` over samples, places and columns, with the coordinate appended where homogeneous."""
    rows = [x.reshape(-1, x.shape[-1]) for x in v]
    if op.homogeneous:
        last = rows[-1].new_full((rows[-1].shape[0], 1), op.coordinate)
        rows[-1] = torch.cat([rows[-1], last], dim=1)
    return rows[0].T @ rows[-1] / samples


def apply(op: Op, v: list[Tensor], specs: list[Spec]) -> Tensor:
    """``op(v)`` for every operation that needs no runtime context."""
    match op:
        case ir.Affine():
            return affine(v)
        case ir.MatMul(ta, tb):
            return (v[0].mT if ta else v[0]) @ (v[1].mT if tb else v[1])
        case ir.Pointwise(sympy.Symbol()):
            return v[0].clone()
        case ir.Pointwise(expression, symbols):
            result = evaluate(expression, dict(zip(symbols, v, strict=True)))
            return result.expand(torch.broadcast_shapes(*(x.shape for x in v)))
        case ir.Gather(index, fill):
            return gather(torch.cat(v, dim=-1), index, fill)
        case ir.Scatter(index, size, axis):
            return scatter(v[0], index, size, axis)
        case ir.Mean():
            return v[0].mean(dim=0)
        case ir.Stack():
            return torch.stack(v)
        case ir.Total(mean):
            return v[0].sum() / (v[0].shape[0] if mean else 1)
        case ir.RowSum():
            return v[0].sum(dim=-1, keepdim=True)
        case ir.Dot(mean):
            return (v[0] * v[1]).sum() / (v[0].shape[0] if mean else 1)
        case ir.Softmax():
            return torch.softmax(v[0], dim=-1)
        case ir.LogSumExp():
            return torch.logsumexp(v[0], dim=-1, keepdim=True)
        case ir.SampleCategorical():
            return sample_categorical(v[0], v[1])
        case ir.SampleDiagonal():
            return torch.diag_embed(v[0])
        case ir.SampleOuter():
            return v[0][:, :, None] * v[1][:, None, :]
        case ir.SampleMatrix(size):
            return v[0].reshape(-1, size, size)
        case ir.PlaceMoments():
            return v[0].mT @ v[1] / v[0].shape[1]
        case ir.Unflatten(sizes, axis):
            return v[0].unflatten(axis, sizes)
        case ir.Flatten(count, axis):
            return v[0].flatten(axis - count + 1, axis)
        case ir.Permute(order):
            return v[0].permute(permuted(order, v[0].dim()))
        case grids.FeaturesLast():
            return v[0].movedim(0, -1)
        case grids.Windowed():
            return windowed(op, v)
        case exact.JacobianOp():
            return of_rows(op, v)
        case ir.SampleRoot():
            finite = v[0].isfinite().flatten(1).all(dim=1)[:, None, None]
            values, vectors = eigenvalues(torch.where(finite, v[0], 0.0))
            roots = vectors * values.clamp(min=0).sqrt()[:, None, :]
            return torch.where(finite, roots, torch.nan)
        case ir.SampleMultiply():
            return (v[0] @ v[1][:, :, None])[:, :, 0]
        case ir.ScaleSides(left, right):
            m = v[0] * v[1][:, :, None] if left else v[0]
            return m * v[-1][:, None, :] if right else m
        case lookups.Lookup(padding):
            rows = v[0][v[1].nan_to_num().long()] + 0 * v[1][..., None]
            return rows if padding is None else torch.where(v[1][..., None] == padding, 0.0, rows)
        case lookups.LookupGradient() | lookups.Counts():
            hot = one_hot(v[0], op.classes, op.padding).flatten(end_dim=-2)
            if isinstance(op, lookups.Counts):
                return hot.sum(dim=0) / len(v[0])
            return hot.T @ v[1].flatten(end_dim=-2) / len(v[0])
        case lookups.OneHot(classes):
            return one_hot(v[0], classes, None)
        case ir.Interpolate():
            return interpolate(op, *v)
        case ir.PlaceBlocks():
            return place_blocks(op, *v)
        case ir.TakeDiagonal():
            return v[0].diagonal()
        case ir.PlaceDots(places):
            blocks = [row.chunk(places, dim=1) for row in v[0].chunk(places)]
            return torch.stack([torch.stack([(m * v[1]).sum() for m in row]) for row in blocks])
    return apply_matrix(op, v, specs)


def apply_matrix(op: Op, v: list[Tensor], specs: list[Spec]) -> Tensor:
    """Operations on structured matrices and on the optimiser's state."""
    match op:
        case ir.Multiply():
            return dense(v[0], specs[0]) @ v[1]
        case ir.SymmetricProduct():
            product = v[0].T @ v[1]
            return (product + product.T) / 2
        case ir.Hadamard():
            return v[0] * v[1]
        case ir.AddDiagonal():
            return v[0] + torch.eye(len(v[0]), dtype=v[0].dtype, device=v[0].device) * v[1]
        case ir.Densify():
            return dense(v[0], specs[0])
        case ir.Trace():
            return dense(v[0], specs[0]).trace()
        case ir.Transpose():
            return v[0].mT
        case ir.PlusTranspose():
            return v[0] + v[0].mT
        case ir.AsMatrix():
            return v[0]
        case ir.Part(which):
            return v[0][:, :-1] if which == "weight" else v[0][:, -1]
        case ir.Element(index):
            return v[0][index]
        case ir.Decay(weight, bias):
            result = v[0].clone()
            result[:, : v[1].shape[1]] += weight * v[1]
            if len(v) > 2:
                result[:, -1] += bias * v[2]
            return result
        case ir.Average():
            return v[2] * v[0] + (1 - v[2]) * v[1]
        case ir.DampedInverse():
            return damped_inverse(v[0], v[1])
        case ir.Eigen():
            if v[0].dim() < 2:
                return v[0].clamp(min=0)
            values, vectors = eigenvalues(v[0])
            return torch.cat([values.clamp(min=0)[None], vectors])
        case ir.Precondition():
            return -dense(v[1], specs[1]) @ v[0] @ dense(v[2], specs[2])
        case ir.PreconditionEigen():
            return precondition_eigen(*v)
        case ir.StepSizes():
            return step_sizes(op, torch.stack(v).double()).to(v[0])
    raise InternalError(f"the reference backend does not know {op}")


def permuted(order: tuple[int, ...], rank: int) -> list[int]:
    """The dimensions of a tensor of ``rank`` with the last ones in ``order``."""
    kept = rank - len(order)
    return [*range(kept), *(kept + i for i in order)]


def eigenvalues(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices, found in float64."""
    values, vectors = torch.linalg.eigh(m.double())
    return values.to(m.dtype), vectors.to(m.dtype)


def damped_inverse(m: Tensor, damping: Tensor) -> Tensor:
    """``U (λ + c)⁻¹ Uᵀ``, c at least ``ε tr M``; a negative λ counts as 0 where ``M + c I`` is indefinite."""
    if m.dim() < 2:
        return 1 / (m + damping)
    if not m.isfinite().all():
        return torch.full_like(m, torch.nan)
    damping = torch.maximum(damping, m.trace() * torch.finfo(m.dtype).eps)
    values, vectors = torch.linalg.eigh(m.double())
    values = values if (values + damping > 0).all() else values.clamp(min=0)
    return (vectors / (values + damping) @ vectors.T).to(m.dtype)


def precondition_eigen(gradient: Tensor, g: Tensor, q: Tensor, damping: Tensor) -> Tensor:
    """``−(G ⊗ Q + κ I)⁻¹ ∇`` for factors given by eigenvalues over eigenvectors, or by their diagonal."""
    (values_g, u_g), (values_q, u_q) = (
        (f.expand(n), torch.eye(n, dtype=f.dtype, device=f.device))
        if f.dim() < 2
        else (f[0], f[1:])
        for f, n in zip((g, q), gradient.shape, strict=True)
    )
    rotated = u_g.T @ gradient @ u_q / (values_g[:, None] * values_q + damping)
    return -u_g @ rotated @ u_q.T


def step_sizes(op: ir.StepSizes, terms: Tensor) -> Tensor:
    """:class:`~gncompile.program.step_program.StepSizes` as it is defined there."""
    n, own = op.count, op.count - op.momentum
    m = terms.new_zeros(n, n)
    m[tuple(torch.triu_indices(n, n))] = terms[: n * (n + 1) // 2]
    m = m + m.triu(1).T
    b, usual, *most = terms[n * (n + 1) // 2 :].split([n, 1, len(terms) - n * (n + 3) // 2 - 1])
    cap = torch.inf if op.cap is None else op.cap
    c = best(m, b)
    c[:own] = c[:own].clamp(-cap, cap)
    if op.momentum:
        if op.cap is not None:
            c[-1] = best(m[-1:, -1:], b[-1:] + m[-1:, :own] @ c[:own])[0]
        bounded = c[-1].clamp(0, min([1.0, *most[0].tolist()]))
        if bounded != c[-1]:
            others = best(m[:own, :own], b[:own] + m[:own, -1] * bounded).clamp(-cap, cap)
            c = torch.cat([others, bounded[None]])
    length = torch.maximum(c @ m @ c, -b @ c)
    if op.growth is not None and usual > 0 and length > op.growth * usual:
        c, length = c * (op.growth * usual / length), op.growth * usual[0]
    slope = b[:own].sum()
    effective = b[:own] @ c[:own] / slope if slope != 0 else 0 * slope
    last = c[-1] if op.momentum else 0 * length
    described = torch.stack([length, last, b @ c + c @ m @ c / 2, effective])
    return torch.cat([c[list(op.groups)], described])


def best(m: Tensor, b: Tensor) -> Tensor:
    """The least c that minimises ``bᵀc + ½ cᵀMc``, up to the ridge of M scaled to a unit diagonal."""
    scale = torch.where(m.diagonal() > 0, m.diagonal() ** -0.5, 0.0)
    ridge = scalars.RIDGE * torch.eye(len(m)).to(m)
    return -scale * (torch.linalg.inv_ex(scale[:, None] * m * scale + ridge)[0] @ (scale * b))


def affine(v: list[Tensor]) -> Tensor:
    """``x Wᵀ [+ y Vᵀ] [+ b]`` by the number of operands; :class:`~gncompile.program.step_program.Affine`."""
    result = v[0] @ v[1].T
    if len(v) >= 4:
        result = result + v[2] @ v[3].T
    return result + v[-1] if len(v) % 2 else result


def gather(x: Tensor, index: tuple[int, ...], fill: float) -> Tensor:
    """``x[..., index]`` with ``fill`` where the index is -1."""
    places = torch.tensor(index, device=x.device)
    return torch.where(places >= 0, x[..., places.clamp(min=0)], fill)


def scatter(x: Tensor, index: tuple[int, ...], size: int, axis: int) -> Tensor:
    """``result[..., index_j, ...] += x[..., j, ...]`` along ``axis``; -1 is dropped."""
    kept = [j for j, place in enumerate(index) if place >= 0]
    places, source = (
        torch.tensor(j, dtype=torch.int64, device=x.device)
        for j in ([index[j] for j in kept], kept)
    )
    shape = list(x.shape)
    shape[axis] = size
    return x.new_zeros(shape).index_add_(axis, places, x.index_select(axis, source))


def one_hot(index: Tensor, classes: int, padding: int | None) -> Tensor:
    """Rows with a one at the index; none for ``padding``, NaN for an index that is."""
    places = torch.arange(classes, device=index.device)
    hot = (index[..., None] == places).to(index) + 0 * index[..., None]
    return hot if padding is None else hot * (places != padding)


def place_blocks(op: ir.PlaceBlocks, m: Tensor, weights: Tensor | None = None) -> Tensor:
    """``Σ_s M[s, s]``; of a number times the identity, a diagonal, or a full matrix; or weighted pairs."""
    if weights is not None:
        blocks = [block for row in m.chunk(op.places) for block in row.chunk(op.places, dim=1)]
        total = torch.stack([w * b for w, b in zip(weights.flatten(), blocks, strict=True)]).sum(0)
        return (total + total.T) / 2
    if m.dim() == 0:
        return m * op.places
    size = len(m) // op.places
    shape = (size, op.places) if op.last else (op.places, size)
    at = torch.arange(len(m), device=m.device).reshape(shape)
    places = at.T if op.last else at
    return sum((m[s] if m.dim() == 1 else m[s][:, s] for s in places), start=m.new_zeros(()))


def sample_categorical(p: Tensor, u: Tensor) -> Tensor:
    """One-hot of the first class whose cumulative probability exceeds u."""
    chosen = (p.cumsum(dim=-1) <= u).sum(dim=-1).clamp(max=p.shape[-1] - 1)
    return torch.nn.functional.one_hot(chosen, p.shape[-1]).to(p.dtype)
