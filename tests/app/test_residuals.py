"""Residual problems against residuals written by hand with ``torch.func``, and all around their points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import gncompile
from gncompile import Box, Points, Term
from gncompile.app.residuals import Problem
from gncompile.data.domains import generator_of
from gncompile.errors import GncompileError, PrecisionWarning
from gncompile.frontends.equations import Names, System
from gncompile.functions.faa_di_bruno import Derivative
from gncompile.losses import weighted

SQUARE = Box({"x": (0, 1), "y": (0, 1)})
ROUNDING = 1e-11
"""Relative, in float64: a few layers and second derivatives of numbers about 1, summed in another order."""


def small_net(inputs: int = 2, outputs: int = 1, hidden: int = 5, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, outputs),
        )
    return net.double()


def poisson(net: nn.Module | None = None, **options: Any) -> Problem:
    terms = {
        "interior": Term("u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", SQUARE.interior(12)),
        "boundary": Term("u", SQUARE.faces(8), weight=3),
    }
    return gncompile.residuals(net or small_net(), "x y", "u", terms, box=SQUARE, **options)


def by_hand(problem: Problem, row: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
    """All residuals ``[N, K]`` as a function of the parameters: ``row(f, x, data)`` of one sample's."""
    batch = problem.batch()

    def residuals(parameters: dict[str, Tensor]) -> Tensor:
        own = {n.removeprefix("net."): p for n, p in parameters.items() if n.startswith("net.")}

        def f(x: Tensor) -> Tensor:
            return functional_call(problem.net, own, (x[None],))[0]

        return vmap(lambda x, data: row(f, x, data, parameters))(batch.x, batch.data)

    return residuals


def poisson_row(f: Any, x: Tensor, data: Tensor, parameters: Any) -> Tensor:
    h = hessian(lambda x: f(x)[0])(x)
    force = 2 * torch.pi**2 * torch.sin(torch.pi * x[0]) * torch.sin(torch.pi * x[1])
    return torch.where(data[0] < 0.5, h[0, 0] + h[1, 1] + force, f(x)[0])[None]


def system_row(f: Any, x: Tensor, data: Tensor, parameters: Any) -> Tensor:
    """Two equations inside, with an unknown and third derivatives; one of data."""
    u, v = f(x)
    du, dv = jacrev(f)(x)
    third = grad(lambda x: hessian(lambda x: f(x)[0])(x)[0, 1])(x)[0]
    nu = parameters["unknowns.nu"][0]
    inside = torch.stack([du[1] + u * du[0] - nu * third, du[0] + dv[1] * torch.exp(v)])
    measured = torch.stack([u - data[1], torch.zeros_like(u)])
    return torch.where(data[0] < 0.5, inside, measured)


def system() -> Problem:
    points = SQUARE.interior(6).drawn(generator_of(1))
    terms = {
        "flow": Term(["u__y + u*u__x - nu*u__y__x__x", "u__x + v__y*exp(v)"], SQUARE.interior(9)),
        "data": Term("u - f", points, weight=0.5, fields={"f": points.sum(dim=1)}),
    }
    return gncompile.residuals(small_net(2, 2), "x y", "u v", terms, unknowns={"nu": 0.3})


CASES = {"poisson": (poisson, poisson_row), "system": (system, system_row)}


@pytest.mark.parametrize("case", CASES)
def test_residuals_gradient_and_curvature_are_those_written_by_hand(case: str) -> None:
    make, row = CASES[case]
    problem = make()
    trainer = problem.compile()
    batch, hand = problem.batch(), by_hand(problem, row)
    x, y = batch.pair(problem.equations)
    parameters = {name: p.detach() for name, p in problem.network.named_parameters()}
    close(trainer.predict(x), hand(parameters))

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        r = hand(parameters)
        terms = zip(problem.terms.values(), batch.rows.values(), strict=True)
        return sum(t.weight * r[rows].square().sum(dim=1).mean() / 2 for t, rows in terms)  # type: ignore[return-value]

    assert float(trainer.loss(x, y)) == pytest.approx(float(objective(parameters)), rel=ROUNDING)
    wanted = grad(objective)(parameters)
    for name, found in trainer.gradients(x, y).items():
        close(found, wanted[name])
    direction = {
        n: torch.randn(p.shape, generator=generator_of(5), dtype=p.dtype)
        for n, p in parameters.items()
    }
    jacobian = jacrev(hand)(parameters)
    tangent = sum(
        (jacobian[n].flatten(2) @ direction[n].flatten() for n in parameters), torch.zeros(())
    )
    damping = sum(d.square().sum() for d in direction.values()) * trainer.damping
    norm = (tangent.square() * batch.weight[:, None]).sum() / len(batch.x) + damping
    close(trainer.quadratic(x, y, [direction])[0], norm.reshape(1, 1))


