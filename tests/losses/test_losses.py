"""Losses against torch's own, against high-precision derivatives, and every refusal's text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy
import torch
from torch import nn

from gncompile.errors import BatchError, ExpressionError, LossError, RegistrationError
from gncompile.functions.convexity import is_convex_in_pieces, is_nonnegative
from gncompile.functions.parsing import parse_expression
from gncompile.losses import (
    NOISE,
    OUTPUT,
    TARGET,
    Scale,
    SeparableLoss,
    SoftmaxCrossEntropy,
    register_loss,
    resolve_loss,
)
from gncompile.losses import vocabulary as losses

SEPARABLE = [name for name in losses.loss_names() if isinstance(resolve_loss(name), SeparableLoss)]
TEXTS = ["exp(z) - y*z", "log(1 + exp(z)) - y*z", "log(cosh(z - y))", "sqrt(1 + (z - y)**2)"]


def _np_sigmoid(x: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + tail), tail / (1 + tail))


NUMPY = {
    "sigmoid": _np_sigmoid,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "select": lambda c, u, v: np.where(c > 0, u, v),
}
MPMATH = {
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "select": lambda c, u, v: u if c > 0 else v,
}


def numeric(expression: sympy.Expr, z: np.ndarray, y: np.ndarray, noise: object = 0) -> np.ndarray:
    """``expression`` on arrays, in their dtype."""
    plain = expression.subs(sympy.log(2), math.log(2))  # numpy's log(2) would widen float32
    function = sympy.lambdify([OUTPUT, TARGET, NOISE], plain, [NUMPY, "numpy"])
    with np.errstate(all="ignore"):
        return np.broadcast_to(function(z, y, noise), z.shape)


def exact(expression: sympy.Expr) -> Callable[[Any, Any], Any]:
    return sympy.lambdify([OUTPUT, TARGET], expression, [MPMATH, "mpmath"])


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_registered", {})


# What torch computes -----------------------------------------------------------------------------


def _targets(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    draw = torch.rand(shape, dtype=torch.float64)
    if name == "SoftMarginLoss":
        return torch.where(draw < 0.5, -1.0, 1.0).double()
    return 3 * draw if "Poisson" in name else draw


TORCH_SEPARABLE = [
    nn.MSELoss,
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    lambda reduction: nn.HuberLoss(delta=0.3, reduction=reduction),
    nn.SmoothL1Loss,
    lambda reduction: nn.SmoothL1Loss(beta=0.25, reduction=reduction),
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", TORCH_SEPARABLE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 3, 2)])
def test_separable_modules_mean_what_torch_computes(
    make: Callable[..., nn.Module], reduction: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = make(reduction=reduction)
    loss = resolve_loss(module)
    assert isinstance(loss, SeparableLoss)
    z = torch.randn(shape, dtype=torch.float64)
    y = _targets(type(module).__name__, shape)
    c = loss.scale.value(shape[0], math.prod(shape[1:])) / shape[0]
    for expression, of_torch in (
        (loss.slope, torch.func.grad(module)(z, y)),
        (loss.curvature, _diagonal(torch.func.jacrev(torch.func.grad(module))(z, y), z)),
    ):
        np.testing.assert_allclose(c * numeric(expression, z.numpy(), y.numpy()), of_torch, 1e-12)
    value = c * numeric(loss.expression, z.numpy(), y.numpy()).sum()
    np.testing.assert_allclose(value, module(z, y), rtol=1e-12)


def _diagonal(hessian: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    square = hessian.reshape(z.numel(), z.numel())
    torch.testing.assert_close(square, square.diagonal().diag())
    return square.diagonal().reshape(z.shape)


def _cross_entropy(
    loss: SoftmaxCrossEntropy, z: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``Ē``, its gradient and Hessian blocks by the formulas of the declaration."""
    classes = z.shape[1]
    rows = y if y.ndim == 2 else nn.functional.one_hot(y, classes).to(z)
    smoothed = (1 - loss.label_smoothing) * rows + loss.label_smoothing / classes
    mass = loss.target_mass(rows.sum(1))[:, None]
    p = z.softmax(1)
    c = loss.scale.value(*z.shape) / len(z)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    value = -(smoothed * z.log_softmax(1)).sum()
    return c * value, c * (mass * p - smoothed), c * mass[:, :, None] * blocks


