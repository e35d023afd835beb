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

Mixing is sound: Ḡ of a layer by KFRA depends only on what lies between it and the output, and one backward
pass of columns serves every layer. It is the pass that ``trace_correction`` makes anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..base.options import by_pattern
from ..base.settings import AUTO, Settings
from ..base.tables import binary_size, engineering
from ..errors import CompileError
from ..graph.model_graph import ModelGraph
from ..losses.vocabulary import Loss
from ..program.buffers import plan_buffers
from ..program.builder import ProgramBuilder
from ..program.costs import CostModel, columns_within
from ..program.phases import Stage, step_phases
from ..program.step_program import StepProgram
from .batch_gradient import BatchGradient
from .factors import PHASES, Factors
from .sharing import sharing_of

EXACT, AVERAGED, SAMPLED = "kflr", "kfra", "kfac_rp"

BATCH = 1000
"""The nominal batch; a compiled step takes any, so its method cannot follow the batch at hand."""
ITEMSIZE = 4
AFFORDABLE = 0.5
"""Arithmetic that a method may cost more than the projection, in gradients."""
ROOMY = 1.0
"""Work buffers that a method may need more than the projection, in those of the gradient."""


@dataclass(frozen=True)
class Choice:
    """The curvature method of every layer in graph order, and for a choice by cost the reasons as lines."""

    methods: dict[str, str]
    reasons: tuple[str, ...] = ()


def curvature_methods(graph: ModelGraph, loss: Loss, settings: Settings) -> Choice:
    """The curvature method of every layer: as it was given, or by cost for ``"auto"``."""
    if settings.method != AUTO:
        return given(settings.method, list(graph.layers))
    averaged = candidate_program(graph, loss, settings, (AVERAGED, SAMPLED))
    exact = candidate_program(graph, loss, settings, (EXACT,))
    return by_cost(averaged, exact, list(graph.layers), settings)


def candidate_program(
    graph: ModelGraph, loss: Loss, settings: Settings, methods: tuple[str, ...]
) -> StepProgram:
    """Gradient and factors of every layer by each of ``methods``: results ``<method>.<layer>``."""
    builder = ProgramBuilder(step_phases(PHASES))
    batch = BatchGradient(builder, graph, loss)
    builder.results |= {f"grad.{layer}": value.name for layer, value in batch.gradients.items()}
    factors = Factors(
        batch,
        settings.factor_dim,
        sharing_of(graph, settings),
        settings.samples,
        settings.trace_correction,
    )
    factors.input_moments()
    for method in methods:
        pairs = factors.pairs(factors.output_moments(method, list(graph.layers)))
        for layer, (q, g) in pairs.items():
            builder.results |= {f"Q.{layer}": q.name, f"{method}.{layer}": g.name}
    return builder.finish()


def given(method: str | Mapping[str, str], layers: list[str]) -> Choice:
    """One method for all ``layers``, or for each the method of the last pattern that matches its name.

    Raises :class:`~gncompile.errors.CompileError` for a layer that no pattern matches, and for a pattern
    that matches no layer.
    """
    if isinstance(method, str):
        return Choice(dict.fromkeys(layers, method))
    found = by_pattern("method", method, layers)
    if missing := [layer for layer in layers if layer not in found]:
        raise CompileError(
            f"method gives none for {', '.join(missing)}",
            instead='begin the mapping with a method for the other layers: {"*": "kfra", …}',
        )
    return Choice(found)


