"""Fits on many processes, what their loaders may give, and what is refused on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from joint_trainings import TRAININGS
from processes import run_on
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gncompile
from gncompile.data import Batches
from gncompile.errors import GncompileError
from gncompile.training.batches import BatchReader
from gncompile.training.records import History
from gncompile.training.trainer import Trainer

TRAINING = "kfra"
TOLERANCE = 1e-10
"""As in ``test_joint_steps.py``."""
Fitted = tuple[list[float], list[int], list[float], dict[str, Tensor]]


def _trainer(gather_samples: int = 30, **options: Any) -> tuple[Trainer, tuple[Tensor, Tensor]]:
    return TRAININGS[TRAINING].trainer(gather_samples=gather_samples, **options)


def _fitted(trainer: Trainer, history: History) -> Fitted:
    parameters = {name: p.detach().clone() for name, p in trainer.trained().items()}
    validated = [v for v in history.validation_loss if v is not None]
    return history.loss, history.samples, validated, parameters


def _batches(**options: Any) -> Fitted:
    """The same data on all processes, of which each takes its rows; some batches are joined for a step."""
    trainer, (x, y) = _trainer(**options)
    data = Batches(x, y, 16, seed=3)
    return _fitted(trainer, trainer.fit(data, epochs=2, validation=(x, y), progress=False))


def _sampled() -> Fitted:
    """A ``DistributedSampler``, whose parts are those of batches twice as large."""
    trainer, (x, y) = _trainer(gather_samples=1)
    data = TensorDataset(x[:48], y[:48])
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=False)
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    return _fitted(trainer, trainer.fit(loader, epochs=2, progress=False))


def _uneven() -> Fitted:
    """Loaders of one's own, the second of which ends early."""
    trainer, (x, y) = _trainer()
    first = ((0, 20), (20, 40), (40, 53)) if dist.get_rank() == 0 else ((0, 20),)
    loader = [(x[a:b], y[a:b]) for a, b in first]
    return _fitted(trainer, trainer.fit(loader, epochs=1, split=False, progress=False))


def _saved(path: Path) -> Callable[[], tuple[Fitted, bool]]:
    def act() -> tuple[Fitted, bool]:
        """Go on from what one process has saved; only the first writes."""
        trainer, (x, y) = _trainer()
        resumed = Trainer.resume(path, trainer.model)
        own = path.with_name(f"rank{dist.get_rank()}")
        resumed.save(own)
        data = Batches(x, y, 16, seed=3)
        history = resumed.fit(data, epochs=1, progress=False)
        return _fitted(resumed, history), own.exists()

    return act


def _stopping() -> list[str]:
    """A callback that stops on one process only."""
    trainer, (x, y) = _trainer()
    stop = [lambda record: record.update == 2] if dist.get_rank() == 1 else []
    history = trainer.fit(Batches(x, y, 16), updates=9, progress=False, callbacks=stop)
    return [history.ended, str(len(history))]


def _failing_read(*given: object) -> Any:
    raise OSError("the disk is gone")


def _failing(batch: Any) -> Iterator[Any]:
    yield batch
    raise OSError("the disk is gone")


def _told(act: Callable[[], object], caught: type[Exception] = GncompileError) -> str:
    try:
        act()
    except caught as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _refusals() -> dict[str, str]:
    """What goes wrong on the second process only, as all of them tell it; they go on afterwards."""
    trainer, (x, y) = _trainer()
    second = dist.get_rank() == 1
    bad = x.clone()
    bad[3] = float("nan")
    found = {
        "values": _told(lambda: trainer.step(bad if second else x, y)),
        "shape": _told(lambda: trainer.step(x[:, :5] if second else x, y)),
        "no samples": _told(lambda: trainer.step(x[:0], y[:0])),
    }
    trainer.step(x, y)
    trainer.joining.deals = True
    found["batches"] = _told(lambda: trainer.step(x.flip(0) if second else x, y))
    trainer.joining.deals = False
    loader = DataLoader(TensorDataset(x, y), sampler=DistributedSampler(TensorDataset(x, y)))
    given = (x, y) if second else None
    found["arguments"] = _told(lambda: trainer.fit([(x, y)], epochs=1, validation=given))
    found["validation"] = _told(lambda: trainer.fit([(x, y)], epochs=1, validation=loader))
    with patch.object(BatchReader, "pair", _failing_read) if second else nullcontext():
        found["code"] = _told(lambda: trainer.step(x, y), Exception)
    loader = _failing((x, y)) if second else [(x, y)] * 3
    found["loader"] = _told(
        lambda: trainer.fit(loader, updates=3, split=False, progress=False), Exception
    )
    other, _ = _trainer()
    if second:
        with torch.no_grad():
            other.model[2].bias += 1e-9
    found["parameters"] = _told(lambda: other.step(x, y))
    network = torch.nn.Linear(6, 3 if second else 2).double()
    found["programs"] = _told(lambda: gncompile.compile(network, "mse", x, tune="off"))
    return found


