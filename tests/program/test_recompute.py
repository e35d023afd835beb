"""Slopes computed again where they multiply: which may be, and that the emitted step is right."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import nn

import gncompile
from gncompile.emit.step_source import emit_step
from gncompile.errors import InternalError
from gncompile.program import operations as ir
from gncompile.program.builder import ProgramBuilder
from gncompile.program.phases import step_phases
from gncompile.program.program_check import check
from gncompile.program.recompute import KEPT, products, recompute
from gncompile.program.step_program import StepProgram
from gncompile.training.trainer import Trainer
from gncompile.tuning.cpu import keys

a, u, v = sympy.symbols("a u v", real=True)


def program(reads_it_too: str = "") -> StepProgram:
    """``g = x b`` and ``r = y b`` for ``b = 1 - h²``, and something else that reads b."""
    builder = ProgramBuilder(step_phases())
    x, y = (builder.leaf("input", str(n), ("N", 4)) for n in range(2))
    with builder.phase("gradient"):
        h = builder.pointwise(sympy.tanh(a), {a: x}, name="h")
        b = builder.pointwise(1 - a**2, {a: h}, name="b")
        values = [builder.pointwise(u * v, {u: x, v: b}, name="g")]
        values.append(builder.pointwise(u * v, {u: y, v: b}, name="r"))
        if reads_it_too == "a moment":
            values.append(builder.emit(ir.Moment(False), b, name="m"))
        elif reads_it_too == "a sum":
            values.append(builder.pointwise(u + v, {u: x, v: b}, name="s"))
        elif reads_it_too == "another slope":
            c = builder.pointwise(2 * a, {a: y}, name="c")
            values.append(builder.pointwise(u * v, {u: c, v: b}, name="s"))
        elif reads_it_too == "the caller":
            values.append(b)
    if reads_it_too == "another phase":
        with builder.phase("quadratic"):
            values.append(builder.pointwise(u * v, {u: h, v: b}, name="s"))
    builder.results = {value.name: value.name for value in values}
    return builder.finish()


def test_the_picture() -> None:
    before = program()
    assert [i.name for i in products(before, before["b"])] == ["g", "r"]
    after = recompute(before, ["b"])
    check(after)
    assert [str(i) for i in after.phase("gradient")] == [
        "h = φ[tanh(a)](x0) : [N, 4]",
        "g = φ[u*(1 - x**2)](x0, h) : [N, 4]",
        "r = φ[u*(1 - x**2)](x1, h) : [N, 4]",
    ]


def test_a_slope_is_in_the_emitted_file_if_it_is_to_be_kept() -> None:
    kept = emit_step(program(), variants={"b": KEPT}).text
    assert "torch.mul(h, h, out=b)" in kept
    assert 'memory.buffer("b"' in kept
    default = emit_step(program()).text
    assert "out=b)" not in default
    assert 'memory.buffer("b"' not in default
    assert default.count("torch.ops.aten.tanh_backward.grad_input(") == 2


def test_a_slope_that_a_moment_reads_stays() -> None:
    assert "torch.mul(h, h, out=b)" in emit_step(program("a moment")).text


@pytest.mark.parametrize(
    "reader", ["a moment", "a sum", "another slope", "the caller", "another phase"]
)
def test_what_something_else_reads_is_kept(reader: str) -> None:
    given = program(reader)
    assert products(given, given["b"]) == []
    with pytest.raises(InternalError, match="cannot be computed again"):
        recompute(given, ["b"])


FUNCTIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}


def compiled(function: str, kept: bool, method: str) -> Trainer:
    torch.manual_seed(0)
    between = FUNCTIONS[function]
    net = nn.Sequential(
        nn.Linear(6, 70), between(), nn.Linear(70, 5), between(), nn.Linear(5, 3)
    ).double()
    x = torch.zeros(30, 6, dtype=torch.float64)
    trainer = gncompile.compile(net, "mse", x, method, tune="off")
    if not kept:
        return trainer
    rows = {"N": 30, "S": 3, **trainer.settings.rows(30)}
    found = keys(trainer.program, rows, torch.float64)
    slopes = [name for name, key in found.items() if key.kernel == f"slope_{function}"]
    assert len(slopes) > 1
    return gncompile.compile(net, "mse", x, method, tune=dict.fromkeys(slopes, KEPT))


@pytest.mark.parametrize(
    ("function", "method"),
    [("tanh", "kfra"), ("tanh", "kflr"), ("sigmoid", "kfac"), ("relu", "kfra")],
)
def test_steps_are_the_same_but_for_rounding(function: str, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, d, generator=generator, dtype=torch.float64) for d in (6, 3))
    ends = []
    for kept in (False, True):
        trainer = compiled(function, kept, method)
        assert ("_backward.grad_input(" in trainer.source) is not kept
        for _ in range(4):
            trainer.step(x, y)
        ends.append(torch.cat([p.flatten() for p in trainer.trained().values()]))
    # float64 rounding, 1e-16, times the condition of the damped inverses, about 1e4, over a few steps.
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_gradient_is_that_of_autograd(function: str) -> None:
    trainer = compiled(function, False, "kfra")
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(30, d, generator=generator, dtype=torch.float64) for d in (6, 3))
    first = next(iter(trainer.model.parameters()))
    (expected,) = torch.autograd.grad(((trainer.model(x) - y) ** 2).sum() / 30, first)
    executable = trainer._executable
    executable.load((x,), y)
    executable.run("gradient")
    found = executable.result("grad.0")[:, :-1]
    # "mse" is half the squared error, summed over outputs; sums of 30 float64 terms.
    torch.testing.assert_close(2 * found, expected, rtol=1e-12, atol=1e-14)
