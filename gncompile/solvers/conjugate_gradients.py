"""Conjugate gradients on blocks of the Gauss-Newton matrix, which is never formed.

Of every block b of layers ``(G_bb + D) d_b = −∇_b`` is solved, ``D = λ + η``, with the products::

    G_bb p = J_bᵀ 𝓗_L J_b p        a tangent from b's layers on, and vectors back to them

Tangents of other blocks are 0, so what several blocks share is the forward pass and its slopes, no more: one
tangent of all would add the products of G between them. G is that of a share of the batch, its last samples.

As directions are ``Δ = −P ∇`` here, the iteration [Hestenes and Stiefel 1952] is written with the gradient s
of the quadratic model, the residual up to its sign::

    d = 0        s = ∇                 z = −P s        p = z
    α = −sᵀp / pᵀ(G + D)p
    d ← d + α p  s ← s + α (G + D) p   z = −P s        p ← z − (sᵀz / −(sᵀp of before)) p

Where it starts warm, p is the last step δ at first: the first product finds the best multiple of δ, where
[Zhang et al. 2017] take a fixed one, and the second begins anew, with ``p = z``.

All scalars stay on the device. A block stands still once ``‖s‖ ≤ ξ‖∇‖``, or where the curvature along p is
not positive and finite, which rounding and overflow can do; its later products change nothing. If none
changed anything, the direction is ``−P ∇``: where its curvature overflows too, the step is refused and λ
rises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from ..base.settings import Settings
from ..derivation.guards import ITERATED
from ..derivation.propagation import layer_gradients, pull_back, push_forward
from ..functions.primitives import as_float, finite, select
from ..program import operations as ir
from ..program.builder import Value
from ..program.phases import DIRECTION, Phase, Repeat, Stage
from ..program.specs import Spec
from .kronecker import Kronecker
from .solver import Solver

BEGIN, PRODUCT = "cg_begin", "cg_product"

ONE, ZERO, FIRST = sympy.Integer(1), sympy.Integer(0), sympy.Rational(3, 2)
a, b, c, k, m, n, on = sympy.symbols("a b c k m n on", real=True)


@dataclass(frozen=True)
class Block:
    """The layers of a block and its scalars: ``‖∇‖²``, 1 while it goes on, and ``‖δ‖²`` if it starts warm."""

    layers: Sequence[str]
    square: Value
    going: Value
    warm: Value | None

    def of(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The block's part of a direction."""
        return {name: values[name] for name in self.layers}


class Preconditioner(Kronecker):
    """``P = (Ḡ + ..)⁻¹ ⊗ (Q + ..)⁻¹``, damped as the system is: by ``κ = λ + η``."""

    def kappa(self, layer: str) -> Value:
        eta = as_float(self.optimiser.etas(layer)[0])
        return self.builder.pointwise(a + eta, {a: self.optimiser.damping}, name="kappa")


