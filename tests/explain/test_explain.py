"""What summary and explain say is what the program does; the cost model counts what torch counts."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from architectures import build, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import gncompile
from gncompile.base.settings import Settings
from gncompile.derivation.piecewise_linear import theorem
from gncompile.emit.step_source import emit_step
from gncompile.errors import CompileError
from gncompile.explain.explain import explain, summary
from gncompile.explain.formulas import Formulas
from gncompile.frontends.torch_export import trace
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import Loss, resolve_loss
from gncompile.pipeline import prepare, step_program
from gncompile.program import operations as ir
from gncompile.program.costs import Cost, CostModel, columns_within
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable

Compiled = tuple[TracedModel, Loss, Settings, StepProgram]


class Gated(nn.Module):
    """A gate, a fork, a residual sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4, bias=False)
        self.inner, self.top = nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.tanh(self.left(x)) * torch.sigmoid(self.right(x))
        return self.top(torch.cat([gate, gate + torch.relu(self.inner(gate))], dim=1))


def compiled(model: nn.Module, width: int, loss: str = "mse", **options: object) -> Compiled:
    traced = trace(model, torch.zeros(2, width))
    traced = traced.with_graph(prepare(traced.graph))
    declared, chosen = resolve_loss(loss), Settings.from_options(**options)
    return traced, declared, chosen, step_program(traced.graph, declared, chosen)


def chain(transfer: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), transfer(), nn.Linear(5, 3))


# --- the cost model -------------------------------------------------------------------------------


def test_products_cost_what_torch_counts() -> None:
    """Matrix products of the gradient phase, all general, against torch's own FLOP counter."""
    traced, loss, _, program = compiled(chain(), 6, method="sgd")
    executable = Executable(
        program, traced, loss, dtype=torch.float32, device=torch.device("cpu"), backend="reference"
    )
    executable.load((torch.randn(7, 6),), torch.randn(7, 3))
    with FlopCounterMode(display=False) as counter:
        executable.run("gradient")
    costs = CostModel(program, 7)
    products = [
        i for i in program.phase("gradient") if isinstance(i.op, ir.Affine | ir.MatMul | ir.Moment)
    ]
    added = sum(7 * i.spec.shape[1] for i in products if isinstance(i.op, ir.Affine))  # type: ignore
    ones = sum(2 * 7 * d for d in (5, 3)) - sum(
        7 * d for d in (5, 3)
    )  # the column of ones is a sum
    assert sum(costs.of(i).flops for i in products) - added + ones == counter.get_total_flops()


def test_structure_is_cheaper() -> None:
    """A symmetric product costs about half, a diagonal factor next to nothing."""
    wide = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 100))
    *_, program = compiled(wide, 100)
    costs = CostModel(program, 50)
    by_op: dict[type, list[int]] = {}
    for i in program:
        by_op.setdefault(type(i.op), []).append(costs.of(i).flops)
    assert by_op[ir.SymmetricProduct] == [100 * 100 * 101]
    assert 50 * 100 * 101 in by_op[ir.Moment]
    assert sorted(by_op[ir.DampedInverse]) == [2, 100**3, 101**3, 101**3]
    assert by_op[ir.Part] == [0] * len(by_op[ir.Part])


def test_work_buffers_are_what_is_allocated() -> None:
    traced, loss, _, program = compiled(Gated(), 5, method="kflr")
    executable = Executable(program, traced, loss, dtype=torch.float64, device=torch.device("cpu"))
    executable.load((torch.randn(7, 5).double(),), torch.randn(7, 3).double())
    allocated = executable.memory._flat
    columns = executable.chunk(7)
    assert columns == columns_within(program, 7, 8, executable.memory_budget)
    expected = CostModel(program, 7, 8, columns=columns).buffer_bytes(executable.source.buffers)
    found = {name: flat.numel() * 8 for name, flat in allocated.items() if name in expected}
    assert found == expected
    assert all(name.startswith("scratch") for name in set(allocated) - set(expected))


