"""The compiler from end to end: read this file first.

    trace(module)            torch.export → ModelGraph              frontends/torch_export.py
    prepare(traced)          passes over the ModelGraph             passes/
    step_program(...)        ModelGraph + loss → StepProgram        propagation, recursion, optimiser/phases
    emit_torch(program)      StepProgram → readable source          emit/torch_source.py
    schedule(program)        StepProgram → kernels, in launches     program/launches.py
    emit_triton(program)     schedule → readable source             emit/triton_source.py

A step program is a sequence of phases. Each phase below lists the earlier phases whose values it may use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sympy

from .base import config
from .base.debug import dump
from .base.settings import AUTO, SAMPLED_METHODS, Settings
from .derivation.averages import AveragedForward, compare_average
from .derivation.damping import adapt, hold, judge, reject, search
from .derivation.forward import Forward
from .derivation.guards import (
    choose_factor_damping,
    guard_change,
    guard_factors,
    guard_gradient,
    guard_step,
    report,
)
from .derivation.loss_rules import LossRules, loss_rules
from .derivation.method_choice import AVERAGED, EXACT, SAMPLED, Choice, by_cost, given
from .derivation.noise import measure_noise
from .derivation.phases import Optimiser
from .derivation.propagation import pull_back, push_forward, weight_gradients
from .derivation.recursion import column_moments, input_moments, pull_back_matrices
from .derivation.representations import Averaged, PerSample
from .errors import CompileError, message
from .functions.primitives import select
from .graph.fuse_pointwise import fuse_pointwise
from .graph.model_graph import Affine, ModelGraph
from .graph.zero_slopes import no_gradient, require_slopes
from .losses.vocabulary import Loss, SoftmaxCrossEntropy
from .program import step_program as ir
from .program.builder import ProgramBuilder, Value
from .program.step_program import StepProgram

PASSES: tuple[Callable[[ModelGraph], ModelGraph], ...] = (
    fuse_pointwise,  # before derivation, so that a chain is averaged once
)


def prepare(graph: ModelGraph) -> ModelGraph:
    """Run the passes over a traced graph and check the result; the switch ``check`` does so after each."""
    dump("0_traced.txt", graph.to_text())
    traced = graph
    require_slopes(traced)  # before fusion, whose nodes are named after the last line of several
    for number, each in enumerate(PASSES, start=1):
        graph = each(graph)
        if config.flag("check"):
            graph.check()
        dump(f"{number}_{each.__name__}.txt", graph.to_text())
    graph.check()
    dump("graph.dot", graph.to_dot())
    if not graph.layers:
        raise CompileError(
            message(
                "the network has no trainable affine layer",
                where=f"graph of {len(graph)} nodes",
                instead="use nn.Linear layers with requires_grad=True",
            )
        )
    require_slopes(graph, traced)
    return graph


@dataclass
class Phases:
    """Emits the phases of one program in order; see :func:`step_program`."""

    builder: ProgramBuilder
    graph: ModelGraph
    loss: Loss

    def gradient(self) -> None:
        """Forward pass, loss, vectors backwards, weight gradients."""
        builder = self.builder
        with builder.phase("gradient"):
            with builder.origin(role="forward"):
                self.forward = Forward.emit(builder, self.graph)
            with builder.origin(role="loss"):
                self.rules: LossRules = loss_rules(builder, self.loss, self.forward.output)
                self.loss_value = self.rules.value()
            with self.forward.work_at_output():
                seed = self.rules.gradient()
            self.vectors = pull_back(self.forward, seed)
            self.gradients = weight_gradients(self.forward, self.vectors)
            builder.results["loss"] = self.loss_value.name
            builder.nodes = {node: value.name for node, value in self.forward.values.items()}

    def on_share(self, rows: ir.Dim) -> tuple[Forward, LossRules]:
        """The forward pass and the loss on a share of the batch, or on all of it."""
        forward = self.forward if rows == "N" else self.forward.share(rows)
        with forward.work_at_output():
            return forward, loss_rules(self.builder, self.loss, forward.output)

    def gradient_share(self, rows: ir.Dim) -> tuple[Forward, Value]:
        """The forward pass on a share of the batch, and the loss's gradient at the output there."""
        gradient = self._share({"": self.rules.gradient()}, rows)[""]
        return self.forward if rows == "N" else self.forward.share(rows), gradient

    def factors(
        self,
        methods: Mapping[str, str],
        samples: int = 1,
        trace_correction: bool = False,
        rows: ir.Dim = "N",
        whole_inputs: bool = False,
    ) -> None:
        """Q, and Ḡ of each layer by its curvature method in ``methods``, on a share of the batch.

        With ``whole_inputs`` Q is that of the share or of the whole batch, by one phase or the other.
        """
        if whole_inputs:
            self.either_inputs(rows)
        else:
            self.input_factors(rows)
        found: dict[str, Value] = {}
        for method in dict.fromkeys(methods.values()):
            layers = [layer for layer, chosen in methods.items() if chosen == method]
            found |= self.output_factors(method, layers, samples, trace_correction, rows)
        if missing := [layer for layer in methods if layer not in found]:
            raise no_gradient(self.graph, missing)  # slopes that only cancel in their sum
        self.outputs = {layer: found[layer] for layer in methods}

    def input_factors(self, rows: ir.Dim) -> None:
        """Input moments Q of every layer; begins the phase ``curvature``."""
        with self._curvature():
            self.sampled, self.sampled_rules = self.on_share(rows)
            with self.builder.origin(role="input factor"):
                self.inputs = input_moments(self.sampled)

    def either_inputs(self, rows: ir.Dim) -> None:
        """Input moments Q of a share or of the whole batch, in the same place; begins ``curvature``."""
        with self._curvature():
            self.sampled, self.sampled_rules = self.on_share(rows)
        phase = self.builder.phase("share_inputs", sees=("gradient", "curvature"))
        with phase, self.builder.origin(role="input factor"):
            self.inputs = input_moments(self.sampled)
        with self.builder.phase("whole_inputs", sees=("gradient",)):
            input_moments(self.forward, self.inputs)

    @contextmanager
    def _curvature(self) -> Iterator[None]:
        phase = self.builder.phase("curvature", sees=("gradient",))
        with phase, self.builder.origin(role="output factor"):
            yield

    def output_factors(
        self,
        method: str,
        layers: Collection[str],
        samples: int,
        trace_correction: bool,
        rows: ir.Dim,
    ) -> dict[str, Value]:
        """Output factors Ḡ of ``layers`` by one curvature method."""
        if method == "kflr" or (method in SAMPLED_METHODS and samples > 1):
            return self._summed(method, layers, samples)
        with self._curvature():
            if method == "kfra":
                with self.sampled.work_at_output():
                    hessian = self.sampled_rules.mean_hessian()
                averaged = Averaged(self.builder)
                outputs = pull_back_matrices(self.sampled, hessian, averaged, layers)
                return self._with_exact_traces(outputs) if trace_correction else outputs
            if method in ("ggn", "hessian"):
                with self.forward.work_at_output():
                    hessians = self.rules.sample_hessians(exact=method == "hessian")
                per_sample = PerSample(self.builder, curved=method == "hessian")
                return pull_back_matrices(self.forward, hessians, per_sample, layers, self.vectors)
            if method == "empirical":
                columns = self._share(self.vectors, rows)
            else:
                columns = self._passed_back(method)
            return column_moments(self.sampled, columns, layers)

    def _share(self, vectors: Mapping[str, Value], rows: ir.Dim) -> Mapping[str, Value]:
        if rows == "N":
            return vectors
        return {name: self.builder.emit(ir.Share(rows), v) for name, v in vectors.items()}

    def _with_exact_traces(self, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """KFRA's Ḡ scaled to the exact trace ``E‖J^T C v‖²``, estimated by one ±1 projection v.

        Averaging layer by layer loses the correlation of slopes across layers: deep in a network of
        saturating functions the trace of Ḡ can be 30 times too small, the step there as much too long.
        """
        vectors = self._passed_back("kfac_rp")
        exact, averaged, g = sympy.symbols("exact averaged g", real=True)
        corrected = dict(outputs)
        for layer, node in self.builder.layerwise(self.graph.layers):
            if layer not in outputs or not outputs[layer].is_full:
                continue  # a structured Ḡ is at the output, where nothing has been averaged yet
            trace = {
                exact: self.builder.emit(
                    ir.Dot(mean=True), *[vectors[node.name]] * 2, name="exact_trace"
                ),
                averaged: self.builder.emit(ir.Trace(), outputs[layer], name="averaged_trace"),
            }
            positive = select(averaged, exact / averaged, sympy.Integer(1))
            ratio = self.builder.pointwise(positive, trace, name="trace_ratio")
            corrected[layer] = self.builder.pointwise(
                exact * g, {exact: ratio, g: outputs[layer]}, name=f"G_{node.name}_scaled"
            )
        return corrected

    def _passed_back(self, method: str) -> dict[str, Value]:
        """Vectors backwards whose second moment is Ḡ: columns of the root of 𝓗_L, or one random draw."""
        with self.sampled.work_at_output():
            seed = self._seed(method)
        return pull_back(self.sampled, seed, prefix="c" if method == "kflr" else "s")

    def _seed(self, method: str) -> Value:
        if method == "kflr":
            return self.sampled_rules.root_columns()
        if method == "kfac_rp":
            return self.sampled_rules.projected_gradient()
        if not isinstance(self.loss, SoftmaxCrossEntropy) and self.loss.sampler is None:
            raise CompileError(
                message(
                    f"method 'kfac' needs a model to sample targets from; the loss {self.loss.name!r} "
                    "declares none",
                    instead="use method='kfac_rp', random ±1 projections, which need no model",
                )
            )
        return self.sampled_rules.sampled_gradient()

    def _summed(self, method: str, layers: Collection[str], samples: int) -> dict[str, Value]:
        """Ḡ as a sum over runs of the phase ``columns``: chunks of KFLR's columns, or draws of KFAC."""
        builder, states = self.builder, {}
        for layer in layers:
            node = self.graph.layers[layer]
            spec = ir.matrix(ir.Structure.SYMMETRIC, node.size)
            states[layer] = builder.state(f"G_sum.{layer}", spec)
        with builder.phase("columns_begin"):
            for _, state in builder.layerwise(states):
                builder.emit(ir.Zeros(state.spec), into=state, name=f"{state.name}_zero")
        builder.columns = self.graph.output.size if method == "kflr" else samples
        weight = 1.0 if method == "kflr" else 1 / samples
        outputs = {}
        phase = builder.phase("columns", sees=("gradient", "curvature"))
        with phase, builder.origin(role="output factor"):
            columns = self._passed_back(method)
            moments = column_moments(self.sampled, columns, layers)
            for layer, moment in builder.layerwise(moments):
                part = builder.scaled(moment, weight) if weight != 1.0 else moment
                name = f"G_{layer}"
                outputs[layer] = builder.add(states[layer], part, name=name, into=states[layer])
        return outputs

    def report_factors(self) -> None:
        """Mark the batch factors as results ``Q.<layer>`` and ``G.<layer>``."""
        for kind, factors in (("Q", self.inputs), ("G", self.outputs)):
            for layer, value in factors.items():
                self.builder.results[f"{kind}.{layer}"] = value.name

    def evaluation(self, optimiser: Optimiser | None) -> None:
        """The network output and the objective of any batch, at the current parameters."""
        with self.builder.phase("predict"):
            forward = Forward.emit(self.builder, self.graph)
            self.builder.results["output"] = forward.output.name
        with self.builder.phase("evaluate", sees=("predict",)):
            value = loss_rules(self.builder, self.loss, forward.output).value()
            self.builder.results["evaluated_loss"] = value.name
            self.after = optimiser.penalty(value, "objective_after") if optimiser else value

    def loss_before(self, rows: ir.Dim) -> Value:
        """The loss of a share of the batch at the parameters of the phase ``gradient``."""
        output = self._share({"": self.forward.output}, rows)[""]
        return loss_rules(self.builder, self.loss, output).value()

    def trial(self, optimiser: Optimiser, objective: Value, rows: ir.Dim) -> None:
        """How a step changed the objective of a share of its batch: the one that the factors are made of.

        The quadratic model looks at other samples, and may be wrong on these. What is computed with the new
        parameters is a phase that does not see ``gradient``, where they were the old ones.
        """
        a, b, c = sympy.symbols("a b c", real=True)
        with self.builder.phase("trial"):
            forward = Forward.emit(self.builder, self.graph, rows)
            value = loss_rules(self.builder, self.loss, forward.output).value()
            after = optimiser.penalty(value, "objective_after")
        with self.builder.phase("judge_trial", sees=("gradient", "trial")):
            before = self.loss_before(rows)
            if objective is not self.loss_value:
                values = {a: before, b: objective, c: self.loss_value}
                before = self.builder.pointwise(a + (b - c), values, name="objective_before")
            judge(optimiser, before, after)

    def averages(self, optimiser: Optimiser, rows: ir.Dim) -> None:
        """The loss of a share of the batch at the averaged parameters, compared with the latest; holds λ."""
        with self.builder.phase("compare", sees=("gradient",)):
            forward = AveragedForward.emit(self.builder, self.graph, rows)
            value = loss_rules(self.builder, self.loss, forward.output).value()
            hold(optimiser, compare_average(optimiser, self.loss_before(rows), value))


def step_program(graph: ModelGraph, loss: Loss, settings: Settings) -> StepProgram:
    """The whole training step of ``graph`` under ``loss`` as one program (SPEC §7)."""
    builder = ProgramBuilder()
    phases = Phases(builder, graph, loss)
    phases.gradient()
    optimiser = Optimiser(builder, phases.forward, settings)
    with builder.phase("gradient"):
        with builder.origin(role="loss"):
            objective = optimiser.penalty(phases.loss_value, "objective")
        gradients = optimiser.decayed(phases.gradients)
        builder.results["objective"] = objective.name
        builder.results |= {f"grad.{layer}": value.name for layer, value in gradients.items()}
        if settings.second_order and not settings.guarded:
            square = optimiser.inner(gradients, gradients)
            builder.results["gradient_square"] = square.name
    if settings.guarded:
        with builder.phase("guard", sees=("gradient",)):
            guard_gradient(optimiser, builder.batch(), objective, gradients)
    phases.evaluation(optimiser)
    if not settings.second_order:
        return builder.finish()
    if settings.average:
        phases.averages(optimiser, settings.factor_dim)

    chosen = curvature_methods(graph, loss, settings)
    builder.methods, builder.reasons = chosen.methods, chosen.reasons
    rows, whole = settings.factor_dim, settings.whole_inputs > 0 and settings.factor_dim != "N"
    phases.factors(chosen.methods, settings.samples, settings.trace_correction, rows, whole)
    phases.report_factors()
    inputs, outputs = phases.inputs, phases.outputs
    with builder.phase("average", sees=("gradient", "curvature", "columns")):
        if settings.guarded:
            guard_factors(optimiser, inputs, outputs)
        optimiser.average(inputs, outputs)
    with builder.phase("invert"):
        optimiser.invert(inputs, outputs)
    with builder.phase("direction", sees=("gradient",)):
        deltas = optimiser.directions(gradients, inputs, outputs)
    with builder.phase("quadratic", sees=("gradient", "direction")):
        optimiser.quadratic(*phases.on_share(settings.quadratic_dim), gradients, deltas)
    if settings.momentum and settings.average and not settings.guarded:
        with builder.phase("plain_quadratic", sees=("gradient", "direction")):
            model = phases.on_share(settings.quadratic_dim)
            optimiser.quadratic(*model, gradients, deltas, momentum=False)
    if settings.layer_steps:
        with builder.phase("layer_quadratic", sees=("gradient", "direction")):
            model = phases.on_share(settings.layer_dim)
            optimiser.quadratic(*model, gradients, deltas, by_layer=True)
    if settings.gather_noise is not None:
        with builder.phase("gradient_noise", sees=("gradient", "direction")):
            share = phases.gradient_share(settings.factor_dim)
            factors, bound = (inputs, outputs), settings.gather_noise
            measure_noise(optimiser, *share, gradients, deltas, factors, bound)
    if settings.guarded:
        for part in ("begin", "note", "end"):
            with builder.phase(f"damping_{part}"):
                choose_factor_damping(optimiser, part)
        with builder.phase("guard_step"):
            guard_step(optimiser)
    with builder.phase("update", sees=("gradient", "direction")):
        optimiser.update(deltas)
    with builder.phase("judge", sees=("gradient", "evaluate")):
        judge(optimiser, objective, phases.after)
    with builder.phase("adapt"):
        adapt(optimiser)
    if settings.search_steps:
        phases.trial(optimiser, objective, settings.factor_dim)
        with builder.phase("search"):
            search(optimiser)
    if settings.guarded:
        with builder.phase("guard_change"):
            guard_change(optimiser)
        with builder.phase("report", sees=("gradient",)):
            numbers = report(optimiser, phases.loss_value, objective)
            builder.results["report"] = numbers.name
    with builder.phase("restore"):
        optimiser.restore()
    with builder.phase("reject"):
        reject(optimiser)
    return builder.finish()


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
    builder = ProgramBuilder()
    phases = Phases(builder, graph, loss)
    phases.gradient()
    builder.results |= {f"grad.{layer}": value.name for layer, value in phases.gradients.items()}
    rows = settings.factor_dim
    phases.input_factors(rows)
    builder.results |= {f"Q.{layer}": value.name for layer, value in phases.inputs.items()}
    for method in methods:
        outputs = phases.output_factors(
            method, list(graph.layers), settings.samples, settings.trace_correction, rows
        )
        builder.results |= {f"{method}.{layer}": value.name for layer, value in outputs.items()}
    return builder.finish()


def factor_program(graph: ModelGraph, loss: Loss, method: str, samples: int = 1) -> StepProgram:
    """Gradient and curvature factors of one batch, without an optimiser."""
    builder = ProgramBuilder()
    phases = Phases(builder, graph, loss)
    phases.gradient()
    phases.factors(dict.fromkeys(graph.layers, method), samples)
    phases.report_factors()
    return builder.finish()


def quadratic_program(
    graph: ModelGraph, loss: Loss, settings: Settings, directions: int
) -> StepProgram:
    """``M`` and ``b`` of the quadratic model for given directions ``direction<i>.<layer>``."""
    builder = ProgramBuilder()
    phases = Phases(builder, graph, loss)
    phases.gradient()
    optimiser = Optimiser(builder, phases.forward, settings)
    with builder.phase("gradient"):
        gradients = optimiser.decayed(phases.gradients)
    with builder.phase("quadratic", sees=("gradient",)):
        given = [_direction(builder, graph, i) for i in range(directions)]
        m, rhs = optimiser.model(phases.forward, phases.rules, gradients, given)
        for i, row in enumerate(m):
            builder.results[f"b.{i}"] = rhs[i].name
            builder.results |= {f"M.{i}.{j}": value.name for j, value in enumerate(row)}
    return builder.finish()


def tangent_program(graph: ModelGraph) -> StepProgram:
    """R-operator of one direction ``direction0.<layer>``: the result ``tangent``; needs no targets."""
    builder = ProgramBuilder()
    with builder.phase("gradient"):
        forward = Forward.emit(builder, graph)
    with builder.phase("quadratic", sees=("gradient",)):
        tangent = push_forward(forward, _direction(builder, graph, 0), "r1")
        builder.results["tangent"] = tangent.name
    return builder.finish()


def _direction(builder: ProgramBuilder, graph: ModelGraph, number: int) -> dict[str, Value]:
    """A direction given from outside, ``ΔW̄`` by layer, as states."""
    direction = {}
    for layer, node in graph.layers.items():
        assert isinstance(node.op, Affine)
        inputs = graph[node.inputs[0]].size + int(node.op.homogeneous)
        direction[layer] = builder.state(f"direction{number}.{layer}", ir.Spec((node.size, inputs)))
    return direction
