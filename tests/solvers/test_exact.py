"""The exact solver against dense solutions with ``torch.func``'s Jacobian, and SciPy's Levenberg-Marquardt."""

from __future__ import annotations

import copy
from pathlib import Path

import oracles
import pytest
import torch
from architectures import normal
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_networks import mixed_network
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import gncompile
from gncompile.base.settings import Settings
from gncompile.errors import BatchError, CompileError
from gncompile.frontends.torch_export import trace
from gncompile.losses import resolve_loss
from gncompile.pipeline import prepare, step_program
from gncompile.runtime.executable import Executable

FORMS = ("primal", "dual")
LOSSES = ("MSELoss", "bce_with_logits", "cross_entropy", "poisson", "huber")
# Of condition (tr G + λ) / λ up to 1e5, float64 leaves 1e-10 of a solution's scale.
EXACT = 1e-9


def dense(model: nn.Module, loss: str, x: Tensor, y: Tensor, damping: float, l2: object) -> dict[str, Tensor]:
    """``−(G + λ + η)⁻¹ ∇`` by parameter name, all formed with torch.func."""
    at = oracles.parameters(model)
    argument = EVERY_LOSS[loss].argument
    z, gradient = model(x).detach(), oracles.gradient(model, argument, x, y)
    apart = copy.deepcopy(model)  # torch.func leaves its tensors in a module that is called twice
    j = jacrev(lambda p: functional_call(apart, p, (x,)))(at)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    flat = torch.cat([j[name].flatten(2) for name in names], dim=2)
    hessian = oracles.output_hessian(argument, z, y)
    g = torch.einsum("nkp,nkl,nlq->pq", flat, hessian, flat) / len(x)
    etas = torch.cat([
        at[name].new_full((at[name].numel(),), Settings.from_options(l2=l2).l2_of(name))
        for name in names
    ])
    theta = torch.cat([at[name].flatten() for name in names])
    slope = torch.cat([gradient[name].flatten() for name in names]) + etas * theta
    delta = -torch.linalg.solve(g + torch.diag(etas + damping), slope)
    parts = delta.split([at[name].numel() for name in names])
    return {name: part.view_as(at[name]) for name, part in zip(names, parts, strict=True)}


def direction(
    model: nn.Module, loss: str, x: Tensor, y: Tensor, damping: float, form: str,
    backend: str = "torch", l2: object = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Δ of a compiled step by parameter name."""
    traced = trace(model, x, passes=prepare)
    formula = resolve_loss(EVERY_LOSS[loss].argument)
    options = Settings.from_options(solver="exact", exact_form=form, damping=damping, l2=l2)
    program = step_program(traced.graph, formula, options)
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    run = Executable(program, traced, formula, backend=backend, **place)
    run.load((x.flatten(1).double(),), formula.rows(y, (traced.graph.output.size,), torch.float64))
    wanted = ("gradient", "rows_begin", "rows", "direction", "quadratic", "update")
    before = oracles.parameters(model)
    before = {name: p.clone() for name, p in before.items()}
    run.run(*(phase for phase in wanted if phase in program.phases))
    states = run.memory.states
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    found = {}
    for name, layer in traced.graph.layers.items():
        step = states[f"step.{name}"] / states["step_sizes"][-1]
        found |= {key: part.reshape(before[key].shape) for key, part in layer.split(step).items()}
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, what: str) -> None:
    """As vectors: a parameter that hardly moves has the rounding of the others."""
    flat = [torch.cat([d[name].flatten() for name in sorted(found)]) for d in (found, expected)]
    assert_close(*flat, rtol, what)


@st.composite
def problems(draw: st.DrawFn) -> tuple[nn.Module, str, Tensor, Tensor, object]:
    """A network of any kind of node, a loss, a batch and L2 coefficients."""
    rng = draw(st.randoms(use_true_random=False, note_method_calls=False))
    torch.manual_seed(0)
    mixed = mixed_network(rng, draw(st.integers(1, 3)), draw(st.integers(2, 3)))
    model, generator = mixed.model.eval(), torch.Generator().manual_seed(draw(st.integers(0, 99)))
    loss, samples = draw(st.sampled_from(LOSSES)), draw(st.integers(1, 4))
    x = mixed.inputs(samples, generator)
    with torch.no_grad():
        outputs = model(x).shape[1]
    y = EVERY_LOSS[loss].targets(generator, samples, outputs)
    l2 = draw(st.sampled_from((0.0, 0.1, {"*weight": 0.05}, {"*bias": 0.2, "*weight": 0.03})))
    return model, loss, x, y, l2


@given(problem=problems())
@settings(max_examples=8)
def test_the_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    expected = dense(model, loss, x, y, 1e-2, l2)
    for form in FORMS:
        found = direction(model, loss, x, y, 1e-2, form, l2=l2)
        assert_same(found, expected, EXACT, f"{form} of {loss}, l2={l2}, in {model}")
