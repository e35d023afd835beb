"""The report: every node has a page, links resolve, markup is sound, formulas say what the program does."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import networkx as nx
import pytest
import sympy
import torch
from architectures import build, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import curves_model
from torch import Tensor, nn

from gncompile import compile as compile_model
from gncompile import register_transfer
from gncompile.app.cli import main
from gncompile.base.settings import Settings
from gncompile.emit.step_source import emit_step
from gncompile.explain.notation import (
    Bracket,
    Call,
    Cases,
    Fraction,
    Group,
    Infix,
    Math,
    Name,
    Number,
    Power,
    Root,
    Sum,
    expanded,
)
from gncompile.explain.readback import PARTS, Readback
from gncompile.explain.report import layout, plots, write_html, write_latex
from gncompile.explain.report.html import html
from gncompile.explain.report.latex import latex
from gncompile.explain.report.latex_math import escaped
from gncompile.explain.report.symbols import typeset_name
from gncompile.explain.report.views import Views
from gncompile.frontends.torch_export import trace
from gncompile.functions import Primitive
from gncompile.functions.transfer import transfer, transfer_names
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph
from gncompile.graph.nodes import Node, Pointwise
from gncompile.losses import SeparableLoss, resolve_loss
from gncompile.pipeline import prepare, step_program
from gncompile.program import operations as ir
from gncompile.program.costs import Cost, total
from gncompile.training.trainer import Trainer

METHODS = ("kfra", "kflr", "kfac", "empirical", "sgd")


class Gated(nn.Module):
    """A gate, a fork, a residual sum, a concatenation, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4, bias=False)
        self.inner, self.top = nn.Linear(4, 4).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.tanh(self.left(x)) * torch.sigmoid(self.right(x))
        return self.top(torch.cat([gate, gate + torch.relu(self.inner(gate))], dim=1))


def views(model: nn.Module, width: int, loss: str = "mse", **options: object) -> Views:
    traced = trace(model, torch.zeros(2, width, dtype=next(model.parameters()).dtype))
    traced = traced.with_graph(prepare(traced.graph))
    declared, chosen = resolve_loss(loss), Settings.from_options(**options)
    program = step_program(traced.graph, declared, chosen)
    source = emit_step(program, "A step.", traced.graph.to_text())
    return Views(Readback(traced, declared, chosen, program), source, traced.name)


GATE = f"line_{inspect.getsourcelines(Gated.forward)[1] + 1}"
"""The node of the gate, named after the line that computes it."""


@pytest.fixture(scope="module")
def gated() -> Views:
    return views(Gated(), 5, "cross_entropy")


# --- markup ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A strict reader: every element is closed in order, attributes are unique; keeps what it saw."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        assert text.startswith("<!DOCTYPE html>")
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def checked(files: dict[str, str]) -> dict[str, Page]:
    """All pages, read; links lead to files of the report or places of the page, and nothing outside."""
    pages = {name: Page(text) for name, text in files.items() if name.endswith(".html")}
    for page in pages.values():
        ids = set(page.values("id"))
        for target in page.values("href") + page.values("src"):
            assert target.removeprefix("#") in ids if target.startswith("#") else target in files
        for key, value in page.attributes:
            assert "//" not in value or key == "aria-label", (key, value)
            assert all(inner in ids for inner in re.findall(r"url\(#([^)]*)\)", value))
        assert "script" not in page.tags
    assert not re.search(r"@import|url\(", files["style.css"])
    return pages


