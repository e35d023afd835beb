"""Every declared function: against torch, lifted from torch's modules, and under every curvature method.

The last part is parametrised by the registry, so a new declaration brings its own tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import oracles
import pytest
import sympy
import torch
from architectures import normal
from comparison import EXACT, assert_close, assert_tensors, rms, standard_scores
from graph_values import value_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation

from gncompile.errors import RegistrationError, TraceError
from gncompile.frontends import trace
from gncompile.functions.derive import PointwiseRule
from gncompile.functions.expressions import evaluate
from gncompile.functions.gates import ARGUMENTS, GATES, register_gate
from gncompile.functions.parsing import parse_expression
from gncompile.functions.transfer import (
    ARGUMENT,
    BUILT_IN,
    register_transfer,
    transfer,
    transfer_names,
)
from gncompile.graph.fuse_pointwise import fuse_pointwise
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Output, Pointwise, Select
from gncompile.graph.softmax import Softmax
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program
from gncompile.runtime.executable import Executable
from gncompile.runtime.memory import dense

DOUBLE = torch.float64

# Values and slopes ----------------------------------------------------------------------------------------

Reference = Callable[[Tensor], Tensor]
TORCH: dict[str, Reference] = {
    "identity": lambda x: x * 1,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, x.new_tensor([0.25])),
    "rrelu": F.rrelu,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,  # torch's own slope is 1/6 in float32
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "arctan": torch.arctan,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "arcsinh": torch.arcsinh,
    "sinh_arcsinh": lambda x: torch.sinh(torch.asinh(x) / 2),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softplus": lambda x: F.softplus(x, threshold=50.0),  # e^-50 is below rounding
    "silu": F.silu,
    "swish": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "squared_relu": lambda x: F.relu(x) ** 2,
    "sin": torch.sin,
    "snake": lambda x: x + torch.sin(x) ** 2,
    "gaussian": lambda x: torch.exp(-(x**2)),
}
WITH_PARAMETERS: list[tuple[str, dict[str, float], Reference]] = [
    ("hardtanh", {"min_val": -0.3, "max_val": 2.5}, lambda x: F.hardtanh(x, -0.3, 2.5)),
    ("leaky_relu", {"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    ("prelu", {"weight": -0.5}, lambda x: F.prelu(x, x.new_tensor([-0.5]))),
    ("rrelu", {"lower": 0.25, "upper": 0.75}, lambda x: F.rrelu(x, 0.25, 0.75)),
    ("threshold", {"threshold": 0.5, "value": -1.0}, lambda x: F.threshold(x, 0.5, -1.0)),
    ("threshold", {"threshold": 0.5, "value": 2.0}, lambda x: F.threshold(x, 0.5, 2.0)),
    ("hardshrink", {"lambd": 1.5}, lambda x: F.hardshrink(x, 1.5)),
    ("softshrink", {"lambd": 0.0}, lambda x: F.softshrink(x, 0.0)),
    ("elu", {"alpha": 1.7}, lambda x: F.elu(x, 1.7)),
    ("celu", {"alpha": 0.75}, lambda x: F.celu(x, 0.75)),  # torch's slope has alpha in float32
    ("softplus", {"beta": 3.0}, lambda x: F.softplus(x, 3.0, threshold=50.0)),
    ("swish", {"beta": 2.0}, lambda x: x * torch.sigmoid(2 * x)),
    ("snake", {"a": 3.0}, lambda x: x + torch.sin(3 * x) ** 2 / 3),
    (
        "sinh_arcsinh",
        {"epsilon": 0.3, "delta": 0.8},
        lambda x: torch.sinh(0.8 * torch.asinh(x) + 0.3),
    ),
]
TORCH_GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "glu": lambda u, v: F.glu(torch.cat([u, v])[None], dim=1)[0],
    "reglu": lambda u, v: u * F.relu(v),
    "geglu": lambda u, v: u * F.gelu(v),
    "swiglu": lambda u, v: u * F.silu(v),
    "tanh_gate": lambda u, v: torch.tanh(u) * torch.sigmoid(v),
}

KINKS = (-3.0, -1.5, -1.0, -0.5, -0.3, 0.0, -0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 6.0)
LARGE = (-1e3, -300.0, -40.0, 40.0, 300.0, 1e3)


def points() -> Tensor:
    """Random numbers, the kinks of all functions, both zeros, and where exponentials overflow."""
    generator = torch.Generator().manual_seed(1)
    fixed = torch.tensor([*KINKS, *LARGE], dtype=DOUBLE)
    return torch.cat([3 * normal(generator, 200), fixed])


def agree(rule: PointwiseRule, reference: Callable[..., Tensor], *at: Tensor) -> None:
    """Value, slopes and slopes from what is kept, against torch and its autograd.

    Both sides round some ten operations: 1e-13 of the value, or of ``max(1, |x|)`` where torch's form of a
    tail cancels (``1 + erf``), and as much of the slope.
    """
    leaves = [x.clone().requires_grad_() for x in at]
    expected = reference(*leaves)
    slopes = torch.autograd.grad(expected.sum(), leaves)
    symbols = dict(zip(rule.arguments, at, strict=True))
    size = torch.stack([x.abs() for x in at]).amax(0).clamp(min=1)
    got = evaluate(rule.value, symbols)
    assert bool(((got - expected).abs() <= 1e-13 * (size + expected.abs())).all())
    kept = {**symbols, rule.output: got}
    for slope, from_kept, wanted in zip(rule.slopes, rule.kept_slopes, slopes, strict=True):
        tolerance = 1e-13 * (size + wanted.abs())
        assert bool(((evaluate(slope, symbols) - wanted).abs() <= tolerance).all()), slope
        assert bool(((evaluate(from_kept, kept) - wanted).abs() <= tolerance).all()), from_kept


def test_the_whole_vocabulary_is_compared_with_torch() -> None:
    assert set(TORCH) == set(BUILT_IN)
    assert set(TORCH_GATES) == set(GATES)


@pytest.mark.parametrize("name", TORCH)
def test_value_and_slope_are_torchs(name: str) -> None:
    agree(transfer(name).rule, TORCH[name], points())


@pytest.mark.parametrize(("name", "parameters", "reference"), WITH_PARAMETERS)
def test_with_parameters(name: str, parameters: dict[str, float], reference: Reference) -> None:
    agree(transfer(name, **parameters).rule, reference, points())


@pytest.mark.parametrize("name", TORCH_GATES)
def test_gates_are_torchs(name: str) -> None:
    u = points()
    agree(GATES[name].rule, TORCH_GATES[name], u, u.flip(0))


# Lifted from torch's modules ------------------------------------------------------------------------------

MODULES: list[tuple[nn.Module, str, dict[str, float]]] = [
    (nn.ReLU(), "relu", {}),
    (nn.ReLU6(), "relu6", {}),
    (nn.Hardtanh(), "hardtanh", {}),
    (nn.Hardtanh(-0.5, 2.0), "hardtanh", {"min_val": -0.5, "max_val": 2.0}),
    (nn.LeakyReLU(), "leaky_relu", {}),
    (nn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}),
    (nn.RReLU().eval(), "rrelu", {}),
    (nn.Threshold(0.5, -1.0), "threshold", {"threshold": 0.5, "value": -1.0}),
    (nn.Hardshrink(), "hardshrink", {}),
    (nn.Hardshrink(0.25), "hardshrink", {"lambd": 0.25}),
    (nn.Softshrink(), "softshrink", {}),
    (nn.Softshrink(0.25), "softshrink", {"lambd": 0.25}),
    (nn.Hardsigmoid(), "hardsigmoid", {}),
    (nn.Sigmoid(), "sigmoid", {}),
    (nn.Tanh(), "tanh", {}),
    (nn.Softsign(), "softsign", {}),
    (nn.Tanhshrink(), "tanhshrink", {}),
    (nn.LogSigmoid(), "logsigmoid", {}),
    (nn.ELU(), "elu", {}),
    (nn.ELU(1.5), "elu", {"alpha": 1.5}),
    (nn.CELU(), "celu", {}),
    (nn.CELU(0.5), "celu", {"alpha": 0.5}),
    (nn.SELU(), "selu", {}),
    (nn.Softplus(), "softplus", {}),
    (nn.Softplus(beta=2.0), "softplus", {"beta": 2.0}),
    (nn.SiLU(), "silu", {}),
    (nn.GELU(), "gelu", {}),
    (nn.GELU(approximate="tanh"), "gelu_tanh", {}),
    (nn.Mish(), "mish", {}),
    (nn.Hardswish(), "hardswish", {}),
]
CHANNELS = (nn.PReLU, nn.GLU)  # tested apart: a constant a channel, and two halves of one tensor
COUPLED = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "MultiheadAttention"}


class Attention(nn.Module):
    """Self-attention as a function of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


