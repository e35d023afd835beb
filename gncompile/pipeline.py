"""The compiler from end to end: read this file first.

    trace(module)            torch.export → ModelGraph              frontends/torch_export.py
    prepare(traced)          passes over the ModelGraph             graph/
    step_program(...)        ModelGraph + loss → StepProgram        derivation/, solvers/
    emit_step(program)       passes, then the writer of a backend   emit/step_source.py
      within_products        slopes made where they are used        program/recompute.py
      schedule               StepProgram → kernels, in launches     program/launches.py
      plan_buffers           values that never meet share memory    program/buffers.py
      TorchWriter            StepProgram → readable source          emit/torch_source.py
      TritonWriter           schedule → readable source             emit/triton_source.py

A step program is a sequence of phases; ``program/phases.py`` lists them, with the earlier phases whose values
each may use, when it is due and how often it runs. A solver brings those that turn ∇ into Δ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

from .base import config
from .base.debug import dump
from .base.exact_key import NoKeyError, Recent, exact_key
from .base.settings import Settings
from .derivation.averages import AveragedForward, average_parameters, compare_average
from .derivation.batch_gradient import BatchGradient
from .derivation.damping import adapt, hold, judge, reject, search
from .derivation.factors import PHASES, Factors
from .derivation.first_order import FirstOrder
from .derivation.forward import Forward
from .derivation.guards import (
    choose_factor_damping,
    guard_change,
    guard_gradient,
    guard_step,
    report,
)
from .derivation.jacobian_rows import layer_rows, single_sides
from .derivation.loss_rules import loss_rules
from .derivation.noise import measure_noise
from .derivation.optimiser import Optimiser
from .derivation.propagation import pull_back, push_forward
from .derivation.sharing import sharing_of
from .derivation.steps import model, quadratic, update
from .errors import CompileError
from .graph.fuse_pointwise import fuse_pointwise
from .graph.model_graph import ModelGraph
from .graph.zero_slopes import require_slopes
from .losses.vocabulary import Loss, resolve_loss
from .program import specs
from .program.builder import ProgramBuilder, Value
from .program.phases import ACCELERATION, DIRECTION, Phase, Repeat, Stage, step_phases
from .program.step_program import StepProgram
from .solvers.block_hessian_free import BlockHessianFree
from .solvers.exact import Exact
from .solvers.kronecker import Kronecker
from .solvers.newton_cg import NewtonCG
from .solvers.solver import Solver

SOLVERS: Mapping[str, type[Solver]] = {
    "kronecker": Kronecker,
    "exact": Exact,
    "block_hessian_free": BlockHessianFree,
    "newton_cg": NewtonCG,
}
"""By name, as settings have them."""

PASSES: tuple[Callable[[ModelGraph], ModelGraph], ...] = (
    fuse_pointwise,  # before derivation, so that a chain is averaged once
)


def prepare(graph: ModelGraph) -> ModelGraph:
    """Run the passes over a traced graph and check the result; the switch ``check`` does so after each."""
    dump("0_traced.txt", graph.to_text)
    traced = graph
    require_slopes(traced)  # before fusion, whose nodes are named after the last line of several
    for number, each in enumerate(PASSES, start=1):
        graph = each(graph)
        if config.flag("check"):
            graph.check()
        dump(f"{number}_{each.__name__}.txt", graph.to_text)
    graph.check()
    dump("graph.dot", graph.to_dot)
    if not graph.trained:
        raise CompileError(
            "the network has no trainable parameter",
            where=f"graph of {len(graph)} nodes",
            instead="use layers whose parameters have requires_grad=True",
        )
    require_slopes(graph, traced)
    return graph


def step_program(
    graph: ModelGraph, loss: Loss, settings: Settings, solver: type[Solver] | None = None
) -> StepProgram:
    """The whole training step of ``graph`` under ``loss``: docs/mathematics.md#the-optimiser.

    The solver is that of the settings, unless one is given. The last few programs are kept: nothing but the
    arguments enters one, so equal ones have the same.
    """
    solver = solver or SOLVERS[settings.solver]
    try:
        key = exact_key((tuple(graph), loss, settings, solver))
    except NoKeyError:
        return _derived(graph, loss, settings, solver)
    return _programs.get(key, lambda: _derived(graph, loss, settings, solver))


_programs: Recent[StepProgram] = Recent(kept=8)


def _derived(
    graph: ModelGraph, loss: Loss, settings: Settings, solver: type[Solver]
) -> StepProgram:
    builder = ProgramBuilder(step_phases(solver.phases(settings)))
    batch = BatchGradient(builder, graph, loss)
    optimiser = Optimiser(builder, batch.forward, settings)
    with builder.phase("gradient"):
        with builder.origin(role="loss"):
            objective = optimiser.penalty(batch.value, "objective")
        gradients = optimiser.decayed(batch.gradients)
        builder.results["objective"] = objective.name
        builder.results |= {f"grad.{layer}": value.name for layer, value in gradients.items()}
        if settings.second_order and not settings.guarded:
            square = optimiser.inner(gradients, gradients)
            builder.results["gradient_square"] = square.name
    if settings.guarded:
        with builder.phase("guard"):
            guard_gradient(optimiser, builder.batch(), objective, gradients)
    after = _evaluation(batch, optimiser)
    if not settings.second_order:
        return builder.finish()
    if settings.average:
        _comparison(batch, optimiser)
    _step_along(solver(batch, optimiser), gradients)
    _judgement(batch, optimiser, objective, after)
    with builder.phase("restore"):
        optimiser.restore()
    with builder.phase("reject"):
        reject(optimiser)
    if settings.guarded:
        with builder.phase("report"):
            builder.results["report"] = report(optimiser, batch.value, objective).name
    return builder.finish()


def _evaluation(batch: BatchGradient, optimiser: Optimiser) -> Value:
    """The network output and the objective of any batch, at the current parameters."""
    builder = batch.builder
    with builder.phase("predict"):
        forward = Forward.emit(builder, batch.graph)
        builder.results["output"] = forward.output.name
    with builder.phase("evaluate"):
        value = loss_rules(builder, batch.loss, forward.output).value()
        builder.results["evaluated_loss"] = value.name
        return optimiser.penalty(value, "objective_after")


def _comparison(batch: BatchGradient, optimiser: Optimiser) -> None:
    """The loss of a share of the batch at the averaged parameters, compared with the latest; holds λ."""
    builder, rows = batch.builder, optimiser.settings.factor_dim
    with builder.phase("compare"):
        forward = AveragedForward.emit(builder, batch.graph, rows)
        value = loss_rules(builder, batch.loss, forward.output).value()
        hold(optimiser, compare_average(optimiser, batch.loss_of(rows), value))


def _step_along(solver: Solver, gradients: Mapping[str, Value]) -> None:
    """The solver's direction Δ, step sizes along it, and the update."""
    batch, optimiser, builder, settings = (
        solver.batch, solver.optimiser, solver.builder, solver.settings,
    )  # fmt: skip
    first_order = FirstOrder(optimiser)
    first_order.prepare(gradients)
    solver.prepare()

    def directions(of: Mapping[str, Value]) -> dict[str, Value]:
        covered = {layer: of[layer] for layer in batch.graph.layers}
        return {**solver.directions(covered), **first_order.directions(of)}

    with builder.phase(DIRECTION):
        deltas = directions(gradients)
    with builder.phase("quadratic"):
        quadratic(optimiser, *batch.on_share(settings.quadratic_dim), gradients, deltas)
    if settings.momentum and settings.average and not settings.guarded:
        with builder.phase("plain_quadratic"):
            share = batch.on_share(settings.quadratic_dim)
            quadratic(optimiser, *share, gradients, deltas, momentum=False)
    if settings.layer_steps:
        with builder.phase("layer_quadratic"):
            share = batch.on_share(settings.layer_dim)
            quadratic(optimiser, *share, gradients, deltas, by_layer=True)
    if settings.acceleration is not None:
        with builder.phase(ACCELERATION):
            deltas = solver.accelerated(deltas)
    if settings.gather_noise is not None:
        with builder.phase("gradient_noise"):
            output = batch.output_gradient(settings.factor_dim)
            bound = settings.gather_noise
            measure_noise(optimiser, *output, gradients, deltas, directions, bound)
    if settings.guarded:
        for part in ("begin", "note", "end"):
            with builder.phase(f"damping_{part}"):
                choose_factor_damping(optimiser, part)
        with builder.phase("guard_step"):
            guard_step(optimiser)
    if settings.average:
        # Apart, a launch more, where the update may be made again.
        apart = settings.damping_tries > 1
        with builder.phase("average_parameters" if apart else "update"):
            average_parameters(optimiser)
    with builder.phase("update"):
        update(optimiser, deltas)


