"""What a report consists of, before it is written as HTML or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...emit.layout import Statement
from ...graph.nodes import Node
from ..notation import Math


@dataclass(frozen=True)
class Link:
    """A reference to a node's page, or to the loss's page where there is no node."""

    text: str
    node: Node | None = None


Cell = str | Link | Sequence[str | Link]


@dataclass(frozen=True)
class Line:
    """``left relation right`` with what it is; ``spec`` is the shape and structure of what is stored."""

    label: str
    left: Math
    right: Math | None
    relation: str = "="
    spec: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Preformatted:
    """Text whose line breaks mean something."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Terms and what is to be said of each."""

    pairs: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Formulas:
    """Lines of formulas."""

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Rows under the headings of the first one; ``right`` numbers the columns set flush right."""

    rows: tuple[Sequence[Cell], ...]
    right: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """Lines of the emitted source."""

    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Plot:
    """The plot of a pointwise node."""

    node: Node


@dataclass(frozen=True)
class Picture:
    """The model graph, or the neighbourhood of a node."""

    node: Node | None = None


Block = Paragraph | Preformatted | Facts | Formulas | Table | Listing | Plot | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2


@dataclass(frozen=True)
class Page:
    """A page of HTML, a section of LaTeX: the overview, the loss, or a node."""

    file: str
    title: str
    kind: str
    sections: tuple[Section, ...]
    node: Node | None = None
