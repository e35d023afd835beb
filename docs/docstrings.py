"""Docstrings as the site shows them: roles become links, doctests fenced blocks."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`(?P<short>~?)(?P<path>[^`]+)`")
DOCTEST = re.compile(r"(?:^ *>>> .*\n(?:^ *\S.*\n)*)+", re.M)


class Plain(griffe.Extension):
    """Written for ``help()`` in the notation of Sphinx; the site reads Markdown."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(_fenced, f"{text}\n")


def _link(role: re.Match[str]) -> str:
    """The name, as a link where the reference has it."""
    path = role["path"]
    shown = path.rpartition(".")[2] if role["short"] else path
    whole = path if path.startswith("gncompile.") else f"gncompile.{path}"
    return f'<autoref identifier="{whole}" optional><code>{shown}</code></autoref>'


def _fenced(example: re.Match[str]) -> str:
    return f"```pycon\n{example[0]}```\n"
