"""The differential equations of ``benchmarks.pde``, with residuals by hand, and solutions.

The settings are those of Dangel, Müller and Zeinhofer, 2024, arXiv 2405.15603, §4: networks, points, and the
points of evaluation; float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp

import gncompile
from gncompile import Box, Term
from gncompile.app.residuals import Problem

from .small_step import mlp

AGREEMENT = 1e-9
"""Of residuals and gradient by hand with gncompile's, relative; float64."""
FIVE = ("x1", "x2", "x3", "x4", "x5")


class Field(Protocol):
    """A function of points, ``u``, and its derivatives."""

    def __call__(self, x: Tensor) -> Tensor:
        """``u`` at the rows of ``x``."""

    def along(self, x: Tensor, *by: int) -> Tensor:
        """``∂^k u / ∂x_i ∂x_j …`` at the rows of ``x``."""


ByHand = Callable[[Field, Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Forward:
    """A network as a field, its derivatives by nested forward mode."""

    net: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def along(self, x: Tensor, *by: int) -> Tensor:
        function: Callable[[Tensor], Tensor] = self
        for i in by:
            direction = torch.zeros_like(x)
            direction[:, i] = 1
            function = slope(function, direction)
        return function(x)


def slope(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    """The derivative along ``direction``."""
    return lambda x: jvp(function, (x,), (direction,))[1]


@dataclass(frozen=True)
class Equation:
    """A problem: its widths, terms, residuals by hand, and the solution at points."""

    widths: Sequence[int]
    box: Box
    terms: Mapping[str, Term]
    by_hand: ByHand
    truth: Callable[[Tensor], Tensor]
    aims: Mapping[float, float]
    """Seconds within which an error is to be reached."""
    resample_every: int | None = None
    """Steps after which gncompile draws the points anew; the others keep theirs."""


def poisson_2d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box({"x": (0, 1), "y": (0, 1)})
    terms = {
        "interior": Term(
            "u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", box.interior(900, "random")
        ),
        "boundary": Term("u", box.faces(120, how="random")),
    }

    def truth(x: Tensor) -> Tensor:
        return torch.sin(torch.pi * x).prod(dim=1)

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        laplacian = sum(u.along(x["interior"], i, i) for i in range(2))
        return {
            "interior": laplacian + 2 * torch.pi**2 * truth(x["interior"]),
            "boundary": u(x["boundary"]),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def poisson_5d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box(dict.fromkeys(FIVE, (0, 1)))
    solution = " + ".join(f"cos(pi*{x})" for x in FIVE)
    laplacian = " + ".join(f"u__{x}__{x}" for x in FIVE)
    terms = {
        "interior": Term(f"{laplacian} + pi**2*({solution})", box.interior(3000, "random")),
        "boundary": Term(f"u - ({solution})", box.faces(500, how="random")),
    }

    def truth(x: Tensor) -> Tensor:
        return torch.cos(torch.pi * x).sum(dim=1)

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        inside, edge = x["interior"], x["boundary"]
        laplacian = sum(u.along(inside, i, i) for i in range(5))
        return {
            "interior": laplacian + torch.pi**2 * truth(inside),
            "boundary": u(edge) - truth(edge),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def heat_1d(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box = Box({"x": (0, 1), "t": (0, 1)})
    terms = {
        "interior": Term("u__t - u__x__x/4", box.interior(900, "random")),
        "sides": Term("u", box.faces(80, of="x", how="random")),
        "start": Term("u - sin(pi*x)", box.face(40, "random", t=0)),
    }

    def truth(p: Tensor) -> Tensor:
        return torch.exp(-(torch.pi**2) * p[:, 1] / 4) * torch.sin(torch.pi * p[:, 0])

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        inside = x["interior"]
        return {
            "interior": u.along(inside, 1) - u.along(inside, 0, 0) / 4,
            "sides": u(x["sides"]),
            "start": u(x["start"]) - torch.sin(torch.pi * x["start"][:, 0]),
        }

    return Equation(widths, box, terms, by_hand, truth, aims)


def burgers(widths: Sequence[int], aims: Mapping[float, float]) -> Equation:
    box, nu = Box({"x": (-1, 1), "t": (0, 1)}), 0.01 / np.pi
    terms = {
        "interior": Term("u__t + u*u__x - 0.01/pi*u__x__x", box.interior(2540, "random")),
        "sides": Term("u", box.faces(80, of="x", how="random")),
        "start": Term("u + sin(pi*x)", box.face(160, "random", t=0)),
    }

    def truth(p: Tensor) -> Tensor:
        """Cole and Hopf's formula by Gauss and Hermite's quadrature."""
        x, t = p.numpy().T[:, :, None]
        z, w = np.polynomial.hermite.hermgauss(100)
        y = x - z * np.sqrt(4 * nu * t)
        power = -np.cos(np.pi * y) / (2 * np.pi * nu)
        f = w * np.exp(power - power.max(axis=1, keepdims=True))
        return torch.from_numpy(-(np.sin(np.pi * y) * f).sum(axis=1) / f.sum(axis=1))

    def by_hand(u: Field, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        p = x["interior"]
        flow = u.along(p, 1) + u(p) * u.along(p, 0) - nu * u.along(p, 0, 0)
        start = u(x["start"]) + torch.sin(torch.pi * x["start"][:, 0])
        return {"interior": flow, "sides": u(x["sides"]), "start": start}

    # Where the shock is, it is thinner than the points lie apart.
    return Equation(widths, box, terms, by_hand, truth, aims, resample_every=1)


DEEP = (2, 64, 64, 48, 48, 1)
EQUATIONS: Mapping[str, Equation] = {
    "poisson_2d/257": poisson_2d((2, 64, 1), {1e-3: 3, 1e-5: 20}),
    "poisson_2d/9873": poisson_2d(DEEP, {1e-3: 30, 1e-5: 150}),
    "heat_1d/257": heat_1d((2, 64, 1), {1e-3: 5, 1e-5: 30}),
    "heat_1d/9873": heat_1d(DEEP, {}),
    "poisson_5d/449": poisson_5d((5, 64, 1), {1e-3: 15}),
    "burgers/921": burgers((2, 20, 20, 20, 1), {1e-3: 300}),
}


@dataclass(frozen=True)
class Posed:
    """An equation with the points and first weights of one seed."""

    equation: Equation
    problem: Problem
    seed: int

    @classmethod
    def of(cls, equation: Equation, seed: int) -> Posed:
        torch.manual_seed(seed)
        net = mlp(*equation.widths).double()
        names = equation.box.names
        problem = gncompile.residuals(net, names, "u", equation.terms, box=equation.box)
        return cls(equation, problem, seed)

    def objective(self, net: nn.Module) -> Callable[[], Tensor]:
        """``Σ_t ½ mean r_t²`` of a network, by hand."""
        batch = self.problem.batch(seed=self.seed)
        points = {name: batch.x[rows] for name, rows in batch.rows.items()}
        u = Forward(net)
        residuals = self.equation.by_hand
        return lambda: torch.stack(
            [r.square().mean() / 2 for r in residuals(u, points).values()]
        ).sum()

    def check(self) -> None:
        """Raise unless gncompile and what is written by hand have the same loss and gradient."""
        net = copy.deepcopy(self.problem.net)
        loss = self.objective(net)()
        loss.backward()
        trainer = self.problem.compile(seed=self.seed, method="sgd")
        x, y = self.problem.batch(seed=self.seed).pair(1)
        found = trainer.gradients(x, y)
        wanted = {f"net.{name}": p.grad for name, p in net.named_parameters()}
        size = max(float(g.norm()) for g in wanted.values() if g is not None)
        far = max(float((found[name] - g).norm()) for name, g in wanted.items() if g is not None)
        apart = abs(float(trainer.loss(x, y)) - float(loss.detach())) / float(loss.detach())
        if max(far / size, apart) > AGREEMENT:
            raise SystemExit(f"residuals by hand differ: gradient {far / size:g}, loss {apart:g}")

    def error(self, net: nn.Module, points: Tensor, truth: Tensor) -> float:
        """The relative L2 error."""
        with torch.no_grad():
            return float((net(points)[:, 0] - truth).norm() / truth.norm())
