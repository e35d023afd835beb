"""The best of a fit: when it ends early, what is kept and reported, and what a resumed fit knows of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training import assert_same_state, batches, compiled, network, samples, snapshot

import gncompile
from gncompile.errors import GncompileError
from gncompile.training.early_stop import Best, EarlyStop
from gncompile.training.records import History, Record
from gncompile.training.trainer import Trainer

HELD_OUT = samples(20, seed=3)
EVERY: dict[str, Any] = {"validation": HELD_OUT, "validate_every": 1, "progress": False}


def scripted(trainer: Trainer, losses: list[float]) -> Trainer:
    """``trainer`` with these as its next validation losses."""
    script = iter(losses)
    trainer.evaluation.loss = lambda *_, **__: next(script)  # type: ignore[method-assign]
    return trainer


def unscripted(trainer: Trainer) -> Trainer:
    vars(trainer.evaluation).pop("loss", None)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


# --- What is better ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("higher", "min_delta", "values", "best", "waited"),
    [
        (False, 0.0, [5.0, 4.0, 4.0, math.nan], 4.0, 2),
        (True, 0.0, [0.5, 0.7, 0.6], 0.7, 1),
        (False, 0.5, [5.0, 4.75, 4.5], 4.5, 2),  # each within half of 5
        (False, 0.5, [5.0, 4.75, 4.25], 4.25, 0),
        (True, 0.1, [math.nan, -math.inf, 0.5, 0.55], 0.55, 1),
        (False, 0.0, [math.nan, math.inf], None, 2),
    ],
)
def test_the_best(
    higher: bool, min_delta: float, values: list[float], best: float | None, waited: int
) -> None:
    known, kept = Best(), iter(range(9))
    for value in values:
        known = known.after(value, higher, min_delta, lambda: {"n": torch.tensor(next(kept))})
    assert (known.value, known.waited) == (best, waited)
    assert Best.of(known.numbers(), known.parameters) == known


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"patience": 0}, "patience is 0"),
        ({"patience": True}, "patience is True"),
        ({"patience": 1, "min_delta": -1.0}, "min_delta is -1.0"),
        ({"patience": 1, "min_delta": math.nan}, "min_delta is nan"),
        ({"patience": 1, "monitor": None}, "monitor is None"),
    ],
)
def test_no_early_stop(options: dict[str, Any], found: str) -> None:
    with pytest.raises(GncompileError, match=found):
        EarlyStop(**options)


# --- What is kept -------------------------------------------------------------------------------------------

LOSSES = [5.0, 3.0, 4.0, 3.5, 6.0, 7.0]


@pytest.mark.parametrize("method", ["kfra", "adam"])
def test_the_best_is_reported_until_the_next_step(method: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer, plain = (
        compiled(network(), method, average=0.5),
        compiled(network(), method, average=0.5),
    )
    scripted(trainer, LOSSES)
    history = trainer.fit(batches(), updates=6, early_stop=EarlyStop(3), checkpoint=path, **EVERY)
    assert (len(history), history.stopped_early) == (5, True)
    assert history.ended == "no better validation loss in 3 validations"
    assert history.best is history[1]
    unscripted(trainer)

    data = batches()
    plain.fit(data, updates=2, progress=False)
    best = weights(plain)
    assert_equal(weights(trainer), best)
    # One rule: the model, evaluation, predictions and the file agree.
    assert trainer.evaluate(*HELD_OUT) == plain.evaluate(*HELD_OUT)
    assert torch.equal(trainer.predict(HELD_OUT[0]), plain.predict(HELD_OUT[0]))
    file = load_file(path)
    assert_equal({name: file[f"model/{name}"] for name in best}, best)
    resumed = Trainer.resume(path, network(seed=5))
    assert_equal(weights(resumed), best)
    assert resumed.evaluate(*HELD_OUT) == plain.evaluate(*HELD_OUT)

    # A step goes on from the latest, and then these are what is reported.
    plain.fit(data, updates=3, progress=False)
    x, y = data.next()
    for each in (trainer, resumed, plain):
        each.step(x, y)
    for each in (trainer, resumed):
        assert_same_state(
            {k: v for k, v in snapshot(each).items() if k not in ("best", "place")},
            {k: v for k, v in snapshot(plain).items() if k not in ("best", "place")},
        )
        assert each.evaluate(*HELD_OUT) == plain.evaluate(*HELD_OUT)


def test_keep_best_is_a_choice() -> None:
    kept, left = compiled(network()), compiled(network())
    scripted(kept, LOSSES).fit(batches(), updates=4, keep_best=True, **EVERY)
    options = {"early_stop": 3, "keep_best": False, **EVERY}
    scripted(left, LOSSES).fit(batches(), updates=9, **options)
    plain, data = compiled(network()), batches()
    plain.fit(data, updates=2, progress=False)
    assert_equal(weights(kept), weights(plain))
    plain.fit(data, updates=3, progress=False)
    assert_equal(weights(left), weights(plain))


def test_other_parameters_are_the_best_no_longer() -> None:
    trainer = scripted(compiled(network()), LOSSES)
    trainer.fit(batches(), updates=4, keep_best=True, **EVERY)
    unscripted(trainer)
    other = network(seed=9)
    trainer.model.load_state_dict(other.state_dict())
    z = other(HELD_OUT[0])
    assert torch.allclose(trainer.predict(HELD_OUT[0]), z, rtol=1e-12, atol=1e-12)
    trainer.finish()
    assert_equal(weights(trainer), dict(other.named_parameters()))


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_fit_ends_with_the_same_weights(at: int, tmp_path: Path) -> None:
    """Interrupted before the best, and behind it."""
    path = tmp_path / "checkpoint.safetensors"
    options: dict[str, Any] = {"early_stop": EarlyStop(3, min_delta=0.1), **EVERY}
    whole = scripted(compiled(network(), average=0.5), LOSSES)
    whole.fit(batches(), updates=6, **options)

    begun = scripted(compiled(network(), average=0.5), LOSSES)

    def interrupted(record: Record) -> None:
        if record.update == at:
            begun.save(path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun.fit(batches(), updates=6, callbacks=interrupted, **options)
    begun.finish()  # leaves the best so far
    assert_equal(weights(begun), dict(begun.place.best.parameters))
    resumed = scripted(Trainer.resume(path, network(seed=5)), LOSSES[at:])
    history = resumed.fit(batches(), updates=6 - at, **options)
    assert len(history) == 5 - at
    assert_same_state(snapshot(resumed), snapshot(whole))


def test_who_resumes_what_early_stopping_ended_waits_anew(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer = scripted(compiled(network()), [2.0, 3.0, 3.0])
    trainer.fit(batches(), updates=9, early_stop=2, checkpoint=path, **EVERY)
    resumed = scripted(Trainer.resume(path, network()), [4.0, 2.5, 9.0])
    history = resumed.fit(batches(), updates=9, early_stop=2, **EVERY)
    assert history.validation_loss == [4.0, 2.5]
    assert_equal(weights(resumed), weights(trainer))  # 2.0 is the best still


def test_a_metric_is_monitored_in_its_direction() -> None:
    values = iter([0.5, 0.9, 0.7, 0.6])
    score = gncompile.Metric("score", lambda z, y: next(values), higher_is_better=True)
    trainer = compiled(network())
    stop = EarlyStop(2, monitor="score")
    history = trainer.fit(batches(), updates=9, metrics=[score], early_stop=stop, **EVERY)
    assert history.score == [0.5, 0.9, 0.7, 0.6]
    assert history.best is history[1]
    assert trainer.evaluate(*HELD_OUT) == history[1].validation_loss
    assert history.to_list()[2]["score"] == 0.7
    assert copy.deepcopy(history) == history


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"early_stop": EarlyStop(2, monitor="acuracy")}, "Did you mean 'accuracy'"),
        ({"early_stop": EarlyStop(2, monitor="own")}, "not known whether more is better"),
        ({"early_stop": "soon"}, "early_stop='soon'"),
        ({"validation": None}, "metrics=.* with validation=None"),
        (
            {"validation": None, "metrics": (), "keep_best": True},
            "keep_best=True with validation=None",
        ),
    ],
)
def test_impossible_monitors(options: dict[str, Any], found: str) -> None:
    def own(z: Tensor, y: Tensor) -> float:
        return 0.0

    given = {"metrics": ["accuracy", own], **EVERY, **options}
    with pytest.raises(GncompileError, match=found):
        TRAINER.fit(batches(), updates=1, **given)
    assert TRAINER.updates == 0


TRAINER = compiled(network())

# --- Callbacks ----------------------------------------------------------------------------------------------


def fitted(callbacks: Any, trainer: Trainer | None = None, **options: Any) -> History:
    trainer = trainer or compiled(network())
    return trainer.fit(batches(), updates=9, progress=False, callbacks=callbacks, **options)


def test_callbacks_stop_a_fit(tmp_path: Path) -> None:
    def enough(record: Record) -> bool:
        return record.update == 3

    def done(record: Record) -> None:
        if record.update == 5:
            raise gncompile.StopTraining("the loss is low")

    seen: list[int] = []
    path, trainer = tmp_path / "checkpoint.safetensors", compiled(network())
    history = fitted([enough, lambda r: seen.append(r.update)], trainer, checkpoint=path)
    assert (history.ended, history.stopped_early) == ("the callback enough stopped it", True)
    assert seen == [1, 2, 3]
    assert Trainer.resume(path, network()).updates == 3
    history = fitted(done, trainer)
    assert (len(history), history.ended) == (2, "the loss is low")
    assert len(fitted(lambda r: [r], trainer)) == 9  # what only counts as true does not


def test_stop_iteration_is_told(tmp_path: Path) -> None:
    trainer, numbers = compiled(network()), iter([1, 2])
    with pytest.raises(GncompileError, match="raised StopIteration at update 3\n.*StopTraining"):
        fitted(lambda record: next(numbers), trainer)
    assert trainer.updates == len(trainer.history) == 3


@pytest.mark.parametrize("guarded", [False, True])
def test_the_history_outlives_an_interrupt(guarded: bool) -> None:
    trainer, data = compiled(network(), guarded=guarded), batches()

    def given() -> Any:
        for _ in range(5):
            yield data.next()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(given(), updates=9, progress=False)
    assert trainer.history.update == [1, 2, 3, 4, 5]
    assert trainer.history.ended == "KeyboardInterrupt"
    assert trainer.updates == 5
