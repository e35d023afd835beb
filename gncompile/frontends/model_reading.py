"""A model file's text as sections: TOML read within bounds, and pydantic's errors in our words."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..base.option_hints import HINTS
from ..base.settings import Settings
from ..base.tables import count
from ..base.untrusted import shown
from ..data.data_files import ARCHIVES
from ..data.tables import TABLES
from ..errors import ModelFileError, expected_got, message, nearest
from .model_schema import Sections
from .network_schema import VARIANTS, Layers
from .pde_schema import PdeTraining
from .training_schema import OF_VALIDATION, Training, with_length

MAX_BYTES = 16 << 20
"""Of a model file; TOML is read into objects fifty times its size."""
MAX_DEPTH = 16
"""Tables and arrays inside one another."""
MAX_MISTAKES = 20
"""Mistakes that one error lists."""


def read(path: Path) -> bytes:
    """The bytes of a model file; :class:`~gncompile.errors.ModelFileError` if there are none to have."""
    try:
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{str(path)!r} is no file", instead="give a TOML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ModelFileError(
            f"no model file {shown(str(path))}", instead="check the path"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(_unreadable(error, path, "check the path")) from error
    if path.suffix in (*TABLES, *ARCHIVES):
        raise ModelFileError(
            f"{shown(str(path))} holds data, and is no model file",
            instead=f"write a model file for it: gncompile init {path.name}",
        )
    if len(content) > MAX_BYTES:
        raise ModelFileError(
            f"the model file is longer than {MAX_BYTES} bytes",
            where=str(path),
            instead="build a network of that size in Python",
        )
    return content


def validate(content: bytes, path: Path) -> Sections:
    """The sections that the bytes of a model file say; all mistakes of one kind are listed at once."""
    tables = tables_of(content, path)
    if "pde" in tables:
        raise ModelFileError(
            "the model file has [pde], equations in place of data",
            where=str(path),
            instead="use check, explain, emit, train, resume, predict and evaluate, or in Python "
            "gncompile.residuals",
        )
    training, data = tables.get("training", {}), tables.get("data")
    if isinstance(training, dict):
        validates = not isinstance(data, dict) or data.get("validation") != 0
        tables["training"] = with_length(training, validates)
    sections = validate_as(Sections, tables, path)
    _check_validation(sections, path)
    return sections


def tables_of(content: bytes, path: Path) -> dict[str, Any]:
    """The bytes of a model file as TOML's tables, within bounds."""
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        tables = tomllib.loads(text)
        if _depth(tables) > MAX_DEPTH:
            raise RecursionError
    except UnicodeDecodeError as error:
        raise ModelFileError(_unreadable(error, path, "save it as UTF-8")) from error
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise ModelFileError(_unreadable(error, path, "write TOML 1.0")) from error
    except RecursionError:
        found = f"tables or arrays are nested more than {MAX_DEPTH} deep"
        raise ModelFileError(found, where=str(path)) from None
    return tables


T = TypeVar("T", bound=BaseModel)


def validate_as(kind: type[T], tables: Mapping[str, Any], path: Path) -> T:
    """Tables as a record of all sections, its options checked."""
    try:
        # JSON is where pydantic's strict mode knows arrays and tables from Python's own types.
        sections = kind.model_validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        raise ModelFileError("\n".join(_mistakes(error, kind)), where=str(path)) from None
    _check_options(sections.training, path)  # type: ignore[attr-defined]
    return sections


def _unreadable(error: Exception, path: Path, instead: str) -> str:
    said = f"cannot read the model file: {str(error)[:200]}"
    return message(said, where=str(path)[:500], instead=instead)


