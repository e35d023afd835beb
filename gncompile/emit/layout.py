"""Lines of the emitted files: what they compute; what is too long for one is broken after commas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100
"""Longest line of the emitted files."""


@dataclass(frozen=True)
class Statement:
    """A line of an emitted phase, the values of the program it computes, and its number in the file."""

    phase: str
    values: tuple[str, ...]
    text: str
    number: int = 0


def filled(
    opening: str, words: Sequence[str], closing: str, width: int, indent: int = 4
) -> list[str]:
    """``opening word, word, … closing``, broken after commas into lines of at most ``width``."""
    found = [opening]
    for number, word in enumerate(words):
        end = closing if number == len(words) - 1 else ","
        joined = f"{found[-1]}{' ' if number else ''}{word}{end}"
        if len(joined) <= width or not number:
            found[-1] = joined
        else:
            found.append(f"{' ' * indent}{word}{end}")
    return found
