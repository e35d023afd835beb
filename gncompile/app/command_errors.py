"""What the command line says about errors that are not ours: of the system, of memory, and our bugs."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback

from ..errors import message

REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "write where files may be larger",
    errno.EACCES: "choose a place that you may read and write, or change its permissions",
    errno.EPERM: "choose a place that you may read and write, or change its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.EEXIST: "a file stands where a folder is needed: choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another path",
    errno.EISDIR: "a folder stands where a file is needed: choose another path",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a link is where a file should be: choose another path",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENOMEM: "close other programs, or declare a smaller network",
}
_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory")


def explained(error: Exception) -> str:
    """The text for an error that reached the command line; for a bug of ours with a file to report."""
    if _is_of_memory(error):
        found = f"error: the memory does not suffice: {_first_line(error)}"
        return message(found, instead="declare smaller layers or batches, or close other programs")
    if isinstance(error, RecursionError):
        return message(
            "error: something in the input is nested too deeply",
            where=_place(error),
            instead="divide long expressions, and chains of layers, into smaller ones",
        )
    if isinstance(error, OSError) and error.errno is not None:
        places = [str(p) for p in (error.filename, error.filename2) if p is not None]
        return message(
            f"error: {os.strerror(error.errno)}",
            where=" -> ".join(places) or None,
            instead=REMEDIES.get(error.errno, "check the path and the device it is on"),
        )
    return message(
        f"internal error: {type(error).__name__}: {_first_line(error)}",
        where=_place(error),
        instead=f"this is our bug: report it, with {_report(error)}",
    )


def _is_of_memory(error: Exception) -> bool:
    """MemoryError, and what torch raises instead."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _MEMORY)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no text"])[0][:300]


def _place(error: Exception) -> str | None:
    """The last line of ours that was running."""
    ours = [
        f"{os.path.basename(frame.filename)}, line {frame.lineno}, {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{os.sep}gncompile{os.sep}" in frame.filename
    ]
    return ours[-1] if ours else None


def _report(error: Exception) -> str:
    """A file with the traceback, or its last lines where no file can be written."""
    text = "".join(traceback.format_exception(error, limit=-20))
    try:
        handle, name = tempfile.mkstemp(prefix="gncompile-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        return "these lines:\n" + "\n".join(text.splitlines()[-10:])
    return f"the file {name}"
