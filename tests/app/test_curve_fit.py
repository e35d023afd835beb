"""``gncompile.fit`` against SciPy's solvers and covariances, and against formulas of statistics."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from strd import PROBLEMS, Problem, saturation
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import gncompile
from gncompile.app.curve_fit import CurveFit
from gncompile.errors import CompileError, GncompileError
from gncompile.losses import weighted

optimize = pytest.importorskip("scipy.optimize")
BY_NAME = {problem.name: problem for problem in PROBLEMS}
MISRA = BY_NAME["Misra1a"]
TIGHT = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
# At a minimum to 1e-14 of the loss parameters are exact to about its root, so are covariances.
CLOSE = 1e-6


def fitted(problem: Problem = MISRA, loss: Any = "mse", y: Any = None, **options: Any) -> CurveFit:
    x, observed = problem.data()
    return gncompile.fit(
        problem.model(1), loss, x, observed if y is None else y, **TIGHT, **options
    )


def covariance_of(found: CurveFit) -> np.ndarray:
    assert found.covariance is not None
    return found.covariance.numpy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Two covariances, in units of the standard errors."""
    errors = np.sqrt(expected.diagonal())
    units = np.outer(errors, errors)
    assert found / units == pytest.approx(expected / units, rel=CLOSE, abs=CLOSE)


def numbers(found: CurveFit) -> np.ndarray:
    return torch.cat([each.flatten() for each in found.parameters.values()]).numpy()