def test_columns_of_kflr_are_counted_in_chunks() -> None:
    _, _, _, program = compiled(chain(), 6, method="kflr")
    at_once, singly = (CostModel(program, 9, columns=s) for s in (3, 1))
    assert (at_once.runs("columns"), singly.runs("columns"), singly.runs("gradient")) == (1, 3, 1)
    work = [sum(c.flops for c in map(m.of, program.phase("columns"))) for m in (at_once, singly)]
    assert singly.phase("columns").flops == 3 * work[1] > at_once.phase("columns").flops == work[0]
    assert columns_within(program, 9, 4, budget=1) == 1


def test_draws_of_kfac_are_counted_each() -> None:
    _, _, _, program = compiled(chain(), 6, method="kfac", samples=4)
    assert CostModel(program, 9).runs("columns") == 4


@settings(max_examples=10)
@given(networks(), st.sampled_from(["kfra", "kflr", "kfac", "sgd"]))
def test_every_instruction_is_attributed_once(drawn: tuple, method: str) -> None:
    """The layers' costs and the shared ones add up to the program's."""
    width, chain = drawn
    model = build(chain, width, torch.Generator().manual_seed(0)).float()
    traced, _, _, program = compiled(model, width, method=method)
    costs = CostModel(program, 3)
    work = [i for i in program if not isinstance(i.op, ir.Leaf)]
    assert {i.origin.layer for i in work} <= {"", *traced.graph.layers}
    assert {i.origin.node for i in work} <= {"", *(node.name for node in traced.graph)}
    parts = costs.by_part().values()
    assert sum(parts, Cost()) == sum(costs.by_phase().values(), Cost())
    for layer in traced.graph.layers:
        origin = program[program.results[f"grad.{layer}"]].origin
        assert (origin.layer, origin.role) == (layer, "gradient")


def test_the_program_names_the_value_of_every_node() -> None:
    traced, _, _, program = compiled(Gated(), 5)
    assert set(program.nodes) == {node.name for node in traced.graph}
    assert isinstance(program[program.nodes["cat"]].op, ir.Gather)


# --- formulas -------------------------------------------------------------------------------------


def formula(name: str, of: Compiled) -> str:
    traced, _, _, program = of
    whose = program[name].origin
    wanted = {
        i.name for i in program if (i.origin.layer, i.origin.role) == (whose.layer, whose.role)
    }
    lines = Formulas.of(program, traced.graph).lines(wanted)
    return (
        next(line for line in lines if line.split(" ")[0] == name)
        .split(" = ")[1]
        .split("  :")[0]
        .strip()
    )


def test_kfra_on_a_chain_reads_as_in_the_paper() -> None:
    of = compiled(chain(), 6, trace_correction=False, factor_share=1.0)
    name = of[3].results["G.0"]
    assert formula(name, of) == (
        "(W[2]ᵀ (hessian_elements I W[2])) ⊙ E[b_layer_1_tanh b_layer_1_tanhᵀ]"
    )
    assert formula(of[3].results["Q.2"], of) == "E[[a_layer_1_tanh, 1] [a_layer_1_tanh, 1]ᵀ]"
    assert formula("b_layer_1_tanh", of) == "1 - a_layer_1_tanh**2"
    assert formula("h_layer_2", of) == "a_layer_1_tanh W[2]ᵀ + b[2]"
    assert formula(of[3].results["grad.0"], of) == "E[((g_output W[2]) ⊙ b_layer_1_tanh) [x0, 1]ᵀ]"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *itertools.product(
            ("kfra", "kflr", "kfac", "kfac_rp", "empirical"), ({}, {"inverse": "eigen"})
        )
    ],
)
def test_every_operation_has_a_formula(method: str, options: dict) -> None:
    """No instruction is shown by its class name, but for the few that are no formula."""
    for model, loss in ((chain(), "cross_entropy"), (Gated(), "bce_with_logits")):
        width = 6 if isinstance(model, nn.Sequential) else 5
        traced, _, _, program = compiled(model, width, loss, method=method, l2=1e-3, **options)
        writer = Formulas.of(program, traced.graph)
        for i in program:
            if isinstance(i.op, (ir.Leaf, *ir.VIEWS, ir.StepSizes, ir.SampleCategorical)):
                continue
            assert type(i.op).__name__ not in writer.write(i).replace("Affine", ""), i