@pytest.mark.parametrize("target", ["index", "probabilities", "weights"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_means_what_torch_computes(
    target: str, reduction: str, smoothing: float
) -> None:
    torch.manual_seed(1)
    module = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    loss = resolve_loss(module)
    assert isinstance(loss, SoftmaxCrossEntropy)
    z = torch.randn(3, 5, dtype=torch.float64)
    y = {
        "index": torch.tensor([4, 0, 2]),
        "probabilities": torch.rand(3, 5).double().softmax(1),
        "weights": torch.rand(3, 5).double(),
    }[target]
    loss.check_target((3, 5), z.dtype, y)
    value, gradient, blocks = _cross_entropy(loss, z, y)
    torch.testing.assert_close(value, module(z, y))
    torch.testing.assert_close(gradient, torch.func.grad(module)(z, y))
    hessian = torch.func.hessian(module)(z, y)
    for n, m in itertools.product(range(3), range(3)):
        block = blocks[n] if n == m else torch.zeros(5, 5).double()
        torch.testing.assert_close(hessian[n, :, m, :], block)


@pytest.mark.parametrize(
    ("name", "module", "factor"),
    [
        ("mse", nn.MSELoss(reduction="sum"), 0.5),
        ("bce_with_logits", nn.BCEWithLogitsLoss(reduction="sum"), 1),
        ("huber", nn.HuberLoss(reduction="sum"), 1),
        ("smooth_l1", nn.SmoothL1Loss(reduction="sum"), 1),
        ("poisson_nll", nn.PoissonNLLLoss(reduction="sum"), 1),
        ("soft_margin", nn.SoftMarginLoss(reduction="sum"), 1),
    ],
)
def test_names_sum_over_outputs_and_average_over_samples(
    name: str, module: nn.Module, factor: float
) -> None:
    torch.manual_seed(2)
    loss = resolve_loss(name)
    assert isinstance(loss, SeparableLoss)
    assert loss.scale.value(batch=6, outputs=4) == 1
    z, y = torch.randn(6, 4).double(), _targets(type(module).__name__, (6, 4))
    mean = numeric(loss.expression, z.numpy(), y.numpy()).sum() / 6
    np.testing.assert_allclose(mean, factor * module(z, y) / 6, rtol=1e-12)


def test_scale_values() -> None:
    assert Scale(2.0, "elements").value(batch=5, outputs=4) == 0.5
    assert Scale(2.0, "sum").value(batch=5, outputs=4) == 10
    with pytest.raises(LossError, match=r"positive and finite, got -1"):
        Scale(-1.0)


# Derived formulas --------------------------------------------------------------------------------

POINTS = [(0.0, 0.7), (0.4, 0.1), (-3.2, 1.0), (5.0, 0.0), (2.5, -1.0), (-0.3, 0.9)]


@pytest.mark.parametrize("spec", SEPARABLE + TEXTS)
def test_slope_and_curvature_are_the_derivatives(spec: str) -> None:
    loss = resolve_loss(spec)
    assert isinstance(loss, SeparableLoss)
    value, slope, curvature = map(exact, (loss.expression, loss.slope, loss.curvature))
    with mpmath.workdps(50):
        for z, y in POINTS:
            at = (mpmath.mpf(z), mpmath.mpf(y))
            first, second = mpmath.diff(value, at, (1, 0)), mpmath.diff(slope, at, (1, 0))
            assert mpmath.almosteq(slope(*at), first, 1e-18, 1e-18)
            assert mpmath.almosteq(curvature(*at), second, 1e-18, 1e-18)


@pytest.mark.parametrize("spec", SEPARABLE + TEXTS)
@pytest.mark.parametrize("part", ["expression", "slope", "curvature", "root"])
def test_float32_is_accurate_wherever_the_mathematics_is_finite(spec: str, part: str) -> None:
    formula = getattr(resolve_loss(spec), part)
    values = [0.0, 1e-30, 1e-4, 0.5, 1.0, 3.0, 20.0, 100.0, 1000.0]
    z = np.array([*values, *(-v for v in values)], np.float32)
    function = exact(formula)
    for y in (-1.25, 0.0, 1.25):  # with no z this lands within a rounding of a kink
        found = numeric(formula, z, np.full_like(z, y))
        assert found.dtype == np.float32 or np.issubdtype(found.dtype, np.integer)
        with mpmath.workdps(2000):
            truth = [function(mpmath.mpf(float(x)), mpmath.mpf(y)) for x in z]
        inside = np.array([abs(t) < np.finfo(np.float32).max for t in truth])
        assert inside.sum() >= 10
        # A few roundings of the inputs' magnitude: sums such as softplus(2d) - d lose no more.
        expected = np.array([float(t) if ok else 0.0 for t, ok in zip(truth, inside, strict=True)])
        error = np.abs(found.astype(np.float64) - expected)[inside]
        tolerance = 1e-6 * (1 + np.abs(expected) * 60 + np.abs(z))[inside]
        assert np.all(error <= tolerance), (z[inside][np.argmax(error - tolerance)], y, error.max())


def test_log_cosh_keeps_relative_digits_near_zero() -> None:
    loss = resolve_loss("log_cosh")
    assert isinstance(loss, SeparableLoss)
    slope = loss.slope
    tiny = np.array([1e-6, 1e-10], np.float32)
    np.testing.assert_allclose(numeric(slope, tiny, np.zeros_like(tiny)), tiny, rtol=1e-6)


@pytest.mark.parametrize("spec", SEPARABLE + TEXTS)
def test_root_squares_to_the_curvature(spec: str) -> None:
    loss = resolve_loss(spec)
    assert isinstance(loss, SeparableLoss)
    z, y = (np.array(column) for column in zip(*POINTS, strict=True))
    root, curvature = numeric(loss.root, z, y), numeric(loss.curvature, z, y)
    np.testing.assert_allclose(root**2, curvature, rtol=1e-13, atol=1e-300)


def test_root_of_an_unproved_curvature_is_never_nan() -> None:
    loss = resolve_loss("z**2/2 + cos(z)")
    assert isinstance(loss, SeparableLoss)
    assert not is_nonnegative(loss.curvature)
    z = np.array([0.0, 1.0, 2 * np.pi], np.float32)
    assert np.isfinite(numeric(loss.root, z, z)).all()


@pytest.mark.parametrize("spec", [*SEPARABLE, *TEXTS, "3*(z - y)**2"])
def test_sampled_slopes_have_the_curvature_as_second_moment(spec: str) -> None:
    _check_second_moment(resolve_loss(spec))


def test_a_scaled_gaussian_samples_its_own_model(empty_registry: None) -> None:
    loss = register_loss("precise", "3*(z - y)**2", sampler="normal")
    assert loss.noise == "normal"
    assert loss.sampled_slope.free_symbols == {NOISE}
    _check_second_moment(loss)


def _check_second_moment(loss: object) -> None:
    assert isinstance(loss, SeparableLoss)
    rng, count = np.random.default_rng(3), 40_000
    draw = {
        "normal": lambda: rng.standard_normal(count),
        "uniform": lambda: rng.random(count),
        "sign": lambda: rng.choice([-1.0, 1.0], count),
    }[loss.noise]
    for z, y in POINTS:
        grid, targets = np.full(count, z), np.full(count, y)
        squares = numeric(loss.sampled_slope, grid, targets, draw()) ** 2
        truth = numeric(loss.curvature, grid, targets)[0]
        # Four standard errors; signs have none, and a zero spread leaves rounding.
        assert abs(squares.mean() - truth) <= 4 * squares.std() / count**0.5 + 1e-12, (z, y)


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_sampled_slopes_of_a_model_have_mean_zero(name: str) -> None:
    loss = resolve_loss(name)
    assert isinstance(loss, SeparableLoss)
    rng, count = np.random.default_rng(4), 40_000
    noise = rng.standard_normal(count) if loss.noise == "normal" else rng.random(count)
    found = numeric(loss.sampled_slope, np.full(count, 0.8), np.zeros(count), noise)
    assert abs(found.mean()) <= 4 * found.std() / count**0.5


def test_a_sampler_of_another_loss_is_refused() -> None:
    with pytest.raises(LossError, match=r"'bernoulli' belongs to softplus\(z\) - y z"):
        SeparableLoss("wrong", losses.half_squared_error(), sampler="bernoulli")
    with pytest.raises(LossError, match=r"'normal' belongs to a \(z - y\)²/2"):
        SeparableLoss("wrong", losses.huber(), sampler="normal")


# Convexity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("(z - y)**2", "convex"),
        ("exp(z) - y*z", "convex"),
        ("softplus(-y*z)", "convex"),
        ("cosh(z - y)", "convex"),
        ("(z - y)**4 + 2*softplus(z)", "convex"),
        ("sqrt(1 + (z - y)**2)", "convex"),
        ("relu(z - y)**2", "convex"),
        ("relu(z - y)**3", "convex"),
        ("relu(1 - y*z)**2", "convex"),
        ("exp(abs(z - y))", "convex"),
        ("where(abs(z - y) < 0.3, (z - y)**2/2, 0.3*abs(z - y) - 0.045)", "convex"),
        ("z**2/2 + cos(z)", "unproved"),
        ("z**2 + abs(z - y)", "convex"),
        ("z**2 + abs(z - y) + 2*abs(z)", "convex"),
        ("z**2 + abs(sinh(z - y))", "unproved"),
    ],
)
def test_convex_expressions_pass(text: str, verdict: str) -> None:
    loss = resolve_loss(text)
    assert isinstance(loss, SeparableLoss)
    assert loss.convexity.verdict == verdict
    assert loss.convexity.witness is None