@settings(max_examples=8, deadline=None)
@given(networks(depth=3), st.sampled_from(METHODS))
def test_every_node_of_a_random_network_has_a_sound_page(drawn: tuple, method: str) -> None:
    width, chain = drawn
    model = build(chain, width, torch.Generator().manual_seed(0))
    shown = views(model, width, method=method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # drawing would take most of the time
        files = html(shown)
    pages = checked(files)
    graph = shown.read.graph
    assert set(files) == {"index.html", "loss.html", "style.css", *map(shown.file, graph)}
    for node in graph:
        page = pages[shown.file(node)]
        expected = {shown.file(n) for n in graph.consumers(node.name)}
        expected |= {shown.file(graph[name]) for name in node.inputs}
        assert expected <= set(page.values("href"))
        assert {shown.file(node), "loss.html"} <= set(pages["index.html"].values("href"))


@settings(max_examples=8, deadline=None)
@given(networks(depth=3), st.sampled_from(METHODS))
def test_every_instruction_is_shown_once(drawn: tuple, method: str) -> None:
    """The pages' costs add up to the program's, and no value is on two pages."""
    width, chain = drawn
    model = build(chain, width, torch.Generator().manual_seed(0))
    shown = views(model, width, method=method)
    program = shown.read.program
    names = ["", *(node.name for node in shown.nodes)]
    on_pages = [value for name in names for value in shown.values(name)]
    assert sorted(on_pages) == sorted(i.name for i in program if not isinstance(i.op, ir.Leaf))
    costs = total(cost for name in names for cost in shown.costs(name).values())
    assert costs == sum(shown.read.costs.by_phase().values(), Cost())


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "exact", "exact_form": "primal", "l2": 0.1},
        {"solver": "exact", "exact_form": "dual", "damping_scale": "diagonal"},
        {"solver": "block_hessian_free", "l2": 0.1},
        {"solver": "newton_cg", "preconditioner": "kronecker"},
    ],
    ids=lambda o: o.get("exact_form", o["solver"]),
)
def test_every_solver_has_a_report(options: dict[str, object], tmp_path: Path) -> None:
    """Their values are written into others that are no states."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    trainer = compile_model(model, "mse", torch.zeros(3, 2), tune="off", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        pages = trainer.report(tmp_path)
    checked({page.name: page.read_text() for page in pages})
    assert len(pages) > len(trainer.compiled.traced.graph)
    assert trainer.report_latex(tmp_path / "report.tex").read_text()


def test_a_node_page_has_its_own_values(gated: Views) -> None:
    for node, value in (("left", "h_left"), (GATE, f"a_{GATE}"), ("top", "grad_top")):
        assert gated.owners[value] == node
    titles = {name: [title for title, _ in gated.sections(name)] for name in ("top", GATE, "")}
    assert {"Forward", "Slopes and gradient", "Input factor Q", "Direction"} <= set(titles["top"])
    assert PARTS["quadratic"] in titles[GATE]
    assert {"Loss", "Damping"} <= set(titles[""])


def test_source_lines_are_those_of_the_emitted_file(gated: Views) -> None:
    lines = gated.source.text.splitlines()
    for name, value in (("left", "h_left"), (GATE, f"a_{GATE}"), ("cat", "x_cat")):
        statements = gated.statements(name)
        assert any(value in s.text and s.phase == "gradient" for s in statements)
        assert all(lines[s.number - 1].strip() == s.text for s in statements)


def test_the_overview_says_what_is_kept(gated: Views) -> None:
    text = " ".join(Page(html(gated)["index.html"]).text)
    assert "3 trainable layers, 71 trained parameters" in text
    # b of the gate needs both pre-activations, that of the sum the layer inner: three of [1000, 4]
    assert "3 kept tensors, together 48,000 bytes for 1000 samples" in text
    assert "The conditions do not hold" in text


@pytest.mark.parametrize(
    "loss", ["mse", "cross_entropy", "huber", "bce_with_logits", "exp(z) - y*z"]
)
def test_the_loss_page_has_all_of_a_loss(loss: str) -> None:
    files = html(views(nn.Sequential(nn.Linear(3, 2)), 3, loss))
    text = " ".join(Page(files["loss.html"]).text)
    drawn = (
        "sampled gradient" if loss in ("mse", "cross_entropy", "bce_with_logits") else "noise = ±1"
    )
    for part in ("value", "gradient", "output Hessian", "root, C Cᵀ = 𝓗", drawn):
        assert part in text, part


def test_a_loss_of_coupled_outputs_has_a_page() -> None:
    loss = resolve_loss("(z1 - y1)**2 + (z2 - y2)**2 + (z1 - z2)**2")
    shown = views(nn.Sequential(nn.Linear(3, 2)), 3)
    program = step_program(shown.read.graph, loss, shown.read.settings)
    page = checked(html(replace(shown, read=replace(shown.read, loss=loss, program=program))))
    assert "projected gradient, noise = ±1" in page["loss.html"].text


# --- hostile names --------------------------------------------------------------------------------

HOSTILE = '<script>alert("1")</script>&amp;\'\\input{x}%$#_^~{}é中'


def hostile() -> Views:
    """A network whose node, module, source line, loss and title are all hostile."""
    shown = views(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), 3)
    names = {node.name: f"{node.name}{HOSTILE}" for node in shown.read.graph}
    nodes = []
    for node in shown.read.graph:
        op = node.op
        if isinstance(op, Affine):
            op = replace(op, layer=op.layer + HOSTILE)
        origin = replace(node.origin, module=HOSTILE, code=HOSTILE)
        inputs = tuple(names[name] for name in node.inputs)
        nodes.append(Node(names[node.name], op, inputs, node.shape, origin))
    traced = replace(shown.read.traced, graph=ModelGraph(nodes), name=HOSTILE)
    loss = SeparableLoss(HOSTILE, resolve_loss("mse").expression, sampler="normal")
    program = step_program(traced.graph, loss, shown.read.settings)
    read = replace(shown.read, traced=traced, loss=loss, program=program)
    return Views(read, emit_step(program, "A step.", ""), HOSTILE)


def test_hostile_names_are_escaped() -> None:
    pages = checked(html(hostile()))
    assert any(HOSTILE in text for text in pages["index.html"].text)
    for page in pages.values():
        assert any(HOSTILE in text for text in page.text)


def test_file_names_are_plain() -> None:
    assert all(re.fullmatch(r"[\w-]+\.(html|css)", name, re.ASCII) for name in html(hostile()))


# --- LaTeX ----------------------------------------------------------------------------------------


def assert_balanced(source: str) -> None:
    """Braces, dollars and environments are closed in order; only ASCII, which every engine reads."""
    assert source.isascii()
    plain = re.sub(r"\\[\\{}$%#&_^~]", "", source)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    body = plain.partition("\\begin{document}")[2]
    assert all(line.count("$") % 2 == 0 for line in body.splitlines())
    environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", source):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert not environments


@settings(max_examples=5, deadline=None)
@given(networks(depth=3), st.sampled_from(METHODS))
def test_latex_is_balanced(drawn: tuple, method: str) -> None:
    width, chain = drawn
    shown = views(build(chain, width, torch.Generator().manual_seed(0)), width, method=method)
    source = latex(shown)
    assert_balanced(source)
    for node in shown.nodes:
        assert f"\\label{{node:{shown.nodes.index(node):02d}}}" in source


def test_hostile_names_do_not_reach_latex() -> None:
    source = latex(hostile())
    assert_balanced(source)
    assert "\\input" not in source
    assert "[U+4E2D]" in source


def test_cells_of_latex_are_not_taken_for_arguments() -> None:
    """``\\\\`` takes a star or a bracket that follows, and an item ends at the first bracket."""
    assert escaped("a]中") == "a{]}{[U+4E2D]}"
    rows = [line for line in latex(hostile()).split("\n") if line.endswith(r" \\")]
    assert rows
    assert all(row.startswith("{}") for row in rows)


def test_nothing_written_commands_a_browser_or_a_terminal(tmp_path: Path) -> None:
    """Names of modules may have escapes of terminals, NUL, marks of direction, halves of characters."""
    name = "k\x1b[2J\0\u202e\udc80"
    trainer = compile_model(
        nn.Sequential(OrderedDict({name: nn.Linear(2, 1)})), "mse", torch.zeros(3, 2)
    )
    trainer.compiled.traced = replace(trainer.traced, name=name)
    texts = [trainer.summary(), trainer.explain(), repr(trainer), trainer.source]
    texts += [path.read_text() for path in (*trainer.report(tmp_path), *trainer.emit(tmp_path))]
    for text in texts:
        assert not {"\x1b", "\0", "\u202e", "\udc80"} & set(text)
    assert all(r"k\x1b[2J\x00\u202e\udc80" in text for text in texts[:3])


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX is installed")
def test_latex_compiles(tmp_path: Path) -> None:
    for number, shown in enumerate((hostile(), views(Gated(), 5, "huber", method="kflr"))):
        (tmp_path / f"{number}.tex").write_text(latex(shown))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{number}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")


# --- formulas -------------------------------------------------------------------------------------

CALLS = {
    "σ": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "sgn": lambda x: math.copysign(1, x) if x else 0.0,
    "arctan": math.atan,
    "arsinh": math.asinh,
    "max": max,
    "min": min,
    "clamp": lambda x, low, high: min(max(x, low), high),
    **{name: getattr(math, name) for name in
       ("tanh", "cosh", "sinh", "sin", "cos", "tan", "log", "log1p", "expm1", "erf", "erfc")},
}  # fmt: skip


def worth(m: Math, x: float) -> float:
    """The number a typeset formula stands for, read as a reader would."""
    match m:
        case Name("x"):
            return x
        case Name(name):
            return {"e": math.e, "π": math.pi}[name]
        case Number(written):
            return float(written.replace("−", "-"))
        case Infix("" | "·", parts):
            return math.prod(worth(part, x) for part in parts)
        case Sum(terms):
            return sum(worth(term, x) * (1 if plus else -1) for plus, term in terms)
        case Group(body):
            return worth(body, x)
        case Bracket("|", body, "|"):
            return abs(worth(body, x))
        case Call(function, arguments):
            return CALLS[function](*(worth(argument, x) for argument in arguments))
        case Fraction(above, below):
            return worth(above, x) / worth(below, x)
        case Power(base, exponent):
            return worth(base, x) ** worth(exponent, x)
        case Root(body):
            return math.sqrt(worth(body, x))
        case Cases((*rows, (otherwise, _))):
            chosen = (value for value, condition in rows if holds(condition, x))
            return worth(next(chosen, otherwise), x)
    raise AssertionError(m)


def holds(condition: Math, x: float) -> bool:
    """Whether ``if u > v and w ≤ 0`` does."""
    assert isinstance(condition, Infix)
    compared = [part for part in condition.parts if isinstance(part, Infix)]
    found = [(sign.operator, *(worth(side, x) for side in sign.parts)) for sign in compared]
    assert {sign for sign, *_ in found} <= {">", "≤"}
    return all((u > v) == (sign == ">") for sign, u, v in found)


def plain(e: sympy.Expr) -> sympy.Expr:
    """The expression by the definitions of our own functions, in sympy's alone."""
    e = e.func(*map(plain, e.args)) if e.args else e
    return plain(e.definition()) if isinstance(e, Primitive) else e