def test_factors_are_those_written_by_hand() -> None:
    """KFLR's of a net of one layer: residuals by its pre-activation and by that of each derivative."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    problem = poisson(net)
    batch = problem.batch()
    x, y = batch.pair(1)
    found = gncompile.curvature(problem.network, weighted("mse"), x, y, "kflr")
    v, c = net[2].weight[0].detach(), net[2].bias[0].detach()

    def residual(h: Tensor, hx: Tensor, hy: Tensor, inside: Tensor) -> Tensor:
        """Without the force, which does not depend on the network; Laplacian by hand."""
        a = torch.tanh(h)
        return torch.where(inside > 0.5, (-2 * a * (1 - a**2) * (hx**2 + hy**2)) @ v, a @ v + c)

    w = net[0].weight.detach()
    h = batch.x @ w.T + net[0].bias.detach()
    inside = (batch.data[:, 0] < 0.5).double()
    columns = w.T.expand(len(h), 2, 4)
    slopes = vmap(jacrev(residual, argnums=(0, 1, 2)))(h, columns[:, 0], columns[:, 1], inside)
    g = torch.stack([(s * batch.weight[:, None]).T @ s for s in slopes]).sum(dim=0) / len(h)
    places = (
        3  # h, and its derivatives along x and y: docs/mathematics.md#places-that-share-factors
    )
    close(found["net.0"].output, g / places)
    one = torch.ones(len(h), 1, dtype=torch.float64)
    along = torch.eye(3, dtype=torch.float64)[:2].expand(len(h), 2, 3)
    rows = torch.cat([torch.cat([batch.x, one], dim=1)[:, None], along], dim=1)
    close(found["net.0"].input, torch.einsum("nsi,nsj->ij", rows, rows) / len(h))


def close(found: Any, wanted: Tensor) -> None:
    assert float((found - wanted).norm()) <= ROUNDING * float(wanted.norm()) + 1e-13


# --- equations ------------------------------------------------------------------------------------


def wanted_of(*equations: str, unknowns: tuple[str, ...] = ()) -> tuple[Derivative, ...]:
    names = Names(("x", "y"), ("u",), (), unknowns)
    system = System.read(names, {f"t{i}": e for i, e in enumerate(equations)})
    return system.residuals({name: name for name in unknowns}).wanted


@pytest.mark.parametrize(
    ("equations", "weights"),
    [
        (["u__x__x + u__y__y"], [(1.0, 1.0)]),
        (["u__y - k*(u__x__x + 2*u__y__y)*x"], [(1.0, 2.0), (1.0,)]),
        (["u__x__x + u__y__y + 1", "u__x__x + u__y__y - u"], [(1.0, 1.0)]),
        (["u__x__x + u__y__y", "u__x__x"], [(1.0,), (1.0,)]),  # one of them is needed anyway
        (["u__x__x*u__y__y"], [(1.0,), (1.0,)]),
        (["u__x__x + u*u__y__y"], [(1.0,), (1.0,)]),
    ],
)
def test_a_weighted_sum_of_second_derivatives_is_one_stream(
    equations: list[str], weights: list[Any]
) -> None:
    wanted = wanted_of(*equations, unknowns=("k",) * any("k" in e for e in equations))
    assert [tuple(w for _, w in each.terms) for each in wanted] == weights


def test_equations_of_sympy_and_of_classes_are_read() -> None:
    x, y, c = sympy.symbols("x y c")
    u = sympy.Function("u")(x, y)

    class Wave:
        equations: ClassVar = {
            "wave": u.diff(y, 2) - c**2 * u.diff(x, 2),
            "other": sympy.Eq(u.diff(y, x), 0.5 * u),
        }

    names = Names(("x", "y"), ("u",), (), ("c",))
    read = System.read(names, {"t": Wave()}).equations[0]
    texts = ["u__y__y - c**2*u__x__x", "u__x__y - u/2"]
    assert read == tuple(names.read(text, "") for text in texts)


def test_a_residual_that_is_infinite_at_the_points_of_other_terms_does_no_harm() -> None:
    points = torch.tensor([[0.0], [0.0]], dtype=torch.float64)
    terms = {
        "inside": Term("u__x - log(x)/x", Box({"x": (1, 2)}).interior(20)),
        "start": Term("u", points),
    }
    problem = gncompile.residuals(small_net(1), "x", "u", terms)
    trainer = problem.compile(method="kfra", solver="kronecker")
    trainer.fit(updates=5, progress=False)
    x, y = problem.batch().pair(1)
    assert all(g.isfinite().all() for g in trainer.gradients(x, y).values())
    assert trainer.predict(x).isfinite().all()


# --- training -------------------------------------------------------------------------------------


def test_an_unknown_coefficient_is_found() -> None:
    """u' = k u with data of e^{2x}: k becomes 2."""
    box = Box({"x": (0, 1)})
    x = box.interior(20, how="grid")
    terms = {
        "law": Term("u__x - k*u", x),
        "data": Term("u - measured", x, fields={"measured": lambda x: torch.exp(2 * x)}),
    }
    problem = gncompile.residuals(small_net(1), "x", "u", terms, unknowns={"k": 0.5})
    trainer = problem.compile()
    history = trainer.fit(updates=60, progress=False)
    assert problem.unknowns["k"] == pytest.approx(
        2, abs=1e-2
    )  # of a net of 46 parameters, unconverged
    assert history.k[-1] == problem.unknowns["k"]
    energies = trainer.terms()
    assert history.law[-1] == pytest.approx(energies["law"], rel=1e-6)
    assert history[-1].validation_loss == pytest.approx(sum(energies.values()), rel=1e-6)
    text = trainer.summary()
    assert "-k*u + u__x" in text
    assert "k = " in text


