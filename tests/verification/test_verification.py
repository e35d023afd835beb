"""``verify`` accepts what is right, and is shown to refuse each kind of wrong rule."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable

import pytest
import sympy
import torch
from architectures import build, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gncompile.derivation import forward, loss_rules
from gncompile.errors import LossError
from gncompile.frontends.torch_export import trace
from gncompile.functions import derive, expressions, stable_forms
from gncompile.graph.nodes import FixedLinear, Select
from gncompile.graph.torch_network import Network
from gncompile.pipeline import prepare
from gncompile.verification import verification
from gncompile.verification.checks import Check, VerifyReport
from gncompile.verification.shrinking import features, shrink
from gncompile.verification.verification import verify


class Mixed(nn.Module):
    """Every kind of node: gate, fork, batch norm, means of pairs, permutation, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(30, 24), nn.Linear(30, 24, bias=False)
        self.norm = nn.BatchNorm1d(24, affine=False)
        self.inner, self.top = nn.Linear(12, 40), nn.Linear(42, 11)
        self.norm.running_mean = torch.linspace(-1, 1, 24)
        self.norm.running_var = torch.linspace(1, 2, 24)
        self.register_buffer("pairs", torch.eye(12).repeat_interleave(2, dim=0) / 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.norm(torch.tanh(self.left(x)) * torch.sigmoid(self.right(x)))
        pooled = gate @ self.pairs
        inner = torch.relu(self.inner(pooled)).flip(dims=[1])
        return self.top(nn.functional.pad(inner, (1, 1), value=0.5))


def chain(*functions: nn.Module) -> nn.Sequential:
    widths = [20, 17, 13, 9]
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(layers[0], functions[0], layers[1], functions[-1], layers[2])


# --- what is right is accepted --------------------------------------------------------------------


def test_a_network_of_every_kind_of_node() -> None:
    report = verify(Mixed(), "mse", torch.zeros(2, 30))
    assert report.ok, report.to_text()
    compared = {(check.layer, check.compared) for check in report.checks}
    for layer in ("left", "right", "inner", "top"):
        for what in (
            "gradient",
            "Q",
            "Ḡ of KFRA, N = 1",
            "Ḡ of KFLR, N = 1",
            "Ḡ of KFLR, N = 5",
            "R-operator",
        ):
            assert (layer, what) in compared
    assert max(check.error for check in report.checks) < 1e-12


@pytest.mark.parametrize(
    "loss",
    [
        "bce_with_logits", "cross_entropy", "huber", "exp(z) - y*z", "soft_margin",
        nn.MSELoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.BCEWithLogitsLoss(reduction="sum"),
    ],
    ids=str,
)  # fmt: skip
def test_losses(loss: str | nn.Module) -> None:
    report = verify(chain(nn.GELU(), nn.Softplus()), loss, torch.zeros(2, 20))
    assert report.ok, report.to_text()


@settings(max_examples=8)
@given(networks(), st.integers(0, 1000))
def test_random_architectures(drawn: tuple, seed: int) -> None:
    width, architecture = drawn
    model = build(architecture, width, torch.Generator().manual_seed(seed))
    report = verify(model, "mse", torch.zeros(2, width).double(), seed=seed)
    assert report.ok, report.to_text()


def test_the_model_is_left_alone() -> None:
    model = chain(nn.Tanh())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    verify(model, "mse", torch.zeros(2, 20))
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.dtype is torch.float32 and p.grad is None for p in model.parameters())


def test_a_seed_repeats_the_report() -> None:
    first, again, other = (
        verify(chain(nn.Tanh()), "mse", torch.zeros(2, 20), seed=s) for s in (1, 1, 2)
    )
    assert first.checks[2:] == again.checks[2:]
    assert first.seed != other.seed


def test_a_loss_that_does_not_fit_is_refused_as_by_compile() -> None:
    with pytest.raises(LossError, match="not convex"):
        verify(chain(nn.Tanh()), "z**3 - y", torch.zeros(2, 20))


# --- what is wrong is refused ---------------------------------------------------------------------


def failed(report: VerifyReport) -> set[tuple[str, str]]:
    return {(check.layer, check.compared.split(",")[0]) for check in report.checks if not check.ok}


