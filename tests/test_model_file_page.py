"""docs/model_file.md says what the records say, and every key stands in an example that is valid."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import TypeAdapter

from gncompile.frontends.model_file import load_model_file
from gncompile.frontends.pde_file import describes_equations, load_pde_file

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "model_file_reference", DOCS / "model_file_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_file_reference"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(reference: ModuleType) -> None:
    page = reference.PAGE.read_text()
    assert reference.written(page) == page, "run python docs/model_file_reference.py"


def test_every_key_has_a_meaning(reference: ModuleType) -> None:
    for name, record in reference.RECORDS.items():
        for key, schema in TypeAdapter(record).json_schema()["properties"].items():
            assert key == "op" or schema.get("description"), f"{key} of {name}"


def examples() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", (DOCS / "model_file.md").read_text(), re.S)


@pytest.mark.parametrize("text", examples())
def test_examples_are_model_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.toml"
    path.write_text(text)
    (load_pde_file if describes_equations(path) else load_model_file)(path)


def test_every_key_stands_in_an_example(reference: ModuleType) -> None:
    used: dict[str, set[str]] = {}

    def collect(section: str, value: Any) -> None:
        for key, inner in value.items():
            used.setdefault(section, set()).add(key)
            if section == "network" and key == "node":
                for node in inner:
                    used.setdefault(node["op"], set()).update(node)
            if (section, key) == ("pde", "term"):
                for term in inner.values():
                    used.setdefault("pde.term", set()).update(term)
            elif isinstance(inner, dict):
                collect("transfer" if section == "transfer" else key, inner)

    for text in examples():
        tables = tomllib.loads(text)
        for section, value in tables.items():
            equations = section == "training" and "pde" in tables
            collect("training with pde" if equations else section, value)
    for name, record in reference.RECORDS.items():
        keys = set(TypeAdapter(record).json_schema()["properties"])
        section = re.sub(r"\.NAME|[\[\]]| of nodes", "", name)
        assert keys <= used[section] | {"op"}, f"{keys - used[section]} of {name} in no example"


def test_a_row_with_bounds_and_default(reference: ModuleType) -> None:
    rows = reference.tables()["[training]"]
    (row,) = [row for row in rows if row.startswith("| `batch_size`")]
    assert row.startswith("| `batch_size` | whole number from 1 up to 10^9 | `1000` | samples of")
    (row,) = [row for row in reference.tables()["early_stop"] if "`min_delta`" in row]
    assert row.startswith("| `min_delta` | number from 0 | `0.0` |")
