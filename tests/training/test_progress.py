"""What a fit shows: on terminals of two widths, in a log, in a notebook; and how it says that it ended."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from gncompile.training import progress
from gncompile.training.progress import display, minutes
from gncompile.training.records import History, Record

STEP = Record(
    update=1,
    loss=0.31,
    objective=0.31,
    damping=0.05,
    step_size=0.781,
    rejected=1,
    samples=1000,
    samples_per_second=25319,
)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FULL = (
    "12/3200  loss 0.31  validation 0.35  damping 0.05  step size 0.781  rejected 1"
    "  25,319 samples/s  1:05:00 left"
)
AT_80 = "12/3200  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  1:05:00 left"
AT_60 = "12/3200  loss 0.31  25,319 samples/s  1:05:00 left"
LAST = "12 updates in 01:00, loss 0.31, validation 0.35; ended: no better loss\n"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(progress, "time", own)
    return own


def fit(clock: Clock, updates: int = 12, total: int | None = 3200, seconds: float = 5.0) -> None:
    """A fit that takes ``seconds`` a step, with a validation after the first."""
    history = History()
    with display(True, total, history) as show:
        for step in range(1, updates + 1):
            clock.now += seconds
            history.records.append(replace(STEP, validation_loss=0.35 if step == 1 else None))
            show(history[-1], step)
        clock.now -= seconds * updates
        clock.now += 60
        history.ended = "no better loss"


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("width", "text"), [(140, FULL), (120, FULL), (80, AT_80), (60, AT_60)])
def test_a_terminal_shows_what_fits_its_width(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Clock,
    width: int,
    text: str,
) -> None:
    on_terminal(monkeypatch, width)
    seconds = 3900 * 12 / (3200 - 12) / 12  # 3900 are left at the end
    fit(clock, seconds=seconds)
    *_, bar, last = CONTROL.sub("", capsys.readouterr().err).replace("\r", "\n").strip().split("\n")
    assert bar.endswith(text)
    assert ("━" in bar) == (width - len(text) - 1 >= progress.SHORTEST_BAR)
    assert len(bar) <= width
    assert f"{last}\n" == LAST


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fit(clock, total=12)
    assert capsys.readouterr() == (
        "",
        "1/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:55 left\n"
        "3/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:45 left\n"
        "5/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:35 left\n"
        "7/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:25 left\n"
        "9/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:15 left\n"
        "11/12  loss 0.31  validation 0.35  rejected 1  25,319 samples/s  00:05 left\n" + LAST,
    )


def test_lines_of_a_long_fit_become_rare(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    fit(clock, updates=10_000, total=None)
    lines = capsys.readouterr().err.splitlines()
    assert 100 < len(lines) < 200
    assert lines[0].startswith("1  loss 0.31")
    assert lines[0].endswith("00:05")


def test_a_notebook_gets_lines_of_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    class Notebook(Console):
        """rich's console where it finds itself in a notebook, and still writes text."""

        @property
        def is_terminal(self) -> bool:
            return Console(force_jupyter=True).is_terminal

    monkeypatch.setattr(progress, "Console", Notebook)
    fit(clock, updates=1)
    assert capsys.readouterr().err.startswith("1/3200  loss 0.31  validation 0.35")


def test_exceptions_end_a_fit_with_a_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt), display(True, 5, History([STEP])):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="own"), display(True, 5, History()):
        raise ValueError("own")
    assert capsys.readouterr().err == (
        "1 update in 00:00, loss 0.31; ended: interrupted\n"
        "no update made; ended: stopped by ValueError\n"
    )


def test_times_in_minutes() -> None:
    assert list(map(minutes, (0.4, 75.2, 3599.7, 3661))) == ["00:00", "01:15", "1:00:00", "1:01:01"]
