"""Kronecker-factored curvature: ``Δ = −(Ḡ + ..)⁻¹ ∇ (Q + ..)⁻¹`` for each layer [MG §4.2, §6.3].

Q and Ḡ of a batch (``derivation/factors.py``) enter running averages, and from time to time
these are inverted.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from ..base.settings import Settings
from ..derivation.factors import PHASES, Factors, refreshed
from ..derivation.guards import guard_factors
from ..derivation.method_choice import curvature_methods
from ..derivation.sharing import sharing_of
from ..functions.primitives import as_float, minimum, select
from ..program import operations as ir
from ..program.builder import Value
from ..program.phases import DIRECTION, Phase, Repeat, Stage
from ..program.specs import Spec
from .solver import Solver

SMALLEST_TRACE = 1e-20
"""Floor of a factor's mean eigenvalue: a dead layer (all slopes 0) would make π infinite."""
RECENT = 4
"""The k-th factors' weight in the first running averages, times k: parameters change most at first."""

a, b, k = sympy.symbols("a b k", real=True)


class Kronecker(Solver):
    """Preconditions each layer's gradient from both sides."""

    @classmethod
    def phases(cls, settings: Settings) -> tuple[Phase, ...]:
        # One eigendecomposition serves every γ, an inverse only its own.
        each = Repeat.ONCE if settings.inverse == "eigen" else Repeat.DAMPINGS
        made = tuple(phase.name for phase in PHASES)
        return (
            *PHASES,
            Phase("average", Stage.KEEPING, ("gradient", *made), refreshed),
            Phase("invert", Stage.DIRECTION, (), lambda now: now.fresh, each),
            Phase(DIRECTION, Stage.DIRECTION, ("gradient",), repeat=Repeat.DAMPINGS),
        )

    def prepare(self) -> None:
        """Factors of the batch, their running averages, and inverses of these."""
        settings, builder = self.settings, self.builder
        chosen = curvature_methods(self.batch.graph, self.batch.loss, settings)
        builder.methods, builder.reasons = chosen.methods, chosen.reasons
        rows, sharing = settings.factor_dim, sharing_of(self.batch.graph, settings)
        draws, corrected = settings.samples, settings.trace_correction
        self.factors = Factors(self.batch, rows, sharing, draws, corrected)
        self.factors.emit(chosen.methods, settings.whole_inputs > 0 and rows != "N")
        inputs, outputs = self.factors.inputs, self.factors.outputs
        with builder.phase("average"):
            if settings.guarded:
                guard_factors(self.optimiser, inputs, outputs)
            self._average(inputs, outputs)
        with builder.phase("invert"):
            self._invert(inputs, outputs)

    def _average(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        """Running averages ``F ← ε F + (1 − ε) F_batch``, ``ε = min(1 − 4/(k + 3), bound)``.

        [MG §5] has ``1 − 1/k``, a plain mean at first; with 4 the k-th batch counts about as k³.
        """
        count = self.optimiser.scalar("updates")
        count = self.optimiser.write(count, k + 1, {k: count}, "updates_now")
        bound = as_float(self.settings.factor_average)
        mean = 1 - RECENT / (k + (RECENT - 1))
        epsilon = self.builder.pointwise(minimum(mean, bound), {k: count}, name="epsilon")
        for kind, factors in (("Q", inputs), ("G", outputs)):
            for layer, factor in self.builder.layerwise(factors):
                state = self._factor(kind, layer, factor.spec)
                self.optimiser.lerp(state, factor, epsilon, f"{kind}_average")

    def kappa(self, layer: str) -> Value:
        """κ, the damping of a layer's factors."""
        return self.optimiser.kappa(layer)

    def _factor(self, kind: str, layer: str, spec: Spec) -> Value:
        return self._state(f"{kind}.{layer}", spec, layer)

    def _state(self, key: str, spec: Spec, layer: str, initial: str = "zero") -> Value:
        """A matrix of a layer, which with ``factors="sharded"`` the layer's process has alone."""
        alone = layer if self.settings.factors == "sharded" else ""
        return self.builder.state(key, spec, initial, kept_with=alone)

    def _invert(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        """Damped inverses ``(Q + π√κ I)⁻¹, (Ḡ + √κ/π I)⁻¹`` with the trace-norm π [MG §6.3]."""
        for layer, _ in self.builder.layerwise(inputs):
            q = self._factor("Q", layer, inputs[layer].spec)
            g = self._factor("G", layer, outputs[layer].spec)
            if self.settings.inverse == "eigen":
                self._decompose("Q", layer, q)
                self._decompose("G", layer, g)
                continue
            if self.optimiser.layers[layer].vector:
                self._invert_vector(layer, g)
                continue
            root = self.builder.pointwise(sympy.sqrt(k), {k: self.kappa(layer)}, name="root_kappa")
            means = {s: self._mean_eigenvalue(f) for s, f in ((a, q), (b, g))}
            pi = self.builder.pointwise(sympy.sqrt(a / b), means, name=f"pi_{layer}")
            q_damping = self.builder.pointwise(a * b, {a: pi, b: root}, name="q_damping")
            g_damping = self.builder.pointwise(b / a, {a: pi, b: root}, name="g_damping")
            for kind, factor, damping in (("Q", q, q_damping), ("G", g, g_damping)):
                inverse = self._inverse(kind, layer, factor.spec)
                refined = self.settings.inverse == "newton_schulz" and len(factor.spec.shape) == 2
                self.builder.emit(
                    ir.DampedInverse(refined),
                    factor,
                    damping,
                    into=inverse,
                    name=f"{kind}_inverse_{layer}",
                )

    def _invert_vector(self, layer: str, g: Value) -> None:
        """``(Ḡ + κ I)⁻¹``: the block of a trainable vector is no product, and Q stays 1."""
        kappa = self.kappa(layer)
        inverse = self._inverse("G", layer, g.spec)
        op = ir.DampedInverse(self.settings.inverse == "newton_schulz" and len(g.spec.shape) == 2)
        self.builder.emit(op, g, kappa, into=inverse, name=f"G_inverse_{layer}")

    def _inverse(self, kind: str, layer: str, spec: Spec) -> Value:
        return self._state(f"{kind}_inverse.{layer}", spec, layer, "identity")

    def _decompose(self, kind: str, layer: str, factor: Value) -> None:
        state = self._eigen(kind, layer, factor.spec)
        self.builder.emit(ir.Eigen(), factor, into=state, name=f"{kind}_eigen_{layer}")

    def _eigen(self, kind: str, layer: str, spec: Spec) -> Value:
        size = spec.size
        packed = spec if len(spec.shape) < 2 else Spec((size + 1, size))
        return self._state(f"{kind}_eigen.{layer}", packed, layer)

    def _mean_eigenvalue(self, factor: Value) -> Value:
        """``tr F / dim F``, kept above a floor."""
        trace = self.builder.emit(ir.Trace(), factor, name=f"trace_{factor.name}")
        floor = as_float(SMALLEST_TRACE)
        mean = a / factor.spec.size
        return self.builder.pointwise(
            select(mean - floor, mean, floor), {a: trace}, name="mean_eigenvalue"
        )

    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``Δ = −(Ḡ + ..)⁻¹ ∇ (Q + ..)⁻¹`` by layer."""
        inputs, outputs = self.factors.inputs, self.factors.outputs
        result = {}
        for layer, gradient in self.builder.layerwise(gradients):
            name = f"delta_{self.optimiser.layers[layer].node.name}"
            specs = inputs[layer].spec, outputs[layer].spec
            if self.settings.inverse == "eigen":
                q, g = (self._eigen(kind, layer, s) for kind, s in zip("QG", specs, strict=True))
                op: ir.Op = ir.PreconditionEigen()
                operands = [gradient, g, q, self.kappa(layer)]
            else:
                q, g = (self._inverse(kind, layer, s) for kind, s in zip("QG", specs, strict=True))
                op, operands = ir.Precondition(), [gradient, g, q]
            result[layer] = self.builder.emit(op, *operands, name=name)
        return result
