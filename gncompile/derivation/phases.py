"""The optimiser of SPEC §7 as phases of the step program.

One step runs ``gradient, curvature[, columns …][, share_inputs], average[, invert], direction, quadratic,
update`` and, when the damping is due, ``predict, evaluate, judge, adapt`` (``damping.py``); ``restore`` and
``reject`` undo an update that failed. Every scalar lives in the program, so a step needs no number from the
host but the choice of phases.
Notation: λ damping of the quadratic model; γ damping of the factors, ½√λ at first, then chosen by that model;
η L2 coefficient; κ = γ² + η; δ the last step; Δ the preconditioned direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy

from ..base.settings import Settings
from ..functions.primitives import as_float, minimum, select
from ..graph.model_graph import Affine, Node
from ..program import step_program as ir
from ..program.builder import ProgramBuilder, Value
from ..program.step_program import Spec
from .averages import LEADS, average_parameters
from .forward import Forward
from .lengths import LENGTH, allowed_length, note_length
from .loss_rules import LossRules
from .propagation import push_forward

SMALLEST_TRACE = 1e-20
"""Floor of a factor's mean eigenvalue: a dead layer (all slopes 0) would make π infinite."""

a, b, c, d, k, old, sound = sympy.symbols("a b c d k old sound", real=True)


CHOSEN = {"length": LENGTH, "momentum": -3, "predicted": -2, "step_size": -1}
"""Where the state ``step_sizes`` holds what describes a step; before these the step size of each layer."""
FACTORS = 0.5
"""γ of the first steps, as a part of √λ."""
RECENT = 4
"""The k-th factors' weight in the first running averages, times k: parameters change most at first."""


