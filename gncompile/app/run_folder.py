"""A run's folder: everything needed to read the run, and to go on with it.

::

    model.toml               the model file as it was
    data.json                which columns go in and come out, so that predictions need no training data
    run.json                 how it was started, versions, why it ended; made last: it marks a whole folder
    history.jsonl            one line an update
    history.csv, tensorboard/    the same for spreadsheets and TensorBoard, where [training] log asks for them
    checkpoint.safetensors   the trainer's state, for resume; there from the start
    weights.safetensors      the parameters that report.md speaks of, by name
    loss.png                 the loss against updates
    reconstructions.png      originals above their reconstructions, of an autoencoder of images
    predicted.png            predicted against true values, of regression
    confusion.png            classes against those they were taken for, of classification
    report.md                results, and where to read on
    derivation/index.html    the compiled model and its derivation as linked pages
    .lock                    held while a process trains into the folder; a process that died holds nothing

A folder may come from somebody else: files in it are read within bounds, and nothing is ever written through
a link that is in it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..base.environment import environment
from ..base.files import atomic_write
from ..base.untrusted import append_line, is_plain_file, own_folder, slug
from ..data.table_schema import TableSchema
from ..errors import CheckpointError, GncompileError

Record = dict[str, Any]

LOCK = ".lock"
PICTURES = ("loss.png", "reconstructions.png", "predicted.png", "confusion.png", "solution.png")
FILES = (
    *("model.toml", "data.json", "run.json", "history.jsonl", "history.csv", "report.md"),
    *("checkpoint.safetensors", "weights.safetensors", *PICTURES),
)
FOLDERS = ("derivation", "tensorboard")
UNFINISHED = {"model.toml", "data.json", "checkpoint.safetensors", LOCK}
"""What a process that died while it made the folder may have left."""
MAX_RECORD = 1 << 20
"""Bytes of run.json."""
MAX_SCHEMA = 1 << 26
"""Bytes of data.json, which names every level of every category."""
MAX_HISTORY = 1 << 30
"""Bytes of history.jsonl: millions of updates."""
_TEMPORARY = re.compile(
    rf"\.({'|'.join(Path(name).stem for name in FILES)})-[A-Za-z0-9_]{{8,12}}\.[a-z]+"
)


class InUse(GncompileError):
    """The folder has another run's files, or another process has it."""


