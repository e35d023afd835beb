"""The report as one LaTeX article."""

from __future__ import annotations

from collections.abc import Sequence

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
from .content import pages
from .latex_math import SYMBOLS, escaped, latex_math
from .views import Views

PREAMBLE = r"""\documentclass[10pt,a4paper]{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage[margin=22mm]{geometry}
\usepackage{amsmath,amssymb}
\usepackage{longtable,array}
\usepackage[hidelinks]{hyperref}
\setlength{\parindent}{0pt}
\setlength{\parskip}{3pt plus 1pt}
\newcommand{\formula}[3]{{\raggedright\hangindent=2em $\displaystyle #1$\quad{\small\textit{#2}\quad #3}\par}}
"""


def latex(views: Views) -> str:
    """The text of the article: the overview, the nodes in order, the loss. Plots are in the HTML only."""
    body = "\n\n".join(_page(page, views) for page in pages(views))
    title = escaped(f"Derivation of {views.title}")
    return (
        f"{PREAMBLE}\\title{{{title}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle\n\\tableofcontents\n\n"
        f"{body}\n\\end{{document}}\n"
    )


def _page(page: Page, views: Views) -> str:
    label = f"\\label{{{_label(page.file)}}}"
    title = page.kind if page.node is None else f"{page.kind} {page.title}"
    return "\n".join(
        [
            f"\\section{{{escaped(title)}}}{label}",
            *(_section(section, views) for section in page.sections),
        ]
    )


def _label(file: str) -> str:
    """The number and nothing of the name, which may have any characters."""
    number = file.partition("-")[0]
    return f"node:{number}" if number.isdigit() else f"page:{file.removesuffix('.html')}"


def _section(section: Section, views: Views) -> str:
    blocks = [text for block in section.blocks if (text := _block(block, views))]
    if section.blocks and not blocks:
        return ""  # pictures only
    command = "subsection*" if section.level == 2 else "paragraph"
    title = [f"\\{command}{{{escaped(section.title)}}}"] if section.title else []
    return "\n".join([*title, *blocks])


def _block(block: Block, views: Views) -> str:
    match block:
        case Paragraph(text):
            return escaped(text) + "\n"
        case Preformatted(text):
            return f"{{\\raggedright\\obeylines {escaped(text)}\n}}\n"
        case Facts(pairs):
            items = [f"\\item[{escaped(term)}] {_cell(said, views)}" for term, said in pairs]
            return "\n".join(["\\begin{description}\\raggedright", *items, "\\end{description}"])
        case Formulas(lines):
            return "\n".join(map(_formula, lines))
        case Table(rows, right):
            return _table(rows, right, views)
        case Listing(statements):
            code = [f"{s.number:>5} {escaped(s.text)}\\\\" for s in statements]
            return "\n".join(["{\\footnotesize\\ttfamily\\raggedright", *code, "\\par}"])
        case Plot() | Picture():
            return ""


def _formula(line: Line) -> str:
    formula = latex_math(line.left)
    if line.right is not None:
        relation = SYMBOLS.get(line.relation, line.relation)
        formula += f" {relation} {latex_math(line.right)}"
    return f"\\formula{{{formula}}}{{{escaped(line.label)}}}{{{escaped(line.spec)}}}"


def _table(rows: Sequence[Sequence[Cell]], right: tuple[int, ...], views: Views) -> str:
    width = 0.85 / len(rows[0])
    ragged = ["raggedleft" if k in right else "raggedright" for k in range(len(rows[0]))]
    columns = "".join(rf">{{\{side}\arraybackslash}}p{{{width:.3f}\linewidth}}" for side in ragged)
    lines = [" & ".join(_cell(cell, views) for cell in row) + r" \\" for row in rows]
    # A row never begins with what the line break before it would take: a star, or a bracket.
    head, *rest = (f"{{}}{line}" for line in lines)
    setting = "{\\footnotesize\\setlength{\\tabcolsep}{4pt}"
    begin = f"\\begin{{longtable}}{{{columns}}}"
    return "\n".join([setting, begin, head, "\\hline\\endhead", *rest, "\\end{longtable}}"])


def _cell(cell: Cell, views: Views) -> str:
    parts = [cell] if isinstance(cell, str | Link) else cell
    return "".join(escaped(part) if isinstance(part, str) else _link(part, views) for part in parts)


def _link(link: Link, views: Views) -> str:
    target = _label(views.file(link.node)) if link.node else "page:loss"
    return f"\\hyperref[{target}]{{{escaped(link.text)}}}"
