"""The Kronecker factors of a batch: Q, and Ḡ of each layer by its curvature method."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import sympy

from ..base.settings import SAMPLED_METHODS
from ..errors import CompileError
from ..functions.primitives import select
from ..graph.zero_slopes import no_gradient
from ..losses.vocabulary import SoftmaxCrossEntropy
from ..program import operations as ir
from ..program import specs
from ..program.builder import Value
from ..program.phases import Phase, Repeat, Stage
from ..program.timetable import Due
from .batch_gradient import BatchGradient
from .propagation import pull_back
from .recursion import column_moments, input_moments, pull_back_matrices
from .representations import Averaged, PerSample


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
)
"""What a step runs for new factors. Input factors are made together with the output's, in ``curvature``,
or, of a share of the batch or of all of it, by one of two phases of their own."""


class Factors:
    """Emits the factors of a share of a batch; afterwards ``inputs`` and ``outputs`` are Q and Ḡ by layer.

    ``samples`` are the draws of the sampled methods, ``trace_correction`` is KFRA's.
    """

    def __init__(
        self,
        batch: BatchGradient,
        rows: specs.Dim = "N",
        samples: int = 1,
        trace_correction: bool = False,
    ) -> None:
        self.batch, self.builder = batch, batch.builder
        self.rows, self.samples, self.trace_correction = rows, samples, trace_correction
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
        self.input_factors(whole_inputs)
        found: dict[str, Value] = {}
        for method in dict.fromkeys(methods.values()):
            layers = [layer for layer, chosen in methods.items() if chosen == method]
            found |= self.output_factors(method, layers)
        if missing := [layer for layer in methods if layer not in found]:
            raise no_gradient(self.batch.graph, missing)  # slopes that only cancel in their sum
        self.outputs = {layer: found[layer] for layer in methods}
        for kind, factors in (("Q", self.inputs), ("G", self.outputs)):
            for layer, value in factors.items():
                self.builder.results[f"{kind}.{layer}"] = value.name

    def input_factors(self, whole_inputs: bool = False) -> None:
        """Input moments Q of every layer."""
        with self._work("share_inputs" if whole_inputs else "curvature", "input factor"):
            self.inputs = input_moments(self.sampled)
        if whole_inputs:
            with self.builder.phase("whole_inputs"):
                input_moments(self.batch.forward, self.inputs)

    def output_factors(self, method: str, layers: Collection[str]) -> dict[str, Value]:
        """Output factors Ḡ of ``layers`` by one curvature method."""
        if method == "kflr" or (method in SAMPLED_METHODS and self.samples > 1):
            return self._summed(method, layers)
        with self._work("curvature", "output factor"):
            if method == "kfra":
                with self.sampled.work_at_output():
                    hessian = self.sampled_rules.mean_hessian()
                averaged = Averaged(self.builder)
                outputs = pull_back_matrices(self.sampled, hessian, averaged, layers)
                return self._with_exact_traces(outputs) if self.trace_correction else outputs
            if method in ("ggn", "hessian"):
                with self.batch.forward.work_at_output():
                    hessians = self.batch.rules.sample_hessians(exact=method == "hessian")
                per_sample = PerSample(self.builder, curved=method == "hessian")
                return pull_back_matrices(
                    self.batch.forward, hessians, per_sample, layers, self.batch.vectors
                )
            if method == "empirical":
                columns = self.batch.share(self.batch.vectors, self.rows)
            else:
                columns = self._passed_back(method)
            return column_moments(self.sampled, columns, layers)

    def _with_exact_traces(self, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """KFRA's Ḡ scaled to the exact trace ``E‖J^T C v‖²``, estimated by one ±1 projection v.

        Averaging layer by layer loses the correlation of slopes across layers: deep in a network of
        saturating functions the trace of Ḡ can be 30 times too small, the step there as much too long.
        """
        vectors = self._passed_back("kfac_rp")
        exact, averaged, g = sympy.symbols("exact averaged g", real=True)
        corrected = dict(outputs)
        for layer, record in self.builder.layerwise(self.batch.graph.layers):
            if layer not in outputs or not outputs[layer].is_full:
                continue  # a structured Ḡ is at the output, where nothing has been averaged yet
            at = [vectors[node.name] for node in record.straight if node.name in vectors]
            dots = [self.builder.emit(ir.Dot(mean=True), v, v, name="exact_trace") for v in at]
            trace = {
                exact: dots[0] if len(dots) == 1 else self.builder.add(*dots),
                averaged: self.builder.emit(ir.Trace(), outputs[layer], name="averaged_trace"),
            }
            mean = exact / record.places
            positive = select(averaged, mean / averaged, sympy.Integer(1))
            ratio = self.builder.pointwise(positive, trace, name="trace_ratio")
            corrected[layer] = self.builder.pointwise(
                exact * g, {exact: ratio, g: outputs[layer]}, name=f"G_{record.node.name}_scaled"
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
        if not isinstance(self.batch.loss, SoftmaxCrossEntropy) and self.batch.loss.sampler is None:
            raise CompileError(
                f"method 'kfac' needs a model to sample targets from; the loss {self.batch.loss.name!r} "
                "declares none",
                instead="use method='kfac_rp', random ±1 projections, which need no model",
            )
        return self.sampled_rules.sampled_gradient()

    def _summed(self, method: str, layers: Collection[str]) -> dict[str, Value]:
        """Ḡ as a sum over the runs of ``columns``: chunks of KFLR's columns, or draws of KFAC."""
        builder, states = self.builder, {}
        for layer in layers:
            size = self.batch.graph.layers[layer].rows
            spec = specs.matrix(specs.Structure.SYMMETRIC, size)
            states[layer] = builder.state(f"G_sum.{layer}", spec)
        with builder.phase("columns_begin"):
            for _, state in builder.layerwise(states):
                builder.emit(ir.Zeros(state.spec), into=state, name=f"{state.name}_zero")
        builder.columns = self.batch.graph.output.size if method == "kflr" else self.samples
        weight = 1.0 if method == "kflr" else 1 / self.samples
        outputs = {}
        with self._work("columns", "output factor"):
            columns = self._passed_back(method)
            moments = column_moments(self.sampled, columns, layers)
            for layer, moment in builder.layerwise(moments):
                part = builder.scaled(moment, weight) if weight != 1.0 else moment
                name = f"G_{layer}"
                outputs[layer] = builder.add(states[layer], part, name=name, into=states[layer])
        return outputs
