"""The solvers by name, and what options mean with each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

SolverName = Annotated[
    Literal["kronecker", "exact", "block_hessian_free", "newton_cg", "auto"],
    Field(description="a name: one of kronecker, exact, block_hessian_free, newton_cg, auto"),
]
ExactForm = Annotated[
    Literal["auto", "primal", "dual"], Field(description="a name: one of auto, primal, dual")
]
DampingScale = Annotated[
    Literal["identity", "diagonal"], Field(description="a name: one of identity, diagonal")
]
Acceleration = Annotated[
    Annotated[float, Field(gt=0, le=1)] | None,
    Field(description="None or a number above 0, at most 1"),
]
Preconditioner = Annotated[
    Literal["none", "kronecker"], Field(description="a name: one of none, kronecker")
]
Blocks = Annotated[
    Literal["layers"] | Mapping[str, str],
    Field(description='"layers", or a mapping from layer patterns to names of blocks'),
]
Inverse = Annotated[
    Literal["cholesky", "newton_schulz", "eigen"],
    Field(description="a name: one of cholesky, newton_schulz, eigen"),
]
Factors = Annotated[
    Literal["replicated", "sharded"], Field(description="a name: replicated or sharded")
]
CG_SOLVERS = ("block_hessian_free", "newton_cg")
"""The solvers by conjugate gradients."""

DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "exact": {
        "method": "auto", "factor_share": 1.0, "factors_every": 1, "damping_rate": 0.5,
        "damping_period": 1, "damping_tries": 10, "search_steps": 0, "damping_bounds": (1e-30, 1e30),
        "momentum": False, "layer_steps": 0, "step_growth": None, "quadratic_share": 1.0,
        "average": 0.0, "gather_noise": None, "acceleration": 0.75,
    },
    "block_hessian_free": {"gather_noise": None},
    "newton_cg": {
        "curvature_share": 1.0, "cg_iterations": 250, "cg_tolerance": 0.1, "warm_start": False,
        "layer_steps": 0, "gather_noise": None,
    },
}  # fmt: skip
"""Options whose default is another with a solver. An exact direction needs no other step size than 1 and no
momentum, and λ, its only damping, is adapted after each step: Levenberg and Marquardt's method. Of a factor
0.3 to 0.7 that λ falls by 0.5 takes the fewest steps, and on mini-batches as few (docs/defaults.md)."""

REFUSED: Mapping[str, tuple[str, ...]] = {
    "kronecker": ("damping_scale", "damping_tries", "acceleration"),
    **dict.fromkeys(CG_SOLVERS, ("damping_scale", "acceleration")),
}
"""Options that a solver refuses, as its steps would be others than those asked for."""

FACTORED = frozenset({
    "sharing", "samples", "trace_correction", "factor_samples", "whole_inputs", "factor_average",
    "factors_every", "factor_damping_period", "inverse", "refresh_every", "refresh_always",
    "factors",
})  # fmt: skip
"""Options of the Kronecker factors, which no other solver looks at."""
