"""``gncompile.fit``: regression on all data at once until it converges, and how sure its parameters are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.options import Count, checked
from ..base.tables import binary_size, count, table, wrapped
from ..errors import CompileError, visible
from ..losses.residuals import Unreduced
from ..losses.vocabulary import LossSpec
from ..training.batches import Target
from ..training.callbacks import Callback
from ..training.converged import MESSAGES, Convergence, Tolerances
from ..training.gauss_newton import gauss_newton
from ..training.trainer import Inputs, Trainer
from .compile import compile

SHOWN = 50
"""Numbers of parameters that a printed fit lists."""

DEFAULTS = {"damping": 0.01, "damping_scale": "diagonal", "damping_rate": 0.2}
"""Options that are others than a trainer's. A formula's parameters have units, so λ multiplies the diagonal
of G [Moré 1978]; it begins as Marquardt's [1963], and falls fast, as another try costs no Jacobian."""

DECIDED = ("method", "solver", "l2", "strict", "standardise")
"""Options of ``compile`` that a fit decides."""

HINTS = {
    "sigma": "use gncompile.losses.weighted(loss) and y = (y, 1 / sigma**2)",
    "p0": "a fit starts from the values that the module holds",
    "bounds": "there are none: fit b = exp(c) for a positive b, or low + (high - low) * sigmoid(c)",
    "maxfev": "use max_nfev",
    "jac": "leave it out: derivatives are compiled",
    "x_scale": "leave it out: damping_scale='diagonal', the default here, is x_scale='jac'",
}
"""What to say of arguments that SciPy's functions have."""