@pytest.mark.parametrize("name", transfer_names())
def test_a_typeset_formula_is_the_function(name: str) -> None:
    """Values, slopes and second derivatives, read back from the tree, against sympy's own evaluation."""
    function = transfer(name)
    x, rule = function.argument, function.rule
    for expression in (rule.value, *rule.slopes, *rule.seconds.values()):
        tree = expanded(expression, {x: Name("x")})
        for point in (-1.7, -0.3, 0.4, 0.9):
            if not function.domain[0] < point < function.domain[1]:
                continue
            definition = plain(expression)
            expected = float(definition.subs(x, sympy.Float(point, 30)).evalf(30))
            # doubles, a few operations; 1e-12 leaves room for cancellation in sums of order one
            assert worth(tree, point) == pytest.approx(expected, rel=1e-10, abs=1e-12), expression


def test_names_are_typeset_with_subscripts() -> None:
    assert typeset_name("Q⁻¹[fc1]") == ("Q", "fc1", True)
    assert typeset_name("grad_fc1") == ("∇", "fc1", False)
    assert typeset_name("r2_fc_1") == ("r", "2, fc_1", False)
    assert typeset_name("exact_trace") == ("exact_trace", "", False)
    assert typeset_name("x0") == ("x", "0", False)


# --- pictures -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 14), st.floats(0.1, 0.5))
def test_boxes_and_edges_of_a_layout_keep_apart(seed: int, count: int, density: float) -> None:
    """In every layer nodes are one unit apart, bends leave room, and edges go down layer by layer."""
    random = nx.gnp_random_graph(count, density, seed=seed, directed=True)
    dag = nx.DiGraph()
    dag.add_nodes_from(f"n{i}" for i in range(count))
    dag.add_edges_from((f"n{u}", f"n{v}") for u, v in random.edges if u < v)
    made = layout.layered(dag)
    assert set(made.places) == set(dag)
    by_layer: dict[int, list[tuple[float, float]]] = {}
    for x, y in made.places.values():
        by_layer.setdefault(y, []).append((x, 0.5))
    for (u, v), route in made.routes.items():
        assert route[0] == made.places[u]
        assert route[-1] == made.places[v]
        assert [y for _, y in route] == list(range(route[0][1], route[-1][1] + 1))
        for x, y in route[1:-1]:
            by_layer[y].append((x, 0.2))
    for layer in by_layer.values():
        layer.sort()
        for (a, left), (b, right) in itertools.pairwise(layer):
            assert b - a >= left + right - 2e-3  # places are rounded to three digits


