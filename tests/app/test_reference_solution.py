"""Solutions that a network is compared with: what is taken as one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn

import gncompile
from gncompile import Term
from gncompile.app.residuals import Problem
from gncompile.errors import GncompileError

N = 7
POINTS = torch.rand(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WANTED = torch.stack([POINTS[:, 0] - POINTS[:, 1] / 2, POINTS[:, 1] ** 2 + 1], dim=1)
U, V = WANTED.T
X, Y = sympy.symbols("x y")


def problem_of(outputs: str) -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, len(outputs.split()))).double()
    return gncompile.residuals(net, "x y", outputs, {"a": Term("u__x", POINTS)})


@pytest.fixture(scope="module")
def one() -> Problem:
    return problem_of("u")


@pytest.fixture(scope="module")
def two() -> Problem:
    return problem_of("u v")


def error(problem: Problem, wanted: Tensor) -> Any:
    """The relative error by torch's own forward pass; both sums round otherwise, in the last digits."""
    found = problem.net(POINTS).detach()
    return pytest.approx(float((found - wanted).norm() / wanted.norm()), rel=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        WANTED,
        WANTED.numpy(),
        WANTED.numpy()[:, ::-1][:, ::-1],
        WANTED.tolist(),
        WANTED.clone().requires_grad_(),
        [U, V],
        (U[:, None], V.numpy()),
        ["x - y/2", Y**2 + 1],
        [X - Y / 2, V],
        lambda q: WANTED,
        lambda q: (q[:, 0] - q[:, 1] / 2, q[:, 1] ** 2 + 1),
        lambda q: [q[:, :1] - q[:, 1:] / 2, q[:, 1:].numpy() ** 2 + 1],
    ],
)
def test_a_reference_of_two_outputs(two: Problem, given: Any) -> None:
    assert two.relative_l2(given, POINTS) == error(two, WANTED)


@pytest.mark.parametrize(
    "given",
    [
        U,
        U[:, None],
        U.numpy()[::-1][::-1],
        U.tolist(),
        [U],
        "x - y/2",
        ["x - 0.5*y"],
        X - Y / 2,
        lambda q: q[:, 0] - q[:, 1] / 2,
    ],
)
def test_a_reference_of_one_output(one: Problem, given: Any) -> None:
    assert one.relative_l2(given, POINTS) == error(one, WANTED[:, :1])


@pytest.mark.parametrize(
    "given", [0.5, np.float32(0.5), "1/2", sympy.Rational(1, 2), lambda q: 0.5]
)
def test_a_constant_is_a_reference(one: Problem, given: Any) -> None:
    assert one.relative_l2(given, POINTS) == error(one, torch.full((N, 1), 0.5).double())


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (WANTED.T, "[2, 7]"),
        (lambda q: torch.stack([U, V]), "[2, 7]"),
        (WANTED.T.tolist(), "[2, 7]"),
        (WANTED.reshape(-1), "[14]"),
        (WANTED[None], "[1, 7, 2]"),
        (U, "[7]"),
        ("x", "[7]"),
        (["x"], "[7, 1]"),
        ([], "[0]"),
    ],
)
def test_values_of_another_shape_are_refused(two: Problem, given: Any, got: str) -> None:
    with pytest.raises(GncompileError) as caught:
        two.relative_l2(given, POINTS)
    assert f"another shape\n  expected: [7, 2]\n  got:      {got}\n" in str(caught.value)


def test_values_of_another_shape_are_refused_of_one_output(one: Problem, two: Problem) -> None:
    for given in (U[None], [0.5], torch.tensor(0.5), np.ones((N, 1, 1))):
        with pytest.raises(GncompileError, match=r"expected: \[7\] or \[7, 1\]\n"):
            one.relative_l2(given, POINTS)
    with pytest.raises(GncompileError, match=r"got: +\[7, 2\]\n +where: +the reference of v"):
        two.relative_l2([U, WANTED], POINTS)
    at = POINTS[:1]
    assert one.relative_l2([[0.5]], at) == one.relative_l2(torch.tensor([0.5]), at)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "no real numbers(.|\n)*got: +NoneType"),
        (lambda q: None, "no real numbers(.|\n)*got: +NoneType"),
        (lambda q: "solution.csv", "attribute access"),
        (lambda q: (U, None), "no real numbers(.|\n)*got: +NoneType"),
        ([[1.0, 2.0], [3.0]], "no real numbers(.|\n)*got: +list"),
        (np.array(["a"] * N), "no real numbers(.|\n)*got: +ndarray of <U1"),
        (U + 0j, "no real numbers(.|\n)*Tensor of torch.complex128(.|\n)*imaginary part"),
        (U.numpy() * 1j, "no real numbers(.|\n)*ndarray of complex128"),
        (sympy.root(-8, 3) * X, "is complex"),
        (X - sympy.Symbol("k"), "is no function of the inputs(.|\n)*with x, y"),
        (sympy.Function("u")(X, Y), "is no function of the inputs(.|\n)*with x, y"),
        (float("nan"), r"is \[nan\] at x = "),
        (0.0, "is 0 at all points"),
    ],
)
def test_what_is_no_reference_is_refused(one: Problem, two: Problem, given: Any, text: str) -> None:
    problem = two if callable(given) and isinstance(given(POINTS), tuple) else one
    with pytest.raises(GncompileError, match=text):
        problem.relative_l2(given, POINTS)


def test_points_are_left_as_they_are(one: Problem) -> None:
    points = POINTS.clone()
    once = one.relative_l2(lambda q: q.mul_(2)[:, 0], points)
    assert torch.equal(points, POINTS)
    assert once == error(one, 2 * POINTS[:, :1])


@pytest.mark.parametrize("as_given", [Tensor.numpy, Tensor.tolist, Tensor.clone])
def test_points_are_arrays_too(one: Problem, as_given: Callable[[Tensor], Any]) -> None:
    given = as_given(POINTS)
    assert one.relative_l2("x - y/2", given) == error(one, WANTED[:, :1])
    assert torch.equal(one.evaluate(given)["u"], one.evaluate(POINTS)["u"])


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (POINTS[:0], "there are no points"),
        (None, "the points: no real numbers(.|\n)*NoneType"),
        ("points.csv", "the points: no real numbers(.|\n)*str"),
        ([[1, 2], [3]], "the points: no real numbers(.|\n)*list"),
        (POINTS + 0j, "the points: no real numbers(.|\n)*complex128"),
        ([0.5, 1], r"the points have another shape(.|\n)*\[n, 2\](.|\n)*\[2\]"),
    ],
)
def test_what_are_no_points_is_told(one: Problem, points: Any, text: str) -> None:
    with pytest.raises(GncompileError, match=text):
        one.relative_l2("x", points)


def test_fields_are_read_as_points_are() -> None:
    fields: dict[str, Any] = {"f": [0.1] * N}
    problem = gncompile.residuals(
        nn.Linear(2, 1).double(), "x y", "u", {"a": Term("u - f", POINTS, fields=fields)}
    )
    assert problem.batch().data[:, 1].eq(0.1).all()  # not rounded to float32
    for wrong, text in (([0.1], r"\[1\], or is not finite"), (U + 0j, "complex128"), ("f", "str")):
        with pytest.raises(GncompileError, match=f"the field 'f'(.|\n)*{text}"):
            problem.evaluate(POINTS, "f", fields={"f": wrong})
