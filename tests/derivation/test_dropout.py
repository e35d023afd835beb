"""Dropout in training, against the module that has the drawn masks written into it, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gncompile.base.settings import Settings
from gncompile.errors import TraceError
from gncompile.frontends.dropout import WithoutDropout
from gncompile.frontends.torch_export import trace
from gncompile.graph.dropout import Mask, without_dropout
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare, quadratic_program, step_program
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable

N, INPUTS, LOSS = 40, 5, "bce_with_logits"


class Net(nn.Module):
    """Every kind of dropout; ``first`` is read twice, and ``second`` joins it after a mask of its own."""

    def __init__(self, masks: Mapping[str, tuple[Tensor, Tensor | float]] | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 12), nn.Linear(12, 12)
        self.third, self.last = nn.Linear(12, 6), nn.Linear(6, 2)
        self.dropout = nn.Dropout(0.4)
        self.alpha, self.channels = nn.AlphaDropout(0.25), nn.Dropout1d(0.5)
        self.masks = masks

    def drop(self, name: str, x: Tensor) -> Tensor:
        if self.masks is None:
            dropped: Tensor = getattr(self, name)(x)
            return dropped
        m, s = self.masks[name]
        return m * x + s

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop("dropout", torch.tanh(self.first(x)))
        h = h + self.drop("alpha", functional.selu(self.second(h)))
        rows = functional.softplus(self.third(h)).unflatten(1, (3, 2))
        z: Tensor = self.last(self.drop("channels", rows).flatten(1))
        return z


def setting() -> tuple[Net, TracedModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(N, INPUTS).double(), torch.rand(N, 2).double()
    return model, trace(model, x, passes=prepare), x, y


def executable(program: StepProgram, traced: TracedModel, x: Tensor, y: Tensor) -> Executable:
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    found = Executable(program, traced, resolve_loss(LOSS), backend="reference", seed=3, **place)
    found.load((x,), y)
    return found


def with_masks(model: Net, run: Executable) -> Net:
    """The module that the masks of ``run`` make of ``model``, with the same parameters."""
    masks = {
        node: run.step.value(value)
        for node, value in run.program.nodes.items()
        if "mask" in node or "shift" in node
    }
    fixed = Net(
        {
            "dropout": (masks["dropout_mask"], 0.0),
            "alpha": (masks["alpha_mask"], masks["alpha_shift"]),
            "channels": (masks["channels_mask"].unflatten(1, (3, 2)), 0.0),
        }
    ).double()
    fixed.load_state_dict(model.state_dict())
    return fixed


def joined(by_name: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = [name.removesuffix(".weight") for name in by_name if name.endswith(".weight")]
    return {
        n: torch.cat([by_name[f"{n}.weight"], by_name[f"{n}.bias"][:, None]], 1) for n in layers
    }


@pytest.mark.parametrize("dropout", [True, False])
def test_gradient(dropout: bool) -> None:
    model, traced, x, y = setting()
    run = executable(step_program(traced.graph, resolve_loss(LOSS), Settings()), traced, x, y)
    run.run("dropout", *(() if dropout else ("no_dropout",)), "gradient")
    expected = with_masks(model, run) if dropout else model.eval()
    for layer, gradient in joined(oracles.gradient(expected, LOSS, x, y)).items():
        torch.testing.assert_close(run.result(f"grad.{layer}"), gradient)


def test_factors_of_the_same_masks() -> None:
    model, traced, x, y = setting()
    run = executable(factor_program(traced.graph, resolve_loss(LOSS), "kflr"), traced, x, y)
    run.run("dropout", "gradient", "curvature", "columns_begin", "columns")
    fixed = with_masks(model, run)
    for layer, expected in oracles.ggn(fixed, LOSS, x, y).items():
        torch.testing.assert_close(run.result(f"G.{layer}"), expected)
    for layer, expected in oracles.input_moments(fixed, x).items():
        torch.testing.assert_close(run.result(f"Q.{layer}"), expected)


def test_kfra_averages_masked_slopes() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(INPUTS, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).double()  # fmt: skip
    x, y = torch.randn(N, INPUTS).double(), torch.rand(N, 2).double()
    traced = trace(model, x, passes=prepare)
    run = executable(factor_program(traced.graph, resolve_loss(LOSS), "kfra"), traced, x, y)
    run.run("dropout", "gradient", "curvature")
    m = [run.step.value(run.program.nodes[f"layer_{i}_mask"]) for i in (2, 4)]
    functions = [lambda h: m[0] * torch.tanh(h), lambda h: m[1] * h, lambda h: h]
    layers = [model[i] for i in (0, 3, 5)]
    expected = oracles.kfra_chain(layers, functions, LOSS, x, y)
    for layer, block in zip(("0", "3", "5"), expected, strict=True):
        found = run.result(f"G.{layer}")
        torch.testing.assert_close(found.diag() if found.dim() == 1 else found, block)


def test_quadratic_model_of_the_same_masks() -> None:
    model, traced, x, y = setting()
    program = quadratic_program(traced.graph, resolve_loss(LOSS), Settings(l2=0.0), 2)
    run = executable(program, traced, x, y)
    directions = [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(2)]
    for i, direction in enumerate(directions):
        for layer, value in joined(direction).items():
            run.memory.states[f"direction{i}.{layer}"].copy_(value)
    run.memory.states["damping"].zero_()
    run.run("dropout", "gradient", "quadratic")
    m, b = oracles.gauss_newton_products(with_masks(model, run), LOSS, x, y, directions)
    for i in range(2):
        torch.testing.assert_close(run.result(f"b.{i}"), b[i])
        for j in range(2):
            torch.testing.assert_close(run.result(f"M.{i}.{j}"), m[i, j])


def test_a_step_is_judged_on_its_own_masks() -> None:
    """At other parameters, on all of the batch and on the share that the factors are made of."""
    model, traced, x, y = setting()
    program = step_program(traced.graph, resolve_loss(LOSS), Settings(average=0.9))
    run = executable(program, traced, x, y)
    run.run("dropout", "gradient")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    fixed = with_masks(model, run)
    run.run("predict", "evaluate")
    expected = oracles.mean_loss(fixed, LOSS, x, y)
    torch.testing.assert_close(run.result("evaluated_loss"), expected)
    run.run("no_dropout", "predict", "evaluate")
    expected = oracles.mean_loss(model.eval(), LOSS, x, y)
    torch.testing.assert_close(run.result("evaluated_loss"), expected)


def test_shares_of_the_batch_see_their_part_of_the_masks() -> None:
    model, traced, x, y = setting()
    program = step_program(traced.graph, resolve_loss(LOSS), Settings())
    rows = {"F": 15, "Q": 9, "L": 6}
    run = Executable(
        program, traced, resolve_loss(LOSS), backend="reference", seed=3, rows=lambda batch: rows,
        dtype=torch.float64, device=torch.device("cpu"),
    )  # fmt: skip
    run.load((x,), y)
    run.run("dropout", "gradient", "trial")
    fixed = with_masks(model, run)
    assert fixed.masks is not None
    fixed.masks = {
        name: (m[-15:], s[-15:] if isinstance(s, Tensor) else s)
        for name, (m, s) in fixed.masks.items()
    }
    expected = oracles.mean_loss(fixed, LOSS, x[-15:], y[-15:])
    torch.testing.assert_close(run.step.value("loss_trial"), expected)


# --- what is drawn --------------------------------------------------------------------------------


def masks_of(module: nn.Module, *shape: int) -> list[Tensor]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), math.prod(shape)))
    network.extend([nn.Unflatten(1, shape), module, nn.Flatten(), nn.Linear(math.prod(shape), 1)])
    x = torch.zeros(4000, *shape).double()
    traced = trace(network.double(), x[:2], passes=prepare)
    program = step_program(traced.graph, resolve_loss("mse"), Settings())
    run = executable(program, traced, x.flatten(1), torch.zeros(4000, 1).double())
    run.run("dropout")
    nodes = [node.name for node in traced.graph if isinstance(node.op, Mask)]
    return [run.step.value(program.nodes[name]).unflatten(1, shape) for name in nodes]


def zero_rate(m: Tensor, p: float) -> None:
    """Each entry is zero with probability p, within 5 standard errors of independent draws."""
    error = 5 * math.sqrt(p * (1 - p) / m.numel())
    assert abs(float((m == 0).double().mean()) - p) < error


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_masks_of_dropout(p: float) -> None:
    (m,) = masks_of(nn.Dropout(p), 3, 2)
    torch.testing.assert_close(m[m != 0], torch.full_like(m[m != 0], 1 / (1 - p)))
    zero_rate(m, p)
    both = (m[:, :, :1] == 0) & (m[:, :, 1:] == 0)  # neighbours are independent
    assert abs(float(both.double().mean()) - p**2) < 5 * p / math.sqrt(both.numel())


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_one_draw_a_channel(kind: type[nn.Dropout2d]) -> None:
    places = {nn.Dropout1d: (4,), nn.Dropout2d: (2, 2), nn.Dropout3d: (2, 1, 2)}[kind]
    (m,) = masks_of(kind(0.3), 3, *places)
    m = m.flatten(2)
    assert bool((m == m[..., :1]).all())
    zero_rate(m[..., 0], 0.3)


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_alpha_dropout_keeps_mean_and_variance(p: float) -> None:
    m, s = masks_of(nn.AlphaDropout(p), 30)
    zero_rate(m, p)
    x = torch.randn(m.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = m * x + s
    assert abs(float(y.mean())) < 0.02
    assert abs(float(y.var()) - 1) < 0.03
    kept = m != 0
    torch.manual_seed(0)
    torchs = functional.alpha_dropout(torch.ones(1000).double(), p, training=True).unique()
    found = (m + s)[kept][0], (m + s)[~kept][0]
    torch.testing.assert_close(torch.stack(found).sort().values, torchs.sort().values)


def test_masks_of_one_shape_are_different_draws() -> None:
    first, second = masks_of(nn.Sequential(nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.5)), 10)
    both = float(((first == 0) & (second == 0)).double().mean())
    assert abs(both - 0.25) < 0.02


# --- what is compiled -----------------------------------------------------------------------------


class Around(nn.Module):
    """``function`` between two layers."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(4, 4), nn.Linear(4, 2), function
        self.register_buffer("v", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.two(self.function(self, self.one(x)))  # type: ignore[operator]
        return z


DRAWN = {
    "functional": lambda m, h: functional.dropout(h, 0.5),
    "of its mode": lambda m, h: functional.dropout(h, 0.5, m.training),
    "in place": lambda m, h: functional.dropout(h + 1, 0.5, inplace=True),
    "read after": lambda m, h: (torch.dropout_(h, 0.5, True), torch.tanh(h))[1],
    "native": lambda m, h: torch.native_dropout(h, 0.5, True)[0],
    "alpha in place": lambda m, h: functional.alpha_dropout(h + 1, 0.5, True, inplace=True),
    "of an input's function": lambda m, h: functional.feature_alpha_dropout(h, 0.5, True),
}


@pytest.mark.parametrize("function", DRAWN.values(), ids=DRAWN.keys())
def test_forms_of_dropout(function: object) -> None:
    module = Around(function).double()
    traced = trace(module, torch.ones(3, 4).double(), passes=prepare)
    assert any(isinstance(node.op, Mask) for node in traced.graph)
    rest = without_dropout(traced.graph)
    rest.check()
    assert not any(isinstance(node.op, Mask) for node in rest)


def test_nothing_is_dropped() -> None:
    module = Around(lambda m, h: functional.dropout(torch.tanh(h), 0.0)).double()
    graph = trace(module, torch.ones(3, 4).double(), passes=prepare).graph
    assert not any(isinstance(node.op, Mask) for node in graph)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout])
