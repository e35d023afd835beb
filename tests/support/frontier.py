"""KFRA on a DAG by brute force: one averaged matrix per pair of live tensors.

A structure is a list of nodes in topological order: :class:`Lin` sums constant matrices times its
sources (affine layers, concatenation, slices), :class:`Point` applies one elementwise function to
its sources. A pointwise region between linear nodes is a single :class:`Point`, however many
operations it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

INPUT = "x"


@dataclass(frozen=True)
class Lin:
    """``name = Σ_s s A_sᵀ (+ bias)``."""

    name: str
    matrices: Mapping[str, Tensor]
    bias: Tensor | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.matrices)

    def value(self, values: Mapping[str, Tensor]) -> Tensor:
        terms = [values[source] @ A.T for source, A in self.matrices.items()]
        return torch.stack(terms).sum(dim=0) + (0.0 if self.bias is None else self.bias)


@dataclass(frozen=True)
class Point:
    """``name = function(*sources)``, elementwise."""

    name: str
    sources: tuple[str, ...]
    function: Callable[..., Tensor]

    def value(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.function(*(values[source] for source in self.sources))

    def slope(self, source: str, values: Mapping[str, Tensor]) -> Tensor:
        """``∂name/∂source`` for each sample: [N, d]."""
        at = tuple(values[s] for s in self.sources)
        along = tuple(
            torch.full_like(v, float(s == source)) for s, v in zip(self.sources, at, strict=True)
        )
        b: Tensor = jvp(self.function, at, along)[1]
        return b


Part = Lin | Point
Blocks = dict[tuple[str, str], Tensor]


def forward(parts: Sequence[Part], x: Tensor) -> dict[str, Tensor]:
    """Every node's value."""
    values = {INPUT: x}
    for part in parts:
        values[part.name] = part.value(values)
    return values


def frontier_kfra(parts: Sequence[Part], top: Tensor, x: Tensor) -> dict[str, Tensor]:
    """``M[y, y]`` of every node, starting from ``M[z, z] = top`` at the last node.

    Linear nodes leave the cut as soon as all their readers have; when none can, all pointwise nodes
    that can leave do so together.
    """
    values = forward(parts, x)
    M: Blocks = {(parts[-1].name, parts[-1].name): top}
    left: set[str] = set()
    found: dict[str, Tensor] = {}
    while len(left) < len(parts):
        ready = [p for p in parts if p.name not in left and _readers(p, parts) <= left]
        linear = [p for p in ready if isinstance(p, Lin)]
        leaving = linear[:1] or ready
        for part in leaving:
            found[part.name] = M[part.name, part.name]
        M = _step(M, leaving, values)
        left |= {part.name for part in leaving}
    return found


def _readers(part: Part, parts: Sequence[Part]) -> set[str]:
    return {other.name for other in parts if part.name in other.sources}


def _step(M: Blocks, leaving: Sequence[Part], values: Mapping[str, Tensor]) -> Blocks:
    """The cut after ``leaving``: every new live tensor is reached from old ones by known Jacobians.

    A tensor that stays reaches itself by the identity; a source of a leaving node also reaches that
    node. Each pair of paths adds ``E[Jᵀ M J']`` of the old block between their ends.
    """
    gone = {part.name for part in leaving}
    staying = [s for s, t in M if s == t and s not in gone]
    paths: dict[str, list[tuple[str, Tensor]]] = {}
    for name in staying:
        paths[name] = [(name, torch.diag_embed(torch.ones_like(values[name])))]
    for part in leaving:
        for source in part.sources:
            if source != INPUT:
                paths.setdefault(source, []).append((part.name, _jacobian(part, source, values)))
    return {(s, t): _joined(M, paths[s], paths[t]) for s in paths for t in paths}


def _jacobian(part: Part, source: str, values: Mapping[str, Tensor]) -> Tensor:
    """``∂part/∂source`` for each sample: [N, d_part, d_source]."""
    if isinstance(part, Point):
        return torch.diag_embed(part.slope(source, values))
    return part.matrices[source].expand(len(values[source]), -1, -1)


def _joined(M: Blocks, left: list[tuple[str, Tensor]], right: list[tuple[str, Tensor]]) -> Tensor:
    terms = [
        (J.transpose(1, 2) @ M[end, other] @ K).mean(dim=0) for end, J in left for other, K in right
    ]
    return torch.stack(terms).sum(dim=0)
