"""The exact solver against dense solutions with ``torch.func``, and SciPy's Levenberg-Marquardt."""

from __future__ import annotations

import copy
from pathlib import Path

import oracles
import pytest
import torch
from architectures import normal
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_networks import mixed_network
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import gncompile
from gncompile.base.settings import Settings
from gncompile.errors import BatchError, CompileError, OptionWarning
from gncompile.frontends.torch_export import trace
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import resolve_loss
from gncompile.pipeline import prepare, step_program
from gncompile.runtime.executable import Executable

FORMS = ("primal", "dual")
LOSSES = ("MSELoss", "bce_with_logits", "cross_entropy", "poisson", "huber")
# Of condition (tr G + λ) / λ up to 1e5, float64 leaves 1e-10 of a solution's scale.
EXACT = 1e-9


def dense(
    model: nn.Module, loss: str, x: Tensor, y: Tensor, damping: float, l2: object
) -> dict[str, Tensor]:
    """``−(G + λ + η)⁻¹ ∇`` by parameter name, all formed with torch.func."""
    at = oracles.parameters(model)
    argument = EVERY_LOSS[loss].argument
    z, gradient = model(x).detach(), oracles.gradient(model, argument, x, y)
    apart = copy.deepcopy(model)  # torch.func leaves its tensors in a module that is called twice
    j = jacrev(lambda p: functional_call(apart, p, (x,)))(at)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    flat = torch.cat([j[name].flatten(2) for name in names], dim=2)
    hessian = oracles.output_hessian(argument, z, y)
    g = torch.einsum("nkp,nkl,nlq->pq", flat, hessian, flat) / len(x)
    etas = torch.cat(
        [
            at[name].new_full((at[name].numel(),), Settings.from_options(l2=l2).l2_of(name))
            for name in names
        ]
    )
    theta = torch.cat([at[name].flatten() for name in names])
    slope = torch.cat([gradient[name].flatten() for name in names]) + etas * theta
    delta = -torch.linalg.solve(g + torch.diag(etas + damping), slope)
    parts = delta.split([at[name].numel() for name in names])
    return {name: part.view_as(at[name]) for name, part in zip(names, parts, strict=True)}


