"""The exact solver's damping: several λ on one matrix, and λ in the units of the parameters."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from architectures import normal
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

import gncompile
from gncompile.errors import CompileError
from gncompile.frontends.torch_export import trace
from gncompile.pipeline import prepare
from gncompile.runtime import jacobian_rows

SCALED = {"damping_scale": "diagonal"}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an emitted step makes rows or Gram matrices, and solves."""
    calls = Counter[str]()
    for name in ("rows", "row_gram", "primal_solve", "dual_solve"):
        function = getattr(jacobian_rows, name)

        def call(
            *args: object, _name: str = name, _call: object = function, **more: object
        ) -> None:
            calls[_name] += 1
            _call(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(jacobian_rows, name, call)
    return calls


@pytest.mark.parametrize(("form", "made"), [("primal", "rows"), ("dual", "row_gram")])
def test_a_refused_damping_costs_no_new_rows(
    form: str, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = curve()
    options = {"exact_form": form, "damping": 1e-8}
    trainer = gncompile.compile(model, "mse", x, solver="exact", **options)
    calls = counted(monkeypatch)
    stats = [trainer.step(x, y) for _ in range(12)]
    tried = [step.tried for step in stats]
    assert max(tried) > 2
    assert calls[f"{form}_solve"] == 2 * sum(tried)  # the second one for the acceleration
    # two layers, each with the rows of its weight, or a Gram of its weight and of its bias
    assert calls[made] == len(stats) * (2 if form == "primal" else 4)
    losses = [float(step.loss) for step in stats]
    assert losses == sorted(losses, reverse=True)


def test_where_no_damping_helps_nothing_changes() -> None:
    model, x, y = curve()
    options = {"damping": 1e-8, "damping_tries": 2}
    trainer = gncompile.compile(model, "mse", x, solver="exact", **options)
    before = [p.detach().clone() for p in model.parameters()]
    stats = trainer.step(x, y)
    assert (stats.tried, stats.rejected) == (2, 1)
    assert stats.rho is not None
    assert stats.rho < 0
    assert trainer.damping == pytest.approx(1e-8 * 4**2)
    assert all(map(torch.equal, before, model.parameters()))
    assert trainer.step(x, y).loss == stats.loss


def test_a_step_of_several_dampings_averages_its_parameters_once() -> None:
    """``θ̄ ← ε θ̄ + (1 − ε) θ``, ``ε = min(1 − 9/(k + 8), bound)``, k counting steps and no tries."""
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="exact", damping=1e-8, average=0.9)
    expected = torch.zeros(())
    for k in range(1, 9):
        now = torch.cat([p.detach().flatten() for p in model.parameters()])
        decay = min(1 - 9 / (k + 8), 0.9)
        expected = decay * expected + (1 - decay) * now
        stats = trainer.step(x, y)
        assert stats.tried > 1 or k > 1
    with trainer.averaged_parameters():
        found = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(found, expected, rtol=1e-12, atol=0), (found - expected).abs().max()


def test_a_taken_step_is_that_of_its_damping() -> None:
    """After refusals the direction is the one that a step with the last λ alone would have had."""
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="exact", damping=1e-8)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    tried = trainer.step(x, y).tried
    expected = dense(curve()[0], "mse", x, y, 1e-8 * 4 ** (tried - 1), 0.0)
    found = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    # λ is 1e-6 of G's largest eigenvalue or more, so both solves keep ten digits; the rest is the difference
    assert_same(found, expected, 1e-8, f"after {tried} dampings")


@given(problem=problems())
@settings(max_examples=1)
def test_the_scaled_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    expected = dense(model, loss, x, y, 1e-2, l2, scaled=True)
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-2, form, l2=l2, **SCALED)
        assert_same(found, expected, EXACT, f"{form} of {loss}, l2={l2}, in {model}")


