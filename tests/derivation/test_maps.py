"""Maps of every sample that mix features: against torch's own, autograd, and brute force over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import oracles
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, assert_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import congruence, per_sample_jacobian
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gncompile
import gncompile.derivation.node_rules  # declares the rules
from gncompile.derivation.forward import Forward
from gncompile.errors import CompileError
from gncompile.frontends import trace
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Op, Output
from gncompile.graph.normalise import Centre, Normalise
from gncompile.graph.softmax import Softmax
from gncompile.losses import resolve_loss
from gncompile.program import operations as ir
from gncompile.program import specs
from gncompile.program.builder import ProgramBuilder, Value
from gncompile.program.phases import Phase, Stage
from gncompile.runtime.executable import Executable

N, WIDTH = 6, 3
PLACES = ((1, 5), (3, 4), (4, 1), (1, 1), (2, 7))
MAPS: dict[str, Callable[[int], Op]] = {
    "centre": Centre,
    "rms norm": lambda places: Normalise(places, 1e-5),
    "normalise": lambda places: Normalise(places, 1e-12, length=True),
    "normalise, some below the floor": lambda places: Normalise(places, 1.5, length=True),
    "softmax": Softmax,
    "log-softmax": lambda places: Softmax(places, log=True),
}
STRUCTURES = {
    "full": specs.Structure.SYMMETRIC,
    "diagonal": specs.Structure.DIAGONAL,
    "scaled identity": specs.Structure.SCALED_IDENTITY,
}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def graph_of(op: Op, size: int) -> ModelGraph:
    """One node between input and output."""
    nodes = [
        Node("x", Input(0), (), (size,)),
        Node("y", op, ("x",), (size,)),
        Node("output", Output(), ("y",), (size,)),
    ]
    graph = ModelGraph(nodes)
    graph.check()
    return graph


def executed(
    backend: str,
    graph: ModelGraph,
    inputs: tuple[Tensor, ...],
    ask: Callable[[Forward], Mapping[str, Value]],
    states: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The values that ``ask`` emits after the forward pass, ``states`` being there to read."""
    builder = ProgramBuilder((Phase("gradient", Stage.GRADIENT),))
    with builder.phase("gradient"):
        asked = ask(Forward.emit(builder, graph))
    builder.results |= {name: value.name for name, value in asked.items()}
    program = builder.finish()
    x = inputs[0]
    step = Executable(
        program, TracedModel(graph, {}, {}), resolve_loss("mse"),
        backend=backend, dtype=x.dtype, device=x.device,
    )  # fmt: skip
    for key, value in (states or {}).items():
        if key in step.memory.states:
            step.memory.states[key].copy_(value)
    step.load(inputs, torch.zeros_like(x))
    step.run(*program.phases)
    return {name: step.result(name).clone() for name in asked}


@pytest.mark.parametrize(("places", "width"), PLACES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_against_their_jacobians(name: str, places: int, width: int, backend: str) -> None:
    """Value, tangent, vectors, and means over the batch, by the Jacobian of every sample."""
    op, size = MAPS[name](places), places * width
    x, r = normal(0, N, size), normal(1, N, size)
    symmetric, general = normal(2, size, size), normal(3, size, WIDTH)
    matrices = {
        "full": symmetric + symmetric.T,
        "diagonal": normal(4, size),
        "scaled identity": torch.tensor(0.7, dtype=torch.float64),
    }
    each = normal(5, N, size * size)

    def ask(forward: Forward) -> dict[str, Value]:
        builder, node = forward.builder, forward.graph["y"]
        jacobian = forward.rule(node).jacobian(0)
        assert jacobian is not None
        rows = builder.leaf("input", "1", ("N", size))
        found = {
            "value": forward.values["y"],
            "push": jacobian.push(rows, "push"),
            "pull": jacobian.pull(rows, "pull"),
            "half": jacobian.half(builder.state("general", specs.Spec((size, WIDTH))), "half"),
            "each": jacobian.each(
                builder.emit(ir.SampleMatrix(size), builder.leaf("input", "2", ("N", size * size))),
                "each",
            ),
        }
        for key, structure in STRUCTURES.items():
            m = builder.state(key, specs.matrix(structure, size))
            found[key] = jacobian.average(m, jacobian, key)
            found[f"{key} half"] = jacobian.half(m, key)
        return found

    found = executed(
        backend, graph_of(op, size), (x, r, each), ask, {**matrices, "general": general}
    )
    J = per_sample_jacobian(op.plain, x)
    expected = {
        "value": op.plain(x),
        "push": (J @ r[:, :, None])[:, :, 0],
        "pull": (r[:, None, :] @ J)[:, 0],
        "half": J.mean(0).T @ general,
        "each": J.mT @ each.reshape(N, size, size),
    }
    dense = {
        "full": matrices["full"],
        "diagonal": matrices["diagonal"].diag(),
        "scaled identity": 0.7 * torch.eye(size).double(),
    }
    for key, m in dense.items():
        expected[key] = congruence(J, m).mean(0)
        expected[f"{key} half"] = J.mean(0).T @ m
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=1e-12, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}"
        )


