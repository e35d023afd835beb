"""The oracles against each other: what theory says they share, checked without gncompile."""

from __future__ import annotations

import oracles
import pytest
import torch
from architectures import CHAIN, DEEP_LINEAR, PIECEWISE, SMALL, Act, Linear, networks, normal
from comparison import EXACT, assert_close, difference
from frontier import INPUT, Lin, Part, Point, forward, frontier_kfra
from handwritten import NETWORKS, WIDTH, Handwritten
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import EVERY_LOSS, SQUARED, SUMMED_LOSSES, Case, cases, chain_of
from torch import nn

ONE_SAMPLE = st.just(1)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_the_oracles_objective_is_the_one_torch_computes(name: str) -> None:
    problem = Case(3, (Linear(4),), name, batch=5, seed=1).build()
    z, y = problem.model(problem.x).detach(), problem.y
    F = torch.nn.functional
    expected = {
        "mse": lambda: 0.5 * F.mse_loss(z, y, reduction="sum") / 5,
        "bce_with_logits": lambda: F.binary_cross_entropy_with_logits(z, y, reduction="sum") / 5,
        "cross_entropy": lambda: F.cross_entropy(z, y),
        "cross_entropy(soft)": lambda: F.cross_entropy(z, y),
        "poisson": lambda: F.poisson_nll_loss(z, y, reduction="sum") / 5,
        "huber": lambda: F.huber_loss(z, y, reduction="sum") / 5,
    }
    module = problem.loss if isinstance(problem.loss, nn.Module) else None
    value = module(z, y) if module else expected[name]()
    assert_close(oracles.total_loss(problem.loss, z, y) / 5, value, what=name)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_output_hessian_is_the_finite_difference_of_the_output_gradient(name: str) -> None:
    problem = Case(3, (Linear(4),), name, batch=5, seed=1).build()
    z = problem.model(problem.x).detach()
    direction = normal(torch.Generator().manual_seed(2), *z.shape)
    step = 1e-6
    ahead = oracles.output_gradient(problem.loss, z + step * direction, problem.y)
    behind = oracles.output_gradient(problem.loss, z - step * direction, problem.y)
    H = oracles.output_hessian(problem.loss, z, problem.y)
    product = torch.einsum("nkl,nl->nk", H, direction)
    # Central differences: truncation near step², rounding near 1e-16/step, both below 1e-9.
    assert_close(
        (ahead - behind) / (2 * step), product, rtol=1e-7, what=f"output Hessian of {name}"
    )


@given(case=cases(networks(SMALL, depth=2)))
@settings(max_examples=10)
def test_summed_jacobians_are_each_samples_own(case: Case) -> None:
    model, _, x, _ = case.build()
    for name, J in oracles.jacobians(model, x).items():
        for n in range(len(x)):
            alone = oracles.jacobians(model, x[n : n + 1])[name][0]
            assert_close(J[n], alone, what=f"{name}, sample {n}")


@given(case=cases(networks(SMALL, depth=2), losses=(*SQUARED, *SUMMED_LOSSES, "cross_entropy")))
def test_one_sample_blocks_are_kronecker_products(case: Case) -> None:
    """At N = 1 the parameter-space blocks are ``𝒢 ⊗ Q`` and ``𝓗 ⊗ Q``: two Jacobians agree."""
    model, loss, x, y = case.build()
    x, y = x[:1], y[:1]
    moments = oracles.input_moments(model, x)
    pairs = (
        (oracles.per_sample_ggn, oracles.parameter_ggn),
        (oracles.per_sample_hessian, oracles.parameter_hessian),
    )
    for at_output, in_weights in pairs:
        blocks = in_weights(model, loss, x, y)
        for name, matrix in at_output(model, loss, x, y).items():
            assert_close(torch.kron(matrix[0], moments[name]), blocks[name], what=name)


@given(case=cases(networks(PIECEWISE)))
def test_piecewise_linear_nets_have_equal_hessian_and_gauss_newton_blocks(case: Case) -> None:
    model, loss, x, y = case.build()
    expected = oracles.per_sample_ggn(model, loss, x, y)
    for name, H in oracles.per_sample_hessian(model, loss, x, y).items():
        assert_close(H, expected[name], what=name)


