"""Gradients of the user's own inside forward: the derivative, or refused by name and line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gncompile
from gncompile.errors import InternalError, TraceError
from gncompile.frontends import agreement, trace

Function = Callable[[Tensor], Tensor]


class Module(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.fc(x)))


def own(forward: Function, backward: Callable[[Tensor, Tensor], Tensor | None]) -> Function:
    """An autograd.Function of one tensor; ``backward(x, g)``."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor | None:  # type: ignore[override]
            return backward(ctx.saved_tensors[0], g)

    return Own.apply  # type: ignore[return-value]


def hooked(hook: Callable[[Tensor], Tensor | None]) -> Function:
    """Registers a hook on a tensor inside forward."""

    def function(h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(hook)
        return torch.tanh(h)

    return function


def hooked_node(h: Tensor) -> Tensor:
    """The hook is put on autograd's node instead of the tensor."""
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda outputs: tuple(2 * g for g in outputs))
    return torch.tanh(h)


RIGHT: dict[str, Function] = {
    "swish": own(
        lambda x: x * x.sigmoid(),
        lambda x, g: g * x.sigmoid() * (1 + x * (1 - x.sigmoid())),
    ),
    "leaky": own(
        lambda x: torch.where(x > 0, x, 0.1 * x), lambda x, g: torch.where(x > 0, g, 0.1 * g)
    ),
    "checkpoint": lambda h: checkpoint(torch.tanh, h, use_reentrant=False),  # type: ignore[return-value]
    "hook that looks": hooked(lambda g: None),
}

WRONG: dict[str, tuple[Function, str]] = {
    "reversal": (own(lambda x: 1.0 * x, lambda x, g: -g), "Own"),
    "scaled": (own(lambda x: x.view_as(x), lambda x, g: 0.5 * g), "Own"),
    "nothing": (own(lambda x: 1.0 * x, lambda x, g: None), "Own"),
    "straight-through": (own(lambda x: x.clamp(-0.1, 0.1), lambda x, g: g), "Own"),
    "wider window": (own(lambda x: x.clamp(-5, 5), lambda x, g: g * (x.abs() < 6)), "Own"),
    "clipping": (own(lambda x: 1.0 * x, lambda x, g: g.clamp(-100, 100)), "Own"),
    "threshold": (own(lambda x: 1.0 * x, lambda x, g: g * (g.abs() > 1e-3)), "Own"),
    "noise": (own(lambda x: 1.0 * x, lambda x, g: g * torch.rand_like(g)), "Own"),
    "far away only": (own(lambda x: 1.0 * x, lambda x, g: torch.where(x > 20, 0 * g, g)), "Own"),
    "hook": (hooked(lambda g: 2 * g), "Tensor.register_hook"),
    "clipping hook": (hooked(lambda g: g.clamp(-100, 100)), "Tensor.register_hook"),
    "hook on a node": (hooked_node, "Tensor.grad_fn"),
}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT.keys())
def test_backward_that_is_the_derivative(function: Function) -> None:
    torch.manual_seed(0)
    module = Module(function).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    trainer = gncompile.compile(module, "mse", x, method="sgd", tune="off")
    expected = torch.autograd.grad(0.5 * (module(x) - y).square().sum() / 5, module.fc.weight)
    assert_close(trainer.gradients(x, y)["fc.weight"], expected[0], 1e-9)


@pytest.mark.parametrize(("function", "name"), WRONG.values(), ids=WRONG.keys())
def test_backward_of_its_own(function: Function, name: str) -> None:
    torch.manual_seed(0)
    dtype = (torch.float32, torch.float64)[list(WRONG.values()).index((function, name)) % 2]
    module = Module(function).to(dtype)
    with pytest.raises(TraceError, match="gradient of Module is not the derivative") as caught:
        trace(module, torch.zeros(2, 4, dtype=dtype))
    text = str(caught.value)
    assert name in text
    assert "test_own_gradients.py:" in text
    assert "what to do: remove what changes the gradient" in text


def test_module_and_line_of_a_function() -> None:
    inner = Module(own(lambda x: 1.0 * x, lambda x, g: 3 * g))
    module = nn.Sequential(nn.Linear(4, 4), inner, nn.Tanh())
    with pytest.raises(
        TraceError, match=r"autograd.Function own.<locals>.Own \(test_own"
    ) as caught:
        trace(module, torch.zeros(2, 4))
    assert "in module '1', test_own_gradients.py:" in str(caught.value)
    assert not inner._forward_hooks
    assert not torch.is_anomaly_enabled()


def test_function_on_a_weight() -> None:
    halved = own(lambda w: w.clone(), lambda w, g: 0.5 * g)

    class Weighted(Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.fc(x), halved(self.head.weight), self.head.bias)

    with pytest.raises(TraceError, match="gradient of Weighted is not the derivative"):
        trace(Weighted(torch.tanh), torch.zeros(2, 4))


