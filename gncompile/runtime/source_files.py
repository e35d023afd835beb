"""Emitted sources as real files: content-addressed, imported by path, replaceable by an edited copy."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

from .. import config
from ..errors import CompileError, message
from ..files import atomic_write


def load_source(text: str, name: str) -> tuple[ModuleType, Path]:
    """Write ``text`` into the source cache, import it, and return the module and its file.

    The file is named after the model and the hash of its text, so tracebacks and profilers show legible
    names and equal programs share a file. A file of the same name in the ``override`` folder is imported
    instead, with a warning: that is how emitted code is tuned by hand.
    """
    stem = f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_').lower() or 'model'}"
    stem += "_" + hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = config.folder("cache")
    assert folder is not None
    path = folder / "source" / f"{stem}.py"
    if not path.exists() or path.read_text() != text:
        atomic_write(path, text)
    override = config.folder("override")
    if override and (override / path.name).exists():
        path = override / path.name
        warnings.warn(f"gncompile runs the edited source {path}", stacklevel=2)
    return _import(path, f"gncompile_source_{path.stem}"), path


def _import(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CompileError(message(f"the source file {path} cannot be imported"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise CompileError(
            message(
                f"the source file {path} is not valid Python: {error}", instead="fix or remove it"
            )
        ) from error
    return module
