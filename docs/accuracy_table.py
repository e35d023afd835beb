"""Measure every registered transfer function and write the tables of docs/accuracy.md.

python docs/accuracy_table.py           some minutes; the tests assert the same bounds on a coarser grid
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gncompile.functions import PRIMITIVES
from gncompile.functions.transfer import ARGUMENT, TransferFunction, transfer, transfer_names
from gncompile.verification.accuracy import Accuracy, Worst, measure_accuracy

PAGE = Path(__file__).with_name("accuracy.md")
DENSITY = 300
DTYPES = (torch.float32, torch.float64)
WHATS = ("value", "slope", "kept slope")
SLOPES = ("slope", "kept slope")

MEASURES = {"ulps": "ulps", "backward": "backward ulps", "of_one": "ulps of 1"}
"""The measures of ``gncompile/verification/accuracy.py`` and what the page calls them."""


@dataclass(frozen=True)
class Bound:
    """What is promised of an expression: a bound in one measure, by dtype, and why it is not 4 ulps."""

    measure: str = "ulps"
    float32: float = 4
    float64: float = 4
    reason: str = ""

    def of(self, dtype: torch.dtype) -> float:
        return self.float32 if dtype == torch.float32 else self.float64

    def __str__(self) -> str:
        both = {f"{self.float32:g}", f"{self.float64:g}"}
        limits = both.pop() if len(both) == 1 else f"{self.float32:g}, {self.float64:g}"
        return f"{limits} {MEASURES[self.measure]}"


TAIL = Bound("backward", reason="tail like e^-u: u is rounded, which e^-u amplifies by u")
ZERO = Bound("backward", reason="zero that is not at 0: terms cancel there")
KEPT = Bound(
    "backward", reason="follows from the output, whose rounding cancels where it saturates"
)
KINK = Bound("backward", reason="argument rounded onto the kink from the float before it")
DIFFERENCE = Bound("of_one", reason="x - tanh(x) cancels near 0; torch.nn.Tanhshrink does the same")
POWER = Bound(
    "ulps", 64, 640, "grows like a power: asinh(x)/2 is rounded, which sinh amplifies by it"
)
UNDERFLOW = Bound(
    "backward", 128, 512, "tail, where the sigmoid underflows before it is multiplied"
)


@dataclass(frozen=True)
class Exceptions:
    """The functions, and what of them, that one bound other than the default is stated for."""

    names: tuple[str, ...]
    whats: tuple[str, ...]
    bound: Bound


EXCEPTIONS = (
    Exceptions(("gaussian", "gelu", "gelu_tanh", "quick_gelu"), ("value",), TAIL),
    Exceptions(("gaussian", "gelu", "quick_gelu"), SLOPES, TAIL),
    Exceptions(("gelu_tanh",), SLOPES, UNDERFLOW),
    Exceptions(("silu", "swish", "mish", "hardswish", "snake"), SLOPES, ZERO),
    Exceptions(("tanh", "sigmoid", "elu", "celu", "selu"), ("kept slope",), KEPT),
    Exceptions(("hardsigmoid",), SLOPES, KINK),
    Exceptions(("tanhshrink",), ("value",), DIFFERENCE),
    Exceptions(("sinh_arcsinh",), WHATS, POWER),
)
"""Every other expression is within 4 ulps."""


def bound(name: str, what: str) -> Bound:
    """The bound stated for ``what`` (value, slope, kept slope) of a transfer function."""
    for row in EXCEPTIONS:
        if name in row.names and what in row.whats:
            return row.bound
    return Bound()


# The tables -----------------------------------------------------------------------------------------------


def function_table(measured: dict[str, Accuracy]) -> Iterator[str]:
    """The largest error in ulps, over both backends, of every expression."""
    yield from _head("function", *(f"{what}, {bits}" for what in WHATS for bits in ("f32", "f64")))
    for name, accuracy in measured.items():
        cells = [
            _cell(worst(accuracy, what, dtype)) + ("" if bound(name, what) == Bound() else "*")
            for what in WHATS
            for dtype in DTYPES
        ]
        yield _row(f"`{name}`", *cells)


def exception_table(measured: dict[str, Accuracy]) -> Iterator[str]:
    """The largest errors, in the measure of their bound, of the expressions marked by a star."""
    yield from _head("functions", "of", "f32", "f64", "bound", "reason")
    for row in EXCEPTIONS:
        largest = [
            max(
                (
                    (worst(measured[name], what, dtype, row.bound.measure), name)
                    for name in row.names
                    for what in row.whats
                ),
                key=lambda found: found[0].error,
            )
            for dtype in DTYPES
        ]
        cells = [f"{_cell(found)} (`{name}`)" for found, name in largest]
        yield _row(*exception_key(row), *cells, str(row.bound), row.bound.reason)


def exception_key(row: Exceptions) -> tuple[str, str]:
    """The first two cells of its row."""
    return ", ".join(f"`{name}`" for name in row.names), ", ".join(row.whats)


def primitive_table() -> Iterator[str]:
    """The errors of torch's own functions, which the emitted code calls."""
    yield from _head("primitive", "f32", "f64")
    for function in primitives():
        accuracy = measure_accuracy(function, density=DENSITY)
        cells = [_cell(worst(accuracy, "value", dtype)) for dtype in DTYPES]
        yield _row(f"`{function.name}`", *cells)


def primitives() -> Iterator[TransferFunction]:
    """Each primitive as a function of its argument, for all but those that do not round."""
    domains = {"log": (0.0, torch.inf), "log1p": (-1.0, torch.inf)}
    for name, primitive in PRIMITIVES.items():
        if name not in ("abs", "sign", "select"):
            domain = domains.get(name, (-torch.inf, torch.inf))
            yield TransferFunction(name, primitive(ARGUMENT), ARGUMENT, domain=domain)


def worst(accuracy: Accuracy, what: str, dtype: torch.dtype, measure: str = "ulps") -> Worst:
    """The largest error over the backends."""
    chosen = [m for m in accuracy.measurements if (m.what, m.dtype) == (what, dtype)]
    errors: list[Worst] = [getattr(m, measure) for m in chosen]
    return max(errors, key=lambda found: found.error)


def _cell(found: Worst) -> str:
    return f"{found.error:.2g} at {found.at:.3g}" if found.error else "0"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield _row(*("---" for _ in cells))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(page: str, name: str, lines: Iterable[str]) -> str:
    """``page`` with the table between the marks of ``name`` exchanged."""
    start, end = f"<!-- {name}: python docs/accuracy_table.py -->", f"<!-- end of {name} -->"
    pattern = f"{re.escape(start)}.*?{re.escape(end)}"
    body = "\n".join([start, "", *lines, "", end])
    return re.sub(pattern, lambda _: body, page, flags=re.S)


def main() -> None:
    measured = {
        name: measure_accuracy(transfer(name), density=DENSITY) for name in transfer_names()
    }
    page = PAGE.read_text()
    page = replaced(page, "functions", function_table(measured))
    page = replaced(page, "exceptions", exception_table(measured))
    page = replaced(page, "primitives", primitive_table())
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