@given(case=cases(networks(DEEP_LINEAR, depth=2), losses=SQUARED))
@settings(max_examples=10)
def test_deep_linear_blocks_do_not_depend_on_the_sample(case: Case) -> None:
    model, loss, x, y = case.build()
    for name, G in oracles.per_sample_ggn(model, loss, x, y).items():
        assert_close(G, G[:1].expand_as(G), what=name)


@given(case=cases(networks(CHAIN), batches=ONE_SAMPLE))
def test_the_chain_recursion_is_exact_for_one_sample(case: Case) -> None:
    (model, loss, x, y), layers, functions = chain_of(case)
    got = oracles.kfra_chain(layers, functions, loss, x, y)
    for G, (name, expected) in zip(got, oracles.ggn(model, loss, x, y).items(), strict=True):
        assert_close(G, expected, what=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_frontier_walks_the_same_function(network: type[Handwritten]) -> None:
    generator = torch.Generator().manual_seed(3)
    model = network(generator)
    x = normal(generator, 6, WIDTH)
    parts = model.structure()
    assert_close(forward(parts, x)[parts[-1].name], model(x).detach(), what=network.__name__)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_frontier_is_exact_for_one_sample_and_not_for_many(network: type[Handwritten]) -> None:
    generator = torch.Generator().manual_seed(4)
    model = network(generator)
    furthest = 0.0
    for batch in (1, 9):
        x = normal(generator, batch, WIDTH)
        y = (model(x) > 0).double().detach()
        top = oracles.output_hessian("bce_with_logits", model(x), y).mean(dim=0)
        got = frontier_kfra(model.structure(), top, x)
        for name, expected in oracles.ggn(model, "bce_with_logits", x, y).items():
            if batch == 1:
                assert_close(got[name], expected, what=f"{network.__name__}.{name}")
            furthest = max(furthest, difference(got[name], expected)[0])
    assert furthest > 1e-3, "the averages lost nothing, so this network tests no averaging"


@given(case=cases(networks(CHAIN), losses=("mse", "cross_entropy", "bce_with_logits")))
@settings(max_examples=10)
def test_the_frontier_is_the_recursion_on_chains(case: Case) -> None:
    (model, loss, x, y), layers, functions = chain_of(case)
    parts: list[Part] = []
    source = INPUT
    for i, (layer, function) in enumerate(zip(layers, functions, strict=True)):
        bias = None if layer.bias is None else layer.bias.detach()
        parts.append(Lin(f"h{i}", {source: layer.weight.detach()}, bias))
        parts.append(Point(f"a{i}", (f"h{i}",), function))
        source = f"a{i}"
    top = oracles.output_hessian(loss, model(x), y).mean(dim=0)
    got = frontier_kfra(parts, top, x)
    for i, expected in enumerate(oracles.kfra_chain(layers, functions, loss, x, y)):
        assert_close(got[f"h{i}"], expected, what=f"layer {i}")


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
@pytest.mark.parametrize("method", ["kfac", "kfac_rp"])
def test_sampled_output_gradients_have_the_output_hessian_as_second_moment(
    loss: str, method: str
) -> None:
    case = Case(3, (Linear(5), Act("tanh"), Linear(3)), loss, batch=4, seed=5)
    model, _, x, y = case.build()
    expected = oracles.ggn(model, loss, x, y)
    for name, J in oracles.jacobians(model, x).items():
        mean, variance = oracles.sampling_moments(loss, method, J, model(x).detach())
        assert_close(mean, expected[name], what=f"{loss}, {method}, {name}")
        assert float(variance.min()) >= -EXACT


@given(case=cases(networks(SMALL, depth=2)))
@settings(max_examples=10)
def test_gauss_newton_products_are_those_of_the_parameter_space_blocks(case: Case) -> None:
    """A direction inside one layer sees that layer's diagonal block only."""
    model, loss, x, y = case.build()
    blocks = oracles.parameter_ggn(model, loss, x, y)
    generator = torch.Generator().manual_seed(case.seed)
    for name, layer in oracles.linear_layers(model).items():
        d = {f"{name}.{k}": normal(generator, *p.shape) for k, p in layer.named_parameters()}
        products, _ = oracles.gauss_newton_products(model, loss, x, y, [d])
        v = torch.cat([p.reshape(layer.out_features, -1) for p in d.values()], dim=1).flatten()
        assert_close(products[0, 0], v @ blocks[name] @ v, what=name)