def direction(
    traced: TracedModel, loss: str, x: Tensor, y: Tensor, damping: float, form: str,
    backend: str = "torch", l2: object = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Δ of a compiled step by parameter name; the parameters stay as they are."""
    formula = resolve_loss(EVERY_LOSS[loss].argument)
    options = Settings.from_options(solver="exact", exact_form=form, damping=damping, l2=l2)
    program = step_program(traced.graph, formula, options)
    place = {"dtype": torch.float64, "device": torch.device("cpu")}
    run = Executable(program, traced, formula, backend=backend, **place)
    run.load((x.flatten(1).double(),), formula.rows(y, (traced.graph.output.size,), torch.float64))
    wanted = ("gradient", "rows_begin", "rows", "direction", "quadratic", "update")
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


@given(problem=problems())
@settings(max_examples=1)
def test_the_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    expected = dense(model, loss, x, y, 1e-2, l2)
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-2, form, l2=l2)
        assert_same(found, expected, EXACT, f"{form} of {loss}, l2={l2}, in {model}")


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


@pytest.mark.parametrize("name", SHARED)
def test_weights_with_several_uses(name: str) -> None:
    torch.manual_seed(0)
    model, generator = SHARED[name]().double(), torch.Generator().manual_seed(1)
    x = normal(generator, 4, *((2, 4) if name == "groups" else (3,)))
    x = torch.randint(4, (4, 3), generator=generator) if name == "embedding" else x
    y = normal(generator, 4, model(x).shape[1])
    l2 = {"*bias": 0.2, "*weight": 0.03}
    expected, traced = dense(model, "mse", x, y, 1e-2, l2), trace(model, x, passes=prepare)
    for form in FORMS:
        assert_same(direction(traced, "mse", x, y, 1e-2, form, l2=l2), expected, EXACT, form)


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


SMALL = ("more parameters", "fewer parameters", "one sample", "dead units", "counts")


@pytest.mark.parametrize("name", SMALL)
def test_the_forms_and_backends_agree(name: str) -> None:
    model, x, y, loss = small(name)
    expected, traced = dense(model, loss, x, y, 1e-3, 0.0), trace(model, x, passes=prepare)
    for form, backend in (("primal", "torch"), ("dual", "torch"), ("dual", "reference")):
        found = direction(traced, loss, x, y, 1e-3, form, backend)
        assert_same(found, expected, EXACT, f"{form} {backend}")


@pytest.mark.parametrize("name", ["more parameters", "fewer parameters", "dead units"])
def test_dampings_far_below_rounding(name: str) -> None:
    """Without damping it is the pseudo-inverse's step, the least that solves the linear problem best."""
    model, x, y, loss = small(name)
    at, z = oracles.parameters(model), model(x).detach()
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(at)
    rows = torch.cat([jacobian[n].flatten(2) for n in at], dim=2).flatten(0, 1)
    least = -torch.linalg.pinv(rows, rtol=1e-10) @ (z - y).flatten()
    parts = least.split([p.numel() for p in at.values()])
    expected = {n: part.view_as(p) for (n, p), part in zip(at.items(), parts, strict=True)}
    traced = trace(model, x, passes=prepare)
    for form in FORMS:
        found = direction(traced, loss, x, y, 1e-25, form)
        # the condition of G is 1e7 at most, and solving with G squares that of J
        assert_same(found, expected, 1e-8, form)


def curve() -> tuple[nn.Module, Tensor, Tensor]:
    """Thirty samples of a curve that four hidden units fit but for its noise."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    noise = normal(torch.Generator().manual_seed(0), 30, 1)
    return model, x, torch.sin(3 * x) + 0.1 * noise


def test_it_converges_to_the_point_of_scipy() -> None:
    least_squares = pytest.importorskip("scipy.optimize").least_squares
    model, x, y = curve()
    trainer = gncompile.compile(model, "mse", x, solver="exact", damping_bounds=(1e-12, 1e4))
    for _ in range(150):
        stats = trainer.step(x, y)
    reached = torch.cat([p.detach().flatten() for p in model.parameters()])
    shapes = [(name, p.shape) for name, p in model.named_parameters()]

    def residuals(theta: object) -> object:
        parts = torch.as_tensor(theta).split([shape.numel() for _, shape in shapes])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return (functional_call(model, given, (x,)) - y).detach().flatten().numpy()

    found = least_squares(residuals, reached.numpy(), method="lm", xtol=1e-12, ftol=1e-14)
    assert stats.loss < 0.01
    assert float(stats.loss) * len(x) == pytest.approx(found.cost, rel=1e-12)
    torch.testing.assert_close(reached, torch.from_numpy(found.x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_training_goes_on_bit_for_bit(form: str, tmp_path: Path) -> None:
    model, x, y, loss = small("fewer parameters")
    trainer = gncompile.compile(model, loss, x[:2], solver="exact", exact_form=form)
    for _ in range(3):
        trainer.step(x, y)
    trainer.save(tmp_path / "checkpoint")
    resumed = gncompile.Trainer.resume(tmp_path / "checkpoint", small("fewer parameters", 2)[0])
    assert resumed.settings == trainer.settings
    for _ in range(3):
        assert resumed.step(x, y) == trainer.step(x, y)


def test_a_guarded_program_steps_alike() -> None:
    losses = []
    for guarded in (False, True):
        model, x, y, loss = small("one sample")
        trainer = gncompile.compile(model, loss, x, solver="exact", guarded=guarded)
        losses.append([float(trainer.step(x, y).resolved().loss) for _ in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    assert losses[0][-1] < losses[0][0]


def test_the_cheaper_form_is_chosen_and_told() -> None:
    model, x, _, loss = small("fewer parameters")
    trainer = gncompile.compile(model, loss, x, solver="exact")
    assert trainer.settings.exact_form == "primal"
    assert "40 samples, 2 outputs and 20 parameters: primal 20 × 20" in " ".join(
        trainer.summary().split()
    )
    assert gncompile.compile(model, loss, x[:3], solver="exact").settings.exact_form == "dual"


def test_what_exceeds_the_memory_budget_is_refused_with_numbers() -> None:
    model, x, y, loss = small("fewer parameters")
    with pytest.raises(
        CompileError, match=r"primal 20 × 20.*dual 80 × 80.*memory_budget is 8.0 KiB"
    ):
        gncompile.compile(model, loss, x, solver="exact", memory_budget=8 << 10)
    trainer = gncompile.compile(model, loss, x[:2], solver="exact", memory_budget=8 << 10)
    with pytest.raises(BatchError, match=r"40 samples meet in a matrix of 80 rows"):
        trainer.step(x, y)
    trainer.step(x[:2], y[:2])


def test_noise_is_not_measured() -> None:
    model, x, _, loss = small("one sample")
    with pytest.raises(CompileError, match="gather_noise"):
        gncompile.compile(model, loss, x, solver="exact", gather_noise=0.5)


def test_options_of_the_factors_are_said_to_have_no_effect() -> None:
    with pytest.warns(OptionWarning, match="inverse = 'eigen' has no effect with solver='exact'"):
        Settings.from_options(solver="exact", inverse="eigen")
