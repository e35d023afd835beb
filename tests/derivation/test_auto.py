"""Methods by layer and by cost: what is chosen, that its factors are those of the method, and its price."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile import pipeline
from gncompile.app.api import understand
from gncompile.app.training_run import compile_file
from gncompile.base.exact_key import Recent
from gncompile.base.settings import Settings
from gncompile.derivation import method_choice
from gncompile.derivation.method_choice import AFFORDABLE, ROOMY, curvature_methods
from gncompile.derivation.prices import BATCH, ITEMSIZE, Prices, needed
from gncompile.errors import CheckpointError, CompileError
from gncompile.frontends.model_file import load_model_file
from gncompile.pipeline import step_program
from gncompile.program.costs import CostModel, columns_within
from gncompile.program.program_check import check
from gncompile.program.step_program import StepProgram
from gncompile.training.trainer import Trainer

CURVATURE = ("curvature", "columns_begin", "columns", "share_inputs")


class Branches(nn.Module):
    """``branches`` narrow inputs widened, concatenated, and mapped to a bottleneck and an output."""

    def __init__(self, branches: int, width: int, bottleneck: int) -> None:
        super().__init__()
        self.branch = nn.ModuleList(nn.Linear(8, width) for _ in range(branches))
        self.join = nn.Linear(branches * width, bottleneck)
        self.out = nn.Linear(bottleneck, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([torch.tanh(branch(x)) for branch in self.branch], dim=1)
        return self.out(torch.tanh(self.join(joined)))


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


FEW_OUTPUTS = (mlp(20, 30, 20, 3), "cross_entropy")
AUTOENCODER = (mlp(784, 250, 30, 250, 784), "bce_with_logits")
WIDE = (Branches(8, 512, 32), "mse")
NETWORKS = {"few outputs": FEW_OUTPUTS, "autoencoder": AUTOENCODER, "wide": WIDE}
BY_NAME = pytest.mark.parametrize("name", NETWORKS)


def features(model: nn.Module) -> int:
    return next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features


def program_of(name: str, **options: object) -> StepProgram:
    model, loss = NETWORKS[name]
    traced, declared, _ = understand(model, loss, torch.zeros(2, features(model)))
    return step_program(traced.graph, declared, Settings.from_options(**options))


def methods_of(name: str, **options: object) -> dict[str, str]:
    return program_of(name, method="auto", **options).methods


# --- the rule -----------------------------------------------------------------------------------------


def test_few_outputs_are_exact() -> None:
    assert set(methods_of("few outputs").values()) == {"kflr"}


def test_an_autoencoder_averages() -> None:
    assert set(methods_of("autoencoder").values()) == {"kfra"}


def test_a_wide_concatenation_is_sampled_and_what_follows_it_averages() -> None:
    methods = methods_of("wide")
    assert methods["out"] == methods["join"] == "kfra"
    assert "kfac_rp" in {methods[f"branch.{i}"] for i in range(8)}
    assert list(methods) == [*(f"branch.{i}" for i in range(8)), "join", "out"]


@BY_NAME
def test_the_choice_keeps_its_limits(name: str) -> None:
    """Chosen KFRA stays within both limits over the projection, and with one more layer it does not."""
    model, loss = NETWORKS[name]
    traced, declared, _ = understand(model, loss, torch.zeros(2, features(model)))
    settings = Settings(method="auto")
    methods = curvature_methods(traced.graph, declared, settings).methods
    layers = list(methods)
    prices = Prices.of(traced.graph, declared, settings, ("kfra", "kfac_rp"))
    gradient, sampled = prices.gradient, prices.factors(dict.fromkeys(layers, "kfac_rp"))

    def within(chosen: dict[str, str]) -> bool:
        price = prices.factors(chosen)
        return (
            price.flops - sampled.flops <= AFFORDABLE * gradient.flops
            and price.bytes - sampled.bytes <= ROOMY * gradient.bytes
        )

    if "kflr" in methods.values():
        assert set(methods.values()) == {"kflr"}
        return
    assert within(methods)
    for layer in layers:
        if methods[layer] == "kfac_rp":
            assert not within({**methods, layer: "kfra"})


def test_the_limits_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_programs", Recent(kept=0))  # which know of one limit only
    monkeypatch.setattr(method_choice, "ROOMY", 100.0)
    monkeypatch.setattr(method_choice, "AFFORDABLE", 10.0)
    assert set(methods_of("wide").values()) == {"kfra"}
    assert set(methods_of("wide", memory_budget=1 << 20).values()) == {"kfra", "kfac_rp"}
    monkeypatch.setattr(method_choice, "AFFORDABLE", 1000.0)
    assert set(methods_of("wide").values()) == {"kflr"}


def test_the_choice_is_the_same_every_time() -> None:
    first, second = (program_of("wide", method="auto") for _ in range(2))
    assert first.methods == second.methods
    assert first.reasons == second.reasons
    assert first.to_text() == second.to_text()


# --- its price ----------------------------------------------------------------------------------------


def curvature_flops(program: StepProgram, settings: Settings) -> int:
    columns = columns_within(program, BATCH, ITEMSIZE, settings.memory_budget)
    costs = CostModel(program, BATCH, ITEMSIZE, settings.rows(BATCH), columns)
    return sum(costs.phase(phase).flops for phase in CURVATURE if phase in costs.program.phases)


@pytest.mark.parametrize(
    "options", [{}, {"trace_correction": False}, {"factor_share": 1.0, "samples": 2}]
)
@BY_NAME
def test_the_price_is_that_of_the_program(name: str, options: dict[str, object]) -> None:
    """What the choice reckons for its methods are the FLOPs of the step that is built, to the last one."""
    model, loss = NETWORKS[name]
    traced, declared, _ = understand(model, loss, torch.zeros(2, features(model)))
    settings = Settings.from_options(method="auto", **options)
    program = step_program(traced.graph, declared, settings)
    used = tuple(dict.fromkeys(program.methods.values()))
    prices = Prices.of(traced.graph, declared, settings, used)
    assert prices.factors(program.methods).flops == curvature_flops(program, settings)


def test_kfra_of_few_layers_walks_no_further() -> None:
    """KFRA of the layers near the output costs what it costs in a network that ends there."""
    lower = {"*": "empirical", "4": "kfra", "6": "kfra"}
    mixed = program_of("autoencoder", method=lower, trace_correction=False)
    full = program_of("autoencoder", method="kfra", trace_correction=False)
    sizes = [i.spec.shape for i in mixed if i.phase == "curvature" and i.name.startswith("G_")]
    assert (784, 784) not in sizes
    assert len(mixed.phase("curvature")) < len(full.phase("curvature"))


def test_what_a_result_needs_is_a_program_of_its_own() -> None:
    program = program_of("few outputs", method="kflr")
    part = needed(program, ["G.0"])
    check(part)
    assert {i.name for i in part} < {i.name for i in program}
    assert any(i.phase == "columns_begin" for i in part)  # the sum starts from zero
    assert not any(i.phase == "update" for i in part)


# --- its factors --------------------------------------------------------------------------------------


def trained_once(model: nn.Module, loss: str, x: Tensor, y: Tensor, **options: object) -> Trainer:
    """After one step the running averages are the factors of that batch, at the initial parameters."""
    trainer = gncompile.compile(model, loss, x, factor_share=1.0, trace_correction=False, **options)  # type: ignore[arg-type]
    trainer.step(x, y)
    return trainer


MIXED = {"0": "empirical", "2": "kflr", "4": "kfra"}


@pytest.mark.parametrize("method", ["auto", MIXED, {"*": "kfra", "[02]": "kflr"}])
def test_factors_of_each_layer_are_those_of_its_method(method: str | dict[str, str]) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(12, 5).double(), torch.randn(12, 3).double()
    model = mlp(5, 6, 4, 3).double()
    plain = {
        name: gncompile.curvature(model, "mse", x, y, name)
        for name in ("kfra", "kflr", "empirical")
    }
    trainer = trained_once(model, "mse", x, y, method=method)
    for layer, factors in trainer.factors().items():
        expected = plain[trainer.program.methods[layer]][layer]
        # The same float64 sums in another order: a few roundings of numbers near one.
        torch.testing.assert_close(factors.output, expected.output, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(factors.input, expected.input, rtol=1e-12, atol=1e-14)
    distinct = {name: plain[name]["0"].output for name in plain}
    assert not torch.allclose(distinct["kfra"], distinct["kflr"], rtol=1e-6)
    assert not torch.allclose(distinct["kfra"], distinct["empirical"], rtol=1e-6)


def test_a_sampled_layer_has_one_projection_of_the_exact_factor() -> None:
    """With one output and squared loss the root is a number, so v = ±1 drops out of Ḡ: KFLR's value."""
    x, y = torch.randn(12, 5).double(), torch.randn(12, 1).double()
    model = mlp(5, 6, 4, 1).double()
    exact = gncompile.curvature(model, "mse", x, y, "kflr")
    trainer = trained_once(model, "mse", x, y, method={"*": "kfra", "0": "kfac_rp"})
    sampled = trainer.factors()["0"].output
    torch.testing.assert_close(sampled, exact["0"].output, rtol=1e-12, atol=1e-14)


