"""Emitted source runs from memory; files of it are for people, and nothing is ever executed from one.

The text is checked (:mod:`.source_check`), compiled and executed under the name of the file that is written
beside it, so that tracebacks, profilers, debuggers and ``inspect.getsource`` find their lines, as Triton
does too. The files lie in the folder ``source`` of the cache, which belongs to this user alone. Where there
can be none, the step runs all the same, and one warning says why.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import os
import re
import stat
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from ..base import config
from ..base.exact_key import Recent
from ..base.files import atomic_write
from ..errors import CompileError, GncompileError, message
from .source_check import checked

KEPT = 1000
"""Files that the cache keeps at most; the oldest go."""
LONGEST = 60
"""Characters of a model's name in the name of a file."""


class CacheWarning(UserWarning):
    """Why emitted sources are not kept as files, or may be changed there by others."""


def load_source(text: str, name: str) -> tuple[ModuleType, Path | None]:
    """Execute the emitted ``text`` as a module; return it, and the file of the same text if there is one.

    The file is named after the model and the hash of its text, so tracebacks and profilers show legible
    names and equal programs share a file. A file of the same name in the ``override`` folder is the user's
    own code and runs unchecked in place of ``text``, with a warning each time: that is how emitted code is
    tuned by hand. Raises :class:`~gncompile.errors.InternalError` for text that no emitter writes.
    The modules of the last few texts are kept: they hold functions, and no state.
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "_", name[: 4 * LONGEST]).strip("_").lower()[:LONGEST]
    stem = f"{stem or 'model'}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    edited = _override(f"{stem}.py")
    if edited is not None:
        warnings.warn(f"gncompile runs the edited source {edited}", stacklevel=2)
        text = _text_of(edited)
        return _run(_parsed(text, edited), text, stem, str(edited)), edited

    def loaded() -> ModuleType:
        tree = checked(text)  # before it is written anywhere
        path = _keep(text, f"{stem}.py")
        return _run(tree, text, stem, str(path or f"<{stem}>"))

    module = _loaded.get((text, stem, config.folder("cache")), loaded)
    return module, _keep(text, f"{stem}.py")


_loaded: Recent[ModuleType] = Recent(kept=8)


def function_of(
    statements: Sequence[str], arguments: Iterable[str], imports: str
) -> Callable[..., Any]:
    """Emitted statements as a function of their names, checked like a file of them."""
    body = textwrap.indent("\n".join(statements), "    ")
    text = f"{imports}\n\n\ndef function({', '.join(arguments)}):\n{body}\n"
    stem = f"function_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    module = _run(checked(text), text, stem, f"<{stem}>")
    del sys.modules[module.__name__], linecache.cache[f"<{stem}>"]
    return cast(Callable[..., Any], module.function)


def source_of(module: ModuleType) -> str:
    """The text that a module of :func:`load_source` was made from."""
    assert isinstance(module.__loader__, _InMemory)
    return module.__loader__.text


def _begun(node: ast.stmt) -> ast.stmt:
    """A function of arguments with a branch that does nothing before its statements.

    Python's compiler puts an instruction for every variable that inner functions read at the front of the
    first stretch without a branch, and moves all of that stretch each time. A ``bind`` is one such stretch:
    compiling it would take time with the square of its length.
    """
    if not (isinstance(node, ast.FunctionDef) and node.args.args) or node.decorator_list:
        return node
    after = 1 if ast.get_docstring(node, clean=False) is not None else 0
    first = node.body[0]
    test = ast.Compare(
        ast.Name(node.args.args[0].arg, ast.Load()), [ast.Is()], [ast.Constant(None)]
    )
    branch = ast.fix_missing_locations(ast.copy_location(ast.If(test, [ast.Pass()], []), first))
    begun = ast.FunctionDef(**dict(ast.iter_fields(node)))
    begun.body = [*node.body[:after], branch, *node.body[after:]]
    return ast.copy_location(begun, node)


class _InMemory(InspectLoader):
    """The loader of a module whose text is here, whatever became of its file."""

    def __init__(self, tree: ast.Module, text: str, filename: str) -> None:
        self.tree, self.text, self.filename = tree, text, filename

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.Module([_begun(node) for node in self.tree.body], self.tree.type_ignores)
        return compile(tree, self.filename, "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return False


def _run(tree: ast.Module, text: str, stem: str, filename: str) -> ModuleType:
    name = f"gncompile_source_{stem}"
    loader = _InMemory(tree, text, filename)
    spec = ModuleSpec(name, loader, origin=filename)
    module = ModuleType(name)
    module.__spec__, module.__loader__, module.__file__ = spec, loader, filename
    # Without a time of change the lines are never looked up in the file again.
    linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    loader.tree = ast.Module([], [])
    return module


# --- files for people -----------------------------------------------------------------------------------


def _keep(text: str, name: str) -> Path | None:
    """The file ``name`` of the cache with this text; None, after a warning, where it cannot be."""
    cache = config.folder("cache")
    assert cache is not None
    folder = cache / "source"
    try:
        _make_private(cache, folder)
        path = folder / name
        if not _holds(path, text):
            atomic_write(path, text)
            _forget_oldest(folder)
    except _Untrusted as found:
        _warn(cache, f"emitted sources are not kept as files: {found}")
        return None
    except OSError as error:
        place = error.filename2 or error.filename or cache
        _warn(cache, f"emitted sources are not kept as files: {error.strerror}: {place}")
        return None
    return path


class _Untrusted(Exception):
    """A folder that others may write."""


def _make_private(cache: Path, folder: Path) -> None:
    """Make ``folder`` inside ``cache``, for this user alone; :class:`_Untrusted` where it is not ours.

    What runs does not come from there, so this guards what people read, and where we write. A cache that
    others may write is used with a warning: they cannot change our folder, but put another in its place.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _Untrusted(f"{folder} is no folder")
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            raise _Untrusted(f"{folder} belongs to another user")
        folder.chmod(0o700)
        if _is_shared(cache.stat()):
            _warn(cache, "other users may replace what lies there; what runs is not read from it")