@pytest.mark.parametrize("name", [*SHARED, "dead units", "counts"])
@pytest.mark.parametrize("l2", [0.0, 0.1, {"*bias": 0.2, "*weight": 0.03}])
def test_scaled_by_a_diagonal_with_zeros_and_shared_weights(name: str, l2: object) -> None:
    model, x, y, loss = shared(name) if name in SHARED else small(name)
    expected = dense(model, loss, x, y, 1e-2, l2, scaled=True)
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        for backend in ("torch", "reference"):
            found = direction(traced, loss, x, y, 1e-2, form, backend, l2=l2, **SCALED)
            assert_same(found, expected, EXACT, f"{form} {backend}")


class Units(nn.Module):
    """``a exp(−b x)`` with parameters in other units."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.units = (a, b)
        self.a = nn.Parameter(torch.tensor([2.0 / a], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.3 / b], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * self.units[0] * torch.exp(-(self.b * self.units[1]) * x)


@pytest.mark.parametrize("form", FORMS)
def test_scaled_steps_do_not_know_units(form: str) -> None:
    x = torch.linspace(0, 3, 12, dtype=torch.float64)[:, None]
    y = 5 * torch.exp(-1.5 * x) + 0.01 * normal(torch.Generator().manual_seed(0), 12, 1)
    losses = []
    for a, b in ((1.0, 1.0), (1e-7, 1e6)):
        trainer = gncompile.compile(
            Units(a, b), "mse", x, solver="exact", exact_form=form, **SCALED
        )
        losses.append([float(trainer.step(x, y).loss) for _ in range(15)])
    # λ's size is not seen to fall below what the roundings of a step of eight digits leave
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < 1e-3 * losses[0][0]


@pytest.mark.parametrize("form", FORMS)
def test_the_scale_is_the_greatest_diagonal_and_resumes(form: str, tmp_path: Path) -> None:
    model, x, y, loss = small("fewer parameters")
    options = {"solver": "exact", "exact_form": form, **SCALED}
    trainer = gncompile.compile(model, loss, x[:2], **options)
    scales = []
    for _ in range(4):
        trainer.step(x, y)
        scales.append({k: t.clone() for k, t in states(trainer).items()})
    assert all((b[k] >= a[k]).all() for a, b in itertools.pairwise(scales) for k in a)
    assert any((b[k] > a[k]).any() for a, b in itertools.pairwise(scales) for k in a)
    trainer.save(tmp_path / "checkpoint")
    resumed = gncompile.Trainer.resume(tmp_path / "checkpoint", small("fewer parameters", 2)[0])
    assert all(torch.equal(t, states(resumed)[k]) for k, t in states(trainer).items())
    for _ in range(3):
        assert resumed.step(x, y) == trainer.step(x, y)


def states(trainer: gncompile.Trainer) -> dict[str, Tensor]:
    found = {k: t for k, t in trainer.state_dict()["states"].items() if k.startswith("scale.")}
    assert found
    return found


def test_a_guarded_program_scales_alike() -> None:
    losses = []
    for guarded in (False, True):
        model, x, y, loss = small("fewer parameters")
        trainer = gncompile.compile(
            model, loss, x, solver="exact", guarded=guarded, damping=10.0, **SCALED
        )
        losses.append([float(trainer.step(x, y).resolved().loss) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_that_overflows_leaves_the_scale_as_it_was(form: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).double(), normal(torch.Generator().manual_seed(0), 9, 3)
    trainer = gncompile.compile(model, "mse", x, solver="exact", exact_form=form, **SCALED)
    y = x.sum(1, keepdim=True)
    trainer.step(x, y)
    before = {k: t.clone() for k, t in states(trainer).items()}
    units = torch.tensor([1e160, 10.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        model.weight[0, 0] = 0  # so that the loss is finite
    assert trainer.step(x * units, y).rejected == 1
    assert all(torch.equal(t, before[k]) for k, t in states(trainer).items())
    assert float(trainer.step(x, y).loss) < 1e3


@pytest.mark.parametrize(("option", "value"), [("damping_scale", "diagonal"), ("damping_tries", 3)])
def test_factors_are_not_damped_so(option: str, value: object) -> None:
    model, x, _, loss = small("fewer parameters")
    with pytest.raises(CompileError, match=f"{option} = .* together with solver='kronecker'"):
        gncompile.compile(model, loss, x, **{option: value})
