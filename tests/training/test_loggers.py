"""Where the numbers of a fit go, and that nothing that happens there ends a training."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training import batches, compiled, network, samples

import gncompile
from gncompile import CSVLogger
from gncompile.errors import GncompileError, LoggerWarning
from gncompile.training.records import History, Record
from gncompile.training.trainer import Trainer

HELD_OUT = samples(20, seed=3)


def fitted(
    loggers: Any, trainer: Trainer | None = None, updates: int = 6, **options: Any
) -> History:
    trainer = trainer or compiled(network(), "kfac")
    return trainer.fit(batches(), updates=updates, progress=False, loggers=loggers, **options)


class Kept:
    """Keeps what it is told; ``log`` as Weights & Biases has it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.flushed = 0

    def log(self, data: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self.told.append((step, dict(data)))

    def flush(self) -> None:
        self.flushed += 1


def test_numbers_of_every_step() -> None:
    kept = Kept()
    options = {"validation": HELD_OUT, "validate_every": 3, "metrics": "rmse"}
    history = fitted(kept, **options)
    assert kept.flushed == 1
    assert [step for step, _ in kept.told] == history.update
    for (_, numbers), record in zip(kept.told, history, strict=True):
        expected = {k: v for k, v in record.to_dict().items() if v is not None and k != "update"}
        assert numbers == expected
    always = {"epoch", "loss", "objective", "damping", "step_size", "momentum", "rejected"}
    assert always | {"samples", "samples_per_second"} <= {*kept.told[0][1]}
    assert {"validation_loss", "rmse", "rho"} <= {*kept.told[2][1], *kept.told[5][1]}
    assert "rmse" not in kept.told[0][1]
    assert [numbers["epoch"] for _, numbers in kept.told] == [0, 0, 0, 0, 1, 1]
    listed = compiled(network(), "kfac").fit([*batches()], updates=6, progress=False)
    assert listed.epoch == history.epoch


def test_loggers_are_known_by_their_methods() -> None:
    told: list[Any] = []
    lightning = SimpleNamespace(
        log_metrics=lambda values, step: told.append((step, values["loss"])),
        log=lambda *_: pytest.fail("log_metrics goes first"),
        save=lambda: told.append("saved"),
    )
    writer = SimpleNamespace(add_scalar=lambda name, value, step: told.append((step, name, value)))
    history = fitted([lightning], updates=1)
    assert told == [(1, history[0].loss), "saved"]
    told.clear()
    history = fitted((writer,), updates=1)
    assert (1, "loss", history[0].loss) in told
    with pytest.raises(GncompileError, match="loggers holds 'csv'"):
        fitted("csv")
    with pytest.raises(GncompileError, match="loggers holds 3"):
        fitted([Kept(), 3])


def test_a_logger_that_raises_does_not_end_a_training() -> None:
    class Broken(Kept):
        def log(self, data: Mapping[str, float], step: int | None = None) -> None:
            super().log(data, step)
            raise OSError("no space left")

        def flush(self) -> None:
            raise RuntimeError

    broken, kept = Broken(), Kept()
    with pytest.warns(LoggerWarning, match="Broken raised OSError: no space left") as warned:
        history = fitted([broken, kept])
    assert len(warned) == 1
    assert len(history) == len(broken.told) == len(kept.told) == 6
    with pytest.warns(LoggerWarning, match="the logger Logger raised TypeError"):
        fitted(logging.getLogger("test"), updates=1)


def test_loggers_are_flushed_where_a_fit_is_interrupted() -> None:
    kept = Kept()

    def interrupt(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(kept, callbacks=interrupt)
    assert (len(kept.told), kept.flushed) == (1, 1)


# --- CSV --------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "fit.csv"
    options = {"validation": HELD_OUT, "validate_every": 3, "metrics": ["rmse"]}
    history = fitted(CSVLogger(path), **options)
    assert next(csv.reader(path.open()))[0] == "update"
    for row, numbers in zip(rows(path), history.to_list(), strict=True):
        assert {k: float(v) for k, v in row.items() if v} == {
            k: v for k, v in numbers.items() if v is not None
        }


def test_a_resumed_training_drops_the_lines_it_does_again(tmp_path: Path) -> None:
    log, path = CSVLogger(tmp_path / "fit.csv"), tmp_path / "checkpoint.safetensors"
    trainer = compiled(network(), "kfac")

    def interrupt(record: Record) -> None:
        if record.update == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(log, trainer, 9, checkpoint=path, checkpoint_every=3, callbacks=interrupt)
    with log.path.open("a") as file:
        file.write("6,0.1")  # cut short by a crash
    resumed = Trainer.resume(path, network())
    history = fitted(CSVLogger(log.path), resumed, 4)
    assert [int(row["update"]) for row in rows(log.path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [float(row["loss"]) for row in rows(log.path)][3:] == history.loss
    again = fitted(log, updates=2)  # a training that begins anew
    assert [float(row["loss"]) for row in rows(log.path)] == again.loss


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("age,height\n3,99\n", "no log of a training, whose first column is 'update'"),
        ("update,loss\none,2\n", "damaged in line 2"),
        ("update,loss\n1,2\n2,3,4\n", "damaged in line 3"),
        ("update,loss\n\n", "damaged in line 2"),
        (b"update\n\xff\n", "no log of a training: "),
    ],
)
def test_other_files_are_left_alone(text: str | bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(content)
    with pytest.raises(GncompileError, match=found):
        CSVLogger(path).rewind(0)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = compiled(network(), "kfac")
    with pytest.raises(GncompileError, match="the log cannot be written"):
        fitted(CSVLogger(tmp_path / "file" / "fit.csv"), trainer)
    assert trainer.updates == 0


# --- TensorBoard --------------------------------------------------------------------------------------------


def test_tensorboard_events_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, path = compiled(network(), "kfac"), tmp_path / "checkpoint.safetensors"
    log = gncompile.TensorBoardLogger(tmp_path / "events")
    begun = fitted(log, trainer, 3, checkpoint=path)
    fitted(log, trainer, 2)  # these are not in the checkpoint, and done again
    resumed = fitted(log, Trainer.resume(path, network()), 3, validation=HELD_OUT)
    events = EventAccumulator(str(log.folder)).Reload()
    loss = events.Scalars("loss")
    assert [event.step for event in loss] == [1, 2, 3, 4, 5, 6]
    # TensorBoard keeps 32 bits.
    assert [event.value for event in loss] == pytest.approx(begun.loss + resumed.loss, rel=1e-6)
    (last,) = events.Scalars("validation_loss")[-1:]
    assert (last.step, last.value) == (6, pytest.approx(resumed[-1].validation_loss, rel=1e-6))


def test_without_tensorboard_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(GncompileError, match=r"pip install 'gncompile\[tensorboard\]'"):
        gncompile.TensorBoardLogger(tmp_path)
