"""What a pointwise node computes, by the name of a declared function where it has one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import lru_cache

from sympy import Expr, Float, Number, Symbol, symbols

from ..derivation.piecewise_linear import rule_of
from ..functions.gates import GATES, Gate
from ..functions.transfer import TransferFunction, transfer, transfer_names
from ..graph.nodes import Node, Pointwise
from .notation import Elementwise, text

DIGITS = 3
"""Digits of numbers in a brief text."""


def function_text(node: Node) -> str:
    """``tanh`` where the node computes a declared function, however written, else its expression."""
    return _declared(node) or text(Elementwise(rule_of(node).value, ()))


def brief_text(nodes: Iterable[Node]) -> str:
    """The functions of nodes for a table, each once: ``tanh, x + y``, with three digits of numbers."""
    return ", ".join(dict.fromkeys(_declared(node) or _anonymous(node) for node in nodes))


def _declared(node: Node) -> str:
    """The shortest name of a declared function that the node computes, or nothing."""
    assert isinstance(node.op, Pointwise)
    value, arguments = rule_of(node).value, node.op.arguments
    functions: list[TransferFunction | Gate] = [transfer(name) for name in transfer_names()]
    known = [
        function.name
        for function in (*functions, *GATES.values())
        if len(function.rule.arguments) == len(arguments)
        and any(
            _renamed(value, order, function.rule.arguments) == function.rule.value
            for order in itertools.permutations(arguments)
        )
    ]
    return min(known, key=len, default="")


def _anonymous(node: Node) -> str:
    """The node's expression in x, y, … in place of its inputs' names."""
    assert isinstance(node.op, Pointwise)
    value, arguments = rule_of(node).value, node.op.arguments
    letters = symbols("x y z")[: len(arguments)]
    if len(arguments) > len(letters):
        letters = symbols(f"x1:{len(arguments) + 1}")
    long = {n: Float(n, DIGITS) for n in value.atoms(Number) if len(str(n)) > DIGITS + 2}
    return text(
        Elementwise(value.xreplace({**dict(zip(arguments, letters, strict=True)), **long}), ())
    )


@lru_cache(maxsize=1024)  # the declared functions have few names for their arguments
def _renamed(value: Expr, arguments: tuple[Symbol, ...], names: tuple[Symbol, ...]) -> Expr:
    return value.xreplace(dict(zip(arguments, names, strict=True)))