def _depth(value: object) -> int:
    """Containers inside one another, counted without recursion and no further than the bound."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        depth += bool(level)
    return depth


# --- Options ---------------------------------------------------------------------------------------


_OPTIONS = tuple(
    f.name for f in dataclasses.fields(Settings) if f.name not in Training.model_fields
)
_PLACE = ("backend", "precision")
"""Options that are no settings but say how the step is run."""
_TAKEN = ("model", "loss", "example_inputs")
"""What ``gncompile.compile`` takes besides, and gets from elsewhere in the file."""


def _check_options(training: Training | PdeTraining, path: Path) -> None:
    """Refuse options that are keys of ``[training]``, or what only other sections give."""
    where = f"[training.options] of {path}"
    for name, value in training.options.items():
        if name in type(training).model_fields:
            found, instead = f"{name!r} is no option", f"write {name} in [training]"
        elif name in _TAKEN:
            found, instead = f"{name!r} is no option", f"use some of {', '.join(_OPTIONS)}"
        elif name in _PLACE and not isinstance(value, str):
            found = f"wrong value for the option {name!r}\n{expected_got('text', _short(value))}"
            instead = "put it in quotes"
        else:
            continue
        raise ModelFileError(found, where=where, instead=instead)


def _check_validation(sections: Sections, path: Path) -> None:
    """Refuse what is asked of a validation that there is none of."""
    asked = [key for key in OF_VALIDATION if getattr(sections.training, key)]
    if sections.data.validation == 0 and asked:
        raise ModelFileError(
            f"validation = 0 in [data], and {', '.join(asked)} of [training] need a validation",
            where=str(path),
            instead=f"leave {' and '.join(asked)} out, or hold samples out: validation = 0.1",
        )


# --- pydantic's errors -------------------------------------------------------------------------------


def _mistakes(error: ValidationError, sections: type[BaseModel]) -> list[str]:
    """All mistakes in our words, those left out that only follow from others."""
    problems: list[dict[str, Any]] = [dict(each) for each in error.errors(include_url=False)]
    places = [problem["loc"] for problem in problems]
    first = _joined([problem for problem in problems if not _follows(problem, places)])
    more = [f"and {len(first) - MAX_MISTAKES} more"] if len(first) > MAX_MISTAKES else []
    return [_explain(problem, sections) for problem in first[:MAX_MISTAKES]] + more


def _follows(problem: dict[str, Any], places: list[tuple[int | str, ...]]) -> bool:
    """Whether only items are wrong: an array then counts as empty, too, and as none of other types."""
    loc = problem["loc"]
    if _is_type(loc[-1]):
        return any(
            place[: len(loc) - 1] == loc[:-1]
            and len(place) > len(loc)
            and _has_items(place[len(loc) - 1])
            for place in places
        )
    short = problem["type"] == "too_short"
    return short and any(place != loc and place[: len(loc)] == loc for place in places)


def _is_type(part: int | str) -> bool:
    """Whether a part of pydantic's path is one of several types that a value may be of."""
    return part in _TYPES or _has_items(part)


def _has_items(part: int | str) -> bool:
    return re.fullmatch(r"(tuple|list|dict)\[.*\]", str(part)) is not None