# --- explain and summary --------------------------------------------------------------------------


def paragraphs(text: str) -> list[dict[str, str]]:
    """The tables of a summary: their rows by the first word."""
    return [{row.split()[0]: row for row in part.splitlines()} for part in text.split("\n\n")]


def test_summary_has_a_row_for_each_layer() -> None:
    traced, *rest = compiled(Gated(), 5, "bce_with_logits")
    text = summary(traced, *rest, batch=64)
    _, layers, costs, _, phases, _ = paragraphs(text)
    assert re.search(r"5 → 4 \+ b +1 +1 ", layers["left"])
    assert re.search(r"5 → 4 +1 +1 +tanh", layers["right"])
    assert "6 symmetric" in costs["left"]
    assert "5 symmetric" in costs["right"]
    assert "3 diagonal" in costs["top"]
    assert re.search(r"^trained +91$", text, re.M)
    assert "91 trained parameters" in text
    assert "the slope does not follow from" in text
    for phase, period in (
        ("curvature", 2),
        ("average", 2),
        ("compare", 10),
        ("gradient_noise", 20),
        ("adapt", 5),
    ):
        assert f"every {period} steps" in phases[phase]
    assert (
        "0.25 times a step" in phases["invert"]
    )  # every 10 steps, and 4 for a choice of γ every 20


def test_summary_names_what_is_kept_and_why() -> None:
    text = summary(*compiled(chain(), 6))
    reason = "the slope follows from the function's own value"
    # tanh keeps its value [1000, 5] in float32; its input has as many numbers
    assert re.search(rf"^output +tanh +{reason} +19.5 KiB$", text, re.M)
    assert re.search(r"^total +of 39.1 KiB for all their inputs and outputs +19.5 KiB$", text, re.M)
    assert re.search(r"^0 .* symmetric +19.5 KiB ", text, re.M)


