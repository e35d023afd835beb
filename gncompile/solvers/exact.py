"""The whole Gauss-Newton matrix, unfactored: ``(G + λI) Δ = −∇``, the step of Levenberg and Marquardt.

With the root ``C Cᵀ = 𝓗_L`` of K columns and ``J = Cᵀ ∂z/∂θ``, a row for each sample and column, is
``G = (1/N) Jᵀ J``. J is N K × P, and the system is solved in the smaller of two forms::

    primal    Δ = −(G + D)⁻¹ ∇                                     P × P, from the rows of J
    dual      Δ = −p − (1/N) D⁻¹ Jᵀ (I + (1/N) J D⁻¹ Jᵀ)⁻¹ (r − J p)    N K × N K, J is never formed

with ``D = λ + η`` of every parameter, or ``λ S + η`` with the greatest diagonal S of G so far
(``damping_scale="diagonal"`` [Moré 1978]: steps that do not know the units of parameters). The dual form
splits the loss's gradient at the output into ``C r`` and a rest, 0 for most losses:
``∇ = (1/N) Jᵀ r + D p``, so that nothing else is divided by a small λ. ``J Jᵀ`` is a sum of Hadamard products
of small Grams over places and uses, ``Jᵀ v`` a weight gradient whose columns are scaled by v, and ``J p`` a
tangent; with S rows are made a few at a time.

A step whose loss rose is tried with a greater λ, up to ``damping_tries``, on the matrix that there is: a new
Cholesky factorisation is a small part of it. Only where the Gram matrix of the dual form is another for each
λ, as D is no multiple of one diagonal, it is made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import sympy

from ..base.settings import Settings
from ..base.solver_options import ExactForm
from ..base.tables import binary_size, engineering
from ..derivation.acceleration import bent, second_change
from ..derivation.jacobian_rows import at_places, layer_rows, sides
from ..derivation.propagation import layer_gradients, pull_back, push_forward, uses
from ..errors import CompileError
from ..functions.primitives import as_float, select
from ..graph.model_graph import ModelGraph
from ..losses.vocabulary import SeparableLoss
from ..program import exact
from ..program import operations as ir
from ..program.builder import Value
from ..program.phases import DIRECTION, Phase, Repeat, Stage
from ..program.specs import Spec, Structure, matrix
from .solver import Solver

a, b, c, d, k = sympy.symbols("a b c d k", real=True)


def _number(eta: float) -> sympy.Expr:
    return as_float(eta) if eta else sympy.Integer(0)


class Exact(Solver):
    """Solves with G of the whole batch; ``settings.exact_form`` says in which form."""

    @classmethod
    def phases(cls, settings: Settings) -> tuple[Phase, ...]:
        stage = Stage.MEASUREMENT
        if settings.exact_form == "dual":
            scaled = settings.damping_scale != "identity"
            if isinstance(settings.l2, Mapping) or (scaled and settings.l2):
                stage = Stage.DIRECTION  # the Gram matrix of J D⁻¹ Jᵀ is another for every λ
            elif scaled:
                stage = Stage.KEEPING
        return (
            Phase("rows_begin", Stage.MEASUREMENT),
            Phase("rows", stage, ("gradient",), repeat=Repeat.COLUMNS),
            Phase(DIRECTION, Stage.DIRECTION, ("gradient", "rows")),
        )

    def prepare(self) -> None:
        """The columns at every use, and of them G or the Gram matrix of all rows."""
        self.refuse_gather_noise("the direction is that of the whole batch")
        self.forward, self.layers = self.batch.forward, self.batch.graph.layers
        self.builder.methods = dict.fromkeys(self.layers, "exact")
        self.dual = self.settings.exact_form == "dual"
        self.scaled = self.settings.damping_scale != "identity"
        self.builder.columns = self.batch.graph.output.size
        size = sum(math.prod(layer.shape) for layer in self.layers.values())
        if not self.dual:
            with self.builder.phase("rows_begin"):
                spec = matrix(Structure.SYMMETRIC, size)
                self.matrix = self.builder.emit(ir.Zeros(spec), name="G_zero")
        with self.builder.phase("rows"):
            with self.forward.work_at_output():
                self.root = self.batch.rules.root_columns()
            columns = pull_back(self.forward, self.root, prefix="c")
            self.matrix = self._gram(columns) if self.dual else self._whole(columns)

    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``Δ = −(G + D)⁻¹ ∇`` by layer, for the gradient of the batch."""
        return self._dual() if self.dual else self._solved(gradients)

    def accelerated(self, deltas: Mapping[str, Value]) -> dict[str, Value]:
        """``Δ + a/2c`` where the step is to bend: with its size c it is ``v + ½ a``, ``v = c Δ``."""
        builder, rules = self.builder, self.batch.rules
        sizes = {name: self.optimiser.chosen(number) for number, name in enumerate(deltas)}
        steps = {
            name: builder.pointwise(a * b, {a: deltas[name], b: sizes[name]}, name="velocity")
            for name in self.layers
        }
        change = second_change(self.optimiser, self.forward, steps)
        with self.forward.work_at_output():
            seed = self._along_rows(change) if self.dual else rules.hessian_product(change)
        answer = self._from_rows(seed, "a") if self.dual else self._solved(self._back(seed, "a"))
        result = dict(deltas)
        for name, half in bent(self.optimiser, steps, answer).items():
            values = {a: deltas[name], b: half, c: sizes[name]}
            result[name] = builder.pointwise(a + select(c, b / c, 0), values, name="bent")
        return result

    # --- rows of J ------------------------------------------------------------------------------------

    def _whole(self, columns: Mapping[str, Value]) -> Value:
        """G, to which every chunk of columns adds its part."""
        rows = [layer_rows(self.forward, layer, columns) for layer in self.layers.values()]
        moment = self.builder.emit(ir.Moment(), self._side_by_side(rows), name="G_part")
        return self.builder.add(self.matrix, moment, name="G", into=self.matrix)

    def _side_by_side(self, rows: list[Value]) -> Value:
        if len(rows) == 1:
            return rows[0]
        index = tuple(range(sum(part.width for part in rows)))
        return self.builder.emit(ir.Gather(index), *rows, name="rows")

    def _gram(self, columns: Mapping[str, Value]) -> Value:
        """``κ (1/N) J D⁻¹ Jᵀ``, weight after weight and bias after bias."""
        weights: dict[str, list[Value]] = {}
        biases: dict[str, list[Value]] = {}
        diagonals: dict[str, Value] = {}
        for name, layer in self.builder.layerwise(self.layers):
            both, left_ones, coordinates = list[Value](), list[Value](), list[float]()
            for node, rule in uses(self.forward, layer.uses):
                if node.name not in columns:
                    continue
                with self.forward.work_for(node.name):
                    if layer.vector:
                        left_ones.append(at_places(self.forward, columns[node.name], 2))
                        continue
                    left, right = sides(self.forward, node, rule, layer, columns)
                    both += [left, right]
                    coordinates += [rule.coordinate(layer)] * layer.homogeneous
                    if layer.homogeneous and rule.coordinate(layer):
                        left_ones.append(left)
            weights[name], biases[name] = both, left_ones
            if self.scaled and (both or left_ones):
                squares = exact.RowSquares(layer.vector, tuple(coordinates))
                found = left_ones if layer.vector else both
                diagonals[name] = self.builder.emit(
                    squares, *found, name=f"squares_{layer.node.name}"
                )
        if self.scaled:
            self.optimiser.raise_scales(diagonals)
        total: Value | None = None
        for name, layer in self.builder.layerwise(self.layers):
            for found, part in (
                (weights[name], "weight"),
                (biases[name], "weight" if layer.vector else "bias"),
            ):
                if found:
                    before = [] if total is None else [total]
                    op = exact.RowGram(found is biases[name], adds=bool(before))
                    operands = [self._share_of(name, part), *found, *before]
                    total = self.builder.emit(op, *operands, name=f"gram_{layer.node.name}")
        assert total is not None
        return total

    # --- dampings -------------------------------------------------------------------------------------

    @cached_property
    def _least(self) -> float:
        """The least η of a parameter."""
        return min(
            eta
            for name, layer in self.layers.items()
            for eta in self.optimiser.etas(name)[: len(layer.parameters)]
        )

    @property
    def _kappa(self) -> Value:
        """κ, the least element of D."""
        least = {k: self.optimiser.damping}
        return self.builder.pointwise(k + _number(self._least), least, name="kappa")

    def _share_of(self, layer: str, part: str) -> Value:
        """``κ D⁻¹`` of a layer's weight or bias; without a scale one number, at most 1."""
        eta = self.optimiser.etas(layer)[part == "bias"]
        damped, values = k + _number(eta), {k: self.optimiser.damping}
        if self.scaled:
            scale = self.optimiser.part(part, layer, self.optimiser.scale(layer))
            damped, values = k * a + _number(eta), {**values, a: scale}
        share = (k + _number(self._least)) / damped
        return self.builder.pointwise(share, values, name="share")

    def _damped(self, layer: str) -> tuple[sympy.Expr, dict[sympy.Symbol, Value]]:
        """D of a layer's parameters, as they stand in W̄."""
        eta, values = self._etas(layer), {k: self.optimiser.damping}
        damped: sympy.Expr = k
        if self.scaled:
            damped, values = k * c, {**values, c: self.optimiser.scale(layer)}
        if isinstance(eta, Value):
            return damped + d, {**values, d: eta}
        return damped + _number(eta), values

    def _etas(self, layer: str) -> Value | float:
        """η of a layer's parameters, one number or as they stand in W̄."""
        record, (weight, bias) = self.layers[layer], self.optimiser.etas(layer)
        if not record.homogeneous or weight == bias:
            return weight
        zeros = self.builder.emit(ir.Zeros(Spec(record.shape)), name="zeros")
        ones = [
            self.builder.pointwise(
                k + 1, {k: self.optimiser.part(which, layer, zeros)}, name="ones"
            )
            for which in ("weight", "bias")
        ]
        return self.builder.emit(
            ir.Decay(weight, bias), zeros, *ones[: 1 + bool(bias)], name=f"eta_{record.node.name}"
        )

    # --- primal ---------------------------------------------------------------------------------------

    @cached_property
    def _system(self) -> list[Value]:
        """G with L2, λ and maybe S, as ``PrimalSolve`` takes them."""
        builder, whole = self.builder, self.matrix
        etas = {name: self._etas(name) for name in self.layers}
        kappa, scale = self._kappa, list[Value]()
        mixed = any(isinstance(eta, Value) or eta != self._least for eta in etas.values())
        if mixed or (self.scaled and self._least):
            rows = [self._as_matrix(name, etas[name]) for name in self.layers]
            decay = builder.emit(exact.Joined(), *rows, name="etas")
            whole = builder.emit(ir.AddDiagonal(), whole, decay, name="G_decayed")
            kappa = self.optimiser.damping
        if self.scaled:
            diagonal = builder.emit(ir.TakeDiagonal(), self.matrix, name="G_diagonal")
            self.optimiser.raise_scales(self._by_layer(diagonal))
            parts = map(self.optimiser.scale, self.layers)
            scale.append(builder.emit(exact.Joined(), *parts, name="scale"))
        return [whole, kappa, *scale]

    def _solved(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``−(G + D)⁻¹ ∇`` by layer."""
        parts = (gradients[name] for name in self.layers)
        gradient = self.builder.emit(exact.Joined(), *parts, name="gradient")
        whole, kappa, *scale = self._system
        solve = exact.PrimalSolve()
        return self._by_layer(
            self.builder.emit(solve, whole, kappa, gradient, *scale, name="delta")
        )

    def _by_layer(self, value: Value) -> dict[str, Value]:
        """The parts of a vector of all parameters, as they stand in W̄."""
        result, first = {}, 0
        for name, layer in self.builder.layerwise(self.layers):
            size = math.prod(layer.shape)
            place = ir.Gather(tuple(range(first, first + size)))
            called = f"{value.name}_{layer.node.name}"
            part = self.builder.emit(place, value, name=called)
            matrix = ir.Unflatten(layer.shape)
            result[name] = self.builder.emit(matrix, part, name=f"{called}_matrix")
            first += size
        return result

    def _as_matrix(self, layer: str, eta: Value | float) -> Value:
        if isinstance(eta, Value):
            return eta
        zeros = self.builder.emit(ir.Zeros(Spec(self.layers[layer].shape)), name="zeros")
        return self.builder.pointwise(k + _number(eta), {k: zeros}, name="etas")

    # --- dual -----------------------------------------------------------------------------------------

    def _dual(self) -> dict[str, Value]:
        builder, rules = self.builder, self.batch.rules
        with self.forward.work_at_output():
            g = rules.gradient()
            diagonal = isinstance(self.batch.loss, SeparableLoss) or g.width == 1
            r = builder.emit(exact.RootSolve(diagonal), self.root, g, name="residual")
        plain = self._rest(g, r)
        if plain:
            moved = push_forward(self.forward, plain, "p")
            with self.forward.work_at_output():
                dots = self._along_rows(moved)
                r = builder.pointwise(a - b, {a: r, b: dots}, name="residual_left")
        result = self._from_rows(r, "d")
        for name, p in builder.layerwise(plain):
            result[name] = builder.pointwise(a - b, {a: result[name], b: p}, name="delta")
        return result

    def _along_rows(self, change: Value) -> Value:
        """``Cᵀ`` times a change of the outputs, a number for each row of J."""
        products = self.builder.pointwise(a * b, {a: self.root, b: change})
        return self.builder.emit(ir.RowSum(), products, name=f"rows_times_{change.name}")

    def _from_rows(self, r: Value, prefix: str) -> dict[str, Value]:
        """``−(1/N) D⁻¹ Jᵀ (I + (1/N) J D⁻¹ Jᵀ)⁻¹ r`` by layer."""
        builder = self.builder
        v = builder.emit(exact.DualSolve(), self.matrix, self._kappa, r, name="solution")
        with self.forward.work_at_output():
            scaled = builder.pointwise(a * b, {a: self.root, b: v}, name="seeds")
            mean = builder.emit(ir.Mean(), scaled, name="seed_mean")
            seed = builder.scaled(mean, float(builder.columns), "seed")
        result = {}
        for name, value in builder.layerwise(self._back(seed, prefix)):
            damped, values = self._damped(name)
            share = -(k + _number(self._least)) / damped
            called = f"delta_{self.layers[name].node.name}"
            result[name] = builder.pointwise(share * a, {**values, a: value}, name=called)
        return result

    def _back(self, seed: Value, prefix: str) -> dict[str, Value]:
        """``(1/N) (∂z/∂W̄)ᵀ seed`` by layer."""
        vectors = pull_back(self.forward, seed, prefix=prefix)
        return layer_gradients(self.forward, vectors, self.layers)

    def _rest(self, g: Value, r: Value) -> dict[str, Value]:
        """p by layer: what is not ``(1/N) Jᵀ r`` of the gradient, divided by D; nothing where it is 0."""
        loss = self.batch.loss
        solved = isinstance(loss, SeparableLoss) and bool(
            loss.curvature.is_number and loss.curvature.is_positive
        )
        decayed = any(any(self.optimiser.etas(name)) for name in self.layers)
        if solved and not decayed:
            return {}
        with self.forward.work_at_output():
            rest = self.builder.emit(exact.RootRest(), self.root, g, r, name="rest")
        result, left = {}, self.optimiser.decayed(self._back(rest, "e"))
        for name, value in self.builder.layerwise(left):
            damped, values = self._damped(name)
            called = f"p_{self.layers[name].node.name}"
            result[name] = self.builder.pointwise(a / damped, {**values, a: value}, name=called)
        return result


def choose_form(
    graph: ModelGraph, settings: Settings, samples: int, itemsize: int
) -> tuple[ExactForm, str]:
    """The cheaper form whose matrix fits into the memory budget, and what both cost, for a batch of N.

    Counted are Gram matrix or rows, and a Cholesky factorisation, of which a step that tries several λ makes
    one for each; an eigendecomposition, where λ is near the roundings of G, takes 27 times the latter. Raises
    :class:`~gncompile.errors.CompileError` where neither fits, or not the one that ``settings.exact_form``
    asks for.
    """
    outputs = graph.output.size
    rows = samples * outputs
    parameters = sum(math.prod(layer.shape) for layer in graph.layers.values())
    scaled = settings.damping_scale != "identity"
    # J D⁻¹ Jᵀ of any D is no Hadamard product.
    row = parameters if scaled else sum(sum(layer.shape) for layer in graph.layers.values())
    flops: dict[ExactForm, int] = {
        "primal": rows * parameters**2 + parameters**3 // 3,
        "dual": rows**2 * row + rows**3 // 3,
    }
    held: dict[ExactForm, int] = {
        "primal": (3 + scaled) * parameters**2 * itemsize,
        "dual": (4 + scaled) * rows**2 * itemsize,
    }
    sizes: dict[ExactForm, int] = {"primal": parameters, "dual": rows}
    costs = {
        form: f"{form} {size:,} × {size:,}, {engineering(flops[form])}FLOP and "
        f"{binary_size(held[form])} a step"
        for form, size in sizes.items()
    }
    asked = list(flops) if settings.exact_form == "auto" else [settings.exact_form]
    fitting = [form for form in asked if held[form] <= settings.memory_budget]
    about = f"a batch of {samples} samples, {outputs} outputs and {parameters:,} parameters"
    if not fitting:
        raise CompileError(
            f"solver='exact' for {about}: {'; '.join(costs[form] for form in asked)}; "
            f"memory_budget is {binary_size(settings.memory_budget)}",
            instead="use solver='kronecker', smaller batches, or a larger memory_budget",
        )
    chosen = min(fitting, key=flops.__getitem__)
    other = "; ".join(costs[form] for form in costs if form != chosen)
    return chosen, f"{about}: {costs[chosen]}, against {other}"