# --- whole networks -------------------------------------------------------------------------------

T, E = 3, 4
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, (E,)),
    "layer norm of all": lambda x: F.layer_norm(x, (T, E)),
    "group norm": lambda x: F.group_norm(x.transpose(1, 2), 2).transpose(1, 2),
    "rms norm": lambda x: F.rms_norm(x, (E,), eps=1e-3),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "softmax": lambda x: x.softmax(-1),
    "softmax over tokens": lambda x: x.softmax(1),
    "log-softmax": lambda x: x.log_softmax(-1),
    "tanh": torch.tanh,
    "mean": lambda x: x + x.mean(1, keepdim=True),
    "attention": lambda x: (x @ x.mT / 2).softmax(-1) @ x,
    "gram": lambda x: x + (x.mT @ x).tanh()[:, :T],
}
KFRA = [name for name in STEPS if name not in ("attention", "gram")]


class Mixed(nn.Module):
    """Layers at the places of ``[N, T, E]`` with maps between them, residual ones, and a head."""

    def __init__(self, steps: Sequence[tuple[str, bool, bool]], seed: int) -> None:
        super().__init__()
        self.steps = steps
        self.up = nn.Linear(5, E)
        self.layers = nn.ModuleList(nn.Linear(E, E, bias=False) for _, layer, _ in steps if layer)
        self.down = nn.Linear(T * E, 2)
        generator = torch.Generator().manual_seed(seed)
        for p in self.double().parameters():
            p.data = torch.randn(p.shape, generator=generator).double() / max(p.shape[-1], 2) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        h, layers = self.up(x), iter(self.layers)
        for name, layer, residual in self.steps:
            y = STEPS[name](next(layers)(h) if layer else h)
            h = h + y if residual else y
        z: Tensor = self.down(h.flatten(1))
        return z


def steps_of(names: Sequence[str]) -> st.SearchStrategy[list[tuple[str, bool, bool]]]:
    """Some steps, of which each may have a layer before it and be a residual."""
    one = st.tuples(st.sampled_from(names), st.booleans(), st.booleans())
    return st.lists(one, min_size=1, max_size=4)


@given(steps=steps_of(list(STEPS)), seed=st.integers(0, 99))
@settings(max_examples=5)
def test_gradient_tangent_and_columns_of_mixed_networks(
    steps: list[tuple[str, bool, bool]], seed: int
) -> None:
    model, x, y = Mixed(steps, seed), normal(seed, N, T, 5), normal(seed + 1, N, 2)
    trainer = gncompile.compile(model, "mse", x, "kflr")
    assert_tensors(trainer.gradients(x, y), oracles.gradient(model, "mse", x, y), what="gradient")
    along = {name: torch.ones_like(p) / 3 for name, p in oracles.parameters(model).items()}
    assert_close(trainer.rop(x, along), oracles.directional_output(model, x, along), what="r_z")
    factors = gncompile.curvature(model, "mse", x, y, method="kflr")
    for name, expected in exact_factors(model, x).items():
        assert_close(factors[name].output, expected, what=name)


