"""Selections in formulas, and operations by names that people use."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import sympy

from gncompile.explain.cases import branches, readable
from gncompile.explain.formulas import _step_sizes, _words
from gncompile.explain.notation import Elementwise, Name, expanded, text
from gncompile.functions.primitives import clamp, finite, select
from gncompile.program import operations as ir

a, b, x = sympy.symbols("a b x", real=True)
ZERO, ONE = sympy.Integer(0), sympy.Integer(1)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (finite(x / a), "finite(x/a)"),
        (clamp(a * x, ONE, sympy.Integer(5)), "min(max(a*x, 1), 5)"),
        (select(x - 5, 5, select(1 - x, 1, x)), "clamp(x, 1, 5)"),
        (select(x - a, x, a), "max(x, a)"),
        (select(x, a, b), "select(x, a, b)"),
        (
            select(x - a, select(b, 2 * x, x), select(finite(a), x, 3 * x)),
            "2 x if x > a and b > 0; 3 x if x ≤ a and not finite(a); x otherwise",
        ),
    ],
)
def test_selections_as_people_write_them(expression: sympy.Expr, expected: str) -> None:
    assert text(Elementwise(expression, ())) == expected


def test_cases_are_those_of_the_nested_selections() -> None:
    """At points on either side of every condition the one case that holds has the expression's value."""
    nested = select(x - a, select(b, 2 * x, x), select(a + b, select(b - x, a, b), 3 * x))
    found, otherwise = branches(readable(nested)) or ([], ZERO)
    for point in [(1, 2, 3), (1, -2, 3), (3, 2, 1), (3, -1, 1), (-3, 1, -4), (3, 1, 2)]:
        at = dict(zip((a, b, x), point, strict=True))
        held = [v for v, given in found if all((u.subs(at) > 0) == yes for u, yes in given)]
        assert len(held) <= 1

        def value(e: sympy.Expr, at: dict[sympy.Symbol, int] = at) -> sympy.Expr:
            if not isinstance(e, select):
                return e.subs(at)
            condition, above, below = e.args
            return value(above if condition.subs(at) > 0 else below)

        assert (held[0] if held else otherwise).subs(at) == value(nested)


def test_step_sizes_are_the_minimum_of_a_quadratic_model() -> None:
    values = [Name(name) for name in ("m11", "m12", "m22", "b1", "b2", "usual")]
    assert text(_step_sizes(ir.StepSizes((0, 0), True, 2.0), values)) == (
        "argmin over c of (bᵀ c + (1/2) cᵀ M c) of bounded length, "
        "with M = [m11, m12, m22], b = [b1, b2]"
    )


@pytest.mark.parametrize("op", typing.get_args(ir.Op) or [ir.StepSizes])
def test_no_operation_is_written_as_a_constructor(op: type) -> None:
    assert dataclasses.is_dataclass(op)
    words = _words(object.__new__(op))
    assert words == words.lower()
    assert not set(words) & set("[](),=")


def test_expanded_cases_have_conditions_on_both_sides() -> None:
    tree = expanded(select(x - a, select(b, 2 * x, x), x), {})
    assert text(tree) == "2 x if x > a and b > 0; x otherwise"