class RunFolder:
    """The files of one run under ``path``; every method writes completely or not at all."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None
        self._made = False  # whether the folder was not there before

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        model_file: Path,
        settings: Mapping[str, Any],
        content: bytes | None = None,
        fill: Callable[[RunFolder], object] = lambda folder: None,
    ) -> RunFolder:
        """A new folder holding the model file and how the run was started, held for this process.

        ``content`` is that of the model file as it was read; ``fill`` writes what has to be there from the
        start. Refuses a folder in use; leaves nothing behind if anything fails.
        """
        folder = cls(path)
        folder.require_free()
        folder._made = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.hold()
        try:
            folder.require_free()  # another process may have been quicker
            content = model_file.read_bytes() if content is None else content
            atomic_write(folder.model_file, content)
            fill(folder)
            started = {"base": str(model_file.parent.absolute()), **settings}
            folder._write_record({"settings": started, "environment": environment()})
        except BaseException:
            if not (folder.path / "run.json").exists():
                folder.discard()
            folder.release()
            raise
        return folder

    @classmethod
    def create_in(
        cls,
        parent: Path,
        name: str,
        model_file: Path,
        settings: Mapping[str, Any],
        content: bytes | None = None,
        fill: Callable[[RunFolder], object] = lambda folder: None,
    ) -> RunFolder:
        """The same in the first :func:`free_folder`, also where other processes look for one."""
        while True:
            path = free_folder(parent, name)
            try:
                return cls.create(path, model_file, settings, content, fill)
            except InUse:
                if not path.exists():  # not taken by another run
                    raise

    def require_free(self) -> None:
        """Raise unless the folder is absent, empty, or was left by a process that died making it."""
        if not self.path.exists():
            return
        if self.path.is_dir():
            found = {each.name for each in self.path.iterdir()}
            found = {name for name in found if not _TEMPORARY.fullmatch(name)}
            if not found or (LOCK in found and found <= UNFINISHED):
                return
        raise InUse(
            f"the run folder {str(self.path)!r} is in use",
            instead=f"choose another one, go on with: gncompile resume {self.path}, or delete it",
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """An existing run; :class:`CheckpointError` unless it can be read."""
        folder = cls(path)
        for needed in (folder.path / "run.json", folder.model_file):
            if not needed.is_file():
                raise CheckpointError(
                    f"{str(folder.path)!r} is not a run folder: {needed.name} is missing",
                    instead="give the folder that gncompile train wrote",
                )
        return folder

    # --- Whose it is -------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep the folder for this process until :meth:`release`; an error if another one has it.

        What a process that was killed left half written is removed.
        """
        path = self.path / LOCK
        if os.path.lexists(path) and (not is_plain_file(path) or path.lstat().st_nlink > 1):
            path.unlink()  # a lock is opened for writing, and a link leads elsewhere
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InUse(
                f"the run folder {str(self.path)!r} is in use by another process",
                instead="wait until that has ended, or stop it",
            ) from None
        self._lock = lock
        for left in self.path.iterdir():
            if _TEMPORARY.fullmatch(left.name) and is_plain_file(left):
                left.unlink(missing_ok=True)

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def discard(self) -> None:
        """Remove the run's files, and the folder if it was made for them: nothing in it is worth keeping."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for folder in map(self.path.joinpath, FOLDERS):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
        self.release()
        (self.path / LOCK).unlink(missing_ok=True)
        if self._made:
            self.path.rmdir()

    @property
    def model_file(self) -> Path:
        """The copy of the model file."""
        return self.path / "model.toml"

    @property
    def checkpoint(self) -> Path:
        """Where the trainer saves."""
        return self.path / "checkpoint.safetensors"

    @property
    def weights(self) -> Path:
        """The parameters that the report speaks of."""
        return self.path / "weights.safetensors"

    def own_folder(self, name: str) -> Path:
        """The folder ``derivation``, say; made anew where something else is in its place."""
        return own_folder(self.path / name)

    def own_file(self, name: str) -> Path:
        """A file that somebody else is going to write; a link in its place is removed."""
        path = self.path / name
        if os.path.lexists(path) and not is_plain_file(path):
            path.unlink()
        return path

    @property
    def schema(self) -> TableSchema | None:
        """What ``data.json`` says of the data; None in a folder of an older version."""
        path = self.path / "data.json"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file:
                text = file.read(MAX_SCHEMA + 1)
            if len(text) > MAX_SCHEMA:
                raise ValueError("too long")
            return TableSchema.model_validate_json(text)
        except ValueError as error:  # pydantic's, too
            first = str(error).split("\n", 1)[0][:200]
            raise CheckpointError(
                f"data.json is damaged: {first}",
                where=str(self.path),
                instead="start the run again",
            ) from error

    @schema.setter
    def schema(self, schema: TableSchema) -> None:
        atomic_write(self.path / "data.json", schema.model_dump_json(indent=1) + "\n")

    @property
    def settings(self) -> dict[str, Any]:
        """How the run was started, as given to :meth:`create`, and ``base`` for relative paths."""
        return self._record()["settings"]

    @settings.setter
    def settings(self, settings: Mapping[str, Any]) -> None:
        self._write_record(self._record() | {"settings": dict(settings)})

    def _record(self) -> Record:
        """What ``run.json`` holds."""
        try:
            with (self.path / "run.json").open("rb") as file:
                text = file.read(MAX_RECORD + 1)
            if len(text) > MAX_RECORD:
                raise ValueError("too long")
            record = dict(json.loads(text))
            return record | {"settings": dict(record["settings"])}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                "run.json is damaged", where=str(self.path), instead="start the run again"
            ) from error

    def _write_record(self, record: Record) -> None:
        atomic_write(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    # --- History -----------------------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the history; values that JSON lacks become null."""
        line = json.dumps({key: _plain(value) for key, value in record.items()})
        append_line(self.path / "history.jsonl", line)

    def history(self) -> list[Record]:
        """All records; a last line cut short by a crash is left out.

        Raises :class:`CheckpointError` for other lines that are no records of updates.
        """
        path = self.path / "history.jsonl"
        if not path.exists():
            return []
        if not path.is_file():
            raise CheckpointError("history.jsonl is no file", where=str(self.path))
        if path.stat().st_size > MAX_HISTORY:
            found = f"history.jsonl is longer than {MAX_HISTORY} bytes"
            raise CheckpointError(
                found, where=str(path), instead="remove it; the training does not need it"
            )
        lines = path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):  # a whole line ends with a line break
            record = _record(line)
            if record is None:
                raise CheckpointError(
                    "history.jsonl is damaged",
                    where=f"line {number} of {path}",
                    instead="remove the line; the training itself does not need it",
                )
            records.append(record)
        return records

    def rewind(self, updates: int) -> None:
        """Forget what was recorded after ``updates``: a resumed run does those again."""
        kept = {r["update"]: r for r in self.history() if r["update"] <= updates}
        lines = "".join(json.dumps(record) + "\n" for record in kept.values())
        atomic_write(self.path / "history.jsonl", lines)

    # --- Text --------------------------------------------------------------------------------------

    def write_report(self, text: str) -> Path:
        """Write ``report.md``."""
        return atomic_write(self.path / "report.md", text)


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2``, ``-3``, … if that exists."""
    safe = slug(name, "run")
    path, number = parent / safe, 1
    while path.exists():
        number += 1
        path = parent / f"{safe}-{number}"
    return path


def _record(line: bytes) -> Record | None:
    """A line of the history, or None: an object with its update, and finite numbers or null elsewhere."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("update")) is not int:
        return None
    numbers = all(value is None or _is_finite(value) for value in record.values())
    return record if numbers and record["update"] >= 0 else None


def _is_finite(value: object) -> bool:
    """Whether ``value`` is a number that floating point holds; JSON has integers of any length."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # one number in a tensor or an array
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