@dataclass
class Optimiser:
    """Emits the optimiser's phases for one network; values are kept by layer name."""

    builder: ProgramBuilder
    forward: Forward
    settings: Settings

    def __post_init__(self) -> None:
        self.layers: dict[str, Node] = self.forward.graph.layers
        self.damping = self.scalar("damping", self.settings.damping)
        gamma = FACTORS * math.sqrt(self.settings.damping)
        self.factor_damping = self.scalar("factor_damping", gamma)

    def scalar(self, key: str, initial: float | str = "zero") -> Value:
        return self.builder.state(key, Spec(()), initial)

    @property
    def ok(self) -> Value:
        """1 while the step under way is sound; only a guarded program ever lowers it (``guards.py``)."""
        return self.scalar("ok", "one")

    @property
    def measured(self) -> Value:
        """1 where the last step that was judged was more than rounding (``damping.py``)."""
        return self.scalar("measured", "one")

    @property
    def unconfirmed(self) -> Value:
        """1 from an update of a guarded program until a sound batch tells whether the loss is finite."""
        return self.scalar("unconfirmed")

    def write(
        self, into: Value, expression: sympy.Expr, values: Mapping[sympy.Symbol, Value], name: str
    ) -> Value:
        """``into ← expression``; in a guarded program only while the step is sound."""
        if self.settings.guarded:
            expression = select(sound, expression, old)
            values = {**values, sound: self.ok, old: into}
        return self.builder.pointwise(expression, values, into=into, name=name)

    def last_step(self, layer: str) -> Value:
        """δ of the last step, shaped like W̄."""
        node = self.layers[layer]
        assert isinstance(node.op, Affine)
        inputs = self.forward.graph[node.inputs[0]].size + int(node.op.homogeneous)
        return self.builder.state(f"step.{layer}", Spec((node.size, inputs)))

    def _etas(self, layer: str) -> tuple[float, float]:
        """L2 coefficients of a layer's weight and bias."""
        op = self.layers[layer].op
        assert isinstance(op, Affine)
        bias = self.settings.l2_of(op.bias) if op.homogeneous and op.bias else 0.0
        return self.settings.l2_of(op.weight), bias

    def _kappa(self, layer: str) -> Value:
        """κ = γ² + η, the damping of a layer's factors, with the weight's η."""
        eta = as_float(self._etas(layer)[0])
        return self.builder.pointwise(a**2 + eta, {a: self.factor_damping}, name="kappa")

    # --- objective ------------------------------------------------------------------------------------

    def penalty(self, loss: Value, name: str) -> Value:
        """``Ē = loss + ½ Σ η ‖θ‖²``."""
        total = loss
        for layer, node in self.layers.items():
            parts = [self.forward.weight(node), self.forward.bias(node)]
            for eta, part in zip(self._etas(layer), parts, strict=True):
                if eta and part is not None:
                    norm = self.builder.emit(ir.Dot(), part, part, name=f"norm_{part.name}")
                    total = self.builder.pointwise(
                        a + as_float(eta / 2) * b, {a: total, b: norm}, name=name
                    )
        return total

    def decayed(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``∇W̄ + [η_W W, η_b b]``."""
        result = {}
        for layer, gradient in self.builder.layerwise(gradients):
            weight, bias = self._etas(layer)
            node = self.layers[layer]
            parts = [self.forward.weight(node), self.forward.bias(node) if bias else None]
            if weight or bias:
                gradient = self.builder.emit(
                    ir.Decay(weight, bias),
                    gradient,
                    *filter(None, parts),
                    name=f"{gradient.name}_l2",
                )
            result[layer] = gradient
        return result

    # --- factors --------------------------------------------------------------------------------------

    def average(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        """Running averages ``F ← ε F + (1 − ε) F_batch``, ``ε = min(1 − 4/(k + 3), bound)``.

        [MG §5] has ``1 − 1/k``, a plain mean at first; with 4 the k-th batch counts about as k³.
        """
        count = self.scalar("updates")
        count = self.write(count, k + 1, {k: count}, "updates_now")
        bound = as_float(self.settings.factor_average)
        mean = 1 - RECENT / (k + (RECENT - 1))
        epsilon = self.builder.pointwise(minimum(mean, bound), {k: count}, name="epsilon")
        for kind, factors in (("Q", inputs), ("G", outputs)):
            for layer, factor in self.builder.layerwise(factors):
                state = self._factor(kind, layer, factor.spec)
                self.lerp(state, factor, epsilon, f"{kind}_average")

    def lerp(self, state: Value, now: Value, weight: Value, name: str) -> None:
        """``state ← w state + (1 − w) now``."""
        if self.settings.guarded:
            self.write(state, b + c * (a - b), {a: state, b: now, c: weight}, name)
        else:
            self.builder.emit(ir.Average(), state, now, weight, into=state, name=name)

    def _factor(self, kind: str, layer: str, spec: Spec) -> Value:
        return self.builder.state(f"{kind}.{layer}", spec)

    def invert(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        """Damped inverses ``(Q + π√κ I)⁻¹, (Ḡ + √κ/π I)⁻¹`` with the trace-norm π [MG §6.3]."""
        for layer, _ in self.builder.layerwise(inputs):
            q = self._factor("Q", layer, inputs[layer].spec)
            g = self._factor("G", layer, outputs[layer].spec)
            if self.settings.exact_damping:
                self._decompose("Q", layer, q)
                self._decompose("G", layer, g)
                continue
            root = self.builder.pointwise(sympy.sqrt(k), {k: self._kappa(layer)}, name="root_kappa")
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

    def _inverse(self, kind: str, layer: str, spec: Spec) -> Value:
        return self.builder.state(f"{kind}_inverse.{layer}", spec, "identity")

    def _decompose(self, kind: str, layer: str, factor: Value) -> None:
        state = self._eigen(kind, layer, factor.spec)
        self.builder.emit(ir.Eigen(), factor, into=state, name=f"{kind}_eigen_{layer}")

    def _eigen(self, kind: str, layer: str, spec: Spec) -> Value:
        size = spec.size
        packed = spec if len(spec.shape) < 2 else Spec((size + 1, size))
        return self.builder.state(f"{kind}_eigen.{layer}", packed)

    def _mean_eigenvalue(self, factor: Value) -> Value:
        """``tr F / dim F``, kept above a floor."""
        trace = self.builder.emit(ir.Trace(), factor, name=f"trace_{factor.name}")
        floor = as_float(SMALLEST_TRACE)
        mean = a / factor.spec.size
        return self.builder.pointwise(
            select(mean - floor, mean, floor), {a: trace}, name="mean_eigenvalue"
        )

    # --- direction and step ---------------------------------------------------------------------------

    def directions(
        self,
        gradients: Mapping[str, Value],
        inputs: Mapping[str, Value],
        outputs: Mapping[str, Value],
    ) -> dict[str, Value]:
        """``Δ = −(Ḡ + ..)⁻¹ ∇ (Q + ..)⁻¹`` by layer."""
        result = {}
        for layer, gradient in self.builder.layerwise(gradients):
            name = f"delta_{self.layers[layer].name}"
            specs = inputs[layer].spec, outputs[layer].spec
            if self.settings.exact_damping:
                q, g = (self._eigen(kind, layer, s) for kind, s in zip("QG", specs, strict=True))
                op: ir.Op = ir.PreconditionEigen()
                operands = [gradient, g, q, self._kappa(layer)]
            else:
                q, g = (self._inverse(kind, layer, s) for kind, s in zip("QG", specs, strict=True))
                op, operands = ir.Precondition(), [gradient, g, q]
            result[layer] = self.builder.emit(op, *operands, name=name)
        return result

    def quadratic(
        self,
        forward: Forward,
        rules: LossRules,
        gradients: Mapping[str, Value],
        deltas: Mapping[str, Value],
        by_layer: bool = False,
        momentum: bool = True,
    ) -> None:
        """Step sizes c from the full Gauss-Newton quadratic ``bᵀc + ½ cᵀMc`` [MG §7], by R-operator.

        One for the direction Δ and one for the last step δ; ``by_layer`` one for each layer's part of Δ.
        Block-diagonal preconditioning lets all layers answer the same error at once; joint step sizes for
        the layers undo that.

        Where noise leads (``averages.py``) there is no momentum: it would carry the noise of one batch
        through many steps. The host runs a phase without it then (``momentum=False``, which saves δ's
        R-operator); a guarded program, whose phases do not wait for a number, bounds it by 0.
        """
        groups = tuple(range(len(deltas))) if by_layer else (0,) * len(deltas)
        directions: list[dict[str, Value]] = [{} for _ in range(max(groups) + 1)]
        for group, (layer, delta) in zip(groups, deltas.items(), strict=True):
            directions[group][layer] = delta
        momentum = momentum and self.settings.momentum
        if momentum:
            directions.append({layer: self.last_step(layer) for layer in deltas})
        m, rhs = self.model(forward, rules, gradients, directions)
        upper = [m[i][j] for i in range(len(m)) for j in range(i, len(m))]
        op = ir.StepSizes(groups, momentum, self.settings.step_growth, self.settings.step_cap)
        bounds = [allowed_length(self)]
        if momentum and not by_layer and self.settings.guarded and self.settings.average:
            leads = {a: self.scalar(LEADS)}
            bounds.append(self.builder.pointwise(1 - a, leads, name="largest_momentum"))
        self.builder.emit(op, *upper, *rhs, *bounds, into=self._sizes, name="step_sizes_now")

    @property
    def _sizes(self) -> Value:
        """The chosen step: a size for each layer, then :data:`CHOSEN`."""
        return self.builder.state("step_sizes", Spec((len(self.layers) + len(CHOSEN),)))

    def chosen(self, index: int) -> Value:
        index %= len(self.layers) + len(CHOSEN)
        return self.builder.emit(ir.Element(index), self._sizes, name=f"size_{index}")

    def model(
        self,
        forward: Forward,
        rules: LossRules,
        gradients: Mapping[str, Value],
        directions: list[dict[str, Value]],
    ) -> tuple[list[list[Value]], list[Value]]:
        """``M_ij = d_iᵀ(G + λI + η)d_j`` and ``b_i = d_iᵀ∇`` for directions ``ΔW̄`` by layer.

        The curvature G is that of the samples of ``forward`` and ``rules``.
        """
        tangents = [push_forward(forward, v, f"r{i + 1}") for i, v in enumerate(directions)]
        count = len(directions)
        m: list[list[Value]] = [[None] * count for _ in range(count)]  # type: ignore[list-item]
        for i in range(count):
            for j in range(i, count):
                with forward.work_at_output():
                    product = rules.hessian_product(tangents[j])
                curvature = self.builder.emit(
                    ir.Dot(mean=True), tangents[i], product, name=f"curvature_{i + 1}{j + 1}"
                )
                m[i][j] = m[j][i] = self._damped(curvature, directions[i], directions[j])
        return m, [self.inner(v, gradients) for v in directions]

    def _damped(self, curvature: Value, v: Mapping[str, Value], w: Mapping[str, Value]) -> Value:
        """``curvature + Σ_layers (λ + η) vᵀw``; weight and bias have their own η."""
        shared = [layer for layer in v if layer in w]
        if not shared:
            return curvature
        total = self.builder.pointwise(
            a + b * c,
            {a: curvature, b: self.damping, c: self.inner(v, w)},
            name="damped_curvature",
        )
        for layer in shared:
            etas = self._etas(layer)
            for eta, which in zip(etas, ("weight", "bias"), strict=True):
                if eta:
                    parts = [self._part(which, layer, x[layer]) for x in (v, w)]
                    dot = self.builder.emit(ir.Dot(), *parts)
                    total = self.builder.pointwise(a + as_float(eta) * b, {a: total, b: dot})
        return total

    def _part(self, which: str, layer: str, value: Value) -> Value:
        op = self.layers[layer].op
        assert isinstance(op, Affine)
        if not op.homogeneous:
            return value
        return self.builder.emit(ir.Part(which), value, name=f"{value.name}_{which[0]}")  # type: ignore

    def inner(self, v: Mapping[str, Value], w: Mapping[str, Value]) -> Value:
        """``Σ vᵀw`` over the layers of both."""
        dots = [self.builder.emit(ir.Dot(), v[k], w[k], name="dot") for k in v if k in w]
        return dots[0] if len(dots) == 1 else self.builder.add(*dots, name="inner")

    def update(self, deltas: Mapping[str, Value]) -> None:
        """``δ ← c_l Δ_l + c_m δ`` for each layer l, ``θ ← θ + δ``; θ before it is kept for ``restore``."""
        if self.settings.average:
            average_parameters(self)
        for number, (layer, delta) in enumerate(self.builder.layerwise(deltas)):
            step = self.last_step(layer)
            values = {a: delta, b: self.chosen(number)}
            expression = a * b
            if self.settings.momentum:
                values |= {c: step, d: self.chosen(CHOSEN["momentum"])}
                expression = a * b + c * d
            step = self.write(step, expression, values, "step")
            for parameter, change in self._pairs(layer, step):
                saved = self.builder.state(f"last_good.{parameter.name}", parameter.spec)
                self.write(saved, a, {a: parameter}, "saved")
                self.write(parameter, a + b, {a: parameter, b: change}, "moved")
        note_length(self)
        if self.settings.guarded:
            self.write(self.unconfirmed, sympy.Integer(1), {}, "unconfirmed_now")

    def _pairs(self, layer: str, value: Value) -> list[tuple[Value, Value]]:
        """The parameters of a layer with their parts of a W̄-shaped value."""
        node = self.layers[layer]
        assert isinstance(node.op, Affine)
        pairs = [(self.forward.weight(node), self._part("weight", layer, value))]
        if node.op.homogeneous:
            bias = self.forward.bias(node)
            assert bias is not None
            pairs.append((bias, self._part("bias", layer, value)))
        return pairs

    def parameters(self) -> Iterator[Value]:
        """Every trained parameter; what is emitted meanwhile is work for its layer."""
        for layer, _ in self.builder.layerwise(self.layers):
            yield from self.parameters_of(layer)

    def parameters_of(self, layer: str) -> list[Value]:
        """A layer's weight, and its bias if it has one."""
        return [p for p, _ in self._pairs(layer, self.last_step(layer))]

    def forget_step(self, where: Value | None = None) -> None:
        """No momentum from the last step, if ``where`` is positive."""
        for layer, _ in self.builder.layerwise(self.layers):
            step = self.last_step(layer)
            if where is None:
                self.builder.emit(ir.Zeros(step.spec), into=step, name="no_step")
            else:
                values = {a: step, b: where}
                none = select(b, sympy.Integer(0), a)
                self.builder.pointwise(none, values, into=step, name="no_step")

    def restore(self, where: Value | None = None) -> None:
        """Parameters as they were before the last update, if ``where`` is positive."""
        for parameter in self.parameters():
            saved = self.builder.state(f"last_good.{parameter.name}", parameter.spec)
            earlier, values = a, {a: saved}
            if where is not None:
                earlier, values = select(b, a, c), {a: saved, b: where, c: parameter}
            self.builder.pointwise(earlier, values, into=parameter, name="restored")
