"""The fusion of pointwise chains, its picture first."""

from __future__ import annotations

import sympy

from gncompile.functions import sigmoid
from gncompile.graph.dead_nodes import remove_dead_nodes
from gncompile.graph.fuse_pointwise import MAX_OPERATIONS, fuse_pointwise
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph
from gncompile.graph.nodes import Input, Node, Op, Output, Pointwise, Select

A, B, C = sympy.symbols("a b c", real=True)


def node(name: str, op: Op, *inputs: str) -> Node:
    return Node(name, op, inputs, (2,))


def pointwise(
    name: str,
    expression: sympy.Expr,
    constants: tuple[tuple[sympy.Symbol, str], ...] = (),
    **inputs: str,
) -> Node:
    """``pointwise("y", A + B, a="h", b="x")``: symbols and the values they stand for."""
    arguments = tuple(sympy.Symbol(symbol, real=True) for symbol in inputs)
    return node(name, Pointwise(expression, arguments, constants), *inputs.values())


X, FC, OUTPUT = (
    node("x", Input()),
    node("h", Affine("fc", "fc.weight"), "x"),
    node("z", Output(), "y"),
)


def shown(graph: ModelGraph) -> dict[str, str]:
    """Every pointwise node as ``name: expression`` in terms of values."""
    graph.check()
    return {n.name: str(n.op.expression) for n in graph if isinstance(n.op, Pointwise)}


def test_picture() -> None:
    """h = affine(x), a = tanh(h), y = a + x becomes h = affine(x), y = x + tanh(h)."""
    before = ModelGraph(
        [X, FC, pointwise("a", sympy.tanh(A), a="h"), pointwise("y", A + B, a="a", b="x"), OUTPUT]
    )
    after = fuse_pointwise(before)
    assert [n.name for n in after] == ["x", "h", "y", "z"]
    assert after["y"].inputs == ("h", "x")
    assert shown(after) == {"y": "x + tanh(h)"}
    assert shown(before) == {"a": "tanh(a)", "y": "a + b"}, "the pass must not change its argument"


def test_a_value_whose_readers_meet_in_one_expression_becomes_a_part_of_it() -> None:
    """Written ``t = tanh(x)``, ``y = sin(t) exp(t)``: ``t`` has two readers until those are composed."""
    fork = [
        pointwise("a", sympy.tanh(A), a="x"),
        pointwise("b", sympy.sin(A), a="a"),
        pointwise("c", sympy.exp(A), a="a"),
        pointwise("y", A * B, a="b", b="c"),
    ]
    assert shown(fuse_pointwise(ModelGraph([X, *fork, OUTPUT]))) == {
        "y": "exp(tanh(x))*sin(tanh(x))"
    }


def test_a_value_with_readers_elsewhere_stays() -> None:
    fork = [
        pointwise("a", sympy.tanh(A), a="x"),
        node("s", Select((1, 0)), "a"),
        pointwise("y", A * B, a="a", b="s"),
    ]
    assert shown(fuse_pointwise(ModelGraph([X, *fork, OUTPUT]))) == {"a": "tanh(x)", "y": "a*s"}


def test_what_doubles_at_every_step_stops_growing() -> None:
    """Thirty residuals ``h + tanh(h)`` would be an expression of 2³⁰ parts."""
    nodes = [X, pointwise("n0", sympy.sin(A), a="x")]
    for i in range(1, 31):
        nodes.append(pointwise(f"t{i}", sympy.tanh(A), a=f"n{i - 1}"))
        nodes.append(pointwise(f"n{i}", A + B, a=f"n{i - 1}", b=f"t{i}"))
    fused = fuse_pointwise(ModelGraph([*nodes, node("z", Output(), "n30")]))
    fused.check()
    sizes = [n.op.expression.count_ops() for n in fused if isinstance(n.op, Pointwise)]
    assert 1 < len(sizes) < 30
    assert max(sizes) <= MAX_OPERATIONS


