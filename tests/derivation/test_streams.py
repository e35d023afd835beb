"""Streams are ordinary nodes: gradients, tangents and factors of losses on derivatives of a network.

Against autograd of nested ``torch.func.jvp``, and against factors read off a network whose derivatives are
written out by hand, with a second use of every layer.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from comparison import assert_close
from oracles import congruence, output_hessian
from streams import Taylor, derived, laplacian
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp
from uses import factors

from gncompile.base.settings import Settings
from gncompile.frontends.torch_export import trace
from gncompile.graph.dead_nodes import remove_dead_nodes
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import TracedModel
from gncompile.graph.nodes import Node, Output
from gncompile.graph.streams import Derivative, differentiated
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare, step_program, tangent_program
from gncompile.program import operations as ir
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable

EXACT = 1e-11
"""Half a dozen layers in float64; a wrong term is of the size of the result."""
BACKENDS = ("reference", "torch")


class Fork(nn.Module):
    """A sine, a gate and a residual fork."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.out = nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.enter(x))
        return self.out(h + torch.tanh(h) * torch.sigmoid(self.gate(h)))


def problem(model: nn.Module, *wanted: Derivative, samples: int = 4) -> tuple[TracedModel, Tensor]:
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(1)).double()
    found = differentiated(trace(model.double(), x), wanted)
    return found.with_graph(prepare(found.graph)), x


def run(
    program: StepProgram, traced: TracedModel, x: Tensor, y: Tensor, backend: str = "torch"
) -> Executable:
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    done = Executable(program, traced, resolve_loss("mse"), backend=backend, **place)
    for key, state in done.memory.states.items():
        if key.startswith("direction0."):
            state.copy_(direction(traced, key.removeprefix("direction0.")))
    done.load((x,), y)
    done.run(*(["gradient"] if "update" in program.phases else program.phases))
    return done


def direction(traced: TracedModel, layer: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(layer))
    return torch.randn(traced.graph.trained[layer].shape, generator=generator).double()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_and_tangent_of_a_loss_on_streams(backend: str) -> None:
    torch.manual_seed(0)
    model = Fork()
    wanted = (laplacian(2), Derivative.along(0, 1, 1))
    traced, x = problem(model, *wanted)
    y = torch.randn(len(x), traced.graph.output.size).double()
    parameters = dict(model.named_parameters())

    def outputs(p: dict[str, Tensor]) -> Tensor:
        return derived(lambda t: functional_call(model, p, (t,)), x, wanted)

    objective = 0.5 * (outputs(parameters) - y).square().sum() / len(x)
    slopes = dict(zip(parameters, torch.autograd.grad(objective, parameters.values()), strict=True))
    program = step_program(traced.graph, resolve_loss("mse"), Settings(method="sgd"))
    found = run(program, traced, x, y, backend)
    along = {}
    for layer, record in traced.graph.trained.items():
        assert_close(found.result(f"grad.{layer}"), record.joined(slopes), EXACT, layer)
        parts = record.split(direction(traced, layer))
        along |= {n: v.reshape(parameters[n].shape) for n, v in parts.items()}
    at = {name: p.detach() for name, p in parameters.items()}
    expected = jvp(outputs, (at,), (along,))[1]
    found = run(tangent_program(traced.graph), traced, x, y, backend)
    assert_close(found.result("tangent"), expected, EXACT, "tangent")


@pytest.mark.parametrize(("method", "samples"), [("kflr", 3), ("kfra", 1)])
def test_factors_are_those_of_derivatives_written_out(method: str, samples: int) -> None:
    """KFLR at any N, KFRA at N = 1; the streams of a layer are places of a use without bias."""
    torch.manual_seed(0)
    by_hand = Taylor(2, 4, 3, 1).double()
    traced, x = problem(by_hand.plain(), laplacian(2), samples=samples)
    y = torch.randn(samples, 2).double()
    found = run(factor_program(traced.graph, resolve_loss("mse"), method), traced, x, y)
    assert_close(by_hand(x), derived(by_hand.plain(), x, [laplacian(2)]), EXACT, "by hand")
    names = {f"layers.{i}": str(2 * i) for i in range(3)}
    layers = {ours: traced.graph.layers[theirs] for ours, theirs in names.items()}
    for ours, (q, g) in factors(by_hand, "mse", x, y, layers).items():
        layer = names[ours]
        assert_close(found.result(f"Q.{layer}"), q, EXACT, f"Q of {layer}")
        assert_close(found.result(f"G.{layer}"), g, EXACT, f"{method} of {layer}")


@pytest.mark.parametrize("method", ["kflr", "kfra"])
def test_factors_of_a_residual_at_one_sample_are_the_exact_block(method: str) -> None:
    """Of the last layer, which a residual ``Δu`` uses once: Q ⊗ Ḡ is its Gauss-Newton block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    traced, x = problem(model, laplacian(2), samples=1)
    end = Node("output", Output(), ("layer_4__sum1",), (1,))
    traced = traced.with_graph(remove_dead_nodes(traced.graph.replace(end)))
    y = torch.randn(1, 1).double()
    found = run(factor_program(traced.graph, resolve_loss("mse"), method), traced, x, y)

    def outputs(weight: Tensor) -> Tensor:
        u = partial(functional_call, model, {"4.weight": weight})
        return derived(lambda t: u((t,)), x, [laplacian(2)])[:, 1:]

    j = jacrev(outputs)(model[4].weight.detach()).flatten(2)
    top = output_hessian("mse", outputs(model[4].weight), y)
    q, g = found.result("Q.4"), found.result("G.4")
    assert_close(torch.kron(g, q), congruence(j, top).mean(dim=0), EXACT, method)


def test_a_laplacian_costs_two_products_a_layer() -> None:
    """However many dimensions there are, and a row more for each of them."""
    counts, rows = [], []
    for d in (2, 5):
        model = nn.Sequential(
            nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)
        )
        traced = differentiated(trace(model, torch.zeros(1, d)), [laplacian(d)])
        graph = prepare(traced.graph)
        program = step_program(graph, resolve_loss("mse"), Settings(method="sgd"))
        forward = [i for i in program.phase("gradient") if isinstance(i.op, ir.Affine)]
        counts.append(len(forward))
        uses = [node.op for node in traced.graph if isinstance(node.op, Affine)]
        rows.append(sum(op.places for op in uses if op.layer == "2"))
    assert counts == [6, 6]
    assert rows == [2 + 2, 5 + 2]
