"""Pictures of a run: loss, reconstructions, predicted against true values, a confusion matrix, a solution.

Each function returns the file it wrote; None where matplotlib is not installed, or there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.files import atomic_path
from ..base.untrusted import in_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    Array = np.ndarray[Any, np.dtype[Any]]

DRAWN = 1e300
"""The largest size of a loss in the picture; differences of larger ones are no numbers."""
MOST_CLASSES = 20
"""Of a confusion matrix that can be read."""
MOST_COLUMNS = 6
"""Target columns that are drawn."""
MOST_POINTS = 2000
"""Samples that are drawn of each."""
LABEL = 24
"""Characters of a name in a picture."""


def draw_loss(records: Iterable[Mapping[str, Any]], path: Path) -> Path | None:
    """The history's ``loss`` and ``validation_loss`` against updates."""
    records = list(records)
    curves = {
        label: [
            (r["update"], r[key])
            for r in records
            if r.get(key) is not None and abs(r[key]) <= DRAWN
        ]
        for key, label in (("loss", "batch"), ("validation_loss", "validation"))
    }
    figure = _figure(6.4, 4.0)
    if figure is None or not curves["batch"]:
        return None
    axes = figure.add_subplot()
    for (label, points), marker in zip(curves.items(), ("", "o"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    if all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="updates", ylabel="loss")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return _save(figure, path)


def draw_reconstructions(
    originals: Tensor, reconstructions: Tensor, shape: tuple[int, ...], path: Path
) -> Path | None:
    """Images ``[N, height · width]`` above their reconstructions."""
    count = len(originals)
    figure = _figure(max(4.0, 0.7 * count), 2.0)
    if figure is None:
        return None
    rows = (("original", originals), ("reconstruction", reconstructions))
    for row, (label, images) in enumerate(rows):
        # [N, height, width] -> [height, N · width], the images side by side
        strip = images.detach().cpu().reshape(count, *shape).permute(1, 0, 2)
        axes = figure.add_subplot(2, 1, row + 1)
        axes.imshow(strip.reshape(shape[0], -1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(label, fontsize=8)
    return _save(figure, path)


def draw_predicted(
    predicted: Mapping[str, Array], true: Mapping[str, Array], path: Path
) -> Path | None:
    """Predicted against true values of the first columns, in their own units; exact ones lie on the line."""
    names = list(predicted)[:MOST_COLUMNS]
    figure = _figure(3.6 * min(3, len(names)), 3.6 * -(-len(names) // 3))
    if figure is None or not names:
        return None
    for number, name in enumerate(names, start=1):
        x, y = (part[name][:MOST_POINTS] for part in (true, predicted))
        axes = figure.add_subplot(-(-len(names) // 3), min(3, len(names)), number)
        axes.plot(x, y, ".", markersize=3, alpha=0.6)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)
        axes.set(xlabel="true", ylabel="predicted", title=_label(name))
    return _save(figure, path)


def draw_solution(
    box: Mapping[str, tuple[float, float]], values: Mapping[str, Tensor], path: Path
) -> Path | None:
    """Functions on a regular grid of a box: curves over one coordinate, pictures over two."""
    values = dict(list(values.items())[:MOST_COLUMNS])
    figure = _figure(4.2 * min(3, max(1, len(values))), 3.4 * -(-len(values) // 3))
    if figure is None or not values:
        return None
    for number, (name, value) in enumerate(values.items(), start=1):
        axes = figure.add_subplot(-(-len(values) // 3), min(3, len(values)), number)
        (x, ends), *others = box.items()
        if others:
            ((y, high),) = others
            drawn = axes.imshow(
                value.T.numpy(), origin="lower", extent=(*ends, *high), aspect="auto"
            )
            figure.colorbar(drawn, ax=axes)
            axes.set(ylabel=_label(y))
        else:
            axes.plot(np.linspace(*ends, len(value)), value.numpy())
            axes.grid(visible=True, alpha=0.3)
        axes.set(xlabel=_label(x), title=_label(name))
    return _save(figure, path)


def draw_confusion(
    predicted: Array, true: Array, classes: Sequence[str], path: Path
) -> Path | None:
    """How many samples of each class (rows) were taken for each (columns); both are numbers of classes."""
    count = len(classes)
    figure = _figure(2.0 + 0.4 * count, 1.6 + 0.4 * count)
    if figure is None or count > MOST_CLASSES:
        return None
    table = np.zeros((count, count), dtype=int)
    np.add.at(table, (true, predicted), 1)
    axes = figure.add_subplot()
    axes.imshow(table, cmap="Blues")
    for (row, column), samples in np.ndenumerate(table):
        if samples:
            color = "white" if samples > table.max() / 2 else "black"
            axes.text(column, row, str(samples), ha="center", va="center", fontsize=7, color=color)
    labels = [_label(name) for name in classes]
    axes.set_xticks(range(count), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_yticks(range(count), labels)
    axes.set(xlabel="predicted", ylabel="true")
    return _save(figure, path)


def _label(name: str) -> str:
    return in_picture(name if len(name) <= LABEL else f"{name[: LABEL - 1]}…")


def _figure(width: float, height: float) -> Figure | None:
    """An empty figure that needs no display, or None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path
