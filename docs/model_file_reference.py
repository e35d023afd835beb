"""Write the tables of docs/model_file.md from the records that a model file is validated by.

python docs/model_file_reference.py     writes the page's tables, at once

Key, type with its bounds, default and meaning are read off the records' fields; nothing is written twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gncompile.base.settings import Settings
from gncompile.data.data_spec import DataSpec
from gncompile.frontends.model_schema import LossSection, Model, Transfer
from gncompile.frontends.network_schema import (
    Concat,
    Layers,
    Linear,
    Nodes,
    Pointwise,
    Select,
    Slice,
)
from gncompile.frontends.pde_schema import Pde, PdeTerm, PdeTraining
from gncompile.frontends.training_schema import EarlyStopping, Training

PAGE = Path(__file__).with_name("model_file.md")

RECORDS: dict[str, type] = {
    "[data]": DataSpec,
    "[model]": Model,
    "[network]": Layers,
    "[network] of nodes": Nodes,
    "linear": Linear,
    "pointwise": Pointwise,
    "concat": Concat,
    "slice": Slice,
    "select": Select,
    "[loss]": LossSection,
    "[training]": Training,
    "early_stop": EarlyStopping,
    "[transfer.NAME]": Transfer,
    "[pde]": Pde,
    "[pde.term.NAME]": PdeTerm,
    "[training] with [pde]": PdeTraining,
}
OPTIONS = "[training.options]"
HEAD = ["| key | value | default | meaning |", "|---|---|---|---|"]


def keys(record: type) -> Iterator[str]:
    """A row of the table for each key of a record."""
    schema = TypeAdapter(record).json_schema(by_alias=False)
    given = defaults(record)
    for name, each in schema["properties"].items():
        default = "**required**" if name in schema.get("required", ()) else shown(given[name])
        meaning = (each.get("description") or "").replace("|", "\\|")
        yield f"| `{name}` | {kind(each)} | {default} | {meaning} |"


def options() -> Iterator[str]:
    """A row for each setting of the optimiser that a model file may have."""
    for name, field in Settings.__pydantic_fields__.items():
        if name not in Training.model_fields:
            default = shown(field.get_default())
            yield f"| `{name}` | {in_toml(field.description or '')} | {default} |"


def in_toml(description: str) -> str:
    """What a setting may be, in a file's words: there is no None there, it is left out."""
    words = description.removeprefix("None or ").replace("True or False", "true or false")
    return re.sub(r"; or a mapping from (\w+ )?patterns? to \w+", ", or a table by patterns", words)


def defaults(record: Any) -> dict[str, Any]:
    """What keys mean that a file leaves out."""
    if dataclasses.is_dataclass(record):
        return {field.name: field.default for field in dataclasses.fields(record)}
    return {name: field.get_default() for name, field in record.model_fields.items()}


def kind(schema: dict[str, Any]) -> str:
    """What a JSON schema admits, in words."""
    if "anyOf" in schema:
        members = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(kind, members)))
    if "$ref" in schema or "discriminator" in schema or "oneOf" in schema:
        return "table"
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    match schema.get("type"):
        case "boolean":
            return "`true` or `false`"
        case "integer" | "number":
            return {"integer": "whole number", "number": "number"}[schema["type"]] + bounds(schema)
        case "string" if "pattern" in schema:
            return "name"
        case "string":
            return "text" + at_most(schema, "maxLength", "characters")
        case "array" if "prefixItems" in schema:
            return f"`[{', '.join('…' for _ in schema['prefixItems'])}]`, numbers"
        case "array":
            inner = kind(schema["items"])
            return f"list of {inner}" + at_most(schema, "maxItems", "of them")
        case "object":
            inner = schema.get("additionalProperties")
            return f"table of {kind(inner)}" if isinstance(inner, dict) and inner else "table"
    return "any value"


def bounds(schema: dict[str, Any]) -> str:
    """The bounds of a number."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer":
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        above = below = None
    finite = [each for each in (high, below) if each is not None and each != math.inf]
    words = []
    if low is not None:
        words.append(f"from {low:,}")
    if above is not None:
        words.append(f"above {above:,}")
    if finite:
        words += [f"{'up to' if high is not None else 'below'} {large(finite[0])}"]
    return f" {' '.join(words)}" if words else ""


def large(number: float) -> str:
    """A bound, short: powers as powers."""
    for base in (10, 2):
        for less in (0, 1):
            power = round(math.log(number + less, base)) if number > 10**5 else 0
            if power and number + less == base**power:
                return f"{base}^{power}" + ("" if not less else " - 1")
    return f"{number:,}"


def at_most(schema: dict[str, Any], bound: str, what: str) -> str:
    return f", at most {schema[bound]:,} {what}" if bound in schema else ""


def shown(default: Any) -> str:
    """A default as TOML; nothing where leaving the key out means something of its own."""
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        items = (f"{each:g}" if isinstance(each, float) else json.dumps(each) for each in default)
        return f"`[{', '.join(items)}]`"
    if isinstance(default, dict):
        return "`{}`"
    return f"`{json.dumps(default)}`"


def tables() -> dict[str, list[str]]:
    """The tables of the page by name."""
    found = {name: [*HEAD, *keys(record)] for name, record in RECORDS.items()}
    found[OPTIONS] = ["| option | value | default |", "|---|---|---|", *options()]
    return found


def replaced(page: str, table: str, lines: Iterable[str]) -> str:
    """``page`` with the table between its marks exchanged."""
    start, end = (
        f"<!-- {table}: python docs/model_file_reference.py -->",
        f"<!-- end of {table} -->",
    )
    if start not in page or end not in page:
        raise ValueError(f"{PAGE.name} has no place for {table}")
    body = "\n".join([start, "", *lines, "", end])
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: body, page, flags=re.S)


def written(page: str) -> str:
    """``page`` with all tables as they are now."""
    for name, lines in tables().items():
        page = replaced(page, name, lines)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
