"""What the phases of a step share: parameters and last step, dampings, the objective, guarded writes.

Every scalar lives in the program, so a step needs no number from the host but the choice of phases.
Notation: λ damping of the quadratic model; γ damping of the factors, ½√λ at first, then chosen by that model;
η L2 coefficient; κ = γ² + η; δ the last step; Δ the preconditioned direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy

from ..base.settings import Settings
from ..functions.primitives import as_float, finite, maximum, select
from ..graph.layers import Layer
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from ..program.specs import Spec
from .forward import Forward

CHOSEN = {"length": -4, "momentum": -3, "predicted": -2, "step_size": -1}
"""Where the state ``step_sizes`` holds what describes a step, its squared length first; before these the
step size of each layer."""
FACTORS = 0.5
"""γ of the first steps, as a part of √λ."""

a, b, c, old, sound = sympy.symbols("a b c old sound", real=True)


@dataclass
class Optimiser:
    """What is emitted for the optimiser of one network; values are kept by layer name."""

    builder: ProgramBuilder
    forward: Forward
    settings: Settings

    def __post_init__(self) -> None:
        self.layers: dict[str, Layer] = self.forward.graph.trained
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

    def lerp(self, state: Value, now: Value, weight: Value, name: str) -> None:
        """``state ← w state + (1 − w) now``."""
        if self.settings.guarded:
            self.write(state, b + c * (a - b), {a: state, b: now, c: weight}, name)
        else:
            self.builder.emit(ir.Average(), state, now, weight, into=state, name=name)

    @property
    def sizes(self) -> Value:
        """The chosen step: a size for each layer, then :data:`CHOSEN`."""
        return self.builder.state("step_sizes", Spec((len(self.layers) + len(CHOSEN),)))

    def chosen(self, index: int) -> Value:
        names = [*(f"step_size_{layer}" for layer in self.layers), *(f"chosen_{x}" for x in CHOSEN)]
        index %= len(names)
        return self.builder.emit(ir.Element(index), self.sizes, name=names[index])

    def last_step(self, layer: str) -> Value:
        """δ of the last step, shaped like W̄."""
        return self.builder.state(f"step.{layer}", Spec(self.layers[layer].shape))

    def etas(self, layer: str) -> tuple[float, float]:
        """L2 coefficients of a layer's weight and bias."""
        record = self.layers[layer]
        bias = self.settings.l2_of(record.bias) if record.bias else 0.0
        return self.settings.l2_of(record.weight), bias

    def kappa(self, layer: str) -> Value:
        """κ = γ² + η, the damping of a layer's factors, with the weight's η."""
        eta = as_float(self.etas(layer)[0])
        return self.builder.pointwise(a**2 + eta, {a: self.factor_damping}, name="kappa")

    # --- objective ------------------------------------------------------------------------------------

    def penalty(self, loss: Value, name: str) -> Value:
        """``Ē = loss + ½ Σ η ‖θ‖²``."""
        total = loss
        for layer, record in self.layers.items():
            parts = [self.forward.weight(record), self.forward.bias(record)]
            for eta, part in zip(self.etas(layer), parts, strict=True):
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
            weight, bias = self.etas(layer)
            if weight or bias:
                record = self.layers[layer]
                parts = [self.weight(record), self.forward.bias(record) if bias else None]
                gradient = self.builder.emit(
                    ir.Decay(weight, bias),
                    gradient,
                    *filter(None, parts),
                    name=f"{gradient.name}_l2",
                )
            result[layer] = gradient
        return result

    def part(self, which: str, layer: str, value: Value) -> Value:
        if not self.layers[layer].homogeneous:
            return value
        return self.builder.emit(ir.Part(which), value, name=f"{value.name}_{which[0]}")  # type: ignore

    def inner(self, v: Mapping[str, Value], w: Mapping[str, Value], name: str = "inner") -> Value:
        """``Σ vᵀw`` over the layers of both."""
        dots = [self.builder.emit(ir.Dot(), v[k], w[k], name=f"{name}_{k}") for k in v if k in w]
        return self.builder.add(*dots, name=name)

    def scale(self, layer: str) -> Value:
        """D of a layer's parameters, which λ multiplies: the greatest diagonal of G so far [Moré 1978, §6].

        A parameter that has not moved the output yet has 1.
        """
        return self.builder.pointwise(
            select(a, a, sympy.Integer(1)), {a: self._greatest(layer)}, name=f"scale_{layer}"
        )

    def raise_scales(self, diagonals: Mapping[str, Value]) -> None:
        """Let D follow the diagonal of this batch's G, by layer and laid out as W̄, if all of it is finite."""
        sums = [self.builder.emit(ir.Total(), d, name="diagonal_sum") for d in diagonals.values()]
        whole = self.builder.add(*sums, name="trace_G")
        greatest = select(finite(c), maximum(a, b), a)
        for layer, diagonal in self.builder.layerwise(diagonals):
            state = self._greatest(layer)
            self.write(state, greatest, {a: state, b: diagonal, c: whole}, "scale_now")

    def _greatest(self, layer: str) -> Value:
        return self.builder.state(f"scale.{layer}", Spec(self.layers[layer].shape))

    def scaled_inner(self, v: Mapping[str, Value], w: Mapping[str, Value], name: str) -> Value:
        """``Σ vᵀ D w``, D = 1 with ``damping_scale="identity"`` and where a first-order rule trains."""
        if self.settings.damping_scale != "identity":
            scaled = {
                k: self.builder.pointwise(a * b, {a: w[k], b: self.scale(k)}, name=f"scaled_{k}")
                for k in v
                if k in w and k in self.forward.graph.layers
            }
            w = {**w, **scaled}
        return self.inner(v, w, name)

    def pairs(self, layer: str, value: Value) -> list[tuple[Value, Value]]:
        """The parameters of a layer with their parts of a W̄-shaped value."""
        record = self.layers[layer]
        weight = self.part("weight", layer, value)
        if record.flipped:
            weight = self.builder.transpose(weight)
        pairs = [(self.forward.weight(record), weight)]
        if (bias := self.forward.bias(record)) is not None:
            pairs.append((bias, self.part("bias", layer, value)))
        return pairs

    def weight(self, record: Layer) -> Value:
        """The weight of a layer as it stands in W̄: ``[rows, columns]``."""
        weight = self.forward.weight(record)
        return self.builder.transpose(weight) if record.flipped else weight

    def parameters(self) -> Iterator[Value]:
        """Every trained parameter; what is emitted meanwhile is work for its layer."""
        for layer, _ in self.builder.layerwise(self.layers):
            yield from self.parameters_of(layer)

    def parameters_of(self, layer: str) -> list[Value]:
        """A layer's weight, and its bias if it has one."""
        return [p for p, _ in self.pairs(layer, self.last_step(layer))]

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
