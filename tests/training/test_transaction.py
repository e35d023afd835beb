"""A step, and a fit, that are interrupted anywhere: before the step or after it, never in between."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from training import assert_same_state, batches, compiled, network, samples, snapshot

import gncompile
from gncompile.errors import CheckpointError, GncompileError
from gncompile.training import checkpoint
from gncompile.training.trainer import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "kfra": {},
    "kfac": {"method": "kfac", "refresh_every": 2, "factor_damping_period": 3},
    "adam": {"method": "adam"},
    "guarded": {"guarded": True, "method": "kfac"},
}
FOLDER = str(Path(gncompile.__file__).parent)
POINTS = 20
"""Lines, out of some hundreds, at which a step is interrupted."""


class Interrupt:
    """Raises KeyboardInterrupt at the ``number``-th line of the package, or of its emitted source."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.raised = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        ours = name.startswith(FOLDER) or "gncompile" in name
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and not self.raised:
            self.left -= 1
            if self.left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._line


def interrupted(act: Callable[[], object], number: int) -> bool:
    """Whether ``act`` was interrupted at its ``number``-th line, or came to its end before."""
    interrupt, before = Interrupt(number), sys.gettrace()
    sys.settrace(interrupt)
    try:
        act()
    except KeyboardInterrupt:
        assert interrupt.raised
    finally:
        sys.settrace(before)
    return interrupt.raised


def lines(act: Callable[[], object]) -> int:
    """How many lines ``act`` runs."""
    count = Interrupt(1 << 60)
    before = sys.gettrace()
    sys.settrace(count)
    try:
        act()
    finally:
        sys.settrace(before)
    return (1 << 60) - count.left


