"""The package as it is installed: import, names, types, files, command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import gncompile
from gncompile.base import config

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_brings_none_of_the_libraries_and_only_the_lowest_rooms() -> None:
    code = """
import sys
import gncompile
print(*(name.split(".")[0] for name in sys.modules if not name.startswith("gncompile.")))
print(*(name for name in sys.modules if name.startswith("gncompile.")))
"""
    imported, rooms = python(code).split("\n")[:2]
    declared = [re.match(r"\w+", each)[0] for each in PROJECT["project"]["dependencies"]]  # type: ignore[index]
    assert not {*declared, "triton", "matplotlib"} & set(imported.split())
    assert {name.split(".")[1] for name in rooms.split()} <= {"base", "errors"}


def test_without_triton_a_template_says_what_to_install() -> None:
    code = """
import sys
sys.modules["triton"] = None  # importing it now fails
import gncompile.triton_kernels
from gncompile.errors import CompileError
try:
    import gncompile.triton_kernels.language
except CompileError as error:
    print(error)
"""
    assert "pip install 'gncompile[gpu]'" in python(code)


def test_public_names_resolve() -> None:
    import gncompile

    for name in gncompile.__all__:
        assert getattr(gncompile, name).__doc__, name
    assert set(gncompile.__all__) <= set(dir(gncompile))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gncompile.nonsense


def test_every_package_folder_is_declared() -> None:
    """An undeclared folder works in a checkout and is missing from the wheel."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "gncompile").rglob("__init__.py")
    }
    declared = set(PROJECT["tool"]["setuptools"]["packages"])
    assert found | {"gncompile.triton_kernels"} == declared
    assert (ROOT / "gncompile" / "py.typed").is_file()


def test_the_constraints_pin_what_the_package_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["plots"], *extras["test"]]
    for requirement in asked:
        name, least = re.match(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()  # type: ignore[union-attr]
        if name != "gncompile":
            version = pinned[name]
            assert [int(p) for p in version.split(".")] >= [int(p) for p in least.split(".")], name


def installed() -> bool:
    names = [point.name for point in entry_points(group="console_scripts")]
    return "gncompile" in names


@pytest.mark.skipif(not installed(), reason="gncompile is not installed, only on the path")
def test_kernels_import_under_our_name_and_the_command_runs() -> None:
    assert "triton_kernels" in python("import gncompile.triton_kernels as k; print(k.__file__)")
    (point,) = [p for p in entry_points(group="console_scripts") if p.name == "gncompile"]
    assert point.load().__module__ == "gncompile.app.cli"


def test_the_dump_switch_writes_what_was_compiled(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    with config.using(dump=tmp_path, check=True):
        gncompile.compile(model, "mse", torch.zeros(2, 3))
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "tanh(layer_0)" in written["1_fuse_pointwise.txt"]
    assert "gradient:" in written["step_program.txt"]
    assert {"0_traced.txt", "graph.dot", "training_step.py"} <= written.keys()