def only_node(module: nn.Module, width: int = 4) -> Node:
    """The one pointwise node that a module becomes."""
    traced = trace(module, torch.zeros(2, width))
    (node,) = (n for n in fuse_pointwise(traced.graph) if isinstance(n.op, Pointwise))
    return node


def test_every_activation_of_torch_is_supported_or_couples_features() -> None:
    supported = {type(module) for module, *_ in MODULES} | set(CHANNELS)
    assert {c.__name__ for c in supported} | COUPLED == set(activation.__all__)


@pytest.mark.parametrize(("module", "name", "parameters"), MODULES, ids=lambda v: str(v)[:40])
def test_a_module_and_the_declared_name_are_one_function(
    module: nn.Module, name: str, parameters: dict[str, float]
) -> None:
    op = only_node(module).op
    assert isinstance(op, Pointwise)
    assert op.expression == transfer(name, **parameters)(op.arguments[0])


def test_overriding_a_name_leaves_torchs_function_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gncompile.functions import transfer as registry

    monkeypatch.setattr(registry, "_DECLARED", dict(registry._DECLARED))
    register_transfer("silu", "x*sigmoid(3*x)", override=True)
    op = only_node(nn.SiLU()).op
    assert isinstance(op, Pointwise)
    assert op.expression == BUILT_IN["silu"](op.arguments[0])


