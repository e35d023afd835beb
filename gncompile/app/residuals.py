"""``gncompile.residuals``: differential equations whose solution is a network.

The objective is a sum over terms, equations that hold on points of their own [KP]::

    Ē(θ) = Σ_t w_t E_t,      E_t = (1/N_t) Σ_n Σ_k ρ_t(r_{t,k}(x_n)),      ρ_t(r) = ½ r²

All points are one batch. A sample knows its term, whose residual is its output, and has the weight
``w_t N / N_t``, so that the mean over the N samples is the sum above. With another ρ_t the output is the
signed root of 2 ρ_t (:mod:`gncompile.functions.robust`). Residuals are the network's outputs
(:mod:`gncompile.graph.residuals`): gradient, R-operator and curvature are those of any network, with one
column an equation for KFLR and for the exact step.

[KP] Dangel, Müller, Zeinhofer, *Kronecker-Factored Approximate Curvature for Physics-Informed Neural
Networks*, 2024, arXiv 2405.15603.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.settings import FIRST_ORDER_METHODS, Settings
from ..data.domains import Box, words
from ..errors import CompileError, DataError, PrecisionWarning, nearest, warn
from ..frontends.equations import Names, System
from ..frontends.residual_network import (
    UNKNOWNS,
    Inside,
    ResidualNetwork,
    check_network,
    residual_graph,
)
from ..frontends.torch_export import trace
from ..functions.grids import Grid
from ..graph.torch_network import Network
from ..losses.weighting import weighted
from ..runtime.processes import current
from ..training import checkpoint as checkpoints
from .compile import compile_into
from .reference_solution import reference_values
from .residual_terms import Batch, Sampling, Values, field_values, terms_of
from .residual_trainer import ResidualTrainer

EXACT = 3000
"""The most parameters, or residuals of a batch, for which the exact step is the default: its factorisation
then takes a second or less on one core, and a few such steps do what thousands of others do."""

ROWS = 4096
"""Points that are evaluated together."""


def residuals(
    net: nn.Module,
    inputs: str | Iterable[str],
    outputs: str | Iterable[str],
    terms: Mapping[str, Any],
    *,
    points: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    unknowns: Mapping[str, float] | None = None,
    grids: Mapping[str, Grid | Tensor] | None = None,
    box: Box | None = None,
) -> Problem:
    """The problem of finding parameters of ``net`` for which all residuals are 0.

    ``net`` maps points ``[N, d]`` to ``[N, K]``; ``inputs`` and ``outputs`` name the columns. ``terms`` are
    :class:`~gncompile.Term` by name, or equations alone, whose points and weights are then in ``points`` and
    ``weights``. Equations are read as :mod:`gncompile.frontends.equations` tells: ``u__x__y`` is a
    derivative of the output ``u``. ``unknowns`` are trainable numbers with their first values, for inverse
    problems. ``grids`` are functions by their values on a regular grid, tensors or :class:`~gncompile.Grid`,
    which an equation reads at any place: ``image(x + u, y + v)``. With ``box`` no point may lie outside it.

    What holds by construction is ordinary code: a module around the network that returns ``x * (1 - x) *
    net(x)`` needs no term for its boundary.

    Raises :class:`~gncompile.errors.GncompileError`: for names that are unknown, derivatives by what is no
    input, terms without points, points of another dimension or outside.

    >>> import gncompile
    >>> box = Box({"x": (0, 1), "y": (0, 1)})
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> terms = {
    ...     "interior": gncompile.Term("u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", box.interior(64)),
    ...     "boundary": gncompile.Term("u", box.faces(32)),
    ... }
    >>> problem = residuals(net.double(), "x y", "u", terms)
    >>> trainer = problem.compile()
    >>> history = trainer.fit(updates=3, progress=False)
    >>> sorted(problem.evaluate(torch.rand(5, 2), "u u__x"))
    ['u', 'u__x']
    """
    return Problem(net, words(inputs), words(outputs), terms, points, weights, unknowns, grids, box)


class Problem:
    """A network, equations and points; made by :func:`residuals`."""

    def __init__(
        self,
        net: nn.Module,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        terms: Mapping[str, Any],
        points: Mapping[str, Any] | None,
        weights: Mapping[str, float] | None,
        unknowns: Mapping[str, float] | None,
        grids: Mapping[str, Grid | Tensor] | None,
        box: Box | None,
    ) -> None:
        if not isinstance(net, nn.Module) or not any(True for _ in net.parameters()):
            raise CompileError(
                f"the network is a {type(net).__name__}"
                + " without parameters" * isinstance(net, nn.Module),
                instead="pass a torch.nn.Module with trainable layers",
            )
        self.net = net
        like = next(net.parameters())
        self.terms = terms_of(terms, points or {}, weights or {}, like.dtype)
        fields = dict.fromkeys(name for term in self.terms.values() for name in term.fields)
        given = {n: g if isinstance(g, Grid) else Grid(g) for n, g in (grids or {}).items()}
        self.names = Names(inputs, outputs, tuple(fields), tuple(unknowns or {}), given)
        read = System.read(self.names, {n: t.equation for n, t in self.terms.items()})
        losses = tuple((term.loss, term.scale or 1.0) for term in self.terms.values())
        self.system = replace(read, losses=losses)
        for (name, term), equations in zip(self.terms.items(), self.system.equations, strict=True):
            symbols = {str(symbol) for e in equations for symbol in e.free_symbols}
            for each in sorted(symbols & {*fields} - {*term.fields}):
                raise CompileError(
                    f"the term {name!r} reads the field {each!r}, which only other terms have",
                    instead=f"give it at the points of this one too: Term(..., fields={{{each!r}: ...}})",
                )
        self.sampling = Sampling(self.terms, self.names, box, like.dtype, like.device)
        check_network(net, self.system, self.batch().x[:2])
        for name, first in (unknowns or {}).items():
            known = isinstance(first, int | float | np.number)
            if not known or not abs(first) <= torch.finfo(like.dtype).max:
                raise CompileError(
                    f"the unknown {name!r} begins at {first!r}", instead="give a finite number"
                )
        self.network = ResidualNetwork(net, self.system, unknowns or {})
        """The residuals as a module, signed roots of their losses, what is compiled and trained."""
        self._evaluators: dict[tuple[str, ...], tuple[Network, list[int]]] = {}

    @property
    def unknowns(self) -> dict[str, float]:
        """The unknowns as they are now."""
        return {name: float(value.detach()) for name, value in self.network.unknowns.items()}

    @property
    def equations(self) -> int:
        """Residuals of a sample, the most that a term has."""
        return max(map(len, self.system.equations))

    def batch(self, draw: int = 0, seed: int = 0) -> Batch:
        """The points of all terms; those that are drawn depend on ``seed`` and the number of the draw."""
        return self.sampling.batch(draw, seed)

    # --- training -------------------------------------------------------------------------------------

    def compile(
        self,
        method: str | Mapping[str, str] | None = None,
        *,
        solver: str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        **options: Any,
    ) -> ResidualTrainer:
        """Compile the training step; ``options`` are those of :func:`gncompile.compile`.

        ``solver`` is ``"exact"`` where the network has at most :data:`EXACT` parameters, or the points so
        many residuals, else, or where a ``method`` is given, ``"kronecker"``, one pair of factors a layer for
        the points of all terms; its method is ``"kflr"``, exact in Ḡ, which takes one column an equation.
        The exact step is damped by a multiple of the diagonal of G (``damping_scale``); of the identity where
        there are fewer residuals than parameters, and G is not formed.
        ``seed`` also starts the drawing of points.

        Train in float64: the network's dtype counts, ``net.double()`` before. Second derivatives lose half
        of float32's digits, and the damping that leads to small errors lies below its rounding.
        """
        if self.sampling.dtype == torch.float32:
            warn(
                PrecisionWarning,
                "the network is in float32: errors of derivatives are some 1e-4 of their size, and steps "
                "stop to improve where residuals are that small",
                instead="make it float64 before: net.double()",
            )
        batch = self.batch(seed=seed)
        if method not in FIRST_ORDER_METHODS:
            options.setdefault("gather_samples", 1)
        parameters, rows = self._sizes(len(batch.x))
        if solver is None:
            apart = bool(options.get("deterministic")) or current(options.get("process_group"))
            solver = self._solver(parameters, rows, bool(apart)) if method is None else "kronecker"
        if method is None and solver != "exact":
            method = "kflr"
        given = {"backend": "torch", "precision": "highest", "tune": "cached"}
        if solver == "exact" and rows >= parameters:
            given["damping_scale"] = "diagonal"  # in the dual form it takes rows of J
        trainer = compile_into(
            ResidualTrainer.__new__(ResidualTrainer), self.network, weighted("mse"), (batch.x, batch.data),
            method, solver=solver, dtype=dtype, seed=seed,
            **{**given, **options},
        )  # fmt: skip
        assert isinstance(trainer, ResidualTrainer)
        trainer.problem = self
        return trainer

    def _sizes(self, samples: int) -> tuple[int, int]:
        """P, and the residuals of a batch: the sizes of the primal and of the dual form."""
        parameters = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return parameters, samples * self.equations

    def _solver(self, parameters: int, rows: int, apart: bool) -> str:
        """Points that lie ``apart``, on many processes, are solved for in the size of the parameters."""
        least = parameters if apart else min(parameters, rows)
        fits = 4 * least**2 * 8 <= Settings().memory_budget
        return "exact" if least <= EXACT and fits else "kronecker"

    def resume(self, path: str | os.PathLike[str]) -> ResidualTrainer:
        """The trainer that was saved to ``path``, as :meth:`Trainer.resume` gives it; points go on as drawn.

        The equations, and the shapes of the network, have to be the same.
        """
        trainer = checkpoints.resume(path, self.network, None, ResidualTrainer)
        trainer.problem = self
        return trainer

    def for_network(self, network: ResidualNetwork) -> Problem:
        """The same equations and points for another network, as a copied trainer has it."""
        names, unknowns = self.names, {n: float(p.detach()) for n, p in network.unknowns.items()}
        problem = Problem(
            network.net,
            names.inputs,
            names.outputs,
            self.terms,
            None,
            None,
            unknowns,
            names.grids,
            self.sampling.box,
        )
        problem.network = network
        return problem

    # --- questions ------------------------------------------------------------------------------------

    def evaluate(
        self,
        points: Values,
        names: str | Iterable[str] | None = None,
        fields: Mapping[str, Values] | None = None,
    ) -> dict[str, Tensor]:
        """Outputs, derivatives, residuals, or any expressions in them, at ``points [n, d]``: ``[n]`` each.

        ``names`` are such expressions, ``"u u__x"`` or ``["u__x**2"]``, or names of terms, whose residual is
        meant (of several equations ``[n, k]``); by default the outputs. One pass of the differentiated graph,
        at the network's present parameters; no autograd.
        """
        asked = self.names.outputs if names is None else words(names)
        x = self.sampling.in_order(points, None, "evaluate")
        data = x.new_zeros(len(x), 1 + len(self.names.fields))
        for name, values in (fields or {}).items():
            if name not in self.names.fields:
                raise DataError(
                    f"there is no field {name!r}. {nearest(name, self.names.fields)}".rstrip(),
                    where="evaluate(fields=...)",
                )
            data[:, 1 + self.names.fields.index(name)] = field_values(name, values, x, "evaluate")
        network, widths = self._evaluator(asked)
        with torch.no_grad():
            now = dict(self.network.named_parameters())
            parts = zip(x.split(ROWS), data.split(ROWS), strict=True)
            z = torch.cat([network(now, part) for part in parts])
        columns = z.split(widths, dim=1)
        return {n: c[:, 0] if c.shape[1] == 1 else c for n, c in zip(asked, columns, strict=True)}

    def energies(self, draw: int = 0, seed: int = 0) -> dict[str, float]:
        """``E_t`` of every term by name, on the points of a draw, at the network's present parameters."""
        batch = self.batch(draw, seed)
        return batch.energies(self.network(batch.x, batch.data).detach())

    def _evaluator(self, asked: tuple[str, ...]) -> tuple[Network, list[int]]:
        """The graph that computes what is asked for, as a function, and how many columns each takes."""
        if asked in self._evaluators:
            return self._evaluators[asked]
        numbers = {name: i for i, name in enumerate(self.terms)}
        taken = {*self.names.symbols}
        each = [
            self.system.equations[numbers[name]]
            if name in numbers and name not in taken
            else (self.names.read(name, "evaluate"),)
            for name in asked
        ]
        system = System(self.names, (tuple(e for several in each for e in several),))
        given = {name: f"{UNKNOWNS}.{name}" for name in self.names.unknowns}
        network = Network(self._traced(system, given))
        self._evaluators[asked] = network, [len(several) for several in each]
        return self._evaluators[asked]

    def _traced(self, system: System, unknowns: Mapping[str, str]) -> Any:
        example = self.batch().x[:2]
        traced = trace(Inside(self.net), example, name=type(self.net).__name__)
        return residual_graph(self.network, traced, system.residuals(unknowns))

    def relative_l2(self, reference: Any, points: Values) -> float:
        """``‖u - u*‖ / ‖u*‖`` over ``points [n, d]`` and all K outputs.

        ``reference`` u* is values ``[n, K]``, of one output also ``[n]``; an expression in the inputs or a
        number; a list of K such columns, values ``[n]`` or expressions, one an output; or a function of the
        points that returns one of these. Anything else is a :class:`~gncompile.errors.GncompileError`.
        """
        x = self.sampling.in_order(points, None, "relative_l2")
        truth = reference_values(reference, self.names, x)
        found = torch.stack(list(self.evaluate(x).values()), dim=1)
        return float((found - truth).norm() / truth.norm())
