"""The optimiser's settings: one frozen record, validated, with the meaning of each in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Literal

from ..errors import CompileError, message, require_known

Method = Literal["kfra", "kflr", "kfac", "kfac_rp", "empirical", "adam", "sgd", "auto"]
CURVATURE_METHODS = ("kfra", "kflr", "kfac", "kfac_rp", "empirical")
SAMPLED_METHODS = ("kfac", "kfac_rp")
FIRST_ORDER_METHODS = ("adam", "sgd")
AUTO = "auto"

POSITIVE = (
    *("damping", "damping_rate", "damping_period", "factor_damping_period", "factor_damping_rate"),
    *(
        "refresh_every",
        "factors_every",
        "samples",
        "gather_samples",
        "factor_samples",
        "quadratic_samples",
        "memory_budget",
        "learning_rate",
    ),
)


@dataclass(frozen=True)
class Settings:
    """How the trainer steps (SPEC §7); the defaults need no tuning.

    ``method`` is one curvature method for all layers, ``"auto"`` (chosen by cost, see
    :mod:`gncompile.method_choice`), a mapping from layer patterns to methods
    (``{"*": "kfra", "decoder.*": "kfac"}``, the last pattern that matches decides), or a first-order
    baseline. ``l2`` is one coefficient η for every weight and bias, or a mapping from parameter-name patterns
    (``"*.weight"``) to coefficients; parameters no pattern matches are not decayed.
    """

    method: Method | Mapping[str, str] = "kfra"
    l2: float | Mapping[str, float] = 0.0
    damping: float = 0.1
    """Initial Levenberg-Marquardt damping λ."""
    damping_bounds: tuple[float, float] = (1e-30, 1e4)
    damping_rate: float = 0.95
    """ω: λ is multiplied by ω^T or divided by it every T = ``damping_period`` steps."""
    damping_period: int = 5
    search_steps: int = 10
    """First steps that each halve or double λ, with γ = ½√λ, at most until the first choice of γ; judged on
    the samples of the factors."""
    inverse: Literal["cholesky", "newton_schulz"] = "cholesky"
    """How damped factors are inverted: anew by Cholesky, or on the Triton backend by Newton and Schulz's
    iteration from the inverses of before, in matrix products only."""
    exact_damping: bool = False
    """Divide by ``q_i g_j + κ`` in the eigenbases instead of damping the two factors separately."""
    factor_damping_period: int = 20
    """Steps between choices of γ, the damping of the Kronecker factors: of γ, γ·rate and γ/rate the one
    whose step the quadratic model predicts to be best [MG §6.6]. γ is ½√λ before."""
    factor_damping_rate: float = 0.5
    trace_correction: bool = True
    """KFRA only: scale each Ḡ to the exact trace, estimated by one ±1 projection (one backward pass)."""
    factor_share: float = 0.25
    """Share of the batch that the curvature factors are computed on [MG §8: ⅛]; their running averages make
    up for the rest."""
    factor_samples: int = 256
    """Samples that the factors are computed on at least, if the batch has them."""
    factors_every: int = 2
    """Steps between new curvature factors; the first ``refresh_always`` steps always compute them."""
    factor_average: float = 0.95
    """Bound on ε = min(1 − 4/(k + 3), bound), the memory of the factors' running averages."""
    refresh_every: int = 10
    """Steps between refreshes of the inverses, later on."""
    refresh_always: int = 5
    """First steps that always refresh. After k times as many every (k + 1)-th does, in multiples of
    ``factors_every``."""
    momentum: bool = True
    """Choose step size and momentum, in [0, 1], together from the exact quadratic model. While the averaged
    parameters are better than the latest by more than 1 % of the loss, noise leads, and there is none."""
    whole_inputs: int = 10
    """First steps in which the input factors Q are made of the whole batch, whatever ``factor_share``: the
    running average of a few shares has too low a rank."""
    layer_steps: int = 6
    """First steps in which every layer has a step size of its own, chosen together by the quadratic model on
    half its samples."""
    step_cap: float | None = None
    """Optional bound on the step size along the preconditioned gradient."""
    step_growth: float | None = 2.0
    """Optional bound on a step's squared length in the norm of the quadratic model, and on ``-bᵀc``, twice
    the decrease it promises: so many times the running mean of the greater; longer steps are shortened."""
    quadratic_share: float = 0.25
    """Share of the batch on which the quadratic model's curvature M is evaluated [MG §7: ¼]; the
    gradient term b always uses the whole batch."""
    quadratic_samples: int = 256
    """Samples that M is evaluated on at least, if the batch has them."""
    samples: int = 1
    """Sampled gradients a step for KFAC and its projections."""
    guarded: bool = False
    """Whether the program itself refuses bad steps, so that steps can run ahead of the host."""
    average: float = 0.999
    """Bound on the decay of the parameter average, which is over about the last ninth of the updates until
    this binds; 0 keeps none. Evaluation uses it where it is better than the latest parameters, and λ is held
    up there."""
    gather_samples: int = 256
    """Samples that ``fit`` and ``gather`` collect at least for a step, from several batches if need be."""
    gather_noise: float | None = 0.9
    """Bound on the noise's share of the squared gradient, in the norm of the preconditioner: where it is
    exceeded, steps are taken on twice the samples. None: the batches stay as they are."""
    memory_budget: int = 1 << 30
    """Bytes that a chunk of KFLR's columns may use, and the work buffers of a batch that grows."""
    learning_rate: float = 1e-3
    """Step size of the first-order baselines ``adam`` and ``sgd``."""
    sgd_momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in POSITIVE:
            _require(name, getattr(self, name), getattr(self, name) > 0, "a positive number")
        for name in ("damping_rate", "factor_damping_rate"):
            _require(name, getattr(self, name), getattr(self, name) < 1, "a number below 1")
        for name in ("factor_average", "average"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        for name in ("factor_share", "quadratic_share"):
            share = getattr(self, name)
            _require(name, share, 0 < share <= 1, "a number in (0, 1]")
        cap = self.step_cap
        _require("step_cap", cap, cap is None or cap > 0, "None or a positive number")
        growth = self.step_growth
        _require("step_growth", growth, growth is None or growth > 1, "None or a number above 1")
        noise = self.gather_noise
        _require(
            "gather_noise", noise, noise is None or 0 < noise < 1, "None or a number in (0, 1)"
        )
        self._check_inverse()
        self._check_method()

    def _check_inverse(self) -> None:
        """Refuse unknown inverses, and refined ones where eigenvectors take their place."""
        known = ("cholesky", "newton_schulz")
        _require("inverse", self.inverse, self.inverse in known, f"one of {', '.join(known)}")
        if self.exact_damping and self.inverse != "cholesky":
            raise CompileError(
                message(
                    f"exact_damping together with inverse={self.inverse!r}",
                    instead="leave one of them out: exact damping inverts nothing, it decomposes",
                )
            )

    def _check_method(self) -> None:
        """Refuse unknown methods, and what cannot be mixed."""
        by_pattern = isinstance(self.method, Mapping)
        named = tuple(self.method.values()) if isinstance(self.method, Mapping) else (self.method,)
        known = (
            CURVATURE_METHODS if by_pattern else (*CURVATURE_METHODS, *FIRST_ORDER_METHODS, AUTO)
        )
        for method in named:
            require_known("method", method, known)
        if "kflr" in named and set(SAMPLED_METHODS) & set(named) and self.samples > 1:
            raise CompileError(
                message(
                    f"samples = {self.samples} together with the columns of 'kflr' in other layers",
                    instead="use samples=1, or 'kfra' in place of 'kflr'",
                )
            )

    @classmethod
    def from_options(cls, **options: object) -> Settings:
        """Settings from keyword options; an unknown one raises with the nearest known name."""
        known = [f.name for f in fields(cls)]
        for name in options:
            require_known("option", name, known, "some")
        return cls(**options)  # type: ignore[arg-type]

    @property
    def second_order(self) -> bool:
        """Whether the method uses curvature factors."""
        return self.method not in FIRST_ORDER_METHODS

    def rows(self, batch: int) -> dict[str, int]:
        """The samples of a batch for the factors (F), the quadratic model (Q), and that of the layers (L)."""
        return {
            "F": _share(batch, self.factor_share, self.factor_samples),
            "Q": _share(batch, self.quadratic_share, self.quadratic_samples),
            "L": _share(batch, self.quadratic_share / 2, math.ceil(self.quadratic_samples / 2)),
        }

    @property
    def factor_dim(self) -> str:
        """The dimension of the samples the factors are computed on: all N, or the last F."""
        return "N" if self.factor_share == 1 else "F"

    @property
    def quadratic_dim(self) -> str:
        """The dimension of the samples the quadratic model is evaluated on: all N, or the first Q."""
        return "N" if self.quadratic_share == 1 else "Q"

    @property
    def layer_dim(self) -> str:
        """The dimension of the samples that step sizes of the layers are chosen on: all N, or the first L."""
        return "N" if self.quadratic_share == 1 else "L"

    def l2_of(self, parameter: str) -> float:
        """The L2 coefficient η of a parameter by name."""
        if not isinstance(self.l2, Mapping):
            return float(self.l2)
        matches = [eta for pattern, eta in self.l2.items() if fnmatchcase(parameter, pattern)]
        return float(matches[-1]) if matches else 0.0


def _share(batch: int, share: float, at_least: int) -> int:
    return min(batch, max(math.ceil(batch * share), at_least))


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise CompileError(message(f"option {name} = {value!r}", instead=f"pass {wanted}"))
