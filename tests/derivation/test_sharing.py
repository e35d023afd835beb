"""One pair of factors for many places, against all pairs of places by torch.func, in float64.

The oracle shifts the output of every product with the weight in question and sees its input: from the
Jacobians and these come the blocks ``M[s, t]`` and ``X[s, t]`` between all places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import gncompile
from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.derivation.forward import node_rule
from gncompile.derivation.layer_rules import LayerRule
from gncompile.derivation.prices import Prices
from gncompile.errors import CompileError
from gncompile.graph.layers import Affine, LayerOp
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Output, Pointwise
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program
from gncompile.program import operations as ir
from gncompile.program.builder import Value
from gncompile.runtime import memory
from gncompile.runtime.executable import Executable
from gncompile.training.factors import KroneckerFactors

MODES = ("expand", "reduce", "nearest")
WHOLE = Settings(factor_share=1.0, trace_correction=False)


class Recurrence(nn.Module):
    """One layer called at every step, the last time without its bias; the other at several places at once."""

    def __init__(self, d: int = 3, k: int = 2) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(2, d), nn.Linear(d, d), nn.Linear(d, k)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        h = torch.tanh(entered[:, 0])
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.again(h) + entered[:, t])
        return self.out(h) + self.out(torch.sin(F.linear(h, self.again.weight)))


class Tokens(nn.Module):
    """Two layers at every position, mixed by position."""

    def __init__(self, linear: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.linear, self.pooled = linear, pooled

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x) if self.linear else torch.tanh(self.a(x)))
        return h.sum(dim=1) if self.pooled else h


class Tied(nn.Module):
    """An encoder and its transpose, the encoder at two places and the decoder at one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.shift = nn.Linear(5, 3), nn.Parameter(0.1 * torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x)).sum(dim=1)
        return F.linear(code, self.encoder.weight.t(), self.shift)


NETS: Mapping[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "recurrence": (Recurrence, "again", (4, 2)),
    "recurrence's input": (Recurrence, "enter", (4, 2)),
    "tokens": (Tokens, "a", (3, 3)),
    "one token": (Tokens, "a", (1, 3)),
    "last layer": (Tokens, "b", (3, 3)),
}


