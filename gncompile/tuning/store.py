"""The store of tuned settings: one JSON file for every kind of device.

It lies in the folder of the switch ``tuning``, by default in the cache. Reading never fails: a file that is
damaged, foreign or unreadable holds nothing, and a note says so. What is read is checked within bounds, for
it may be somebody else's. Writing merges what is new into what the file holds by then, under a lock, and
replaces it in one step; so many processes may tune at once. A damaged file is kept aside first.

A setting is used only for the code, dtype, precision, device and versions that it was measured with. Its
shape is the wanted one or else the nearest in the same bucket: every size rounded to a power of two.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..base import config
from ..base.files import atomic_write
from ..base.tables import count
from ..emit.torch_operations import Options
from ..errors import GncompileError
from .device import Device, Word, this_device, versions
from .problem import Key
from .search import Outcome

FORMAT = 1
LOCK_SECONDS = 10.0  # that a process waits for another one which is writing


class TuningWarning(UserWarning):
    """Tuned settings that were not used or not kept, and why."""


class Record(BaseModel):
    """A frozen part of the file that refuses unknown keys, values of another type, and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


MAX_BYTES = 64 << 20
"""Of a store that is read."""
MAX_ENTRIES = 20_000
MAX_TEXT = 2000


def _lines(text: str) -> str:
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise ValueError("control characters")
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_lines)]
Size = Annotated[int, Field(ge=0, lt=2**62)]
Choice = dict[Word, Annotated[int, Field(gt=-(2**62), lt=2**62)] | Word | None]
Seconds = Annotated[float, Field(ge=0)]


class StoredTrial(Record):
    """What became of one candidate; see :class:`~gncompile.tuning.search.Trial`."""

    options: Choice
    predicted: Seconds
    seconds: Seconds | None
    rejected: Text | None


class Entry(Record):
    """One setting: what it is for, what was chosen, and the measurements behind it."""

    kernel: Word
    source: Word
    shape: Annotated[tuple[Size, ...], Field(max_length=16)]
    dtype: Word
    precision: Word
    form: Text = ""
    versions: Annotated[dict[Word, Word], Field(max_length=16)]
    options: Choice
    trials: Annotated[tuple[StoredTrial, ...], Field(max_length=10_000)]
    effort: Word
    note: Text = ""

    @property
    def key(self) -> Key:
        """What it is for."""
        return Key(self.kernel, self.source, self.shape, self.dtype, self.precision, self.form)

    @property
    def identity(self) -> tuple[object, ...]:
        """Entries of equal identity replace each other."""
        return (self.key, tuple(sorted(self.versions.items())))


class StoreFile(Record):
    """The whole file."""

    format: int
    device: Device
    entries: Annotated[tuple[Entry, ...], Field(max_length=MAX_ENTRIES)]


Allowed = Callable[[str, Options], bool]
"""Whether an operation knows these options."""


def entry_of(outcome: Outcome, effort: str, device: Device) -> Entry:
    """An outcome of the search on a device as it is stored, with the versions of now."""
    key = outcome.key
    return Entry(
        kernel=key.kernel,
        source=key.source,
        shape=key.shape,
        dtype=key.dtype,
        precision=key.precision,
        form=key.form,
        versions=versions(device.kind),
        options=dict(outcome.options),
        trials=tuple(
            StoredTrial(options=dict(t.options), predicted=t.predicted,
                        seconds=t.seconds if t.seconds and math.isfinite(t.seconds) else None,
                        rejected=None if t.rejected is None else _clean(t.rejected))
            for t in outcome.trials
            if math.isfinite(t.predicted)
        ),
        effort=effort,
        note=_clean(outcome.note),
    )  # fmt: skip


def _clean(text: str) -> str:
    """A text that may be a compiler's, as a store takes it."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[:MAX_TEXT])


# --- Files ----------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where the stores of all devices lie."""
    chosen = config.folder("tuning")
    if chosen is not None:
        return chosen
    cache = config.folder("cache")
    assert cache is not None
    return cache / "tuning"


