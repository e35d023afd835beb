"""Where the nodes of a small DAG are drawn: layers by longest path, few crossings, straight long edges.

The method of Sugiyama, Tagawa and Toda (1981): an edge over several layers gets a *bend* in each one it
passes, the order within the layers follows the neighbours' mean place, and so do the coordinates.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

SWEEPS = 12
"""Passes over the layers, down and up in turn; small graphs settle within a few."""

Key = Hashable


@dataclass(frozen=True)
class Layout:
    """Centres in units of the distance of neighbours: ``x`` across, ``y`` the layer, from 0.

    ``routes`` gives for each edge the points from its source to its target, bends included.
    """

    places: dict[str, tuple[float, int]]
    routes: dict[tuple[str, str], list[tuple[float, int]]]

    @property
    def width(self) -> float:
        """The largest ``x`` of a node or bend."""
        return max(
            x for route in [[*self.places.values()], *self.routes.values()] for x, _ in route
        )

    @property
    def depth(self) -> int:
        """The number of layers."""
        return 1 + max(y for _, y in self.places.values())


def layered(dag: nx.DiGraph, bend_width: float = 0.4) -> Layout:
    """The layout of a DAG whose nodes are names; a bend takes ``bend_width`` of a node's room."""
    depth = _depths(dag)
    proper = _with_bends(dag, depth)
    layers = _ordered(proper, max(depth.values()) + 1)
    xs = _coordinates(proper, layers, bend_width)
    places = {name: (xs[name], depth[name]) for name in dag}
    routes = {}
    for u, v in dag.edges:
        bends = [((u, v, y), y) for y in range(depth[u] + 1, depth[v])]
        routes[u, v] = [places[u], *((xs[key], y) for key, y in bends), places[v]]
    return Layout(places, routes)


def _depths(dag: nx.DiGraph) -> dict[str, int]:
    """Longest path from the inputs; an input comes right above the first node that reads it."""
    depth = {n: y for y, names in enumerate(nx.topological_generations(dag)) for n in names}
    for name in dag:
        readers = [depth[reader] for reader in dag.successors(name)]
        if readers and not dag.in_degree(name):
            depth[name] = min(readers) - 1
    return depth


def _with_bends(dag: nx.DiGraph, depth: dict[str, int]) -> nx.DiGraph:
    proper = nx.DiGraph()
    proper.add_nodes_from((name, {"y": depth[name]}) for name in dag)
    for u, v in dag.edges:
        above: Key = u
        for y in range(depth[u] + 1, depth[v]):
            proper.add_node((u, v, y), y=y)
            proper.add_edge(above, (u, v, y))
            above = u, v, y
        proper.add_edge(above, v)
    return proper


def _ordered(proper: nx.DiGraph, count: int) -> list[list[Key]]:
    """The layers, each ordered by the mean place of its neighbours; the best of all sweeps."""
    layers: list[list[Key]] = [[] for _ in range(count)]
    for key, y in proper.nodes(data="y"):
        layers[y].append(key)
    best, fewest = [list(layer) for layer in layers], _crossings(proper, layers)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        pairs = list(pairwise(layers))
        for upper, lower in pairs if down else reversed(pairs):
            fixed, moved = (upper, lower) if down else (lower, upper)
            place = {key: float(i) for i, key in enumerate(fixed)}
            own = {key: float(i) for i, key in enumerate(moved)}
            wanted = {key: _mean(proper, key, down, place, own[key]) for key in moved}
            moved.sort(key=wanted.__getitem__)
        if (crossings := _crossings(proper, layers)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _mean(
    proper: nx.DiGraph, key: Key, above: bool, place: dict[Key, float], otherwise: float
) -> float:
    neighbours = proper.predecessors(key) if above else proper.successors(key)
    places = [place[n] for n in neighbours]
    return sum(places) / len(places) if places else otherwise


def _crossings(proper: nx.DiGraph, layers: Sequence[Sequence[Key]]) -> int:
    place = {key: i for layer in layers for i, key in enumerate(layer)}
    total = 0
    for layer in layers:
        edges = [(place[u], place[v]) for u in layer for v in proper.successors(u)]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(edges) for c, d in edges[i:])
    return total


def _coordinates(
    proper: nx.DiGraph, layers: list[list[Key]], bend_width: float
) -> dict[Key, float]:
    """Every key near the mean of those above it, of those below it in turn; room for each, the order kept."""
    xs = {key: float(i) for layer in layers for i, key in enumerate(layer)}
    for sweep in range(2 * SWEEPS):
        above = sweep % 2 == 1
        for layer in layers if above else reversed(layers):
            wanted = {key: _mean(proper, key, above, xs, xs[key]) for key in layer}
            _spread(layer, wanted, xs, bend_width)
    least = min(xs.values())
    return {key: round(x - least, 3) for key, x in xs.items()}


def _spread(layer: list[Key], wanted: dict[Key, float], xs: dict[Key, float], bend: float) -> None:
    """Place a layer from the left and from the right with least distances, and take the middle."""

    def room(a: Key, b: Key) -> float:
        return sum(0.5 if isinstance(key, str) else bend / 2 for key in (a, b))

    left, right = dict(wanted), dict(wanted)
    for a, b in pairwise(layer):
        left[b] = max(left[b], left[a] + room(a, b))
    for a, b in pairwise(reversed(layer)):
        right[b] = min(right[b], right[a] - room(a, b))
    xs.update({key: (left[key] + right[key]) / 2 for key in layer})
