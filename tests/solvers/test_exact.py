"""The exact solver against dense solutions with ``torch.func``, and SciPy's Levenberg-Marquardt."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import torch
from exact_problems import (
    EXACT,
    FORMS,
    SHARED,
    assert_same,
    curve,
    dense,
    direction,
    problems,
    shared,
    small,
)  # fmt: skip
from hypothesis import given, settings
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import gncompile
from gncompile.base.settings import Settings
from gncompile.errors import BatchError, CompileError, OptionWarning
from gncompile.frontends.torch_export import trace
from gncompile.pipeline import prepare


@given(problem=problems())
@settings(max_examples=1)
def test_the_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    expected = dense(model, loss, x, y, 1e-2, l2)
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-2, form, l2=l2)
        assert_same(found, expected, EXACT, f"{form} of {loss}, l2={l2}, in {model}")


@pytest.mark.parametrize("l2", [0.0, {"*bias": 0.2, "*weight": 0.03}])
@pytest.mark.parametrize("name", SHARED)
def test_weights_with_several_uses(name: str, l2: object) -> None:
    model, x, y, loss = shared(name)
    expected, traced = dense(model, loss, x, y, 1e-2, l2), trace(model, x, passes=prepare)
    for form in FORMS:
        assert_same(direction(traced, loss, x, y, 1e-2, form, l2=l2), expected, EXACT, form)


SMALL = ("more parameters", "fewer parameters", "one sample", "dead units", "counts")


@pytest.mark.parametrize("name", SMALL)
def test_the_forms_and_backends_agree(name: str) -> None:
    model, x, y, loss = small(name)
    expected, traced = dense(model, loss, x, y, 1e-3, 0.0), trace(model, x, passes=prepare)
    for form, backend in (("primal", "torch"), ("dual", "torch"), ("dual", "reference")):
        found = direction(traced, loss, x, y, 1e-3, form, backend)
        assert_same(found, expected, EXACT, f"{form} {backend}")


@pytest.mark.parametrize("name", ["more parameters", "fewer parameters", "dead units"])
def test_dampings_far_below_rounding(name: str) -> None:
    """Without damping it is the pseudo-inverse's step, the least that solves the linear problem best."""
    model, x, y, loss = small(name)
    at, z = oracles.parameters(model), model(x).detach()
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(at)
    rows = torch.cat([jacobian[n].flatten(2) for n in at], dim=2).flatten(0, 1)
    least = -torch.linalg.pinv(rows, rtol=1e-10) @ (z - y).flatten()
    parts = least.split([p.numel() for p in at.values()])
    expected = {n: part.view_as(p) for (n, p), part in zip(at.items(), parts, strict=True)}
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-25, form)
        # the condition of G is 1e7 at most, and solving with G squares that of J
        assert_same(found, expected, 1e-8, form)


def test_it_converges_to_the_point_of_scipy() -> None:
    least_squares = pytest.importorskip("scipy.optimize").least_squares
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="exact", damping_bounds=(1e-12, 1e4))
    for _ in range(150):
        stats = trainer.step(x, y)
    reached = torch.cat([p.detach().flatten() for p in model.parameters()])
    shapes = [(name, p.shape) for name, p in model.named_parameters()]

    def residuals(theta: object) -> object:
        parts = torch.as_tensor(theta).split([shape.numel() for _, shape in shapes])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return (functional_call(model, given, (x,)) - y).detach().flatten().numpy()

    found = least_squares(residuals, reached.numpy(), method="lm", xtol=1e-12, ftol=1e-14)
    assert stats.loss < 0.01
    assert float(stats.loss) * len(x) == pytest.approx(found.cost, rel=1e-12)
    torch.testing.assert_close(reached, torch.from_numpy(found.x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_training_goes_on_bit_for_bit(form: str, tmp_path: Path) -> None:
    model, x, y, loss = small("fewer parameters")
    trainer = gncompile.compile(model, loss, x[:2], solver="exact", exact_form=form)
    for _ in range(3):
        trainer.step(x, y)
    trainer.save(tmp_path / "checkpoint")
    resumed = gncompile.Trainer.resume(tmp_path / "checkpoint", small("fewer parameters", 2)[0])
    assert resumed.settings == trainer.settings
    for _ in range(3):
        assert resumed.step(x, y) == trainer.step(x, y)


def test_a_guarded_program_steps_alike() -> None:
    losses = []
    for guarded in (False, True):
        model, x, y, loss = small("one sample")
        trainer = gncompile.compile(model, loss, x, solver="exact", guarded=guarded)
        losses.append([float(trainer.step(x, y).resolved().loss) for _ in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    assert losses[0][-1] < losses[0][0]


def test_the_cheaper_form_is_chosen_and_told() -> None:
    model, x, _, loss = small("fewer parameters")
    trainer = gncompile.compile(model, loss, x, solver="exact")
    assert trainer.settings.exact_form == "primal"
    assert "40 samples, 2 outputs and 20 parameters: primal 20 × 20" in " ".join(
        trainer.summary().split()
    )
    assert gncompile.compile(model, loss, x[:3], solver="exact").settings.exact_form == "dual"


def test_what_exceeds_the_memory_budget_is_refused_with_numbers() -> None:
    model, x, y, loss = small("fewer parameters")
    with pytest.raises(
        CompileError, match=r"primal 20 × 20.*dual 80 × 80.*memory_budget is 8.0 KiB"
    ):
        gncompile.compile(model, loss, x, solver="exact", memory_budget=8 << 10)
    trainer = gncompile.compile(model, loss, x[:2], solver="exact", memory_budget=8 << 10)
    with pytest.raises(BatchError, match=r"40 samples meet in a matrix of 80 rows"):
        trainer.step(x, y)
    trainer.step(x[:2], y[:2])


def test_noise_is_not_measured() -> None:
    model, x, _, loss = small("one sample")
    with pytest.raises(CompileError, match="gather_noise"):
        gncompile.compile(model, loss, x, solver="exact", gather_noise=0.5)


def test_options_of_the_factors_are_said_to_have_no_effect() -> None:
    with pytest.warns(OptionWarning, match="inverse = 'eigen' has no effect with solver='exact'"):
        Settings.from_options(solver="exact", inverse="eigen")
