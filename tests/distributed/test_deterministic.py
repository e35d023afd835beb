"""Deterministic steps: any number of processes gives the same bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_trainings import TRAININGS, Outcome, fixed
from processes import run_on

from gncompile.data import Batches
from gncompile.errors import CompileError, ProcessesError
from gncompile.program.collectives import AllGather
from gncompile.program.reductions import for_processes
from gncompile.program.shards import segmented
from gncompile.runtime.shards import halved

GROUPS = {
    2: ["kfra of wide layers", "dropout", "refused", "validated", "asked of one"],
    4: ["kfra", "kflr", "kfac", "exact", "adam", "dropout", "newton_cg", "kfra, guarded", "few samples",
        "reference", "sharded"],
}  # fmt: skip


def _trained(case: str, **options: object) -> Outcome:
    if case == "sharded":  # so few directions that vectors are added up
        return fixed("kfra of shared weights", factors="sharded", **options)
    samples = 5 if case == "few samples" else None
    name = "kfra" if case in ("few samples", "reference") else case
    backend = "reference" if case == "reference" else "torch"
    return fixed(name, samples, backend=backend, **options)


def _refused() -> list[str]:
    trainer, (x, y) = TRAININGS["kfra"].trainer(deterministic=True)
    trainer.joining.deals = False
    with pytest.raises(ProcessesError) as told:
        trainer.step(x, y)
    return [str(told.value)]


def _validated(**options: object) -> tuple[list[float], list[float | None]]:
    trainer, (x, y) = TRAININGS["kfra"].trainer(deterministic=True, **options)
    history = trainer.fit(Batches(x, y, 16), epochs=1, validation=(x, y), progress=False)
    return history.loss, history.validation_loss


def _asked_of_one(**options: object) -> float | None:
    """The loss between two steps, which the first process computes alone."""
    trainer, (x, y) = TRAININGS["kfra"].trainer(deterministic=True, **options)
    trainer.step(x, y)
    first = not dist.is_initialized() or dist.get_rank() == 0
    found = float(trainer.loss(x, y)) if first else None
    trainer.step(x, y)
    return found


OWN = {"refused": _refused, "validated": _validated, "asked of one": _asked_of_one}
EVERY = [(size, case) for size, cases in GROUPS.items() for case in cases if case not in OWN]


def _act(case: str) -> object:
    return OWN[case]() if case in OWN else _trained(case)


@cache
def _found(size: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = run_on(size, _act, GROUPS[size])
    return found


@cache
def _alone(case: str) -> Outcome:
    return _trained(case, process_group=False)


@pytest.mark.parametrize(("size", "case"), EVERY)
def test_processes_have_the_bits_of_one(size: int, case: str) -> None:
    wanted = _alone(case)
    for found in _found(size)[case]:
        assert found.losses == wanted.losses
        assert found.dampings == wanted.dampings
        assert all(map(torch.equal, found.parameters.values(), wanted.parameters.values()))
        assert found.sent == found.stated


@pytest.mark.parametrize("case", ["kfra", "dropout", "kflr"])
def test_the_steps_are_those_of_the_whole_batch(case: str) -> None:
    wanted = fixed(case, deterministic=False, process_group=False)
    found = _alone(case)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-12)  # sums in another order
    assert found.losses != wanted.losses or not torch.equal(
        *(next(iter(each.parameters.values())) for each in (found, wanted))
    )  # so that the shards are there


def test_samples_of_ones_own_are_refused() -> None:
    for (told,) in _found(2)["refused"]:
        assert "deterministic=True, and every process has samples of its own" in told


def test_validation_and_questions_are_those_of_one() -> None:
    assert _found(2)["validated"] == [_validated(process_group=False)] * 2
    assert _found(2)["asked of one"] == [_asked_of_one(process_group=False), None]


def test_other_numbers_of_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Three:
        rank, size = 0, 3

    monkeypatch.setattr("gncompile.app.compile.current", lambda group: Three())
    assert not dist.is_initialized()
    with pytest.raises(CompileError, match="deterministic=True on 3 processes"):
        TRAININGS["kfra"].trainer(deterministic=True)


def test_sums_do_not_depend_on_where_the_shards_are() -> None:
    rows = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    whole = halved(rows)
    for size in (2, 4, 8):
        each = [halved(rows[rank::size]) for rank in range(size)]
        assert torch.equal(halved(torch.stack(each)), whole)
    torch.testing.assert_close(whole, rows.sum(dim=0))


def test_the_picture_of_the_segments() -> None:
    trainer, _ = TRAININGS["kfra"].trainer(process_group=False)
    found = segmented(for_processes(trainer.compiled.program))
    first, second = found.segments["gradient"]
    assert first in found.apart
    assert second not in found.apart
    assert "bucket_gradient" in {i.name for i in found.program.phase(first)}
    assert {i.inputs for i in found.program.phase(second) if i.name == "loss_all"} == {
        ("bucket_gradient",)
    }


def test_inverses_take_the_same_way_on_one_process() -> None:
    """As a triangle: an inverse by eigenvalues need not be symmetric to the last bit."""
    trainer, (x, y) = TRAININGS["kfra of wide layers"].trainer(
        deterministic=True, process_group=False
    )
    trainer.step(x, y)
    states = trainer.compiled.executable.memory.states
    inverses = [s for key, s in states.items() if "_inverse." in key and s.shape == (225, 225)]
    assert inverses
    assert all(torch.equal(inverse, inverse.mT) for inverse in inverses)
    program = trainer.compiled.program
    assert any(isinstance(i.op, AllGather) for i in program)
