"""Residuals of differential equations as a network's outputs: a pass after that of the streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy
from sympy import Expr, Symbol

from ..base.names import free_name
from ..functions.expressions import to_float
from ..functions.faa_di_bruno import Derivative
from ..functions.interpolate import Interpolant
from ..functions.primitives import select
from .dead_nodes import remove_dead_nodes
from .interpolate import Interpolate
from .layers import Parameter
from .model_graph import ModelGraph
from .nodes import Input, Node, Op, Origin, Output, Pointwise, Select

TERM = Symbol("term", real=True)
"""Which term a sample belongs to: 0, 1, …, the first column of ``data``."""


@dataclass(frozen=True)
class LookUp:
    """``T(place_1, …)``: the constant ``grid [1, *size]`` at places, in its points, that expressions give."""

    grid: str
    of: Interpolant
    places: tuple[Expr, ...]


@dataclass(frozen=True)
class Residuals:
    """Expressions, one an output, and what stands behind their symbols.

    ``coordinates`` are columns of the network's input, ``columns`` those of a second input ``data``,
    ``unknowns`` names of trainable parameters of one number, and ``streams`` pairs ``(s, k)``: of the
    network's output ``k`` the derivative ``wanted[s - 1]``, and itself where ``s`` is 0. The places of
    ``lookups`` may hold all of these, and look-ups that stand before them.
    """

    expressions: tuple[Expr, ...]
    coordinates: Mapping[Symbol, int]
    columns: Mapping[Symbol, int]
    unknowns: Mapping[Symbol, str]
    streams: Mapping[Symbol, tuple[int, int]]
    wanted: tuple[Derivative, ...]
    lookups: Mapping[Symbol, LookUp]


def by_term(equations: list[Expr]) -> Expr:
    """The equation of the term that a sample belongs to.

    A ``select``, so that neither value nor slope of another term's equation enters, be it infinite there.

    >>> by_term(list(sympy.symbols("u v")))
    select(1/2 - term, u, v)
    """
    *first, chosen = equations
    for number, equation in reversed(list(enumerate(first))):
        chosen = select(sympy.Rational(2 * number + 1, 2) - TERM, equation, chosen)
    return chosen


def with_residuals(streams: ModelGraph, residuals: Residuals) -> ModelGraph:
    """Residuals of what :func:`~gncompile.graph.streams.differentiate` made of a network.

    before, for ``r = u__x - c x``, ``c`` an unknown, and a network of one output u::

        x = input 0      …      output = output(streams) : [2]

    after::

        x = input 0      …      u__x = select[1 features](streams)      x_2 = select[1 features](x)
        c = parameter[c]        residual = -c x_2 + u__x                output = output(residual) : [1]

    A look-up in r is a node of its own, at places that are nodes like the residual.
    """
    outputs = streams.output.size // (1 + len(residuals.wanted))
    (source,) = streams.output.inputs
    nodes = [node for node in streams if node.name != streams.output.name]
    taken = {node.name for node in nodes} | {streams.output.name}

    def add(label: str, op: Op, inputs: tuple[str, ...], size: int, origin: Origin) -> str:
        name = free_name(label, taken)
        taken.add(name)
        nodes.append(Node(name, op, inputs, (size,), origin))
        return name

    x = streams.inputs[0].name
    data = add("data", Input(1), (), 1 + max([0, *residuals.columns.values()]), Origin())
    values: dict[Expr, str] = {}

    def value(symbol: Symbol) -> str:
        """The node of one feature that a symbol stands for."""
        if symbol not in values:
            here = Origin(code=symbol.name)
            if symbol in residuals.lookups:
                read = residuals.lookups[symbol]
                op = Interpolate(read.grid, 1, read.of)
                at = tuple(map(placed, read.places))
                values[symbol] = add(symbol.name, op, at, 1, here)
            elif symbol in residuals.unknowns:
                name = residuals.unknowns[symbol]
                values[symbol] = add(symbol.name, Parameter(name, name), (), 1, here)
            else:
                if symbol in residuals.streams:
                    stream, output = residuals.streams[symbol]
                    place, of = stream * outputs + output, source
                elif symbol in residuals.coordinates:
                    place, of = residuals.coordinates[symbol], x
                else:
                    place, of = residuals.columns[symbol], data
                values[symbol] = add(symbol.name, Select((place,)), (of,), 1, here)
        return values[symbol]

    def placed(expression: Expr) -> str:
        if isinstance(expression, Symbol):
            return value(expression)
        if expression not in values:
            values[expression] = computed("place", expression)
        return values[expression]

    def computed(label: str, expression: Expr) -> str:
        if expression.is_number:
            return add(label, Select((-1,), to_float(expression)), (x,), 1, Origin())
        symbols = tuple(sorted(expression.free_symbols, key=lambda symbol: symbol.name))
        read = tuple(map(value, symbols))
        return add(label, Pointwise(expression, symbols), read, 1, Origin(code=label))

    rows: list[str] = []
    for number, expression in enumerate(residuals.expressions):
        label = "residual" if len(residuals.expressions) == 1 else f"residual_{number}"
        rows.append(computed(label, expression))
    if len(rows) > 1:
        rows = [add("residuals", Select(tuple(range(len(rows)))), tuple(rows), len(rows), Origin())]
    end = Node(streams.output.name, Output(), (rows[0],), (len(residuals.expressions),), Origin())
    return remove_dead_nodes(ModelGraph([*nodes, end]))