def test_a_wrong_slope_is_found_below_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slope off by one per cent spoils every layer before the function, and none after it."""
    true = derive.pointwise_rule

    def wrong(value: sympy.Expr, arguments: tuple[sympy.Symbol, ...]) -> derive.PointwiseRule:
        rule = true(value, arguments)
        slopes = tuple(slope * sympy.Rational(101, 100) for slope in rule.kept_slopes)
        return dataclasses.replace(rule, kept_slopes=slopes) if value.has(sympy.tanh) else rule

    monkeypatch.setattr(forward, "pointwise_rule", wrong)
    report = verify(chain(nn.Sigmoid(), nn.Tanh()), "mse", torch.zeros(2, 20))
    assert {layer for layer, _ in failed(report)} - {""} == {"0", "2"}
    assert not report.ok
    assert ("", "quadratic model") in failed(report)
    assert ("2", "gradient") in failed(report)
    assert ("0", "Ḡ of KFRA") in failed(report)
    assert ("0", "Ḡ of KFLR") in failed(report)
    wrong_ones = sum(not check.ok for check in report.checks)
    assert f"{wrong_ones} of {len(report.checks)} comparisons failed" in report.to_text()


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emitted forward pass differs from the graph: the loss itself is wrong."""
    true = derive.pointwise_rule

    def wrong(value: sympy.Expr, arguments: tuple[sympy.Symbol, ...]) -> derive.PointwiseRule:
        rule = true(value, arguments)
        return dataclasses.replace(rule, value=rule.value + sympy.Rational(1, 1000))

    monkeypatch.setattr(forward, "pointwise_rule", wrong)
    assert ("", "loss") in failed(verify(chain(nn.Tanh()), "mse", torch.zeros(2, 20)))


def test_a_wrong_output_hessian_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = loss_rules.SeparableRules.mean_hessian
    monkeypatch.setattr(
        loss_rules.SeparableRules,
        "mean_hessian",
        lambda self: self.builder.scaled(true(self), 1.001),
    )
    found = failed(verify(chain(nn.Tanh()), "bce_with_logits", torch.zeros(2, 20)))
    assert found == {(layer, "Ḡ of KFRA") for layer in ("0", "2", "4")}


def test_a_graph_that_is_not_the_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong network, perfectly differentiated: only the comparison with the module sees it."""
    other = chain(nn.Tanh())
    monkeypatch.setattr(
        verification, "trace", lambda model, *rest, **named: trace(other.double(), *rest, **named)
    )
    found = failed(verify(chain(nn.Tanh()), "mse", torch.zeros(2, 20)))
    assert found == {("", "graph's output")}


class Applied(nn.Module):
    """A function of the pre-activation between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(20, 17), nn.Linear(17, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def test_a_wrong_order_of_multiplication_is_found(
    monkeypatch: pytest.MonkeyPatch, underived: Callable[[], None]
) -> None:
    """Powers that are not whole, rounded down: whatever evaluates as the compiler does would agree."""
    model = Applied(lambda h: h * (1 + h * h) ** -0.3)
    assert verify(model, "mse", torch.zeros(2, 20)).ok
    underived()
    monkeypatch.setattr(expressions, "_repeated", lambda base, power: [base] * int(power))
    found = failed(verify(model, "mse", torch.zeros(2, 20)))
    assert ("first", "gradient") in found
    assert ("", "loss") in found


def test_a_wrong_rewriting_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, underived: Callable[[], None]
) -> None:
    """``1 - tanh² → cosh^-1``: value right, slope wrong."""
    wrong = {**stable_forms._SQUARES, (sympy.tanh, sympy.Integer(2)): lambda u: sympy.cosh(u) ** -1}
    monkeypatch.setattr(stable_forms, "_SQUARES", wrong)
    found = failed(verify(Applied(lambda h: h * torch.tanh(h)), "mse", torch.zeros(2, 20)))
    assert ("first", "gradient") in found
    assert ("", "loss") not in found