@dataclass(frozen=True, eq=False)
class CurveFit:
    """What :func:`fit` found; printed, a table of the parameters.

    What SciPy's ``least_squares`` has too is named as there.
    """

    parameters: Mapping[str, Tensor]
    """The fitted parameters by name, copies of what the module holds."""
    covariance: Tensor | None
    """Of all numbers of the parameters in this order, each parameter row by row, ``[P, P]``; None where
    there is none, ``notes`` tell why."""
    cost: float
    """``½ Σ w (z − y)²`` of squared errors, with the loss's weights but whatever its sums and means; of other
    losses the sum of their values."""
    loss: float
    """The loss that was given, at the fitted parameters."""
    optimality: float
    """The largest element of the gradient of ``cost``."""
    residuals: int | None
    """How many squared errors there are, those with the weight 0 left out; None for other losses."""
    nfev: int
    """Evaluations of the loss; steps that bend take two more forward passes each (``acceleration``)."""
    njev: int
    """Evaluations of the Jacobian."""
    status: int
    """Why it ended: 0 after ``max_nfev`` evaluations, 1 by ``gtol``, 2 by ``ftol``, 3 by ``xtol``, 4 by both
    of these, -2 by a callback."""
    message: str
    """The same in words."""
    notes: tuple[str, ...]
    """What to know of the figures: what the covariance is, what the data do not determine, and few digits."""
    trainer: Trainer = field(repr=False)
    """The compiled model, to predict with or to go on from; None in a fit that was pickled."""

    def __getstate__(self) -> dict[str, Any]:
        """All numbers; the trainer is for ``trainer.save``, which checks what it reads."""
        return {**vars(self), "trainer": None}

    def __copy__(self) -> CurveFit:
        """The same with the same trainer."""
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> CurveFit:
        """A copy with a trainer and a module of its own."""
        return replace(self, **deepcopy(vars(self), memo))

    @property
    def success(self) -> bool:
        """Whether it has converged."""
        return self.status > 0

    @property
    def standard_errors(self) -> dict[str, Tensor] | None:
        """The roots of the covariance's diagonal by name, in the parameters' shapes."""
        if self.covariance is None:
            return None
        sizes = [value.numel() for value in self.parameters.values()]
        parts = self.covariance.diagonal().sqrt().split(sizes)
        named = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view(value.shape) for (name, value), part in named}

    @property
    def residual_deviation(self) -> float:
        """``√(2 cost / (n − P))`` of n squared errors and P parameters; NaN where there is none."""
        size = sum(value.numel() for value in self.parameters.values())
        freedom = 0 if self.residuals is None else self.residuals - size
        return math.sqrt(2 * self.cost / freedom) if freedom > 0 else math.nan

    def __str__(self) -> str:
        size = sum(value.numel() for value in self.parameters.values())
        data = [] if self.residuals is None else [count(self.residuals, "residual")]
        lines = [
            self.message,
            f"cost {self.cost:.8g}, loss {self.loss:.8g}, optimality {self.optimality:.2g}",
            ", ".join([*data, count(size, "parameter"), f"nfev {self.nfev}, njev {self.njev}"]),
            *self.notes,
        ]
        rows = [("parameter", "estimate", "standard error"), *islice(self._rows(), SHOWN)]
        if size > SHOWN:
            rows.append((f"and {size - SHOWN} more", "", ""))
        text = [line for each in lines for line in wrapped(each)]
        return visible("\n".join([*text, "", table(rows, right=(1, 2))]))

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, estimate and standard error of every number."""
        errors = self.standard_errors
        for name, values in self.parameters.items():
            for place in np.ndindex(*values.shape):
                called = name if values.numel() == 1 else f"{name}{list(place)}"
                error = "" if errors is None else f"{float(errors[name][place]):.5g}"
                yield called, f"{float(values[place]):.8g}", error


def fit(
    model: nn.Module,
    loss: LossSpec,
    x: Inputs,
    y: Target,
    *,
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    max_nfev: int | None = None,
    absolute_sigma: bool = False,
    callback: Callback | Sequence[Callback] = (),
    verbose: int = 0,
    **options: Any,
) -> CurveFit:
    """Fit a module's parameters to ``(x, y)``, all samples in every step, until the fit has converged.

    Levenberg and Marquardt's method with the whole Gauss-Newton matrix (``solver="exact"`` of
    :func:`gncompile.compile`), for curves, tables and networks of up to some thousand parameters: what
    ``scipy.optimize.curve_fit`` does, for any ``torch.nn.Module`` and any convex loss, with derivatives
    that are compiled. Write a formula as a ``forward`` whose constants are ``nn.Parameter`` vectors. The
    module holds the fitted parameters afterwards.

    ``model``, ``loss``, ``x: [N, …]`` and ``y`` are those of ``compile``, and so are ``options``, but for
    ``damping=0.01``, ``damping_rate=0.2`` and ``damping_scale="diagonal"``, for parameters of any units.
    Weights come with :func:`gncompile.losses.weighted` and ``y = (y, w)``, where ``w = 1/σ²`` for
    measurements of standard deviation σ.

    ``ftol``, ``xtol`` and ``gtol`` end the fit, each by itself
    (:class:`~gncompile.training.converged.Tolerances`); so do ``max_nfev`` evaluations of the loss, by
    default ``100 (P + 1)`` for P numbers, and a ``callback`` of ``Trainer.fit``'s kind that returns True.
    None leaves a tolerance out. With SciPy's 1e-8 most parameters have four to eight digits, with 1e-14 all
    that there are. Take a float64 module: in float32 no tolerance is below 1.2e-7.

    The covariance is ``σ² (JᵀWJ)⁻¹`` for squared errors, J being the outputs' Jacobian and W the weights,
    with ``σ² = 2 cost / (n − P)``, or 1 if ``absolute_sigma``: as in ``curve_fit``. For other losses, as far
    as they are negative log likelihoods, it is ``(Σ_n J_nᵀ 𝓗_n J_n)⁻¹``, the inverse of the Gauss-Newton
    matrix, which for those of ``torch.nn`` is Fisher's. Where the matrix is singular its pseudo-inverse is
    taken, in units in which the diagonal is 1, and ``notes`` say so.

    ``verbose=1`` prints the result, 2 also a line of progress. Raises what ``compile`` and
    :meth:`Trainer.step` raise. Costs a step of the exact solver for each Jacobian, and ``N K P² + P³`` for
    the covariance.

    >>> line = nn.Linear(1, 1).double()
    >>> x = torch.linspace(0, 1, 5).double()[:, None]
    >>> found = fit(line, "mse", x, 3 * x + x**2)
    >>> found.success, round(float(found.parameters["weight"]), 6)
    (True, 4.0)
    """
    if decided := [name for name in DECIDED if name in options]:
        raise CompileError(
            f"option {decided[0]} is given to fit",
            instead="leave it out: a fit is by the exact solver, of loss and parameters as they are; "
            "gncompile.compile trains in all other ways",
        )
    if theirs := [name for name in HINTS if name in options]:
        raise CompileError(f"unknown option {theirs[0]!r}", instead=HINTS[theirs[0]])
    trainer = compile(model, loss, x, solver="exact", strict=True, **{**DEFAULTS, **options})
    if trainer.compiled.identity.drops and trainer.compiled.masks(True):
        raise CompileError(
            "the model drops activations in its steps, which then have no common minimum",
            instead="call model.eval() before",
        )
    names = [name for name, _ in model.named_parameters() if name in trainer.trained()]
    size = sum(trainer.trained()[name].numel() for name in names)
    if max_nfev is None:
        max_nfev = 100 * (size + 1)
    checked("max_nfev", max_nfev, Count, "None or a whole number, 1 or more")
    tolerances = Tolerances.of(trainer.dtype, ftol=ftol, xtol=xtol, gtol=gtol)
    watch = Convergence(trainer, tolerances, max_nfev)
    told = callback if isinstance(callback, list | tuple) else [callback]
    ended = None
    if max_nfev > 1:  # the first evaluation is none of a step's tries
        history = trainer.fit(
            [(x, y)], updates=max_nfev - 1, callbacks=[watch, *told], progress=verbose > 1,
            batch=lambda pair: pair,
        )  # fmt: skip
        if watch.status is None and history.stopped_early:
            ended = history.ended
    trainer.looked_after.most_tries = trainer.settings.damping_tries
    status = -2 if ended else watch.status or 0
    found = _found(trainer, x, y, names, absolute_sigma)
    result = CurveFit(
        nfev=watch.nfev, njev=watch.njev, status=status,
        message=ended or MESSAGES[status], trainer=trainer, **found,
    )  # fmt: skip
    if verbose:
        print(result)
    return result


def _found(
    trainer: Trainer, x: Inputs, y: Target, names: Sequence[str], absolute_sigma: bool
) -> dict[str, Any]:
    """The fields of a :class:`CurveFit` that depend on the fitted parameters alone."""
    compiled = trainer.compiled
    parameters = {name: trainer.trained()[name].clone() for name in names}
    size = sum(value.numel() for value in parameters.values())
    rows = compiled.reader.target(len(compiled.reader.inputs(x)[0]), y)
    unreduced = Unreduced.of(compiled.loss, rows, compiled.traced.graph.output.size)
    squares, share = unreduced.squares, len(rows) / unreduced.unit
    loss = float(trainer.loss(x, y))
    cost = (
        share * loss if squares is None else squares.sum(trainer.predict(x).reshape(len(rows), -1))
    )
    slopes = trainer.gradients(x, y).values()
    notes = []
    if trainer.dtype == torch.float32:
        notes.append(
            "float32: changes below 1.2e-07 of the loss are not seen; model.double() is more exact"
        )
    covariance, freedom = None, 0 if squares is None else squares.count - size
    budget, needed = compiled.settings.memory_budget, 3 * size**2 * trainer.dtype.itemsize
    if squares is not None and freedom <= 0 and not absolute_sigma:
        notes.append("no covariance: there are no more residuals than parameters")
    elif needed > budget:
        notes.append(
            f"no covariance: it takes {binary_size(needed)}, memory_budget is {binary_size(budget)}"
        )
    else:
        covariance, rank = _inverse(share * gauss_newton(compiled, x, y, names))
        if squares is None:
            notes.append("standard errors by the inverse of the Gauss-Newton matrix")
        elif absolute_sigma:
            notes.append("standard errors by (JᵀWJ)⁻¹, the weights being 1/σ²")
        else:
            variance = 2 * cost / freedom
            covariance *= variance
            notes.append(f"standard errors by σ² (JᵀWJ)⁻¹, σ = {math.sqrt(variance):.6g}")
        if rank < size:
            notes.append(
                f"the data determine {rank} of {size} parameters: the covariance is a pseudo-inverse"
            )
    return {
        "parameters": parameters, "covariance": covariance, "cost": cost, "loss": loss,
        "optimality": share * max(float(slope.abs().max()) for slope in slopes),
        "residuals": None if squares is None else squares.count, "notes": tuple(notes),
    }  # fmt: skip


def _inverse(matrix: Tensor) -> tuple[Tensor, int]:
    """``D⁻¹ S⁺ D⁻¹`` of a positive semidefinite ``M = D S D``, S having the diagonal 1, and the rank of S.

    Eigenvalues of S that are roundings count as 0. Unlike those of M they do not depend on units.
    """
    diagonal = matrix.diagonal().sqrt()
    scale = 1 / torch.where(diagonal > 0, diagonal, 1.0)
    values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    half = scale[:, None] * vectors[:, kept] / values[kept].sqrt()
    return half @ half.mT, int(kept.sum())
