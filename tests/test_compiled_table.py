"""docs/what_can_be_compiled.md says what docs/compiled_table.py finds, checked on a share of its rows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EVERY = 13
"""One row in so many is tried: each is traced twice where it is refused, about 0.3 s."""


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compiled_table", DOCS / "compiled_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compiled_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["modules", "functions", "losses", "loss functions"])
def test_the_page_says_what_is_found(table: ModuleType, name: str) -> None:
    stated = table.read(table.PAGE.read_text(), name)
    here = [row for row in table.TABLES[name][0]() if row in stated]  # torch's versions differ
    assert len(here) > 0.9 * len(stated)
    assert not [text for text in stated.values() if text.startswith("wrong")]
    chosen = here[3::EVERY]
    found = dict(table.verdicts(name, chosen))
    assert found == {row: stated[row] for row in chosen}


def test_the_table_sees_a_wrong_gradient(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "CLOSE", 0.0)
    ((_, text),) = table.verdicts("modules", ["Tanh"])
    assert text.startswith("wrong by")
