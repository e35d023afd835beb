"""What curvature methods cost, by a dry run: a program that is built to be counted, and never runs.

Building it allocates nothing: blocks far larger than memory are names and shapes here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..base.settings import Settings
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Node
from ..losses.vocabulary import Loss
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


@dataclass(frozen=True)
class Expense:
    """FLOPs of the curvature phases, and bytes of the work buffers of gradient and curvature."""

    flops: int
    bytes: int

    def __sub__(self, other: Expense) -> Expense:
        return Expense(self.flops - other.flops, self.bytes - other.bytes)


@dataclass(frozen=True)
class Prices:
    """What factors cost, read off a ``program`` that computes them by several methods.

    Its results are ``<method>.<layer>``, ``Q.<layer>`` and the gradients; ``obstacles`` tell what ends KFRA.
    """

    program: StepProgram
    graph: ModelGraph
    settings: Settings
    obstacles: Mapping[str, Node]
    known: dict[tuple[str, ...], Expense] = field(default_factory=dict, compare=False)
    """What was asked for already, by roles: choosing asks for the same layers time and again."""

    @classmethod
    def of(
        cls, graph: ModelGraph, loss: Loss, settings: Settings, methods: Collection[str]
    ) -> Prices:
        """Of the factors of every layer by each of ``methods``; by KFRA of those layers that it reaches."""
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
            beyond = factors.obstacles if method == AVERAGED else ()
            layers = [x for x in graph.layers if x not in beyond]
            for layer, (q, g) in factors.pairs(factors.output_moments(method, layers)).items():
                builder.results |= {f"Q.{layer}": q.name, f"{method}.{layer}": g.name}
        return cls(builder.finish(), graph, settings, factors.obstacles)

    @property
    def gradient_roles(self) -> list[str]:
        return [role for role in self.program.results if role.startswith("grad.")]

    @cached_property
    def gradient(self) -> Expense:
        """Of the gradient alone."""
        return self._expense(self.gradient_roles, Stage.GRADIENT)

    def factors(self, methods: Mapping[str, str]) -> Expense:
        """Of the factors of every layer by its method."""
        chosen = {f"{method}.{layer}" for layer, method in methods.items()}
        chosen |= {f"Q.{layer}" for layer in methods}
        roles = tuple(role for role in self.program.results if role in chosen)
        if roles not in self.known:
            self.known[roles] = self._expense([*self.gradient_roles, *roles], Stage.MEASUREMENT)
        return self.known[roles]

    def averaged(
        self, layers: Collection[str], affordable: Callable[[Expense], bool]
    ) -> dict[str, str]:
        """KFRA for as many of ``layers``, from the output on, as it reaches and its surcharge allows, and the
        projection for the others."""
        none = dict.fromkeys(layers, SAMPLED)
        sampled = self.factors(none)

        def allowed(methods: Mapping[str, str]) -> bool:
            return affordable(self.factors(methods) - sampled)

        methods = self.where_reached(layers)
        if methods == none or allowed(methods):
            return methods
        methods = none
        for layer in reversed(list(layers)):
            more = {**methods, layer: AVERAGED}
            if layer not in self.obstacles and allowed(more):
                methods = more
        return methods

    def where_reached(self, layers: Collection[str]) -> dict[str, str]:
        """KFRA wherever there is no obstacle."""
        return {x: SAMPLED if x in self.obstacles else AVERAGED for x in layers}

    def _expense(self, roles: Iterable[str], stage: Stage) -> Expense:
        program = needed(self.program, roles)
        columns = columns_within(program, BATCH, ITEMSIZE, self.settings.memory_budget)
        costs = CostModel(program, BATCH, ITEMSIZE, self.settings.rows(BATCH), columns)
        flops = sum(costs.phase(phase.name).flops for phase in program.step if phase.stage is stage)
        return Expense(flops, costs.work_bytes())


def needed(program: StepProgram, roles: Iterable[str]) -> StepProgram:
    """The part of a program that some of its results depend on."""
    results = {role: program.results[role] for role in roles}
    names = set(results.values())
    for instruction in reversed(program.instructions):
        if instruction.name in names or instruction.into in names:
            names |= {instruction.name, *instruction.inputs}
    kept = tuple(i for i in program if i.name in names)
    return replace(program, instructions=kept, results=results)
