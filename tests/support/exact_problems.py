"""Problems for the exact solver, its direction by a compiled step, and by torch.func and a dense solve."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import oracles
import torch
from architectures import normal
from comparison import assert_close
from hypothesis import strategies as st
from mixed_networks import mixed_network
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from gncompile.base.settings import Settings
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import resolve_loss
from gncompile.pipeline import step_program
from gncompile.runtime.executable import Executable

FORMS = ("primal", "dual")
LOSSES = ("MSELoss", "bce_with_logits", "cross_entropy", "poisson", "huber")
# Of condition (tr G + λ) / λ up to 1e5, float64 leaves 1e-10 of a solution's scale.
EXACT = 1e-9


class Dense:
    """G of the last samples of a batch, and ∇ of all of it, as torch.func makes them."""

    def __init__(self, model: nn.Module, loss: str, x: Tensor, y: Tensor, last: int) -> None:
        self.at = oracles.parameters(model)
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        argument = EVERY_LOSS[loss].argument
        gradient = oracles.gradient(model, argument, x, y)
        apart = copy.deepcopy(model)  # torch.func leaves its tensors in a module called twice
        x, y = x[-last:], y[-last:]
        j = jacrev(lambda p: functional_call(apart, p, (x,)))(self.at)
        self.jacobian = torch.cat([j[name].flatten(2) for name in self.names], dim=2)
        self.hessian = oracles.output_hessian(argument, model(x).detach(), y)
        sides = self.jacobian, self.hessian, self.jacobian
        self.g = torch.einsum("nkp,nkl,nlq->pq", *sides) / last
        self.gradient = self.flat(gradient)

    def flat(self, by_name: dict[str, Tensor]) -> Tensor:
        """The parameters' parts as a vector."""
        return torch.cat([by_name[name].flatten() for name in self.names])

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector's parts in the parameters' shapes."""
        parts = flat.split([self.at[name].numel() for name in self.names])
        return {n: part.view_as(self.at[n]) for n, part in zip(self.names, parts, strict=True)}

    def system(
        self, damping: float, l2: object = 0.0, scaled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """``G + λ D + η`` and ``∇ + η θ``; D is 1, or diag(G) with 1 for 0."""
        options = Settings.from_options(l2=l2)
        etas = {name: torch.full_like(self.at[name], options.l2_of(name)) for name in self.names}
        eta, diagonal = self.flat(etas), self.g.diagonal()
        scale = torch.where(diagonal > 0, diagonal, 1.0) if scaled else torch.ones_like(eta)
        slope = self.gradient + eta * self.flat(self.at)
        return self.g + torch.diag(eta + damping * scale), slope

    def slope_of(self, change: Tensor) -> Tensor:
        """``(1/N) Jᵀ 𝓗 change`` of a change of the outputs ``[N, K]``."""
        operands = self.jacobian, self.hessian, change
        return torch.einsum("nkp,nkl,nl->p", *operands) / len(change)

    def solve(
        self, damping: float, l2: object = 0.0, blocks: Sequence[Sequence[str]] | None = None
    ) -> dict[str, Tensor]:
        """``−(G + λ + η)⁻¹ ∇`` in every block of parameters, by name."""
        matrix, slope = self.system(damping, l2)
        owner = dict.fromkeys(self.names, 0)
        for number, block in enumerate(blocks or []):
            owner |= dict.fromkeys(block, number)
        block = self.flat({n: torch.full_like(self.at[n], owner[n]) for n in self.names})
        return self.by_name(-torch.linalg.solve(matrix * (block[:, None] == block), slope))


def dense(
    model: nn.Module, loss: str, x: Tensor, y: Tensor, damping: float, l2: object,
    scaled: bool = False, change: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """``−(G + λ D + η)⁻¹ ∇`` by parameter name, by torch.func; D is 1, or diag(G) with 1 for 0.

    With a ``change`` of the outputs ``[N, K]`` ∇ is ``(1/N) Jᵀ 𝓗 change``.
    """
    of = Dense(model, loss, x, y, len(x))
    matrix, slope = of.system(damping, l2, scaled)
    if change is not None:
        slope = of.slope_of(change)
    return of.by_name(-torch.linalg.solve(matrix, slope))


def direction(
    traced: TracedModel, loss: str, x: Tensor, y: Tensor, damping: float, form: str,
    backend: str = "torch", l2: object = 0.0, **more: object,
) -> dict[str, Tensor]:  # fmt: skip
    """Δ of a compiled step by parameter name, straight unless an ``acceleration`` is given.

    The parameters stay as they are.
    """
    formula = resolve_loss(EVERY_LOSS[loss].argument)
    given = {"acceleration": None, "damping": damping, "l2": l2, **more}
    options = Settings.from_options(solver="exact", exact_form=form, **given)
    program = step_program(traced.graph, formula, options)
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    run = Executable(program, traced, formula, backend=backend, **place)
    run.load((x.flatten(1).double(),), formula.rows(y, (traced.graph.output.size,), torch.float64))
    solved = ("rows_begin", "rows", "direction", "quadratic", "acceleration")
    wanted = ("gradient", *solved, "update")
    before = {name: p.detach().clone() for name, p in traced.parameters.items()}
    run.run(*(phase for phase in wanted if phase in program.phases))
    states = run.memory.states
    with torch.no_grad():
        for name, p in traced.parameters.items():
            p.copy_(before[name])
    found = {}
    for name, layer in traced.graph.layers.items():
        step = states[f"step.{name}"] / states["step_sizes"][-1]
        found |= {key: part.reshape(before[key].shape) for key, part in layer.split(step).items()}
    return found


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, what: str
) -> None:
    """As vectors: a parameter that hardly moves has the rounding of the others."""
    flat = [torch.cat([d[name].flatten() for name in sorted(found)]) for d in (found, expected)]
    assert_close(*flat, rtol, what)


@st.composite
def problems(draw: st.DrawFn) -> tuple[nn.Module, str, Tensor, Tensor, object]:
    """A network of any kind of node, a loss, a batch and L2 coefficients."""
    rng = draw(st.randoms(use_true_random=False, note_method_calls=False))
    torch.manual_seed(0)
    mixed = mixed_network(rng, draw(st.integers(1, 3)), draw(st.integers(2, 3)))
    model, generator = mixed.model.eval(), torch.Generator().manual_seed(draw(st.integers(0, 99)))
    loss, samples = draw(st.sampled_from(LOSSES)), draw(st.integers(1, 4))
    x = mixed.inputs(samples, generator)
    with torch.no_grad():
        outputs = model(x).shape[1]
    y = EVERY_LOSS[loss].targets(generator, samples, outputs)
    l2 = draw(st.sampled_from((0.0, 0.1, {"*weight": 0.05}, {"*bias": 0.2, "*weight": 0.03})))
    return model, loss, x, y, l2


class Tied(nn.Module):
    """An autoencoder with one matrix, called twice the right way round and once transposed, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.scale = nn.Linear(3, 3), nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.scale * torch.tanh(self.code(torch.tanh(self.code(x))))
        return F.linear(h, self.code.weight.t())