KINKED_NOT_CONVEX = (
    "z**2 - abs(z - y)",
    "z**2 + select(z - y, 1, 0)",
    "z**2 + abs(abs(z - y) - 1)",
    "z**2 + 5*abs(z - y)*(abs(z - y) - 1)",
    "abs(z - y) - (z - y)**2/10",
    "where(z - y < 0, (z - y)**2, sin(z - y))",
    "where(abs(z - y) < 1, (z - y)**2/2, abs(z - y)/2)",
)


@pytest.mark.parametrize("text", KINKED_NOT_CONVEX)
def test_no_proof_of_what_is_not_convex(text: str) -> None:
    """Each violates the midpoint inequality somewhere, so a proof would be wrong."""
    expression = parse_expression(text, {"z": OUTPUT, "y": TARGET})
    points = np.arange(-24, 25) / 8
    a, b = np.meshgrid(points, points)
    middle, y = (a + b) / 2, np.zeros_like(a)
    excess = (
        numeric(expression, middle, y) - (numeric(expression, a, y) + numeric(expression, b, y)) / 2
    )
    assert excess.max() > 1e-4
    assert not is_convex_in_pieces(expression, OUTPUT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-(z - y)**2", r"e'' = -2\.0 at z = 0, y = 0"),
        ("z**2 + sin(3*z)", r"e'' = -\S+ at z = \S+, y = 0"),
        ("y*exp(z)", r"e'' = -0\.31 at z = 0, y = -0\.31"),
        ("z**2 - 0.01*abs(z - 0.3)", r"e' falls at z = 0\.3, y = 0"),
        ("z**2 - abs(z - y)", r"e' falls at z = 0, y = 0"),
        ("select(z, z**2 + 1, z**2)", r"e jumps at z = 0, y = 0"),
        ("tanh(z - y)**2", r"e'' = -\S+ at z = \S+, y = 0"),
        ("log(z)", r"not a finite real number at z = 0, y = 0"),
        ("sqrt(z)", r"not a finite real number at z = 0, y = 0"),
    ],
)
def test_other_expressions_are_refused_with_a_point(text: str, reason: str) -> None:
    with pytest.raises(LossError, match=r"is not convex in the output z: .*" + reason):
        resolve_loss(text)


