"""Files written so that a reader, or a process that is killed, never sees half of one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 40
"""Characters of a name that its temporary file keeps; file systems allow 255 bytes."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to; rename it to ``path`` if all went well.

    The bytes reach the disk before the rename, so after a crash ``path`` is the old file or the new one.
    The temporary file keeps the suffix of ``path``, because writers choose their format by it. The file keeps
    the permissions it had; a new one has those that the umask leaves.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_file(path)
    mode = _mode(path) or _mode(temporary)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8) to ``path`` in one step and return the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def _new_file(path: Path) -> Path:
    """An empty file beside ``path`` that was not there, nor a link, before.

    It has the permissions that any new file gets: the system applies the umask, which nobody can ask for
    without changing it for all threads.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    while True:
        name = path.with_name(f".{path.stem[:LONGEST]}-{secrets.token_hex(6)}{path.suffix}")
        with suppress(FileExistsError):
            os.close(os.open(name, flags, 0o666))
            return name


def _mode(path: Path) -> int:
    """The permissions of a file, 0 if there is none."""
    with suppress(FileNotFoundError):
        found = path.lstat().st_mode
        return stat.S_IMODE(found) & 0o777 if stat.S_ISREG(found) else 0
    return 0
