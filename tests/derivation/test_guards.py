"""A guarded program refuses bad steps by itself, and else does what an unguarded one does."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import NETWORKS, OUTPUTS, WIDTH

import gncompile
from gncompile.base.settings import Settings
from gncompile.errors import BatchError
from gncompile.explain.readback import Readback
from gncompile.program.phases import Phase, Repeat, plan, step_phases
from gncompile.program.timetable import cycle, due, refresh_period
from gncompile.solvers.kronecker import Kronecker
from gncompile.training import ahead
from gncompile.training.ahead import DeferredStats
from gncompile.training.trainer import Trainer


def batch(seed: int, rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(rows, OUTPUTS, generator=generator, dtype=torch.float64)


def trainers(
    name: str = "plain", method: str | dict[str, str] = "kfra", **options: Any
) -> tuple[Trainer, Trainer]:
    """The same network trained by an ordinary and by a guarded program."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    twin = copy.deepcopy(model)
    x, _ = batch(0)
    return (
        gncompile.compile(model, "bce_with_logits", x, method, **options),
        gncompile.compile(twin, "bce_with_logits", x, method, guarded=True, **options),
    )


def parameters(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("plain", "kfra", {"l2": 1e-3, "average": 0.9, "damping": 0.4}),
        ("residual", "kflr", {"factors_every": 2, "refresh_every": 3}),
        ("gated", "kfac", {"momentum": False, "samples": 2}),
        ("plain", "kfac_rp", {"inverse": "eigen", "damping": 2.0}),
        ("gated", "kfra", {"factor_share": 0.5, "factor_samples": 2, "whole_inputs": 3}),
        ("plain", {"*": "kfra", "0": "kflr"}, {"damping": 2.0}),
    ],
)
def test_good_steps_are_those_of_an_unguarded_program(
    name: str, method: str | dict[str, str], options: dict, backend: str
) -> None:
    """Over the choices of γ at steps 8 and 16 too; tried in another order, so equal to rounding."""
    common = {"factor_damping_period": 8, "refresh_always": 3, "layer_steps": 4, "backend": backend}
    plain, guarded = trainers(name, method, **common, **options)
    for step in range(18):
        stats = [t.step(*batch(step)).resolved() for t in (plain, guarded)]
        assert stats[1].loss == pytest.approx(stats[0].loss, rel=1e-10)
        assert (stats[1].rho is None) == (stats[0].rho is None)
        if stats[0].rho is not None:
            assert stats[1].rho == pytest.approx(stats[0].rho, rel=1e-4)
        assert (stats[1].momentum is None) == (stats[0].momentum is None)
        assert stats[1].update == step + 1
    for p, q in zip(parameters(plain), parameters(guarded), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)
    assert guarded.rejected == 0


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_no_momentum_is_chosen_where_noise_leads(backend: str) -> None:
    """By a phase of its own where the host chooses phases, by a bound where it runs ahead."""
    both = trainers("plain", layer_steps=2, backend=backend)
    for _ in range(7):  # before the first comparison, at 10
        stats = [t.step(*batch(0)).resolved() for t in both]
    assert all(s.momentum > 0.3 for s in stats)
    for trainer in both:
        trainer.state_dict()["states"]["noise_leads"].fill_(1)
    stats = [t.step(*batch(0)).resolved() for t in both]
    assert [s.momentum for s in stats] == [0, 0]
    assert stats[0].step_size == pytest.approx(stats[1].step_size, rel=1e-9)
    assert stats[0].predicted == pytest.approx(stats[1].predicted, rel=1e-9)
    for p, q in zip(*map(parameters, both), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
    for trainer in both:
        trainer.state_dict()["states"]["noise_leads"].fill_(0)
    assert all(t.step(*batch(0)).resolved().momentum > 0.3 for t in both)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_batch_is_left_out(bad: float) -> None:
    _, guarded = trainers(average=0.9)
    for step in range(3):
        guarded.step(*batch(step))
    x, y = batch(9)
    x[4, 2] = bad
    weights = parameters(guarded)
    before = guarded.state_dict()
    stats = guarded.step(x, y).resolved()
    assert stats.rejected == guarded.rejected == 1
    after = guarded.state_dict()
    for key, value in before["states"].items():
        if key.split(".")[0] in ("Q", "G", "step", "average", "damping", "updates", "averaged"):
            assert torch.equal(value, after["states"][key]), key
    assert all(map(torch.equal, weights, parameters(guarded)))


def test_a_bad_target_is_left_out_too() -> None:
    _, guarded = trainers()
    x, y = batch(0)
    y[0, 0] = float("nan")
    before = parameters(guarded)
    assert guarded.step(x, y).rejected == 1
    assert all(map(torch.equal, before, parameters(guarded)))


def test_an_update_that_breaks_the_loss_is_undone() -> None:
    _, guarded = trainers(average=0.9)
    guarded.step(*batch(0))
    good = parameters(guarded)
    guarded.step(*batch(1))
    averages = [
        v.clone() for k, v in guarded.state_dict()["states"].items() if k.startswith("average.")
    ]
    damping = guarded.damping
    assert damping is not None
    with torch.no_grad():
        next(guarded.model.parameters()).fill_(float("nan"))  # what an update gone wrong leaves
    stats = guarded.step(*batch(2)).resolved()
    assert stats.rejected == 1
    assert all(map(torch.equal, good, parameters(guarded)))
    now = guarded.damping
    assert now is not None
    assert now > damping
    states = guarded.state_dict()["states"]
    assert all(not v.any() for k, v in states.items() if k.startswith("step."))
    assert all(
        map(torch.equal, averages, [v for k, v in states.items() if k.startswith("average.")])
    )
    assert torch.isfinite(torch.tensor(guarded.step(*batch(3)).loss))
    assert guarded.rejected == 1


def test_an_update_that_breaks_the_loss_is_undone_after_batches_that_were_left_out() -> None:
    """What was good before the update is kept meanwhile."""
    _, guarded = trainers()
    guarded.step(*batch(0))
    good = parameters(guarded)
    guarded.step(*batch(1))
    with torch.no_grad():
        next(guarded.model.parameters()).fill_(float("nan"))  # what an update gone wrong leaves
    x, y = batch(2)
    for _ in range(2):
        guarded.step(x * float("nan"), y)
    assert guarded.rejected == 2
    assert guarded.step(x, y).rejected == 3
    assert all(map(torch.equal, good, parameters(guarded)))
    guarded.step(x, y)
    assert guarded.rejected == 3
    assert all(p.isfinite().all() for p in parameters(guarded))


def test_factors_that_overflow_are_not_averaged() -> None:
    """Inputs of 1e200 give finite losses (tanh) and a second moment beyond float64."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    trainer = gncompile.compile(model, "mse", x, guarded=True)
    trainer.step(x, y)
    before = trainer.state_dict()["states"]
    stats = trainer.step(x * 1e200, y).resolved()
    after = trainer.state_dict()["states"]
    assert stats.rejected == 1
    for key in ("Q.0", "G.0", "Q.2", "updates"):
        assert torch.equal(before[key], after[key])


def test_the_host_is_not_asked_until_statistics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _, guarded = trainers()

    def asked(self: Tensor) -> float:
        raise AssertionError("a step asked for a number")

    x, y = batch(0)
    with monkeypatch.context() as patch:
        # Not __int__: on a CPU, the inverse looks whether its factorisation succeeded.
        for name in ("__float__", "__bool__", "item", "tolist"):
            patch.setattr(Tensor, name, asked)
        stats = [guarded.step(x, y) for _ in range(12)]
    assert all(isinstance(each, DeferredStats) for each in stats)
    losses = [each.loss for each in stats]
    assert losses[-1] < losses[0]
    assert repr(stats[0]).startswith("StepStats(update=1, loss=")


def test_old_statistics_are_gone_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT", 3)
    _, guarded = trainers()
    stats = [guarded.step(*batch(0)) for _ in range(4)]
    assert stats[1].loss > 0
    with pytest.raises(BatchError, match="the statistics of step 1 are gone, 3 steps later"):
        _ = stats[0].loss


def test_what_is_due_when() -> None:
    settings = Settings(refresh_every=4, refresh_always=3, factor_damping_period=6, layer_steps=2)
    refreshed, since = [], 0
    for updates in range(14):
        now = due(settings, updates, since)
        fresh = now.inverses or now.factor_damping
        since = 0 if fresh else since + 1
        refreshed += [updates] if fresh else []
    assert refreshed == [0, 1, 2, 4, 6, 8, 12]
    step = step_phases(Kronecker.phases(settings))
    quadratic = [
        [phase for phase in plan(step, due(settings, n, 0)) if phase.endswith("quadratic")]
        for n in (0, 1, 2)
    ]
    assert quadratic == [["layer_quadratic"]] * 2 + [["quadratic"]]
    assert plan(step, due(settings, 6, 0)).count("invert") == 4
    decomposing = replace(settings, inverse="eigen")
    exact = plan(step_phases(Kronecker.phases(decomposing)), due(decomposing, 6, 0))
    assert exact.count("invert") == 1
    assert exact.count("direction") == 4
    assert exact.index("invert") < exact.index("direction")
    assert "invert" not in plan(step, due(settings, 7, 0))


@pytest.mark.parametrize("factors_every", [1, 2, 3, 20])
@pytest.mark.parametrize("refresh_always", [1, 4, 5])
def test_inverses_come_more_and_more_seldom_and_of_new_factors(
    factors_every: int, refresh_always: int
) -> None:
    """Between the first steps and the regular ones, if factors come as often as inverses."""
    settings = Settings(factors_every=factors_every, refresh_always=refresh_always)
    since, between = 0, []
    for updates in range(100):
        now = due(settings, updates, since)
        if now.inverses:
            between.append(since + 1)
            late = refresh_period(settings, updates) == settings.refresh_every
            assert now.factors or late or since + 1 < factors_every
        since = 0 if now.inverses else since + 1
    assert between[:refresh_always] == [1] * refresh_always
    assert between[-1] == settings.refresh_every
    assert max(between) <= settings.refresh_every + factors_every


def test_a_refused_step_is_followed_by_new_inverses() -> None:
    settings = Settings()
    assert all(due(settings, n, settings.refresh_every).inverses for n in range(100))


@pytest.mark.parametrize("guarded", [False, True])
def test_eigendecompositions_serve_every_factor_damping(
    guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are the same to the last bit if every γ tried decomposes anew, which is what was saved."""
    options = {"inverse": "eigen", "factor_damping_period": 3, "refresh_every": 4}
    saving, phases = trainers(**options)[guarded], Kronecker.phases

    def each_time(settings: Settings) -> tuple[Phase, ...]:
        return tuple(
            replace(phase, repeat=Repeat.DAMPINGS) if phase.name == "invert" else phase
            for phase in phases(settings)
        )

    monkeypatch.setattr(Kronecker, "phases", each_time)
    wasteful = trainers(**options)[guarded]
    for step in range(8):
        assert saving.step(*batch(step)).resolved() == wasteful.step(*batch(step)).resolved()
    assert all(map(torch.equal, parameters(saving), parameters(wasteful)))


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_a_summary_tells_how_often_phases_are_run(inverse: str) -> None:
    """Counted over one cycle of real steps, for which the program decides and the host."""
    options = {"inverse": inverse, "refresh_always": 1, "search_steps": 2,
               "layer_steps": 2, "whole_inputs": 2, "factor_damping_period": 10}  # fmt: skip
    for guarded in (True, False):
        trainer = trainers(**options)[guarded]
        read = Readback(trainer.traced, trainer.loss_function, trainer.settings, trainer.program)
        length = cycle(trainer.settings)
        for step in range(length):
            trainer.step(*batch(step))
        runs, run = Counter[str](), trainer._executable.run

        def counted(*phases: str, run: Any = run, runs: Counter[str] = runs) -> None:
            runs.update(phases)
            run(*phases)

        trainer._executable.run = counted  # type: ignore[method-assign]
        for step in range(length):
            trainer.step(*batch(step))
        expected = {phase: round(rate * length) for phase, rate in read.mean_runs.items()}
        if guarded:
            assert expected == runs
        # A host goes without the last attempt where it was the best.
        tried = {"invert", "direction", "quadratic", "plain_quadratic", "damping_note"}
        assert {p: n for p, n in expected.items() if p not in tried} == {
            p: n for p, n in runs.items() if p not in tried
        }
        assert 0 <= expected["direction"] - runs["direction"] <= length / 10