@pytest.mark.parametrize("text", ["z**2 + sin(3*z)", "tanh(z - y)**2"])
def test_the_witness_has_negative_curvature(text: str) -> None:
    expression = losses._expression(text)
    loss = SeparableLoss("bad", expression)
    assert loss.convexity.witness is not None
    assert exact(sympy.diff(expression, OUTPUT, 2))(*loss.convexity.witness) < 0


def test_declared_targets_can_make_a_loss_convex(empty_registry: None) -> None:
    loss = register_loss("weighted_exp", "y*exp(z) - z", targets=(0, math.inf))
    assert loss.convexity.verdict == "convex"
    loss.check_target((2, 1), torch.float32, torch.tensor([[0.0], [2.0]]))
    with pytest.raises(BatchError, match=r"declared for targets between 0 and inf, .* between -1"):
        loss.check_target((2, 1), torch.float32, torch.tensor([[-1.0], [2.0]]))


def test_nan_targets_fall_outside_declared_bounds(empty_registry: None) -> None:
    loss = register_loss("weighted_exp", "y*exp(z) - z", targets=(0, math.inf))
    with pytest.raises(BatchError, match=r"declared for targets"):
        loss.check_target((1, 1), torch.float32, torch.tensor([[math.nan]]))


@pytest.mark.parametrize("text", ["z - y", "abs(z - y)", "relu(z)", "y**2"])
def test_zero_curvature_is_refused(text: str) -> None:
    with pytest.raises(LossError, match=r"zero curvature everywhere.*\n.*\n.*'huber'"):
        resolve_loss(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("log(2 + cosh(z)) - y*z", r"in cosh\(z\)\n.*\n.*write it with softplus"),
        (
            "z**2 - log(softplus(2*z))",
            r"in 1/softplus\(2\*z\)\n.*\n.*softplus\(2\*z\) is all but 0",
        ),
    ],
)
def test_an_expression_that_overflows_needlessly_is_refused(text: str, told: str) -> None:
    with pytest.raises(
        LossError,
        match=rf"overflows where its derivatives are finite: .* at z = -1000, y = 0\.5, {told}",
    ):
        resolve_loss(text)


