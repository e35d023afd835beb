"""A declared network's graph, read off its nodes, is the one that ``torch.export`` leads to."""

from __future__ import annotations

import random

import pytest
import torch
from sympy import Integer, Symbol, exp, tanh
from torch import nn

import gncompile
from gncompile.errors import TraceError
from gncompile.frontends import torch_export
from gncompile.frontends.declared_graph import declared_graph
from gncompile.frontends.declared_network import ARGUMENT, DeclaredNetwork
from gncompile.frontends.network_schema import Concat, Linear, Node, Pointwise, Select, Slice
from gncompile.functions.applied import Function
from gncompile.graph.model_graph import TracedModel

U, V = ARGUMENT, Symbol("v", real=True)
TRANSFERS = (tanh(U), U, U / (1 + exp(-U)), 2 * U, Integer(2))


def random_network(seed: int) -> DeclaredNetwork:
    """Nodes of every kind that read any earlier ones, ended so that all weights are used."""
    draw = random.Random(seed)
    sizes = {"input": 5}
    nodes: list[Node] = []
    functions: dict[str, Function] = {}

    def add(node: Node, size: int) -> None:
        nodes.append(node)
        sizes[node.name] = size

    for number in range(8):
        name, sources = f"n{number}", list(sizes)
        read = draw.choice(sources[-3:])
        alike = [source for source in sources if sizes[source] == sizes[read]]
        kind = draw.randrange(5)
        if kind == 0:
            size, bias = draw.randint(2, 6), draw.random() < 0.7
            add(Linear(name=name, op="linear", inputs=(read,), size=size, bias=bias), size)
            functions[name] = Function(draw.choice(TRANSFERS[:4]), (U,))
        elif kind == 1 and len(alike) > 1:
            pair = (read, draw.choice(alike))
            node = Pointwise(name=name, op="pointwise", inputs=pair, expression="given below")
            functions[name] = Function(draw.choice((U * V, U + tanh(V), U)), (U, V))
            add(node, sizes[read])
        elif kind == 1:
            node = Pointwise(name=name, op="pointwise", inputs=(read,), transfer="given below")
            functions[name] = Function(draw.choice(TRANSFERS), (U,))
            add(node, sizes[read])
        elif kind == 2:
            pair = (read, draw.choice(sources))
            add(Concat(name=name, op="concat", inputs=pair), sum(map(sizes.__getitem__, pair)))
        elif kind == 3:
            start = draw.randint(0, 1)
            stop = draw.randint(start + 1, sizes[read])
            add(Slice(name=name, op="slice", inputs=(read,), start=start, stop=stop), stop - start)
        else:
            index = tuple(draw.randrange(sizes[read]) for _ in range(draw.randint(1, 5)))
            add(Select(name=name, op="select", inputs=(read,), index=index), len(index))
    add(Concat(name="all", op="concat", inputs=tuple(sizes)), sum(sizes.values()))
    add(Linear(name="last", op="linear", inputs=("all",), size=2), 2)
    return DeclaredNetwork(5, nodes, functions, sizes, seed)


def exported(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> TracedModel:
    with monkeypatch.context() as patched:
        patched.setattr(torch_export, "declared_graph", lambda *given: None)
        return torch_export.trace(module, torch.zeros(3, 5))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_exported_graph(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = random_network(seed)
    theirs = exported(module, monkeypatch)
    mine = declared_graph(module, (torch.zeros(3, 5),), "DeclaredNetwork")
    assert mine is not None
    assert list(mine.graph) == list(theirs.graph)  # names, operations, inputs, shapes, origins
    assert mine.graph.to_text() == theirs.graph.to_text()
    assert list(mine.parameters) == list(theirs.parameters)
    assert all(mine.parameters[name] is theirs.parameters[name] for name in mine.parameters)
    assert (mine.constants, mine.name, mine.trunk) == (theirs.constants, theirs.name, theirs.trunk)


def changed(how: str) -> DeclaredNetwork:
    nodes = [Linear(name=name, op="linear", inputs=("input",), size=5) for name in ("one", "two")]
    both = Concat(name="both", op="concat", inputs=("one", "two"))
    module = DeclaredNetwork(5, [*nodes, both], {}, dict.fromkeys(("input", "one", "two"), 5))
    one, two = module.get_submodule("one"), module.get_submodule("two")
    assert isinstance(one, nn.Linear)
    if how == "frozen":
        one.weight.requires_grad_(False)
    elif how == "shared":
        two.weight = one.weight
    elif how == "hooked":
        one.register_forward_hook(lambda *given: 2 * given[-1])
    elif how == "another module":
        module.one = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    elif how == "another forward":
        one.forward = torch.tanh  # type: ignore[method-assign, assignment]
    return module


@pytest.mark.parametrize("how", ["frozen", "shared", "hooked", "another module", "another forward"])
def test_a_network_that_was_changed_is_traced(how: str) -> None:
    module, x = changed(how), torch.zeros(3, 5)
    assert declared_graph(changed(""), (x,), "network") is not None
    assert declared_graph(module, (x,), "network") is None
    if how == "another forward":
        with pytest.raises(TraceError, match="does not depend on the trainable parameters"):
            torch_export.trace(module, x)
    else:
        torch_export.trace(module, x)  # compared with the module itself


def test_compiling_it_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch_export, "_export")
    trainer = gncompile.compile(random_network(1), "mse", torch.zeros(3, 5))
    assert trainer.step(torch.zeros(3, 5), torch.ones(3, 2)).loss > 0
    with pytest.raises(TraceError, match="_export"):
        torch_export.trace(nn.Linear(5, 2), torch.zeros(3, 5))
