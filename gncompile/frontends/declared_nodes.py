"""The nodes of a model file's network: names, sizes and functions that make sense together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path

from sympy import Expr, Symbol

from ..base.plugins import TRANSFERS, load_plugins
from ..data.table_schema import NumericColumn, TableSchema
from ..errors import ExpressionError, ModelFileError, nearest
from ..functions.applied import Function
from ..functions.declarations import check_size
from ..functions.parsing import FUNCTIONS, parse_expression
from ..functions.transfer import transfer_names
from .declared_network import ARGUMENT, INPUT, function_name
from .network_schema import Concat, Linear, Node, Pointwise, Select, Slice
from .table_network import TableNetwork

Functions = Mapping[str, Callable[..., Expr]]

ARGUMENTS = {
    "u": ARGUMENT,
    "x": ARGUMENT,
}  # transfer functions declared in Python are written in x

_EMPTY = TableSchema(
    target="input", numeric=(NumericColumn(name="x"),), outputs=1, standardise=True
)
"""Of a module that has every attribute that a network of a model file can have."""


def check_names(nodes: Sequence[Node], path: Path) -> None:
    """Each node has a name of its own and reads nodes above it."""
    seen = [INPUT]
    taken = {INPUT}
    module = TableNetwork(_EMPTY, True, (), {}, {})
    for number, node in enumerate(nodes, start=1):
        place = f"node {number} ({node.name!r}) of {path}"
        if node.name in taken or hasattr(module, node.name) or iskeyword(node.name):
            kind = "twice" if node.name in seen else "for a node, but it is reserved"
            raise ModelFileError(
                f"the name {node.name!r} is used {kind}", where=place, instead="choose another name"
            )
        for name in node.inputs:
            if name not in seen:
                later = any(name == other.name for other in nodes)
                found = "comes later" if later else f"is unknown. {nearest(name, seen)}".rstrip()
                raise ModelFileError(
                    f"the input {name!r} {found}",
                    where=place,
                    instead=f"read nodes further up: {', '.join(seen)}",
                )
        seen.append(node.name)
        taken |= {node.name, function_name(node)}


def check_all_read(nodes: Sequence[Node], path: Path) -> None:
    """Each node but the last is read; a forgotten one would hold weights that never learn."""
    read = {name for node in nodes for name in node.inputs}
    unread = [node.name for node in nodes[:-1] if node.name not in read]
    if unread:
        raise ModelFileError(
            f"computed but never read: {', '.join(unread)}",
            where=str(path),
            instead="remove them, or put the network's output last",
        )


def sizes_of(nodes: Sequence[Node], input_size: int, path: Path) -> dict[str, int]:
    """Features of every node, the input included."""
    sizes = {INPUT: input_size}
    for node in nodes:
        inputs = [sizes[name] for name in node.inputs]
        problem = _misfit(node, inputs)
        if problem:
            shown = ", ".join(f"{name}: {sizes[name]}" for name in node.inputs) or "none"
            raise ModelFileError(
                f"{problem}\n  inputs: {shown}", where=f"node {node.name!r} of {path}"
            )
        match node:
            case Linear():
                sizes[node.name] = node.size
            case Pointwise():
                sizes[node.name] = inputs[0]
            case Concat():
                sizes[node.name] = sum(inputs)
            case Slice():
                sizes[node.name] = node.stop - node.start
            case Select():
                sizes[node.name] = len(node.index)
    return sizes


def _misfit(node: Node, inputs: list[int]) -> str:
    """What is wrong with the number or the sizes of a node's inputs, or nothing."""
    several = isinstance(node, Pointwise | Concat)
    if not inputs or (len(inputs) > 1 and not several):
        return (
            f"{node.op} takes {'one or more inputs' if several else 'one input'}, not {len(inputs)}"
        )
    if isinstance(node, Pointwise) and len(set(inputs)) > 1:
        return "a pointwise node's inputs differ in size"
    if isinstance(node, Slice) and not node.start < node.stop <= inputs[0]:
        return f"the slice {node.start}:{node.stop} is empty or leaves the input"
    if isinstance(node, Select) and not (node.index and max(node.index) < inputs[0]):
        return "index is empty or leaves the input"
    return ""


def function_of(node: Linear | Pointwise, known: Functions, path: Path) -> Function:
    """The function a linear node ends with, or a pointwise node is."""
    place = f"node {node.name!r} of {path}"
    if isinstance(node, Pointwise) and node.expression is not None:
        symbols = {name: Symbol(name, real=True) for name in node.inputs}
        names = {**symbols, "u": symbols[node.inputs[0]]} if len(symbols) == 1 else symbols
        expression = parse_expression(node.expression, names, known, where=place)
        arguments = tuple(symbols[name] for name in node.inputs)
        check_size(expression, arguments, place)
        return Function(expression, arguments)
    expression = _transfer(str(node.transfer), known, place)
    check_size(expression, (ARGUMENT,), place)
    return Function(expression, (ARGUMENT,))


def _transfer(text: str, known: Functions, place: str) -> Expr:
    """A transfer function: a name, or an expression in ``u``."""
    if not text.isidentifier() or text in ARGUMENTS:
        return parse_expression(text, ARGUMENTS, known, where=place)
    if text not in known:
        load_plugins(TRANSFERS)
    if text not in known:
        declared = [*transfer_names(), *(name for name in known if name not in FUNCTIONS)]
        raise ModelFileError(
            f"unknown transfer function {text!r}. {nearest(text, declared)}".rstrip(),
            where=place,
            instead=f"declare it as [transfer.{text}] with an expression in u",
        )
    try:
        return parse_expression(f"{text}(u)", ARGUMENTS, known, where=place)
    except ExpressionError as error:
        raise ModelFileError(
            f"{text!r} cannot be used as a transfer function: {error}",
            where=place,
            instead="write it as an expression in u",
        ) from error