def test_mixed_draws_go_through_the_columns() -> None:
    x, y = torch.randn(12, 5).double(), torch.randn(12, 1).double()
    model = mlp(5, 6, 4, 1).double()
    exact = gncompile.curvature(model, "mse", x, y, "kflr")
    trainer = trained_once(model, "mse", x, y, method={"*": "kfra", "0": "kfac_rp"}, samples=3)
    sampled = trainer.factors()["0"].output
    torch.testing.assert_close(sampled, exact["0"].output, rtol=1e-12, atol=1e-14)


def test_many_draws_beside_a_trace_correction_are_different_draws() -> None:
    """The correction's own draw, in an earlier phase, is not taken for all of them."""
    torch.manual_seed(4)
    x, y = torch.randn(2, 5).double(), torch.randn(2, 3).double()
    model = mlp(5, 6, 4, 3).double()
    exact = gncompile.curvature(model, "mse", x, y, "kflr")["2"].output
    trainer = gncompile.compile(model, "mse", x, {"*": "kfra", "2": "kfac_rp"}, samples=2000)
    trainer.step(x, y)
    # The mean of S draws is off by about 1/√S = 2 %, one draw for two samples by about its own size.
    assert (trainer.factors()["2"].output - exact).norm() < 0.1 * exact.norm()


