"""What must hold on the device before a time is worth reporting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gncompile.training.order import as_read
from gncompile.triton_kernels.congruence import congruence
from gncompile.triton_kernels.settings import Precision
from gncompile.triton_kernels.syrk import syrk

from ..compare import Check, autograd_gradients, largest, pairs, relative_error
from ..compiled import FACTORS, Compiled
from ..problems import Problem
from .handwritten import SETTINGS, HandwrittenKFRA
from .ours import Engine
from .rates import tf32

ALLOWED = {"highest": 1e-4, "high": 1e-4, "medium": 2e-2}
"""Rounding of eight layers in float32 is near 1e-6; TF32 cuts each operand by up to 1e-3 a layer."""
AMPLIFIED = {"highest": 1e-2, "high": 1e-2, "medium": 0.5}
"""Of a step: the inverses pass rounding on enlarged by the condition of the damped factors, up to 1e3."""
STEPS = 3


def checks(problem: Problem, engine: Engine) -> Iterator[Check]:
    """Gradient, factors and steps at the size that is timed, against float64 by other code."""
    with tf32(False):
        ours = {
            method: Compiled.of(problem, method, engine.backend, precision=engine.precision)
            for method in ("kfra", "kfac")
        }
        for compiled in ours.values():
            compiled.run(*FACTORS)
        allowed = ALLOWED[engine.precision]
        expected = autograd_gradients(problem, torch.float64)
        for method, compiled in ours.items():
            error = largest(compiled.gradients(), expected)
            yield Check(f"gradient of the {method} program, against autograd", error, allowed)
        exact = Compiled.of(problem, "kfra", "reference", torch.float64)
        exact.run(*FACTORS)
        error = largest(pairs(ours["kfra"]), pairs(exact))
        yield Check("KFRA factors, against the reference backend in float64", error, allowed)
        error = largest(inputs_of(ours["kfac"]), inputs_of(exact))
        yield Check("KFAC's input factors, against the same", error, allowed)
        for refresh in (1, 5):
            error = steps_apart(problem, engine, refresh)
            name = f"{STEPS} steps, refresh every {refresh}, against those by hand in float64"
            yield Check(name, error, AMPLIFIED[engine.precision])


def inputs_of(compiled: Compiled) -> dict[str, Tensor]:
    """Q of every layer."""
    return {name: m for name, m in pairs(compiled).items() if name.startswith("Q")}


def steps_apart(problem: Problem, engine: Engine, refresh: int) -> float:
    """How far ours is from the step by hand after a few steps, relative to the way gone."""
    by_hand = problem.fresh(torch.float64)
    steps = HandwrittenKFRA(by_hand, refresh)
    ours = engine.trainer(problem, refresh_every=refresh, **SETTINGS)
    for _ in range(STEPS):
        x, _ = as_read(ours, *problem.pair())
        steps.step(x.double(), x.double())
        ours.step(*problem.pair())
    start = [p.detach().double() for p in problem.model.parameters()]
    moved, expected = (
        torch.cat(
            [
                (p.detach().double() - s).flatten()
                for p, s in zip(m.parameters(), start, strict=True)
            ]
        )
        for m in (ours.model, by_hand)
    )
    return relative_error(moved, expected)


ODD = 1001, 257
"""Samples and width that are a multiple of nothing."""


def kernel_checks(
    device: torch.device, precisions: Mapping[str, tuple[torch.dtype, Precision]]
) -> Iterator[Check]:
    """The factor kernels alone, in every precision that is timed."""
    samples, size = ODD
    generator = torch.Generator().manual_seed(0)
    a, w = (torch.randn(n, size, generator=generator).to(device) for n in (samples, size))
    g = (w @ w.T) / size
    for words, (dtype, precision) in precisions.items():
        b, v, m = (t.to(dtype) for t in (a, w, g))
        yield from _kernels_alone(b, v, m, precision, words)


def _kernels_alone(
    b: Tensor, w: Tensor, g: Tensor, precision: Precision, words: str
) -> Iterator[Check]:
    is_float = b.dtype == torch.float32
    allowed = 1e-5 if precision == "high" or not is_float else ALLOWED[precision]
    # What bfloat16 operands lose is theirs; the product G W is stored in their type too.
    allowed_step = allowed if is_float else 2e-2
    samples = len(b)
    exact_b, exact_w, exact_g = b.double(), w.double(), g.double()
    gram = exact_b.T @ exact_b / samples
    error = computed(lambda out: syrk(b, out, alpha=1 / samples, precision=precision), gram)
    yield Check(f"syrk, {words}", error, allowed)
    error = computed(
        lambda out: congruence(w, g, b, out, precision=precision),
        (exact_w.T @ exact_g @ exact_w) * gram,
    )
    yield Check(f"congruence, {words}", error, allowed_step)


def computed(kernel: Callable[[Tensor], object], expected: Tensor) -> float:
    """The relative error of what ``kernel`` writes into a new float32 matrix; NaN where it writes nothing."""
    out = torch.full_like(expected, float("nan"), dtype=torch.float32)
    kernel(out)
    return relative_error(out, expected)


def odd_batch(problem: Problem) -> Problem:
    """The same network on a batch that leaves most tiles partly empty, and F and Q smaller than N."""
    return replace(problem, x=problem.x[: max(1, problem.batch - 117)])