SHARED = {
    "tied": Tied,
    "groups": lambda: nn.Sequential(
        nn.Conv1d(2, 4, 2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 2, 2, groups=2, bias=False),
        nn.Flatten(),
    ),
    "embedding": lambda: nn.Sequential(
        nn.Embedding(4, 2, padding_idx=1), nn.Flatten(), nn.Linear(6, 2)
    ),
}


def shared(name: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A problem of which a weight has several uses, or lies transposed."""
    torch.manual_seed(0)
    model, generator = SHARED[name]().double(), torch.Generator().manual_seed(1)
    x = normal(generator, 4, *((2, 4) if name == "groups" else (3,)))
    x = torch.randint(4, (4, 3), generator=generator) if name == "embedding" else x
    return model, x, normal(generator, 4, model(x).shape[1]), "mse"


def small(name: str, seed: int = 1) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A small problem of every kind: name, samples, hidden units, outputs, loss."""
    samples, hidden, outputs, loss = {
        "more parameters": (6, 8, 2, "mse"),
        "fewer parameters": (40, 3, 2, "mse"),
        "one sample": (1, 5, 3, "cross_entropy"),
        "dead units": (8, 6, 1, "mse"),
        "counts": (5, 4, 2, "poisson"),
    }[name]
    torch.manual_seed(seed)
    act = nn.ReLU() if name == "dead units" else nn.Tanh()
    model = nn.Sequential(nn.Linear(3, hidden), act, nn.Linear(hidden, outputs)).double()
    if name == "dead units":
        with torch.no_grad():
            model[0].bias[:3] -= 100
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, samples, 3)
    return model, x, EVERY_LOSS[loss].targets(generator, samples, outputs), loss


def curve() -> tuple[nn.Module, Tensor, Tensor]:
    """Thirty samples of a curve that four hidden units fit but for its noise."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    noise = normal(torch.Generator().manual_seed(0), 30, 1)
    return model, x, torch.sin(3 * x) + 0.1 * noise
