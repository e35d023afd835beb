"""Draw the pictures of the README; none is made by hand.

python docs/pictures.py              the graph of a compiled network, docs/images/graph.svg
python docs/pictures.py RUN          also copy the pictures of a training run, and show them in the README
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import networkx as nx
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from gncompile.frontends.torch_export import trace
from gncompile.graph.model_graph import ModelGraph, Node, Pointwise, describe
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
CENTRED = {"ha": "center", "va": "center"}
MARK = "<!-- pictures of a training run: python docs/pictures.py RUN -->"


class Gated(nn.Module):
    """A gate and a residual sum: what a chain-only KFRA cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(16, 12), nn.Linear(16, 12)
        self.inner, self.top = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))
        return self.top(u + torch.relu(self.inner(u)))


def draw_graph(path: Path) -> None:
    """The model graph with the factors that KFRA derives for every layer."""
    graph = prepare(trace(Gated(), torch.zeros(2, 16)).graph)
    program = factor_program(graph, resolve_loss("cross_entropy"), "kfra")
    places = _places(graph)
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    boxes = {}
    for node in graph:
        layer = next((name for name, x in graph.layers.items() if node in x.uses), None)
        specs = [program[program.results[f"{kind}.{layer}"]].spec for kind in "QG"] if layer else []
        factors = [spec.size for spec in specs]
        at = places[node.name]
        boxes[node.name] = axes.text(
            *at, _label(node, factors), fontsize=8, bbox=_box(node), **CENTRED
        )
    for node in graph:
        for source in node.inputs:
            skips = places[node.name][0] - places[source][0] > 1
            arrow = {
                "arrowstyle": "-|>",
                "color": "0.5",
                "patchA": boxes[source].get_bbox_patch(),
                "patchB": boxes[node.name].get_bbox_patch(),
                "connectionstyle": f"arc3,rad={-0.35 if skips else 0}",
            }
            axes.annotate("", places[node.name], places[source], arrowprops=arrow)
    xs, ys = zip(*places.values(), strict=True)
    axes.set(xlim=(min(xs) - 0.5, max(xs) + 0.5), ylim=(min(ys) - 0.6, max(ys) + 0.6))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None})


def _places(graph: ModelGraph) -> dict[str, tuple[float, float]]:
    """Columns by the longest path from the inputs, centred vertically."""
    columns = list(nx.topological_generations(graph.dag))
    return {
        name: (float(x), (len(column) - 1) / 2 - y)
        for x, column in enumerate(columns)
        for y, name in enumerate(sorted(column, reverse=True))
    }


def _label(node: Node, factors: list[int]) -> str:
    text = describe(node).replace("sigmoid", "σ").replace("select(inner, inner, 0)", "relu(inner)")
    size = f"[N, {node.size}]"
    return f"{text}\n{size}" + (f"\nQ {factors[0]}²  Ḡ {factors[1]}²" if factors else "")


def _box(node: Node) -> dict[str, object]:
    pointwise = isinstance(node.op, Pointwise)
    return {
        "boxstyle": "round,pad=0.5" if pointwise else "square,pad=0.4",
        "facecolor": "#fff3d6" if pointwise else "#e3edf7",
        "edgecolor": "0.4",
    }


def show_training(run: Path) -> None:
    """Copy a run's pictures and put them where the README has its mark."""
    lines = [MARK]
    for name, caption in (("loss", "loss against updates"), ("reconstructions", "reconstructions")):
        shutil.copyfile(run / f"{name}.png", IMAGES / f"{name}.png")
        lines.append(f"![{caption}](docs/images/{name}.png)")
    readme = DOCS.parent / "README.md"
    shown = re.compile(re.escape(MARK) + r"(\n!\[.*)*")
    readme.write_text(shown.sub("\n".join(lines), readme.read_text()))


if __name__ == "__main__":
    draw_graph(IMAGES / "graph.svg")
    if len(sys.argv) > 1:
        show_training(Path(sys.argv[1]))
