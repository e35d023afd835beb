"""Losses of a few coupled outputs: the exact blocks at one sample (oracle 1) and on batches (oracle 3)."""

from __future__ import annotations

import math
from functools import cache

import oracles
import pytest
import sympy
import torch
from architectures import Act, Fork, Linear, build, calibrate, normal
from comparison import assert_close, assert_inputs, assert_outputs
from torch import Tensor, nn

import gncompile
from gncompile.errors import BatchError, CompileError, LossError
from gncompile.functions.expressions import evaluate
from gncompile.losses import register_loss, resolve_loss
from gncompile.losses import vocabulary as losses
from gncompile.losses.coupled_loss import CoupledLoss
from gncompile.training.stored_loss import loss_from_data, loss_to_data

DISTANCE = "sqrt(1 + (z1 - y1)**2 + (z2 - y2)**2 + (z3 - y3)**2) + exp(z1 - 2*z2)/9"
FIRST = "-softplus(-z1) - softplus((1 - 2*y1)*z2)"
SECOND = "-softplus(z1) - softplus((1 - 2*y1)*z3)"
MIXTURE = f"-({SECOND}) - softplus({FIRST} - ({SECOND}))"
"""``-log(σ(z1) p(y|z2) + σ(-z1) p(y|z3))``: two experts for a binary target, and a gate."""
CHAIN = (Linear(4), Act("tanh"), Fork("sum", ((), (Linear(4), Act("silu")))), Linear(3))


