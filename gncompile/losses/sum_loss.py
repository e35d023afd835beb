"""A sum of losses, each of one of the network's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import BatchError, LossError
from ..functions.convexity import Convexity
from .coupled_loss import CoupledLoss
from .cross_entropy import SoftmaxCrossEntropy
from .loss_scale import PER_SAMPLE, Scale
from .separable import SeparableLoss
from .targets import rows_of

Single = SeparableLoss | SoftmaxCrossEntropy | CoupledLoss
"""A loss of one output."""

Shape = tuple[int, ...]
Outputs = tuple[tuple[str, Shape], ...]
"""The outputs of a network by name, or by number as text, with their per-sample shapes."""


@dataclass(frozen=True)
class Term:
    """``α E_n(z, y)`` of the output ``key``, α in the loss's scale; the ``shape`` is known once bound."""

    key: str
    loss: Single
    shape: Shape = ()

    @property
    def size(self) -> int:
        """The number of its outputs."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SumLoss:
    """``E_n = Σ_i α_i E_n,i(z_i, y_i)`` of several outputs ``z_i``; 𝓗 is block-diagonal.

    ``terms`` are in the order of the network's outputs once they are :meth:`bound`. A batch's target is a
    dict by the same names where ``named``, else a list or tuple in the same order.
    """

    terms: tuple[Term, ...]
    named: bool = True

    @property
    def name(self) -> str:
        """The losses and their outputs."""
        return " + ".join(f"{term.loss.name} of {term.key}" for term in self.terms)

    @property
    def scale(self) -> Scale:
        """1: every term has a scale of its own."""
        return PER_SAMPLE

    @property
    def sampler(self) -> str | None:
        """Targets are sampled where every term has a model to sample from."""
        return "terms" if all(term.loss.sampler for term in self.terms) else None

    @property
    def structured(self) -> bool:
        """A batch's target is a dict or a tuple."""
        return True

    @property
    def convexity(self) -> Convexity:
        """That of the first term that is not proved convex."""
        found = [term.loss.convexity for term in self.terms]
        return next((each for each in found if each.verdict != "convex"), found[0])

    def bound(self, outputs: Outputs) -> SumLoss:
        """The loss of a network with these outputs; :class:`LossError` unless each has one term."""
        given, expected = {term.key: term for term in self.terms}, [key for key, _ in outputs]
        if sorted(given) != sorted(expected):
            returned = ", ".join(expected) or "one tensor"
            raise LossError(
                f"losses are for the outputs {', '.join(given)}, the network returns {returned}",
                where="the loss",
                instead="give one loss an output: a dict with the keys of the dict that forward returns, or "
                "a list in the order of its tuple",
            )
        bound = (Term(key, given[key].loss.bound(shape), shape) for key, shape in outputs)
        return replace(self, terms=tuple(bound))

    def layout(self, outputs: int) -> dict[str, int]:
        """The columns of a target's row: those of the terms, one after another."""
        return {term.key: sum(term.loss.layout(term.size).values()) for term in self.terms}

    def check_target(self, z_shape: Shape, z_dtype: torch.dtype, target: Any) -> None:
        """Raise :class:`BatchError` unless ``target`` has a fitting one for every term."""
        for term, each in self._pairs(target):
            try:
                term.loss.check_target((z_shape[0], *term.shape), z_dtype, each)
            except BatchError as error:
                raise BatchError(f"in the target of the output {term.key!r}:\n{error}") from None

    def rows(self, target: Any, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """The terms' rows side by side."""
        pairs = self._pairs(target)
        return rows_of([t.loss.rows(y, t.shape, dtype) for t, y in pairs], dtype)

    def _pairs(self, target: Any) -> Iterator[tuple[Term, Any]]:
        keys = [term.key for term in self.terms]
        if self.named:
            fits = isinstance(target, Mapping) and sorted(target) == sorted(keys)
        else:
            fits = isinstance(target, tuple | list) and len(target) == len(keys)
        if not fits:
            found = type(target).__name__ + (
                f" of {len(target)}" if not isinstance(target, torch.Tensor) else ""
            )
            form = (
                f"a dict with the keys {', '.join(keys)}" if self.named else f"{len(keys)} targets"
            )
            raise BatchError(
                f"the losses of several outputs take {form}, got a {found}",
                where="the target",
                instead="pass targets as the losses were given",
            )
        targets = [target[key] for key in keys] if self.named else target
        return zip(self.terms, targets, strict=True)

    def describe(self) -> str:
        """The terms, one after another."""
        return "; ".join(f"{term.key}: {term.loss.describe()}" for term in self.terms)


def summed(losses: Mapping[str, Any] | list[Any] | tuple[Any, ...], resolve: Any) -> SumLoss:
    """The sum of ``losses``, each one that ``resolve`` knows or a pair of it and its weight α."""
    named = isinstance(losses, Mapping)
    items = losses.items() if isinstance(losses, Mapping) else enumerate(losses)
    terms = []
    for key, given in items:
        pair = isinstance(given, tuple)
        if pair and len(given) != 2:
            raise LossError(
                f"the loss of the output {key!r} is a tuple of {len(given)}",
                where="the loss",
                instead="give a loss, or a pair (loss, weight)",
            )
        spec, factor = given if pair else (given, 1.0)
        loss = resolve(spec)
        if isinstance(loss, SumLoss):
            raise LossError(
                f"the loss of the output {key!r} is a sum of losses itself",
                where="the loss",
                instead="return the outputs as one dict or tuple, and give one loss for each",
            )
        terms.append(Term(str(key), scaled(loss, factor)))
    if not terms:
        raise LossError(
            "no losses are given", where="the loss", instead="give one for every output"
        )
    return SumLoss(tuple(terms), named)


def scaled(loss: Single, factor: Any) -> Single:
    """``α`` times the loss."""
    if not isinstance(factor, int | float):
        raise LossError(
            f"the weight of the loss {loss.name!r} is {factor!r}",
            where="the loss",
            instead="give a positive number",
        )
    return replace(loss, scale=Scale(loss.scale.factor * factor, loss.scale.over))
