"""How λ and γ follow the success of steps, and that steps which raise the loss are undone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import UNGATHERED, WIDTH, network, poisson, samples

import gncompile
from gncompile.base.settings import Settings
from gncompile.program.phases import plan, step_phases
from gncompile.program.timetable import due
from gncompile.solvers.kronecker import Kronecker
from gncompile.training.order import as_read
from gncompile.training.trainer import Trainer


def compiled(model: nn.Module, **options: Any) -> Trainer:
    x = torch.zeros(2, WIDTH).double()
    return gncompile.compile(model, "bce_with_logits", x, **{**UNGATHERED, **options})


def state(trainer: Trainer, name: str) -> float:
    return float(trainer.state_dict()["states"][name])


def scaled(scale: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


# --- Levenberg and Marquardt's rule -------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("first", [0, 12])
def test_damping_follows_levenberg_marquardt(first: int, guarded: bool) -> None:
    """Every fifth step by ``0.95⁵``, and each of the ``first`` steps by ½; λ falls only where it is felt."""
    seen = set()
    for damping, scale in ((1e-6, 4.0), (1e-4, 4.0), (1e-3, 3.0), (0.1, 1.0), (1e-3, 2.0)):
        trainer = compiled(
            scaled(scale),
            damping=damping,
            momentum=False,
            layer_steps=20,
            search_steps=first,
            average=0.0,
            guarded=guarded,
        )
        for step in range(1, 31):
            before, batch = state(trainer, "damping"), samples(40, seed=step)
            factor_damping = state(trainer, "factor_damping")
            stats = trainer.step(*batch)
            searches = step <= first
            if step % 5 and not searches:
                assert (stats.rho, stats.damping) == (None, before)
                continue
            assert stats.predicted is not None
            assert stats.rho is not None
            if stats.rho < 0:
                continue  # undone: below
            after = float(trainer.loss(*batch))
            assert stats.rho == pytest.approx((after - stats.objective) / stats.predicted, rel=1e-5)
            branch = -1 if stats.rho < 0.25 else int(stats.rho > 0.75)
            seen.add(branch)
            factor = 0.5 if searches else 0.95**5
            assert stats.damping in (
                pytest.approx(before * factor**branch, rel=1e-12),
                *([before] if branch == 1 else []),
            )
            if searches:
                factor_damping = math.sqrt(stats.damping or 0.0) / 2
            if step % 20 != 1:  # then γ is chosen by the quadratic model
                assert state(trainer, "factor_damping") == pytest.approx(factor_damping, rel=1e-12)
    assert seen >= {0, 1}


@pytest.mark.parametrize(("search", "factor"), [(0, 0.95**5), (1, 0.5)])
@pytest.mark.parametrize("guarded", [False, True])
def test_damping_rises_where_little_of_the_predicted_change_came_true(
    search: int, factor: float, guarded: bool
) -> None:
    trainer, x, y = overlong(damping=0.5, search_steps=search, damping_period=5, guarded=guarded)
    trainer._count.updates = 4 * (1 - search)  # the fifth step is judged, or the first
    stats = trainer.step(x, y)
    assert stats.rho is not None
    assert 0 < stats.rho < 0.25
    assert stats.damping == pytest.approx(0.5 / factor, rel=1e-12)
    assert stats.rejected == 0


def test_the_search_ends_where_factor_damping_is_chosen() -> None:
    settings = Settings(search_steps=10, factor_damping_period=4)
    assert [due(settings, n, 0).search for n in range(7)] == [True] * 4 + [False] * 3
    assert [due(settings, n, 0).damping for n in range(7)] == [True] * 5 + [False] * 2
    step = step_phases(Kronecker.phases(settings))
    assert {"trial", "search"} < set(plan(step, due(settings, 3, 0)))
    assert {"judge", "adapt"} < set(plan(step, due(settings, 4, 0)))
    assert not due(Settings(search_steps=0), 0, 0).search


def test_a_summary_tells_that_only_the_first_steps_search() -> None:
    trainer = compiled(network(), search_steps=7)
    rows = [line.split() for line in trainer.summary().splitlines()]
    for phase in ("trial", "judge_trial", "search"):
        assert any(row[:5] == [phase, "the", "first", "7", "steps"] for row in rows)


def objective(trainer: Trainer, l2: float, x: Tensor, y: Tensor) -> float:
    squares = sum(float(p.detach().square().sum()) for p in trainer.model.parameters())
    return float(trainer.loss(x, y)) + l2 / 2 * squares


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("guarded", [False, True])
def test_the_first_steps_are_judged_on_the_samples_of_the_factors(
    guarded: bool, l2: float, share: float
) -> None:
    """The last quarter of the batch as it is read, or all of it; later steps on all."""
    options = {"damping": 1.0, "momentum": False, "l2": l2, "guarded": guarded}
    parts = {"factor_samples": 1, "factor_share": share}
    trainer = compiled(network(), search_steps=4, **parts, **options)
    for step in range(1, 6):
        x, y = samples(40, seed=step)
        first = int(40 * (1 - share)) if step <= 4 else 0
        judged = [part[first:] for part in as_read(trainer, x, y)]

        before = objective(trainer, l2, *judged)
        stats = trainer.step(x, y)
        assert stats.predicted is not None
        change = objective(trainer, l2, *judged) - before
        assert stats.rho == pytest.approx(change / stats.predicted, rel=1e-9)
    assert trainer.rejected == 0


# --- Noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
def test_damping_is_held_up_where_the_average_is_better(guarded: bool) -> None:
    """Every tenth step doubles λ where it is less than 5 % of the curvature along the last step."""
    held = 0
    for damping in (1e-6, 1e-3, 10.0):
        trainer = compiled(
            network(), damping=damping, search_steps=0, damping_period=1000, guarded=guarded
        )
        for step in range(41):
            batch = samples(40, seed=step)
            if step and step % 10 == 0:
                states = trainer.state_dict()["states"]
                square = sum(float(v.square().sum()) for k, v in states.items() if k[:5] == "step.")
                share = state(trainer, "damping") * square / float(states["step_sizes"][-4])
                latest = trainer.evaluate(*batch, averaged=False)
                doubles = trainer.evaluate(*batch, averaged=True) < latest and share < 0.05
                held += doubles
            else:
                doubles = False
            before = state(trainer, "damping")
            trainer.step(*batch)
            assert state(trainer, "damping") == before * (1 + doubles)
    assert 1 < held < 12


# --- Steps that raise the loss ------------------------------------------------------------------------


def overlong(**options: Any) -> tuple[Trainer, Tensor, Tensor]:
    """Steps ``(3 - e^z) / (e^z + λ)`` from z = -2, too long at first; the loss stays finite."""
    return poisson(-2.0, 40, **{"damping": 0.01, **options})


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_step_that_raises_the_loss_is_undone(backend: str, guarded: bool) -> None:
    trainer, x, y = overlong(backend=backend, guarded=guarded)
    first = trainer.loss(x, y)
    for undone in range(1, 4):
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        stats = trainer.step(x, y)
        assert (stats.update, stats.rejected, stats.loss) == (undone, undone, float(first))
        assert stats.rho is not None
        assert stats.rho < 0
        for name, p in trainer.model.named_parameters():
            assert torch.equal(p, before[name])
        assert stats.damping == pytest.approx(0.01 * 4**undone, rel=1e-12)
        assert state(trainer, "factor_damping") == pytest.approx(0.05 * 2**undone, rel=1e-12)
        states = trainer.state_dict()["states"]
        assert all(not value.any() for key, value in states.items() if key.startswith("step."))
    stats = trainer.step(x, y)
    assert (stats.rejected, trainer.rejected) == (3, 3)
    assert trainer.loss(x, y) < first
    history = [trainer.step(x, y).loss for _ in range(30)]
    assert history[-1] == pytest.approx(3 - 3 * math.log(3), rel=1e-6)
    assert trainer.rejected == 3


@pytest.mark.parametrize("guarded", [False, True])
def test_a_late_step_that_raises_the_loss_is_undone_when_it_is_looked_at(guarded: bool) -> None:
    """Every fifth step; those between may do harm, which the later ones have to mend."""
    trainer, x, y = overlong(search_steps=0, guarded=guarded, step_growth=None)
    rejected = [trainer.step(x, y).rejected for _ in range(5)]
    assert rejected[:4] == [0] * 4
    with torch.no_grad():
        trainer.model[0].bias.fill_(-2.0)  # type: ignore[index, union-attr, operator]
    rejected = [trainer.step(x, y).rejected for _ in range(4)]
    with torch.no_grad():
        trainer.model[0].bias.fill_(-2.0)  # type: ignore[index, union-attr, operator]
    assert trainer.step(x, y).rejected == rejected[-1] + 1
    assert float(trainer.model[0].bias) == -2.0  # type: ignore[index, union-attr, arg-type]


@pytest.mark.parametrize(
    ("before", "after", "harm"),
    [
        (1.0, 0.5, 0),
        (1.0, 1.0, 0),
        (0.0, 0.0, 0),
        (1.0, 1.000001, 0),  # may be rounding
        (1.0, 1.0001, 1),
        (-1.0, -0.9, 1),
        (-1.0, -1.1, 0),
        (1.0, math.nan, 1),
        (1.0, math.inf, 1),
    ],
)
def test_what_counts_as_harm(before: float, after: float, harm: float) -> None:
    """The loss is ``b² - 2`` with the bias b."""
    model = nn.Sequential(nn.Linear(1, 1)).double()
    x, y = torch.zeros(3, 1).double(), torch.full((3, 1), 2.0).double()
    trainer = gncompile.compile(model, "z**2 - y", x, **UNGATHERED)
    executable, bias = trainer._executable, model[0].bias
    with torch.no_grad():
        bias.fill_(math.sqrt(before + 2))
        executable.load((x,), y)
        executable.run("gradient")
        bias.fill_(math.sqrt(after + 2))
        executable.run("predict", "evaluate", "judge")
    assert float(executable.memory.states["harm"]) == harm


@pytest.mark.parametrize("name", ["plain", "residual", "gated"])
def test_undone_steps_are_the_same_in_a_guarded_program(name: str) -> None:
    """Weights are scaled up until some of the first steps raise the loss."""
    twins = []
    for guarded in (False, True):
        model = network(name)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(6.0)
        options = {"damping": 1e-7, "guarded": guarded, "refresh_always": 20, "step_growth": None}
        twins.append(compiled(model, **options))
    for step in range(14):
        one, other = (t.step(*samples(40, seed=step)) for t in twins)
        assert other.rejected == one.rejected
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.damping == pytest.approx(one.damping, rel=1e-6)
    assert twins[0].rejected > 0