def numbered(trainer: Trainer) -> Callable[[], object]:
    """The next step: the batch depends on the number of updates only."""
    return lambda: trainer.step(*samples(16, seed=20 + trainer.updates))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_interrupted_at_any_line(variant: str) -> None:
    whole = compiled(network(), **VARIANTS[variant])
    begun = compiled(network(), **VARIANTS[variant])
    for _ in range(3):
        numbered(whole)()
        numbered(begun)()
    before = snapshot(whole)
    count = lines(numbered(whole))
    after = snapshot(whole)
    assert count > 60
    outcomes = set()
    for number in (*range(3, count, count // POINTS), *range(count - 4, count + 1)):
        begun.load_state_dict(before)
        interrupted(numbered(begun), number)
        done = begun.updates == 4
        outcomes.add(done)
        assert_same_state(snapshot(begun), after if done else before)
        if not done:
            numbered(begun)()
            assert_same_state(snapshot(begun), after)
    assert outcomes == {False, True}


def test_the_undoing_may_be_interrupted_too() -> None:
    trainer = compiled(network(), "kfac")
    for _ in range(3):
        numbered(trainer)()
    before = snapshot(trainer)
    roll_back = trainer._steps.journal._roll_back
    for number in range(0, 40, 3):
        trainer._executable.run = _failing(trainer, "update")  # type: ignore[method-assign]
        # The error comes after the update; while it is undone, an interrupt.
        trainer._steps.journal._roll_back = lambda n=number: interrupted(roll_back, n)  # type: ignore
        with pytest.raises(MemoryError):
            numbered(trainer)()
        del trainer._executable.run, trainer._steps.journal._roll_back
        assert_same_state(snapshot(trainer), before)


def _failing(trainer: Trainer, phase: str) -> Callable[..., None]:
    """``Executable.run`` that runs out of memory after a phase."""
    run = trainer._executable.run

    def failing(*phases: str) -> None:
        run(*phases)
        if phase in phases:
            raise MemoryError

    return failing


@pytest.mark.parametrize("phase", ["average", "update", "judge_trial"])
def test_any_error_leaves_the_step_undone(phase: str) -> None:
    trainer, reference = compiled(network()), compiled(network())
    for _ in range(2):
        numbered(trainer)()
        numbered(reference)()
    before = snapshot(trainer)
    trainer._executable.run = _failing(trainer, phase)  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        numbered(trainer)()
    del trainer._executable.run
    assert_same_state(snapshot(trainer), before)
    for _ in range(3):
        assert numbered(trainer)() == numbered(reference)()


@pytest.mark.parametrize("variant", ["kfac", "adam"])
def test_a_fit_interrupted_anywhere_is_resumed_to_the_bit(variant: str, tmp_path: Path) -> None:
    options = {**VARIANTS[variant], "gather_samples": 24}  # a step takes two batches
    updates, path = 6, tmp_path / "run.safetensors"
    whole = compiled(network(), **options)
    whole.fit(batches(), updates=updates, progress=False)
    expected = snapshot(whole)
    begun, fresh = compiled(network(), **options), compiled(network(), **options)
    start = snapshot(begun)

    def fit(data: object) -> Callable[[], object]:
        return lambda: begun.fit(data, updates=updates, progress=False)  # type: ignore[arg-type]

    fit(batches())()
    begun.load_state_dict(start)  # what is made once is there now
    count, parted = lines(fit(batches())), set()
    for number in range(7, count, count // POINTS):
        begun.load_state_dict(start)
        begun.place.batches, begun.place.position = None, None
        data = batches()
        assert interrupted(fit(data), number)
        parted.add(begun.updates)
        begun.save(path)
        fresh.load_state_dict(checkpoint.load(path).state)
        left = updates - begun.updates
        for trainer, source in ((fresh, batches()), (begun, data)):
            if left:
                trainer.fit(source, updates=left, progress=False)
            trainer.finish()
            assert_same_state(snapshot(trainer), expected)
    assert len(parted) > 3


def test_a_handler_that_saves_during_a_step_is_told_to_wait(tmp_path: Path) -> None:
    trainer = compiled(network())
    run, told = trainer._executable.run, []

    def handler(*phases: str) -> None:
        run(*phases)
        with pytest.raises(GncompileError, match="a step of this trainer is under way"):
            trainer.save(tmp_path / "run.safetensors")
        told.append(phases)

    trainer._executable.run = handler  # type: ignore[method-assign]
    reference = compiled(network())
    assert numbered(trainer)() == numbered(reference)()
    assert told
    del trainer._executable.run
    trainer.save(tmp_path / "run.safetensors")


def test_another_thread_is_told_to_wait() -> None:
    trainer = compiled(network())
    run, found = trainer._executable.run, []

    def ask() -> None:
        try:
            trainer.predict(samples(4)[0])
        except GncompileError as error:
            found.append(str(error))

    def slow(*phases: str) -> None:
        run(*phases)
        if "update" in phases:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

    trainer._executable.run = slow  # type: ignore[method-assign]
    numbered(trainer)()
    assert len(found) == 1
    assert "another thread" in found[0]


def test_loading_a_state_is_finished_later() -> None:
    trainer, other = compiled(network()), compiled(network(seed=5))
    for _ in range(3):
        numbered(other)()
    state = snapshot(other)
    count = lines(lambda: trainer.load_state_dict(state))
    outcomes = set()
    fresh = snapshot(compiled(network()))
    for number in range(0, count, count // POINTS):
        trainer.load_state_dict(fresh)
        interrupted(lambda: trainer.load_state_dict(state), number)
        loaded = trainer.updates == 3 or trainer.state_dict()["counters"]["updates"] == 3
        outcomes.add(loaded)
        assert_same_state(snapshot(trainer), state if loaded else fresh)
    assert outcomes == {False, True}


def test_batches_move_on_in_one_piece() -> None:
    expected = [batch for _ in range(2) for batch in batches()]
    for number in range(40):
        data = batches()
        data.next()
        place = data.state_dict()
        taken: list[tuple[Tensor, Tensor]] = []
        interrupted(lambda d=data, t=taken: t.append(d.next()), number)  # type: ignore[misc]
        moved = data.state_dict() != place
        assert moved or not taken
        following = data.next()
        assert torch.equal(following[0], expected[1 + moved][0])


@pytest.mark.parametrize(
    "change", [{"position": 4}, {"position": -1}, {"epoch": "1"}, {"seed": -1}]
)
def test_an_impossible_position_is_refused(change: dict[str, Any]) -> None:
    data = batches()
    with pytest.raises(CheckpointError, match=f"the saved loader has the {next(iter(change))}"):
        data.load_state_dict({**data.state_dict(), **change})