def _is_shared(folder: os.stat_result) -> bool:
    """Whether others may rename the entries of a folder."""
    foreign = folder.st_uid not in (os.getuid(), 0)
    writable = folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX
    return bool(foreign or writable)


def _holds(path: Path, text: str) -> bool:
    """Whether a file has just this text."""
    data = text.encode()
    with suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size == len(data):
            return path.read_bytes() == data
    return False


def _forget_oldest(folder: Path) -> None:
    """Delete the oldest of too many files; other processes have their texts in memory."""
    files = [entry for entry in os.scandir(folder) if entry.name.endswith(".py")]
    if len(files) > KEPT:
        ages = []
        for entry in files:
            with suppress(FileNotFoundError):  # another process forgets them, too
                ages.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        for _, path in sorted(ages)[: len(ages) - KEPT]:
            with suppress(OSError):
                os.unlink(path)


_said: set[str] = set()


def _warn(cache: Path, why: str) -> None:
    if why not in _said:
        _said.add(why)
        remedy = (
            "set GNCOMPILE_CACHE to a folder that only you can write; nothing else depends on it"
        )
        what = message(why, where=f"the cache {cache}", instead=remedy)
        warnings.warn(what, CacheWarning, stacklevel=4)


# --- edited copies --------------------------------------------------------------------------------------


def _override(name: str) -> Path | None:
    """The user's own copy of a file, if the switch ``override`` names a folder that has one."""
    folder = config.folder("override")
    if folder is None or not (folder / name).exists():
        return None
    for place in (folder, folder / name):
        if hasattr(os, "getuid") and place.stat().st_mode & 0o002:
            raise GncompileError(
                "an edited source that any user may change is not run",
                where=str(place),
                instead=f"chmod o-w {place}",
            )
    return folder / name


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _not_python(path, str(error)) from error


def _parsed(text: str, path: Path) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_python(path, str(error)) from error


def _not_python(path: Path, why: str) -> CompileError:
    return CompileError(
        f"the source file {path} is not valid Python: {why}", instead="fix or remove it"
    )
