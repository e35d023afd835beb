"""Tuning on the device: every kind of launch is checked there, a search is made, the whole step compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
import gncompile
from gncompile.base import config
from gncompile.training.trainer import Trainer
from gncompile.tuning.gpu import GpuBench
from gncompile.tuning.gpu_problem import by_events
from gncompile.tuning.search import search
from gncompile.tuning.store import Store

SAMPLES = 512
BUDGET = 120.0


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    with config.using(tuning=tmp_path / "tuning"):
        yield


def compiled(cuda: torch.device, tune: str) -> Trainer:
    torch.manual_seed(0)
    layers = nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 120), nn.Tanh(), nn.Linear(120, 60)
    example = torch.zeros(SAMPLES, 784, device=cuda)
    options = {"backend": "triton", "precision": "high", "tune": tune}
    return gncompile.compile(nn.Sequential(*layers).to(cuda), "bce_with_logits", example, **options)


def bench(cuda: torch.device) -> GpuBench:
    trainer = compiled(cuda, "off")
    dims = {"N": SAMPLES, **trainer.settings.rows(SAMPLES), "S": 1}
    return GpuBench(trainer.program, dims, torch.float32, "high", cuda)


def test_the_defaults_agree_with_the_reference_at_real_sizes(cuda: torch.device) -> None:
    of = bench(cuda)
    wrong = {}
    for problem in of.problems(of.keys):
        error = problem.check(problem.candidates[0])
        if error is not None:
            wrong[problem.subject.name] = error
        problem.release()
    assert not wrong


def test_a_replayed_graph_takes_about_as_long_as_its_launches(cuda: torch.device) -> None:
    """A product of 2·10⁹ flops and more: longer than a launch, shorter than a millisecond."""
    of = bench(cuda)
    problem = max(of.problems(of.keys), key=lambda p: p.candidates[0].predicted)
    default = problem.candidates[0]
    assert problem.check(default) is None
    timed = by_events(problem.launches(default))
    times = [timed() for _ in range(10)]
    assert 1e-6 < min(times) < 1e-3
    assert sorted(times)[5] < 2 * min(times)


def test_a_search_chooses_among_right_candidates(cuda: torch.device) -> None:
    of = bench(cuda)
    keys = {name: key for name, key in of.keys.items() if "cross_moment" in key.kernel}
    (outcome,) = search(of.problems(keys), "quick", BUDGET).outcomes
    assert outcome.seconds <= outcome.default_seconds
    assert sum(trial.seconds is not None for trial in outcome.trials) > 1


def test_a_compile_tunes_and_the_next_one_uses_it(cuda: torch.device) -> None:
    tuned = compiled(cuda, "quick")
    assert Store.open("cuda").entries
    assert compiled(cuda, "cached").source == tuned.source
