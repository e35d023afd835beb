"""The benchmark's stage of settings in the interpreter: ``triton.autotune`` over a plan of launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

import gncompile
from benchmarks.gpu import tuning
from benchmarks.gpu.clock import Clock
from gncompile.tuning.gpu_problem import GpuProblem
from gncompile.tuning.problem import Candidate
from gncompile.tuning.tuner import bench_of


def congruence() -> GpuProblem:
    """The only one of a small network."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    trainer = gncompile.compile(net, "mse", torch.zeros(7, 6), backend="triton", tune="off")
    bench = bench_of(trainer, 7)
    (found,) = (p for p in bench.problems(bench.keys) if p.key.kernel == "congruence")
    assert isinstance(found, GpuProblem)
    return found


def test_autotune_chooses_by_its_own_bench_among_our_candidates() -> None:
    """With a bench on which the second configuration is the fastest."""
    problem = congruence()
    times = iter([3.0, 1.0, 2.0])

    def do_bench(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        call()
        return [next(times)] * len(quantiles)

    chosen = tuning.by_autotune(problem, 3, do_bench)
    assert chosen == problem.candidates[1].options
    assert next(times, None) is None
    assert problem.check(Candidate(chosen, 0.0)) is None


def test_a_wrong_choice_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuProblem, "check", lambda self, candidate: "relative error 0.5")
    prepare = tuning._chosen(
        congruence(), lambda given: {}, Clock(torch.device("cpu"), rounds=1, least=0.0)
    )
    with pytest.raises(ValueError, match=r"default: relative error 0\.5"):
        prepare()