def test_softplus_with_a_low_threshold_is_another_function() -> None:
    module = nn.Softplus(beta=2.0, threshold=1.0)
    op = only_node(module).op
    assert isinstance(op, Pointwise)
    x = torch.linspace(-2, 2, 41, dtype=DOUBLE)
    assert_close(evaluate(op.expression, {op.arguments[0]: x}), module(x), 1e-13)


def test_a_frozen_slope_a_channel_is_a_constant() -> None:
    module = nn.PReLU(4).requires_grad_(False)
    op = only_node(module).op
    assert isinstance(op, Pointwise)
    ((slope, name),) = op.constants
    assert name == "weight"
    assert op.expression == BUILT_IN["relu"](op.arguments[0]).func(
        op.arguments[0], op.arguments[0], slope * op.arguments[0]
    )


def test_glu_is_the_declared_gate_of_two_halves() -> None:
    graph = fuse_pointwise(trace(nn.GLU(), torch.zeros(2, 6)).graph)
    halves = [n.op.index for n in graph if isinstance(n.op, Select)]
    assert halves == [(0, 1, 2), (3, 4, 5)]
    (gate,) = (n.op for n in graph if isinstance(n.op, Pointwise))
    assert gate.expression == GATES["glu"](*gate.arguments)


def test_what_has_to_be_set_first() -> None:
    with pytest.raises(TraceError) as caught:
        trace(nn.Sequential(nn.RReLU()), torch.zeros(2, 3))
    assert "rrelu in training mode draws a new random slope" in str(caught.value)
    assert "call .eval() on it" in str(caught.value)
    assert "module '0'" in str(caught.value)


COUPLING: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Softmax(dim=1), (3,)),
    (nn.Softmax2d(), (2, 2, 2)),
    (nn.Softmin(dim=1), (3,)),
    (nn.LogSoftmax(dim=1), (3,)),
    (Attention(), (2, 4)),
]


@pytest.mark.parametrize(("module", "shape"), COUPLING, ids=lambda v: type(v).__name__)
def test_what_couples_features_is_a_softmax(module: nn.Module, shape: tuple[int, ...]) -> None:
    """That its values are the module's is checked by the trace."""
    graph = trace(nn.Sequential(nn.Identity(), module), torch.zeros(2, *shape)).graph
    assert [type(node.op) for node in graph].count(Softmax) == 1


def test_gates_are_functions_of_expressions_and_have_one_name() -> None:
    u, v = ARGUMENTS
    assert parse_expression("2*swiglu(u, 3*v)", {"u": u, "v": v}) == 2 * GATES["swiglu"](u, 3 * v)
    for name in ("glu", "relu", "no name"):
        with pytest.raises(RegistrationError, match="cannot name a gate"):
            register_gate(name, "u*v")


# Under every curvature method -----------------------------------------------------------------------------