def by_scipy(problem: Problem, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and covariance of ``curve_fit`` with its tightest tolerances, from the second start."""

    def outputs(b: Tensor) -> Tensor:
        return problem.formula(problem.data()[0][:, 0], *b)

    def model(x: np.ndarray, *b: float) -> np.ndarray:
        return outputs(torch.tensor(b, dtype=torch.float64)).numpy()

    def jacobian(x: np.ndarray, *b: float) -> np.ndarray:
        return jacrev(outputs)(torch.tensor(b, dtype=torch.float64)).numpy()

    given = np.array(problem.x), np.array(problem.y, dtype=float)
    start, tight = problem.starts[1], {"ftol": 1e-15, "xtol": 1e-15}
    return optimize.curve_fit(model, *given, p0=start, jac=jacobian, **tight, **options)[:2]


@pytest.mark.parametrize("name", ["Misra1a", "Thurber", "Eckerle4"])
def test_the_covariance_is_that_of_scipy(name: str) -> None:
    found, (parameters, covariance) = fitted(BY_NAME[name]), by_scipy(BY_NAME[name])
    assert numbers(found) == pytest.approx(parameters, rel=CLOSE)
    assert_same(covariance_of(found), covariance)


@pytest.mark.parametrize("absolute", [False, True])
def test_measurements_of_known_deviations_are_scipys_sigma(absolute: bool) -> None:
    deviations = np.linspace(0.1, 0.4, len(MISRA.x))
    parameters, covariance = by_scipy(MISRA, sigma=deviations, absolute_sigma=absolute)
    _, y = MISRA.data()
    variances = torch.from_numpy(deviations)[:, None] ** 2
    for loss, target in (
        (weighted("mse"), (y, 1 / variances)),
        (nn.GaussianNLLLoss(), (y, variances)),
    ):
        found = fitted(loss=loss, y=target, absolute_sigma=absolute)
        assert numbers(found) == pytest.approx(parameters, rel=CLOSE)
        assert_same(covariance_of(found), covariance)
        residuals = (found.trainer.predict(MISRA.data()[0]) - y) / variances.sqrt()
        assert found.cost == pytest.approx(float((residuals**2).sum()) / 2)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.MSELoss(reduction="sum"),
        F.mse_loss,
        "3 * (z - y)**2",
        weighted(nn.MSELoss(), normalize=True),
    ],
    ids=["mean", "sum", "function", "expression", "weighted"],
)
def test_cost_and_covariance_do_not_depend_on_the_reduction(loss: Any) -> None:
    plain, (_, y) = fitted(), MISRA.data()
    is_weighted = getattr(loss, "weighted", False)
    found = fitted(loss=loss, y=(y, torch.full_like(y, 2.0)) if is_weighted else y)
    assert found.cost == pytest.approx(plain.cost * (2 if is_weighted else 1))
    assert found.optimality < 1e-5
    assert_same(covariance_of(found), covariance_of(plain))


def test_a_network_comes_to_least_squares_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    y = torch.sin(2 * x) + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in start.values()]

    def residuals(flat: Tensor) -> Tensor:
        parts = zip(start.items(), flat.split(sizes), strict=True)
        named = {name: part.view(p.shape) for (name, p), part in parts}
        return (functional_call(model, named, (x,)) - y).flatten()

    found = gncompile.fit(model, "mse", x, y, **TIGHT)
    expected = optimize.least_squares(
        lambda flat: residuals(torch.from_numpy(flat)).numpy(),
        torch.cat([p.flatten() for p in found.parameters.values()]).numpy(),
        jac=lambda flat: jacrev(residuals)(torch.from_numpy(flat)).numpy(),
        method="lm",
        **TIGHT,
    )
    assert found.success
    assert found.cost == pytest.approx(expected.cost, rel=1e-10)
    assert numbers(found) == pytest.approx(expected.x, rel=1e-4)
    j = jacrev(residuals)(torch.from_numpy(numbers(found)))
    gradient = j.T @ residuals(torch.from_numpy(numbers(found)))
    assert found.optimality == pytest.approx(float(gradient.abs().max()), rel=1e-3, abs=1e-12)
    covariance = torch.linalg.inv(j.T @ j) * 2 * found.cost / (40 - 10)
    assert_same(covariance_of(found), covariance.numpy())
    held = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert held.tolist() == numbers(found).tolist()


def test_other_losses_have_the_inverse_of_fishers_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    rate = torch.exp(0.5 * x[:, :1] - 0.3 * x[:, 1:] + 0.2)
    counts = torch.poisson(rate, generator=generator)
    classes = (x[:, :1] + torch.randn(200, 1, generator=generator) > 0).double()
    ones = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    for loss, y, information in (
        (nn.PoissonNLLLoss(), counts, torch.exp),
        ("bce_with_logits", classes, lambda z: torch.sigmoid(z) * torch.sigmoid(-z)),
    ):
        found = gncompile.fit(nn.Linear(2, 1).double(), loss, x, y, **TIGHT)
        z = ones @ torch.cat([p.flatten() for p in found.parameters.values()])[:, None]
        fisher = (ones * information(z)).T @ ones
        assert_same(covariance_of(found), torch.linalg.inv(fisher).numpy())
        whole = (
            F.poisson_nll_loss if loss != "bce_with_logits" else F.binary_cross_entropy_with_logits
        )
        assert found.cost == pytest.approx(float(whole(z, y, reduction="sum")))
        assert found.residuals is None
        assert "inverse of the Gauss-Newton matrix" in str(found)


class Twice(nn.Module):
    """A line whose offset is the sum of two parameters, and a parameter that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.one = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.other = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.one + self.other


def test_what_the_data_do_not_determine_is_said() -> None:
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y = 2 * x + 3 + 0.1 * torch.cos(7 * x)
    found = gncompile.fit(Twice(), "mse", x, y, **TIGHT)
    j = np.column_stack([x, np.ones((9, 2))])
    variance = 2 * found.cost / (9 - 3)
    assert_same(covariance_of(found), np.linalg.pinv(j.T @ j) * variance)
    assert "the data determine 2 of 3 parameters" in found.notes[-1]


def test_a_network_with_more_parameters_than_residuals_has_no_covariance() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    found = gncompile.fit(model, "mse", x, x**2)
    assert found.cost < 1e-12
    assert found.covariance is None
    assert found.standard_errors is None
    assert found.notes == ("no covariance: there are no more residuals than parameters",)
    assert np.isnan(found.residual_deviation)


def test_masked_residuals_do_not_count() -> None:
    x, y = MISRA.data()
    weights = torch.ones_like(y)
    weights[3], y[3] = 0.0, float("nan")
    found = fitted(loss=weighted("mse"), y=(y, weights))
    kept = weights[:, 0] > 0
    other = gncompile.fit(MISRA.model(1), "mse", x[kept], y[kept], **TIGHT)
    assert found.residuals == other.residuals == 13
    assert found.cost == pytest.approx(other.cost)
    assert_same(covariance_of(found), covariance_of(other))


def test_how_it_ends() -> None:
    x, y = MISRA.data()
    short = gncompile.fit(MISRA.model(0), "mse", x, y, max_nfev=4)
    assert (short.status, short.nfev, short.success) == (0, 4, False)
    seen = []
    stopped = gncompile.fit(
        MISRA.model(0), "mse", x, y, callback=lambda record: seen.append(record) or len(seen) == 3
    )
    assert (stopped.status, len(seen), stopped.success) == (-2, 3, False)
    assert "callback" in stopped.message
    only = {"ftol": None, "xtol": None, "gtol": None}
    for name, status in (("ftol", 2), ("xtol", 3), ("gtol", 1)):
        found = gncompile.fit(MISRA.model(1), "mse", x, y, **{**only, name: 1e-6})
        assert (found.status, name in found.message) == (status, True)
    exact = gncompile.fit(nn.Linear(1, 1).double(), "mse", x, 0 * y, **only, max_nfev=60)
    assert exact.cost < 1e-20


def test_float32_says_what_it_is_worth() -> None:
    x, y = MISRA.data(torch.float32)
    model = MISRA.model(1, torch.float32)
    found = gncompile.fit(model, "mse", x / 100, y / 100)
    assert found.success
    assert "float32" in found.notes[0]


def test_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = MISRA.data()
    found = gncompile.fit(MISRA.model(1), "mse", x, y, verbose=1, **TIGHT)
    printed = capsys.readouterr().out
    assert printed == f"{found}\n"
    row = next(line.split() for line in printed.splitlines() if line.startswith("b1 "))
    assert row == ["b1", "238.94213", "2.707"]
    assert "14 residuals, 2 parameters" in printed
    assert "σ = 0.101879" in printed
    many = gncompile.fit(
        nn.Linear(60, 1).double(), "mse", torch.eye(60).double(), torch.ones(60, 1)
    )
    assert "weight[0, 49]" in str(many)
    assert "and 11 more" in str(many)


def test_parameters_are_in_the_order_of_the_module() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.full((1,), 5e-4, dtype=torch.float64))
            self.top = nn.Parameter(torch.full((1,), 250.0, dtype=torch.float64))
            self.zero = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return saturation(x, self.top, self.rate) + self.zero

    x, y = MISRA.data()
    found, same = gncompile.fit(Reversed(), "mse", x, y, **TIGHT), fitted()
    assert list(found.parameters) == ["rate", "top"]
    assert_same(covariance_of(found)[::-1, ::-1], covariance_of(same))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"l2": 0.1}, "option l2 is given to fit"),
        ({"sigma": 0.1}, r"weighted\(loss\) and y = \(y, 1 / sigma"),
        ({"p0": [1.0, 2.0]}, "starts from the values that the module holds"),
        ({"ftol": -1.0}, "option ftol = -1.0"),
        ({"max_nfev": 0}, "option max_nfev = 0"),
    ],
)
def test_what_a_fit_does_not_take_is_told(options: dict[str, Any], told: str) -> None:
    x, y = MISRA.data()
    with pytest.raises(CompileError, match=told):
        gncompile.fit(MISRA.model(0), "mse", x, y, **options)


