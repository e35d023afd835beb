"""Pictures of pointwise functions, drawn with matplotlib where it is installed.

The functions are evaluated as the reference backend evaluates them, in float64.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

import sympy

from ...base.untrusted import in_picture
from ...derivation.piecewise_linear import rule_of
from ...functions.transfer import transfer, transfer_names
from ...graph.model_graph import TracedModel
from ...graph.nodes import Node, Pointwise
from .elements import parsed_svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from torch import Tensor

REACH = 5.0
"""Plots go from -5 to 5 where the function is defined there."""
POINTS = 401
GRID = 61
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be read aloud
    "svg.hashsalt": "gncompile",  # the same names of clip paths every time
    "text.parse_math": False,  # a $ in a name is a dollar
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
INSTALL = "To see a plot here install matplotlib: pip install 'gncompile[plots]'."


def plot(node: Node, traced: TracedModel) -> Element | None:
    """φ and φ' of one argument, contours for two, slices for more; None without matplotlib.

    Constants of the node have the values of its first feature.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    assert isinstance(node.op, Pointwise)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        {1: _curve, 2: _contours}.get(len(node.inputs), _slices)(
            axes, node, _constants(node, traced)
        )
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The text is drawn by the reader's fonts, so a letter that matplotlib's lack does not matter.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = parsed_svg(buffer.getvalue())
    svg.set("class", "plot")
    svg.set("role", "img")
    svg.set("aria-label", f"plot of {node.op.expression}")
    for part in svg.iter():
        style = part.get("style")
        if style:  # black ink takes the colour of the page's text
            part.set("style", style.replace("#000000", "currentColor"))
    return svg


def _constants(node: Node, traced: TracedModel) -> dict[sympy.Symbol, float]:
    assert isinstance(node.op, Pointwise)
    return {s: float(traced.constants[name].reshape(-1)[0]) for s, name in node.op.constants}


def domain(node: Node) -> tuple[float, float]:
    """Where a function of one argument is drawn: the registered domain, within the reach of a plot."""
    assert isinstance(node.op, Pointwise)
    low, high = -REACH, REACH
    for name in transfer_names():
        function = transfer(name)
        if function(node.op.arguments[0]) == node.op.expression:
            inner = 1e-3 * REACH  # the ends of a bounded domain may be poles
            if math.isfinite(function.domain[0]):
                low = max(low, function.domain[0] + inner)
            if math.isfinite(function.domain[1]):
                high = min(high, function.domain[1] - inner)
    return low, high


def _curve(axes: Axes, node: Node, constants: Mapping[sympy.Symbol, float]) -> None:
    x = _line(*domain(node))
    rule = rule_of(node)
    at = {rule.arguments[0]: x, **_filled(constants, x)}
    for expression, label, dash in ((rule.value, "f", "-"), (rule.slopes[0], "f ′", "--")):
        axes.plot(x.numpy(), _values(expression, at), dash, label=label, linewidth=1.8)
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.set_xlabel(in_picture(node.inputs[0]))
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)


def _contours(axes: Axes, node: Node, constants: Mapping[sympy.Symbol, float]) -> None:
    import torch

    rule = rule_of(node)
    line = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    second, first = torch.meshgrid(line, line, indexing="ij")
    at = {rule.arguments[0]: first, rule.arguments[1]: second, **_filled(constants, first)}
    values = _values(rule.value, at)
    filled = axes.contourf(line.numpy(), line.numpy(), values, levels=14, cmap="viridis")
    assert axes.figure is not None
    axes.figure.colorbar(filled, ax=axes, label="f")
    axes.set(xlabel=in_picture(node.inputs[0]), ylabel=in_picture(node.inputs[1]))


def _slices(axes: Axes, node: Node, constants: Mapping[sympy.Symbol, float]) -> None:
    """One argument at a time, the others held at one."""
    x = _line(-REACH, REACH)
    rule = rule_of(node)
    rest = dict.fromkeys(rule.arguments, x * 0 + 1) | _filled(constants, x)
    for argument, name in zip(rule.arguments, node.inputs, strict=True):
        axes.plot(x.numpy(), _values(rule.value, {**rest, argument: x}), label=in_picture(name))
    axes.set(xlabel="one argument, the others held at 1", ylabel="f")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _line(low: float, high: float) -> Tensor:
    import torch

    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def _filled(constants: Mapping[sympy.Symbol, float], like: Tensor) -> dict[sympy.Symbol, Tensor]:
    return {symbol: like * 0 + value for symbol, value in constants.items()}


def _values(expression: sympy.Expr, at: Mapping[sympy.Symbol, Tensor]) -> np.ndarray:
    """The expression on a grid; poles and points outside the domain leave gaps."""
    from ...functions.expressions import evaluate

    shape = next(iter(at.values())).shape
    values = evaluate(expression, at).expand(shape)
    return values.where(values.isfinite(), float("nan")).numpy()
