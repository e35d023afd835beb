"""The house: its map in docs/design.md is the contract on its rooms, which covers every folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 400
"""Lines of a file that one can hold in mind."""


def contract() -> list[str]:
    """The rooms from the top, as the layers of the import contract name them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in settings["contracts"] if c["type"] == "layers"]
    return list(layers)


def test_the_map_of_the_house_is_the_contract() -> None:
    page = (ROOT / "docs/design.md").read_text()
    drawn = re.search(r"those for types count\.\n\n((?: {4}\w+ {2,}[^\n]+\n)+)", page)
    assert drawn is not None
    assert [line.split()[0] for line in drawn[1].splitlines()] == contract()


def test_rooms_are_described() -> None:
    for room in (ROOT / "gncompile").glob("*/__init__.py"):
        assert room.read_text().startswith('"""'), room


def test_files_can_be_held_in_mind() -> None:
    files = [*(ROOT / "gncompile").rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")]
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
