"""Networks of convolutions and pooling against ``torch.func``: gradient, tangent, factors by all methods.

Ḡ and Q are written out from their definition (*expand*): sums over samples and places, of vectors from
Jacobians of the module itself, and of patches by ``torch.nn.functional.unfold``.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable

import pytest
import torch
from comparison import assert_close
from oracles import (
    congruence,
    directional_output,
    mean_loss,
    output_hessian,
    per_sample_jacobian,
    perturbed,
)
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile
from gncompile.base.settings import Settings
from gncompile.derivation.batch_gradient import BatchGradient
from gncompile.frontends.torch_export import trace
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare, tangent_program
from gncompile.program.builder import ProgramBuilder
from gncompile.program.phases import step_phases
from gncompile.program.step_program import StepProgram
from gncompile.runtime.executable import Executable

NAME = "bce_with_logits"
LOSS = resolve_loss(NAME)
N, K = 3, 2


class Reused(nn.Module):
    """A convolution applied twice, with a way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, K)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.conv(x).tanh()
        return self.head((h + self.conv(h).sigmoid()).mean(dim=(2, 3)))


class Beside(nn.Module):
    """A maximum beside what it is the maximum of: blocks between tensors of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(8 + 18, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head(torch.cat([F.max_pool2d(h, 2, 1).flatten(1), h.tanh().flatten(1)], dim=1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "lenet": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2),
            nn.Sigmoid(), nn.Flatten(), nn.Linear(6, K),
        ),
        (1, 5, 6),
    ),
    "strided and dilated": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=1, dilation=(1, 2), bias=False),
            nn.Tanh(), nn.MaxPool2d(3, stride=1, padding=1), nn.AvgPool2d(2, ceil_mode=True),
            nn.Flatten(), nn.LazyLinear(K),
        ),
        (2, 4, 5),
    ),
    "groups": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=4, padding=1),
            nn.Tanh(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, K),
        ),
        (2, 3, 4),
    ),
    "padded": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 2, 2, padding="same"), nn.Tanh(),
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Tanh(),
            nn.Conv2d(2, 1, 3, padding=1, padding_mode="replicate"), nn.Flatten(), nn.Linear(9, K),
        ),
        (1, 3, 3),
    ),
    "frozen": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 3, 2).requires_grad_(False), nn.Tanh(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, K),
        ),
        (1, 6, 6),
    ),
    "a line": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.Tanh(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 2, stride=2),
            nn.Flatten(), nn.LazyLinear(K),
        ),
        (2, 11),
    ),
    "a volume": lambda: (
        nn.Sequential(
            nn.Conv3d(1, 2, 2, padding=1), nn.Tanh(), nn.AvgPool3d(2), nn.Flatten(), nn.LazyLinear(K)
        ),
        (1, 3, 2, 3),
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1), nn.Tanh(),
            nn.ConvTranspose2d(2, 2, 2, groups=2, bias=False), nn.Tanh(), nn.MaxPool2d(2),
            nn.Flatten(), nn.LazyLinear(K),
        ),
        (2, 2, 3),
    ),
    "one point": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Flatten(), nn.Linear(3, K)),
        (2, 1, 1),
    ),
    "reused": lambda: (Reused(), (2, 3, 3)),
    "beside": lambda: (Beside(), (1, 4, 4)),
}  # fmt: skip


@functools.cache
def network(name: str, samples: int = N) -> tuple[nn.Module, TracedModel, Tensor, Tensor]:
    torch.manual_seed(0)
    module, shape = NETWORKS[name]()
    x, y = torch.randn(samples, *shape), torch.rand(samples, K)
    module(x)  # lazy layers take their size
    module, x, y = module.double(), x.double(), y.double()
    return module, trace(module, x, passes=prepare), x, y


def executed(
    program: StepProgram, traced: TracedModel, x: Tensor, y: Tensor, backend: str = "torch"
) -> Executable:
    step = Executable(
        program, traced, LOSS, dtype=torch.float64, device=torch.device("cpu"), backend=backend
    )
    for key in step.memory.states:
        if key.startswith("direction0."):
            step.memory.states[key].copy_(direction(step.memory.states[key].shape))
    step.load((x.flatten(1),), y)
    step.run(*step.program.phases)
    return step


def direction(shape: torch.Size) -> Tensor:
    return torch.sin(torch.arange(shape.numel()).double()).reshape(shape)


BACKENDS = [
    *(pytest.param(name, "torch", id=name) for name in NETWORKS),
    *(pytest.param(name, "reference", id=f"{name}, reference") for name in ("lenet", "transposed")),
]


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_the_gradient_is_that_of_autograd(name: str, backend: str) -> None:
    module, traced, x, y = network(name)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(mean_loss(module, NAME, x, y), list(trained.values()))
    exact = dict(zip(trained, found, strict=True))
    builder = ProgramBuilder(step_phases())
    gradients = BatchGradient(builder, traced.graph, LOSS).gradients
    builder.results |= {layer: value.name for layer, value in gradients.items()}
    step = executed(builder.finish(), traced, x, y, backend)
    for layer, record in traced.graph.layers.items():
        assert_close(step.result(layer), record.joined(exact), what=layer)


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_the_tangent_is_that_of_torch(name: str, backend: str) -> None:
    module, traced, x, y = network(name)
    step = executed(tangent_program(traced.graph), traced, x, y, backend)
    shapes = dict(module.named_parameters())
    along: dict[str, Tensor] = {}
    for record in traced.graph.layers.values():
        parts = record.split(direction(torch.Size(record.shape)))
        along |= {name: part.reshape(shapes[name].shape) for name, part in parts.items()}
    assert_close(step.result("tangent"), directional_output(module, x, along))


def expected(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Ḡ and Q of every convolution that is trained, from their definition."""
    top = output_hessian(NAME, module(x), y)
    found = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or not layer.weight.requires_grad:
            continue
        seen: dict[str, Tensor] = {}
        hook = layer.register_forward_hook(lambda _, a, b, seen=seen: seen.update(x=a[0], y=b))
        module(x)
        hook.remove()
        inputs, outputs = seen["x"].detach(), seen["y"].detach()

        def shifted(
            e: Tensor, layer: nn.Module = layer, shape: torch.Size = outputs.shape
        ) -> Tensor:
            with perturbed(layer, e.reshape(shape)):
                return module(x)  # type: ignore[no-any-return]

        jacobian = per_sample_jacobian(shifted, torch.zeros_like(outputs).flatten(1))
        root = torch.linalg.cholesky(top).mT @ jacobian  # 𝓗 = R Rᵀ, columns Rᵀ J
        columns = root.unflatten(-1, outputs.shape[1:])
        found[name] = (
            _transposed(layer, inputs, columns)
            if isinstance(layer, nn.ConvTranspose2d)
            else _direct(layer, inputs, columns)
        )
    return found


