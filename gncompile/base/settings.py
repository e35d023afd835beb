"""The optimiser's settings: one frozen record, validated, with the meaning of each in one place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from ..errors import CompileError, OptionWarning, nearest, warn
from . import solver_options as of_solvers
from .option_hints import GROUPS, HINTS, IDLE
from .options import STRICT, WHOLE_BOUND, Count, Steps, explained

CurvatureMethod = Literal["kfra", "kflr", "kfac", "kfac_rp", "empirical"]
Sharing = Literal["expand", "reduce", "nearest"]
Method = Literal[CurvatureMethod, "adam", "sgd", "auto"]
CURVATURE_METHODS = get_args(CurvatureMethod)
SAMPLED_METHODS = ("kfac", "kfac_rp")
FIRST_ORDER_METHODS = ("adam", "sgd")
AUTO = "auto"
FACTOR_SAMPLES, FACTOR_SAMPLES_AT_PLACES, MANY_PLACES = 256, 64, 64
"""Samples for the factors at least, and where a weight is applied at so many places of a sample."""

SHOWN = 8
"""Parameters that an error lists."""


class ReadBy(NamedTuple):
    """Marks an option that only these methods look at; one without a mark is of every second-order method."""

    methods: tuple[str, ...]
    called: str


BASELINES = ReadBy(FIRST_ORDER_METHODS, "method='adam' or 'sgd'")
SGD = ReadBy(("sgd",), "method='sgd'")
OF_EVERY_METHOD = ("method", "l2", "deterministic")

Positive = Annotated[float, Field(gt=0, description="a positive, finite number")]
Between = Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1")]
Decay = Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")]
Share = Annotated[float, Field(gt=0, le=1, description="a number in (0, 1]")]
Switch = Annotated[bool, Field(description="True or False")]
Coefficient = Annotated[float, Field(ge=0)]
Bounds = Annotated[tuple[float, float], Field(description="(a number, a number)")]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """How the trainer steps (docs/mathematics.md#the-optimiser); the defaults need no tuning.

    ``method`` is one curvature method for all layers, ``"auto"`` (chosen by cost, see
    :mod:`gncompile.derivation.method_choice`), a mapping from layer patterns to methods
    (``{"*": "kfra", "decoder.*": "kfac"}``, the last pattern that matches decides), or a first-order
    baseline. ``l2`` is one coefficient η for every weight and bias, or a mapping from parameter-name patterns
    (``"*.weight"``) to coefficients; parameters no pattern matches are not decayed.
    """

    __pydantic_fields__: ClassVar[dict[str, FieldInfo]]

    # the objective and its curvature

    method: Annotated[
        Method | Mapping[str, CurvatureMethod],
        Field(
            description=f"a name: one of {', '.join((*CURVATURE_METHODS, *FIRST_ORDER_METHODS, AUTO))}"
        ),
    ] = "kfra"
    solver: of_solvers.SolverName = "kronecker"
    """``kronecker``: a pair of factors of each layer by ``method``; ``exact``: the whole Gauss-Newton matrix
    instead, for networks of few parameters or batches of few samples (:mod:`gncompile.solvers.exact`);
    ``block_hessian_free``, ``newton_cg``: conjugate gradients with it, in blocks or as a whole
    (:mod:`gncompile.solvers.conjugate_gradients`); each with defaults of its own
    (:data:`~gncompile.base.solver_options.DEFAULTS`); ``auto``: ``exact`` where it costs little more than
    factors (:mod:`gncompile.app.solver_choice`)."""
    exact_form: of_solvers.ExactForm = "auto"
    """With ``solver="exact"``: whether the system that is solved has the size of the parameters (``primal``)
    or of samples times outputs (``dual``); ``auto`` takes the cheaper for the batch compiled with."""
    blocks: of_solvers.Blocks = "layers"
    """With ``solver="block_hessian_free"``: the blocks of G that are kept, each layer's, or those of groups,
    ``{"encoder.*": "encoder", "decoder.*": "decoder"}``; the last pattern that matches a layer decides."""
    curvature_share: Share = 0.25
    """With the solvers by conjugate gradients: share of the batch, its last samples, that curvature products
    are computed on; the gradient is that of the whole batch."""
    cg_iterations: Count = 10
    """Curvature products of a step at most, in every block."""
    cg_tolerance: Decay = 0.0
    """ξ: a block is solved once ``‖r‖ ≤ ξ‖∇‖``; 0 makes every product."""
    warm_start: Switch = True
    """Whether the first product searches along the last step."""
    preconditioner: of_solvers.Preconditioner = "none"
    """``kronecker``: the conjugate gradients are preconditioned by the factors of ``method``."""
    l2: Annotated[
        Coefficient | Mapping[str, Coefficient],
        Field(
            description="a number or a mapping from patterns to numbers, finite and 0 or greater"
        ),
    ] = 0.0
    sharing: Annotated[
        Sharing | Mapping[str, Sharing],
        Field(
            description="a name: one of expand, reduce, nearest; or a mapping from layer patterns to names"
        ),
    ] = "expand"
    """How the places of a weight that is used at several make one pair of factors; in a mapping the last
    pattern that matches a layer decides, and layers that none matches have ``expand``."""
    samples: Count = 1
    """Sampled gradients a step for KFAC and its projections."""
    trace_correction: Switch = True
    """KFRA only: scale each Ḡ to the exact trace, estimated by one ±1 projection (one backward pass)."""
    factor_share: Share = 0.25
    """Share of the batch that the curvature factors are computed on [MG §8: ⅛]; their running averages make
    up for the rest."""
    factor_samples: Annotated[
        Annotated[int, Field(ge=1, lt=WHOLE_BOUND)] | None,
        Field(description="None or a whole number, 1 or greater"),
    ] = None
    """Samples that the factors are computed on at least, if the batch has them. None: 256, or 64 where a
    weight is applied at 64 and more places of a sample, as in convolutions, for its moments then have 64
    times as many rows."""
    whole_inputs: Steps = 10
    """First steps in which the input factors Q are made of the whole batch, whatever ``factor_share``: the
    running average of a few shares has too low a rank."""
    factors_every: Count = 2
    """Steps between new curvature factors; the first ``refresh_always`` steps always compute them."""
    factor_average: Decay = 0.95
    """Bound on ε = min(1 − 4/(k + 3), bound), the memory of the factors' running averages."""

    strict: Switch = False
    """Refuse a network with parameters that no curvature rule covers; else a first-order rule trains them."""

    # damping and inverses

    damping: Positive = 0.1
    """Initial Levenberg-Marquardt damping λ."""
    damping_bounds: Bounds = (1e-30, 1e4)
    damping_rate: Between = 0.95
    """ω: λ is multiplied by ω^T or divided by it every T = ``damping_period`` steps."""
    damping_period: Count = 5
    damping_tries: Count = 1
    """Dampings that a step tries, each four times the one before, until one lowers the loss of its batch;
    each costs a direction and a forward pass. Steps that run ahead of the host try one."""
    damping_scale: of_solvers.DampingScale = "identity"
    """With ``solver="exact"``: what λ multiplies. ``diagonal`` is the largest diagonal of G so far, and makes
    steps independent of the units of the parameters [Moré 1978]."""
    acceleration: of_solvers.Acceleration = None
    """With ``solver="exact"`` (0.75): the bound on ``‖a‖/‖v‖`` for geodesic steps ``v + ½ a``; None: v."""
    search_steps: Steps = 10
    """First steps that each halve or double λ, with γ = ½√λ, at most until the first choice of γ; judged on
    the samples of the factors."""
    factor_damping_period: Count = 20
    """Steps between choices of γ, the damping of the Kronecker factors: of γ, γ/2 and 2γ the one
    whose step the quadratic model predicts to be best [MG §6.6]. γ is ½√λ before."""
    inverse: of_solvers.Inverse = "cholesky"
    """How damped factors are inverted: anew by Cholesky, or on the Triton backend by Newton and Schulz's
    iteration from the inverses of before, in matrix products only. ``eigen`` divides by ``q_i g_j + κ`` in
    the eigenbases instead of damping the two factors separately."""
    refresh_every: Count = 10
    """Steps between refreshes of the inverses, later on."""
    refresh_always: Steps = 5
    """First steps that always refresh. After k times as many every (k + 1)-th does, in multiples of
    ``factors_every``."""

    # the step

    momentum: Annotated[
        bool,
        Field(
            description="True or False, its size is chosen in every step; sgd_momentum is the coefficient "
            "of method='sgd'"
        ),
    ] = True
    """Choose step size and momentum, in [0, 1], together from the exact quadratic model. While the averaged
    parameters are better than the latest by more than 1 % of the loss, noise leads, and there is none."""
    layer_steps: Steps = 6
    """First steps in which every layer has a step size of its own, chosen together by the quadratic model on
    half its samples."""
    step_cap: Annotated[
        float | None, Field(gt=0, description="None or a positive, finite number")
    ] = None
    """Optional bound on the step size along the preconditioned gradient."""
    step_growth: Annotated[
        float | None, Field(gt=1, description="None or a finite number above 1")
    ] = 2.0
    """Optional bound on a step's squared length in the norm of the quadratic model, and on ``-bᵀc``, twice
    the decrease it promises: so many times the running mean of the greater; longer steps are shortened."""
    quadratic_share: Share = 0.25
    """Share of the batch on which the quadratic model's curvature M is evaluated [MG §7: ¼]; the
    gradient term b always uses the whole batch."""
    quadratic_samples: Count = 256
    """Samples that M is evaluated on at least, if the batch has them."""
    average: Decay = 0.999
    """Bound on the decay of the parameter average, which is over about the last ninth of the updates until
    this binds; 0 keeps none. Evaluation uses it where it is better than the latest parameters, and λ is held
    up there."""

    # batches

    gather_samples: Count = 256
    """Samples that ``fit`` and ``gather`` collect at least for a step, from several batches if need be."""
    gather_noise: Annotated[
        float | None, Field(gt=0, lt=1, description="None or a number between 0 and 1")
    ] = 0.9
    """Bound on the noise's share of the squared gradient, in the norm of the preconditioner: where it is
    exceeded, steps are taken on twice the samples. None: the batches stay as they are."""

    # execution

    guarded: Switch = False
    """Whether the program itself refuses bad steps, so that steps can run ahead of the host."""
    deterministic: Switch = False
    """Whether 1, 2, 4 and 8 processes give the same results to the bit (:mod:`gncompile.program.shards`)."""
    factors: of_solvers.Factors = "replicated"
    """Whether all of many processes have the averages and inverses of factors, or of each layer only one."""
    memory_budget: Count = 1 << 30
    """Bytes for a chunk of KFLR's columns, KFRA's blocks, and the work buffers of a batch that grows."""

    # the first-order baselines

    learning_rate: Annotated[Positive, BASELINES] = 1e-3
    """Step size of the first-order baselines ``adam`` and ``sgd``."""
    sgd_momentum: Annotated[Decay, SGD] = 0.9

    @field_validator("*", mode="wrap")
    @classmethod
    def _explained(
        cls, value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        name = str(info.field_name)
        return explained(name, value, check, str(cls.__pydantic_fields__[name].description))

    def __post_init__(self) -> None:
        low, high = self.damping_bounds
        if not 0 < low <= high:
            found = f"option damping_bounds = {self.damping_bounds}"
            raise CompileError(found, instead="pass (low, high), 0 < low ≤ high")
        refused = of_solvers.REFUSED.get(self.solver, ()) if self.second_order else ()
        for name in refused:
            value = getattr(self, name)
            if value != self.__pydantic_fields__[name].default:
                raise CompileError(
                    f"{name} = {value!r} together with solver={self.solver!r}",
                    instead="leave it out, or use solver='exact'",
                )
        named = self.method.values() if isinstance(self.method, Mapping) else (self.method,)
        if "kflr" in named and set(SAMPLED_METHODS) & set(named) and self.samples > 1:
            raise CompileError(
                f"samples = {self.samples} together with the columns of 'kflr' in other layers",
                instead="use samples=1, or 'kfra' in place of 'kflr'",
            )

    def warn_of_no_effect(self) -> None:
        """Say which options the method does not look at; one set of options may serve several methods."""
        factored = "preconditioner='kronecker'" if self.iterates else "solver='kronecker'"
        unread = () if self.factored else (*of_solvers.FACTORED, *["method"] * self.iterates)
        idle = {name: (self.__pydantic_fields__[name].default, factored) for name in unread}
        idle |= IDLE.get(self.solver, {})
        for name, field in self.__pydantic_fields__.items():
            value, marks = getattr(self, name), [m for m in field.metadata if type(m) is ReadBy]
            looked_at = self.method in marks[0].methods if marks else self.second_order
            if value != field.default and not looked_at and name not in OF_EVERY_METHOD:
                users = marks[0].called if marks else "a second-order method"
                warn(
                    OptionWarning,
                    f"option {name} = {value!r} has no effect with method={self.method!r}",
                    instead=f"leave it out, or use {users}",
                )
            elif name in idle and value != idle[name][0] and self.second_order:
                warn(
                    OptionWarning,
                    f"option {name} = {value!r} has no effect with solver={self.solver!r}",
                    instead=f"leave it out, or use {idle[name][1]}",
                )

    @classmethod
    def from_options(cls, **options: object) -> Settings:
        """:meth:`of` the options, with a warning of those that have no effect."""
        settings = cls.of(**options)
        settings.warn_of_no_effect()
        return settings

    @classmethod
    def of(cls, **options: object) -> Settings:
        """Settings from keyword options; an unknown one raises with the nearest known name.

        Numbers may be of any real type, NumPy's included, but no tensors; a list stands for a tuple.
        """
        known = list(cls.__pydantic_fields__)
        for name in options:
            if name in HINTS and name not in known:
                raise CompileError(f"unknown option {name!r}", instead=HINTS[name])
            if name not in known:
                raise CompileError(
                    f"unknown option {name!r}. {nearest(name, known)}".rstrip(),
                    instead="\n".join(
                        ["use some of", *(f"    {g}: {', '.join(x)}" for g, x in groups().items())]
                    ),
                )
        if options.get("method") not in FIRST_ORDER_METHODS:
            options = {**of_solvers.DEFAULTS.get(str(options.get("solver")), {}), **options}
            if options.get("solver") == "exact" and options["method"] != AUTO:
                raise CompileError(
                    f"method = {options['method']!r} together with solver='exact', which has the whole "
                    "Gauss-Newton matrix and no factors",
                    instead="leave method out, or use solver='kronecker'",
                )
        return cls(**options)  # type: ignore[arg-type]

    def check_parameters(self, names: Collection[str]) -> None:
        """Raise :class:`~gncompile.errors.CompileError` for a pattern of ``l2`` that matches no parameter."""
        for pattern in self.l2 if isinstance(self.l2, Mapping) else ():
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = list(names)[:SHOWN]
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                raise CompileError(
                    f"no parameter matches the pattern {pattern!r} of l2. "
                    f"{nearest(pattern, names)}".rstrip(),
                    instead=f"the parameters are {', '.join(shown)}{more}",
                )

    def at_places(self, places: int) -> Settings:
        """With the ``factor_samples`` of a network whose weights are applied at up to so many places."""
        if self.factor_samples is not None or not self.second_order or not self.factored:
            return self
        many = places >= MANY_PLACES
        return replace(self, factor_samples=FACTOR_SAMPLES_AT_PLACES if many else FACTOR_SAMPLES)

    @property
    def factored(self) -> bool:
        """Whether there are, or may be, Kronecker factors."""
        preconditioned = self.iterates and self.preconditioner == "kronecker"
        return self.solver in ("kronecker", AUTO) or preconditioned

    @property
    def second_order(self) -> bool:
        """Whether the method uses curvature factors."""
        return self.method not in FIRST_ORDER_METHODS

    @property
    def iterates(self) -> bool:
        """Whether the solver is one by conjugate gradients."""
        return self.solver in of_solvers.CG_SOLVERS

    @property
    def share(self) -> float:
        """The share of the batch that its curvature is computed on."""
        return self.curvature_share if self.iterates else self.factor_share

    def rows(self, batch: int) -> dict[str, int]:
        """The samples of a batch for curvature (F), the quadratic model (Q), and that of the layers (L)."""
        least = 1 if self.iterates else self.factor_samples or FACTOR_SAMPLES
        return {
            "F": _share(batch, self.share, least),
            "Q": _share(batch, self.quadratic_share, self.quadratic_samples),
            "L": _share(batch, self.quadratic_share / 2, math.ceil(self.quadratic_samples / 2)),
        }

    @property
    def factor_dim(self) -> str:
        """The dimension of the samples the curvature is computed on: all N, or the last F."""
        return "N" if self.share == 1 else "F"

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


def groups() -> dict[str, list[str]]:
    """The names of all options by group."""
    found: dict[str, list[str]] = {}
    group: list[str] = []
    for name in Settings.__pydantic_fields__:
        if name in GROUPS:
            group = found.setdefault(GROUPS[name], [])
        group.append(name)
    return found


def _share(batch: int, share: float, at_least: int) -> int:
    return min(batch, max(math.ceil(batch * share), at_least))
