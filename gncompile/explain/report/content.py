"""What the report says: an overview, a page for each node, and one for the loss."""

from __future__ import annotations

from collections.abc import Iterator

from ...base.tables import count
from ...derivation.piecewise_linear import rule_of, theorem
from ...graph.layers import LayerOp
from ...graph.model_graph import ModelGraph
from ...graph.nodes import Input, Node, Output, Pointwise, Select
from ...losses.loss_types import SoftmaxCrossEntropy
from ..formulas import Equation
from ..methods import METHODS
from ..readback import Row, in_units
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
from .loss import loss_rules
from .rules import argument_names, rules
from .views import Views, caption, kind

INDEX, LOSS = "index.html", "loss.html"

CONVENTIONS = (
    "N samples are rows; E[·] is the mean over them. Factors are computed on the first F of them, the "
    "quadratic model's curvature on the first Q. W of a layer is [out, in], b is [out], and [x, 1] "
    "appends a one. The Gauss-Newton block of [W, b], flattened row by row, is approximated by G ⊗ Q. "
    "⊙ is elementwise, ← overwrites a state. The subscript of a symbol is its node or layer: a with "
    "subscript fc1 is called a_fc1 in the emitted source."
)


def pages(views: Views) -> list[Page]:
    """Overview, nodes in topological order, loss."""
    return [overview(views), *(node_page(views, node) for node in views.nodes), loss_page(views)]


# --- overview -----------------------------------------------------------------------------------------


def overview(views: Views) -> Page:
    """The network as a picture and a table, totals, memory, the theorem on piecewise-linear networks."""
    read = views.read
    sections = [
        Section("", (Facts(tuple(_head(views))),)),
        Section("Network", (Picture(), Table(tuple(_node_rows(views)), right=(3,)))),
        Section("Layers", (Table(tuple(_by_layer(views, read.layer_rows())), right=(2, 3, 6)),)),
        Section(
            "Factors and costs", (Table(tuple(_by_layer(views, read.cost_rows())), right=(4, 5)),)
        ),
        *_kept_section(views),
        Section("Phases of a step", (Table(tuple(read.phase_rows()), right=(2, 3)),)),
        Section("Memory", (Table(tuple(read.memory_rows()), right=(1,)),)),
        Section("Piecewise-linear networks", (Preformatted(theorem(read.graph, read.loss)),)),
        Section("Notation", (Paragraph(CONVENTIONS),)),
    ]
    return Page(INDEX, views.title, "Derivation", tuple(sections))


def _head(views: Views) -> Iterator[tuple[str, Cell]]:
    read = views.read
    layers = count(len(read.graph.trained), "trainable layer")
    yield "network", f"{layers}, {read.parameter_count:,} trained parameters"
    yield "loss", [Link(read.loss.name), f": {read.loss.scale}"]
    yield from read.method_lines()
    yield "costs", f"of a mean step on {read.batch} samples, {8 * read.itemsize}-bit numbers"


def _node_rows(views: Views) -> Iterator[list[Cell]]:
    yield ["node", "operation", "reads", "features", "module"]
    graph = views.read.graph
    for node in views.nodes:
        where = node.origin.module
        yield [
            Link(node.name, node),
            caption(node),
            _links(graph, node.inputs),
            str(node.size),
            where,
        ]
    yield [Link("loss"), views.read.loss.name, _links(graph, [graph.output.name]), "1", ""]


def _by_layer(views: Views, rows: list[Row]) -> Iterator[list[Cell]]:
    layers = views.read.graph.trained
    for row in rows:
        first = Link(row[0], layers[row[0]].node) if row[0] in layers else row[0]
        yield [first, *row[1:]]


def _kept_section(views: Views) -> list[Section]:
    rows = views.read.kept_rows()
    if not rows:
        return []
    read = views.read
    values = [read.kept_values(node) for node in read.active_pointwise()]
    names = {name for each in values for name in each}
    said = (
        f"Slopes are computed from {len(names)} kept tensors, together {read.bytes_of(names):,} bytes for "
        f"{read.batch} samples."
    )
    return [Section("Kept for the backward pass", (Table(tuple(rows)), Paragraph(said)))]


# --- a node -------------------------------------------------------------------------------------------


def node_page(views: Views, node: Node) -> Page:
    """Facts, rules, plot, formulas of the program, cost and source lines of one node."""
    read = views.read
    name = node.name
    layer = node.op.layer if isinstance(node.op, LayerOp) and node.op.trainable else None
    methods = read.methods if layer is None else [read.method(layer)]
    derived = tuple(rules(node, methods))
    sections = [Section("", (Picture(node), Facts(tuple(_facts(views, node)))))]
    if derived:
        method = "; ".join(f"{name}: {METHODS[name]}" for name in methods)
        blocks: list[Block] = [Formulas(derived), *_argument_legend(node)]
        sections.append(Section("Rules", (*blocks, Paragraph(f"Curvature by {method}."))))
    if isinstance(node.op, Pointwise):
        sections.append(Section("Plot", (Plot(node),)))
    sections += _program_sections(views, name)
    return Page(views.file(node), name, kind(node), tuple(sections), node)


