"""Which curvature method each layer uses: as given, by patterns of layer names, or by cost (``"auto"``).

The methods differ in how Ḡ is computed, little in the step that follows. On MNIST, batch 1000, a classifier
784-300-100-10 had evaluation losses of 0.151 (KFRA), 0.151 (KFLR) and 0.149 (one ±1 projection) after 60
updates, an autoencoder 784-400-100-20-100-400-784 had 78.1 (KFRA) and 77.5 (projection). So ``"auto"`` goes
by cost, at a nominal batch: the projection (``kfac_rp``) costs one backward pass on the factors' samples and
serves any network, and what is less random is preferred to it where its *surcharge* is small.

1. **KFLR** for all layers if its K columns cost at most :data:`AFFORDABLE` gradients more than the
   projection, or no more than KFRA. That is so with few outputs; Ḡ is exact then.
2. **KFRA** otherwise: its cost depends neither on the number of outputs nor on a draw.
3. **The projection** for the layers whose KFRA is too dear. KFRA costs ``O(d³)`` in a layer of width d and
   holds a block for every pair of live tensors, so in wide layers, forks and concatenations its surcharge
   can exceed :data:`AFFORDABLE` gradients, or in work buffers :data:`ROOMY` times those of the gradient.
   Layers keep KFRA, from the output on, as long as all of them together stay within both.

Three things end KFRA also where it was given: a node that has no average
(:func:`~gncompile.derivation.recursion.obstacles`); work buffers, mostly its blocks, that need more than
``memory_budget``; and, where one method was given to all layers, as by default, blocks over all places of a
grid or sequence whose arithmetic costs more than :data:`AFFORDABLE` gradients. The layers below are *handed
over* to columns: to KFLR where that is as cheap as in 1, else to the projection. A mapping is kept whatever
its arithmetic, and a layer that was given KFRA by its very name and cannot have it is refused. Nothing is
allocated before.

Mixing is sound: Ḡ of a layer by KFRA depends only on what lies between it and the output, and one backward
pass of columns serves every layer. It is the pass that ``trace_correction`` makes anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ..base.options import by_pattern
from ..base.settings import AUTO, Settings
from ..base.tables import binary_size, engineering
from ..errors import CompileError
from ..graph.model_graph import ModelGraph
from ..graph.nodes import describe
from ..losses.vocabulary import Loss
from .prices import AVERAGED, EXACT, SAMPLED, Expense, Prices
from .recursion import no_average

AFFORDABLE = 0.5
"""Arithmetic that a method may cost more than the projection, in gradients."""
ROOMY = 1.0
"""Work buffers that a method may need more than the projection, in those of the gradient."""


@dataclass(frozen=True)
class Choice:
    """The curvature method of every layer in graph order, and as lines why: for a choice by cost, and where
    layers were handed over."""

    methods: dict[str, str]
    reasons: tuple[str, ...] = ()


def curvature_methods(graph: ModelGraph, loss: Loss, settings: Settings) -> Choice:
    """The curvature method of every layer: as it was given, or by cost for ``"auto"``."""
    auto, layers = settings.method == AUTO, list(graph.layers)
    methods = dict.fromkeys(layers, AVERAGED) if auto else given(settings.method, layers)
    if AVERAGED not in methods.values():
        return Choice(methods)
    averaged = Prices.of(graph, loss, settings, (AVERAGED, SAMPLED))
    if auto:
        return by_cost(averaged, Prices.of(graph, loss, settings, (EXACT,)))
    return as_given(methods, averaged, lambda: Prices.of(graph, loss, settings, (EXACT,)))


def given(method: str | Mapping[str, str], layers: list[str]) -> dict[str, str]:
    """One method for all ``layers``, or for each the method of the last pattern that matches its name.

    Raises :class:`~gncompile.errors.CompileError` for a layer that no pattern matches, and for a pattern
    that matches no layer.
    """
    if isinstance(method, str):
        return dict.fromkeys(layers, method)
    found = by_pattern("method", method, layers)
    if missing := [layer for layer in layers if layer not in found]:
        raise CompileError(
            f"method gives none for {', '.join(missing)}",
            instead='begin the mapping with a method for the other layers: {"*": "kfra", …}',
        )
    return found


def by_cost(prices: Prices, exact: Prices) -> Choice:
    """The rule of this module, from the prices of KFRA and projection, and those of KFLR."""
    layers, gradient = list(prices.graph.layers), prices.gradient
    room = round(min(ROOMY * gradient.bytes, prices.settings.memory_budget))
    uniform = {
        EXACT: exact.factors(dict.fromkeys(layers, EXACT)),
        AVERAGED: prices.factors(prices.where_reached(layers)),
        SAMPLED: prices.factors(dict.fromkeys(layers, SAMPLED)),
    }
    cheap = _cheap(uniform[EXACT] - uniform[SAMPLED], gradient)
    if cheap or uniform[EXACT].flops <= uniform[AVERAGED].flops:
        methods = dict.fromkeys(layers, EXACT)
        why = [
            f"{EXACT} is exact, and costs at most {AFFORDABLE:g} gradients more than {SAMPLED}, "
            f"or no more than {AVERAGED}"
        ]
    else:
        methods = prices.averaged(layers, lambda x: _cheap(x, gradient) and x.bytes <= room)
        fallen = [x for x in layers if methods[x] == SAMPLED and x not in prices.obstacles]
        why = [_why(fallen, room), *_ends(prices, layers, SAMPLED)]
    return Choice(methods, (*why, *_table(prices, uniform, methods)))


def _cheap(surcharge: Expense, gradient: Expense) -> bool:
    return surcharge.flops <= AFFORDABLE * gradient.flops


def as_given(methods: Mapping[str, str], prices: Prices, exact: Callable[[], Prices]) -> Choice:
    """The methods that were given, but columns for layers that KFRA does not reach or that do not fit.

    Raises :class:`~gncompile.errors.CompileError` for such a layer that was given KFRA by its name.
    """
    settings = prices.settings
    wanted = [layer for layer, method in methods.items() if method == AVERAGED]
    at_places = any(layer.places > 1 for layer in prices.graph.layers.values())
    free = isinstance(settings.method, Mapping) or not at_places

    def affordable(surcharge: Expense) -> bool:
        fits = surcharge.bytes <= settings.memory_budget
        return fits and (free or _cheap(surcharge, prices.gradient))

    kept = prices.averaged(wanted, affordable)
    left = [layer for layer, method in kept.items() if method != AVERAGED]
    if not left:
        return Choice(dict(methods))
    if isinstance(settings.method, Mapping):
        for layer in left:
            if settings.method.get(layer) == AVERAGED:
                raise _refused(prices, wanted, layer)
    columns = _columns(prices, left, exact)
    large = [layer for layer in left if layer not in prices.obstacles]
    found = f"{_needs(prices, wanted)}: {columns} for {', '.join(large)}"
    reasons = (*_ends(prices, left, columns), *([found] if large else []))
    return Choice({**methods, **kept, **dict.fromkeys(left, columns)}, reasons)


def _columns(prices: Prices, layers: Collection[str], exact: Callable[[], Prices]) -> str:
    """The method of columns for layers that are handed over; draws and KFLR's columns do not mix."""
    if prices.settings.samples > 1:
        return SAMPLED
    columns, draw = (dict.fromkeys(layers, method) for method in (EXACT, SAMPLED))
    surcharge = exact().factors(columns) - prices.factors(draw)
    return EXACT if _cheap(surcharge, prices.gradient) else SAMPLED