class ConjugateGradients(Solver):
    """Solves for the direction by conjugate gradients, block by block."""

    @classmethod
    def phases(cls, settings: Settings) -> tuple[Phase, ...]:
        factored = Kronecker.phases(settings)[:-1] if settings.factored else ()
        return (
            *factored,
            Phase(BEGIN, Stage.DIRECTION, ("gradient",)),
            Phase(PRODUCT, Stage.DIRECTION, ("gradient", BEGIN), repeat=Repeat.PRODUCTS),
            Phase(DIRECTION, Stage.DIRECTION, ("gradient",)),
        )

    @abstractmethod
    def groups(self) -> Sequence[Sequence[str]]:
        """The layers of every block."""

    def prepare(self) -> None:
        """All products; afterwards ``d`` and ``s`` are the solution and the gradient that is left."""
        settings, builder = self.settings, self.builder
        self.refuse_gather_noise("the direction is no fixed multiple of a gradient")
        self.layers = self.batch.graph.layers
        self.preconditioner = (
            Preconditioner(self.batch, self.optimiser) if settings.factored else None
        )
        if self.preconditioner:
            self.preconditioner.prepare()
        builder.methods = dict.fromkeys(self.layers, settings.solver)
        builder.products = settings.cg_iterations
        self.going = self.optimiser.scalar("going")
        self.products, self.residual = map(self.optimiser.scalar, ITERATED)
        builder.results["going"] = self.going.name
        with builder.phase(BEGIN):
            self.forward, self.rules = self.batch.on_share(settings.factor_dim)
            self._make_slopes()
            self._begin()
        with builder.phase(PRODUCT):
            self._iterate()

    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """d by layer, and the state ``residual``."""
        optimiser, builder = self.optimiser, self.builder
        left = {a: optimiser.inner(self.s, self.s, "left")}
        norm = builder.add(*(block.square for block in self.blocks), name="gradient_norm")
        ratio = builder.pointwise(sympy.sqrt(a / n), {**left, n: norm}, name="residual_found")
        known = select(n, select(finite(a), a, ONE), ZERO)
        builder.pointwise(known, {a: ratio, n: norm}, into=self.residual, name="residual_now")
        first, result = self._downhill(gradients), {}
        for block in self.blocks:
            moved = optimiser.inner(block.of(self.d), block.of(self.d), "moved")
            for name, d in builder.layerwise(block.of(self.d)):
                values = {n: moved, a: d, b: first[name]}
                called = f"delta_{self.layers[name].node.name}"
                result[name] = builder.pointwise(select(n, a, b), values, name=called)
        return result

    def _downhill(self, s: Mapping[str, Value]) -> dict[str, Value]:
        """``−P s``."""
        if self.preconditioner:
            return self.preconditioner.directions(s)
        return {name: self.builder.scaled(x, -1.0) for name, x in self.builder.layerwise(s)}

    def _make_slopes(self) -> None:
        """All slopes of the share, once for all products, which see them here."""
        for node in self.batch.graph:
            for position, source in enumerate(node.inputs):
                if source in self.forward.active:
                    self.forward.jacobian(node, position)

    def _begin(self) -> None:
        """Every block's d, s and p before the first product, and its scalars."""
        optimiser, builder = self.optimiser, self.builder
        gradients = optimiser.decayed({name: self.batch.gradients[name] for name in self.layers})
        first = self._downhill(gradients)
        self.blocks = list[Block]()
        self.d, self.s, self.p = dict[str, Value](), dict[str, Value](), dict[str, Value]()
        for layers in self.groups():
            last = {name: optimiser.last_step(name) for name in layers}
            own = {name: gradients[name] for name in layers}
            square = optimiser.inner(own, own, "gradient_square")
            warm = optimiser.inner(last, last, "warm") if self.settings.warm_start else None
            going = builder.pointwise(select(n, ONE, ZERO), {n: square}, name="block_going")
            self.blocks.append(Block(layers, square, going, warm))
            for number, name in enumerate(layers, start=len(self.d)):
                layer = self.layers[name]
                node, spec = layer.node.name, Spec(layer.shape)
                with builder.origin(layer=name):
                    self.d[name] = builder.emit(ir.Zeros(spec, number), name=f"d_{node}")
                    copy = ir.Pointwise(a, (a,))  # ∇ itself is needed later
                    self.s[name] = builder.emit(copy, own[name], name=f"s_{node}")
                    values = {n: warm, a: last[name], b: first[name]} if warm else {b: first[name]}
                    p = select(n, a, b) if warm else b
                    self.p[name] = builder.pointwise(p, values, name=f"p_{node}")
        builder.emit(ir.Zeros(Spec(())), into=self.products, name="no_products")
        self._note_going(block.going for block in self.blocks)

    def _note_going(self, each: Iterable[Value]) -> None:
        """State ``going``: whether any block goes on."""
        some = {n: self.builder.add(*each, name="blocks_going")}
        self.builder.pointwise(select(n, ONE, ZERO), some, into=self.going, name="going_now")

    def _iterate(self) -> None:
        """One product of every block, and what follows from it."""
        count = {n: self.products, on: self.going}
        self.products_now = self.builder.pointwise(
            n + on, count, into=self.products, name="products_now"
        )
        going = [self._iterate_in(number, block) for number, block in enumerate(self.blocks)]
        self._note_going(going)

    def _iterate_in(self, number: int, block: Block) -> Value:
        """An iteration of one block; whether it goes on."""
        optimiser, builder = self.optimiser, self.builder
        d, s, p = (block.of(values) for values in (self.d, self.s, self.p))
        q = self._product(number, p)
        curvature = {c: optimiser.inner(p, q, "curvature"), m: optimiser.inner(s, p, "slope")}
        sound = on * select(c, finite(m / c), ZERO)
        values = {**curvature, on: block.going}
        sound_now = builder.pointwise(sound, values, into=block.going, name="block_sound")
        values[on] = sound_now
        length = builder.pointwise(select(on, -m / c, ZERO), values, name="alpha")
        moved = select(on, a + n * b, a)  # where it stands still, q need not be finite
        for name, x in builder.layerwise(p):
            at = {on: sound_now, n: length}
            node = self.layers[name].node.name
            builder.pointwise(moved, {**at, a: d[name], b: x}, into=d[name], name=f"d_{node}_now")
            s[name] = builder.pointwise(
                moved, {**at, a: s[name], b: q[name]}, into=s[name], name=f"s_{node}_now"
            )
        z = self._downhill(s)
        values = {k: optimiser.inner(s, z, "next_slope"), m: curvature[m]}
        ratio = k / m
        if block.warm:  # after the search along δ it begins anew
            ratio = select(a, select(FIRST - n, ZERO, ratio), ratio)
            values |= {a: block.warm, n: self.products_now}
        beta = builder.pointwise(ratio, values, name="beta")
        left = {a: optimiser.inner(s, s, "left"), n: block.square, b: beta, on: sound_now}
        enough = as_float(self.settings.cg_tolerance**2) * n
        further = on * select(a - enough, finite(b), ZERO)
        going = builder.pointwise(further, left, into=block.going, name="block_going_now")
        turned = select(on, a + n * b, b)
        for name, x in builder.layerwise(p):
            values = {on: going, n: beta, a: z[name], b: x}
            called = f"p_{self.layers[name].node.name}_now"
            builder.pointwise(turned, values, into=x, name=called)
        return going

    def _product(self, number: int, p: Mapping[str, Value]) -> dict[str, Value]:
        """``(G_bb + D) p`` of a block's p."""
        moved = push_forward(self.forward, p, f"t{number}")
        with self.forward.work_at_output():
            seed = self.rules.hessian_product(moved)
        vectors = pull_back(self.forward, seed, f"u{number}", layers=p)
        layers = {name: self.layers[name] for name in p}
        products = layer_gradients(self.forward, vectors, layers)
        return {name: self._damped(name, q, p[name]) for name, q in products.items()}

    def _damped(self, name: str, q: Value, p: Value) -> Value:
        """``q + D p`` of a layer."""
        optimiser, called = self.optimiser, f"q_{self.layers[name].node.name}"
        with self.builder.origin(layer=name):
            values = {a: q, b: p, n: optimiser.damping}
            q = self.builder.pointwise(a + n * b, values, name=called)
            weight, bias = optimiser.etas(name)
            if weight or bias:
                parts = ("weight", "bias") if bias else ("weight",)
                shares = [optimiser.part(part, name, p) for part in parts]
                q = self.builder.emit(ir.Decay(weight, bias), q, *shares, name=f"{called}_l2")
        return q