def test_all_is_dropped(kind: type[nn.Dropout]) -> None:
    (m,) = masks_of(kind(1.0), 5)
    assert not bool(m.any())


def test_dropout_of_the_output() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout(0.2)).double()
    graph = trace(module, torch.ones(3, 4).double(), passes=prepare).graph
    assert sum(isinstance(node.op, Mask) for node in graph) == 2


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (
            lambda m, h: h * functional.dropout(m.v, 0.5),
            "dropout in training mode of what does not",
        ),
        (
            lambda m, h: h * torch.native_dropout(h, 0.5, True)[1],
            "native_dropout .* random numbers",
        ),
        (
            lambda m, h: functional.dropout1d(h, 0.5),
            "mixes samples|one draw would be that of all samples",
        ),
    ],
)
def test_refused(function: object, found: str) -> None:
    with pytest.raises(TraceError, match=found):
        trace(Around(function).double(), torch.ones(3, 4).double())


QUERIES = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
ATTENTION = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
CALLS = {
    "encoder layer": nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True),
    "attention": lambda x: ATTENTION(x, x, x)[0],
    "scaled product": lambda x: functional.scaled_dot_product_attention(x, x, x, None, 0.5, True),
    "native": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "in place": lambda x: functional.dropout(x.clone(), 0.5, inplace=True),
    "channels": lambda x: nn.FeatureAlphaDropout(0.5)(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_torchs_functions_without_dropout(call: Callable[[Tensor], Tensor]) -> None:
    with WithoutDropout():
        first, second = call(QUERIES[0]), call(QUERIES[0])
    assert torch.equal(first, second)
    assert not torch.equal(first, call(QUERIES[0]))