def test_slopes_from_a_shifted_output_are_found(
    monkeypatch: pytest.MonkeyPatch, underived: Callable[[], None]
) -> None:
    """Right in the mathematics and in float64; in float32 the shift has eaten the digits."""
    model = Applied(lambda h: 300 + 0.01 * torch.tanh(h))
    assert verify(model, "mse", torch.zeros(2, 20)).ok
    underived()
    monkeypatch.setattr(derive, "_keeps_digits", lambda *_: True)
    report = verify(model, "mse", torch.zeros(2, 20))
    found = [check for check in report.checks if not check.ok]
    assert {check.layer for check in found} == {"first"}
    assert {check.compared for check in found} == {"gradient, full size, float32 beyond rounding"}


@pytest.mark.parametrize("bound", [0.29, 0.57])
def test_branches_that_the_output_cannot_tell_are_found(
    bound: float, monkeypatch: pytest.MonkeyPatch, underived: Callable[[], None]
) -> None:
    """``100 a < 29``, asked of ``a = 0.29``, is true in floating point."""
    model = Applied(nn.Hardtanh(-0.3, bound))
    assert verify(model, "mse", torch.zeros(2, 20)).ok
    underived()
    monkeypatch.setattr(stable_forms, "is_power_of_two", lambda _: True)
    monkeypatch.setattr(derive, "is_power_of_two", lambda _: True)
    found = failed(verify(model, "mse", torch.zeros(2, 20)))
    assert ("first", "gradient") in found


def test_numbers_that_are_not_finite_fail() -> None:
    report = VerifyReport("net", 0, (), (Check("0", "gradient", "torch", float("nan")),))
    assert not report.ok
    assert re.search(r"nan .* FAILED", report.to_text())


# --- shrinking ------------------------------------------------------------------------------------


def test_shrinking_keeps_the_graph_and_its_maps() -> None:
    traced = trace(Mixed().double(), torch.zeros(2, 30).double())
    traced = traced.with_graph(prepare(traced.graph))
    small = shrink(traced, torch.Generator().manual_seed(0))
    small.graph.check()
    assert [node.name for node in small.graph] == [node.name for node in traced.graph]
    assert [type(n.op) for n in small.graph] == [type(n.op) for n in traced.graph]
    assert sum(node.size for node in small.graph) < sum(node.size for node in traced.graph) / 2
    kinds = {type(node.op) for node in small.graph}
    assert Select in kinds
    x = torch.randn(3, small.graph.inputs[0].size, dtype=torch.float64)
    assert Network(small)({}, (x,)).shape == (3, small.graph.output.size)


def test_selected_features_keep_their_sources() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 50), nn.Linear(3, 60), nn.Linear(110, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), torch.tanh(self.b(x))], dim=1).flip(dims=[1]))

    graph = prepare(trace(Reversed(), torch.zeros(2, 3)).graph)
    kept = features(graph)
    select = next(node for node in graph if isinstance(node.op, Select))
    sizes = [graph[name].size for name in select.inputs]
    places = [select.op.index[j] for j in kept[select.name]]
    first, second = (kept[name] for name in select.inputs)
    assert {i for i in places if i < sizes[0]} <= first
    assert {i - sizes[0] for i in places if i >= sizes[0]} <= second
    assert {i < sizes[0] for i in places} == {True, False}
    small = shrink(trace(Reversed(), torch.zeros(2, 3)), torch.Generator())
    assert max(node.size for node in small.graph) < 30


def test_fixed_maps_keep_their_numbers() -> None:
    traced = trace(Mixed(), torch.zeros(2, 30))
    fixed = [node for node in traced.graph if isinstance(node.op, FixedLinear)]
    assert fixed
    small = shrink(traced, torch.Generator().manual_seed(0))
    kept = features(traced.graph)
    for node in fixed:
        rows, columns = sorted(kept[node.name]), sorted(kept[node.inputs[0]])
        matrix = traced.constants[node.op.matrix].double()[rows][:, columns]
        assert torch.equal(small.constants[small.graph[node.name].op.matrix], matrix)


def test_small_networks_are_not_made_larger() -> None:
    traced = trace(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(2, 2))
    small = shrink(traced, torch.Generator())
    assert [node.size for node in small.graph] == [node.size for node in traced.graph]