def test_the_remedy_for_what_is_all_but_zero_is_taken() -> None:
    resolve_loss("z**2 - log(softplus(2*z) + 1e-6)")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("exp(exp(exp(z)))", "convex"),
        ("cosh(z**9)", "unproved"),
        ("sin(exp(exp(z))) + z**2", "refused"),
        ("*".join(["(sin(z)+y)"] * 60), "refused"),
    ],
)
def test_extreme_expressions_are_answered(text: str, verdict: str) -> None:
    if verdict == "refused":
        with pytest.raises(LossError, match=r"not convex|overflows"):
            resolve_loss(text)
    else:
        loss = resolve_loss(text)
        assert isinstance(loss, SeparableLoss)
        assert loss.convexity.verdict == verdict


# Resolving ---------------------------------------------------------------------------------------


def test_sympy_expressions_match_symbols_by_name() -> None:
    z, y = sympy.symbols("z y")
    loss = resolve_loss((z - y) ** 4)
    assert isinstance(loss, SeparableLoss)
    assert loss.expression == (OUTPUT - TARGET) ** 4
    with pytest.raises(LossError, match=r"uses a, b besides the output z and the target y"):
        resolve_loss(z**2 * sympy.Symbol("a") + sympy.Symbol("b"))


def test_declarations_pass_through_and_are_checked() -> None:
    loss = SeparableLoss("mine", OUTPUT**2, scale=Scale(3.0))
    assert resolve_loss(loss) is loss
    softmax = SoftmaxCrossEntropy(label_smoothing=0.2)
    assert resolve_loss(softmax) is softmax
    with pytest.raises(LossError, match=r"'mine' is not convex"):
        resolve_loss(SeparableLoss("mine", -(OUTPUT**2)))
    with pytest.raises(LossError, match=r"label_smoothing must lie between 0 and 1, got 1.5"):
        SoftmaxCrossEntropy(label_smoothing=1.5)
    with pytest.raises(LossError, match=r"cannot be averaged over its classes"):
        SoftmaxCrossEntropy(scale=Scale(over="outputs"))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(LossError, match=r"unknown loss 'hubber'. Did you mean 'huber'\?\n.*'exp"):
        resolve_loss("hubber")


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "z.__class__", "w**2", "z +", "z**2; 1"]
)
def test_unsafe_or_malformed_text_is_refused_by_the_parser(text: str) -> None:
    with pytest.raises(ExpressionError, match=r"the loss, column|'z \+'|malformed"):
        resolve_loss(text)


