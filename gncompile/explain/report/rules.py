"""The rules of a node as the field writes them: value, tangent, vectors and curvature passed backwards.

Pointwise rules are the derived ones, with ``x`` (or ``x_1``, ``x_2``, …) for the inputs and ``y`` for the
value. What the recursion of a curvature method passes on is a block G (KFRA) or columns c (the others).
"""

from __future__ import annotations

from collections.abc import Collection

import sympy

from ...derivation.piecewise_linear import rule_of
from ...functions.derive import PointwiseRule
from ...graph.layers import Affine
from ...graph.nodes import FixedLinear, Node, Output, Pointwise, Select
from ..notation import (
    Bracket,
    Call,
    Elementwise,
    Fraction,
    Infix,
    Math,
    Name,
    Number,
    Power,
    Sum,
    Transpose,
    Word,
    product,
)
from .blocks import Line

X, Y, H, W, N = Name("x"), Name("y"), Name("h"), Name("W"), Name("N")
COLUMN_METHODS = ("kflr", "kfac", "kfac_rp", "empirical")


def rules(node: Node, methods: Collection[str]) -> list[Line]:
    """The rules of a node, each a line of formulas with what it is."""
    match node.op:
        case Output():
            return [Line("value", Name("z"), X), *_passed(X, Name("z"), None, methods)]
        case Affine():
            return _affine(node.op, methods)
        case Select():
            return _linear(Name("P"), methods)
        case FixedLinear():
            return _linear(Name("A"), methods)
        case Pointwise():
            return _pointwise(rule_of(node), methods)
    return []


def _at(base: str, *of: Name) -> Name:
    """``base`` with names as its subscript: g with x_1 is g[x₁]."""
    return Name(f"{base}[{', '.join(_lowered(name) for name in of)}]")


def _lowered(name: Name) -> str:
    return name.text.replace("_", "").translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _affine(op: Affine, methods: Collection[str]) -> list[Line]:
    bias = [(True, Name("b"))] if op.bias else []
    forward: Math = Sum(((True, product(X, Transpose(W))), *bias))
    terms: list[tuple[bool, Math]] = [(True, product(_at("r", X), Transpose(W)))]
    if op.trainable:
        terms.append((True, product(X, Transpose(Name("V")))))
        terms += [(True, Name("v"))] if op.homogeneous else []
    lines = [
        Line("value", H, forward),
        Line(
            "tangent along [V, v]" if op.homogeneous else "tangent", _at("r", H), Sum(tuple(terms))
        ),
        *_passed(X, H, W, methods),
    ]
    if not op.trainable:
        return lines
    row: Math = Bracket("[", Infix(",", (X, Number("1"))), "]") if op.homogeneous else X
    lines.append(Line("gradient", Name("∇"), _mean(product(_at("g", H), Transpose(row)))))
    if not {"adam", "sgd"} & set(methods):
        lines.append(Line("input factor", Name("Q"), _mean(product(row, Transpose(row)))))
        block = Infix("≈", (Name("H[W]"), Infix("⊗", (_at("G", H), Name("Q")))))
        lines.append(Line("curvature block", block, None))
    return lines


def _linear(matrix: Name, methods: Collection[str]) -> list[Line]:
    meant = "value; each row of P is zero but for one 1" if matrix.text == "P" else "value"
    return [
        Line(meant, Y, product(X, Transpose(matrix))),
        Line("tangent", _at("r", Y), product(_at("r", X), Transpose(matrix))),
        *_passed(X, Y, matrix, methods),
    ]


def _passed(x: Name, y: Name, matrix: Name | None, methods: Collection[str]) -> list[Line]:
    """What a linear node passes back to x: vectors, and the curvature of the method."""

    def times(m: Math) -> Math:
        return m if matrix is None else product(m, matrix)

    lines = [Line("vector passed back", _at("g", x), times(_at("g", y)))]
    if "kfra" in methods:
        block = _at("G", y)
        inner = block if matrix is None else product(Transpose(matrix), block, matrix)
        lines.append(Line("block passed back", _at("G", x), inner))
    if set(COLUMN_METHODS) & set(methods):
        lines.append(Line("columns passed back", _at("c", x), times(_at("c", y))))
        if y == H:
            lines.append(Line("output factor", _at("G", y), _moment_of_columns(_at("c", y))))
    return lines


def _moment_of_columns(c: Math) -> Math:
    return product(Fraction(Number("1"), N), Word("Σ"), Transpose(c), c)


def _pointwise(rule: PointwiseRule, methods: Collection[str]) -> list[Line]:
    inputs = argument_names(rule)
    known = (*zip(rule.arguments, inputs, strict=True), (rule.output, Y))

    def written(e: sympy.Expr) -> Math:
        return Elementwise(e, known)

    several = len(inputs) > 1
    slopes = [Name(f"b[{i + 1}]" if several else "b") for i in range(len(inputs))]
    lines = [Line("value", Y, written(rule.value))]
    for x, b, slope, kept in zip(inputs, slopes, rule.slopes, rule.kept_slopes, strict=True):
        lines.append(Line("slope", Infix("=", (b, derivative(Y, (x,)))), written(slope)))
        if kept != slope:
            lines.append(Line("slope as computed, from what is kept", b, written(kept)))
    for (i, j), second in rule.seconds.items():
        pair = (inputs[i], inputs[j])
        lines.append(Line("second derivative", derivative(Y, pair), written(second)))
    tangents = [Infix("⊙", (b, _at("r", x))) for b, x in zip(slopes, inputs, strict=True)]
    lines.append(Line("tangent", _at("r", Y), Sum(tuple((True, t) for t in tangents))))
    for x, b in zip(inputs, slopes, strict=True):
        lines.append(Line("vector passed back", _at("g", x), Infix("⊙", (_at("g", Y), b))))
    return [*lines, *_pointwise_curvature(inputs, slopes, methods)]


def _pointwise_curvature(
    inputs: list[Name], slopes: list[Name], methods: Collection[str]
) -> list[Line]:
    pairs = list(zip(inputs, slopes, strict=True))
    lines = []
    if "kfra" in methods:
        lines += [
            Line("block passed back", _at("G", *dict.fromkeys((x, y))),
                 Infix("⊙", (_at("G", Y), _mean(product(b, Transpose(c))))))
            for i, (x, b) in enumerate(pairs) for y, c in pairs[i:]
        ]  # fmt: skip
    if set(COLUMN_METHODS) & set(methods):
        lines += [
            Line("columns passed back", _at("c", x), Infix("⊙", (_at("c", Y), b))) for x, b in pairs
        ]
    return lines


def argument_names(rule: PointwiseRule) -> list[Name]:
    """``x``, or ``x_1``, ``x_2``, …"""
    count = len(rule.arguments)
    return [X] if count == 1 else [Name(f"x_{i + 1}") for i in range(count)]


def derivative(y: Name, inputs: tuple[Name, ...]) -> Math:
    """``∂y/∂x``, or ``∂²y/∂x_1∂x_2`` for two inputs."""
    d = Name("∂")
    if len(inputs) == 1:
        return Fraction(product(d, y), product(d, inputs[0]))
    above = product(Power(d, Number("2")), y)
    if inputs[0] == inputs[1]:
        return Fraction(above, product(d, Power(inputs[0], Number("2"))))
    return Fraction(above, product(d, inputs[0], d, inputs[1]))


def _mean(m: Math) -> Math:
    return Call("E", (m,), "[]")