def test_both_backends_agree_on_a_mixture() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(16, 5).double(), torch.randn(16, 3).double()
    losses = []
    for backend in ("torch", "reference"):
        trainer = gncompile.compile(
            mlp(5, 6, 4, 3).double(), "mse", x, {"*": "kfra", "0": "kfac_rp"}, backend=backend
        )
        losses.append([trainer.step(x, y).loss for _ in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < 0.9 * losses[0][0]


# --- patterns -----------------------------------------------------------------------------------------


def test_the_last_matching_pattern_decides() -> None:
    patterns = {"*": "kfra", "branch.*": "kfac", "branch.3": "kflr"}
    methods = program_of("wide", method=patterns).methods
    assert methods["branch.3"] == "kflr"
    assert methods["branch.0"] == "kfac"
    assert methods["join"] == methods["out"] == "kfra"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"method": {"branch.*": "kfra"}}, "method gives none for join, out"),
        ({"method": {"*": "kfra", "braanch.1": "kfac"}}, "no layer matches the pattern"),
        ({"method": {"*": "kfar"}}, "unknown method 'kfar'"),
        ({"method": {"*": "adam"}}, "unknown method 'adam'"),
        ({"method": {"*": "auto"}}, "unknown method 'auto'"),
        ({"method": {}}, "method gives none for branch.0"),
        ({"method": {"*": "kflr", "out": "kfac"}, "samples": 2}, "samples = 2 together with"),
    ],
)
def test_bad_patterns_are_refused(options: dict[str, object], found: str) -> None:
    with pytest.raises(CompileError, match=found):
        program_of("wide", **options)