def _refused(prices: Prices, wanted: Collection[str], layer: str) -> CompileError:
    if layer in prices.obstacles:
        return no_average([layer], prices.obstacles[layer])
    return CompileError(
        _needs(prices, wanted),
        where=str(prices.graph.layers[layer].node.origin),
        instead=f"use {SAMPLED!r} or {EXACT!r} for {layer}, or give more memory_budget",
    )


def _needs(prices: Prices, wanted: Collection[str]) -> str:
    surcharge = prices.factors(prices.where_reached(wanted)) - prices.factors(
        dict.fromkeys(wanted, SAMPLED)
    )
    gradients = surcharge.flops / prices.gradient.flops
    return (
        f"{AVERAGED} would need {binary_size(surcharge.bytes)} of work buffers and {gradients:.2g} gradients "
        f"more than {SAMPLED}, and memory_budget is {binary_size(prices.settings.memory_budget)}"
    )


def _ends(prices: Prices, layers: Collection[str], instead: str) -> Iterator[str]:
    """Where KFRA of ``layers`` ends."""
    for node in dict.fromkeys(prices.obstacles[x].name for x in layers if x in prices.obstacles):
        below = [x for x in layers if x in prices.obstacles and prices.obstacles[x].name == node]
        found = prices.graph[node]
        yield (
            f"{AVERAGED} ends at {describe(found)}, which has no average ({found.origin}): "
            f"{instead} for {', '.join(below)}"
        )


def _why(fallen: Collection[str], room: int) -> str:
    limits = f"{AFFORDABLE:g} gradients or {binary_size(room)} of work buffers"
    if not fallen:
        return (
            f"{EXACT} has too many columns; {AVERAGED} costs less than {limits} more than {SAMPLED}"
        )
    return (
        f"{AVERAGED} of all layers would cost more than {limits} on top of {SAMPLED}, "
        f"which is left to {', '.join(fallen)}"
    )


def _table(
    prices: Prices, uniform: Mapping[str, Expense], methods: Mapping[str, str]
) -> Iterator[str]:
    for method, expense in uniform.items():
        limited = method == AVERAGED and prices.obstacles
        where = "where it reaches" if limited else "everywhere"
        yield _line(f"{method} {where}", expense, prices.gradient)
    if len(set(methods.values())) > 1:
        yield _line("as chosen", prices.factors(methods), prices.gradient)


def _line(name: str, expense: Expense, gradient: Expense) -> str:
    """Cost in units and in gradients."""
    return (
        f"{name}: {engineering(expense.flops)}FLOP, {expense.flops / gradient.flops:.2f} gradients; "
        f"work buffers {binary_size(expense.bytes)}, {expense.bytes / gradient.bytes:.2f} of the gradient's"
    )
