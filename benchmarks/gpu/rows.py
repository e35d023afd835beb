"""Rows of the result: what was timed, against the device's measured rates; failures stay in their row."""

from __future__ import annotations

import gc
import statistics
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .clock import Call, Clock


class Left(Exception):
    """A row that this machine, or these options, leave out; not a failure."""


@dataclass(frozen=True)
class Prepared:
    """A call to time, with flops and bytes where they are known.

    Measured are whole cycles of calls, after ``warm_up``; what is told is for one of the ``repeats`` that a
    call makes. With ``seconds`` there is nothing to measure any more.
    """

    call: Call
    flops: float | None = None
    bytes: float | None = None
    cycle: int = 1
    warm_up: int = 3
    repeats: int = 1
    seconds: Sequence[float] = ()


@dataclass(frozen=True)
class Entry:
    """A row to be: ``prepare`` builds what is timed, when its turn comes."""

    name: str
    prepare: Callable[[], Prepared]


@dataclass
class Row:
    """Seconds a call, one entry a round; or why there are none."""

    name: str
    seconds: list[float] = field(default_factory=list)
    flops: float | None = None
    bytes: float | None = None
    left_out: str = ""
    error: str = ""

    @property
    def median(self) -> float | None:
        """The middle measurement, if there is one."""
        return statistics.median(self.seconds) if self.seconds else None

    def rate(self, amount: float | None) -> float | None:
        """``amount`` a second."""
        return None if amount is None or not self.median else amount / self.median

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        return {**vars(self), "median": self.median}


def measured(entries: Iterable[Entry], clock: Clock, progress: Callable[[str], None]) -> list[Row]:
    """Time every entry; one that fails has the error as its text, and the rest goes on."""
    rows = []
    for entry in entries:
        progress(entry.name)
        rows.append(_measured(entry, clock))
    return rows


def _measured(entry: Entry, clock: Clock) -> Row:
    row = Row(entry.name)
    try:
        ready = entry.prepare()
        row.flops, row.bytes = ready.flops, ready.bytes
        seconds = ready.seconds or clock.measure(ready.call, ready.cycle, ready.warm_up)
        row.seconds = [each / ready.repeats for each in seconds]
    except Left as reason:
        row.left_out = str(reason)
    except Exception as error:  # whatever a kernel, a compiler or a library may raise
        row.error = "".join(traceback.format_exception_only(error)).strip()
        traceback.print_exc()
    return row


def ratio(rows: Sequence[Row], row: Row, baseline: str) -> float | None:
    """A row's median over that of the row named ``baseline``."""
    others = [each.median for each in rows if each.name == baseline]
    if not others or not others[0] or row.median is None:
        return None
    return row.median / others[0]


def table(
    title: str, rows: Sequence[Row], rates: Mapping[str, float], baselines: Mapping[str, str]
) -> str:
    """The rows as text.

    ``rates`` has ``matrix`` (flop/s) and ``copy`` (byte/s); ``baselines`` the rows to divide by, under heads.
    """
    heads = ["us", "min", "max", *baselines, "GFLOP", "TFLOP/s", "%matrix", "GB", "GB/s", "%copy"]
    lines = [[title, *heads]]
    lines += [[row.name, *_cells(rows, row, rates, baselines)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in lines
    ]
    notes = [f"{r.name}: left out, {r.left_out}" for r in rows if r.left_out]
    notes += [f"{r.name}: FAILED, {r.error}" for r in rows if r.error]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], *notes])


def _cells(
    rows: Sequence[Row], row: Row, rates: Mapping[str, float], baselines: Mapping[str, str]
) -> list[str]:
    times = [row.median, *((min(row.seconds), max(row.seconds)) if row.seconds else (None, None))]
    flops, moved = row.rate(row.flops), row.rate(row.bytes)
    return [
        *(_text(seconds, 1e6, 1) for seconds in times),
        *(_text(ratio(rows, row, name), 1, 2) for name in baselines.values()),
        *(_text(row.flops, 1e-9, 3), _text(flops, 1e-12, 2), _share(flops, rates.get("matrix"))),
        *(_text(row.bytes, 1e-9, 4), _text(moved, 1e-9, 0), _share(moved, rates.get("copy"))),
    ]


def _text(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def _share(value: float | None, whole: float | None) -> str:
    return "" if value is None or not whole else f"{100 * value / whole:.1f}"


def free(device: torch.device) -> None:
    """Give unused memory back to the device, between stages: models and graphs refer to themselves."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
