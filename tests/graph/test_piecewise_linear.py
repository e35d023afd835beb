"""The theorem on piecewise-linear networks: Hessian blocks by torch, and what ``explain`` says of a model."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
import torch
from architectures import normal
from comparison import assert_tensors
from torch import Tensor, nn
from torch.nn import functional

from gncompile.base.settings import Settings
from gncompile.derivation.piecewise_linear import theorem
from gncompile.explain.explain import explain
from gncompile.frontends import trace
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import transfer, transfer_names
from gncompile.losses import Loss, resolve_loss
from gncompile.pipeline import prepare, step_program

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "hardtanh": functional.hardtanh,
    "hardsigmoid": lambda h: functional.relu6(h + 3) / 6,
    "hardshrink": functional.hardshrink,
    "softshrink": functional.softshrink,
    "threshold": lambda h: functional.threshold(h, 0.2, -0.4),
    "abs": torch.abs,
    "two pieces of two": lambda h: torch.maximum(h, 0.3 * h.flip(1)),
}


class Net(nn.Module):
    """Two hidden layers of the same function, with a residual around the second."""

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        self.function = function
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            # small enough for probabilities away from 0 and 1, where the Hessian would vanish
            parameter.data = 0.5 * normal(generator, *parameter.shape)

    def forward(self, x: Tensor) -> Tensor:
        a = self.function(self.first(x))
        z: Tensor = self.last(a + self.function(self.second(a)))
        return z


def problem(loss: str, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    x = normal(generator, 6, 4)
    if loss == "cross_entropy":
        return x, torch.randint(3, (6,), generator=generator)
    return x, torch.rand(6, 3, generator=generator, dtype=torch.float64)


def least_eigenvalues(net: Net, loss: str, seed: int) -> dict[str, float]:
    """The least eigenvalue of each layer's Hessian block, relative to the largest in size."""
    blocks = oracles.parameter_hessian(net, loss, *problem(loss, seed))
    spectra = {name: torch.linalg.eigvalsh(H.detach()) for name, H in blocks.items()}
    return {name: float(e.min() / e.abs().max()) for name, e in spectra.items()}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce_with_logits"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_hessian_blocks_are_gauss_newton_and_positive_semidefinite(name: str, loss: str) -> None:
    """Eigenvalues of float64 matrices of size 30 are good to 1e-14 of the largest."""
    for seed in range(2):
        net, (x, y) = Net(FUNCTIONS[name], seed), problem(loss, seed)
        assert_tensors(
            oracles.parameter_hessian(net, loss, x, y), oracles.parameter_ggn(net, loss, x, y)
        )
        assert min(least_eigenvalues(net, loss, seed).values()) > -1e-12


def test_a_curved_function_has_indefinite_blocks() -> None:
    """The counterexample: tanh, where the first layers' blocks have clearly negative eigenvalues."""
    least = least_eigenvalues(Net(torch.tanh), "mse", seed=0)
    assert least["first"] < -1e-2
    assert least["second"] < -1e-2
    assert least["last"] > -1e-12  # nothing curved follows it


@pytest.mark.parametrize("name", transfer_names())
def test_what_is_called_piecewise_linear_has_no_second_derivative(name: str) -> None:
    """By differences of three random points: zero on a straight piece, far from it on a curved one."""
    function = transfer(name)
    h = 3 * normal(torch.Generator().manual_seed(1), 400)
    step = 1e-3

    def at(x: Tensor) -> Tensor:
        return evaluate(function.expression, {function.argument: x}).expand_as(x)

    bend = (at(h + step) - 2 * at(h) + at(h - step)).abs() / step**2
    straight = float((bend < 1e-8).double().mean())
    # a kink or a jump falls between three neighbouring points of 400 in a few cases
    assert (straight > 0.95) == function.rule.piecewise_linear


# What is said of a model ----------------------------------------------------------------------------------


class Of(nn.Module):
    """``forward`` given as a function of the layers ``u``, ``v``, ``top`` and the input."""

    def __init__(self, forward: Callable[[Of, Tensor], Tensor]) -> None:
        super().__init__()
        self.u, self.v, self.top = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.given = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x)


def said(forward: Callable[[Of, Tensor], Tensor], loss: str | Loss = "mse") -> str:
    graph = prepare(trace(Of(forward), torch.zeros(2, 4)).graph)
    return theorem(graph, resolve_loss(loss))


def rectified(m: Of, x: Tensor) -> Tensor:
    z: Tensor = m.top(torch.relu(m.v(functional.leaky_relu(m.u(x)))))
    return z


def test_conditions_that_hold_and_where_the_network_may_be_flat() -> None:
    text = said(rectified, "cross_entropy")
    assert (
        "The conditions hold.\nSlopes vanish on whole regions, so plateaus are possible: relu."
        in text
    )


def test_no_plateaus_without_flat_pieces() -> None:
    assert said(lambda m, x: m.top(m.v(m.u(x).abs()))).endswith("The conditions hold.")


def test_a_function_of_the_data_is_a_constant() -> None:
    """``h sin(x)`` is linear in all parameters, though not in the input."""
    assert "The conditions hold." in said(lambda m, x: m.top(m.v(m.u(x) * torch.sin(x))))


def test_a_product_bends_jointly_but_spares_the_layer_on_either_side() -> None:
    text = said(lambda m, x: m.top(m.u(x) * m.v(x)))
    assert "mul = u*v, ∂²/∂u∂v = 1" in text
    assert "For the layers u, v, top nothing follows that is curved in them alone" in text


def test_a_spared_layers_hessian_is_its_gauss_newton_block() -> None:
    """The product again, by torch: both blocks agree for each layer apart."""
    model = Of(lambda m, x: m.top(m.u(x) * m.v(x))).double()
    generator = torch.Generator().manual_seed(2)
    x, y = normal(generator, 5, 4), normal(generator, 5, 2)
    assert_tensors(
        oracles.parameter_hessian(model, "mse", x, y), oracles.parameter_ggn(model, "mse", x, y)
    )


def test_a_product_of_one_layer_with_itself_spares_only_what_follows() -> None:
    def squared(m: Of, x: Tensor) -> Tensor:
        h = m.u(x)
        z: Tensor = m.top(torch.relu(h) * m.v(h))
        return z

    text = said(squared)
    assert "For the layers v, top nothing follows that is curved in them alone" in text


def test_the_curved_node_is_named_with_its_place() -> None:
    text = said(lambda m, x: m.top(m.v(torch.relu(m.u(x))).tanh()))
    assert "tanh = tanh(v), ∂²/∂v² = " in text
    assert "test_piecewise_linear.py:" in text
    assert "For the layers top nothing follows" in text


@pytest.mark.parametrize(
    ("loss", "consequence"),
    [
        ("huber", "So the network meets them, and what they imply holds where the loss does too."),
        ("poisson_nll", "The conditions hold."),
    ],
)
def test_what_the_loss_leaves_open(loss: str, consequence: str) -> None:
    assert consequence in said(rectified, loss)


def test_explain_says_it() -> None:
    traced = trace(Of(rectified), torch.zeros(2, 4))
    traced = traced.with_graph(prepare(traced.graph))
    loss, settings = resolve_loss("mse"), Settings.from_options()
    text = explain(traced, loss, settings, step_program(traced.graph, loss, settings))
    assert text.endswith(theorem(traced.graph, loss))
