"""A kind of node from outside the package: an operation and its rule, declared in this file alone.

``y = x s`` with ``s = 1/√(1 + |x|²)`` has the Jacobian ``J = s I − s³ x xᵀ`` of every sample, so that with
``u = s³ x``, ``J = s I − u xᵀ``. Gradient, R-operator and factors are compared with ``torch.func``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import sympy
import torch
from oracles import congruence, per_sample_jacobian
from torch import Tensor
from torch.func import grad, jvp

from gncompile.base.settings import Settings
from gncompile.derivation.forward import NodeRule, node_rule
from gncompile.derivation.jacobians import Jacobian
from gncompile.derivation.method_choice import candidate_program
from gncompile.errors import CompileError
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Op, Output
from gncompile.graph.torch_network import Network, objective
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, tangent_program
from gncompile.program import operations as ir
from gncompile.program import specs
from gncompile.program.builder import Value
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable

a, p, q, r = sympy.symbols("a p q r", real=True)


@dataclass(frozen=True)
class Normalised(Op):
    """``y = x / √(1 + |x|²)``."""

    def plain(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x / (1 + x.square().sum(-1, keepdim=True)).sqrt()


@dataclass(frozen=True)
class Projecting(Jacobian):
    """``J = s I − u xᵀ`` with ``u = s³ x``: symmetric."""

    x: Value
    s: Value

    def push(self, r_: Value, name: str) -> Value:
        build = self.builder
        along = build.emit(ir.RowSum(), build.pointwise(p * q, {p: self.x, q: r_}))
        u = build.pointwise(p**3 * q, {p: self.s, q: self.x})
        scaled = build.pointwise(p * q, {p: self.s, q: r_})
        return build.pointwise(p - q * r, {p: scaled, q: u, r: along}, name=name)

    pull = push

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        """``E[s²] M − E[s M u xᵀ] − E[s x uᵀM] + E[uᵀMu x xᵀ]``."""
        assert other == self
        build, m = self.builder, self.builder.dense(m)
        u = build.pointwise(p**3 * q, {p: self.s, q: self.x})
        mu = build.emit(ir.MatMul(), u, m)
        umu = build.emit(ir.RowSum(), build.pointwise(p * q, {p: u, q: mu}))
        square = build.emit(ir.Total(mean=True), build.pointwise(p**2, {p: self.s}))
        cross = build.emit(ir.Moment(), build.pointwise(p * q, {p: self.s, q: mu}), self.x)
        last = build.emit(ir.Moment(), build.pointwise(p * q, {p: umu, q: self.x}), self.x)
        last = build.as_matrix(last, specs.Structure.SYMMETRIC, self.x.width)
        values = {a: square, p: m, q: build.plus_transpose(cross), r: last}
        return build.pointwise(a * p - q + r, values, name=name)


@node_rule(Normalised)
class NormalisedRule(NodeRule[Normalised]):
    """What :class:`Normalised` does in a forward pass."""

    def value(self, inputs: list[Value]) -> Value:
        factors = {p: inputs[0], q: self.scale(inputs[0])}
        return self.builder.pointwise(p * q, factors, name=f"a_{self.node.name}")

    def jacobian(self, position: int) -> Jacobian:
        x = self.forward.values[self.node.inputs[position]]
        return Projecting(self.builder, x, self.scale(x))

    def scale(self, x: Value) -> Value:
        square = self.builder.emit(ir.RowSum(), self.builder.pointwise(p**2, {p: x}))
        return self.builder.pointwise(1 / sympy.sqrt(1 + p), {p: square})


N, WIDTHS = 7, (3, 4, 2)


@pytest.fixture
def traced() -> TracedModel:
    """``x → layer one → normalised → layer two``, put together by hand."""
    d, e, k = WIDTHS
    graph = ModelGraph(
        [
            Node("x", Input(0), (), (d,)),
            Node("h", Affine("one", "W", "b"), ("x",), (e,)),
            Node("unit", Normalised(), ("h",), (e,)),
            Node("z", Affine("two", "V", None), ("unit",), (k,)),
            Node("output", Output(), ("z",), (k,)),
        ]
    )
    graph.check()
    draw = torch.Generator().manual_seed(0)
    shapes = {"W": (e, d), "b": (e,), "V": (k, e)}
    parameters = {n: torch.randn(s, generator=draw).double() for n, s in shapes.items()}
    return TracedModel(graph, parameters, {})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, WIDTHS[0], generator=draw).double(), torch.rand(
        N, WIDTHS[-1], generator=draw
    ).double()


LOSS = resolve_loss("bce_with_logits")
LOSS_OF = objective(LOSS, None)


def executed(program: StepProgram, traced: TracedModel, batch: tuple[Tensor, Tensor]) -> Executable:
    device = torch.device("cpu")
    step = Executable(program, traced, LOSS, dtype=torch.float64, device=device)
    for key in step.memory.states:
        if key.startswith("direction0."):
            step.memory.states[key].fill_(0.5)
    step.load((batch[0],), batch[1])
    step.run(*program.phases)
    return step


def test_its_gradient_is_that_of_torch(traced: TracedModel, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    step = executed(candidate_program(traced.graph, LOSS, Settings(), ("kfra",)), traced, batch)
    exact = grad(lambda theta: LOSS_OF(Network(traced)(theta, (x,)), y))(dict(traced.parameters))
    joined = torch.cat([exact["W"], exact["b"][:, None]], dim=1)
    torch.testing.assert_close(step.result("grad.one"), joined)
    torch.testing.assert_close(step.result("grad.two"), exact["V"])


def test_its_tangent_is_that_of_torch(traced: TracedModel, batch: tuple[Tensor, Tensor]) -> None:
    step = executed(tangent_program(traced.graph), traced, batch)
    theta = dict(traced.parameters)
    direction = {name: torch.full_like(value, 0.5) for name, value in theta.items()}
    _, exact = jvp(lambda each: Network(traced)(each, (batch[0],)), (theta,), (direction,))
    torch.testing.assert_close(step.result("tangent"), exact)


@pytest.mark.parametrize("method", ["kflr", "kfra"])
def test_its_factor_is_that_of_torch(
    method: str, traced: TracedModel, batch: tuple[Tensor, Tensor]
) -> None:
    """KFLR is ``E[J_nᵀ 𝓗_n J_n]`` with J to the output; KFRA averages 𝓗, then at the node."""
    x, y = batch
    step = executed(factor_program(traced.graph, LOSS, method), traced, batch)
    zero = torch.zeros(N, WIDTHS[1]).double()
    network, theta = Network(traced), traced.parameters
    hessians = per_sample_jacobian(grad(lambda z: N * LOSS_OF(z, y)), network(theta, (x,)))
    if method == "kflr":
        jacobian = per_sample_jacobian(lambda u: network(theta, (x,), {"h": u}), zero)
        expected = congruence(jacobian, hessians).mean(dim=0)
    else:
        h = network.values(theta, (x,), {})["h"]
        above = congruence(theta["V"], hessians.mean(dim=0))
        expected = congruence(per_sample_jacobian(Normalised().plain, h), above).mean(dim=0)
    torch.testing.assert_close(step.result("G.one"), expected)


def test_what_it_does_not_declare_is_said(traced: TracedModel) -> None:
    with pytest.raises(CompileError, match="Projecting has no product with a matrix of every samp"):
        factor_program(traced.graph, LOSS, "ggn")


def test_a_second_rule_is_refused() -> None:
    with pytest.raises(CompileError, match="Normalised already have a rule, NormalisedRule"):
        node_rule(Normalised)(NormalisedRule)
