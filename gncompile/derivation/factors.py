"""The Kronecker factors of a batch: Q, and Ḡ of each layer by its curvature method."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import sympy

from ..base.settings import SAMPLED_METHODS
from ..errors import CompileError
from ..functions.primitives import select
from ..graph.layers import Layer
from ..graph.nodes import Node
from ..graph.zero_slopes import no_gradient
from ..program import operations as ir
from ..program import specs
from ..program.builder import Value
from ..program.phases import Phase, Repeat, Stage
from ..program.timetable import Due
from .batch_gradient import BatchGradient
from .propagation import pull_back
from .recursion import no_average, obstacles, pull_back_matrices
from .representations import Averaged, PerSample
from .sharing import Sharing, exchanged, united


def refreshed(now: Due) -> bool:
    """Where new factors are due."""
    return now.factors


PHASES = (
    Phase("curvature", Stage.MEASUREMENT, ("gradient",), refreshed),
    Phase("columns_begin", Stage.MEASUREMENT, when=refreshed),
    Phase(
        "columns", Stage.MEASUREMENT, ("gradient", "curvature"), refreshed, repeat=Repeat.COLUMNS
    ),
    Phase(
        "share_inputs",
        Stage.MEASUREMENT,
        ("gradient", "curvature"),
        lambda now: now.factors and not now.whole_inputs,
    ),
    Phase(
        "whole_inputs",
        Stage.MEASUREMENT,
        ("gradient",),
        lambda now: now.factors and now.whole_inputs,
    ),
    Phase(
        "pair",
        Stage.MEASUREMENT,
        ("gradient", "curvature", "columns", "share_inputs", "whole_inputs"),
        refreshed,
    ),
)
"""What a step runs for new factors. Input factors are made together with the output's, in ``curvature``,
or, of a share of the batch or of all of it, by one of two phases of their own. Where Q and Ḡ of a layer
depend on each other, ``pair`` makes them of what the others have measured."""


class Factors:
    """Emits the factors of a share of a batch; afterwards ``inputs`` and ``outputs`` are Q and Ḡ by layer.

    ``sharing`` is how the places of each layer share its factors, ``samples`` are the draws of the sampled
    methods, ``trace_correction`` is KFRA's. First come the moments of inputs and of outputs by layer and its
    mirror, its *sides*, then a pair of factors of each layer.
    """

    def __init__(
        self,
        batch: BatchGradient,
        rows: specs.Dim,
        sharing: Mapping[str, Sharing],
        samples: int = 1,
        trace_correction: bool = False,
    ) -> None:
        self.batch, self.builder = batch, batch.builder
        self.rows, self.samples, self.trace_correction = rows, samples, trace_correction
        layers = batch.graph.layers
        self.owner = {side.name: name for name, layer in layers.items() for side in layer.sides}
        self.sides = {side.name: side for layer in layers.values() for side in layer.sides}
        self.sharing = {side: sharing[name] for side, name in self.owner.items()}
        with self._work("curvature", "output factor"):
            self.sampled, self.sampled_rules = batch.on_share(rows)

    @contextmanager
    def _work(self, phase: str, role: str) -> Iterator[None]:
        with self.builder.phase(phase), self.builder.origin(role=role):
            yield

    def emit(self, methods: Mapping[str, str], whole_inputs: bool = False) -> None:
        """Q, and Ḡ of each layer by its method in ``methods``; the results ``Q.<layer>`` and ``G.<layer>``.

        With ``whole_inputs`` Q is that of the share or of the whole batch, by one phase or the other.
        """
        self.input_moments(whole_inputs)
        found: dict[str, Value] = {}
        for method in dict.fromkeys(methods.values()):
            layers = [layer for layer, chosen in methods.items() if chosen == method]
            found |= self.output_moments(method, layers)
        pairs = self.pairs(found)
        if missing := [layer for layer in methods if layer not in pairs]:
            raise no_gradient(self.batch.graph, missing)  # slopes that only cancel in their sum
        self.inputs = {layer: q for layer, (q, _) in pairs.items()}
        self.outputs = {layer: pairs[layer][1] for layer in methods}
        for kind, factors in (("Q", self.inputs), ("G", self.outputs)):
            for layer, value in factors.items():
                self.builder.results[f"{kind}.{layer}"] = value.name

    def input_moments(self, whole_inputs: bool = False) -> None:
        """The moments of the inputs of every side."""
        with self._work("share_inputs" if whole_inputs else "curvature", "input factor"):
            self.moments = {
                name: self.sharing[name].input_moment(self.sampled, side)
                for name, side in self.sides.items()
            }
        if whole_inputs:
            with self.builder.phase("whole_inputs"):
                distinct = {self.moments[name]: name for name in reversed(self.sides)}
                for target, name in reversed(
                    distinct.items()
                ):  # once where layers share their input
                    self.sharing[name].input_moment(self.batch.forward, self.sides[name], target)

    def pairs(self, outputs: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
        """Q and Ḡ of the layers of which there are ``outputs``, moments by side."""
        found = {}
        for name, layer in self.batch.graph.layers.items():
            mode, sides = self.sharing[name], [s for s in layer.sides if s.name in outputs]
            moments = [(self.moments[side.name], outputs[side.name]) for side in sides]
            if sides and layer.mirror is None and not mode.paired:
                (found[name],) = moments
            elif sides:
                with self._work("pair", "output factor"), self.builder.origin(layer=name):
                    made = [
                        mode.pair(self.builder, *both) for both in zip(sides, moments, strict=True)
                    ]
                    parts = [
                        exchanged(self.builder, layer, pair) if side is layer.mirror else pair
                        for side, pair in zip(sides, made, strict=True)
                    ]
                    found[name] = united(self.builder, *parts)
        return found

    def output_moments(self, method: str, layers: Collection[str]) -> dict[str, Value]:
        """The moments of the outputs of ``layers`` by one curvature method, by side."""
        record = self.batch.graph.layers
        sides = {side.name: side for layer in layers for side in record[layer].sides}
        if method == "kflr" or (method in SAMPLED_METHODS and self.samples > 1):
            return self._summed(method, sides)
        if method == "kfra" and (ended := [x for x in layers if x in self.obstacles]):
            raise no_average(ended, self.obstacles[ended[0]])
        with self._work("curvature", "output factor"):
            if method == "kfra":
                with self.sampled.work_at_output():
                    hessian = self.sampled_rules.mean_hessian()
                averaged = Averaged(self.builder)
                outputs = pull_back_matrices(self.sampled, hessian, averaged, sides, self.sharing)
                return self._with_exact_traces(outputs) if self.trace_correction else outputs
            if method in ("ggn", "hessian"):
                with self.batch.forward.work_at_output():
                    hessians = self.batch.rules.sample_hessians(exact=method == "hessian")
                per_sample = PerSample(self.builder, curved=method == "hessian")
                return pull_back_matrices(
                    self.batch.forward,
                    hessians,
                    per_sample,
                    sides,
                    self.sharing,
                    self.batch.vectors,
                )
            if method == "empirical":
                columns = self.batch.share(self.batch.vectors, self.rows)
            else:
                columns = self._passed_back(method)
            return self._moments(columns, sides)

    def _moments(
        self, columns: Mapping[str, Value], sides: Mapping[str, Layer]
    ) -> dict[str, Value]:
        """Moments of the outputs of those ``sides`` that the columns reach."""
        return {
            name: self.sharing[name].column_moment(self.sampled, side, columns)
            for name, side in sides.items()
            if any(node.name in columns for node in side.straight)
        }

    @cached_property
    def obstacles(self) -> dict[str, Node]:
        """The layers that KFRA cannot serve, with the nodes that it cannot pass."""
        with self.builder.phase("gradient"):
            return obstacles(self.batch.forward)

    def _with_exact_traces(self, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """KFRA's moments scaled to the exact trace ``E‖J^T C v‖²``, estimated by one ±1 projection v.

        Averaging layer by layer loses the correlation of slopes across layers: deep in a network of
        saturating functions the trace of Ḡ can be 30 times too small, the step there as much too long.
        """
        vectors = self._passed_back("kfac_rp")
        exact, averaged, g = sympy.symbols("exact averaged g", real=True)
        corrected = dict(outputs)
        for name, side in self.sides.items():
            if name not in outputs or not outputs[name].is_full:
                continue  # a structured Ḡ is at the output, where nothing has been averaged yet
            mode = self.sharing[name]
            with self.builder.origin(layer=self.owner[name]):
                rows = mode.rows(self.sampled, side, vectors)
                dots = [
                    self.builder.emit(ir.Dot(mean=True), v, v, name="exact_trace") for v in rows
                ]
                trace = {
                    exact: self.builder.add(*dots),
                    averaged: self.builder.emit(ir.Trace(), outputs[name], name="averaged_trace"),
                }
                mean = exact / mode.over(side)
                positive = select(averaged, mean / averaged, sympy.Integer(1))
                ratio = self.builder.pointwise(positive, trace, name="trace_ratio")
                called = f"G_{side.node.name}_scaled"
                values = {exact: ratio, g: outputs[name]}
                corrected[name] = self.builder.pointwise(exact * g, values, name=called)
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
        if self.batch.loss.sampler is None:
            raise CompileError(
                f"method 'kfac' needs a model to sample targets from; the loss {self.batch.loss.name!r} "
                "declares none",
                instead="use method='kfac_rp', random ±1 projections, which need no model",
            )
        return self.sampled_rules.sampled_gradient()

    def _summed(self, method: str, sides: Mapping[str, Layer]) -> dict[str, Value]:
        """Moments as sums over the runs of ``columns``: chunks of KFLR's columns, or draws of KFAC."""
        builder, states = self.builder, {}
        for name, side in sides.items():
            structure = specs.Structure.DIAGONAL if side.diagonal else specs.Structure.SYMMETRIC
            spec = specs.matrix(structure, self.sharing[name].width(side))
            states[name] = builder.state(f"G_sum.{name}", spec)
        with builder.phase("columns_begin"):
            for name, state in states.items():
                with builder.origin(layer=self.owner[name]):
                    builder.emit(ir.Zeros(state.spec), into=state, name=f"{state.name}_zero")
        builder.columns = self.batch.graph.output.size if method == "kflr" else self.samples
        weight = 1.0 if method == "kflr" else 1 / self.samples
        outputs = {}
        with self._work("columns", "output factor"):
            columns = self._passed_back(method)
            for name, moment in self._moments(columns, sides).items():
                with builder.origin(layer=self.owner[name]):
                    part = builder.scaled(moment, weight) if weight != 1.0 else moment
                    state = states[name]
                    outputs[name] = builder.add(state, part, name=f"G_{name}", into=state)
        return outputs
