"""Every block of the README and of docs/ runs, and prints what stands below it.

See :mod:`pages` for what is run. Numbers may differ in the last digits from machine to machine, everything
else may not. ``python tests/support/pages.py`` writes the printed texts anew, to be read before they are
committed.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import sympy
from pages import PAGES, ROOT, play, same, somewhere_else
from typer.testing import CliRunner

import gncompile
import gncompile.data
import gncompile.losses
from gncompile.app.cli import app
from gncompile.base.settings import Settings, groups
from gncompile.functions import PRIMITIVES, SHORTHANDS, parsing

READ = [*PAGES, ROOT / "benchmarks/README.md", *sorted((ROOT / "benchmarks/notes").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs_and_prints_what_it_says(page: Path) -> None:
    with somewhere_else():
        for line, said, prints in play(page):
            if not same(said, prints):
                assert prints == said, f"{page.name}:{line}"


def test_the_comparison_sees_differences() -> None:
    assert same("loss 1.2345 at 3", "loss 1.2346 at 3")
    assert not same("loss 1.2345 at 3", "loss 1.3345 at 3")
    assert not same("loss 1.2345 at 3", "loss 1.2345 at 4")
    assert not same("loss 1.2345", "loss 1.2345 2.0")
    assert same("loss ...\nend", "loss 7 of 8\nend")
    assert not same("loss ...\nend", "loss 7 of 8\nend, more")
    assert same("$ run\n2 updates in 2.0 s", "$ run\n2 updates in 3.5 s")
    assert not same("$ run\n2 updates in 2.0 s", "$ run\n3 updates in 2.0 s")
    assert not same("2.0 s", "3.5 s")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What ``page.md#anchor`` may name: the page's headings, as GitHub spells them, and documented names."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    names = re.findall(r"^::: (\S+)", prose(page), re.M)  # of the reference
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings} | {*names}


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(page)):
        if not target.startswith(("http:", "https:")):
            place = page.parent / target if target else page
            assert place.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(place), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.\w+)`", prose(page)):
        places = [folder / name for folder in (ROOT, ROOT / "gncompile", page.parent)]
        assert any(place.exists() for place in places), f"{page.name} names {name}"


def test_the_code_links_to_sections_of_the_mathematics() -> None:
    known = anchors(ROOT / "docs/mathematics.md")
    for path in [*(ROOT / "gncompile").rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")]:
        for anchor in re.findall(r"mathematics\.md#([\w-]+)", path.read_text()):
            assert anchor in known, f"{path.relative_to(ROOT)} links to {anchor}"


def test_every_default_is_explained() -> None:
    """docs/defaults.md has a row for every setting, with the value it really has, in its group."""
    page = (ROOT / "docs/defaults.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.M))
    defaults = {
        field.name: str(getattr(Settings(), field.name)) for field in dataclasses.fields(Settings)
    }
    assert rows == defaults
    sections = (part.partition("\n") for part in page.split("\n### "))
    tables = {head.lower(): re.findall(r"^\| `(\w+)`", rest, re.M) for head, _, rest in sections}
    assert {head: names for head, names in tables.items() if names} == groups()


def test_what_an_expression_may_contain_is_read() -> None:
    """Every function of the list in docs/transfer_functions.md, and no function is missing from it."""
    page = (ROOT / "docs/transfer_functions.md").read_text()
    listed = re.search(r"and the functions\n\n((?: {4}[^\n]+\n)+)", page)
    assert listed is not None
    calls = re.findall(r"(\w+)(\([^)]*\))?", listed[1])
    symbols = {name: sympy.Symbol(name, real=True) for name in ("c", "u", "v", "low", "high")}
    for name, arguments in calls:
        parsing.parse_expression(f"{name}{arguments or '(u)'}", symbols)
    assert {name for name, _ in calls} == {*PRIMITIVES, *SHORTHANDS, "where"}


def test_the_commands_that_are_shown_exist() -> None:
    """Names and options of every command line in a block of shell, and of the table of all commands."""
    readme = (ROOT / "README.md").read_text()
    listed = (ROOT / "docs/getting_started.md").read_text()
    rows = "".join(re.findall(r"^\| `gncompile.*", listed, re.M))
    lines = [f"{name} --help" for name in re.findall(r"`gncompile (\w+)", rows)]
    for page in READ:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S):
            lines += re.findall(r"^gncompile (.+)$", block, re.M)
    assert len(lines) > 20
    for line in lines:
        given = [*shlex.split(line, comments=True), "--help"]  # options are parsed first
        assert CliRunner().invoke(app, given).exit_code == 0, line
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^ +make (\w+)", readme, re.M):
        assert re.search(rf"^{goal}:", makefile, re.M), goal


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    listed = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", page, re.M)}
    names = {*gncompile.__all__, *gncompile.data.__all__, *gncompile.losses.__all__}
    symbols_and_types = {"NOISE", "OUTPUT", "TARGET", "Loss"}
    assert names - symbols_and_types - {"optim"} <= listed
    assert {"GaussNewton", "errors"} <= listed
