"""Every elementwise operator of the frontend, with random constants, against autograd.

One network computes all of them side by side, so that it is traced once; what the frontend made of each is
swept through stable forms, the decision what to keep, and emitted statements, at 61 points, in saturated
ranges, and at kinks and the floats beside them. A sample is compiled as a whole.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sympy import Expr, Symbol
from torch import Tensor, nn

import gncompile
from gncompile.frontends.aten import COMPARISONS, POINTWISE
from gncompile.frontends.torch_export import trace
from gncompile.functions import number
from gncompile.functions.derive import pointwise_rule
from gncompile.graph.model_graph import TracedModel
from gncompile.graph.nodes import Node, Pointwise
from gncompile.pipeline import prepare
from gncompile.verification.accuracy import run_torch_statements

Function = Callable[[Tensor], Tensor]


def constant(h: Tensor, value: float) -> Tensor:
    return torch.full_like(h, value)


def tensor(h: Tensor, value: float) -> Tensor:
    return torch.tensor([value], dtype=h.dtype)


UNEVEN = (0.07, 0.29, 0.57, 0.58, 1.13, 1.14)
"""A hundred times these rounds to another number than 7, 29, …, so that a rescaled condition shows."""

CASES: dict[str, Callable[[float, float], list[Function]]] = {
    # a and b are random decimals, a < b, a not zero
    "add": lambda a, b: [lambda h: torch.add(h, torch.tanh(h), alpha=a), lambda h: h + b],
    "sub": lambda a, b: [lambda h: torch.sub(h, torch.sin(h), alpha=a), lambda h: a - h],
    "rsub": lambda a, b: [lambda h: torch.rsub(torch.tanh(h), b, alpha=2)],
    "mul": lambda a, b: [lambda h: h * torch.tanh(h) * b],
    "div": lambda a, b: [lambda h: h / (4 + torch.sin(h)), lambda h: b / (h * h + 1)],
    "neg": lambda a, b: [lambda h: -torch.tanh(h)],
    "abs": lambda a, b: [lambda h: torch.abs(h - a), lambda h: (b * h).abs()],
    "sign": lambda a, b: [lambda h: h * torch.sign(h - a)],
    "sgn": lambda a, b: [lambda h: torch.sin(h) * torch.sgn(h - b)],
    "pow": lambda a, b: [
        lambda h: h**3,
        lambda h: (1 + h * h) ** a,
        lambda h: h * (b * b + h * h) ** -0.3,
        lambda h: h / (1 + h**4) ** 0.25,
        lambda h: (2 + torch.sin(h)) ** b,
        lambda h: abs(b) ** h,
        lambda h: h**-2,
        lambda h: (h * h + 1) ** 1.5 / (2 + h * h) ** 1.25,
    ],
    "square": lambda a, b: [lambda h: torch.square(h - b)],
    "reciprocal": lambda a, b: [lambda h: torch.reciprocal(h), lambda h: (1 + h * h).reciprocal()],
    "sqrt": lambda a, b: [lambda h: torch.sqrt(b * b + h * h), lambda h: torch.sqrt(h)],
    "rsqrt": lambda a, b: [lambda h: h * torch.rsqrt(1 + b * b * h * h), lambda h: torch.rsqrt(h)],
    "addcmul": lambda a, b: [lambda h: torch.addcmul(h, h, torch.tanh(h), value=b)],
    "addcdiv": lambda a, b: [lambda h: torch.addcdiv(h, torch.sin(h), 2 + h * h, value=a)],
    "lerp": lambda a, b: [lambda h: torch.lerp(h, torch.tanh(h), b)],
    "maximum": lambda a, b: [
        lambda h: torch.maximum(h, constant(h, b)),
        lambda h: torch.maximum(constant(h, a), h),
        lambda h: torch.maximum(h, tensor(h, a)),
        lambda h: torch.maximum(a * h, h),
    ],
    "minimum": lambda a, b: [
        lambda h: torch.minimum(h, constant(h, a)),
        lambda h: torch.minimum(tensor(h, b), h),
    ],
    "fmax": lambda a, b: [lambda h: torch.fmax(h, constant(h, b))],
    "fmin": lambda a, b: [lambda h: torch.fmin(h, constant(h, b))],
    "clamp": lambda a, b: [lambda h: torch.clamp(h, a, b), lambda h: torch.clamp(h, max=b)],
    "clamp_min": lambda a, b: [lambda h: torch.clamp_min(h, b)],
    "clamp_max": lambda a, b: [lambda h: torch.clamp_max(h, a)],
    "exp": lambda a, b: [lambda h: torch.exp(h), lambda h: torch.exp(0.3 * torch.log(1 + h * h))],
    "exp2": lambda a, b: [lambda h: torch.exp2(h)],
    "expm1": lambda a, b: [lambda h: torch.expm1(h)],
    "log": lambda a, b: [lambda h: torch.log(h), lambda h: torch.log(b * b + h * h)],
    "log2": lambda a, b: [lambda h: torch.log2(3 + torch.sin(h))],
    "log10": lambda a, b: [lambda h: torch.log10(h)],
    "log1p": lambda a, b: [lambda h: torch.log1p(h * h)],
    "sigmoid": lambda a, b: [lambda h: torch.sigmoid(h)],
    "sin": lambda a, b: [lambda h: torch.sin(b * h)],
    "cos": lambda a, b: [lambda h: torch.cos(h)],
    "tan": lambda a, b: [lambda h: torch.tan(h / 8)],
    "sinh": lambda a, b: [lambda h: torch.sinh(h)],
    "cosh": lambda a, b: [lambda h: torch.cosh(h), lambda h: torch.cosh(h) ** -0.5],
    "tanh": lambda a, b: [lambda h: torch.tanh(h)],
    "atan": lambda a, b: [lambda h: torch.atan(b * h)],
    "asinh": lambda a, b: [lambda h: torch.asinh(h)],
    "erf": lambda a, b: [lambda h: torch.erf(h)],
    "erfc": lambda a, b: [lambda h: torch.erfc(h)],
    "relu": lambda a, b: [lambda h: torch.relu(h), lambda h: torch.relu(h - b)],
    "relu6": lambda a, b: [lambda h: F.relu6(h)],
    "leaky_relu": lambda a, b: [lambda h: F.leaky_relu(h, abs(a)), lambda h: F.leaky_relu(h, a)],
    "rrelu": lambda a, b: [lambda h: F.rrelu(h, 0.11, 0.37)],
    "prelu": lambda a, b: [lambda h: F.prelu(h, tensor(h, a))],
    "elu": lambda a, b: [lambda h: F.elu(h, abs(b))],
    "selu": lambda a, b: [lambda h: F.selu(h)],
    "celu": lambda a, b: [lambda h: F.celu(h, abs(b))],
    "gelu": lambda a, b: [lambda h: F.gelu(h), lambda h: F.gelu(h, approximate="tanh")],
    "silu": lambda a, b: [lambda h: F.silu(h)],
    "mish": lambda a, b: [lambda h: F.mish(h)],
    "softplus": lambda a, b: [lambda h: F.softplus(h, abs(b)), lambda h: F.softplus(h, 1, 1.5)],
    "log_sigmoid": lambda a, b: [lambda h: F.logsigmoid(h)],
    "hardtanh": lambda a, b: [
        lambda h: F.hardtanh(h, a, b),
        *[lambda h, c=c: F.hardtanh(h, -c, c) for c in UNEVEN],
    ],
    "hardswish": lambda a, b: [lambda h: F.hardswish(h)],
    "hardsigmoid": lambda a, b: [lambda h: F.hardsigmoid(h)],
    "hardshrink": lambda a, b: [lambda h: F.hardshrink(h, abs(b))],
    "softshrink": lambda a, b: [lambda h: F.softshrink(h, abs(b))],
    "threshold": lambda a, b: [lambda h: F.threshold(h, b, b), lambda h: F.threshold(h, a, b)],
    "glu": lambda a, b: [lambda h: F.glu(torch.cat([h, h], dim=1), dim=1)],
    "where": lambda a, b: [lambda h: torch.where(h > b, h, torch.sin(h))],
    "masked_fill": lambda a, b: [lambda h: torch.tanh(h).masked_fill(h < a, b)],
    "logical_not": lambda a, b: [lambda h: torch.where(~(h > a), h, b * h)],
    "logical_and": lambda a, b: [lambda h: torch.where((h > a) & (h <= b), h, h * h)],
    "logical_or": lambda a, b: [lambda h: torch.where((h < a) | (h >= b), h, -h)],
    "batch_norm": lambda a, b: [
        lambda h: F.batch_norm(torch.tanh(h), tensor(h, a), tensor(h, b * b), eps=0.01)
    ],
    "gt": lambda a, b: [lambda h: torch.where(h > b, h, constant(h, b))],
    "lt": lambda a, b: [lambda h: torch.where(h < a, a, h)],
    "ge": lambda a, b: [lambda h: torch.where(h >= a, 2 * h, -h)],
    "le": lambda a, b: [lambda h: torch.where(h <= b, h, torch.exp(h))],
    "ne": lambda a, b: [lambda h: torch.where(h != b, h, 3 * h)],
    "eq": lambda a, b: [lambda h: torch.where(h == a, 2 * h, h * h)],
    "hypot": lambda a, b: [
        lambda h: torch.hypot(h, constant(h, b)),
        lambda h: torch.hypot(a * h, torch.tanh(h) + 2),
    ],
}
"""Functions of each operator, given two constants."""

WRAPPERS = ("plain", "scaled", "shifted", "far", "inner")


def wrapped(f: Callable[[Any], Any], wrapper: str, a: Any, b: Any) -> Callable[[Any], Any]:
    """``f`` between affine maps, of tensors and of expressions alike."""
    return {
        "plain": f,
        "scaled": lambda h: f(h) * a,
        "shifted": lambda h: f(h) - b,
        "far": lambda h: f(h) * a / 1000 + 300,
        "inner": lambda h: f(h * a + b) * b + a,
    }[wrapper]


def test_every_elementwise_operator_has_a_case() -> None:
    assert set(CASES) == {*POINTWISE, *COMPARISONS}, "add a case for a new operator"


class Side(nn.Module):
    """``h = x`` by a layer, and its functions side by side: ``rop`` along the bias gives the slopes."""

    def __init__(self, functions: Sequence[Function]) -> None:
        super().__init__()
        self.layer, self.functions = nn.Linear(1, 1), functions
        with torch.no_grad():
            self.layer.weight.fill_(1.0)
            self.layer.bias.fill_(0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return torch.cat([f(h) for f in self.functions], dim=1)


def constants(generator: random.Random) -> tuple[float, float]:
    """Two decimals that are not small, in order."""
    a, b = sorted(generator.sample([c / 100 for c in range(-190, 191) if abs(c) > 5], 2))
    return a, b


@dataclass(frozen=True)
class Swept:
    """One function in torch, its kinks, and the expression that the frontend made of it."""

    name: str
    function: Function
    kinks: tuple[float, ...]
    expression: Expr
    argument: Symbol


@functools.cache
def swept() -> list[Swept]:
    """All functions, traced in one network."""
    generator = random.Random(0)
    found: list[tuple[str, Function, tuple[float, ...]]] = []
    for name, made in CASES.items():
        a, b = constants(generator)
        for k, f in enumerate(made(a, b)):
            found.append((f"{name}[{k}] with {a} and {b}", f, (0.0, 1.5, 3.0, 6.0, *UNEVEN, a, b)))
    traced = trace(Side([f for _, f, _ in found]).double(), torch.zeros(2, 1).double())
    graph = prepare(traced.graph)
    (beside,) = (graph[name] for name in graph.output.inputs)
    nodes = [graph[name] for name in beside.inputs]
    return [
        Swept(*given, *_expression(node, traced)) for given, node in zip(found, nodes, strict=True)
    ]


def _expression(node: Node, traced: TracedModel) -> tuple[Expr, Symbol]:
    """The node's expression with the numbers of its constants, in ``h``: every input is the layer's value."""
    assert isinstance(node.op, Pointwise)
    numbers = {s: number(traced.constants[name].item()) for s, name in node.op.constants}
    argument = Symbol("h", real=True)
    same = dict.fromkeys(node.op.arguments, argument)
    return node.op.expression.xreplace({**numbers, **same}), argument


def points(kinks: Sequence[float], dtype: torch.dtype) -> Tensor:
    """61 points, saturated ranges, and every kink with the floats beside it."""
    at = torch.tensor(sorted({*kinks, *(-k for k in kinks)}), dtype=dtype)
    far = torch.tensor([-80.0, -35.0, -17.0, 17.0, 35.0, 80.0], dtype=dtype)
    end = torch.tensor(torch.inf, dtype=dtype)
    beside = [at, torch.nextafter(at, end), torch.nextafter(at, -end)]
    tiny = torch.finfo(dtype).tiny * 4  # the products of smaller numbers are rounded
    beside = [b.where(at != 0, tiny * s) for b, s in zip(beside, (0, 1, -1), strict=True)]
    return torch.cat([torch.linspace(-3, 3, 61, dtype=dtype) + 0.0037, far, *beside])


def autograd(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope at each of ``x``."""
    h = x[:, None].clone().requires_grad_()
    y = f(h)
    (slope,) = torch.autograd.grad(y.sum(), h)
    return y.detach()[:, 0], slope[:, 0]


TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
ROUGH = ("celu", "hardsigmoid")
"""In float64 torch rounds 1/alpha and 1/6 of these to float32."""
ROUGH_TOLERANCE = 1e-6


def apart(name: str, found: Tensor, wanted: Tensor, usable: Tensor) -> Tensor:
    """Where the error exceeds the tolerance, relative to the value and a little to the largest within ±3."""
    usual = wanted[:61][usable[:61]].abs().max()
    tolerance = TOLERANCE[wanted.dtype]
    tolerance = max(tolerance, ROUGH_TOLERANCE) if name.startswith(ROUGH) else tolerance
    allowed = tolerance * (wanted.abs() + 1e-3 * usual)
    return usable & ~((found - wanted).abs() <= allowed)


def undecided(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where torch's own value and slope change within a few roundings of ``x``: moved kinks, poles."""
    moves = [s * 4 * torch.finfo(x.dtype).eps * (1 + x.abs()) for s in (-1, -0.25, 0, 0.25, 1)]
    answers = []
    for around in zip(*(autograd(f, x + move) for move in moves), strict=True):
        every = torch.stack(around)
        low, high = every.amin(dim=0), every.amax(dim=0)
        close = high - low <= TOLERANCE[x.dtype] * (low.abs() + high.abs())
        answers.append(~(close & (high - low).isfinite()))  # a pole may lie between
    return answers[0], answers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_values_and_slopes_equal_autograd(wrapper: str, dtype: torch.dtype) -> None:
    generator = random.Random(wrapper)
    said = []
    for case in swept():
        a, b = constants(generator)
        f = wrapped(case.function, wrapper, a, b)
        expression = wrapped(
            lambda u, case=case: case.expression.xreplace({case.argument: u}),
            wrapper, number(a), number(b),
        )(case.argument)  # fmt: skip
        inner = [(k - b) / a for k in case.kinks] if wrapper == "inner" else case.kinks
        x = points(inner, dtype)
        rule = pointwise_rule(expression, (case.argument,))
        value = run_torch_statements(rule.value, {case.argument: x})
        slope = run_torch_statements(rule.kept_slopes[0], {case.argument: x, rule.output: value})
        wanted, steep = autograd(f, x)
        usable = wanted.isfinite() & steep.isfinite()
        assert usable.double().mean() > 0.3, case.name
        wrong = apart(case.name, value, wanted, usable)
        bent = apart(case.name, slope, steep, usable)
        if wrapper == "inner" or case.name.startswith("hardsigmoid"):
            # torch rounds h a + b, and hardsigmoid's h + 3, before it compares
            excused = undecided(f, x)
            assert (excused[1] & usable).double().mean() < 0.3, case.name
            wrong, bent = wrong & ~excused[0], bent & ~excused[1]
        said += [
            f"{what} of {case.name}, {wrapper} with {a} and {b}, at {x[n].item()!r}: "
            f"{got[n].item()!r}, not {right[n].item()!r} ({expression})"
            for what, where, got, right in (
                ("value", wrong, value, wanted),
                ("slope", bent, slope, steep),
            )
            for n in where.nonzero().flatten().tolist()
        ]
    assert not said, f"{len(said)} differ\n" + "\n".join(said)


SAMPLED = ("pow", "maximum", "hardtanh", "threshold", "relu6", "where", "hardshrink", "elu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_compiled_values_and_slopes_equal_autograd(dtype: torch.dtype) -> None:
    cases = [case for case in swept() if case.name.partition("[")[0] in SAMPLED]
    x = points(sorted({k for case in cases for k in case.kinks}), dtype)
    network = Side([case.function for case in cases]).to(dtype)
    trainer = gncompile.compile(network, "mse", x[:, None], method="adam")
    value = trainer.predict(x[:, None])
    slope = trainer.rop(x[:, None], {"layer.bias": torch.ones(1, dtype=dtype)})
    for k, case in enumerate(cases):
        wanted, steep = autograd(case.function, x)
        usable = wanted.isfinite() & steep.isfinite()
        for found, right in ((value[:, k], wanted), (slope[:, k], steep)):
            bad = apart(case.name, found, right, usable)
            assert not bad.any(), (case.name, x[bad], found[bad], right[bad])
