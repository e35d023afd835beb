"""Factors that one process keeps for all: the steps are those of one process, and checkpoints are whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_trainings import STEPS, TRAININGS, Joint, Outcome, fixed, together
from processes import run_on

from gncompile.data import Batches
from gncompile.errors import GncompileError
from gncompile.training.trainer import Trainer

TOLERANCE = 1e-10
"""As in ``test_joint_steps.py``."""
PARTS = {2: (20, 33), 3: (20, 0, 33)}
"""Samples of each process; on three, few have anything to gather, and messages are sums."""
SHARDED: dict[str, dict[str, Any]] = {
    "kfra": {"factor_damping_period": 2, "search_steps": 0},
    "kfra, eigen and l2": {},
    "kfra, guarded": {},
    "newton_cg, preconditioned": {},
    "an equation, factors": {},
}
"""Trainings by name, with further options: one tries γ in every second step, one measures noise."""
KINDS = ("Q", "G", "Q_inverse", "G_inverse")


def _together(training: str) -> Outcome:
    parts = (PARTS[dist.get_world_size()],) * STEPS
    return together(Joint(training, parts), factors="sharded", **SHARDED[training])


@cache
def _alone(training: str) -> Outcome:
    options = {"deterministic": False, "process_group": False, **SHARDED[training]}
    return fixed(training, **options)


def _deterministic(**options: Any) -> Outcome:
    return fixed("kfra of wide layers", factors="sharded", **options)


def _trainer(**options: Any) -> tuple[Trainer, Any]:
    return TRAININGS["kfra"].trainer(factors="sharded", **options)


def _refused(**options: Any) -> tuple[list[float], list[int]]:
    """A batch in the middle whose factors overflow."""
    trainer, (x, y) = _trainer(**options)
    if "process_group" not in options:
        trainer.joining.deals = True
    stats = [trainer.step(each, y).resolved() for each in (x, x, 1e160 * x, x, x)]
    return [s.loss for s in stats], [s.rejected for s in stats]


def _memory() -> tuple[set[str], str, str]:
    """The states of this process, what the summary says, and what the question for factors is told."""
    trainer, (x, y) = TRAININGS["kfra of wide layers"].trainer(factors="sharded")
    trainer.step(x, y)
    with pytest.raises(GncompileError) as told:
        trainer.factors()
    trainer.explain()
    return {*trainer.compiled.executable.memory.states}, trainer.summary(), str(told.value)


def _fit(trainer: Trainer, data: Any, epochs: int, **options: Any) -> list[float]:
    return trainer.fit(Batches(*data, 16, seed=3), epochs=epochs, progress=False, **options).loss


def _saved(folder: Path) -> Callable[[], list[float]]:
    """Save a training of two processes; one of them goes on from a checkpoint of one."""

    def act() -> list[float]:
        trainer, data = _trainer()
        trainer.save(folder / f"begun{dist.get_rank()}")  # the states of others are as they begin
        losses = _fit(trainer, data, 1, checkpoint=folder / "two", checkpoint_every=2)
        resumed = Trainer.resume(folder / "one", trainer.model)
        return losses + _fit(resumed, data, 1)

    return act


OWN: dict[str, Callable[[], Any]] = {
    "deterministic": _deterministic, "refused": _refused, "memory": _memory,
}  # fmt: skip


def _act(case: str | Path) -> Any:
    if isinstance(case, Path):
        return _saved(case)()
    return OWN[case]() if case in OWN else _together(case)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer, data = _trainer(process_group=False)
    _fit(trainer, data, 1)
    trainer.save(folder / "one")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    return run_on(2, _act, [*SHARDED, *OWN, folder])


@pytest.fixture(scope="module")
def of_three() -> Any:
    return run_on(3, _act, [*SHARDED])


@pytest.mark.parametrize("size", PARTS)
@pytest.mark.parametrize("training", SHARDED)
def test_sharded_trainings_are_those_of_one_process(
    found: Any, of_three: Any, training: str, size: int
) -> None:
    wanted = _alone(training)
    first, *others = (found if size == 2 else of_three)[training]
    assert len(others) == size - 1
    for each in (first, *others):
        assert each.losses == pytest.approx(wanted.losses, rel=TOLERANCE, abs=TOLERANCE)
        assert each.dampings == pytest.approx(wanted.dampings, rel=TOLERANCE)
        for name, parameter in wanted.parameters.items():
            torch.testing.assert_close(
                each.parameters[name], parameter, rtol=TOLERANCE, atol=TOLERANCE
            )
        assert each.sent == each.stated
    for each in others:
        assert first.losses == each.losses
        assert all(map(torch.equal, first.parameters.values(), each.parameters.values()))
    assert len(first.losses) == STEPS


def test_deterministic_trainings_have_the_bits_of_one_process(found: Any) -> None:
    wanted = _deterministic(process_group=False)
    for each in found["deterministic"]:
        assert each.losses == wanted.losses
        assert all(map(torch.equal, each.parameters.values(), wanted.parameters.values()))


def test_a_refused_step_is_refused_by_all(found: Any) -> None:
    losses, rejected = _refused(process_group=False)
    assert rejected[-1] > rejected[1]
    for each in found["refused"]:
        assert each[0] == pytest.approx(losses, rel=TOLERANCE)
        assert each[1] == rejected


def test_each_process_has_the_factors_of_its_layers(found: Any) -> None:
    (first, summary, told), (second, _, _) = found["memory"]
    kept = {f"{kind}.{layer}" for kind in KINDS for layer in ("0", "2", "4", "6")}
    assert first & kept
    assert second & kept
    assert (first | second) & kept == kept
    assert first & second & kept == set()
    assert first - kept == second - kept
    assert "averages and inverses of factors: processes 0 to 1 keep" in summary
    assert "each layer's averages of factors are on one of several processes" in told


def test_checkpoints_are_whole(found: Any, folder: Path) -> None:
    """From one process to two, and from two to one; before the first step the first writes alone."""
    trainer, data = _trainer(process_group=False)
    first = _fit(trainer, data, 1)
    saved = {key: state.clone() for key, state in trainer.state_dict()["states"].items()}
    wanted = first + _fit(
        Trainer.resume(folder / "one", trainer.model, process_group=False), data, 1
    )
    for losses in found[folder]:
        assert losses == pytest.approx(wanted, rel=TOLERANCE)
    resumed = Trainer.resume(folder / "two", trainer.model, process_group=False)
    assert resumed.factors().keys() == {"0", "2", "4"}
    for key, state in resumed.state_dict()["states"].items():
        torch.testing.assert_close(state, saved[key], rtol=TOLERANCE, atol=TOLERANCE)
    begun = Trainer.resume(folder / "begun0", trainer.model, process_group=False)
    assert begun.updates == 0
    assert not (folder / "begun1").exists()