WIDTH, HIDDEN, OUTPUTS = 3, 4, 2
LOSS = "bce_with_logits"
Functions = dict[str, tuple[sympy.Expr, tuple[sympy.Symbol, ...]]]


def declared() -> Functions:
    """Every function of the registry, gates included, with its arguments."""
    transfers: Functions = {n: (transfer(n).expression, (ARGUMENT,)) for n in transfer_names()}
    return transfers | {name: (gate.expression, ARGUMENTS) for name, gate in GATES.items()}


class Around(nn.Module):
    """``z = W₂ φ(h_1, …) + b₂`` with one affine layer for every argument of φ; torch differentiates φ."""

    def __init__(self, expression: sympy.Expr, arguments: tuple[sympy.Symbol, ...]) -> None:
        super().__init__()
        self.expression, self.arguments = expression, arguments
        self.below = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in arguments)
        self.above = nn.Linear(HIDDEN, OUTPUTS)
        self.double()
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = normal(generator, *parameter.shape)

    def forward(self, x: Tensor) -> Tensor:
        h = {s: layer(x) for s, layer in zip(self.arguments, self.below, strict=True)}
        z: Tensor = self.above(value_of(self.expression, h))
        return z

    def traced(self) -> TracedModel:
        """The same network as a graph, φ as it was declared."""
        return TracedModel(ModelGraph(list(self._nodes())), dict(self.named_parameters()), {})

    def _nodes(self) -> Iterator[Node]:
        names = [f"below.{i}" for i in range(len(self.below))]
        yield Node("x", Input(0), (), (WIDTH,))
        for name in names:
            op = Affine(name, f"{name}.weight", f"{name}.bias")
            yield Node(name.replace(".", "_"), op, ("x",), (HIDDEN,))
        below = tuple(name.replace(".", "_") for name in names)
        yield Node("phi", Pointwise(self.expression, self.arguments), below, (HIDDEN,))
        yield Node("above", Affine("above", "above.weight", "above.bias"), ("phi",), (OUTPUTS,))
        yield Node("output", Output(), ("above",), (OUTPUTS,))


def output_factors(model: Around, x: Tensor, y: Tensor, method: str) -> dict[str, Tensor]:
    """``Ḡ`` of every layer, from the program compiled for the declared expression."""
    traced, loss = model.traced(), resolve_loss(LOSS)
    program = factor_program(traced.graph, loss, method)
    executable = Executable(program, traced, loss, dtype=DOUBLE, device=x.device, seed=7)
    executable.load((x,), y)
    executable.run(*program.phases)
    names = {layer: program.results[f"G.{layer}"] for layer in traced.graph.layers}
    return {
        layer: dense(executable.step.value(name), program[name].spec).clone()
        for layer, name in names.items()
    }


def problem(name: str, batch: int) -> tuple[Around, Tensor, Tensor]:
    model = Around(*declared()[name])
    generator = torch.Generator().manual_seed(batch)
    x = normal(generator, batch, WIDTH)
    return model, x, torch.rand(batch, OUTPUTS, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("name", declared())
def test_one_sample_gives_the_exact_blocks(name: str) -> None:
    model, x, y = problem(name, 1)
    expected = oracles.ggn(model, LOSS, x, y)
    for method in ("kfra", "kflr"):
        assert_tensors(output_factors(model, x, y, method), expected, EXACT, method)


@pytest.mark.parametrize("name", declared())
def test_kflr_is_the_exact_average_and_samples_scatter_around_it(name: str) -> None:
    """Six standard errors have a chance below 1e-6 for these entries; their root mean square is near one."""
    model, x, y = problem(name, 300)
    assert_tensors(output_factors(model, x, y, "kflr"), oracles.ggn(model, LOSS, x, y), EXACT)
    z = model(x).detach()
    jacobians = oracles.jacobians(model, x)
    for method in ("kfac", "kfac_rp"):
        drawn = output_factors(model, x, y, method)
        moments = {n: oracles.sampling_moments(LOSS, method, J, z) for n, J in jacobians.items()}
        scores = torch.cat([standard_scores(drawn[n], *moments[n]) for n in drawn])
        assert float(scores.abs().max()) < 6.0
        assert 0.1 < rms(scores) < 3.0


def test_points_are_where_the_tests_say() -> None:
    assert {math.copysign(1, x) for x in points().tolist() if x == 0} == {1, -1}