def path_of(device: Device) -> Path:
    """The store of a kind of device."""
    return folder() / f"{device.slug}.json"


class Unreadable(Exception):
    """A file that holds no settings for us; the text says why."""


def parse(path: Path) -> StoreFile:
    """The content of a store, which exists; :class:`Unreadable` if it is not one of this version's."""
    try:
        if path.exists() and not path.is_file():
            raise Unreachable("cannot be read: it is no regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise Unreadable(f"is longer than {MAX_BYTES} bytes")
        data = json.loads(content.decode("utf-8"))
        found = data["format"]
    except OSError as error:
        raise Unreachable(f"cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Unreadable("is damaged, or no store of tuned settings") from error
    if found != FORMAT:
        raise Foreign(f"has format {repr(found)[:100]}, this version of gncompile knows {FORMAT}")
    try:
        # JSON is where pydantic's strict mode knows arrays from tuples.
        return StoreFile.model_validate_json(json.dumps(data))
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise Unreadable("is damaged: nested too deeply") from error
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Unreadable(f"is damaged at {place}: {first['msg']}") from error


class Unreachable(Unreadable):
    """A file that the system does not let us read, whatever it holds."""


class Foreign(Unreadable):
    """A file of another version of gncompile, which is left as it is."""


@dataclass
class Store:
    """The settings of one file, for one device.

    A ``pinned`` file is used on any device and with any versions, so that a run is the same everywhere;
    it is never written.
    """

    path: Path
    device: Device
    pinned: bool = False
    notes: list[str] = field(default_factory=list)
    """What was ignored or could not be done, and why."""
    entries: tuple[Entry, ...] = ()

    @classmethod
    def open(cls, kind: str = "cpu") -> Store:
        """The store of this machine's device of a kind."""
        return cls.of(this_device(kind))

    @classmethod
    def of(cls, device: Device) -> Store:
        """The store of a device; empty, with a note, if there is none that can be used."""
        store = cls(path_of(device), device)
        store.entries = store._read()
        return store

    @classmethod
    def pin(cls, path: Path) -> Store:
        """A file that was exported and is kept with a project; raises unless it can be used."""
        content = _given(path)
        return cls(path, content.device, pinned=True, entries=content.entries)

    def _read(self) -> tuple[Entry, ...]:
        if not self.path.exists():
            return ()
        try:
            content = parse(self.path)
        except Unreadable as error:
            self.notes.append(f"the tuned settings in {self.path} are ignored: the file {error}")
            return ()
        if content.device != self.device:
            self.notes.append(
                f"the tuned settings in {self.path} are ignored: they are of {content.device}"
            )
            return ()
        return content.entries

    # --- looking up -------------------------------------------------------------------------------------

    def current(self, entry: Entry) -> bool:
        """Whether an entry was measured with the versions of now."""
        return self.pinned or entry.versions == versions(self.device.kind)

    def look_up(self, key: Key, allowed: Allowed) -> Entry | None:
        """The entry for ``key``, or for the nearest shape of its bucket; None if there is neither."""
        similar = [
            e
            for e in self.entries
            if e.key == replace(key, shape=e.shape)
            and self.current(e)
            and allowed(e.kernel, e.options)
            and bucket(e.shape) == bucket(key.shape)
        ]
        return min(similar, key=lambda e: (distance(e.shape, key.shape), e.shape), default=None)

    def note_stale(self, wanted: Iterable[Key]) -> None:
        """Note how many of the wanted settings are there, but of other code or other versions."""
        same = {replace(key, source=""): key.source for key in wanted}
        why: dict[str, int] = {}
        fresh = {entry.key for entry in self.entries if self.current(entry)}
        for e in self.entries:
            source = same.get(replace(e.key, source=""))
            if source is None or replace(e.key, source=source) in fresh:
                continue
            reason = (
                self._changed(e.versions) if e.source == source else "the measured code has changed"
            )
            why[reason] = why.get(reason, 0) + 1
        self.notes += [
            f"stale and ignored: {count(number, 'tuned setting')} in {self.path} ({reason}); "
            "gncompile tune measures anew"
            for reason, number in why.items()
        ]

    def _changed(self, measured: Mapping[str, str]) -> str:
        """``torch 2.12 then, 2.13 now``."""
        now = versions(self.device.kind)
        parts = [
            f"{name} {measured.get(name, 'absent')} then, {now.get(name, 'absent')} now"
            for name in {**measured, **now}
            if measured.get(name) != now.get(name)
        ]
        return ", ".join(parts)

    # --- writing ----------------------------------------------------------------------------------------

    def add(self, new: Collection[Entry]) -> bool:
        """Merge entries into the file; whether it could be written. They are used in any case."""
        if self.pinned:
            raise GncompileError(
                "a pinned file of settings is not written",
                where=str(self.path),
                instead="tune without it, then export",
            )
        self.entries = _merged(self.entries, new)
        try:
            with self._lock():
                # Of this process only what is new: what it read before may have been replaced since.
                self._write(_merged(self._held(), new))
        except (OSError, Timeout, Foreign, Unreachable) as error:
            note = f"the settings found are not kept: {self.path}: {error}"
            self.notes += [note] if note not in self.notes else []
            return False
        return True

    def clear(self) -> None:
        """Delete the file; raises OSError if that is not allowed."""
        self.path.unlink(missing_ok=True)
        self.entries = ()

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS)

    def _held(self) -> tuple[Entry, ...]:
        """What the file holds now; one that is damaged or of another device is kept aside, for repair."""
        if not self.path.exists():
            return ()
        try:
            content = parse(self.path)
        except (Foreign, Unreachable):
            raise
        except Unreadable as error:
            self._set_aside(str(error))
            return ()
        if content.device == self.device:
            return content.entries
        self._set_aside(f"is of {content.device}")
        return ()

    def _set_aside(self, reason: str) -> None:
        number, aside = 1, self.path.with_name(f"{self.path.name}.damaged")
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.damaged-{number}")
        self.path.rename(aside)
        self.notes.append(f"the file of tuned settings {reason}; it is kept as {aside}")

    def _write(self, entries: tuple[Entry, ...]) -> None:
        if len(entries) > MAX_ENTRIES:
            raise OSError(f"it would hold more than {MAX_ENTRIES} settings; clear it first")
        content = StoreFile(format=FORMAT, device=self.device, entries=entries)
        atomic_write(self.path, content.model_dump_json(indent=1) + "\n")

    def export(self, path: Path) -> None:
        """Write a copy of the settings, to be imported elsewhere or pinned by a project."""
        content = StoreFile(format=FORMAT, device=self.device, entries=self.entries)
        atomic_write(path, content.model_dump_json(indent=1) + "\n")

    def warn(self) -> None:
        """Say all notes as :class:`TuningWarning`, once."""
        for note in self.notes:
            warnings.warn(note, TuningWarning, stacklevel=3)
        self.notes.clear()


def import_file(path: Path) -> Store:
    """Merge an exported file into the store of the device it was measured on, and return that."""
    content = _given(path)
    store = Store.of(content.device)
    store.add(content.entries)
    return store


def _given(path: Path) -> StoreFile:
    """The content of a file that was asked for by name, which therefore has to be usable."""
    try:
        return parse(path)
    except Unreadable as error:
        raise GncompileError(
            f"the file of tuned settings {error}",
            where=str(path),
            instead="give a file written by gncompile tune --export",
        ) from error


def _merged(held: Iterable[Entry], new: Iterable[Entry]) -> tuple[Entry, ...]:
    """Entries by identity, the new ones before the held, sorted so that files differ only where they must."""
    by_identity = {e.identity: e for e in (*held, *new)}
    return tuple(sorted(by_identity.values(), key=lambda e: str(e.identity)))


def bucket(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Every size rounded to the nearest power of two, in ratio."""
    return tuple(round(math.log2(max(size, 1))) for size in shape)


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Sum of the sizes' ratios, as logarithms."""
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))
