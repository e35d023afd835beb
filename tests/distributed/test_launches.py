"""Trainings of model files on several processes, and what becomes of them when one is killed or hangs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import losses
from launches import Launched, launched, run_launched, torchrun
from small_model import HEAD, write_model

from gncompile.app.cli import main
from gncompile.app.training_run import FolderRun
from gncompile.runtime.processes import Processes
from gncompile.training.records import Record

MODEL = f"""{HEAD}dtype = "float64"
"""
UPDATES = 12
COMMON = ("--updates", UPDATES, "--checkpoint-every", 4, "--quiet")
TOLERANCE = 1e-10
"""As in ``test_joint_steps.py``."""

PDE = """
[pde]
box = { x = [0, 1] }
outputs = ["u"]

[pde.term.interior]
equation = "u__x__x + pi**2*sin(pi*x)"
points = 40

[pde.term.boundary]
equation = "u"
points = 2
faces = true

[network]
hidden = [6]

[training]
updates = 4
"""


# --- What goes wrong: called in each process before the command --------------------------------------------


@dataclass(frozen=True)
class AfterStep:
    """One process does something after an update."""

    rank: int
    update: int
    act: Callable[[], object]

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        after = FolderRun._after_step

        def patched(run: FolderRun, record: Record) -> None:
            if record.update == self.update:
                self.act()
            after(run, record)

        FolderRun._after_step = patched  # type: ignore[method-assign]


@dataclass(frozen=True)
class KilledAt:
    """One process is killed before it sends a message, wherever in a step that is."""

    rank: int
    message: int

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        send = Processes.all_reduce

        def patched(processes: Processes, bucket: torch.Tensor) -> None:
            if processes.messages == self.message:
                os.kill(os.getpid(), signal.SIGKILL)
            send(processes, bucket)

        Processes.all_reduce = patched  # type: ignore[method-assign]


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _fail() -> None:
    raise OSError(28, "no space", "somewhere")


def _hang() -> None:
    while True:
        time.sleep(1)


# --- Runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), MODEL)


@pytest.fixture(scope="module")
def alone(model: Path) -> list[float]:
    out = model.parent / "alone"
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in ("train", model, "--out", out, *COMMON)])
    return losses(out)


@pytest.fixture(scope="module")
def two(model: Path) -> list[float]:
    """The losses of two processes that nothing disturbs."""
    out = model.parent / "two"
    found = run_launched(2, "train", model, "--out", out, *COMMON)
    assert found.codes == [0, 0], found.told
    assert "checkpoint.safetensors" in found.told[0]
    assert found.told[1] == ""
    assert (out / "report.md").exists()
    return losses(out)


def _broken(model: Path, name: str, prepare: Callable[[int], object], *more: object) -> Launched:
    out = model.parent / name
    return run_launched(2, "train", model, "--out", out, *COMMON, *more, prepare=prepare)


def test_two_processes_train_as_one(alone: list[float], two: list[float]) -> None:
    assert two == pytest.approx(alone, rel=TOLERANCE)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_ends_all_and_any_number_goes_on(
    model: Path, two: list[float], rank: int
) -> None:
    message = random.Random(rank).randrange(20, 30)
    found = _broken(model, f"killed{rank}", KilledAt(rank, message))
    other = 1 - rank
    assert found.codes[rank] == -signal.SIGKILL
    assert found.codes[other] == 1
    assert (
        f"process {other} of 2: error: the other processes cannot be reached" in found.told[other]
    )
    left = model.parent / f"killed{rank}"
    for size in (1, 2, 3) if rank else (2,):
        out = left.with_name(f"{left.name}-on{size}")
        shutil.copytree(left, out)
        again = run_launched(size, "resume", out, "--quiet")
        assert again.codes == [0] * size, again.told
        assert losses(out) == (two if size == 2 else pytest.approx(two, rel=TOLERANCE))


def test_one_that_is_terminated_stops_all_behind_the_same_step(
    model: Path, two: list[float]
) -> None:
    found = _broken(model, "terminated", AfterStep(1, 6, _terminate))
    assert found.codes == [130, 130], found.told
    assert "stopped after 6 updates" in found.told[0]
    out = model.parent / "terminated"
    assert run_launched(2, "resume", out, "--quiet").codes == [0, 0]
    assert losses(out) == two


def test_one_that_raises_ends_all(model: Path) -> None:
    found = _broken(model, "raises", AfterStep(1, 5, _fail))
    assert found.codes == [1, 1]
    assert "process 1 of 2: error: No space left on device" in found.told[1]
    assert "process 0 of 2: error: the other processes cannot be reached" in found.told[0]
    assert "the first 5 updates are kept" in found.told[0]


def test_one_that_hangs_ends_the_others_in_time(model: Path) -> None:
    out, hangs = model.parent / "hangs", AfterStep(1, 3, _hang)
    with launched(2, "train", model, "--out", out, *COMMON, "--timeout", 3, prepare=hangs) as found:
        found.ended(range(1), seconds=30)
    assert found.codes[0] == 1
    assert "cannot be reached" in found.told[0]
    assert "imed out" in found.told[0]


def test_equations_train_on_two_as_on_one(tmp_path: Path) -> None:
    file = tmp_path / "pde.toml"
    file.write_text(PDE)
    found = [tmp_path / "one", tmp_path / "two"]
    for size, out in enumerate(found, start=1):
        ended = run_launched(size, "train", file, "--out", out, "--quiet")
        assert ended.codes == [0] * size, ended.told
    one, both = map(losses, found)
    assert both == pytest.approx(one, rel=1e-8)  # second derivatives, condition numbers up to 1e8


def test_other_commands_are_the_first_ones(model: Path) -> None:
    found = run_launched(2, "check", model)
    assert found.codes == [0, 0]
    assert "parameters" in found.told[0]
    assert found.told[1] == ""


# --- torchrun -----------------------------------------------------------------------------------------------


def test_torchrun_trains_and_resumes(model: Path, alone: list[float]) -> None:
    out = model.parent / "torchrun"
    found = torchrun(2, "-m", "gncompile", "train", model, "--out", out, *COMMON)
    assert found.returncode == 0, found.stderr
    assert losses(out) == pytest.approx(alone, rel=TOLERANCE)


KILLED_ONCE = """
import os, sys
sys.path[:0] = {path!r}
from test_launches import KilledAt
from gncompile.app.cli import main
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    KilledAt(1, 25)(int(os.environ["RANK"]))
sys.exit(main())
"""


def test_torchrun_starts_all_again_and_they_go_on(model: Path, two: list[float]) -> None:
    script, out = model.parent / "killed_once.py", model.parent / "restarted"
    here = Path(__file__)
    script.write_text(KILLED_ONCE.format(path=[str(here.parent), str(here.parents[1] / "support")]))
    found = torchrun(
        2, "--max-restarts", 1, script, "train", model, "--out", out, *COMMON,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert f"goes on with {out}" in found.stdout
    assert losses(out) == two