def test_a_residual_block_is_drawn_without_crossings() -> None:
    edges = [("x", "a"), ("a", "b"), ("b", "s"), ("x", "s"), ("s", "c"), ("c", "t"), ("s", "t")]
    made = layout.layered(nx.DiGraph(edges))
    sides = [made.routes["x", "s"][1][0] - made.places["a"][0]]
    sides += [made.routes["x", "s"][2][0] - made.places["b"][0]]
    assert sides[0] * sides[1] > 0  # the long edge stays on one side
    assert made.width < 1.0


def test_plots_show_the_function_and_its_slope(gated: Views) -> None:
    pytest.importorskip("matplotlib")
    shown = views(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), 2)
    node = next(n for n in shown.nodes if isinstance(n.op, Pointwise))
    svg = plots.plot(node, shown.read.traced)
    assert svg is not None
    text = "".join(svg.itertext())
    assert "f ′" in text
    assert "#000000" not in str([e.get("style") for e in svg.iter()])
    gate = next(n for n in gated.nodes if n.name == GATE)
    drawn = plots.plot(gate, gated.read.traced)
    assert drawn is not None
    assert {"left", "right"} <= {(e.text or "").strip() for e in drawn.iter("text")}


def test_a_plot_stays_within_the_domain() -> None:
    register_transfer("report_log", "log(x + 2)", domain=(-2.0, math.inf), override=True)
    x = sympy.Symbol("h", real=True)
    node = Node("a", Pointwise(transfer("report_log")(x), (x,)), ("h",), (3,))
    low, high = plots.domain(node)
    assert -2 < low < -1.9
    assert high == 5
    other = Node("b", Pointwise(sympy.tanh(x), (x,)), ("h",), (3,))
    assert plots.domain(other) == (-5, 5)