def _argument_legend(node: Node) -> list[Block]:
    if not isinstance(node.op, Pointwise):
        return []
    pairs = zip(argument_names(rule_of(node)), node.inputs, strict=True)
    meant = [f"{x.text.replace('_', '')} is {name}" for x, name in pairs]
    constants = [f"{symbol} is the constant {name}" for symbol, name in node.op.constants]
    return [Paragraph("Here " + ", ".join([*meant, *constants]) + ".")]


def _facts(views: Views, node: Node) -> Iterator[tuple[str, Cell]]:
    read = views.read
    yield "operation", f"{kind(node)}: {caption(node)}"
    if node.inputs:
        yield "reads", _links(read.graph, node.inputs)
    readers = read.graph.consumers(node.name)
    last: list[str | Link] = [Link("the loss")] if isinstance(node.op, Output) else []
    yield "read by", [*_links(read.graph, [n.name for n in readers]), *last]
    shape = ", ".join(map(str, ("N", *node.shape)))
    flat = f", as flat features [N, {node.size}]" if len(node.shape) != 1 else ""
    yield "shape", f"[{shape}]{flat}"
    if isinstance(node.op, LayerOp):
        yield from _layer_facts(views, node)
    if isinstance(node.op, Select):
        yield "index", _index_text(node.op)
    yield "stored", views.stored(node)
    if isinstance(node.op, Pointwise):
        active = node in read.active_pointwise()
        idle = "nothing: no trained parameter acts on it"
        yield "kept for slopes", read.kept(node) if active else idle
        yield "structure", _shape_of(node)
    if not isinstance(node.op, Input):
        yield "module", node.origin.module or "-"
        yield (
            "source line",
            ", ".join(filter(None, (node.origin.location, node.origin.code))) or "-",
        )


def _layer_facts(views: Views, node: Node) -> Iterator[tuple[str, Cell]]:
    read = views.read
    assert isinstance(node.op, LayerOp)
    if node.op.computed is not None:
        yield "weight", f"computed of {', '.join(node.op.computed.parameters)}, of first order"
        return
    if node.op.layer not in read.graph.trained:
        yield "training", "frozen: curvature passes through, there are no factors"
        return
    name, layer = node.op.layer, read.graph.trained[node.op.layer]
    flops, traffic = in_units(read.mean_cost(name))
    yield "computes", f"{read.layer_text(layer)}, {read.parameters(layer):,} parameters"
    q, g = (read.factor_text(kind, name) for kind in "QG")
    yield "factors", f"Q {q}, Ḡ {g}, by {read.method(name)}"
    yield (
        "mean cost",
        f"{flops}FLOP and {traffic} of traffic a step, with what follows up to the next layer",
    )


def _shape_of(node: Node) -> str:
    rule = rule_of(node)
    if rule.piecewise_linear:
        return "elementwise and piecewise linear: its second derivatives vanish"
    return "elementwise; curved, so the Hessian differs from the Gauss-Newton matrix below it"


SHOWN_INDICES = 24


def _index_text(op: Select) -> str:
    shown = ", ".join(map(str, op.index[:SHOWN_INDICES]))
    rest = len(op.index) - SHOWN_INDICES
    filled = f"; -1 selects {op.fill:g}" if -1 in op.index else ""
    return shown + (f", … ({rest} more)" if rest > 0 else "") + filled


def _program_sections(views: Views, name: str) -> Iterator[Section]:
    """Formulas as compiled, costs and source lines; of what the nodes share if there is no name."""
    parts = views.sections(name)
    if parts:
        yield Section("As compiled", ())
    for title, equations in parts:
        yield Section(title, (Formulas(tuple(map(_line, equations))),), level=3)
    rows = views.cost_rows(name)
    if len(rows) > 2:
        yield Section("Cost", (Table(tuple(rows), right=(2, 3)),))
    if statements := views.statements(name):
        yield Section("Emitted source", (Listing(tuple(statements)),))


def _line(equation: Equation) -> Line:
    i = equation.instruction
    return Line(i.comment, equation.target, equation.formula, equation.relation, str(i.spec))


def _links(graph: ModelGraph, names: list[str] | tuple[str, ...]) -> list[str | Link]:
    linked: list[str | Link] = []
    for name in dict.fromkeys(names):
        linked += [*([", "] if linked else []), Link(name, graph[name])]
    return linked


# --- the loss -----------------------------------------------------------------------------------------


def loss_page(views: Views) -> Page:
    """The loss's mathematics, and what the nodes share: objective, step size, damping."""
    read = views.read
    loss = read.loss
    facts: list[tuple[str, Cell]] = [
        ("reads", [Link(read.graph.output.name, read.graph.output)]),
        ("scale", str(loss.scale)),
    ]
    if isinstance(loss, SoftmaxCrossEntropy):
        facts.append(("label smoothing", f"{loss.label_smoothing:g}"))
    else:
        facts.append(("convexity", f"{loss.convexity.verdict}: {loss.convexity.reason}"))
    if mean := read.last_layer_hessian():
        facts.append(("mean Hessian E[𝓗]", mean))
    sections = [
        Section("", (Facts(tuple(facts)),)),
        Section("Rules, per sample", (Formulas(tuple(loss_rules(loss))),)),
        *_program_sections(views, ""),
    ]
    return Page(LOSS, loss.name, "Loss", tuple(sections))
