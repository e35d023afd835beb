"""Every error gncompile raises, one class per stage.

The classes tell *whose* problem it is. Everything but :class:`InternalError` is about the user's model,
data, or files; :class:`InternalError` is our bug. A message says what was found, where in the user's
model, and what to do next; every error lays those three out the same way, as :func:`message` does.
"""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Collection
from typing import Literal


class GncompileError(Exception):
    """Base class of all errors raised by gncompile; its text is :func:`message` of what it is given."""

    def __init__(
        self, found: object = "", *, where: str | None = None, instead: str | None = None
    ) -> None:
        super().__init__(message(str(found), where=where, instead=instead))


class TraceError(GncompileError):
    """The model cannot be traced into a graph of linear, pointwise and loss nodes."""


class ExpressionError(GncompileError):
    """A mathematical expression is malformed, unsafe, or outside the known functions."""


class RegistrationError(GncompileError):
    """A declaration of a transfer function or loss is wrong or clashes with another one."""


class ModelFileError(GncompileError):
    """A model file has an unknown key, a wrong value, or an inconsistent network."""


class LossError(GncompileError):
    """The loss is unknown, not convex in the network output, or used outside its domain."""


class CompileError(GncompileError):
    """The graph is understood, but the requested program cannot be built for it."""


class ModelChangedError(GncompileError):
    """The model is no longer the one that was compiled, or has hooks that a compiled step never calls."""


class BatchError(GncompileError):
    """A batch has the wrong shape, dtype, or non-finite values; nothing was changed."""


class DataError(GncompileError):
    """A data set is missing, corrupt, or not what its name says."""


class CheckpointError(GncompileError):
    """A checkpoint is missing, corrupt, or belongs to another model."""


class ProcessesError(GncompileError):
    """Processes that train one model together do not have what they should have in common."""


class InternalError(GncompileError):
    """A broken invariant inside gncompile: our bug, never the user's."""


class SmallBatchWarning(UserWarning):
    """Minibatches have so few samples that second-order steps answer their noise."""


class UnscaledDataWarning(UserWarning):
    """Columns of inputs or targets differ by orders of magnitude, so that the larger ones lead."""


class OptionWarning(UserWarning):
    """An option that was given has no effect with the method that was chosen."""


class MethodWarning(UserWarning):
    """Layers have another curvature method than the one that was given, which does not reach or fit them."""


class DeclarationWarning(UserWarning):
    """A declared function is well defined, but has places that training by slopes cannot see."""


class PrecisionWarning(UserWarning):
    """What is to be computed needs more digits than the model's dtype has."""


class KinkWarning(UserWarning):
    """A derivative is taken across a kink, where it is a delta function that is left out."""


class ShortDataWarning(UserWarning):
    """The training data ended before the updates or epochs that were asked for."""


class MetricWarning(UserWarning):
    """A metric of the validation data is not defined for them, and is NaN."""


class LoggerWarning(UserWarning):
    """A logger has failed; the training goes on without what it should have logged."""


def message(found: str, *, where: str | None = None, instead: str | None = None) -> str:
    """Compose an error text: what was found, where in the user's model, what to do instead.

    Names in it may have any characters; those that a terminal would obey are written as escapes.
    """
    lines = [found]
    if where:
        lines.append(f"  where:      {where}")
    if instead:
        lines.append(f"  what to do: {instead}")
    return visible("\n".join(lines))


def warn(kind: type[Warning], found: str, *, instead: str | None = None) -> None:
    """Warn at the line that called into the package, whatever lies between."""
    inside = (__name__.partition(".")[0], "pydantic", "torch")
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    warnings.warn(message(found, instead=instead), kind, stacklevel=level)


_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    """``text`` with escapes for what a terminal or a browser obeys instead of showing: ``\\x1b``.

    These are control characters but the line break and the tab, marks that turn the direction of reading,
    halves of surrogate pairs, and further line breaks.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if c not in "\n\t" and unicodedata.category(c) in _UNSEEN else c
        for c in text
    )


def expected_got(expected: object, got: object) -> str:
    """Two aligned lines, ``expected ...`` above ``got ...``."""
    return f"  expected: {expected}\n  got:      {got}"


def require_known(
    what: str, name: str, known: Collection[str], use: Literal["one", "some"] = "one"
) -> None:
    """Raise :class:`CompileError`, with the nearest known name, unless ``name`` is among the known ones."""
    if name not in known:
        raise CompileError(
            f"unknown {what} {name!r}. {nearest(name, known)}".rstrip(),
            instead=f"use {use} of {', '.join(known)}",
        )


def require_whole(name: str, value: object, least: int = 1) -> None:
    """Raise :class:`GncompileError` unless ``value`` is a whole number from ``least``."""
    if not is_whole(value, least):
        raise GncompileError(f"{name} is {value!r}", instead=f"give a whole number from {least}")


def is_whole(value: object, least: int = 1) -> bool:
    """Whether ``value`` is a whole number from ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def nearest(name: str, known: object) -> str:
    """``Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    import difflib

    if len(name) > 200:  # takes time in proportion to the square of the length
        return ""
    by_lower = {str(k).lower(): str(k) for k in known}  # type: ignore[attr-defined]
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else ""
