"""Oracle 4: KFRA at batch sizes above one, by value, on chains, single rules and hand-written DAGs."""

from __future__ import annotations

import oracles
import pytest
import torch
from architectures import (
    ACTIVATIONS,
    CHAIN,
    Act,
    Fork,
    Linear,
    Op,
    Pool,
    Scale,
    Slice,
    networks,
    normal,
)
from comparison import assert_close, assert_outputs
from frontier import frontier_kfra
from handwritten import NETWORKS, WIDTH, Handwritten
from hypothesis import given, settings
from problems import LOSSES, Case, cases, chain_of

import gncompile

TANH, SIGMOID, SOFTPLUS = (Act("tanh"),), (Act("sigmoid"),), (Act("softplus"),)
LOW, HIGH = Slice(0, 3, 1), Slice(3, 6, 1)
NODES: dict[str, Op] = {
    **{name: Act(name) for name in ACTIVATIONS},
    "linear": Linear(5),
    "linear without bias": Linear(7, bias=False),
    "slice": Slice(1, 6, 2),
    "scale and shift": Scale(),
    "mean": Pool(2, "mean"),
    "average pool": Pool(3, "avg_pool"),
    "concatenation": Fork("cat", (TANH, SIGMOID, ())),
    "concatenation of slices": Fork("cat", ((HIGH,), (LOW, *TANH))),
    "sum": Fork("sum", ((), TANH)),
    "sum of three": Fork("sum", (SOFTPLUS, TANH, SIGMOID)),
    "product": Fork("product", ((), SIGMOID)),
    "product of three": Fork("product", (TANH, SIGMOID, SOFTPLUS)),
    "square": Fork("product", ((), ())),
    "gate of two halves": Fork("product", ((LOW,), (HIGH, *SIGMOID))),
    "product of layers": Fork("product", ((Linear(4),), (Linear(4),))),
}


@given(case=cases(networks(CHAIN)))
@settings(max_examples=25)
def test_chains_follow_the_ten_line_recursion(case: Case) -> None:
    (model, loss, x, y), layers, functions = chain_of(case)
    blocks = oracles.kfra_chain(layers, functions, loss, x, y)
    expected = dict(zip(oracles.linear_layers(model), blocks, strict=True))
    assert_outputs(gncompile.curvature(model, loss, x, y, method="kfra"), expected)


@pytest.mark.parametrize("node", NODES)
def test_each_rule_is_the_average_over_samples(node: str) -> None:
    """Below one node, ``Ḡ = E[J_nᵀ M J_n]`` with ``M = Wᵀ E[𝓗_L] W`` from the layer above it."""
    chain = (Linear(6), NODES[node], Linear(3))
    model, loss, x, y = Case(5, chain, "bce_with_logits", batch=9, seed=6).build()
    first, rule, last = model.children()
    W = last.get_parameter("weight").detach()
    M = W.T @ oracles.output_hessian(loss, model(x), y).mean(dim=0) @ W
    expected = oracles.averaged_rule(rule, first(x).detach(), M)
    factors = gncompile.curvature(model, loss, x, y, method="kfra")
    assert_close(factors["0"].output, expected, what=f"rule of {node}")


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
@pytest.mark.parametrize("network", NETWORKS)
def test_hand_written_networks_follow_the_brute_force_frontier(
    network: type[Handwritten], loss: str, backend: str
) -> None:
    generator = torch.Generator().manual_seed(7)
    model = network(generator)
    x = normal(generator, 10, WIDTH)
    z = model(x).detach()
    y = LOSSES[loss].targets(generator, *z.shape)
    top = oracles.output_hessian(loss, z, y).mean(dim=0)
    blocks = frontier_kfra(model.structure(), top, x)
    expected = {name: blocks[name] for name in oracles.linear_layers(model)}
    factors = gncompile.curvature(model, loss, x, y, method="kfra", backend=backend)
    assert_outputs(factors, expected)