@pytest.mark.parametrize("solver", ["exact", "kronecker"])
def test_training_goes_on_bit_for_bit_with_points_drawn_anew(tmp_path: Path, solver: str) -> None:
    straight, broken = (poisson().compile(solver=solver, seed=4) for _ in range(2))
    every = {"resample_every": 2, "progress": False}
    losses = straight.fit(updates=7, **every).loss
    first = broken.fit(updates=3, **every).loss
    broken.save(tmp_path / "saved.safetensors")
    resumed = poisson(small_net(seed=9)).resume(tmp_path / "saved.safetensors")
    assert first + resumed.fit(updates=4, **every).loss == losses
    assert straight.problem.batch(3, 4).x.ne(straight.problem.batch(2, 4).x).any()
    fixed = poisson().compile(solver=solver, seed=4).fit(updates=7, progress=False).loss
    assert fixed[:2] == losses[:2]
    assert fixed[2] != losses[2]


@pytest.mark.parametrize(("points", "scale"), [(12, "identity"), (60, "diagonal")])
def test_the_diagonal_damps_where_it_is_formed(points: int, scale: str) -> None:
    terms = {"interior": Term("u__x__x + u__y__y + 1", SQUARE.interior(points))}
    problem = gncompile.residuals(small_net(), "x y", "u", terms)  # of 51 parameters
    settings = problem.compile().settings
    assert (settings.solver, settings.damping_scale) == ("exact", scale)