def test_output_counts_as_a_reader() -> None:
    graph = ModelGraph([X, pointwise("y", sympy.sin(A), a="x"), OUTPUT])
    assert shown(fuse_pointwise(graph)) == {"y": "sin(x)"}


def test_linear_nodes_end_a_chain() -> None:
    swap = node("s", Select((1, 0)), "a")
    graph = ModelGraph(
        [X, pointwise("a", sympy.sin(A), a="x"), swap, pointwise("y", sympy.tanh(A), a="s"), OUTPUT]
    )
    assert shown(fuse_pointwise(graph)) == {"a": "sin(x)", "y": "tanh(s)"}


def test_shared_arguments_appear_once_and_symbols_do_not_clash() -> None:
    """Both inner nodes call their input ``a``, which is also the name of one of them."""
    chain = [
        pointwise("a", A + 1, a="x"),
        pointwise("b", 2 * A, a="x"),
        pointwise("y", A - B, a="b", b="a"),
    ]
    fused = fuse_pointwise(ModelGraph([X, *chain, OUTPUT]))
    assert shown(fused) == {"y": "x - 1"}
    assert fused["y"].inputs == ("x",)


def test_constants_are_merged() -> None:
    scaled = pointwise("a", A * C, constants=((C, "scale"),), a="x")
    again = pointwise("y", A + B * C, constants=((B, "scale"), (C, "shift")), a="a")
    op = fuse_pointwise(ModelGraph([X, scaled, again, OUTPUT]))["y"].op
    assert isinstance(op, Pointwise)
    assert sorted(name for _, name in op.constants) == ["scale", "shift"]
    symbols = {name: symbol for symbol, name in op.constants}
    x = op.arguments[0]
    assert op.expression == x * symbols["scale"] + symbols["scale"] * symbols["shift"]


def test_a_constant_may_have_a_values_name() -> None:
    scaled = pointwise("y", A * C, constants=((C, "x"),), a="x")
    op = fuse_pointwise(ModelGraph([X, scaled, OUTPUT]))["y"].op
    assert isinstance(op, Pointwise)
    assert len(op.expression.free_symbols) == 2


def test_identities_disappear_also_those_that_arise() -> None:
    """``-(-x)`` and a plain copy are both ``x``; the output then reads the input."""
    chain = [pointwise("a", -A, a="x"), pointwise("b", -A, a="a"), pointwise("y", A, a="b")]
    fused = fuse_pointwise(ModelGraph([X, *chain, OUTPUT]))
    fused.check()
    assert [n.name for n in fused] == ["x", "z"]
    assert fused.output.inputs == ("x",)


def test_what_cancels_keeps_one_input_for_the_batch_size() -> None:
    chain = [pointwise("a", -A, a="x"), pointwise("y", A + B, a="a", b="x")]
    fused = fuse_pointwise(ModelGraph([X, *chain, OUTPUT]))
    assert shown(fused) == {"y": "0"}
    assert fused["y"].inputs == ("x",)


def test_long_chain_becomes_one_node() -> None:
    nodes = [X, pointwise("n0", sigmoid(A), a="x")]
    nodes += [pointwise(f"n{i}", A + 1, a=f"n{i - 1}") for i in range(1, 20)]
    fused = fuse_pointwise(ModelGraph([*nodes, node("z", Output(), "n19")]))
    assert shown(fused) == {"n19": "sigmoid(x) + 19"}


def test_fusing_twice_changes_nothing() -> None:
    graph = ModelGraph(
        [X, FC, pointwise("a", sympy.tanh(A), a="h"), pointwise("y", A * B, a="a", b="x"), OUTPUT]
    )
    once = fuse_pointwise(graph)
    assert fuse_pointwise(once) == once


def test_dead_nodes_picture() -> None:
    """x, a = sin(x), output(x) becomes x, output(x)."""
    before = ModelGraph([X, pointwise("a", sympy.sin(A), a="x"), node("z", Output(), "x")])
    assert [n.name for n in remove_dead_nodes(before)] == ["x", "z"]
