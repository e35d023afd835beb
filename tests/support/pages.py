"""A page of documentation as a session: its blocks are run in order, in an empty folder.

=============================== ==================================================================
```` ```python ````             is executed; the blocks of a page share one namespace. A ``text`` block
                                right after it is what it prints
```` ```console ````            ``$ gncompile …`` is run by :func:`gncompile.app.cli.main`, and prints what
                                follows. ``^C`` there stops it after as many updates as is said below
```` ```toml title="NAME" ````  is written to NAME
=============================== ==================================================================
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from gncompile.app.cli import main
from gncompile.app.run_folder import RunFolder
from gncompile.base import config
from gncompile.functions import parsing, transfer
from gncompile.losses import vocabulary as losses

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<kind>python|console|toml title=\"(?P<file>[\w.]+)\")\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<printed>.*?)^```\n)?",
    re.M | re.S,
)
NUMBER = r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+e[+-]?\d+"
PACE = r"[\d.,]+ (?:samples/s|ms|s)\b|\d\d:\d\d(?: left)?"
PARTS = re.compile(rf"({PACE})|({NUMBER})|(\.\.\.)")
PARTS_OF_PRINT = re.compile(rf"(?!)()|({NUMBER})|(\.\.\.)")


def play(page: Path) -> Iterator[tuple[int, str, str]]:
    """Run each block of a page: its line, what it is said to print, and what it prints."""
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in BLOCK.finditer(text):
        line, code = text[: block.start()].count("\n") + 2, block["code"]
        if block["file"]:
            Path(block["file"]).write_text(code)
        elif block["kind"] == "console":
            yield line, code, "".join(_commands(code))
        else:
            # Blank lines keep line numbers in tracebacks those of the page.
            compiled = compile("\n" * (line - 1) + code, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compiled, namespace)
            yield line, block["printed"] or "", printed.getvalue()


def _commands(session: str) -> Iterator[str]:
    """A session with what its commands print now."""
    for command in re.split(r"^(?=\$ )", session, flags=re.M)[1:]:
        typed, _, shown = command.partition("\n")
        program, *arguments = shlex.split(typed.removeprefix("$ "), comments=True)
        assert program == "gncompile", typed
        stopped = re.search(r"\^C\n(?:.*\n)*?stopped after (\d+)", shown)
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(out),
            contextlib.suppress(SystemExit),
            _interrupted(int(stopped[1]) if stopped else 0),
        ):
            main(arguments)
        yield f"{typed}\n{out.getvalue()}"


@contextlib.contextmanager
def _interrupted(update: int) -> Iterator[None]:
    """Press Ctrl-C in this update, counted from 1."""
    append = RunFolder.append

    def append_and_interrupt(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == update:
            print("^C")
            os.kill(os.getpid(), signal.SIGINT)

    with mock.patch.object(RunFolder, "append", append_and_interrupt):
        yield


@contextlib.contextmanager
def somewhere_else() -> Iterator[None]:
    """Run in an empty folder, with emitted sources kept there; what a page registers is forgotten."""
    here = Path.cwd()
    registries = (transfer._DECLARED, parsing.FUNCTIONS, losses._registered)
    before = [dict(registry) for registry in registries]
    with tempfile.TemporaryDirectory() as folder, config.using(cache=folder):
        os.chdir(folder)
        torch.manual_seed(0)
        try:
            with mock.patch.dict(os.environ, COLUMNS="80"):
                yield
        finally:
            os.chdir(here)
            for registry, known in zip(registries, before, strict=True):
                registry.clear()
                registry.update(known)


def same(expected: str, printed: str) -> bool:
    """Equal up to the last digits of decimal numbers, to what ``...`` leaves out, in a session to times."""
    pattern, position, numbers = "", 0, []
    expected, printed = expected.rstrip(), printed.rstrip()
    parts = PARTS if expected.startswith("$ ") else PARTS_OF_PRINT
    for part in parts.finditer(expected):
        pattern += re.escape(expected[position : part.start()])
        pattern += PACE.join(("(?:", ")")) if part[1] else f"({NUMBER})" if part[2] else "(?s:.*?)"
        numbers += [part[2]] if part[2] else []
        position = part.end()
    found = re.fullmatch(pattern + re.escape(expected[position:]), printed)
    return found is not None and all(
        math.isclose(float(a), float(b), rel_tol=1e-2, abs_tol=1e-12)
        for a, b in zip(numbers, found.groups(), strict=True)
    )


def rewrite(page: Path) -> None:
    """Put what the blocks print into the page, where it says something else."""
    with somewhere_else():
        played = {line: (said, prints) for line, said, prints in play(page)}
    text = page.read_text()

    def updated(block: re.Match[str]) -> str:
        said, prints = played.get(text[: block.start()].count("\n") + 2, ("", ""))
        if same(said, prints):
            return block[0]
        if block["kind"] == "console":
            return f"```console\n{prints.rstrip()}\n```\n"
        return f"```python\n{block['code']}```\n\n```text\n{prints.rstrip()}\n```\n"

    page.write_text(BLOCK.sub(updated, text))


if __name__ == "__main__":
    for chosen in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        rewrite(chosen)
