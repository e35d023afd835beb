"""Maps of every sample that mix features, at places: against torch's own, autograd, and brute force over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from oracles import congruence, per_sample_jacobian
from torch import Tensor

import gncompile.derivation.node_rules  # noqa: F401  # declares the rules
from gncompile.derivation.forward import Forward
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


@pytest.mark.parametrize("places, width", PLACES)
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

    found = executed(backend, graph_of(op, size), (x, r, each), ask, {**matrices, "general": general})
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
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
