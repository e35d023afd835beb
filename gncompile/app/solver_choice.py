"""``solver="auto"``: the exact solver where its step costs little more than one with factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..base.settings import AUTO, Settings
from ..base.tables import engineering
from ..errors import CompileError
from ..graph.model_graph import ModelGraph
from ..losses.vocabulary import Loss
from ..pipeline import step_program
from ..program.costs import CostModel, columns_within
from ..program.phases import mean_runs
from ..solvers.exact import choose_form

WORTH = 4
"""Times the FLOPs of a step with factors that an exact one may take. On full batches of small regressions and
classifications KFRA takes 1 to 4 times as many steps to the same loss (docs/solvers.md), more towards the end
of a fit; on mini-batches, whose noise no solver sees through, the exact solver saves fewer."""

OF_EXACT = ("exact_form", "damping_scale", "damping_tries", "acceleration")
"""Options that the solver with factors does not have."""


class Case(NamedTuple):
    """What a solver is chosen for: batches of so many samples, whose numbers have so many bytes.

    Rows of J that lie ``apart``, on many processes, meet in no Gram matrix.
    """

    graph: ModelGraph
    loss: Loss
    samples: int
    itemsize: int
    apart: bool = False


def chosen_settings(options: Mapping[str, Any], case: Case) -> tuple[Settings, str]:
    """Settings of ``options``, solver and form chosen, and why; "" if nothing was.

    Raises :class:`~gncompile.errors.CompileError` for options that do not fit, and for an exact solver asked
    for by name whose matrix exceeds the memory budget.
    """
    settings, why = _chosen(options, case)
    settings.warn_of_no_effect()
    if settings.solver == AUTO:
        settings = replace(settings, solver="kronecker")
    return settings, why


def _chosen(options: Mapping[str, Any], case: Case) -> tuple[Settings, str]:
    settings = Settings.of(**options).at_places(case.graph.places)
    if settings.solver == AUTO and settings.second_order:
        return _cheaper(options, case)
    if settings.solver == "exact" and settings.second_order:
        if case.apart and settings.exact_form == "auto":
            settings = replace(settings, exact_form="primal")
        form, why = choose_form(case.graph, settings, case.samples, case.itemsize)
        return replace(settings, exact_form=form), why
    return settings, ""


def _cheaper(options: Mapping[str, Any], case: Case) -> tuple[Settings, str]:
    """Both solvers' settings are those that ``options`` mean with them."""

    def named(solver: str) -> tuple[Settings, str]:
        return _chosen({**options, "solver": solver}, case)

    method, noise = options.get("method"), options.get("gather_noise")
    if method not in (None, AUTO) or noise is not None:
        asks = (
            "which gather_noise" if method in (None, AUTO) else f"whose factors method={method!r}"
        )
        factored, _ = named("kronecker")
        return factored, f"solver 'kronecker', {asks} asks for"
    given = [name for name in OF_EXACT if name in options]
    if given:
        exact, why = named("exact")
        return exact, f"solver 'exact', which {given[0]} asks for; {why}"
    factored, _ = named("kronecker")
    try:
        exact, why = named("exact")
    except CompileError as error:
        return factored, f"solver 'kronecker', for want of memory: {str(error).splitlines()[0]}"
    costs = {s.solver: _flops(s, case) for s in (factored, exact)}
    compared = (
        f"an exact step takes {engineering(costs['exact'])}FLOP, {costs['exact'] / costs['kronecker']:.2g} "
        f"times one with factors, and may take {WORTH}; {why}"
    )
    worth = costs["exact"] <= WORTH * costs["kronecker"]
    chosen = exact if worth else factored
    return chosen, f"solver {chosen.solver!r}: {compared}"


def _flops(settings: Settings, case: Case) -> float:
    """FLOPs of a mean step."""
    program = step_program(case.graph, case.loss, settings)
    columns = columns_within(program, case.samples, case.itemsize, settings.memory_budget)
    rows = settings.rows(case.samples)
    costs = CostModel(program, case.samples, case.itemsize, rows, columns)
    often = mean_runs(settings, program.step)
    return sum(costs.phase(phase).flops * often.get(phase, 0) for phase in program.phases)
