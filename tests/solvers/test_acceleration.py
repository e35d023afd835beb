"""The bent steps of the exact solver against second derivatives by ``torch.func``."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from exact_problems import FORMS, assert_same, curve, dense, direction, shared, small
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.func import functional_call, jvp

import gncompile
from gncompile.errors import CompileError
from gncompile.frontends.torch_export import trace
from gncompile.pipeline import prepare

DAMPING = 1000.0
"""Steps v of some thousandths, so that the next terms of the difference, ``h²v²/12``, are below 1e-5."""
CASES = {
    "more parameters": lambda: small("more parameters"),
    "one sample": lambda: small("one sample"),
    "counts": lambda: small("counts"),
    "tied": lambda: shared("tied"),
    "groups": lambda: shared("groups"),
    "embedding": lambda: shared("embedding"),
}


def second_derivative(model: nn.Module, x: Tensor, v: dict[str, Tensor]) -> Tensor:
    """``d²/dt² z(θ + t v)`` at 0: ``[N, K]``."""
    at, apart = oracles.parameters(model), copy.deepcopy(model)
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def along(t: Tensor) -> Tensor:
        return functional_call(apart, {name: p + t * v[name] for name, p in at.items()}, (x,))

    return jvp(lambda t: jvp(along, (t,), (one,))[1], (zero,), (one,))[1]


@pytest.mark.parametrize("scaled", [False, True], ids=["identity", "diagonal"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_half_the_acceleration_is_added(case: str, form: str, scaled: bool) -> None:
    model, x, y, loss = CASES[case]()
    options = {"damping_scale": "diagonal"} if scaled else {}
    l2 = 0.0 if scaled else 0.1  # a decay is long where S is small
    straight = dense(model, loss, x, y, DAMPING, l2, scaled)
    change = second_derivative(model, x, straight)
    wanted = dense(model, loss, x, y, DAMPING, l2, scaled, change)
    traced = trace(model, x, passes=prepare)
    bent = direction(traced, loss, x, y, DAMPING, form, l2=l2, acceleration=0.75, **options)
    found = {name: 2 * (bent[name] - straight[name]) for name in bent}
    assert_same(found, wanted, 1e-5, form)


def test_too_much_bending_leaves_the_step_straight() -> None:
    model, x, y = curve()
    traced = trace(model, x, passes=prepare)
    straight = dense(model, "mse", x, y, 0.3, 0.0)
    changes = second_derivative(model, x, straight)
    answer = dense(model, "mse", x, y, 0.3, 0.0, change=changes)
    ratio = float(_length(answer) / _length(straight))
    for bound, bends in ((0.5 * ratio, False), (min(1.0, 2 * ratio), True)):
        found = direction(traced, "mse", x, y, 0.3, "primal", acceleration=bound)
        apart = {name: found[name] - straight[name] for name in found}
        assert (float(_length(apart)) > 1e-6 * float(_length(straight))) == bends


def _length(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()]).norm()


def test_a_linear_model_has_straight_steps() -> None:
    """What its second difference is, is rounding, and not to be divided by the square of 0.1 and by λ."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).double(), torch.randn(20, 3, dtype=torch.float64)
    y = 1e3 + x.sum(1, keepdim=True)
    traced = trace(model, x, passes=prepare)
    both = [
        direction(traced, "mse", x, y, 1e-9, "primal", acceleration=bound) for bound in (None, 0.75)
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_it_takes_fewer_jacobians() -> None:
    needed = []
    for bound in (None, 0.75):
        model, x, y = curve()
        y = torch.sin(3 * x) * x
        trainer = gncompile.compile(model, "mse", x, solver="exact", acceleration=bound)
        needed.append(next(n for n in range(500) if trainer.step(x, y).objective < 1e-7))
    assert needed[1] < 0.7 * needed[0], needed


def test_it_is_refused_with_other_solvers() -> None:
    with pytest.raises(CompileError, match="acceleration = 0.5 together with solver='kronecker'"):
        gncompile.compile(
            nn.Linear(2, 1), EVERY_LOSS["mse"].argument, torch.zeros(3, 2), acceleration=0.5
        )