class Planes(nn.Module):
    """Two outputs of two inputs, of one matrix used twice and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2, bias=False).double()
        self.rate = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.mix(a)) + torch.exp(-self.rate * self.mix(b))


def test_several_inputs_outputs_and_uses() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(30, 2, dtype=torch.float64), torch.rand(30, 2, dtype=torch.float64)
    model, truth = Planes(), Planes()
    noise = 0.05 * torch.randn(30, 2, dtype=torch.float64)
    y = truth(a, b).detach() + noise
    found = gncompile.fit(model, nn.MSELoss(), (a, b), y, **TIGHT)
    at = {name: value.clone() for name, value in found.parameters.items()}
    apart = Planes()
    j = jacrev(lambda named: functional_call(apart, named, (a, b)))(at)
    rows = torch.cat([j[name].flatten(2) for name in at], dim=2).flatten(0, 1)
    residuals = functional_call(apart, at, (a, b)) - y
    assert found.success
    assert found.residuals == 60
    assert found.cost == pytest.approx(float((residuals**2).sum()) / 2)
    variance = 2 * found.cost / (60 - 6)
    assert_same(covariance_of(found), (torch.linalg.inv(rows.T @ rows) * variance).numpy())


def test_dropout_has_no_minimum() -> None:
    x, y = MISRA.data()
    model = nn.Sequential(nn.Linear(1, 2), nn.Dropout(), nn.Linear(2, 1)).double()
    with pytest.raises(CompileError, match="drops activations"):
        gncompile.fit(model, "mse", x, y)
    assert gncompile.fit(model.eval(), "mse", x / 100, y / 100, max_nfev=3).nfev >= 3


def test_memory_bounds_the_covariance() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    options = {"absolute_sigma": True, "memory_budget": 8000, "max_nfev": 2}
    found = gncompile.fit(model, "mse", x, x, **options)
    assert found.covariance is None
    assert found.notes == ("no covariance: it takes 14.6 KiB, memory_budget is 7.8 KiB",)


def test_a_callback_that_is_none_is_refused() -> None:
    with pytest.raises(GncompileError, match="give a function of one Record"):
        fitted(callback=3)


def half_square(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return F.mse_loss(model(x), y).item() / 2


def test_no_more_evaluations_than_asked_for() -> None:
    problem = BY_NAME["BoxBOD"]
    x, y = problem.data()
    tries: list[int] = []
    gncompile.fit(problem.model(0), "mse", x, y, callback=lambda each: tries.append(each.tried))
    before = 1 + sum(tries[: tries.index(max(tries))])
    assert max(tries) > 3
    for most in (1, 2, before, before + 2):
        model = problem.model(0)
        first = half_square(model, x, y)
        found = gncompile.fit(model, "mse", x, y, max_nfev=most)
        assert (found.status, found.nfev) == (0, most)
        assert found.loss == pytest.approx(half_square(model, x, y), rel=1e-12)
        assert found.loss <= first * (1 + 1e-12)  # a step whose tries end too early is undone
        assert found.trainer.looked_after.most_tries == found.trainer.settings.damping_tries


def test_a_fit_is_pickled_without_its_trainer() -> None:
    found = fitted()
    copied, again = copy.deepcopy(found), pickle.loads(pickle.dumps(found))
    assert str(again) == str(copied) == str(found)
    assert_same(covariance_of(again), covariance_of(found))
    assert copied.trainer.model is not found.trainer.model
    assert again.trainer is None
    assert str(copy.deepcopy(again)) == str(found)
    assert copy.copy(found).trainer is found.trainer
    assert found != copied


@pytest.mark.parametrize("weights", [np.ones(14), [1.0] * 14, 2.0, None])
def test_weights_are_tensors(weights: object) -> None:
    with pytest.raises(GncompileError, match=r"the target is .*\n.*pass"):
        fitted(loss=weighted("mse"), y=(MISRA.data()[1], weights))


def test_weights_without_a_weighted_loss_are_told() -> None:
    _, y = MISRA.data()
    with pytest.raises(GncompileError, match=r"tuple of 2.*\n.*weighted\(loss\)"):
        fitted(y=(y, torch.ones_like(y)))
