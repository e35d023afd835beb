"""Text and folders of strangers: what they may become as file names, paths, Markdown and table cells.

A model's name, a path in a model file and the content of a run folder come from whoever wrote them. Each
has one way here into a name or a place on disk, and none of them leads out of the folder that is meant.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..errors import GncompileError

SLUG_BYTES = 80
"""Of a slug in UTF-8; what is added to it has to fit beside it into a name of 255."""
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{n}{i}" for n in ("com", "lpt") for i in range(10)}
"""Names that Windows keeps for devices, whatever their suffix."""
_MARKDOWN = re.compile(r"[\\`*{}\[\]<>#!|&~$]")
_LIVE = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula."""


def slug(text: str, otherwise: str = "unnamed") -> str:
    """``text`` as the name of a file or folder: letters, digits, ``-``, ``_`` and ``.`` only.

    Never empty, hidden, a device's name, or longer than :data:`SLUG_BYTES`; a cut one ends with a digest, so
    that long names stay apart.
    """
    plain = unicodedata.normalize("NFC", text)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in plain).strip(".")
    encoded = safe.encode(errors="replace")
    if len(encoded) > SLUG_BYTES:
        mark = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
        kept = encoded[: SLUG_BYTES - len(mark) - 1].decode(errors="ignore")
        safe = f"{kept}-{mark}"
    if safe.partition(".")[0].lower() in _DEVICES:
        safe += "-"
        safe = safe.replace(".", "-")
    return safe or otherwise


def in_markdown(text: str) -> str:
    """``text`` as it is, where Markdown would read marks, links or HTML: on one line, escaped."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def fenced(text: str) -> str:
    """``text`` as a block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def in_picture(text: str) -> str:
    """``text`` for a label of a plot, where a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def in_cell(value: object) -> object:
    """A value for a table's cell; text that a spreadsheet would compute gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_LIVE) else value


def require_within(path: Path, roots: Iterable[Path], where: str, instead: str) -> None:
    """Raise unless ``path``, links followed, lies in one of the folders ``roots``."""
    try:
        real = path.resolve()
        inside = any(real.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
        found = f"{shown(str(path))} is no path: {error}"
        raise GncompileError(found, where=where) from None
    if not inside:
        found = f"{shown(str(path))} lies outside the model file's folder"
        raise GncompileError(found, where=where, instead=instead)


def shown(text: str, most: int = 200) -> str:
    """``repr`` of a text from outside, for an error text: bounded, on one line, no control characters."""
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")


# --- Folders that others may have written ------------------------------------------------------------


def is_plain_file(path: Path) -> bool:
    """Whether ``path`` itself, not what a link leads to, is a regular file."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def require_no_link(path: Path) -> None:
    """Raise where a link is, so that nothing is written to where it leads."""
    if path.is_symlink():
        found = f"{shown(str(path))} is a link, and nothing is written through links"
        raise GncompileError(found, instead="choose another folder, or remove the link")


def own_folder(path: Path) -> Path:
    """Make sure that ``path`` is a folder and no link to one; a link or a file there is removed."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)
    return path


def append_line(path: Path, line: str) -> None:
    """Append to a file of ours; a link in its place is never followed."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(line + "\n")