class Tied(nn.Module):
    """A weight at three places, at one of its output, and transposed at one; a frozen one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.ModuleDict({"some_projection_of_a_long_name": nn.Linear(4, 2, bias=False)})
        self.a_block_of_many_modules = nn.ModuleDict({"another_block": inner})
        self.frozen = nn.Linear(6, 3).requires_grad_(False)
        self.top = nn.Linear(3, 4)
        self.top.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        block = self.a_block_of_many_modules["another_block"]
        layer = block["some_projection_of_a_long_name"]
        h = torch.tanh(layer(x.reshape(-1, 3, 4))).reshape(-1, 6) * self.scale
        h = torch.tanh(self.top(self.frozen(h)))
        return torch.tanh(layer(h)) @ layer.weight


def test_the_summary_of_uses_places_and_frozen_layers_fits_a_terminal() -> None:
    trainer = gncompile.compile(Tied(), "mse", torch.zeros(2, 12), {"*": "kfra", "scale": "kflr"})
    text = trainer.summary()
    _, layers, costs, *_ = paragraphs(text)
    name = "a_block_of_many_modules.another_block.some_projection_of_a_long_name"
    lines = text.splitlines()
    row = lines[lines.index(name) + 1]
    assert re.search(r"^ +4 → 2 +3 +5 +y\*tanh\(x\), … +kfra averaged +8$", row)
    assert re.search(r"^scale +vector of 6 +1 +1 .* kflr exact +6$", layers["scale"])
    assert re.search(r"^top +3 → 4 \+ frozen b +1 +1 +tanh +kfra averaged +12$", layers["top"])
    assert re.search(r"^frozen +6 → 3 \+ frozen b +1 +1 +- +frozen +18$", text, re.M)
    assert re.search(r"^trained +26$", text, re.M)
    assert re.search(r"^frozen +25$", text, re.M)  # with the biases
    assert "frozen" not in costs
    assert max(len(line) for line in lines) <= 80


def test_the_summary_says_first_order() -> None:
    text = gncompile.compile(chain(), "mse", torch.zeros(2, 6), "adam").summary()
    assert re.search(r"^0 .* adam first-order ", text, re.M)


def test_a_function_is_called_by_its_declared_name_however_it_is_written() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.top = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.left(x)
            return self.top(h / (1 + torch.exp(-h)))

    class Gate(Chain):
        def forward(self, x: Tensor) -> Tensor:
            h = self.left(x)
            return self.top(h.flip(1) * torch.nn.functional.silu(h))

    assert re.search(r"^left .* silu +kfra averaged", summary(*compiled(Chain(), 5)), re.M)
    assert re.search(r"^left .* swiglu +kfra averaged", summary(*compiled(Gate(), 5)), re.M)


def test_explaining_a_layer_quotes_the_emitted_source() -> None:
    traced, loss, options, program = compiled(chain(), 6)
    source = emit_step(program, "x", traced.graph.to_text())
    text = explain(traced, loss, options, program, "0", source=source)
    lines = source.text.splitlines()
    quoted = re.findall(r"^ +(\d+)  (.*)$", text.split("Emitted statements")[1], re.M)
    assert len(quoted) > 20
    for number, statement in quoted:
        assert lines[int(number) - 1].strip() == statement
    statements = [statement for _, statement in quoted]
    assert any("out=h_layer_0)" in s for s in statements)
    assert any("linalg.damped_inverse(Q_0" in s for s in statements)
    assert not any("out=h_layer_2)" in s for s in statements)


def test_explaining_a_layer_says_where_it_is_and_what_it_keeps() -> None:
    text = explain(*compiled(Gated(), 5), layer="inner")
    assert "module 'inner'" in text
    assert "test_explain.py" in text
    assert "Kept for the backward pass" in text
    for heading in (
        "Forward",
        "Slopes and gradient",
        "Input factor Q",
        "Output factor",
        "R-operator",
    ):
        assert heading in text


def test_an_unknown_layer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        CompileError, match="no trainable affine layer 'iner'. Did you mean 'inner'"
    ):
        explain(*compiled(Gated(), 5), layer="iner")


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "huber"])
def test_the_whole_report_has_every_layer_and_the_loss(loss: str) -> None:
    of = compiled(Gated(), 5, loss)
    text = explain(*of)
    assert text.startswith("# Derivation of Gated")
    assert f"## Loss: {loss}" in text
    for layer in of[0].graph.layers:
        assert f"## Layer {layer}" in text
    assert "## Piecewise-linear networks" in text
    assert "loss" in text
    assert "Hessian" in text or "𝓗" in text


# --- the theorem ----------------------------------------------------------------------------------


def said(model: nn.Module, width: int, loss: str) -> str:
    traced, declared, *_ = compiled(model, width, loss)
    return theorem(traced.graph, declared)


def test_the_theorem_holds_for_relu_networks() -> None:
    assert "The conditions hold.\n" in said(chain(nn.ReLU), 6, "cross_entropy")


def test_the_theorem_names_the_curved_node_and_the_layers_it_spares() -> None:
    text = said(chain(nn.Tanh), 6, "mse")
    assert "The conditions do not hold" in text
    assert "layer_1_tanh = tanh(layer_0)" in text
    assert "For the layers 2 nothing follows that is curved" in text


def test_a_gate_of_linear_maps_is_curved() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u, self.v = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.u(x) * self.v(x)

    assert "∂²/∂u∂v = 1" in said(Product(), 4, "mse")


def test_the_theorem_doubts_a_loss_with_kinks_in_its_slope() -> None:
    assert "The loss:" in said(chain(nn.ReLU), 6, "huber")


def test_a_curved_function_of_the_data_alone_does_not_matter() -> None:
    class Lifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(torch.sin(x))

    assert said(Lifted(), 4, "mse").endswith("The conditions hold.")