@dataclass(frozen=True)
class Expense:
    """FLOPs of the curvature phases, and bytes of the work buffers of gradient and curvature."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Prices:
    """What factors cost, read off a program that computes them by several methods."""

    program: StepProgram
    settings: Settings

    @property
    def gradient_roles(self) -> list[str]:
        return [role for role in self.program.results if role.startswith("grad.")]

    def gradient(self) -> Expense:
        """Of the gradient alone."""
        return self._expense(self.gradient_roles, Stage.GRADIENT)

    def factors(self, methods: Mapping[str, str]) -> Expense:
        """Of the factors of every layer by its method."""
        chosen = {f"{method}.{layer}" for layer, method in methods.items()}
        chosen |= {f"Q.{layer}" for layer in methods}
        roles = [role for role in self.program.results if role in chosen]
        return self._expense([*self.gradient_roles, *roles], Stage.MEASUREMENT)

    def _expense(self, roles: Iterable[str], stage: Stage) -> Expense:
        program = needed(self.program, roles)
        columns = columns_within(program, BATCH, ITEMSIZE, self.settings.memory_budget)
        costs = CostModel(program, BATCH, ITEMSIZE, self.settings.rows(BATCH), columns)
        flops = sum(costs.phase(phase.name).flops for phase in program.step if phase.stage is stage)
        return Expense(flops, sum(costs.buffer_bytes(plan_buffers(program)).values()))


def needed(program: StepProgram, roles: Iterable[str]) -> StepProgram:
    """The part of a program that some of its results depend on."""
    results = {role: program.results[role] for role in roles}
    names = set(results.values())
    for instruction in reversed(program.instructions):
        if instruction.name in names or instruction.into in names:
            names |= {instruction.name, *instruction.inputs}
    kept = tuple(i for i in program if i.name in names)
    return replace(program, instructions=kept, results=results)


def by_cost(
    averaged: StepProgram, exact: StepProgram, layers: list[str], settings: Settings
) -> Choice:
    """The rule of this module, from programs with the factors by KFRA and projection, and by KFLR."""
    prices = Prices(averaged, settings)
    gradient = prices.gradient()
    uniform = {
        EXACT: Prices(exact, settings).factors(dict.fromkeys(layers, EXACT)),
        **{m: prices.factors(dict.fromkeys(layers, m)) for m in (AVERAGED, SAMPLED)},
    }
    surcharge = uniform[EXACT].flops - uniform[SAMPLED].flops
    if surcharge <= AFFORDABLE * gradient.flops or uniform[EXACT].flops <= uniform[AVERAGED].flops:
        methods = dict.fromkeys(layers, EXACT)
        why = (
            f"{EXACT} is exact, and costs at most {AFFORDABLE:g} gradients more than {SAMPLED}, "
            f"or no more than {AVERAGED}"
        )
    else:
        methods = _averaged_where_affordable(prices, layers, gradient, uniform[SAMPLED])
        why = _why(methods)
    return Choice(methods, (why, *_table(uniform, gradient), *_mixture(prices, methods, gradient)))


def _averaged_where_affordable(
    prices: Prices, layers: list[str], gradient: Expense, sampled: Expense
) -> dict[str, str]:
    def affordable(methods: Mapping[str, str]) -> bool:
        expense = prices.factors(methods)
        return (
            expense.flops - sampled.flops <= AFFORDABLE * gradient.flops
            and expense.bytes - sampled.bytes <= ROOMY * gradient.bytes
        )

    methods = dict.fromkeys(layers, AVERAGED)
    if affordable(methods):
        return methods
    methods = dict.fromkeys(layers, SAMPLED)
    for layer in reversed(layers):
        more = {**methods, layer: AVERAGED}
        if affordable(more):
            methods = more
    return methods


def _why(methods: Mapping[str, str]) -> str:
    fallen = [layer for layer, method in methods.items() if method == SAMPLED]
    limits = f"{AFFORDABLE:g} gradients or {ROOMY:g} times the gradient's work buffers"
    if not fallen:
        return (
            f"{EXACT} has too many columns; {AVERAGED} costs less than {limits} more than {SAMPLED}"
        )
    return (
        f"{AVERAGED} of all layers would cost more than {limits} on top of {SAMPLED}, "
        f"which is left to {', '.join(fallen)}"
    )


def _table(uniform: Mapping[str, Expense], gradient: Expense) -> Iterable[str]:
    for method, expense in uniform.items():
        yield _line(f"{method} everywhere", expense, gradient)


def _mixture(prices: Prices, methods: Mapping[str, str], gradient: Expense) -> Iterable[str]:
    if len(set(methods.values())) > 1:
        yield _line("as chosen", prices.factors(methods), gradient)


def _line(name: str, expense: Expense, gradient: Expense) -> str:
    """Cost in units and in gradients."""
    return (
        f"{name}: {engineering(expense.flops)}FLOP, {expense.flops / gradient.flops:.2f} gradients; "
        f"work buffers {binary_size(expense.bytes)}, {expense.bytes / gradient.bytes:.2f} of the gradient's"
    )