class Distance(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        apart = (1 + (z - y).square().sum(dim=1)).sqrt()
        return (apart + (z[:, 0] - 2 * z[:, 1]).exp() / 9).mean()


class Mixture(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        sign, gate = 2 * y[:, 0] - 1, torch.sigmoid(z[:, 0])
        first, second = torch.sigmoid(sign * z[:, 1]), torch.sigmoid(sign * z[:, 2])
        return -torch.log(gate * first + (1 - gate) * second).mean()


def clipped(h: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(h)
    return (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT


def problem(name: str, batch: int) -> tuple[nn.Module, CoupledLoss, nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    model = build(CHAIN, 5, generator)
    calibrate(model, normal(generator, 64, 5))
    x = normal(generator, batch, 5)
    if name == "distance":
        return model, declared(name), Distance(), x, normal(generator, batch, 3)
    return model, declared(name), Mixture(), x, (normal(generator, batch, 1) > 0).double()


@cache
def declared(name: str) -> CoupledLoss:
    if name == "distance":
        return losses.define_loss("distance", DISTANCE)
    return losses.define_loss("mixture", MIXTURE, targets=(0, 1), negative_curvature="clip")


def exact_blocks(
    name: str, model: nn.Module, reference: nn.Module, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    top = oracles.output_hessian(reference, model(x), y)
    top = clipped(top) if name == "mixture" else top
    return {
        layer: oracles.congruence(J, top).mean(dim=0)
        for layer, J in oracles.jacobians(model, x).items()
    }


@pytest.mark.parametrize("name", ["distance", "mixture"])
@pytest.mark.parametrize("method", ["kfra", "kflr", "ggn"])
def test_one_sample_gives_the_exact_blocks(name: str, method: str, backend: str) -> None:
    model, loss, reference, x, y = problem(name, 1)
    factors = gncompile.curvature(model, loss, x, y, method=method, backend=backend)
    assert_outputs(factors, exact_blocks(name, model, reference, x, y))
    assert_inputs(factors, oracles.input_moments(model, x))


@pytest.mark.parametrize("name", ["distance", "mixture"])
@pytest.mark.parametrize("budget", [1 << 30, 600])
def test_kflr_is_the_exact_average_also_in_chunks(name: str, budget: int, backend: str) -> None:
    model, loss, reference, x, y = problem(name, 17)
    factors = gncompile.curvature(
        model, loss, x, y, method="kflr", memory_budget=budget, backend=backend
    )
    assert_outputs(factors, exact_blocks(name, model, reference, x, y))


def test_random_projections_scatter_around_kflr() -> None:
    """Signs have fourth moments of one, so entries of a mean of R draws over N samples deviate by about
    ``‖Ḡ‖/√(R N)``; six times that is allowed."""
    model, loss, reference, x, y = problem("mixture", 200)
    expected = exact_blocks("mixture", model, reference, x, y)
    factors = gncompile.curvature(model, loss, x, y, method="kfac_rp", samples=20)
    for layer, wanted in expected.items():
        spread = 6 * float(wanted.norm()) / math.sqrt(20 * 200) * 3
        assert float((factors[layer].output - wanted).abs().max()) < spread, layer


def test_the_hessian_oracle_keeps_negative_curvature() -> None:
    model, loss, reference, x, y = problem("mixture", 1)
    factors = gncompile.curvature(model, loss, x, y, method="hessian")
    expected = oracles.per_sample_hessian(model, reference, x, y)
    for layer, block in expected.items():
        assert_close(factors[layer].output, block.mean(dim=0), what=layer)
    assert min(float(torch.linalg.eigvalsh(f.output)[0]) for f in factors.values()) < 0


@pytest.mark.parametrize("name", ["distance", "mixture"])
def test_gradient_and_quadratic_model_agree_with_torch(name: str) -> None:
    model, loss, _, x, _ = problem(name, 3)
    report = gncompile.verify(model, loss, x)
    assert report.ok, report.to_text()


@pytest.mark.parametrize("method", ["kfra", "kflr", "kfac_rp", "empirical"])
def test_the_mixture_trains(method: str, backend: str) -> None:
    model, loss, reference, x, y = problem("mixture", 40)
    trainer = gncompile.compile(model, loss, example_inputs=x, method=method, backend=backend)
    before = float(reference(model(x), y).detach())
    for _ in range(6):
        trainer.step(x, y)
    assert float(reference(model(x), y).detach()) < 0.97 * before


def test_kfac_says_what_to_use_instead() -> None:
    model, loss, _, x, y = problem("mixture", 4)
    with pytest.raises(CompileError, match="'mixture' declares none[\\s\\S]*method='kfac_rp'"):
        gncompile.curvature(model, loss, x, y, method="kfac")


def test_the_mixture_is_refused_unless_clipped() -> None:
    with pytest.raises(LossError, match=r"not convex.*eigenvalue -\S+ at z1 = [\s\S]*\"clip\""):
        resolve_loss(MIXTURE)


def test_a_saddle_is_found_with_a_point_where_it_is_one() -> None:
    """``z1² + z2² + 3 z1 z2`` has the eigenvalues 5 and -1 everywhere."""
    with pytest.raises(LossError, match=r"eigenvalue -1\.0 at z1 = "):
        resolve_loss("z1**2 + z2**2 + 3*z1*z2 - y1")


def test_verdicts() -> None:
    assert resolve_loss("(z1 - y1)**2 + (z2 - y2)**2 + z1*z2").convexity.verdict == "convex"
    composed = resolve_loss(DISTANCE).convexity
    assert (composed.verdict, composed.reason.split()[2]) == ("convex", "composed")
    seen = resolve_loss("z1**4 + z1**2*z2**2 + z2**4").convexity
    assert seen.verdict == "unproved"
    assert "241 points" in seen.reason


LOG_SUMS = {
    "log(exp(z1) + exp(z2) + exp(z3) + exp(z4)) - z2": 4,
    "logsumexp(z1, z2, z3, z4, z5) - y1*z1 - y2*z5": 5,
    "-log(exp(2*z1)/(exp(2*z1) + exp(z2 - 1) + 3*exp(z3) + 5))": 3,
    "2*log(exp(z1)/7 + exp(z2)/2 + exp(z3 - y1)) + logsumexp(z1**2, z2, -z3)/3": 3,
    f"logsumexp({', '.join(f'z{i}' for i in range(1, 10))})": 9,
}


@pytest.mark.parametrize("text", LOG_SUMS)
def test_logarithms_of_sums_of_exponentials(text: str) -> None:
    """Proved convex, exact against ``torch.func``, and finite where the exponentials are not."""
    outputs = LOG_SUMS[text]
    loss = resolve_loss(text)
    assert (loss.outputs, loss.convexity.verdict) == (outputs, "convex")
    generator = torch.Generator().manual_seed(2)
    z, y = 3 * normal(generator, 7, outputs), normal(generator, 7, loss.targets_count)
    names = {f"z{i}": i - 1 for i in range(1, 17)}, {f"y{i}": i - 1 for i in range(1, 17)}

    def written(z: Tensor, y: Tensor) -> Tensor:
        known = {n: z[i] for n, i in names[0].items() if i < outputs}
        known |= {n: y[i] for n, i in names[1].items() if i < len(y)}
        known |= {"log": torch.log, "exp": torch.exp}
        known["logsumexp"] = lambda *u: torch.stack(u).logsumexp(0)
        return eval(text, known)  # the text of this test, read by Python alone

    columns = dict(zip((*loss.z, *loss.y), (*z.T, *y.T), strict=True))

    def derived(e: sympy.Expr) -> Tensor:
        return evaluate(e, columns).expand(len(z))

    slopes = torch.func.vmap(torch.func.grad(written))(z, y)
    curvatures = torch.func.vmap(torch.func.hessian(written))(z, y)
    assert_close(derived(loss.value), torch.func.vmap(written)(z, y), 1e-13, "value")
    for i in range(outputs):
        assert_close(derived(loss.gradient[i]), slopes[:, i], 1e-12, f"slope {i}")
        for j in range(outputs):
            assert_close(derived(loss.entry(i, j)), curvatures[:, i, j], 1e-12, f"{i}, {j}")
    far = {symbol: torch.tensor([300.0, -300.0]) for symbol in (*loss.z, *loss.y)}
    if "**" not in text:
        for e in (loss.value, *loss.gradient, *loss.hessian.values()):
            assert evaluate(e, far).isfinite().all()


def test_a_log_sum_trains_on_every_backend(backend: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.randn(9, 3).double()
    y = torch.randint(4, (9,))
    text = f"logsumexp(z1, z2, z3, z4) - {' - '.join(f'y{i}*z{i}' for i in range(1, 5))}"
    trainer = gncompile.compile(model, text, x, backend=backend)
    expected = nn.functional.cross_entropy(model(x), y)
    expected.backward()
    found = trainer.gradients(x, nn.functional.one_hot(y, 4).double())
    for name, p in model.named_parameters():
        assert_close(found[name], p.grad, 1e-12, name)
    trainer.step(x, nn.functional.one_hot(y, 4).double())
    assert nn.functional.cross_entropy(model(x), y) < expected


def test_a_predicted_variance_is_refused_with_the_remedy() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(x), self.spread(x).exp()

    x = torch.randn(4, 3)
    with pytest.raises(LossError, match=r"mean and log-variance[\s\S]*negative_curvature='clip'"):
        gncompile.compile(Both(), nn.GaussianNLLLoss(), x)
    with pytest.raises(LossError, match="takes some of the outputs or targets: write z1"):
        resolve_loss(lambda z, y: (z[0] - y).square().mean())


def test_what_a_kink_takes_away() -> None:
    assert resolve_loss("z1**2 + z2**2 + max(z1, z2)").convexity.verdict == "convex"
    for text in ("z1**2 + z2**2 - abs(z1 - z2)", "z1**2 + z2**2 + select(z1 - z2 - 1, 1, 0)"):
        with pytest.raises(LossError, match="e jumps, or its slope falls, at z1 = "):
            resolve_loss(text)


def test_indices_may_start_at_zero_in_brackets() -> None:
    brackets = resolve_loss("(z[0] - y[0])**2 + z[1]**2")
    numbered = resolve_loss("(z1 - y1)**2 + z2**2")
    assert brackets.expression == numbered.expression
    assert (brackets.outputs, brackets.targets_count) == (2, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("z1**2 + z**2", "uses z[\\s\\S]*not both"),
        ("z17**2", "the name 'z17' is unknown"),
        ("y1 - y2", "has no outputs"),
        ("z1 - y1", "zero curvature"),
        ("logsumexp(z1) - y1", "logsumexp takes two arguments or more"),
        ("log(cosh(z1) + cosh(z2) + exp(z3)) + z1**2", "not finite in float32"),
        ("z1**2 + sqrt(z2)", "not a finite real number"),
        ("*".join(f"(z{i} + y{i})" for i in range(1, 13)), "not convex"),
    ],
)
def test_refusals(text: str, error: str) -> None:
    with pytest.raises(gncompile.errors.GncompileError, match=error):
        resolve_loss(text)


def test_outputs_and_targets_are_checked() -> None:
    _, loss, _, _, _ = problem("mixture", 1)
    with pytest.raises(LossError, match=r"couples 3 outputs[\s\S]*return \[N, 3\]"):
        loss.check_output((4,))
    with pytest.raises(BatchError, match=r"\[5, 1\]"):
        loss.check_target((5, 3), torch.float64, torch.zeros(5, 3).double())
    with pytest.raises(BatchError, match="between 0 and 1"):
        loss.check_target((5, 3), torch.float64, torch.full((5, 1), 2.0).double())


def test_a_stored_loss_is_the_same() -> None:
    for name in ("distance", "mixture"):
        loss = problem(name, 1)[1]
        assert loss_from_data(loss_to_data(loss)) == loss


def test_a_wrong_derivative_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for tanh with the wrong sign, as a mistake in the derivation would leave it."""
    import gncompile.losses.coupled_loss as module

    right = module.differentiate
    monkeypatch.setattr(module, "differentiate", lambda e, s: -right(e, s))
    with pytest.raises(
        LossError, match="its gradient along a direction is wrong: .* expected, .* derived"
    ):
        resolve_loss("(z1 - y1)**4 + cosh(z2)")


def test_non_finite_outputs_give_nan_roots_and_no_crash(backend: str) -> None:
    from gncompile.runtime import linalg

    h = torch.eye(2).repeat(3, 1, 1)
    h[1, 0, 0] = math.inf
    root = torch.empty_like(h)
    linalg.sample_roots(h, root)
    assert root[1].isnan().all()
    torch.testing.assert_close(root[[0, 2]] @ root[[0, 2]].mT, h[[0, 2]])


def test_registered_by_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_registered", {})

    @gncompile.loss_function(outputs=2, targets_count=1)
    def ring(z, y, softness=1):
        """Distance from a circle's centre, told apart by one target."""
        return (softness + z[0] ** 2 + (z[1] - y[0]) ** 2) ** 0.5

    assert resolve_loss("ring") is ring
    assert (ring.outputs, ring.targets_count) == (2, 1)
    with pytest.raises(
        gncompile.errors.RegistrationError, match="already registered[\\s\\S]*test_coupled"
    ):
        register_loss("ring", "z**2")
