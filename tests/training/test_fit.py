"""``Trainer.fit``: lengths, data sources, validation, early stopping, callbacks, bad batches, progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training import (
    SAMPLES,
    assert_same_state,
    batches,
    compiled,
    network,
    overshooting,
    samples,
    snapshot,
)

import gncompile
from gncompile.data import Batches
from gncompile.errors import BatchError, DataError, GncompileError
from gncompile.training import started
from gncompile.training.ahead import AheadOfHost
from gncompile.training.records import History, Record
from gncompile.training.trainer import Trainer

PER_EPOCH = 4
"""50 samples in batches of 16, the last of two."""


def quiet(trainer: Trainer, train: object, **options: object) -> History:
    return trainer.fit(train, progress=False, **options)  # type: ignore[arg-type]


# --- Length and data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "steps"), [({"updates": 7}, 7), ({"epochs": 3}, 12)])
def test_length(options: dict[str, int], steps: int) -> None:
    trainer = compiled(network())
    history = quiet(trainer, batches(), **options)
    assert history.update == list(range(1, steps + 1))
    assert trainer.updates == steps
    again = quiet(trainer, batches(), **options)
    assert again.update == list(range(steps + 1, 2 * steps + 1))


def test_a_begun_epoch_is_the_first() -> None:
    data = batches()
    for _ in range(3):
        data.next()
    assert len(quiet(compiled(network()), data, epochs=2)) == 1 + PER_EPOCH


def test_fit_is_steps_in_order() -> None:
    fitted, stepped = compiled(network()), compiled(network())
    history = quiet(fitted, batches(), epochs=2)
    data, stats = batches(), []
    for _ in range(2 * PER_EPOCH):
        stats.append(stepped.step(*data.next()))
    assert history.loss == [s.loss for s in stats]
    assert history.damping == [s.damping for s in stats]
    assert history.step_size == [s.step_size for s in stats]
    expected, got = snapshot(stepped), snapshot(fitted)
    del expected["place"], got["place"]  # steps taken by hand have no place in an order
    assert_same_state(got, expected)


def _list() -> list[tuple[Tensor, Tensor]]:
    x, y = samples()
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, SAMPLES, 16)]


def _loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*samples()), batch_size=16)


@pytest.mark.parametrize("source", [_list, _loader])
@pytest.mark.parametrize("options", [{"updates": 10}, {"epochs": 2}])
def test_other_sources_are_started_again(
    source: Callable[[], object], options: dict[str, int]
) -> None:
    expected = [batch for _ in range(3) for batch in _list()]
    trainer = compiled(network())
    losses = quiet(compiled(network()), source(), **options).loss
    assert len(losses) == (10 if "updates" in options else 8)
    assert losses == [trainer.step(x, y).loss for x, y in expected[: len(losses)]]


def test_a_one_shot_iterator_ends_where_it_ends() -> None:
    assert len(quiet(compiled(network()), iter(_list()), updates=100)) == PER_EPOCH


def test_wrong_data() -> None:
    trainer = compiled(network())
    with pytest.raises(DataError, match="the training data has no batches"):
        quiet(trainer, [], epochs=1)
    with pytest.raises(
        GncompileError, match="the training data is a tuple of tensors, not something"
    ):
        quiet(trainer, samples(), epochs=1)
    assert trainer.updates == 0


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "updates=None, epochs=None"),
        ({"updates": 3, "epochs": 1}, "updates=3, epochs=1"),
        ({"updates": 0}, "updates=0"),
        ({"updates": 3, "early_stop": 2}, "early_stop=2 with validation=None"),
    ],
)
def test_wrong_options(options: dict[str, int], found: str) -> None:
    with pytest.raises(GncompileError) as caught:
        quiet(compiled(network()), batches(), **options)
    assert found in str(caught.value)
    assert "what to do: give " in str(caught.value)


# --- Validation and early stopping --------------------------------------------------------------------


def test_validation_once_an_epoch_and_at_the_end() -> None:
    trainer = compiled(network(), average=0.5)
    held_out = samples(20, seed=3)
    history = quiet(trainer, batches(), updates=10, validation=held_out)
    validated = [record.update for record in history if record.validation_loss is not None]
    assert validated == [4, 8, 10]
    assert history[-1].validation_loss == trainer.evaluate(*held_out)
    assert history.best is min(
        (r for r in history if r.validation_loss is not None), key=lambda r: r.validation_loss or 0
    )
    history = quiet(trainer, batches(), updates=5, validation=held_out, validate_every=2)
    assert [r.update for r in history if r.validation_loss is not None] == [12, 14, 15]


def test_validation_changes_nothing() -> None:
    with_it, without = compiled(network(), "kfac"), compiled(network(), "kfac")
    losses = quiet(with_it, batches(), updates=9, validation=samples(33), validate_every=1).loss
    assert losses == quiet(without, batches(), updates=9).loss


def test_early_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = compiled(network())
    losses = [5.0, 4.0, 4.5, math.nan, 3.0, 3.0, 3.5, 2.0]
    script = iter(losses)
    monkeypatch.setattr(trainer.evaluation, "loss", lambda *_, **__: next(script))
    options = {"validation": samples(5), "validate_every": 1, "early_stop": 2}
    history = quiet(trainer, batches(), updates=100, **options)
    assert history.stopped_early
    assert len(history) == 4  # 4.5 and NaN are no better than 4
    assert history.best is not None
    assert history.best.validation_loss == 4.0
    # A new fit starts to count anew, and 3.0 is no better than 3.0.
    history = quiet(trainer, batches(), updates=100, **options)
    assert [r.validation_loss for r in history] == [3.0, 3.0, 3.5]
    assert not quiet(trainer, batches(), updates=1, **options).stopped_early


# --- Callbacks and bad batches ------------------------------------------------------------------------


class Enough(Exception):
    """What a callback raises to end a fit."""


def test_a_callback_may_save_and_raise(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer = compiled(network(), "kfac")

    def stop(record: Record) -> None:
        if record.update == 6:
            trainer.save(path)
            raise Enough

    with pytest.raises(Enough):
        quiet(trainer, batches(), updates=12, callbacks=[stop])
    resumed = Trainer.resume(path, network(seed=5))
    assert resumed.updates == 6
    whole = quiet(compiled(network(), "kfac"), batches(), updates=12)
    assert quiet(resumed, batches(), updates=6).loss == whole.loss[6:]


def test_callbacks_see_every_record() -> None:
    seen: list[Record] = []
    held_out = samples(5)
    history = quiet(
        compiled(network()), batches(), updates=5, callbacks=[seen.append], validation=held_out
    )
    assert seen == history.records
    assert all(record.samples_per_second > 0 for record in seen)
    assert history.to_list()[3]["validation_loss"] == history.validation_loss[3]
    with pytest.raises(AttributeError, match="Did you mean 'loss'"):
        _ = history.los


def _spoiled() -> Batches:
    """Batches of one sample a step, of which sample 7 is not a number."""
    x, y = samples(10)
    x[7, 1] = math.nan
    return Batches(x, y, 1)


def test_a_bad_batch_raises_and_the_fit_can_go_on() -> None:
    trainer, data = compiled(network()), _spoiled()
    with pytest.raises(BatchError, match="non-finite"):
        quiet(trainer, data, epochs=1)
    done = trainer.updates
    assert done < 10
    assert len(quiet(trainer, data, epochs=1)) == 9 - done


def test_bad_batches_can_be_skipped() -> None:
    history = quiet(compiled(network()), _spoiled(), epochs=3, skip_bad_batches=True)
    assert (len(history), history.skipped) == (27, 3)
    history = quiet(compiled(network()), _spoiled(), updates=12, skip_bad_batches=True)
    assert len(history) == 12


def test_skipping_ends_where_all_batches_are_bad() -> None:
    x, y = samples(10)
    data = Batches(x * math.nan, y, 5)
    with pytest.raises(BatchError, match="non-finite"):
        quiet(compiled(network()), data, updates=1, skip_bad_batches=True)


def test_a_fit_does_not_end_at_a_broken_update() -> None:
    trainer, x, y = overshooting()
    before = float(trainer.loss(x, y))
    history = quiet(trainer, [(x, y)], updates=1)
    assert history[0].rejected == 0
    assert float(trainer.loss(x, y)) == before
    assert trainer.rejected == 1


def test_a_guarded_fit_does_not_end_at_a_broken_update_either() -> None:
    """The same batch may be bad, too: then nothing is undone, and it was counted before."""
    trainer, x, y = overshooting(guarded=True)
    before = float(trainer.loss(x, y))
    history = quiet(trainer, [(x, y)], updates=1)
    assert history[0].rejected == 0
    assert float(trainer.loss(x, y)) == before
    assert trainer.rejected == 1
    quiet(trainer, [(x, y * math.nan)], updates=1)
    assert float(trainer.loss(x, y)) == before
    assert trainer.rejected == 2


# --- Steps ahead of the host --------------------------------------------------------------------------


def reads(monkeypatch: pytest.MonkeyPatch, steps: int = 4, seconds: float = math.inf) -> list[int]:
    """How many steps were started when a report was read, of each read."""
    monkeypatch.setattr(started, "STEPS_AHEAD", steps)
    monkeypatch.setattr(started, "SECONDS_AHEAD", seconds)
    seen: list[int] = []
    read = AheadOfHost.read

    def noted(self: AheadOfHost, number: int) -> Tensor:
        seen.append(self._written)
        return read(self, number)

    monkeypatch.setattr(AheadOfHost, "read", noted)
    return seen


def test_a_guarded_fit_reads_several_steps_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    plain, guarded = (compiled(network(), guarded=g) for g in (False, True))
    options = {"epochs": 3, "validation": samples(20, seed=3), "validate_every": 6}
    expected, history = (quiet(trainer, batches(), **options) for trainer in (plain, guarded))
    assert seen == [4] * 4 + [6] * 2 + [10] * 4 + [12] * 2  # validated after 6 and 12
    assert history.update == expected.update
    assert all(speed > 0 for speed in history.samples_per_second)
    # The guarded program computes the same in another order.
    for name in ("loss", "objective", "damping", "step_size", "momentum", "predicted"):
        assert getattr(history, name) == pytest.approx(getattr(expected, name), rel=1e-7), name
    validated = [[x or 0.0 for x in h.validation_loss] for h in (history, expected)]
    assert validated[0] == pytest.approx(validated[1], rel=1e-10)
    assert sum(loss > 0 for loss in validated[0]) == 2


def test_what_asks_for_every_record_gets_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    trainer, told = compiled(network(), guarded=True), []
    quiet(trainer, batches(), updates=5, callbacks=[lambda r: told.append(r.update)])
    assert seen == told == [1, 2, 3, 4, 5]


def test_steps_are_not_left_unread_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch, seconds=0.0)
    quiet(compiled(network(), guarded=True), batches(), updates=3)
    assert seen == [1, 2, 3]


def test_steps_of_an_iterator_that_ends_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch, steps=3)
    history = quiet(compiled(network(), guarded=True), iter(_list()), updates=100)
    assert history.update == [1, 2, 3, 4]
    assert seen == [3, 3, 3, 4]


def test_a_guarded_fit_counts_bad_batches_as_rejected() -> None:
    trainer = compiled(network(), guarded=True, search_steps=0, damping_period=100)
    history = quiet(trainer, _spoiled(), epochs=1)
    assert (len(history), history.skipped) == (10, 0)
    bad = [n for n, loss in enumerate(history.loss) if math.isnan(loss)]
    assert len(bad) == 1
    assert history.rejected == [int(n >= bad[0]) for n in range(10)]


# --- Progress -----------------------------------------------------------------------------------------


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(network()).fit(batches(), updates=5, validation=samples(5))
    shown = capsys.readouterr()
    assert shown.out == ""
    first, last = shown.err.splitlines()
    assert first.startswith("1/5  loss ")
    for text in ("damping ", "step size ", " samples/s", " left"):
        assert text in first
    assert last.startswith("5 updates in 00:0")
    assert ", validation " in last
    assert last.endswith("ended: 5 updates made")


def test_small_batches_that_are_joined_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    (x, y), model = samples(600), network()
    trainer = gncompile.compile(model, "mse", x)
    history = trainer.fit(Batches(x, y, 32), epochs=1)
    told, last = capsys.readouterr().err.splitlines()[-2:]
    low, high = min(history.samples), max(history.samples)
    joined = f"batches joined for most updates, {low} to {high} samples each"
    assert 32 < low < high
    assert told == f"{joined}; gather_samples=1, gather_noise=None keep them apart"
    assert joined in repr(history)
    assert "updates in" in last
    assert history.joined == len(history) == 3
    apart = trainer.fit([(x[:300], y[:300]), (x, y)], epochs=1)
    assert "joined" not in capsys.readouterr().err + repr(apart)


def test_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    compiled(network()).fit(batches(), updates=5)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "damping" in shown
    assert "━" in shown


def test_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(network()).fit(batches(), updates=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_first_order_methods_show_no_damping(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(network(), "adam").fit(batches(), updates=2)
    shown = capsys.readouterr().err
    assert "loss" in shown
    assert "damping" not in shown


def test_seeded_data_order_is_shared_by_methods() -> None:
    torch.manual_seed(99)  # the order depends on the loader's own seed only
    a = quiet(compiled(network()), batches(), updates=1).loss
    torch.manual_seed(7)
    assert quiet(compiled(network(), "adam"), batches(), updates=1).loss == pytest.approx(a)
