"""The model graph as an SVG whose nodes are links."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree.ElementTree import Element

import networkx as nx

from ...graph.model_graph import ModelGraph
from ...graph.nodes import Node
from .elements import element
from .layout import Layout, layered
from .views import caption, kind

ACROSS, DOWN = 172.0, 64.0
"""Distances of neighbouring centres."""
WIDTH, HEIGHT = 156.0, 42.0
MARGIN = 12.0
LETTERS = 22
"""Characters that fit into a box; the whole text is in its tooltip."""


def draw(graph: ModelGraph, link: Callable[[Node], str], current: str = "") -> Element:
    """The graph from top to bottom, or node ``current`` with what it reads and what reads it."""
    dag = graph.dag
    if current:
        near = nx.DiGraph()
        near.add_node(current)
        near.add_edges_from([*dag.in_edges(current), *dag.out_edges(current)])
        dag = near
    layout = layered(dag)
    across = (layout.width * ACROSS) + WIDTH + 2 * MARGIN
    down = (layout.depth - 1) * DOWN + HEIGHT + 2 * MARGIN
    nodes = [node for node in graph if node.name in dag]
    edges = [
        _edge(layout.routes[source, node.name])
        for node in nodes
        for source in dict.fromkeys(node.inputs)
        if dag.has_edge(source, node.name)
    ]
    boxes = [_box(node, layout, link(node), node.name == current) for node in nodes]
    whole = "The network as a graph; every node is a link to its page"
    return element(
        "svg",
        element("defs", _arrow_head()),
        element("g", *edges, class_="edges"),
        *boxes,
        class_="graph",
        viewBox=f"0 0 {across:.0f} {down:.0f}",
        width=f"{across:.0f}",
        height=f"{down:.0f}",
        role="group",
        aria_label=f"{current} with its inputs and readers" if current else whole,
    )


def _at(place: tuple[float, int]) -> tuple[float, float]:
    x, y = place
    return MARGIN + WIDTH / 2 + x * ACROSS, MARGIN + HEIGHT / 2 + y * DOWN


def _edge(route: list[tuple[float, int]]) -> Element:
    """From box to box: upright through the layers on the way, bent between them."""
    points = [_at(place) for place in route]
    half = HEIGHT / 2
    x, y = points[0]
    path = f"M{x:.1f} {y + half:.1f}"
    y += half
    for i, (to_x, centre) in enumerate(points[1:], start=2):
        to_y = centre - half - (5 if i == len(points) else 0)  # room for the arrow's head
        middle = (y + to_y) / 2
        path += f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
        if i < len(points):
            y = centre + half
            path += f"V{y:.1f}"
    return element("path", d=path, marker_end="url(#head)")


def _arrow_head() -> Element:
    return element(
        "marker",
        element("path", d="M0 0L6 3L0 6z"),
        id="head",
        viewBox="0 0 6 6",
        refX="1",
        refY="3",
        markerWidth="6",
        markerHeight="6",
        orient="auto",
    )


def _box(node: Node, layout: Layout, href: str, current: bool) -> Element:
    x, y = _at(layout.places[node.name])
    radius = {"Pointwise": HEIGHT / 2, "Input": 0.0, "Output": 0.0}.get(type(node.op).__name__, 6.0)
    names = " ".join(["node", type(node.op).__name__.lower(), *(["current"] if current else [])])
    size = "×".join(map(str, node.shape))
    return element(
        "a",
        element("title", f"{node.name}: {kind(node)}, {caption(node)}, [N, {size}]"),
        element(
            "rect",
            x=f"{x - WIDTH / 2:.1f}",
            y=f"{y - HEIGHT / 2:.1f}",
            width=f"{WIDTH:g}",
            height=f"{HEIGHT:g}",
            rx=f"{radius:g}",
        ),
        element("text", _cut(node.name), x=f"{x:.1f}", y=f"{y - 4:.1f}", class_="name"),
        element("text", _cut(caption(node), f" · {size}"), x=f"{x:.1f}", y=f"{y + 12:.1f}"),
        href=href,
        class_=names,
        **({"aria_current": "page"} if current else {}),
    )


def _cut(text: str, end: str = "") -> str:
    room = LETTERS - len(end)
    return (text if len(text) <= room else f"{text[: room - 1]}…") + end