class Subclassed(nn.MSELoss):
    """Could compute anything."""


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            nn.MSELoss(reduction="none"),
            r"reduction='none' returns no single number.*\n.*\n.*'mean'",
        ),
        (nn.BCELoss(), r"nn.BCELoss is not a supported loss\n.*\n.*use nn.BCEWithLogitsLoss"),
        (nn.NLLLoss(), r"nn.NLLLoss is not a supported loss\n.*\n.*use nn.CrossEntropyLoss"),
        (nn.L1Loss(), r"nn.L1Loss is not a supported loss\n.*\n.*zero output Hessian"),
        (nn.KLDivLoss(), r"nn.KLDivLoss is not a supported loss\n.*\n.*use nn.CrossEntropyLoss"),
        (nn.functional.l1_loss, r"nn.L1Loss is not a supported loss"),
        (None, r"None is not a supported loss"),
        (Subclassed(), r"Subclassed.* is not a supported loss\n.*\n.*pass nn.MSELoss itself"),
        (nn.BCEWithLogitsLoss(weight=-torch.ones(3)), r"the weight of .* holds -1, .* not convex"),
        (nn.BCEWithLogitsLoss(pos_weight=-torch.ones(3)), r"the pos_weight of .* holds -1"),
        (nn.CrossEntropyLoss(weight=torch.full((3,), math.nan)), r"the weight of .* holds nan"),
        (nn.SmoothL1Loss(beta=0.0), r"beta=0.0 is the absolute error"),
        (nn.PoissonNLLLoss(log_input=False), r"log_input=False is not supported"),
    ],
)
def test_modules_without_an_exact_counterpart_are_refused(module: Any, text: str) -> None:
    with pytest.raises(LossError, match=text):
        resolve_loss(module)


def test_registered_losses_resolve_and_clash_by_location(empty_registry: None) -> None:
    loss = register_loss("quartic", "(z - y)**4")
    assert resolve_loss("quartic") is loss
    assert "quartic" in losses.loss_names()
    with pytest.raises(
        RegistrationError, match=r"already registered\n.*test_losses.py:\d+\n.*over"
    ):
        register_loss("quartic", "(z - y)**2")
    other = register_loss("quartic", "(z - y)**4 / 4", override=True)
    assert resolve_loss("quartic") is other
    with pytest.raises(RegistrationError, match=r"'mse' is already registered\n.*built in"):
        register_loss("mse", "(z - y)**2")
    with pytest.raises(RegistrationError, match=r"'two words' cannot name a loss"):
        register_loss("two words", "(z - y)**2")
    with pytest.raises(LossError, match=r"'concave' is not convex"):
        register_loss("concave", "-z**2")


