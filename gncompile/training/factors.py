"""Kronecker factors of one layer's curvature, and what can be computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import CompileError, expected_got, visible
from ..graph.layers import Layer
from ..runtime.linalg import symmetric_eigen

ByParameter = Mapping[str, Tensor]
"""Tensors by parameter name, shaped like the parameters or with further dimensions in front."""
V = TypeVar("V", Tensor, ByParameter)


@dataclass(frozen=True)
class ParameterPlaces:
    """Where a layer's parameters stand in its ``W̄ = [W, b]``."""

    layer: Layer
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, layer: Layer, parameters: ByParameter) -> ParameterPlaces:
        """Of a layer of a traced model, with the model's parameters."""
        return cls(layer, {name: tuple(parameters[name].shape) for name in layer.parameters})

    def joined(self, by_name: ByParameter) -> Tensor:
        """``[…, out, in+1]`` of tensors by parameter name."""
        for name, shape in self.shapes.items():
            found = tuple(by_name[name].shape) if name in by_name else None
            if found is None or found[len(found) - len(shape) :] != shape:
                wanted = f"[…, {', '.join(map(str, shape))}]"
                raise CompileError(
                    f"v has the wrong {name!r} for layer {self.layer.name!r}\n"
                    + expected_got(wanted, "none" if found is None else list(found)),
                    instead=f"give tensors shaped like {', '.join(self.shapes)}",
                )
        whole = self.layer.joined
        for _ in range(by_name[self.layer.weight].dim() - len(self.shapes[self.layer.weight])):
            whole = torch.vmap(whole)
        return whole({name: by_name[name] for name in self.shapes})

    def split(self, whole: Tensor) -> dict[str, Tensor]:
        """The inverse of :meth:`joined`."""
        parts, leading = self.layer.split(whole), whole.shape[:-2]
        return {name: part.reshape(*leading, *self.shapes[name]) for name, part in parts.items()}