def _judgement(batch: BatchGradient, optimiser: Optimiser, objective: Value, after: Value) -> None:
    """How the step changed the objective, and the dampings after it.

    In the first steps that is the objective of a share of the batch, the one that the factors are made of:
    the quadratic model looks at other samples, and may be wrong on these.
    """
    builder, settings = batch.builder, optimiser.settings
    with builder.phase("judge"):
        judge(optimiser, objective, after)
    with builder.phase("adapt"):
        adapt(optimiser)
    if settings.search_steps:
        rows = settings.factor_dim
        with builder.phase("trial"):
            forward = Forward.emit(builder, batch.graph, rows)
            value = loss_rules(builder, batch.loss, forward.output).value()
            after = optimiser.penalty(value, "objective_after")
        with builder.phase("judge_trial"):
            before = batch.loss_of(rows)
            if objective is not batch.value:
                a, b, c = sympy.symbols("a b c", real=True)
                values = {a: before, b: objective, c: batch.value}
                before = builder.pointwise(a + (b - c), values, name="objective_before")
            judge(optimiser, before, after)
        with builder.phase("search"):
            search(optimiser)
    if settings.guarded:
        with builder.phase("guard_change"):
            guard_change(optimiser)


def factor_program(
    graph: ModelGraph,
    loss: Loss,
    method: str,
    settings: Settings | None = None,
    partly: bool = False,
) -> StepProgram:
    """Gradient and curvature factors of one batch, without an optimiser, as ``settings`` share and sample.

    ``partly`` leaves out the layers that KFRA does not reach, which are refused otherwise.
    """
    builder, settings = ProgramBuilder(step_phases(PHASES)), settings or Settings()
    sharing = sharing_of(graph, settings)
    factors = Factors(BatchGradient(builder, graph, loss), "N", sharing, settings.samples)
    ended = factors.obstacles if partly and method == "kfra" else {}
    factors.emit({layer: method for layer in graph.layers if layer not in ended})
    return builder.finish()


