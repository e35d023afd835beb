"""Oracle 8: weights with many uses, at places, and vectors, in networks that mix every kind of node.

Gradient, tangent, Q and Ḡ of KFLR against ``torch.func`` and the definition of *expand*; KFRA at N = 1 is
exact for every layer that it reaches. Masks of dropout are those that the program drew.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import oracles
import pytest
import torch
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_networks import Mixed, mixed_network
from problems import EVERY_LOSS
from torch import Tensor, nn
from uses import factors, tangent

from gncompile.base.settings import Settings
from gncompile.frontends.torch_export import trace
from gncompile.graph.dropout import Mask, without_dropout
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare, step_program, tangent_program
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable
from gncompile.runtime.memory import dense

LOSSES = ("MSELoss", "bce_with_logits", "cross_entropy")
"""One of each family: a constant Hessian, a diagonal one, a coupled one."""

# A dozen layers in float64 with slopes of size one round to 1e-13 of a tensor's scale; a wrong term is 1e-3.
EXACT = 1e-9


def executed(
    program: StepProgram, traced: TracedModel, loss: str, x: Tensor, y: Tensor, *phases: str
) -> Executable:
    """These phases run once, or all, along a seeded direction."""
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    formula = resolve_loss(EVERY_LOSS[loss].argument)
    # what is emitted may put a mask into the statement that reads it
    backend = "reference" if masks(traced) else "torch"
    run = Executable(program, traced, formula, seed=1, backend=backend, **place)
    generator = torch.Generator().manual_seed(1)
    for key in sorted(run.memory.states):
        if key.startswith("direction0."):
            state = run.memory.states[key]
            state.copy_(torch.randn(state.shape, generator=generator, dtype=state.dtype))
    shape = (traced.graph.output.size,)
    run.load((x.flatten(1).double(),), formula.rows(y, shape, torch.float64))
    wanted = phases or [phase for phase in program.phases if phase != "no_dropout"]
    run.run(*(phase for phase in wanted if phase in program.phases))
    return run


def masks(traced: TracedModel) -> list[tuple[str, Mask]]:
    """The nodes that are masks."""
    return [(node.name, node.op) for node in traced.graph if isinstance(node.op, Mask)]


@contextmanager
def masked(model: nn.Module, traced: TracedModel, run: Executable, x: Tensor) -> Iterator[None]:
    """Inside, dropouts multiply by the masks of a run, in the order in which they are called."""
    called: list[nn.Module] = []
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout | nn.AlphaDropout)]
    hooks = [m.register_forward_hook(lambda m, i, o: called.append(m)) for m in dropouts]
    model(x)
    for hook in hooks:
        hook.remove()
    drawn: dict[int, list[Tensor]] = {}
    for node, op in masks(traced):
        drawn.setdefault(op.draw, []).append(run.step.value(run.program.nodes[node]))
    assert len(drawn) == len(called)
    handles = []
    for draw, module in zip(sorted(drawn), called, strict=True):

        def drop(
            module: nn.Module,
            inputs: tuple[Tensor, ...],
            y: Tensor,
            parts: list[Tensor] = drawn[draw],
        ) -> Tensor:
            m, *s = (part.clone().reshape(y.shape) for part in parts)
            return m * inputs[0] + (s[0] if s else 0.0)

        handles.append(module.register_forward_hook(drop))
    yield
    for handle in handles:
        handle.remove()


@st.composite
def problems(draw: st.DrawFn) -> tuple[Mixed, str, int, int]:
    """A network, a loss, a batch size, and a seed for the batch."""
    rng = draw(st.randoms(use_true_random=False, note_method_calls=False))
    torch.manual_seed(0)
    loss = draw(st.sampled_from(LOSSES))
    mixed = mixed_network(rng, draw(st.integers(1, 4)), draw(st.integers(2, 3)))
    return mixed, loss, draw(st.integers(1, 4)), draw(st.integers(0, 99))


@given(problem=problems())
@settings(max_examples=6)
def test_networks_of_every_kind_of_node(problem: tuple[Mixed, str, int, int]) -> None:
    assert_derived(*problem)


@pytest.mark.parametrize("seed", [5, 11, 23, 42])
def test_recurrences_and_computed_weights_among_them(seed: int) -> None:
    """Gradient and tangent; their factors are of tests of their own."""
    every(seed)


def every(seed: int) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    mixed = mixed_network(draw, draw.randint(2, 4), draw.randint(2, 3), every=True)
    x, loss = mixed.inputs(3, generator), LOSSES[seed % len(LOSSES)]
    traced = trace(mixed.model, x, passes=prepare)
    y = EVERY_LOSS[loss].targets(generator, 3, traced.graph.output.size)
    first_order(mixed, traced, loss, x, y)


def assert_derived(mixed: Mixed, loss: str, samples: int, seed: int) -> None:
    """Everything derived for one network equals brute force."""
    model, generator = mixed.model, torch.Generator().manual_seed(seed)
    x = mixed.inputs(samples, generator)
    traced = trace(model, x, passes=prepare)
    with torch.no_grad():
        outputs = model(x).shape[1]
    y = EVERY_LOSS[loss].targets(generator, samples, outputs)
    formula = resolve_loss(EVERY_LOSS[loss].argument)
    first_order(mixed, traced, loss, x, y)
    for method, count in (("kflr", samples), ("kfra", 1)):
        batch = x[:count], y[:count]
        run = executed(
            factor_program(traced.graph, formula, method, partly=True), traced, loss, *batch
        )
        with masked(model, traced, run, batch[0]):
            argument = EVERY_LOSS[loss].argument
            expected = factors(model, argument, *batch, traced.graph.layers)
        for layer, record in traced.graph.layers.items():
            if record.mirror is not None:
                continue  # both sides of a tied weight share its factors: test_sharing.py
            if f"G.{layer}" not in run.program.results:
                assert method == "kfra", layer
                continue
            q, g = expected[layer]
            assert_close(factor(run, f"Q.{layer}", len(q)), q, EXACT, f"Q of {layer} in {model}")
            assert_close(
                factor(run, f"G.{layer}", len(g)), g, EXACT, f"{method} of {layer} in {model}"
            )


def factor(run: Executable, role: str, size: int) -> Tensor:
    """A factor in full, whatever its structure."""
    name = run.program.results[role]
    found = dense(run.step.value(name), run.program[name].spec)
    assert found.shape == (size, size)
    return found


def first_order(mixed: Mixed, traced: TracedModel, loss: str, x: Tensor, y: Tensor) -> None:
    """The gradient against autograd, the tangent against ``torch.func.jvp``."""
    model, argument = mixed.model, EVERY_LOSS[loss].argument
    program = step_program(traced.graph, resolve_loss(argument), Settings(method="sgd"))
    run = executed(program, traced, loss, x, y, "dropout", "gradient")
    with masked(model, traced, run, x):
        parameters = dict(model.named_parameters())
        objective = oracles.mean_loss(model, argument, x, y)
        slopes = torch.autograd.grad(objective, list(parameters.values()), materialize_grads=True)
    expected = dict(zip(parameters, slopes, strict=True))
    covered = set()
    for layer, record in traced.graph.trained.items():
        covered |= set(record.parameters)
        found = run.result(f"grad.{layer}")
        assert_close(found, record.joined(expected), EXACT, f"gradient of {layer} in {model}")
    for name in set(parameters) - covered:
        assert not bool(expected[name].any()), f"{name} has no layer in {model}"
    run = executed(tangent_program(without_dropout(traced.graph)), traced, loss, x, y)
    direction = {}
    for layer, record in traced.graph.trained.items():
        parts = record.split(run.memory.states[f"direction0.{layer}"])
        direction |= {n: p.reshape(parameters[n].shape) for n, p in parts.items()}
    direction = {name: direction[name] for name in parameters if name in direction}
    along = tangent(model.eval(), x, direction)
    assert_close(run.result("tangent"), along, EXACT, f"tangent in {model}")