def test_hook_on_a_parameter_inside_forward() -> None:
    class Hooked(Module):
        def forward(self, x: Tensor) -> Tensor:
            self.fc.weight.register_hook(lambda g: 2 * g)
            return self.head(self.fc(x))

    with pytest.raises(TraceError, match="gradient of Hooked is not the derivative"):
        trace(Hooked(torch.tanh), torch.zeros(2, 4))


def test_operator_of_the_users_with_a_name_of_aten() -> None:
    @torch.library.custom_op("gncompile_tests::sin", mutates_args=())
    def sin(x: Tensor) -> Tensor:
        return torch.tanh(x)

    sin.register_fake(torch.empty_like)
    with pytest.raises(TraceError, match=r"gncompile_tests.sin.default is not supported"):
        trace(Module(sin), torch.zeros(2, 4))


INSIDE: dict[str, tuple[Function, str]] = {
    "data": (lambda h: h * h.data, "forward uses Tensor.data"),
    "numpy": (lambda h: h * float(h.detach().numpy()[0, 0]), "forward uses Tensor.numpy"),
    "torch.func": (lambda h: torch.func.grad(lambda t: t.sin().sum())(h), "torch.func"),
    "vmap": (lambda h: torch.vmap(torch.sin)(h), "torch.vmap inside forward has no rule"),
    "float": (lambda h: h * float(h.norm()), "forward takes a number out of a tensor"),
    "reentrant": (lambda h: checkpoint(torch.tanh, h, use_reentrant=True), "use_reentrant=False"),  # type: ignore[dict-item]
    "detach": (lambda h: h + (h.sin() - h).detach(), "detach cannot be compiled"),
    "assignment": (lambda h: h.index_fill(1, torch.tensor([0]), 0.0), "is not supported"),
}


@pytest.mark.parametrize(("function", "part"), INSIDE.values(), ids=INSIDE.keys())
def test_what_no_graph_holds(function: Function, part: str) -> None:
    with pytest.raises(TraceError, match=part) as caught:
        trace(Module(function), torch.ones(2, 4))
    assert "test_own_gradients.py:" in str(caught.value)


def test_autograd_inside_forward() -> None:
    class Slope(Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return torch.autograd.grad(self.fc(x).sin().sum(), x, create_graph=True)[0]

    module = Slope(torch.tanh)
    module(torch.ones(2, 4))  # it works
    with pytest.raises(TraceError) as caught:
        trace(module, torch.ones(2, 4))
    assert "forward uses torch.autograd.grad" in str(caught.value)
    assert "to gncompile.residuals, which takes the network without them" in str(caught.value)
    assert "fails" not in str(caught.value)


def test_wrong_graph_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.Agreement, "graph_at", lambda self, s: torch.ones(3, 2))
    with pytest.raises(InternalError, match="compute different outputs"):
        trace(Module(torch.tanh), torch.zeros(2, 4))


@pytest.mark.parametrize("width", [4, 600])
def test_zero_parameters_tell_as_much(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    values: list[Tensor] = []
    seen = agreement.Agreement.compare_values

    def compare(self: agreement.Agreement, sample: Any, found: Tensor, expected: Tensor) -> None:
        values.append(expected)
        seen(self, sample, found, expected)

    monkeypatch.setattr(agreement.Agreement, "compare_values", compare)
    trace(module, torch.zeros(2, width))
    assert values
    assert all(bool((value != 0).all()) for value in values)
    assert all(not bool(parameter.any()) for parameter in module.parameters())


def test_inputs_that_must_be_positive() -> None:
    plain = Module(lambda h: h)
    assert len(trace(plain, torch.zeros(2, 4)).graph.layers) == len(list(plain.parameters())) / 2
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    positive = nn.Module()
    positive.inner = module
    positive.forward = lambda x: module(x.log())  # type: ignore[method-assign]
    assert list(trace(positive, torch.ones(2, 4)).graph.layers) == ["inner.0"]


def test_compiling_in_threads() -> None:
    results: list[Any] = []
    x = torch.linspace(-1, 1, 24).reshape(3, 8)

    def work(seed: int) -> None:
        try:
            for width in (5, 7):
                generator = torch.Generator().manual_seed(seed)
                module = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2))
                for p in module.parameters():
                    nn.init.normal_(p, generator=generator)
                trainer = gncompile.compile(module, "mse", x, tune="off")
                results.append((trainer.predict(x), module(x)))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(9)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert not errors, errors
    assert len(results) == 10
    for found, expected in results:
        assert_close(found, expected, 1e-5)