def test_a_copy_is_independent() -> None:
    trainer = poisson().compile()
    trainer.fit(updates=2, progress=False)
    other = copy.deepcopy(trainer)
    assert other.fit(updates=3, progress=False).loss == trainer.fit(updates=3, progress=False).loss
    trainer.fit(updates=1, progress=False)
    assert other.terms() != trainer.terms()


def test_what_holds_by_construction_is_ordinary_code() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()

        def forward(self, p: Tensor) -> Tensor:
            x, y = p[:, :1], p[:, 1:]
            return x * (1 - x) * y * (1 - y) * self.inner(p)

    terms = {
        "interior": Term("u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", SQUARE.interior(40))
    }
    problem = gncompile.residuals(Bounded().double(), "x y", "u", terms)
    problem.compile().fit(updates=25, progress=False)
    points = SQUARE.interior(200).drawn(generator_of(7))
    assert problem.relative_l2("sin(pi*x)*sin(pi*y)", points) < 0.02
    edge = problem.evaluate(SQUARE.face(5, x=0).drawn(generator_of(1)))["u"]
    assert not edge.any()


def test_what_is_evaluated_is_what_torch_differentiates() -> None:
    problem = poisson()
    points = SQUARE.interior(7).drawn(generator_of(2))
    found = problem.evaluate(points, ["u", "u__x__y", "u__x**2 - x", "interior"])

    def u(x: Tensor) -> Tensor:
        return problem.net(x[None])[0, 0]

    slopes, second = vmap(grad(u))(points), vmap(hessian(u))(points)
    x, y = points.T
    close(found["u"], problem.net(points)[:, 0].detach())
    close(found["u__x__y"], second[:, 0, 1].detach())
    close(found["u__x**2 - x"], (slopes[:, 0] ** 2 - x).detach())
    force = 2 * torch.pi**2 * torch.sin(torch.pi * x) * torch.sin(torch.pi * y)
    close(found["interior"], (second[:, 0, 0] + second[:, 1, 1] + force).detach())
    truth = problem.net(points).detach() + 1
    assert problem.relative_l2(truth, points) == pytest.approx(float(7**0.5 / truth.norm()))
    assert problem.relative_l2(lambda x: problem.net(x).detach(), points) < 1e-15


def test_derivatives_through_a_layer_norm_are_those_of_its_formula() -> None:
    """Autograd's own third derivatives of it are wrong."""
    net = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).double()
    points = SQUARE.interior(3).drawn(generator_of(2))
    problem = gncompile.residuals(net, "x y", "u", {"a": Term("u__x__x__y", points)})
    trainer = problem.compile()
    first, norm, last = net[0], net[1], net[3]

    def u(x: Tensor) -> Tensor:
        h = first(x)
        a = (h - h.mean()) / (h.var(correction=0) + norm.eps).sqrt()
        return last(torch.tanh(a * norm.weight + norm.bias))[0]

    third = vmap(jacrev(hessian(u)))(points).detach()
    close(trainer.predict(problem.batch().pair(1)[0]), third[:, 0, 0, 1:])


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sobol", "random", "grid"])
def test_points_lie_in_the_box_and_on_its_faces(how: Any) -> None:
    box = Box({"x": (-1, 3), "t": (0, 1)})
    x, t = box.interior(64, how).drawn(generator_of(0)).T
    assert x.dtype == torch.float64
    assert box.outside(torch.stack([x, t], dim=1), ("x", "t")) is None
    assert float(x.min()) < -0.5
    assert float(x.max()) > 2.5
    faces = box.faces(20, how=how).drawn(generator_of(0))
    at = [
        (faces[:, i] == end).sum().item()
        for i, ends in enumerate(box.bounds.values())
        for end in ends
    ]
    assert at == [2, 2, 8, 8]  # by length: one, one, four, four
    sides = box.faces(7, of="x", how=how).drawn(generator_of(0))
    assert sorted([(sides[:, 0] == end).sum().item() for end in (-1, 3)]) == [3, 4]
    start = box.face(9, how=how, t=0).drawn(generator_of(0))
    assert not start[:, 1].any()
    assert len(start[:, 0].unique()) == 9