@pytest.mark.parametrize("spec", [*losses.loss_names(), nn.MSELoss(), nn.CrossEntropyLoss()])
def test_descriptions_are_one_line_with_the_scale(spec: Any) -> None:
    loss = resolve_loss(spec)
    text = loss.describe()
    assert "\n" not in text
    assert text.startswith(f"{loss.name}: ")
    assert "𝓗 = c " in text
    assert text.endswith(str(loss.scale))


def test_describe_example() -> None:
    assert resolve_loss(nn.MSELoss()).describe() == (
        "MSELoss: e = (-y + z)**2/2, e' = -y + z, 𝓗 = c diag(1), "
        "mean over samples and outputs (c = 2/K)"
    )


# Targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "z_shape", "target", "text"),
    [
        ("mse", (3, 2), torch.zeros(3), r"expected: \[3, 2\] float32\n  got:      \[3\] float32"),
        ("mse", (3, 2), torch.zeros(3, 2).double(), r"got:      \[3, 2\] float64"),
        ("mse", (0, 2), torch.zeros(0, 2), r"'mse' got an empty batch"),
        ("cross_entropy", (0, 2), torch.zeros(0).long(), r"got an empty batch"),
        ("cross_entropy", (3, 2), torch.zeros(3).int(), r"expected: \[3\] int64 class indices, or"),
        ("cross_entropy", (3, 2), torch.zeros(3, 1).long(), r"got:      \[3, 1\] int64"),
        ("cross_entropy", (3, 2), torch.zeros(3, 2).double(), r"got:      \[3, 2\] float64"),
        ("cross_entropy", (2, 3), torch.tensor([0, 3]), r"expected: 0 … 2\n  got:      0 … 3"),
        ("cross_entropy", (2, 3), torch.tensor([-100, 1]), r"got:      -100 … 1\n"),
        ("cross_entropy", (1, 2), torch.tensor([[-1.0, 0.5]]), r"non-negative sum in every row"),
        ("cross_entropy", (1, 2), torch.tensor([[math.nan, 0.5]]), r"every row, got nan"),
    ],
)
def test_wrong_targets_are_refused(
    name: str, z_shape: tuple[int, ...], target: torch.Tensor, text: str
) -> None:
    with pytest.raises(BatchError, match=text):
        resolve_loss(name).check_target(z_shape, torch.float32, target)


@pytest.mark.parametrize(
    ("name", "z_shape", "right", "wrong"),
    [
        ("mse", (3, 2, 2), torch.zeros(3, 2, 2), torch.zeros(3, 2)),
        ("cross_entropy", (2, 3), torch.tensor([0, 2]), torch.tensor([0, 3])),
        ("cross_entropy", (2, 3), torch.full((2, 3), 0.25), torch.full((2, 3), -0.25)),
    ],
)
def test_right_targets_pass_where_wrong_ones_beside_them_do_not(
    name: str, z_shape: tuple[int, ...], right: torch.Tensor, wrong: torch.Tensor
) -> None:
    check = resolve_loss(name).check_target
    check(z_shape, torch.float32, right)
    with pytest.raises(BatchError):
        check(z_shape, torch.float32, wrong)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1,), r"got \[N, 1\]\n.*\n.*'bce_with_logits' for one logit"),
        ((1, 8, 8), r"got \[N, 1, 8, 8\]\n.*\n.*logits.transpose\(1, 2\)"),
        ((), r"got \[N\]\n"),
    ],
)
def test_cross_entropy_needs_a_row_of_logits(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(LossError, match=r"needs a network output \[N, K\] or .*" + text):
        resolve_loss("cross_entropy").check_output(shape)
    resolve_loss("mse").check_output(shape)
