"""The kind of function a transfer function is, against what is known of it; and its page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import gncompile
from gncompile.app.cli import main
from gncompile.functions import transfer as registry
from gncompile.functions.classification import classify, interval
from gncompile.functions.transfer import ARGUMENT, define_transfer, transfer

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_activation.toml"
INF = math.inf
x = ARGUMENT


def function(text, **options):
    return define_transfer("example", text, {}, **options)


# name: monotone, parity, range, Lipschitz constant, number of kinks; from textbooks.
KNOWN = {
    "identity": ("increasing", "odd", (-INF, INF), 1, 0),
    "relu": ("non-decreasing", "neither", (0, INF), 1, 1),
    "relu6": ("non-decreasing", "neither", (0, 6), 1, 2),
    "leaky_relu": ("increasing", "neither", (-INF, INF), 1, 1),
    "hardtanh": ("non-decreasing", "odd", (-1, 1), 1, 2),
    "hardshrink": ("non-decreasing", "odd", (-INF, INF), INF, 2),
    "tanh": ("increasing", "odd", (-1, 1), 1, 0),
    "sigmoid": ("increasing", "neither", (0, 1), 0.25, 0),
    "arctan": ("increasing", "odd", (-math.pi / 2, math.pi / 2), 1, 0),
    "softsign": ("increasing", "odd", (-1, 1), 1, 0),
    "softplus": ("increasing", "neither", (0, INF), 1, 0),
    "elu": ("increasing", "neither", (-1, INF), 1, 0),
    "selu": ("increasing", "neither", (-1.7580993408, INF), 1.7580993408, 1),
    "silu": ("neither", "neither", (-0.2784645428, INF), 1.0998393194, 0),
    "gelu": ("neither", "neither", (-0.1699712075, INF), 1.1289041451, 0),
    "sin": ("neither", "odd", (-1, 1), 1, 0),
    "gaussian": ("neither", "even", (0, 1), math.sqrt(2 / math.e), 0),
    "arcsinh": ("increasing", "odd", (-INF, INF), 1, 0),
    "squared_relu": ("non-decreasing", "neither", (0, INF), INF, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_properties_of_the_vocabulary(name):
    monotone, parity, bounds, lipschitz, kinks = KNOWN[name]
    found = classify(transfer(name))
    assert found.monotone.value == monotone
    assert found.parity.value == parity
    assert found.bounds.value == pytest.approx(bounds, rel=1e-8)
    assert found.lipschitz.value == pytest.approx(lipschitz, rel=1e-8)
    assert len(found.kinks) == kinks


def test_piecewise_linear_is_known_from_the_derivative_or_seen():
    assert classify(transfer("leaky_relu")).piecewise_linear.value
    assert not classify(transfer("tanh")).piecewise_linear.value
    hidden = classify(function("(x + 1)**2 - x**2 + sqrt(x**2)"))
    assert (hidden.piecewise_linear.value, hidden.piecewise_linear.evidence)[0]


def test_evidence_is_labelled():
    tanh, snake = classify(transfer("tanh")), classify(transfer("snake"))
    assert tanh.monotone.evidence == tanh.parity.evidence == tanh.bounds.evidence == "proved"
    assert snake.monotone.evidence == "seen"
    assert classify(transfer("silu")).monotone.evidence == "proved"  # by a counterexample
    assert "seen at sample points" in str(snake.monotone)


def test_kinks_say_which_slope_is_taken():
    (kink,) = classify(transfer("leaky_relu", negative_slope=0.2)).kinks
    assert (kink.at, kink.before, kink.after, kink.taken, kink.jump) == (0, 0.2, 1, 0.2, 0)
    low, high = classify(function("clamp(x, -1, 2)")).kinks
    assert (low.at, low.taken, high.at, high.taken) == (-1, 0, 2, 0)


def test_a_fall_at_a_kink_is_not_monotone():
    found = classify(function("select(x, x, x + 1)"))
    assert found.monotone.value == "neither"
    assert found.lipschitz.value == INF
    assert found.kinks[0].jump == -1


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_no_value_lies_outside_the_bounds(name):
    """Random points, not those the bounds were found at; torch's rounding allowed for."""
    declared = transfer(name)
    low, high = classify(declared).bounds.value
    h = torch.cat([scale * torch.randn(2000, dtype=torch.float64) for scale in (0.3, 3, 30)])
    values = declared.module()(h)
    slack = 1e-8 * (1 + values.abs().max())
    assert low - slack <= values.min()
    assert values.max() <= high + slack
    proved = interval(declared.rule.value, x, declared.domain)
    assert proved[0] <= values.min() + slack
    assert values.max() <= proved[1] + slack


def test_a_domain_limits_the_range():
    found = classify(function("log(x)", domain=(0, 1)))
    assert found.monotone.value == "increasing"
    assert found.bounds.value == pytest.approx((-INF, 0), abs=1e-9)


def test_a_page_shows_what_is_derived_and_the_code_that_computes_it():
    page = gncompile.transfer_page("elu", alpha=0.5)
    assert page.startswith("elu(alpha=0.5): ")
    assert "functions/vocabulary.py:" in page
    assert "select(x, 1, exp(x)/2)" in page
    assert "x = 0: slope 0.5 before, 1 after, 0.5 taken" in page
    code = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    names = {
        name: torch.empty(7, dtype=torch.float64) for name in ("a", "b", "t0", "t1", "t2", "t3")
    }
    h = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    exec("\n".join(code), {"torch": torch, "h": h.detach(), **names})
    expected = functional.elu(h, 0.5)
    torch.testing.assert_close(names["a"], expected.detach())
    (slope,) = torch.autograd.grad(expected.sum(), h)
    torch.testing.assert_close(names["b"], slope)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_page_can_be_written(name):
    assert "range" in gncompile.transfer_page(name)


def run(*arguments):
    """The exit code of the command line, which ends the process when it is done."""
    try:
        return main(list(arguments))
    except SystemExit as end:
        return end.code


def test_the_command_line_prints_pages_and_names(capsys):
    assert run("transfer", "tanh") == 0
    assert "f' = 1 - f**2" in capsys.readouterr().out
    assert run("transfer") == 0
    assert "gelu_tanh" in capsys.readouterr().out.split()
    assert run("transfer", "tahn") == 1
    assert "Did you mean 'tanh'" in capsys.readouterr().err


def test_the_command_line_knows_a_files_own(capsys):
    assert run("transfer", "smooth_step", "--file", str(EXAMPLE)) == 0
    assert "a ramp from 0 to 1" in capsys.readouterr().out
    assert "smooth_step" not in registry.transfer_names()