class Encoder(nn.Module):
    """One encoder layer between two layers, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, E)
        self.positions = nn.Parameter(torch.randn(T, E))
        self.layer = nn.TransformerEncoderLayer(E, 2, 6, dropout=0.0, batch_first=True)
        self.down = nn.Linear(E, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.layer(torch.tanh(self.up(x)) + self.positions)
        z: Tensor = self.down(mixed.mean(1))
        return z


def test_encoder_layer_is_compiled_as_autograd_derives_it(backend: str) -> None:
    model, x, y = Encoder().double(), normal(0, N, T, 5), normal(1, N, 2)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)  # off ones and zeros
    trainer = gncompile.compile(model, "mse", x, "kfac_rp", backend=backend)
    assert_tensors(trainer.gradients(x, y), oracles.gradient(model, "mse", x, y), what="gradient")
    along = {name: torch.ones_like(p) / 3 for name, p in oracles.parameters(model).items()}
    with sdpa_kernel(SDPBackend.MATH):  # torch's other kernels have no forward-mode derivative
        expected = oracles.directional_output(model, x, along)
    assert_close(trainer.rop(x, along), expected, what="r_z")


def exact_factors(model: Mixed, x: Tensor) -> dict[str, Tensor]:
    """``E[J_nsᵀ J_ns]``, the mean over samples and places of every layer, for the squared error."""
    found = {}
    for name, layer in oracles.linear_layers(model).items():
        places = () if name == "down" else (T,)
        zero = x.new_zeros(len(x), *places, layer.out_features)

        def shifted(e: Tensor, layer: nn.Linear = layer) -> Tensor:
            with oracles.perturbed(layer, e):
                return model(x)  # type: ignore[no-any-return]

        J = oracles.per_sample_jacobian(shifted, zero).reshape(len(x), 2, -1, layer.out_features)
        found[name] = torch.einsum("nksi,nksj->ij", J, J) / (len(x) * J.shape[2])
    return found


@given(steps=steps_of(KFRA), seed=st.integers(0, 99))
@settings(max_examples=6)
def test_kfra_is_exact_for_one_sample(steps: list[tuple[str, bool, bool]], seed: int) -> None:
    model, x, y = Mixed(steps, seed), normal(seed, 1, T, 5), normal(seed + 1, 1, 2)
    factors = gncompile.curvature(model, "mse", x, y, method="kfra")
    for name, expected in exact_factors(model, x).items():
        assert_close(factors[name].output, expected, what=name)


def test_kfra_stops_at_a_product_of_activations() -> None:
    model = Mixed([("attention", True, False)], 0)
    with pytest.raises(CompileError, match="nodes of kind Bilinear have none") as caught:
        gncompile.curvature(model, "mse", normal(0, N, T, 5), normal(1, N, 2), method="kfra")
    assert "kflr" in str(caught.value)


# --- rounding -------------------------------------------------------------------------------------

HARD: dict[str, Tensor] = {
    "constant rows": torch.tensor([[3.7], [-1e4], [0.0], [1e-20]]).expand(4, 7),
    "far from zero": 1e4 + torch.linspace(-1, 1, 28).reshape(4, 7),
    "huge": 1e15 * torch.linspace(-3, 1, 28).reshape(4, 7),
    "tiny": 1e-15 * torch.linspace(-3, 1, 28).reshape(4, 7),
    "one large": torch.eye(4, 7) * 88.0,
}
ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[1:], eps=1e-6),
    "normalize": lambda x: F.normalize(x, dim=1),
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: x.log_softmax(1),
}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", ROUNDED)
def test_values_in_float32_are_as_near_as_torchs(name: str, backend: str) -> None:
    """To the float64 values of the same numbers; torch's own error, and a few roundings, are the scale."""
    function = ROUNDED[name]
    graph = trace(Applied(function), torch.zeros(2, 7)).graph
    for case, x in HARD.items():
        exact = function(x.double())

        def ask(forward: Forward) -> dict[str, Value]:
            return {"value": forward.output}

        found = executed(backend, graph, (x,), ask)["value"].double()
        own = (function(x).double() - exact).abs().max()
        allowed = 4 * own + 16 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (found - exact).abs().max() <= allowed, case