def unfolded(layer: nn.Conv2d | nn.ConvTranspose2d, grids: Tensor) -> Tensor:
    """Patches ``[B, groups, T, columns]``, padded as the layer pads."""
    padding = layer.padding
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        grids, padding = F.pad(grids, (1, 1, 1, 1), mode=layer.padding_mode), 0
    elif padding == "same":
        grids, padding = F.pad(grids, (0, 1, 0, 1)), 0
    by_group = grids.unflatten(1, (layer.groups, -1)).flatten(0, 1)
    patches = F.unfold(by_group, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.unflatten(0, (-1, layer.groups)).mT


def _direct(layer: nn.Conv2d, inputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    g, n = layer.groups, len(inputs)
    rows = unfolded(layer, inputs)
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
    q = torch.einsum("ngti,ngtj->ij", rows, rows) / n
    c = columns.flatten(-2)  # [N, K, out, T]
    block = torch.einsum("nkit,nkjt->ij", c, c) / n / (g * c.shape[-1])
    group = torch.arange(g).repeat_interleave(len(block) // g)
    return torch.where(group[:, None] == group, block, 0.0), q


def _transposed(
    layer: nn.ConvTranspose2d, inputs: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    g, n = layer.groups, len(inputs)
    rows = inputs.flatten(2)
    q = torch.einsum("nit,njt->ij", rows, rows) / n
    group = torch.arange(g).repeat_interleave(len(q) // g)
    patches = unfolded(layer, columns.flatten(0, 1))  # the convolution that it is the adjoint of
    block = torch.einsum("bgti,bgtj->ij", patches, patches) / n / (g * rows.shape[-1])
    return block, torch.where(group[:, None] == group, q, 0.0)


PLANE = [each for each in BACKENDS if each.values[0] not in ("a line", "a volume", "reused")]


@pytest.mark.parametrize(("name", "backend"), PLANE)
def test_factors_of_columns_are_their_definition(name: str, backend: str) -> None:
    module, traced, x, y = network(name)
    step = executed(factor_program(traced.graph, LOSS, "kflr"), traced, x, y, backend)
    for layer, (g, q) in expected(module, x, y).items():
        assert_close(step.result(f"G.{layer}"), g, what=f"G of {layer}")
        assert_close(step.result(f"Q.{layer}"), q, what=f"Q of {layer}")


@pytest.mark.parametrize("method", ["kfra", "ggn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_exact_is_what_columns_give(name: str, method: str) -> None:
    """KFRA is exact at N = 1; blocks of every sample always are."""
    _, traced, x, y = network(name)
    count = 1 if method == "kfra" else N
    assert_as_columns(traced, x[:count], y[:count], method)


def assert_as_columns(traced: TracedModel, x: Tensor, y: Tensor, method: str) -> None:
    got, exact = (
        executed(factor_program(traced.graph, LOSS, each), traced, x, y)
        for each in (method, "kflr")
    )
    for layer in traced.graph.layers:
        g, expected = got.result(f"G.{layer}"), exact.result(f"G.{layer}")
        full = g if g.shape == expected.shape else torch.diag(g.expand(len(expected)))
        assert_close(full, expected, what=layer)


def test_convolutions_alone_average_exactly() -> None:
    """Deep linear networks: KFRA is KFLR at any N, of sums and averages too."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.AvgPool2d(2, stride=1), nn.ConvTranspose2d(2, 2, 2), nn.Flatten(),
        nn.Linear(18, K),
    ).double()  # fmt: skip
    x, y = torch.randn(N, 1, 4, 4).double(), torch.rand(N, K).double()
    assert_as_columns(trace(module, x, passes=prepare), x, y, "kfra")


def test_the_average_at_a_maximum_is_exact() -> None:
    """``E[J_nᵀ M J_n]`` over samples whose windows are won by different taps, ties among them."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d((2, 3), stride=(2, 1), padding=(1, 0))
    module = nn.Sequential(nn.Conv2d(1, 2, 2), pool, nn.Flatten(), nn.Linear(8, K)).double()
    x, y = torch.randn(5, 1, 4, 5).double().round(), torch.rand(5, K).double()
    traced = trace(module, x, passes=prepare)
    step = executed(factor_program(traced.graph, LOSS, "kfra"), traced, x, y)
    head, h = module[-1].weight.detach(), module[0](x).detach()
    above = congruence(head, output_hessian(NAME, module(x), y).mean(dim=0))
    jacobian = per_sample_jacobian(lambda u: pool(u.reshape(h.shape)).flatten(1), h.flatten(1))
    block = congruence(jacobian, above).mean(dim=0)
    by_place = block.unflatten(0, (2, -1)).unflatten(2, (2, -1))
    assert_close(step.result("G.0"), torch.einsum("itjt->ij", by_place) / h[0, 0].numel())


def test_many_places_need_fewer_samples() -> None:
    """A weight at 64 places has 64 rows of every sample; what the user asks for is taken as it is."""
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten()), torch.zeros(1, 1, 8, 8)
    trainer = gncompile.compile(model, "mse", x, method="kfac_rp")
    assert trainer.settings.factor_samples == 64
    assert trainer.settings.rows(200) == {"F": 64, "Q": 200, "L": 128}
    assert Settings().at_places(63).rows(1000)["F"] == 256
    assert Settings().at_places(64).rows(1000)["F"] == 250
    assert Settings(factor_samples=80).at_places(64).factor_samples == 80


def test_what_a_convolution_brings_is_given_up_and_winners_are_found_once() -> None:
    """Every result that no buffer holds is deleted in its phase, after its last use."""
    model, shape = NETWORKS["lenet"]()
    trainer = gncompile.compile(model, NAME, torch.zeros(1, *shape))
    assert trainer.source_file is not None
    text = trainer.source_file.read_text()
    assert text.count("convolutions.winners(") == 1
    functions = [f for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef)]
    phases = [f for f in functions if f.name != "bind"]
    assert any(isinstance(s, ast.Delete) for f in phases for s in f.body)
    for phase in phases:
        held: set[str] = set()
        for statement in phase.body:
            if isinstance(statement, ast.Assign):
                held |= {t.id for t in statement.targets if isinstance(t, ast.Name)}
            elif isinstance(statement, ast.Delete):
                held -= {t.id for t in statement.targets if isinstance(t, ast.Name)}
        assert not held, phase.name
