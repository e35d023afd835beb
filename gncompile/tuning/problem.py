"""What is tuned: one operation at one shape, its candidates, and how they are checked and timed.

A :class:`TuningProblem` is all that the search knows, a :class:`Bench` all that the tuner knows of a backend:
:mod:`gncompile.tuning.cpu` has those of the torch backend, :mod:`gncompile.tuning.gpu` those of Triton's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..emit.torch_operations import Options
from .device import Device

Variants = Mapping[str, Options]
"""Options of the instructions of a program that are not computed in the default way, by name."""

DEFAULT: Options = {}
"""The options of an operation that nothing was chosen for."""


SIZES = 6
"""Numbers of a shape that are shown."""


@dataclass(frozen=True)
class Key:
    """What a setting belongs to, besides the device and the versions it was measured with.

    ``source`` is the digest of the code that is measured, so that a setting does not outlive it. ``form``
    tells apart what is computed by the same code at one shape: a launch's arguments and device functions.
    """

    kernel: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    precision: str
    form: str = ""

    def __str__(self) -> str:
        return f"{self.kernel} {sizes(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Candidate:
    """One way to compute an operation, and the seconds the cost model predicts for it."""

    options: Options
    predicted: float

    def __str__(self) -> str:
        return shown(self.options)


class TuningProblem(Protocol):
    """An operation at one shape, with everything the search asks of it."""

    @property
    def key(self) -> Key:
        """What the result is stored under."""

    @property
    def uses(self) -> int:
        """How many instructions of the program share the result."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """At least one, in an order that depends on the key only; the first is the default."""

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Compile what will be checked next, all at once."""

    def check(self, candidate: Candidate) -> str | None:
        """What is wrong with the candidate's result, against a reference; None if it is right."""

    def measure(self, candidate: Candidate) -> float:
        """Seconds of one execution, on scratch operands; nothing of a user's is read or written."""

    def release(self) -> None:
        """Free the scratch operands."""


class Bench(Protocol):
    """What of one program can be tuned, for one batch size, and where it is measured."""

    @property
    def device(self) -> Device:
        """The device that settings are measured on and belong to."""

    @property
    def keys(self) -> Mapping[str, Key]:
        """The key of every instruction that can be computed in more than one way, by its name."""

    def problems(self, wanted: Mapping[str, Key]) -> Sequence[TuningProblem]:
        """One problem for every distinct key among the ``wanted``, in order of first use."""

    def allowed(self, kernel: str, options: Options) -> bool:
        """Whether an operation knows these options."""


def sizes(shape: tuple[int, ...]) -> str:
    """``1000x784x1000``; of a group's many numbers the first, and how many there are."""
    text = "x".join(map(str, shape[:SIZES]))
    return text if len(shape) <= SIZES else f"{text}x... ({len(shape)})"


def shown(options: Options) -> str:
    """``block=128``, or ``default``."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "default"
