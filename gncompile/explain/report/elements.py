"""HTML, SVG and MathML as element trees: text is escaped and tags are balanced by construction.

Characters that a browser would obey instead of showing, and those that no document may have, are written as
escapes, too: see :func:`~gncompile.errors.visible`.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ...errors import visible

Content = Element | str | None


def element(tag: str, *content: Content, **attributes: str) -> Element:
    """``<tag attributes>content</tag>``; nothing for content that is None.

    Attribute names are written as Python can: ``class_``, ``aria_label``.
    """
    names = {
        name.rstrip("_").replace("_", "-"): visible(value) for name, value in attributes.items()
    }
    made = Element(tag, names)
    for part in content:
        _append(made, part)
    return made


def _append(parent: Element, part: Content) -> None:
    if isinstance(part, Element):
        parent.append(part)
    elif part and len(parent):
        parent[-1].tail = (parent[-1].tail or "") + visible(part)
    elif part:
        parent.text = (parent.text or "") + visible(part)


def parsed_svg(source: str) -> Element:
    """An SVG document as an element to put into HTML: without the prefixes of its namespaces."""
    root = ElementTree.fromstring(source)
    for node in root.iter():
        node.tag = _local(node.tag)
        node.attrib = {_local(name): value for name, value in node.attrib.items()}
    for parent in root.iter():
        for child in [c for c in parent if c.tag == "metadata"]:
            parent.remove(child)
    return root


def _local(name: str) -> str:
    return name.rpartition("}")[2]


BLOCKS = {
    *("head", "body", "main", "nav", "header", "div", "svg", "g"),
    *("table", "thead", "tbody", "tr", "dl"),
}
"""Elements whose children start on lines of their own; whitespace between them means nothing."""


def page(root: Element) -> str:
    """The text of an HTML page."""
    for node in _blocks(root):
        node.text = "\n"
        for child in node:
            child.tail = "\n"
    return (
        "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
    )


def _blocks(root: Element) -> Iterator[Element]:
    """Elements that hold other elements only."""
    for node in root.iter():
        bare = not node.text and not any(child.tail for child in node)
        if node.tag in BLOCKS and len(node) and bare:
            yield node
