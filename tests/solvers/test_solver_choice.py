"""Which solver ``auto`` takes and says so, and options that do not go with a solver."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from architectures import normal
from exact_problems import curve, small
from torch import Tensor, nn

import gncompile
from gncompile.base.settings import CURVATURE_METHODS, Settings
from gncompile.base.solver_options import CG_SOLVERS
from gncompile.errors import CompileError, OptionWarning
from gncompile.optim import GaussNewton
from gncompile.training.stored_settings import settings_from_data


def wide() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(60, 100), nn.Tanh(), nn.Linear(100, 10))
    return model, normal(torch.Generator().manual_seed(0), 400, 60).float()


def said(trainer: gncompile.Trainer) -> str:
    return " ".join(trainer.summary(width=10_000).split())


def test_auto_takes_the_exact_solver_where_it_costs_little_more() -> None:
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="auto")
    plain = gncompile.compile(curve()[0], "mse", x, solver="exact")
    assert trainer.settings == plain.settings
    assert "solver 'exact': an exact step takes" in said(trainer)
    assert "may take 4; a batch of 30 samples, 1 outputs and 13 parameters: primal" in said(trainer)
    assert trainer.step(x, y) == plain.step(x, y)


def test_auto_keeps_the_factors_where_the_matrix_is_large() -> None:
    model, x = wide()
    trainer = gncompile.compile(model, "mse", x, solver="auto")
    assert trainer.settings == gncompile.compile(model, "mse", x).settings
    assert "solver 'kronecker': an exact step takes" in said(trainer)
    bounded = gncompile.compile(model, "mse", x, solver="auto", memory_budget=1 << 20)
    assert bounded.settings.solver == "kronecker"
    assert "solver 'kronecker', for want of memory: solver='exact' for a batch of" in said(bounded)


@pytest.mark.parametrize(
    ("options", "solver", "why"),
    [
        (
            {"method": "kflr"},
            "kronecker",
            "solver 'kronecker', whose factors method='kflr' asks for",
        ),
        ({"gather_noise": 0.5}, "kronecker", "solver 'kronecker', which gather_noise asks for"),
        ({"damping_scale": "diagonal"}, "exact", "solver 'exact', which damping_scale asks for"),
        ({"acceleration": 0.5}, "exact", "solver 'exact', which acceleration asks for"),
        ({"method": "sgd"}, "kronecker", "sgd"),
    ],
)
@pytest.mark.filterwarnings("ignore::gncompile.errors.OptionWarning")
def test_auto_follows_what_is_asked_for(options: dict[str, object], solver: str, why: str) -> None:
    model, x, _ = curve()
    trainer = gncompile.compile(model, "mse", x, solver="auto", **options)
    assert trainer.settings.solver == solver
    assert why in said(trainer)


def test_what_auto_took_is_resumed(tmp_path: Path) -> None:
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="auto")
    trainer.step(x, y)
    trainer.save(tmp_path / "checkpoint")
    resumed = gncompile.Trainer.resume(tmp_path / "checkpoint", curve()[0])
    assert resumed.settings.solver == "exact"
    assert resumed.step(x, y) == trainer.step(x, y)


def test_an_optimiser_by_auto_goes_on() -> None:
    model, x, y = curve()
    optimiser = GaussNewton(model, "mse", solver="auto")
    optimiser.step(x, y)
    other = GaussNewton(curve()[0], "mse", solver="auto")
    other.load_state_dict(optimiser.state_dict())
    assert torch.equal(other.step(x, y), optimiser.step(x, y))


@pytest.mark.parametrize("method", [*CURVATURE_METHODS, {"*": "kfra"}])
def test_a_method_of_factors_is_refused(method: object) -> None:
    model, x, _ = curve()
    text = r"method = .* together with solver='exact', which has the whole Gauss-Newton matrix"
    with pytest.raises(CompileError, match=text):
        gncompile.compile(model, "mse", x, method, solver="exact")
    with pytest.raises(CompileError, match=text):
        GaussNewton(model, "mse", solver="exact", method=method)
    assert gncompile.compile(model, "mse", x, "auto", solver="exact").settings.method == "auto"


@pytest.mark.parametrize(
    ("solver", "option", "value", "reader"),
    [
        ("exact", "factor_share", 0.5, "kronecker"),
        ("exact", "factors_every", 2, "kronecker"),
        ("exact", "sharing", "reduce", "kronecker"),
        ("exact", "factor_samples", 100, "kronecker"),
        ("exact", "refresh_every", 7, "kronecker"),
        ("exact", "whole_inputs", 3, "kronecker"),
        ("kronecker", "exact_form", "dual", "exact"),
        ("newton_cg", "method", "kflr", "kronecker"),
        ("newton_cg", "factors_every", 3, "kronecker"),
        ("block_hessian_free", "inverse", "eigen", "kronecker"),
    ],
)
def test_options_without_effect_are_told(
    solver: str, option: str, value: object, reader: str
) -> None:
    word = "preconditioner" if solver in CG_SOLVERS else "solver"
    text = rf"{option} = {value!r} has no effect with solver='{solver}'\n.*{word}='{reader}'"
    with pytest.warns(OptionWarning, match=text):
        Settings.from_options(solver=solver, **{option: value})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inverse": "eigen", "memory_budget": 100}, []),  # for want of memory it takes factors
        ({"inverse": "eigen"}, ["option inverse = 'eigen' has no effect with solver='exact'"]),
        ({"cg_iterations": 3}, ["option cg_iterations = 3 has no effect with solver='exact'"]),
        ({"learning_rate": 0.1}, ["option learning_rate = 0.1 has no effect with method='auto'"]),
        ({"method": "sgd"}, ["option solver = 'auto' has no effect with method='sgd'"]),
    ],
)
def test_auto_tells_of_options_that_what_it_took_does_not_look_at(
    options: dict[str, object], told: list[str]
) -> None:
    model, x, _ = curve()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gncompile.compile(model, "mse", x, solver="auto", **options)
    found = [str(w.message).splitlines()[0] for w in caught if w.category is OptionWarning]
    assert found == told


@pytest.mark.parametrize("solver", ["exact", *CG_SOLVERS])
def test_a_resumed_trainer_says_nothing_of_options_that_nobody_gave(
    solver: str, tmp_path: Path
) -> None:
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver=solver)
    trainer.step(x, y)
    trainer.save(tmp_path / "checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gncompile.Trainer.resume(tmp_path / "checkpoint", curve()[0])


def test_a_checkpoint_of_before_has_a_method_that_says_nothing(tmp_path: Path) -> None:
    """Such told the default method with the exact solver, which did not look at it."""
    model, x, y, loss = small("one sample")
    trainer = gncompile.compile(model, loss, x, solver="exact")
    trainer.step(x, y)
    about = {"settings": {**vars(trainer.settings), "method": "kfra"}, "backend": "torch"}
    about = json.loads(json.dumps(about))
    assert settings_from_data(about, tmp_path)["method"] == "auto"


def test_a_solver_is_a_name_or_a_class_of_solvers() -> None:
    model, x, _ = curve()
    with pytest.raises(CompileError, match=r"the solver is of type type\n.*subclass of Solver"):
        gncompile.compile(model, "mse", x, solver=int)  # type: ignore[arg-type]