# --- what the user sees -------------------------------------------------------------------------------


def test_the_summary_says_what_was_chosen_and_why() -> None:
    x = torch.zeros(2, 8)
    summary = gncompile.compile(WIDE[0], "mse", x, "auto").summary()
    text = " ".join(summary.split())  # whatever the lines are broken at
    assert "method kfra of " in text
    assert "method kfac_rp of branch.0" in text
    assert "auto kfra of all layers would cost more than" in text
    for line in ("auto kflr everywhere: ", "auto kfra everywhere: ", "auto as chosen: "):
        assert line in text
    row = next(line for line in summary.splitlines() if line.startswith("branch.0"))
    assert "kfac_rp sampled" in row


def test_the_derivation_names_each_layers_method(tmp_path: Path) -> None:
    x = torch.zeros(2, 5)
    trainer = gncompile.compile(mlp(5, 6, 4, 3), "mse", x, MIXED)
    assert "by empirical" in trainer.explain("0")
    assert "by kflr" in trainer.explain("2")
    assert "by kfra" in trainer.explain("4")
    pages = {page.name: page.read_text() for page in trainer.report(tmp_path)}
    assert "kflr of 2" in pages["index.html"]
    nodes = trainer.traced.graph.layers
    rules = {
        layer: next(
            page for name, page in pages.items() if name.endswith(f"-{node.node.name}.html")
        )
        for layer, node in nodes.items()
    }
    assert "block passed back" in rules["4"]
    assert "columns passed back" not in rules["4"]
    assert "columns passed back" in rules["2"]
    assert "block passed back" not in rules["2"]


# --- what is saved ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", {"*": "kfra", "0": "kfac_rp"}])
def test_training_resumes_bit_for_bit(tmp_path: Path, method: str | dict[str, str]) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(32, 5), torch.randn(32, 3)
    trainer = gncompile.compile(mlp(5, 6, 4, 3), "mse", x, method)
    for _ in range(3):
        trainer.step(x, y)
    trainer.save(tmp_path / "a.safetensors")
    resumed = Trainer.resume(tmp_path / "a.safetensors", mlp(5, 6, 4, 3))
    assert resumed.settings == trainer.settings
    assert resumed.program.methods == trainer.program.methods
    assert [trainer.step(x, y) for _ in range(3)] == [resumed.step(x, y) for _ in range(3)]


def test_a_checkpoint_of_other_methods_is_refused(tmp_path: Path) -> None:
    trainer = gncompile.compile(mlp(5, 6, 4, 3), "mse", torch.zeros(2, 5), MIXED)
    other = gncompile.compile(mlp(5, 6, 4, 3), "mse", torch.zeros(2, 5), "kfac")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        other.load_state_dict(trainer.state_dict())


@pytest.mark.parametrize(
    "line", ['method = "auto"', 'method = { "*" = "kfra", "layer1" = "kfac" }']
)
def test_model_files_take_both(tmp_path: Path, line: str) -> None:
    path = tmp_path / "net.toml"
    path.write_text(MODEL_FILE.format(line=line))
    trainer = compile_file(load_model_file(path))
    methods = trainer.program.methods
    assert set(methods.values()) == ({"kflr"} if "auto" in line else {"kfra", "kfac"})


MODEL_FILE = """
[model]
name = "small"

[data]
name = "curves"
train = 10
validation = 10

[network]
layers = [784, 20, 2]
transfer = "tanh"

[loss]
name = "mse"

[training]
{line}
updates = 2
"""


def test_factors_solve_for_their_own_dtype_only() -> None:
    x = torch.randn(8, 3)
    factors = gncompile.curvature(torch.nn.Linear(3, 2), "mse", x, torch.randn(8, 2))
    (factor,) = factors.values()
    with pytest.raises(gncompile.errors.CompileError, match="float64.*are torch.float32"):
        factor.solve(torch.randn(2, 4, dtype=torch.float64), damping=0.1)