def test_the_report_is_written_without_matplotlib(
    gated: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files = html(gated)
    checked(files)
    (gate,) = (gated.file(n) for n in gated.nodes if n.name == GATE)
    assert "pip install 'gncompile[plots]'" in files[gate].replace("&#x27;", "'")


# --- files ----------------------------------------------------------------------------------------


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (views(Gated(), 5, "huber") for _ in range(2))
    files = html(first)
    assert files == html(second)
    article = latex(first)
    assert article == latex(second)
    written = write_html(first.read, first.source, tmp_path / "report")
    assert written[0].name == "index.html"
    assert {path.name: path.read_text() for path in written} == files
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(files)
    assert write_latex(first.read, first.source, tmp_path / "a.tex").read_text() == article


def test_a_trainer_reports(tmp_path: Path) -> None:
    trainer = compile_model(nn.Sequential(nn.Linear(3, 2)), "mse", torch.zeros(2, 3))
    assert isinstance(trainer, Trainer)
    index = trainer.report(tmp_path, "my net")[0]
    assert "my net" in Page(index.read_text()).text
    assert "my net" in trainer.report_latex(tmp_path / "x.tex", "my net").read_text()


def test_a_recurrence_and_a_computed_weight_have_reports(tmp_path: Path) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(3, 2, batch_first=True)
            self.out = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.recurrent(x)[0][:, -1])

    trainer = compile_model(Network(), "mse", torch.randn(4, 2, 3), tune="off")
    trainer.report(tmp_path / "report")
    pages = "".join(page.read_text() for page in (tmp_path / "report").glob("*.html"))
    assert "out.parametrizations.weight.original1, of first order" in pages


def test_explain_writes_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = curves_model(tmp_path, 9, 4, 16, loss="bce_with_logits")
    out, article = tmp_path / "out", tmp_path / "small.tex"
    assert explain(model, "--html", out, "--latex", article) == 0
    assert capsys.readouterr().out.split() == [str(out / "index.html"), str(article)]
    assert "small" in Page((out / "index.html").read_text()).text
    assert_balanced(article.read_text())
    assert explain(model, "--html", out, "--layer", "layer1") == 2


def explain(model: Path, *options: object) -> int:
    """The exit code of ``gncompile explain``."""
    with pytest.raises(SystemExit) as stop:
        main(["explain", str(model), *map(str, options)])
    return int(stop.value.code or 0)