def test_draws_depend_on_seed_and_number_alone() -> None:
    problem = poisson()
    assert torch.equal(problem.batch(3, 1).x, problem.batch(3, 1).x)
    for other in ((3, 2), (4, 1)):
        assert not torch.equal(problem.batch(3, 1).x, problem.batch(*other).x)
    batch = problem.batch()
    assert batch.rows == {"interior": slice(0, 12), "boundary": slice(12, 20)}
    sums = [float(batch.weight[rows].sum()) / len(batch.x) for rows in batch.rows.values()]
    assert sums == pytest.approx([1, 3])


# --- what is refused ------------------------------------------------------------------------------

POINTS = torch.rand(4, 2, dtype=torch.float64)
CALL = {"inputs": "x y", "outputs": "u", "terms": {"a": Term("u__x", POINTS)}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no points": ({"terms": {"a": "u"}}, "the term 'a' has no points"),
    "points of no term": ({"points": {"b": POINTS}}, "points for a term 'b' that there is not"),
    "empty": ({"terms": {"a": Term("u", POINTS[:0])}}, "there are no points(.|\n)*term 'a'"),
    "shape": ({"terms": {"a": Term("u", POINTS[:, :1])}}, r"another shape(.|\n)*\[4, 1\](.|\n)*term 'a'"),
    "outside": (
        {"terms": {"a": Term("u", POINTS + torch.tensor([2.0, 0]))}, "box": SQUARE},
        "the point 0 has x = 2.*outside the box(.|\n)*term 'a'(.|\n)*x goes from 0 to 1",
    ),
    "box": ({"terms": {"a": Term("u", Box({"x": (0, 1), "t": (0, 1)}).interior(4))}}, "other coordinates"),
    "function": ({"terms": {"a": Term("u", lambda n, g: POINTS)}}, r"how many(.|\n)*gncompile.Points\(n"),
    "count": ({"terms": {"a": Term("u", Points(3, lambda n, g: POINTS))}}, r"3 points were.*\[4, 2\]"),
    "name": ({"terms": {"a": Term("u__x + velocty", POINTS)}, "unknowns": {"velocity": 1.0}},
             "'velocty' is unknown(.|\n)*term 'a'(.|\n)*Did you mean 'velocity'"),
    "symbol": ({"terms": {"a": Term(sympy.Symbol("w"), POINTS)}}, "name 'w' is unknown(.|\n)*unknowns="),
    "free name": ({"terms": {"a": Term("u__x - nu", POINTS)}}, r"unknowns=\{'nu': 1.0\}"),
    "one underscore": ({"terms": {"a": Term("u_xy", POINTS)}}, "'u_xy' is unknown(.|\n)*mean 'u__x__y'"),
    "Leibniz": ({"terms": {"a": Term("x*du_dy", POINTS)}}, "'du_dy' is unknown(.|\n)*mean 'u__y'"),
    "sympy": ({"terms": {"a": Term(sympy.Symbol("u_x"), POINTS)}}, "'u_x' is unknown(.|\n)*mean 'u__x'"),
    "joined": ({"terms": {"a": Term("u__xx", POINTS)}}, "derivative by 'xx'.*mean 'u__x__x'"),
    "ending": ({"terms": {"a": Term("u__x__", POINTS)}}, "'__' before no input.*mean 'u__x'"),
    "doubled": ({"terms": {"a": Term("u____x", POINTS)}}, "'__' before no input.*mean 'u__x'"),
    "input": ({"terms": {"a": Term("u__t", POINTS)}}, "derivative by 't', which is no input"),
    "output": ({"terms": {"a": Term("v__x", POINTS)}}, "derivative of 'v', which is no output"),
    "elsewhere": (
        {"terms": {"a": Term(sympy.Function("u")(0, sympy.Symbol("y")), POINTS)}},
        r"u\(0, y\) is no function of the network's inputs",
    ),
    "network": ({"terms": {"a": Term("x - 1", POINTS)}}, "residual x - 1 does not depend on the network"),
    "weight": ({"weights": {"a": 0}}, "weight of the term 'a' is 0"),
    "field": ({"terms": {"a": Term("u - f", POINTS, fields={"f": torch.ones(3)})}}, r"field 'f' has.*\[3\]"),
    "drawn": (
        {"terms": {"a": Term("u - f", SQUARE.interior(3), fields={"f": torch.ones(3)})}},
        "field 'f' is a tensor, and the points of the term are drawn",
    ),
    "term": ({"terms": {"loss": Term("u", POINTS)}}, "name 'loss' is reserved"),
    "twice": ({"outputs": "x"}, "two names 'x': input and output"),
    "outputs": ({"outputs": "u v"}, r"no column for each of u, v(.|\n)*\[2, 2\](.|\n)*\[2, 1\]"),
    "inputs": (
        {"inputs": "x y t", "terms": {"a": Term("u", torch.rand(4, 3).double())}},
        r"fails on points \[2, 3\]",
    ),
    "field of another": (
        {"terms": {"a": Term("u - f", POINTS, fields={"f": [1.0] * 4}), "b": Term("u__x - f", POINTS)}},
        "the term 'b' reads the field 'f', which only other terms have",
    ),
    "field text": ({"terms": {"a": Term("u - f", POINTS, fields={"f": "f.csv"})}},
                   "field 'f': no real numbers(.|\n)*str"),
    "unknown text": ({"terms": {"a": Term("k*u", POINTS)}, "unknowns": {"k": "2"}}, "'k' begins at '2'"),
    "unknown nan": ({"terms": {"a": Term("k*u", POINTS)}, "unknowns": {"k": float("nan")}}, "begins at nan"),
    "unknown huge": ({"terms": {"a": Term("k*u", POINTS)}, "unknowns": {"k": 10**400}}, "begins at 1000"),
    "order": ({"terms": {"a": Term("u" + 9 * "__x", POINTS)}}, "order 9; at most 8"),
    "underscore": ({"outputs": "u_"}, "'_' at its end"),
    "unsafe": ({"terms": {"a": Term("u.__class__", POINTS)}}, "attribute access"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told(case: str) -> None:
    changed, text = REFUSED[case]
    with pytest.raises(GncompileError, match=text):
        gncompile.residuals(small_net(), **{**CALL, **changed})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Box({"x": (1, 0)}), r"'x' of a box lies in \(1, 0\)"),
        (lambda: SQUARE.face(3, z=0), "no coordinate 'z'"),
        (lambda: SQUARE.face(3, x=2), "x = 2 lies outside the box"),
        (lambda: SQUARE.faces(3), "3 points for 4 faces"),
        (lambda: SQUARE.interior(0), "0 points"),
        (lambda: SQUARE.interior(5, "sobl"), "Did you mean 'sobol'"),  # type: ignore[arg-type]
        (lambda: SQUARE.interior(5, "grid").drawn(generator_of(0)), "no grid(.|\n)*ask for 4"),
    ],
)
def test_mistakes_about_boxes_are_told(make: Callable[[], object], text: str) -> None:
    with pytest.raises(GncompileError, match=text):
        make()


def test_numbers_of_numpy_and_fields_of_any_kind_are_taken() -> None:
    box = Box({"x": (np.float32(0), np.pi), "y": (0, 1)})
    points = box.face(4, x=np.int64(0)).drawn(generator_of(0))
    for given in ([1.0] * 4, np.ones(4), torch.ones(4, 1), lambda x: 1 + 0 * x[:, 0]):
        term = Term("u - f", points, weight=np.float32(2), fields={"f": given})
        assert (
            gncompile.residuals(small_net(), "x y", "u", {"a": term}).batch().data[:, 1].eq(1).all()
        )


def test_what_holds_no_output_is_evaluated_too() -> None:
    found = poisson().evaluate(POINTS, ["x", "2", "pi*y"])
    x, y = POINTS.T
    for value, wanted in zip(found.values(), (x, 2 + 0 * x, torch.pi * y), strict=True):
        close(value, wanted)


def test_single_precision_is_warned_of() -> None:
    with pytest.warns(PrecisionWarning, match=r"net.double\(\)"):
        poisson(small_net().float()).compile(method="adam")
