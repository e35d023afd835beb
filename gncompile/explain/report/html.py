"""The report as a folder of HTML pages that opens from disk: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element

from ...emit.layout import Statement
from .blocks import (
    Block,
    Cell,
    Facts,
    Formulas,
    Line,
    Link,
    Listing,
    Page,
    Paragraph,
    Picture,
    Plot,
    Preformatted,
    Section,
    Table,
)
from .content import INDEX, LOSS, pages
from .elements import element, page
from .mathml import math, operator
from .plots import INSTALL, plot
from .svg import draw
from .views import Views

STYLE_FILE = "style.css"


def html(views: Views) -> dict[str, str]:
    """The files of the report by name: pages and style sheet. The same program gives the same bytes."""
    contents = pages(views)
    style = (files("gncompile.explain.report") / STYLE_FILE).read_text(encoding="utf-8")
    writer = _Writer(views)
    written = {STYLE_FILE: style}
    for i, content in enumerate(contents):
        before, after = contents[i - 1] if i else None, (*contents, None)[i + 1]
        written[content.file] = page(writer.page(content, before, after))
    return written


class _Writer:
    """Writes pages of one report."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def page(self, content: Page, before: Page | None, after: Page | None) -> Element:
        name = self.views.title
        title = content.title if content.file == INDEX else f"{content.title} · {name}"
        heading = element("h1", element("span", content.kind, class_="kind"), content.title)
        return element(
            "html",
            element(
                "head",
                element("meta", charset="utf-8"),
                element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                element("title", title),
                element("link", rel="stylesheet", href=STYLE_FILE),
            ),
            element(
                "body",
                self._header(content, before, after),
                element(
                    "main", heading, *(part for s in content.sections for part in self._section(s))
                ),
            ),
            lang="en",
        )

    def _header(self, content: Page, before: Page | None, after: Page | None) -> Element:
        steps = [
            element("a", text, href=other.file, rel=rel)
            for other, text, rel in (
                (before, f"← {before.title}" if before else "", "prev"),
                (after, f"{after.title} →" if after else "", "next"),
            )
            if other
        ]
        home = "Overview" if content.file == INDEX else self.views.title
        return element(
            "header",
            element("a", home, href=INDEX),
            element("nav", *steps, class_="steps", aria_label="Pages in order"),
        )

    def _section(self, section: Section) -> list[Element]:
        blocks = [self._block(block) for block in section.blocks]
        if any(isinstance(b, Picture) and b.node is None for b in section.blocks):
            blocks = [element("div", *blocks, class_="network")]
        return [*([element(f"h{section.level}", section.title)] if section.title else []), *blocks]

    def _block(self, block: Block) -> Element:
        match block:
            case Paragraph(text):
                return element("p", text)
            case Preformatted(text):
                return element("pre", text)
            case Facts(pairs):
                cells = [
                    part
                    for term, said in pairs
                    for part in (element("dt", term), element("dd", *self._cell(said)))
                ]
                return element("dl", *cells)
            case Formulas(lines):
                rows = [self._formula(line) for line in lines]
                return _scrolling(element("table", *rows, class_="formulas"), "formulas")
            case Table(rows, right):
                return _scrolling(self._table(rows, right), "table")
            case Listing(statements):
                return element("div", _source(statements), class_="scroll listing")
            case Plot(node):
                drawn = plot(node, self.views.read.traced)
                return element("p", INSTALL) if drawn is None else drawn
            case Picture(node):
                graph = self.views.read.graph
                svg = draw(graph, self.views.file, node.name if node else "")
                return element("div", svg, class_="picture")

    def _table(self, rows: Sequence[Sequence[Cell]], right: tuple[int, ...]) -> Element:
        made = []
        for i, row in enumerate(rows):
            cells = [
                element(
                    "td" if i else "th",
                    *self._cell(cell),
                    **({"class_": "right"} if k in right else {}),
                    **({} if i else {"scope": "col"}),
                )
                for k, cell in enumerate(row)
            ]
            made.append(element("tr", *cells))
        return element("table", element("thead", made[0]), element("tbody", *made[1:]))

    def _cell(self, cell: Cell) -> list[Element | str]:
        parts = [cell] if isinstance(cell, str | Link) else cell
        return [part if isinstance(part, str) else self._link(part) for part in parts]

    def _link(self, link: Link) -> Element:
        return element("a", link.text, href=self.views.file(link.node) if link.node else LOSS)

    def _formula(self, line: Line) -> Element:
        relation = right = None
        if line.right is not None:
            relation = element("math", operator(line.relation, form="infix"))
            right = math(line.right)
        return element(
            "tr",
            element("td", math(line.left), class_="left"),
            element("td", relation),
            element("td", right),
            element("td", element("code", line.spec) if line.spec else None, class_="spec"),
            element("td", line.label, class_="label"),
        )


def _scrolling(table: Element, label: str) -> Element:
    # In reach of the keyboard, because a table may be wider than the page.
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _source(statements: Sequence[Statement]) -> Element:
    rows = []
    phase = ""
    for statement in statements:
        if statement.phase != phase:
            phase = statement.phase
            rows.append(
                element("tr", element("td"), element("td", f"def {phase}:"), class_="phase")
            )
        number = element("td", str(statement.number), class_="number")
        rows.append(element("tr", number, element("td", f"    {statement.text}")))
    return element("table", *rows, class_="source")
