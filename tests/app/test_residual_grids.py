"""Grids that equations read at computed places, against ``torch.nn.functional.grid_sample``."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import grid_sample

import gncompile
from gncompile import Box, Grid, Term
from gncompile.app.residual_terms import Batch
from gncompile.app.residuals import Problem
from gncompile.data.domains import generator_of
from gncompile.errors import GncompileError

BOX = Box({"x": (0, 1), "y": (-1, 2)})
SIDES = [(0.0, 1.0), (-1.0, 2.0)]
IMAGE = torch.rand(6, 9, dtype=torch.float64, generator=generator_of(1))
LINE = torch.rand(5, dtype=torch.float64, generator=generator_of(2))
ROUNDING = 1e-11
"""Relative, in float64: a small network, derivatives of order 1, and sums over 16 points of a grid."""

FLOW = "image(x + u, y + v) - image(x, y)"
NESTED = "u*line(image(x*u, v))"


def flow_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def flow(data: Any = FLOW, mode: Any = "cubic") -> Problem:
    terms = {
        "data": Term([data, NESTED], BOX.interior(11)),
        "smooth": Term(["u__x + v__y", "u__y*k"], BOX.interior(7), weight=0.5),
    }
    grids = {"image": Grid(IMAGE, SIDES, mode), "line": LINE}
    return gncompile.residuals(flow_net(), "x y", "u v", terms, unknowns={"k": 0.3}, grids=grids)


def at(image: Tensor, mode: str, *places: Tensor) -> Tensor:
    """``places`` in [-1, 1] along each dimension of an image."""
    where = torch.stack(places[::-1], dim=-1)[None, None]
    return grid_sample(image[None, None], where, mode, "border", True)[0, 0, 0]


def hand(problem: Problem, batch: Batch, mode: str, parameters: dict[str, Tensor]) -> Tensor:
    own = {n.removeprefix("net."): p for n, p in parameters.items() if n.startswith("net.")}

    def f(x: Tensor) -> Tensor:
        return functional_call(problem.net, own, (x[None],))[0]

    (x, y), uv, slopes = batch.x.T, vmap(f)(batch.x), vmap(jacrev(f))(batch.x)
    u, v = uv.T

    def image(x: Tensor, y: Tensor) -> Tensor:
        return at(IMAGE, f"bi{mode}", 2 * x - 1, (2 * y - 1) / 3)

    inner = image(x * u, v)
    line = at(LINE.expand(2, -1), "bilinear", torch.zeros_like(inner), inner / 2 - 1)
    data = torch.stack([image(x + u, y + v) - image(x, y), u * line], dim=1)
    smooth = torch.stack(
        [slopes[:, 0, 0] + slopes[:, 1, 1], slopes[:, 0, 1] * parameters["unknowns.k"]], dim=1
    )
    return torch.where(batch.data[:, :1] < 0.5, data, smooth)


def close(found: Any, wanted: Tensor) -> None:
    assert float((found - wanted).norm()) <= ROUNDING * float(wanted.norm()) + 1e-13


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_residuals_and_gradient_are_those_of_grid_sample(mode: str) -> None:
    problem = flow(mode=mode)
    trainer = problem.compile()
    batch = problem.batch()
    x, y = batch.pair(2)
    parameters = {name: p.detach() for name, p in problem.network.named_parameters()}
    close(trainer.predict(x), hand(problem, batch, mode, parameters))

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        r = hand(problem, batch, mode, parameters)
        return (r.square().sum(dim=1) * batch.weight).mean() / 2

    wanted = grad(objective)(parameters)
    assert set(wanted) == set(trainer.gradients(x, y))
    for name, found in trainer.gradients(x, y).items():
        close(found, wanted[name])
    points = BOX.interior(5).drawn(generator_of(3))
    found = problem.evaluate(points, ["image(x, 0.5)", "line(2)", "data"])
    half = torch.zeros(5, dtype=torch.float64)
    close(found["image(x, 0.5)"], at(IMAGE, f"bi{mode}", 2 * points[:, 0] - 1, half))
    close(found["line(2)"], LINE[2].expand(5))
    assert found["data"].shape == (5, 2)


def test_equations_of_sympy_read_grids_by_their_names() -> None:
    x, y = sympy.symbols("x y")
    u, v, image = (sympy.Function(name) for name in ("u", "v", "image"))
    written = image(x + u(x, y), y + v(x, y)) - image(x, y)
    of_text = flow().system.equations[0]
    for equation in (written, sympy.Eq(written + y, y)):
        assert flow(equation).system.equations[0] == of_text
    greatest = flow(image(sympy.Max(x, u(x, y)), y)).system.equations[0][0]
    assert greatest == flow("image(select(u - x, u, x), y)").system.equations[0][0]


def test_a_displacement_between_two_images_is_found() -> None:
    """``two(x + 1/8) = one(x)``: u becomes 1/8."""
    x = torch.linspace(0, 1, 65, dtype=torch.float64)
    one, two = (torch.sin(5 * (x + shift)) for shift in (0.125, 0.0))
    grids = {n: Grid(v, [(0, 1)], "cubic") for n, v in (("one", one), ("two", two))}
    terms = {
        "data": Term("two(x + u) - one(x)", Box({"x": (0, 0.85)}).interior(60)),
        "smooth": Term("u__x", Box({"x": (0, 1)}).interior(60), weight=1e-4),
    }
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    problem = gncompile.residuals(net, "x", "u", terms, grids=grids)
    trainer = problem.compile()
    trainer.fit(updates=60, progress=False)
    u = problem.evaluate(x[:, None])["u"]
    assert float((u - 0.125).abs().max()) < 2e-3  # the grid's own error: (5/64)³ and less


REFUSED = {
    "arity": ("image(x)", "image cannot be called so: its grid has 2 dimensions, and 1 places"),
    "unknown": ("imag(x, y) - u", "function 'imag' is unknown(.|\n)*Did you mean 'image'"),
    "bare": ("image - u", "'image' is used without arguments"),
    "keyword": ("image(x, y=u)", "image cannot be called so"),
    "sympy arity": (sympy.Function("image")(sympy.Symbol("x")), "2 dimensions, and 1 places"),
    "derivative": ("image__x", "derivative of 'image', which is no output"),
    "no network": ("image(x, y)", "does not depend on the network"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told(case: str) -> None:
    equation, text = REFUSED[case]
    with pytest.raises(GncompileError, match=text):
        flow(equation)


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ("image.png", "values of a grid are str"),
        (torch.ones(3, 3, dtype=torch.uint8), "values of a grid are torch.uint8"),
        (torch.full((3, 3), torch.nan), "a value of a grid is not finite"),
        (torch.ones(2, 2, 2, 2), r"a grid of shape \[1, 2, 2, 2, 2\]"),
    ],
)
def test_mistakes_about_grids_are_told(grid: Any, text: str) -> None:
    with pytest.raises(GncompileError, match=text):
        gncompile.residuals(
            flow_net(), "x y", "u v", {"a": Term("u", BOX.interior(4))}, grids={"image": grid}
        )


def test_the_name_of_a_grid_is_its_own() -> None:
    for name in ("u", "sin"):
        with pytest.raises(GncompileError, match=f"two names '{name}'|'{name}' is reserved"):
            gncompile.residuals(
                flow_net(), "x y", "u v", {"a": Term("u", BOX.interior(4))}, grids={name: IMAGE}
            )
