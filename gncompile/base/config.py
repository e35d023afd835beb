"""Switches: named words, read from the environment or set for a ``with`` block.

The table :data:`SWITCHES` is the whole list. The switch ``dump`` is the environment variable
``GNCOMPILE_DUMP``; a ``with`` block goes before the environment::

    with config.using(dump="debug", check=True):
        trainer = gncompile.compile(model, ...)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import GncompileError, expected_got, nearest
from .tables import aligned

PREFIX = "GNCOMPILE_"


@dataclass(frozen=True)
class Switch:
    """One switch: its word, what kind of value it takes, and what it does."""

    name: str
    kind: Literal["folder", "flag"]
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable, ``GNCOMPILE_NAME``."""
        return PREFIX + self.name.upper()


SWITCHES: Mapping[str, Switch] = {
    switch.name: switch
    for switch in (
        Switch("data", "folder", "where data sets are looked for first"),
        Switch("cache", "folder", "where downloads and emitted sources are kept"),
        Switch("tuning", "folder", "where tuned settings are kept, if not in the cache"),
        Switch("dump", "folder", "write graphs, programs and sources there, in reading order"),
        Switch("override", "folder", "use edited copies of emitted sources found there"),
        Switch("check", "flag", "check the graph and the program after every pass"),
    )
}

Value = Path | bool | None
_changed: ContextVar[Mapping[str, Value]] = ContextVar("gncompile_switches", default={})  # noqa: B039


def folder(name: str) -> Path | None:
    """The folder a switch names, or None where it is off. ``cache`` has a default for this system."""
    value = _value(_known(name))
    if value is None and name == "cache":
        import platformdirs

        return Path(platformdirs.user_cache_dir("gncompile"))
    return value if isinstance(value, Path) else None


def flag(name: str) -> bool:
    """Whether a switch is on."""
    return _value(_known(name)) is True


@contextmanager
def using(**values: str | os.PathLike[str] | bool | None) -> Iterator[None]:
    """Set switches for a ``with`` block; ``None`` turns one off."""
    parsed = {name: _parse(_known(name), value) for name, value in values.items()}
    token = _changed.set({**_changed.get(), **parsed})
    try:
        yield
    finally:
        _changed.reset(token)


def describe() -> str:
    """A row a switch: environment variable, present value, meaning."""
    rows = [(s.variable, str(_shown(s)), s.meaning) for s in SWITCHES.values()]
    return aligned(rows)


def _shown(switch: Switch) -> Path | str:
    if switch.kind == "flag":
        return "on" if flag(switch.name) else "off"
    return folder(switch.name) or "off"


def _value(switch: Switch) -> Value:
    _refuse_unknown_variables()
    changed = _changed.get()
    if switch.name in changed:
        return changed[switch.name]
    return _parse(switch, os.environ.get(switch.variable) or None)


def _parse(switch: Switch, value: str | os.PathLike[str] | bool | None) -> Value:
    if value is None:
        return None
    if switch.kind == "flag":
        words: dict[object, bool] = {True: True, False: False, "1": True, "0": False}
        words |= {"on": True, "off": False, "true": True, "false": False}
        word = value.lower() if isinstance(value, str) else value
        if word in words:
            return words[word]
    elif not isinstance(value, bool):
        return Path(value).expanduser()
    expected = "on or off" if switch.kind == "flag" else "a folder"
    raise GncompileError(
        f"the switch {switch.name!r} has a wrong value\n{expected_got(expected, repr(value))}",
        where=f"{switch.variable} in the environment, or config.using({switch.name}=...)",
    )


def _known(name: str) -> Switch:
    if name not in SWITCHES:
        raise GncompileError(
            f"unknown switch {name!r}. {nearest(name, SWITCHES)}".rstrip(),
            instead=f"use one of {', '.join(SWITCHES)}",
        )
    return SWITCHES[name]


def _refuse_unknown_variables() -> None:
    variables = {switch.variable for switch in SWITCHES.values()}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in variables:
            raise GncompileError(
                f"unknown switch {name}. {nearest(name, variables)}".rstrip(),
                where="the environment",
                instead=f"unset it, or use one of {', '.join(sorted(variables))}",
            )