def _questions() -> list[float]:
    """What a trainer is asked, one process answers alone, also between steps."""
    trainer, (x, y) = _trainer()
    trainer.step(x, y)
    if dist.get_rank() == 0:
        own = [float(trainer.loss(x, y)), trainer.evaluate(x, y)]
        own.append(float(trainer.gradients(x, y)["0.weight"].norm()))
    trainer.step(x, y)
    return own if dist.get_rank() == 0 else []


CASES = {
    "batches": _batches, "sampled": _sampled, "uneven": _uneven, "stopping": _stopping,
    "refusals": _refusals, "questions": _questions,
}  # fmt: skip


def _act(case: str | Path) -> Any:
    return _saved(case)() if isinstance(case, Path) else CASES[case]()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("checkpoints") / "trainer"
    trainer, (x, y) = _trainer(process_group=False)
    trainer.fit(Batches(x, y, 16, seed=2), epochs=1, progress=False)
    trainer.save(path)
    return run_on(2, _act, [*CASES, path])


def _agree(found: Fitted, wanted: Fitted) -> None:
    for mine, other in zip(found[:3], wanted[:3], strict=True):
        assert mine == pytest.approx(other, rel=TOLERANCE)
    for name, parameter in wanted[3].items():
        torch.testing.assert_close(found[3][name], parameter, rtol=TOLERANCE, atol=TOLERANCE)


@cache
def _batches_alone() -> Fitted:
    return _batches(process_group=False)


def test_data_that_all_have_is_split(found: Any) -> None:
    for fitted in found["batches"]:
        _agree(fitted, _batches_alone())


def test_a_distributed_sampler_is_recognised(found: Any) -> None:
    trainer, (x, y) = _trainer(gather_samples=1, process_group=False)
    order = torch.stack((torch.arange(0, 48, 2).view(3, 8), torch.arange(1, 48, 2).view(3, 8)), 1)
    data = [(x[rows], y[rows]) for rows in order.flatten(1)]
    wanted = _fitted(trainer, trainer.fit(data, epochs=2, progress=False))
    for fitted in found["sampled"]:
        _agree(fitted, wanted)


def test_a_part_that_ends_early_waits_for_the_others(found: Any) -> None:
    trainer, (x, y) = _trainer(process_group=False)
    data = [(torch.cat((x[:20], x[:20])), torch.cat((y[:20], y[:20]))), (x[20:], y[20:])]
    wanted = _fitted(trainer, trainer.fit(data, epochs=1, progress=False))
    for fitted in found["uneven"]:
        _agree(fitted, wanted)


def test_a_training_of_one_process_goes_on_on_two(found: Any) -> None:
    path = next(case for case in found if isinstance(case, Path))
    trainer, (x, y) = _trainer(process_group=False)
    trainer.fit(Batches(x, y, 16, seed=2), epochs=1, progress=False)
    history = trainer.fit(Batches(x, y, 16, seed=3), epochs=1, progress=False, continue_order=False)
    for rank, (fitted, written) in enumerate(found[path]):
        assert len(fitted[0]) == len(history)
        assert written == (rank == 0)


def test_one_that_stops_stops_all(found: Any) -> None:
    assert all(ended == ["the callback <lambda> stopped it", "2"] for ended in found["stopping"])


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("values", "process 1 of 2 has refused its samples", "6 non-finite values in input 0"),
        ("shape", "process 1 of 2 has refused its samples", "the wrong shape"),
        ("no samples", "no process has a sample", ""),
        ("loader", "process 1 of 2 has failed", "OSError: the disk is gone"),
        ("code", "process 1 of 2 has failed", "OSError: the disk is gone"),
        ("batches", "the processes were given different batches at update", ""),
        ("validation", "the validation data has a DistributedSampler", ""),
        ("arguments", "fit was given other updates, epochs or validation on some processes", ""),
        ("parameters", "the parameter '2.bias' of process 1 is not that of process 0", ""),
        ("programs", "the processes have compiled different programs", ""),
    ],
)
def test_what_is_wrong_on_one_is_told_by_all(
    found: Any, what: str, first: str, second: str
) -> None:
    of_first, of_second = (told[what] for told in found["refusals"])
    assert first in of_first
    assert (second or first) in of_second


def test_questions_are_answered_alone(found: Any) -> None:
    trainer, (x, y) = _trainer(process_group=False)
    trainer.step(torch.cat((x, x)), torch.cat((y, y)))
    loss, evaluated, norm = found["questions"][0]
    assert loss == pytest.approx(float(trainer.loss(x, y)), rel=TOLERANCE)
    assert evaluated == pytest.approx(trainer.evaluate(x, y), rel=TOLERANCE)
    assert norm == pytest.approx(float(trainer.gradients(x, y)["0.weight"].norm()), rel=TOLERANCE)