class Products(TorchFunctionMode):
    """Sees every ``F.linear`` with a weight, or with its transpose, and shifts what it yields."""

    def __init__(self, weight: Tensor, transposed: bool, shifts: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.transposed, self.shifts = weight, transposed, shifts
        self.rows: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if func is not F.linear:
            return y
        other = args[1] is not self.weight and args[1].shape == self.weight.shape[::-1]
        if not (other if self.transposed else args[1] is self.weight):
            return y
        x = args[0].reshape(len(args[0]), -1, args[0].shape[-1])
        bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
        coordinate = x.new_full((*x.shape[:2], 1), float(bias is not None))
        done = sum(row.shape[1] for row in self.rows)
        self.rows.append(torch.cat([x, coordinate], dim=-1).detach())
        if self.shifts is None:
            return y
        return y + self.shifts[:, done : done + x.shape[1]].reshape(y.shape)


def pairs(
    model: nn.Module, layer: str, x: Tensor, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """``M[s, t]``: [S, S, d, d] and ``X[s, t]``: [S, S, c, c] of squared error, ``½ ‖z − y‖²`` a sample."""
    weight = model.get_submodule(layer).weight
    with Products(weight, transposed) as seen:
        model(x)
    rows = torch.cat(seen.rows, dim=1)
    size = weight.shape[1] if transposed else weight.shape[0]

    def moved(shifts: Tensor) -> Tensor:
        with Products(weight, transposed, shifts):
            return model(x).flatten(1).sum(dim=0)

    jacobian = jacrev(moved)(x.new_zeros(len(x), rows.shape[1], size)).detach()  # [K, N, S, d]
    return (
        torch.einsum("knsi,kntj->stij", jacobian, jacobian) / len(x),
        torch.einsum("nsi,ntj->stij", rows, rows) / len(x),
    )


def summed(m: Tensor, x: Tensor) -> Tensor:
    """``Σ_st M[s, t] ⊗ X[s, t]``."""
    d, c = m.shape[-1], x.shape[-1]
    return torch.einsum("stij,stab->iajb", m, x).reshape(d * c, d * c)


def of_mode(mode: str, m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Q and Ḡ of *expand* and *reduce*."""
    places = len(m)
    if mode == "expand":
        return torch.einsum("ssab->ab", x), torch.einsum("ssij->ij", m) / places
    return x.sum(dim=(0, 1)) / places**2, m.sum(dim=(0, 1))


def best(m: Tensor, x: Tensor) -> float:
    """The least distance of any product to the sum: the singular values beyond the first."""
    d, c = m.shape[-1], x.shape[-1]
    rearranged = torch.einsum("stij,stab->ijab", m, x).reshape(d * d, c * c)
    return float(torch.linalg.svdvals(rearranged)[1:].square().sum().sqrt())


@lru_cache
def compiled(kind: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Any]:
    """A model and what ``curvature`` would make of it before it derives factors."""
    torch.manual_seed(0)
    model = kind().double()
    return model, understand(model, "mse", torch.zeros(2, *shape, dtype=torch.float64))


def factors(
    kind: Callable[[], nn.Module],
    x: Tensor,
    method: str = "kflr",
    mode: str = "expand",
    backend: str = "torch",
    **options: Any,
) -> dict[str, KroneckerFactors]:
    """Factors for half the sum of squares, which the oracle has; like ``curvature``, traced once."""
    _, (traced, loss, reader) = compiled(kind, tuple(x.shape[1:]))
    program = factor_program(traced.graph, loss, method, Settings(sharing=mode, **options))
    step = Executable(
        program, traced, loss, backend=backend, dtype=x.dtype, device=x.device, **options
    )
    step.load(*reader.pair(x, torch.zeros(len(x), *traced.graph.output.shape).double()))
    step.run(*program.phases)

    def dense(role: str) -> Tensor:
        name = program.results[role]
        return memory.dense(step.step.value(name), program[name].spec).clone()

    return {
        layer: KroneckerFactors(layer, dense(f"Q.{layer}"), dense(f"G.{layer}"))
        for layer in traced.graph.layers
    }


def batch(shape: tuple[int, ...], samples: int) -> Tensor:
    return torch.randn(
        samples, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "samples"), [("kflr", 5), ("ggn", 5), ("kfra", 1)])
def test_factors_are_those_of_all_pairs(method: str, samples: int, mode: str, net: str) -> None:
    """*nearest* comes within 2 % of the norm of what a singular value decomposition finds, and PSD."""
    kind, layer, shape = NETS[net]
    x = batch(shape, samples)
    m, moments = pairs(compiled(kind, shape)[0], layer, x)
    whole = summed(m, moments)
    for backend in ("torch", "reference"):
        found = factors(kind, x, method, mode, backend)[layer]
        if mode == "nearest":
            distance, scale = float((found.dense() - whole).norm()), float(whole.norm())
            assert best(m, moments) - 1e-12 * scale <= distance <= best(m, moments) + 0.02 * scale
        else:
            q, g = of_mode(mode, m, moments)
            torch.testing.assert_close(found.input, q, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.output, g, rtol=1e-10, atol=1e-12)


def test_blocks_between_uses_are_carried_past_other_layers() -> None:
    """At N = 1 what KFRA carries is exact, so every mode comes out as by columns."""
    x = batch((6, 2), 1)
    for mode in MODES:
        by_blocks, by_columns = (factors(Recurrence, x, m, mode) for m in ("kfra", "kflr"))
        for layer, found in by_blocks.items():
            wanted = by_columns[layer].dense()
            torch.testing.assert_close(found.dense(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["kfra", "kflr"])
@pytest.mark.parametrize(("pooled", "mode"), [(False, "expand"), (True, "reduce")])
def test_deep_linear_nets_have_their_exact_block(pooled: bool, mode: str, method: str) -> None:
    """*expand* where the loss sees the places apart, *reduce* where they are summed before."""

    def kind() -> nn.Module:
        return Tokens(linear=True, pooled=pooled)

    x = batch((4, 3), 6)
    found, model = factors(kind, x, method, mode), compiled(kind, (4, 3))[0]
    for layer in ("a", "b"):
        at = model.get_submodule(layer)
        whole = torch.cat([at.weight, at.bias[:, None]], dim=1).detach()

        def output(w: Tensor, layer: str = layer) -> Tensor:
            changed = {f"{layer}.weight": w[:, :-1], f"{layer}.bias": w[:, -1]}
            return functional_call(model, changed, (x,)).flatten(1)

        jacobian = jacrev(output)(whole).flatten(2)
        exact = torch.einsum("nki,nkj->ij", jacobian, jacobian) / len(x)
        torch.testing.assert_close(found[layer].dense(), exact, rtol=1e-10, atol=1e-12)


def test_nearest_is_exact_where_the_sum_is_one_product() -> None:
    """Inputs that are one another's multiples, seen by a loss through their weighted sum."""
    weights = torch.tensor([1.0, -0.5, 2.0]).double()

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(
                (self.a(torch.stack([x, 2 * x, -x], dim=1)) * weights[:, None]).sum(dim=1)
            )

    x = batch((3,), 5)
    m, moments = pairs(compiled(Weighted, (3,))[0], "a", x)
    whole = summed(m, moments[..., :3, :3])  # without a bias
    for method in ("kfra", "kflr"):
        near, expand = (factors(Weighted, x, method, mode)["a"] for mode in ("nearest", "expand"))
        torch.testing.assert_close(near.dense(), whole, rtol=1e-10, atol=1e-12)
        assert (expand.dense() - whole).norm() > 0.1 * whole.norm()


@lru_cache
def recurrence_of(width: int) -> Callable[[], nn.Module]:
    """A recurrence of a width, the same object whenever it is asked for."""
    return partial(Recurrence, width)


@given(
    steps=st.sampled_from([2, 5]),
    width=st.sampled_from([1, 4]),
    samples=st.integers(1, 4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    method=st.sampled_from(["kfra", "kflr"]),
)
@settings(max_examples=10)
def test_nearest_is_never_further_than_expand(
    steps: int, width: int, samples: int, scale: float, method: str
) -> None:
    """From the pairs that the method itself has: those of KFRA are averaged, at N = 1 exact."""
    samples = 1 if method == "kfra" else samples
    kind, x = recurrence_of(width), scale * batch((steps, 2), samples)
    model = compiled(kind, (steps, 2))[0]
    found = {mode: factors(kind, x, method, mode) for mode in MODES}
    for layer in ("enter", "again", "out"):
        m, moments = pairs(model, layer, x)
        whole = summed(m, moments)
        near, expand = (
            float((found[mode][layer].dense() - whole).norm()) for mode in ("nearest", "expand")
        )
        assert near <= expand * (1 + 1e-9) + 1e-10 * float(whole.norm())
        for mode in MODES:
            for factor in (found[mode][layer].input, found[mode][layer].output):
                torch.testing.assert_close(factor, factor.T, rtol=1e-12, atol=0)
                values = torch.linalg.eigvalsh(factor)
                assert values[0] >= -1e-10 * values[-1].abs() - 1e-300


@pytest.mark.parametrize("mode", ["expand", "reduce"])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e5])
def test_tied_weights_have_the_marginals_of_both_sides(mode: str, scale: float) -> None:
    """Transposed, the moment of the inputs is on the side of Ḡ, and the curvature on that of Q."""
    x = scale * batch((2, 5), 4)
    model = compiled(Tied, (2, 5))[0]
    (m, inputs), (m_tied, inputs_tied) = (
        pairs(model, "encoder", x, back) for back in (False, True)
    )
    q, g = of_mode(mode, m, inputs[..., :5, :5])  # the bias is a layer of its own
    g_tied, q_tied = inputs_tied[0, 0, :3, :3], m_tied[0, 0]
    found = factors(Tied, x, "kflr", mode)["encoder"]
    wanted_q = q * g.trace() + q_tied * g_tied.trace()
    wanted_g = g * q.trace() + g_tied * q_tied.trace()
    torch.testing.assert_close(found.input, wanted_q / wanted_q.trace(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.output, wanted_g, rtol=1e-9, atol=1e-12 * scale**2)


def test_a_transposed_use_of_a_weight_with_a_bias() -> None:
    """``z = (x Wᵀ + b) W``: the gradient, and factors with nothing of the transposed use at the bias."""
    graph = ModelGraph(
        [
            Node("x", Input(0), (), (4,)),
            Node("h", Affine("tied", "W", "b"), ("x",), (3,)),
            Node("z", Affine("tied", "W", None, transposed=True), ("h",), (4,)),
            Node("output", Output(), ("z",), (4,)),
        ]
    )
    x, w, b = batch((4,), 5), batch((4,), 3).requires_grad_(), batch((3,), 1)[0].requires_grad_()
    loss = resolve_loss("mse")
    program = Prices.of(graph, loss, WHOLE, ("kfra",)).program
    step = Executable(
        program, TracedModel(graph, {"W": w, "b": b}, {}), loss, dtype=x.dtype, device=x.device
    )
    step.load((x,), torch.zeros_like(x))
    step.run(*program.phases)
    h = x @ w.T + b
    slopes = torch.autograd.grad((h @ w).square().sum() / 2 / len(x), [w, b])
    wanted = torch.cat([slopes[0], slopes[1][:, None]], dim=1)
    torch.testing.assert_close(step.result("grad.tied"), wanted, rtol=1e-10, atol=1e-12)
    h, w = h.detach(), w.detach()
    rows = torch.cat([x, torch.ones(5, 1).double()], dim=1)
    q, g, g_tied = rows.T @ rows / 5, w @ w.T, h.T @ h / 5
    q_tied = torch.eye(5).double()
    q_tied[-1, -1] = 0
    wanted_q = q * g.trace() + q_tied * g_tied.trace()
    torch.testing.assert_close(
        step.result("Q.tied"), wanted_q / wanted_q.trace(), rtol=1e-9, atol=0
    )
    wanted_g = g * q.trace() + g_tied * q_tied.trace()
    torch.testing.assert_close(step.result("kfra.tied"), wanted_g, rtol=1e-9, atol=0)


SHAPES: Mapping[Any, tuple[int, ...]] = {Recurrence: (5, 2), Tied: (2, 5), Tokens: (3, 3)}


@pytest.mark.parametrize(
    ("kind", "method", "mode"),
    [
        (Recurrence, "kfra", "nearest"),
        (Recurrence, "kflr", "nearest"),
        (Recurrence, "kfra", "reduce"),
        (Tied, "kfra", "expand"),
        (Tied, "kfac_rp", "nearest"),
        (Tokens, "kfra", "nearest"),
    ],
)
def test_steps_learn(kind: type[nn.Module], method: str, mode: str) -> None:
    """Five steps on a share of the batch for factors, of which two have whole inputs."""
    model, _ = compiled(kind, SHAPES[kind])
    model = copy.deepcopy(model)
    x = batch(SHAPES[kind], 40)
    y = torch.randn_like(model(x)).detach()
    options = {"factor_samples": 16, "whole_inputs": 2, "factors_every": 1}
    trainer = gncompile.compile(model, "mse", x, method=method, sharing=mode, **options)
    before = float(trainer.loss(x, y))
    for _ in range(5):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < 0.95 * before
    for found in trainer.factors().values():
        assert found.input.isfinite().all()
        assert torch.linalg.eigvalsh(found.output)[0] >= -1e-9 * found.output.norm()


@pytest.mark.parametrize("mode", ["reduce", "nearest"])
def test_columns_in_chunks_and_draws_are_summed_first(mode: str) -> None:
    x = batch((4, 2), 5)
    whole = factors(Recurrence, x, "kflr", mode)
    chunked = factors(Recurrence, x, "kflr", mode, memory_budget=4000)
    for layer, found in whole.items():
        torch.testing.assert_close(chunked[layer].dense(), found.dense(), rtol=1e-9, atol=1e-12)


def test_a_layer_without_curvature_keeps_its_input_factor() -> None:
    """Ḡ = 0 where all slopes are 0; Q is then *expand*'s, with a trace of one."""

    class Dead(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x) - 1e3)).sum(dim=1)

    x = batch((3, 3), 4)
    near, expand = (factors(Dead, x, "kfra", mode)["a"] for mode in ("nearest", "expand"))
    assert near.output.abs().max() == 0
    torch.testing.assert_close(near.input, expand.input / expand.input.trace(), rtol=1e-12, atol=0)


def test_layers_may_share_in_different_ways() -> None:
    x = batch((3, 3), 4)
    mixed = factors(Tokens, x, "kfra", {"*": "reduce", "b": "nearest"})
    for layer, mode in (("a", "reduce"), ("b", "nearest")):
        wanted = factors(Tokens, x, "kfra", mode)[layer].dense()
        torch.testing.assert_close(mixed[layer].dense(), wanted, rtol=0, atol=0)


def test_options_are_checked() -> None:
    model, x = compiled(Tokens, (3, 3))[0], batch((3, 3), 4)
    with pytest.raises(CompileError, match=r"no layer matches the pattern 'c' of sharing"):
        gncompile.compile(model, "mse", x, sharing={"c": "reduce"})
    with pytest.raises(CompileError, match="unknown sharing 'nearst'.*nearest"):
        gncompile.compile(model, "mse", x, sharing="nearst")
    with pytest.raises(CompileError, match="sharing 'nearest' of layer 'a' takes 1.1 KiB"):
        gncompile.compile(model, "mse", x, sharing="nearest", memory_budget=1000)


def test_a_checkpoint_goes_on_with_its_sharing_and_the_summary_tells(tmp_path: Path) -> None:
    model, x = copy.deepcopy(compiled(Tokens, (3, 3))[0]), batch((3, 3), 6)
    y = torch.randn_like(model(x)).detach()
    trainer = gncompile.compile(model, "mse", x, sharing={"*": "reduce", "a": "nearest"})
    assert "sharing nearest of a\nsharing reduce of b\n" in trainer.summary()
    trainer.step(x, y)
    trainer.save(tmp_path / "a.safetensors")
    resumed = gncompile.Trainer.resume(tmp_path / "a.safetensors", Tokens().double())
    assert resumed.settings == trainer.settings
    assert [trainer.step(x, y) for _ in range(3)] == [resumed.step(x, y) for _ in range(3)]


CHANNELS, TIMES, INTO = 3, 4, 2


@dataclass(frozen=True)
class ChannelsFirst(LayerOp):
    """A convolution of one tap: ``[INTO, TIMES] → [CHANNELS, TIMES]``, places last."""

    places_last: ClassVar[bool] = True

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        return CHANNELS, INTO

    def places_in(self, size: int, sizes: list[int]) -> int:
        return TIMES


@node_rule(ChannelsFirst)
class ChannelsFirstRule(LayerRule[ChannelsFirst]):
    def value(self, inputs: list[Value]) -> Value:
        bias = [self.bias] if self.bias else []
        h = self.builder.emit(ir.Affine(), self.right(inputs[0]), self.weight, *bias)
        index = tuple(t * CHANNELS + c for c in range(CHANNELS) for t in range(TIMES))
        return self.builder.emit(ir.Gather(index), self.builder.emit(ir.Flatten(), h))

    def left(self, g: Value) -> Value:
        return self.builder.transpose(self.builder.unflatten(g, CHANNELS))

    def right(self, x: Value) -> Value:
        return self.builder.transpose(self.builder.unflatten(x, INTO))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["kfra", "kflr", "ggn"])