@dataclass(frozen=True)
class KroneckerFactors:
    """``E[G-block of W̄] ≈ Ḡ ⊗ Q`` for one affine layer (docs/mathematics.md#curvature-factors).

    ``input``: Q = E[ā āᵀ], ``[in+1, in+1]`` with the homogeneous coordinate last (``[in, in]`` without a
    trained bias). ``output``: Ḡ, ``[out, out]``. Both are symmetric and positive semidefinite (``output`` of
    the Hessian need not be), divided by N, in the order of torch's row-major ``W̄ = [W, b]``: out index slow.
    ``samples`` is that N, and None of running averages. ``a + b`` are the factors of both batches.

    The matrix is applied to, and solved for, ``v: […, out, in+1]`` with any dimensions in front, or a dict of
    tensors shaped like the layer's parameters, and gives the same; no ``[P, P]`` matrix is made but by
    :meth:`dense`. Wrong names, shapes and dtypes raise :class:`~gncompile.errors.CompileError`.
    """

    layer: str
    input: Tensor
    output: Tensor
    samples: int | None = None
    places: ParameterPlaces | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Of W̄: ``(out, in+1)``."""
        return self.output.shape[0], self.input.shape[0]

    def dense(self) -> Tensor:
        """``Ḡ ⊗ Q``: ``[out·(in+1), out·(in+1)]``. Memory is the square of the layer's parameter count."""
        return torch.kron(self.output, self.input)

    def eigenvalues(self) -> Tensor:
        """Those of ``Ḡ ⊗ Q``, ``[out, in+1]``: products of the factors', which ascend along both."""
        (g, _), (q, _) = self.eigen
        return torch.outer(g, q)

    def diagonal(self) -> Tensor:
        """The diagonal of ``Ḡ ⊗ Q`` as it stands in W̄, ``[out, in+1]``."""
        return torch.outer(self.output.diagonal(), self.input.diagonal())

    def trace(self) -> Tensor:
        """``tr Ḡ · tr Q``, a scalar."""
        return self.output.trace() * self.input.trace()

    def logdet(self, damping: float | Tensor = 0.0) -> Tensor:
        """``log det(Ḡ ⊗ Q + damping · I)``, a scalar; differentiable in ``damping``."""
        return torch.log(self.eigenvalues() + damping).sum()

    def __matmul__(self, v: V) -> V:
        """``(Ḡ ⊗ Q) v = Ḡ V Q``: O(out² in + out in²) for each v."""
        matrix = self._matrix(v)
        return self._like(v, self.output @ matrix @ self.input)

    def solve(self, v: V, damping: float = 0.0) -> V:
        """``(Ḡ ⊗ Q + damping · I)⁻¹ v``, by eigendecompositions that are made once: O(out³ + in³).

        Raises :class:`~gncompile.errors.CompileError` without damping where the matrix is singular, as far as
        rounding tells.
        """
        matrix, values = self._matrix(v), self.eigenvalues() + damping
        rounding = max(self.shape) * torch.finfo(values.dtype).eps * values.abs().max()
        if damping == 0 and bool(values.abs().min() <= rounding):
            raise CompileError(
                f"the factors of layer {self.layer!r} are singular: the smallest of their eigenvalues is "
                f"{float(values.abs().min()):.3g}, the largest {float(values.abs().max()):.3g}",
                instead="give a damping: solve(v, damping=...)",
            )
        (_, u_g), (_, u_q) = self.eigen
        return self._like(v, u_g @ ((u_g.T @ matrix @ u_q) / values) @ u_q.T)

    def __add__(self, other: KroneckerFactors) -> KroneckerFactors:
        """The factors of two batches together: of Q and of Ḡ the means over the samples of both.

        Of a loss that is a mean over samples; one that is summed over a batch has another scale in each.
        """
        if not isinstance(other, KroneckerFactors):
            return NotImplemented
        if (self.layer, self.shape) != (other.layer, other.shape):
            raise CompileError(
                "the factors are of different layers\n"
                + expected_got(f"{self.layer} {self.shape}", f"{other.layer} {other.shape}"),
                instead="add factors of one layer, computed on several batches",
            )
        if self.samples is None or other.samples is None:
            raise CompileError(
                f"the factors of layer {self.layer!r} do not tell of how many samples they are the mean",
                instead="add what gncompile.curvature returns; running averages of a training are of no "
                "definite number",
            )
        count = self.samples + other.samples
        share = self.samples / count
        q, g = (
            torch.lerp(theirs, ours, share)
            for ours, theirs in ((self.input, other.input), (self.output, other.output))
        )
        return KroneckerFactors(self.layer, q, g, count, self.places)

    def __radd__(self, other: object) -> KroneckerFactors:
        """``sum(...)`` begins with 0."""
        return self if other == 0 else NotImplemented

    def to(self, dtype: torch.dtype) -> KroneckerFactors:
        """The same in another precision."""
        both = self.input.to(dtype), self.output.to(dtype)
        return KroneckerFactors(self.layer, *both, self.samples, self.places)

    def __repr__(self) -> str:
        g, q = self.shape
        dtype = str(self.output.dtype).removeprefix("torch.")
        of = "" if self.samples is None else f", {self.samples} samples"
        return visible(f"KroneckerFactors({self.layer}: Ḡ [{g}, {g}] ⊗ Q [{q}, {q}], {dtype}{of})")

    @cached_property
    def eigen(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Eigenvalues, ascending, and eigenvectors: of Ḡ, and of Q."""
        return symmetric_eigen(self.output), symmetric_eigen(self.input)

    def _matrix(self, v: Tensor | ByParameter) -> Tensor:
        """``v`` as ``[…, out, in+1]``, checked."""
        if isinstance(v, Mapping):
            if self.places is None:
                raise CompileError(
                    f"the factors of layer {self.layer!r} do not tell where its parameters stand in them",
                    instead="pass v as [W, b], a tensor [out, in+1]",
                )
            v = self.places.joined(v)
        if not isinstance(v, Tensor) or tuple(v.shape[-2:]) != self.shape:
            found = list(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise CompileError(
                f"v has the wrong shape for layer {self.layer!r}\n"
                + expected_got(f"[…, {self.shape[0]}, {self.shape[1]}]", found),
                instead="pass v as [W, b], or a dict of tensors shaped like the layer's parameters",
            )
        if v.dtype != self.output.dtype:
            raise CompileError(
                f"v is {v.dtype}, and the factors of layer {self.layer!r} are {self.output.dtype}",
                instead="convert v with .to(dtype), or compute the factors with that dtype",
            )
        return v

    def _like(self, v: V, found: Tensor) -> V:
        """``found`` in the form of ``v``."""
        if isinstance(v, Tensor):
            return found
        assert self.places is not None
        return self.places.split(found)