def quadratic_program(
    graph: ModelGraph, loss: Loss, settings: Settings, directions: int
) -> StepProgram:
    """``M`` and ``b`` of the quadratic model for given directions ``direction<i>.<layer>``."""
    builder = ProgramBuilder(step_phases())
    batch = BatchGradient(builder, graph, loss)
    optimiser = Optimiser(builder, batch.forward, settings)
    with builder.phase("gradient"):
        gradients = optimiser.decayed(batch.gradients)
    with builder.phase("quadratic"):
        given = [_direction(builder, graph, i) for i in range(directions)]
        m, rhs = model(optimiser, batch.forward, batch.rules, gradients, given)
        for i, row in enumerate(m):
            builder.results[f"b.{i}"] = rhs[i].name
            builder.results |= {f"M.{i}.{j}": value.name for j, value in enumerate(row)}
    return builder.finish()


def tangent_program(graph: ModelGraph) -> StepProgram:
    """R-operator of one direction ``direction0.<layer>``: the result ``tangent``; needs no targets."""
    builder = ProgramBuilder(step_phases())
    with builder.phase("gradient"):
        forward = Forward.emit(builder, graph)
    with builder.phase("quadratic"):
        tangent = push_forward(forward, _direction(builder, graph, 0), "r1")
        builder.results["tangent"] = tangent.name
    return builder.finish()


def jacobian_program(graph: ModelGraph) -> StepProgram:
    """The output, and of each layer the rows ``∂z_k/∂W̄`` of every sample; needs no targets.

    The rows of one chunk of outputs are the results ``rows.<layer>``, ``[S, N, a (b + 1)]``; of a weight that
    each sample meets once they are products of ``left.<layer>``, ``[S, N, 1, a]``, and ``right.<layer>``,
    ``[N, 1, b]``.
    """
    builder = ProgramBuilder(
        step_phases((Phase("rows", Stage.MEASUREMENT, ("gradient",), repeat=Repeat.COLUMNS),))
    )
    with builder.phase("gradient"):
        forward = Forward.emit(builder, graph)
        builder.results["output"] = forward.output.name
    builder.columns = graph.output.size
    with builder.phase("rows"):
        with forward.work_at_output():  # of ½ ‖z − y‖² 𝓗 = I, so its root are unit vectors
            unit = loss_rules(builder, resolve_loss("mse"), forward.output).root_columns()
        columns = pull_back(forward, unit, prefix="c")
        for name, layer in graph.layers.items():
            if both := single_sides(forward, layer, columns):
                builder.results |= {f"left.{name}": both[0].name, f"right.{name}": both[1].name}
            else:
                builder.results[f"rows.{name}"] = layer_rows(forward, layer, columns).name
    return builder.finish()


def gauss_newton_program(graph: ModelGraph, loss: Loss) -> StepProgram:
    """The whole Gauss-Newton matrix of a batch, ``gauss_newton``: of every layer's W̄ in turn, row by row."""
    settings = Settings.from_options(solver="exact", exact_form="primal")
    builder = ProgramBuilder(step_phases(Exact.phases(settings)))
    batch = BatchGradient(builder, graph, loss)
    solver = Exact(batch, Optimiser(builder, batch.forward, settings))
    solver.prepare()
    builder.results["gauss_newton"] = solver.matrix.name
    return builder.finish()


def input_gradient_program(graph: ModelGraph, loss: Loss) -> StepProgram:
    """``N ∂Ē/∂x`` of every sample for the inputs that move the loss, the results ``input.<position>``."""
    builder = ProgramBuilder(step_phases())
    with builder.phase("gradient"):
        forward = Forward.emit(builder, graph)
        seed = loss_rules(builder, loss, forward.output).gradient()
        vectors = pull_back(forward, seed, to_inputs=True)
        for position, node in enumerate(graph.inputs):
            if node.name in vectors:
                builder.results[f"input.{position}"] = vectors[node.name].name
    return builder.finish()


def _direction(builder: ProgramBuilder, graph: ModelGraph, number: int) -> dict[str, Value]:
    """A direction given from outside, ``ΔW̄`` by layer, as states."""
    direction = {}
    for name, layer in graph.trained.items():
        direction[name] = builder.state(f"direction{number}.{name}", specs.Spec(layer.shape))
    return direction