def _joined(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A value that is none of several types as one problem, in place of one for each of them."""
    found: dict[object, dict[str, Any]] = {}
    for number, problem in enumerate(problems):
        *place, last = problem["loc"]
        expected = problem["expected"] = _expected(problem)
        key = (*place, repr(problem["input"])) if _is_type(last) else number
        same = found.setdefault(key, problem)
        if same is not problem:
            same.update(loc=tuple(place), expected=f"{same['expected']}, or {expected}")
    return list(found.values())


def _expected(problem: dict[str, Any]) -> str:
    """What pydantic expected, in the words of a model file."""
    if problem["type"] == "too_short":
        return f"at least {count(problem['ctx']['min_length'], 'item')}"
    if problem["type"] == "too_long":
        return f"at most {count(problem['ctx']['max_length'], 'item')}"
    said = problem["msg"].removeprefix("Input should be ")
    return _IN_TOML.get(said, said)


def _explain(problem: dict[str, Any], sections: type[BaseModel]) -> str:
    """One of pydantic's errors in our words: the key with its path, what is wrong, the nearest key."""
    location, kind = problem["loc"], problem["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):  # of a record, of a dataclass
        return f"unknown key {_dotted(location)!r}. {_hint(location, sections)}"
    if kind == "missing" and location == ("data", "name"):
        return "missing key 'data.name': curves, mnist, or the path of a file"
    if kind == "missing":
        return f"missing key {_dotted(location)!r}"
    if kind == "value_error":
        return f"{_dotted(location)}: {problem['ctx']['error']}"
    if kind == "union_tag_not_found":
        return f"missing key '{_dotted(location)}.op'"
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        hint = nearest(tag, VARIANTS) or f"Use one of {problem['ctx']['expected_tags']}."
        return f"{_dotted(location)}.op: unknown operation {shown(tag)}. {hint}"
    expected = problem["expected"]
    if location == ("training", "early_stop"):
        expected = "a number of validations, a table, or false"
    elif location == ("pde", "reference") and kind == "string_type":
        expected = "a formula, in quotes, or a list of formulas, one an output"
    elif len(location) == 1:
        expected = f"a section, [{location[0]}]"
    return (
        f"wrong value for {_dotted(location)!r}\n{expected_got(expected, _short(problem['input']))}"
    )


_IN_TOML = {
    "an object": "a table",
    "a valid array": "a list, in [ ]",
    "a valid string": "text, in quotes",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
"""What pydantic expects of JSON, in the words of a model file."""
_TYPES = "int", "float", "bool", "str", "constrained-str"
"""What pydantic puts into the path of an error where a value may be of several types."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _dotted(location: tuple[int | str, ...]) -> str:
    """``network.node[0].size`` for pydantic's path, its tags left out and lists counted from 1."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        elif part not in VARIANTS and not _has_items(part):
            text += f".{part if len(part) <= 100 else part[:99] + '…'}"
    return text.removeprefix(".")


def _hint(location: tuple[int | str, ...], sections: type[BaseModel]) -> str:
    """Where a key belongs that is unknown here, what it is called here, or what can be written."""
    key, here = str(location[-1]), location[:-1]
    if key in (*_OPTIONS, *_PLACE):
        return f"{key} is an option: write it in [training.options]"
    known = _keys(here, sections)
    others = [section for section in _SECTIONS if section in sections.model_fields]
    places = [f"[{section}]" for section in others if key in _keys((section,), sections)]
    elsewhere = f"{key} belongs in {' or '.join(places)}" if places else ""
    if similar := nearest(key, known):
        return f"{similar} {elsewhere}".rstrip()
    if elsewhere:
        return elsewhere
    if key in others:
        return f"{key} is a section of its own: write [{key}]"
    said = _WORDS.get(key.lower()) or HINTS.get(key.lower())
    if here and said:
        return said[0].upper() + said[1:]
    return f"The keys here are {', '.join(known)}."


_SECTIONS = ("training", "data", "network", "loss", "model", "pde")
_WORDS = {
    **dict.fromkeys(
        ("steps", "iterations", "max_steps", "max_epochs", "num_epochs", "n_epochs"),
        "the length of a training is updates or epochs in [training]",
    ),
    **dict.fromkeys(("optimizer", "optimiser", "solver"), "use method in [training]"),
    **dict.fromkeys(("patience", "early_stopping"), "use early_stop in [training]"),
    **dict.fromkeys(("activation", "activations"), "use transfer in [network]"),
    **dict.fromkeys(("units", "width", "hidden_layers"), "use hidden in [network]"),
    **dict.fromkeys(("path", "file", "filename", "csv"), "use name in [data]"),
    **dict.fromkeys(("features", "columns", "x"), "use inputs in [data]"),
    **dict.fromkeys(("y", "label", "labels"), "use targets in [data]"),
    **dict.fromkeys(
        ("normalise", "normalize", "standardize", "scale"), "use standardise in [data]"
    ),
    **dict.fromkeys(("impute", "nan", "fillna"), 'use missing = "impute" in [data]'),
    **dict.fromkeys(("test", "test_size", "holdout"), "use validation in [data]"),
    **dict.fromkeys(
        ("device", "cuda", "gpu", "accelerator"),
        "a model file says nothing of machines: give --device cuda to the command",
    ),
}
"""What other tools call what a key here is for."""


def _keys(location: tuple[int | str, ...], sections: type[BaseModel]) -> list[str]:
    """The keys allowed in the table at ``location``."""
    table: Any = sections
    for part in location:
        if part in VARIANTS:
            table = VARIANTS[str(part)]
        elif isinstance(part, str) and part in getattr(table, "model_fields", {}):
            table = _record(table.model_fields[part].annotation)
        elif get_args(table):  # dict[str, Record]
            table = get_args(table)[-1]
    if dataclasses.is_dataclass(table):
        return [field.name for field in dataclasses.fields(table)]
    return list(table.model_fields) if isinstance(table, type(BaseModel)) else []


def _record(annotation: Any) -> Any:
    """``Record | None`` as the record, of a network the one that most files have."""
    members = [each for each in get_args(annotation) if isinstance(each, type)]
    optional = type(None) in get_args(annotation)
    return next((m for m in members if m is not type(None)), Layers) if optional else annotation
