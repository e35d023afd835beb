"""Tables in a width: what is wrapped, what stands above its row, and what goes to a second line."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gncompile.base.tables import GAP, NARROW, STACKED, aligned, line_width, listed, table

ROWS = [
    ["layer", "what it computes", "cost"],
    ["encoder.layers.0.attention", "64 → 64 + b", "12 M"],
    ["out", "a linear map of the last activations to logits", "7 k"],
]
WIDE = """\
layer                       what it computes                                cost
--------------------------  ----------------------------------------------  ----
encoder.layers.0.attention  64 → 64 + b                                     12 M
out                         a linear map of the last activations to logits   7 k"""
MIDDLE = """\
layer                       what it computes            cost
--------------------------  --------------------------  ----
encoder.layers.0.attention  64 → 64 + b                 12 M
out                         a linear map of the last     7 k
                            activations to logits"""
NARROWER = """\
layer             what it computes  cost
----------------  ----------------  ----
encoder.layers.0.attention
                  64 → 64 + b       12 M
out               a linear map of    7 k
                  the last
                  activations to
                  logits"""
STACKING = """\
layer
    what it computes  cost
--------------------------
encoder.layers.0.attention
    64 → 64 + b       12 M
out
    a linear map of    7 k
    the last
    activations to
    logits"""


@pytest.mark.parametrize(
    ("width", "expected"), [(120, WIDE), (80, WIDE), (60, MIDDLE), (40, NARROWER), (26, STACKING)]
)
def test_a_table_at_several_widths(width: int, expected: str) -> None:
    assert table(ROWS, right=(2,), width=width) == expected


def test_an_empty_second_line_is_left_out() -> None:
    rows = [["name", "x" * 20, ""], ["other", "", "y" * 20]]
    assert aligned(rows, width=30) == f"name   {'x' * 20}\nother\n{STACKED}{'y' * 20}"


WORDS = st.lists(st.text("abc.→", min_size=1, max_size=12), max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1), st.integers(40, 120))
def test_no_word_is_lost_or_broken(rows: list[tuple[str, ...]], width: int) -> None:
    written = aligned(rows, width=width)
    assert sorted(written.split()) == sorted(
        word for row in rows for c in row for word in c.split()
    )
    assert all(len(line) <= width for line in written.splitlines())


def test_columns_are_not_wrapped_to_slivers() -> None:
    rows = [["some words to wrap"] * 4]
    assert aligned(rows, width=4 * NARROW + 3 * len(GAP)).count("\n") == 1
    assert aligned(rows, width=4 * NARROW).splitlines()[1].startswith(STACKED)


def test_the_width_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert line_width() == 120
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((132, 40)))
    assert line_width() == 132
    monkeypatch.setattr(shutil, "get_terminal_size", lambda of: os.terminal_size(of))
    assert line_width() == 80  # no terminal


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b", "c", "d"], 3) == "a, b, c, d"
    assert listed(["a", "b", "c", "d", "e"], 3) == "a, b, c and 2 more"
