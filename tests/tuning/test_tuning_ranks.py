"""Two processes connected by ``torch.distributed``: rank 0 tunes, both emit the very same step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_on
from torch import nn

import gncompile
from gncompile.base import config
from gncompile.runtime.first_process import from_first
from gncompile.training.trainer import Trainer
from gncompile.tuning import tuner
from gncompile.tuning.cpu import CpuProblem
from gncompile.tuning.problem import Candidate
from gncompile.tuning.step_check import StepComparison

Measure = Callable[[CpuProblem, Candidate], float]


def compiled(tune: tuner.Tune, layers: int = 2, **place: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 9), nn.Tanh(), nn.Linear(9, 5))[: 2 * layers - 1]
    return gncompile.compile(net, "mse", torch.zeros(40, 300), tune=tune, **place)


def favoured(problem: CpuProblem, candidate: Candidate) -> float:
    """``border=1`` and ``block=128`` win."""
    return 0.001 if candidate.options in ({"border": 1}, {"block": 128}) else 0.004


def unmeasured(problem: CpuProblem, candidate: Candidate) -> float:
    raise AssertionError("measured")


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def outcome(compiling: Callable[[], Trainer]) -> dict[str, Any]:
    """The step that a compilation gives, or what it raises."""
    try:
        trainer = compiling()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"source": trainer.source, "variants": dict(trainer.variants)}


def scenarios(rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Compilations in the order in which both ranks make them."""
    found = {}
    blocked = folder / "file"
    blocked.write_text("")
    only_zero = folder / "tuning" if rank == 0 else blocked / "inside"
    with config.using(tuning=only_zero):
        with replaced(CpuProblem, "measure", favoured if rank == 0 else unmeasured):
            found["quick"] = outcome(lambda: compiled("quick"))
        with replaced(CpuProblem, "measure", unmeasured):
            found["cached"] = outcome(lambda: compiled("cached"))
            found["full fails"] = outcome(lambda: compiled("full"))
            found["another program"] = outcome(lambda: compiled("cached", layers=2 - rank))
        if rank == 0:
            alone = {"process_group": False}
            found["cached, alone"] = outcome(lambda: compiled("cached", **alone))
            found["given, alone"] = outcome(
                lambda: compiled({"Q_layer_0": {"block": 128}}, **alone)
            )
    return found


def work(folder: Path) -> dict[str, dict[str, Any]]:
    """What one of the two processes sees."""
    kept = StepComparison(1.0, 1.0, 1.0, 0.0, 0.0)
    rank = dist.get_rank()
    with replaced(tuner, "compare", lambda *arguments: kept):
        mine = folder / str(rank)
        mine.mkdir()
        return scenarios(rank, mine)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes saw, with folders that they do not share."""
    folder = tmp_path_factory.mktemp("ranks")
    found: list[dict[str, dict[str, Any]]] = run_on(2, work, [folder])[folder]
    return found


def test_rank_0_measures_and_both_emit_the_same_step(ranks: list[dict[str, Any]]) -> None:
    """Rank 1 may not measure, and has no folder to read or write."""
    zero, one = (rank["quick"] for rank in ranks)
    assert {"border": 1} in zero["variants"].values()
    assert "block=128" in zero["source"]
    assert one == zero


def test_cached_is_what_rank_0_has(ranks: list[dict[str, Any]]) -> None:
    zero, one = (rank["cached"] for rank in ranks)
    assert zero == ranks[0]["quick"]
    assert one == zero


def test_what_rank_0_raises_ends_the_others(ranks: list[dict[str, Any]]) -> None:
    zero, one = (rank["full fails"]["error"] for rank in ranks)
    assert zero == "AssertionError: measured"
    assert one.startswith("GncompileError: rank 0 has failed. AssertionError: measured")
    assert "where:      rank 1" in one


def test_another_program_is_refused_by_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["another program"]["error"]
        assert found.startswith("ProcessesError: the processes have compiled different programs")


def test_a_process_that_is_alone_asks_no_other(ranks: list[dict[str, Any]]) -> None:
    """In an initialised group, too."""
    assert ranks[0]["cached, alone"]["variants"] == ranks[0]["quick"]["variants"]
    assert ranks[0]["given, alone"]["variants"] == {"Q_layer_0": {"block": 128}}


def test_a_process_of_its_own_asks_nobody() -> None:
    assert from_first(None, lambda: {"x": {"block": 128}}) == {"x": {"block": 128}}
    with pytest.raises(ZeroDivisionError):
        from_first(None, lambda: 1 / 0)