def test_places_may_vary_faster_than_features(method: str, mode: str) -> None:
    """Two uses with channels first, one without its bias, against the same network with channels last."""
    x, u = sympy.symbols("x u", real=True)
    size, order = TIMES * INTO, torch.arange(TIMES * INTO).reshape(INTO, TIMES).T.flatten()
    out = torch.arange(TIMES * CHANNELS).reshape(CHANNELS, TIMES).T.flatten()
    inputs = batch((size,), 3), batch((size,), 6)[3:]
    values = {"W": batch((INTO,), CHANNELS), "b": batch((CHANNELS,), 1)[0]}
    last = batch((TIMES * CHANNELS,), 2)
    loss, found = resolve_loss("mse"), []
    for first in (True, False):
        made = ChannelsFirst if first else partial(Affine, places=TIMES)
        graph = ModelGraph(
            [
                *(Node(f"x{i}", Input(i), (), (size,)) for i in (0, 1)),
                Node("h0", made("conv", "W", "b"), ("x0",), (TIMES * CHANNELS,)),
                Node("h1", made("conv", "W", None), ("x1",), (TIMES * CHANNELS,)),
                Node("a", Pointwise(sympy.tanh(x) * u, (x, u)), ("h0", "h1"), (TIMES * CHANNELS,)),
                Node("z", Affine("last", "V", None), ("a",), (2,)),
                Node("output", Output(), ("z",), (2,)),
            ]
        )
        parameters = {**values, "V": last if first else last[:, out]}
        program = factor_program(graph, loss, method, Settings(sharing=mode))
        traced = TracedModel(graph, parameters, {})
        step = Executable(program, traced, loss, dtype=last.dtype, device=last.device)
        step.load(inputs if first else tuple(x[:, order] for x in inputs), batch((2,), 3))
        step.run(*program.phases)
        found.append([step.result(f"{kind}.conv").clone() for kind in "QG"])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-13)
