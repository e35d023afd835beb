"""The optimiser's settings: one frozen record, validated, with the meaning of each in one place."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin

import numpy as np

from ..errors import CompileError, OptionWarning, message, nearest, require_known
from .typed import check_of, hints

Method = Literal["kfra", "kflr", "kfac", "kfac_rp", "empirical", "adam", "sgd", "auto"]
CURVATURE_METHODS = ("kfra", "kflr", "kfac", "kfac_rp", "empirical")
SAMPLED_METHODS = ("kfac", "kfac_rp")
FIRST_ORDER_METHODS = ("adam", "sgd")
AUTO = "auto"

SHOWN = 8
"""Parameters that an error lists."""
SHOWN_CHARACTERS = 100
"""Characters of a wrong value that an error shows."""

HINTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("lr", "step_size", "eta"),
        "second-order methods choose their step size; learning_rate is that of method='adam' or 'sgd'",
    ),
    **dict.fromkeys(
        ("weight_decay", "wd", "l2_reg"),
        "use l2, the coefficient η of ½ η ‖w‖² in the objective, for all parameters or by pattern",
    ),
    **dict.fromkeys(("beta", "nesterov"), "use sgd_momentum, with method='sgd'"),
    **dict.fromkeys(("batch_size", "batch"), "the batch is what step or fit are given"),
    **dict.fromkeys(
        ("device", "to"), "move the model before: model.to(device); the step runs where it is"
    ),
    **dict.fromkeys(("epochs", "updates", "steps"), "give it to fit"),
    **dict.fromkeys(("optimiser", "optimizer"), "use method"),
}
"""What to say of options that others have and these do not."""


@dataclass(frozen=True)
class Settings:
    """How the trainer steps (SPEC §7); the defaults need no tuning.

    ``method`` is one curvature method for all layers, ``"auto"`` (chosen by cost, see
    :mod:`gncompile.derivation.method_choice`), a mapping from layer patterns to methods
    (``{"*": "kfra", "decoder.*": "kfac"}``, the last pattern that matches decides), or a first-order
    baseline. ``l2`` is one coefficient η for every weight and bias, or a mapping from parameter-name patterns
    (``"*.weight"``) to coefficients; parameters no pattern matches are not decayed.
    """

    # the objective and its curvature

    method: Method | Mapping[str, str] = "kfra"
    l2: float | Mapping[str, float] = 0.0
    samples: int = 1
    """Sampled gradients a step for KFAC and its projections."""
    trace_correction: bool = True
    """KFRA only: scale each Ḡ to the exact trace, estimated by one ±1 projection (one backward pass)."""
    factor_share: float = 0.25
    """Share of the batch that the curvature factors are computed on [MG §8: ⅛]; their running averages make
    up for the rest."""
    factor_samples: int = 256
    """Samples that the factors are computed on at least, if the batch has them."""
    whole_inputs: int = 10
    """First steps in which the input factors Q are made of the whole batch, whatever ``factor_share``: the
    running average of a few shares has too low a rank."""
    factors_every: int = 2
    """Steps between new curvature factors; the first ``refresh_always`` steps always compute them."""
    factor_average: float = 0.95
    """Bound on ε = min(1 − 4/(k + 3), bound), the memory of the factors' running averages."""

    # damping and inverses

    damping: float = 0.1
    """Initial Levenberg-Marquardt damping λ."""
    damping_bounds: tuple[float, float] = (1e-30, 1e4)
    damping_rate: float = 0.95
    """ω: λ is multiplied by ω^T or divided by it every T = ``damping_period`` steps."""
    damping_period: int = 5
    search_steps: int = 10
    """First steps that each halve or double λ, with γ = ½√λ, at most until the first choice of γ; judged on
    the samples of the factors."""
    factor_damping_period: int = 20
    """Steps between choices of γ, the damping of the Kronecker factors: of γ, γ·rate and γ/rate the one
    whose step the quadratic model predicts to be best [MG §6.6]. γ is ½√λ before."""
    factor_damping_rate: float = 0.5
    exact_damping: bool = False
    """Divide by ``q_i g_j + κ`` in the eigenbases instead of damping the two factors separately."""
    inverse: Literal["cholesky", "newton_schulz"] = "cholesky"
    """How damped factors are inverted: anew by Cholesky, or on the Triton backend by Newton and Schulz's
    iteration from the inverses of before, in matrix products only."""
    refresh_every: int = 10
    """Steps between refreshes of the inverses, later on."""
    refresh_always: int = 5
    """First steps that always refresh. After k times as many every (k + 1)-th does, in multiples of
    ``factors_every``."""

    # the step

    momentum: bool = True
    """Choose step size and momentum, in [0, 1], together from the exact quadratic model. While the averaged
    parameters are better than the latest by more than 1 % of the loss, noise leads, and there is none."""
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
    average: float = 0.999
    """Bound on the decay of the parameter average, which is over about the last ninth of the updates until
    this binds; 0 keeps none. Evaluation uses it where it is better than the latest parameters, and λ is held
    up there."""

    # batches

    gather_samples: int = 256
    """Samples that ``fit`` and ``gather`` collect at least for a step, from several batches if need be."""
    gather_noise: float | None = 0.9
    """Bound on the noise's share of the squared gradient, in the norm of the preconditioner: where it is
    exceeded, steps are taken on twice the samples. None: the batches stay as they are."""

    # execution

    guarded: bool = False
    """Whether the program itself refuses bad steps, so that steps can run ahead of the host."""
    memory_budget: int = 1 << 30
    """Bytes that a chunk of KFLR's columns may use, and the work buffers of a batch that grows."""

    # the first-order baselines

    learning_rate: float = 1e-3
    """Step size of the first-order baselines ``adam`` and ``sgd``."""
    sgd_momentum: float = 0.9

    def __post_init__(self) -> None:
        for name, hint in OPTIONS.items():
            object.__setattr__(self, name, typed(name, getattr(self, name), hint))
        for (holds, wanted), names in RANGES.items():
            for name in names:
                value = getattr(self, name)
                _require(name, value, value is None or holds(value), wanted)
        low, high = self.damping_bounds
        ordered = 0 < low <= high < math.inf
        _require("damping_bounds", self.damping_bounds, ordered, "(low, high), 0 < low ≤ high")
        of_pattern = self.l2 if isinstance(self.l2, Mapping) else {"": self.l2}
        for pattern, eta in of_pattern.items():
            name = f"l2[{pattern!r}]" if pattern else "l2"
            _require(name, eta, 0 <= eta < math.inf, "a finite number, 0 or greater")
        self._check_inverse()
        self._check_method()
        self._warn_of_no_effect()

    def _check_inverse(self) -> None:
        """Refuse unknown inverses, and refined ones where eigenvectors take their place."""
        require_known("inverse", self.inverse, ("cholesky", "newton_schulz"))
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

    def _warn_of_no_effect(self) -> None:
        """Say which options the method does not look at; one set of options may serve several methods."""
        for field in fields(self):
            value, (looks, users) = getattr(self, field.name), LOOKED_AT.get(field.name, OTHERS)
            if value != field.default and not looks(self):
                warnings.warn(
                    message(
                        f"option {field.name} = {value!r} has no effect with method={self.method!r}",
                        instead=f"leave it out, or use {users}",
                    ),
                    OptionWarning,
                    stacklevel=2,
                )

    @classmethod
    def from_options(cls, **options: object) -> Settings:
        """Settings from keyword options; an unknown one raises with the nearest known name.

        Numbers may be of any real type, NumPy's scalars included; tensors and arrays are none. A list stands
        for a tuple, as files have it.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name in HINTS and name not in known:
                raise CompileError(message(f"unknown option {name!r}", instead=HINTS[name]))
            require_known("option", name, known, "some")
        return cls(**options)  # type: ignore[arg-type]

    def check_parameters(self, names: Collection[str]) -> None:
        """Raise :class:`~gncompile.errors.CompileError` for a pattern of ``l2`` that matches no parameter."""
        for pattern in self.l2 if isinstance(self.l2, Mapping) else ():
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = list(names)[:SHOWN]
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                raise CompileError(
                    message(
                        f"no parameter matches the pattern {pattern!r} of l2. "
                        f"{nearest(pattern, names)}".rstrip(),
                        instead=f"the parameters are {', '.join(shown)}{more}",
                    )
                )

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


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value >= least), f"a whole number, {least} or greater"


def _between(low: float, high: float, wanted: str, ends: str = "()") -> _Range:
    def holds(value: Any) -> bool:
        above = value >= low if ends[0] == "[" else value > low
        return bool(above and (value <= high if ends[1] == "]" else value < high))

    return holds, wanted


_Range = tuple[Callable[[Any], bool], str]
RANGES: Mapping[_Range, tuple[str, ...]] = {
    _between(0, math.inf, "a positive, finite number"): ("damping", "learning_rate", "step_cap"),
    _between(0, 1, "a number between 0 and 1"): (
        *("damping_rate", "factor_damping_rate", "gather_noise"),
    ),
    _between(0, 1, "a number in [0, 1)", "[)"): ("factor_average", "average", "sgd_momentum"),
    _between(0, 1, "a number in (0, 1]", "(]"): ("factor_share", "quadratic_share"),
    _between(1, math.inf, "None or a finite number above 1"): ("step_growth",),
    _at_least(1): (
        *("damping_period", "factor_damping_period", "refresh_every", "factors_every", "samples"),
        *("factor_samples", "quadratic_samples", "gather_samples", "memory_budget"),
    ),
    _at_least(0): ("search_steps", "layer_steps", "whole_inputs", "refresh_always"),
}
"""The values that options may have, and how they are called."""

LOOKED_AT: Mapping[str, tuple[Callable[[Settings], bool], str]] = {
    **dict.fromkeys(("method", "l2"), (lambda _: True, "any method")),
    "learning_rate": (lambda settings: not settings.second_order, "method='adam' or 'sgd'"),
    "sgd_momentum": (lambda settings: settings.method == "sgd", "method='sgd'"),
}
OTHERS = (lambda settings: settings.second_order, "a second-order method")
"""Which methods look at an option, and how they are called."""


OPTIONS = {**hints(Settings), "method": str | Mapping[str, str], "inverse": str}
"""The type of every option; an unknown name of a closed set is told apart from a wrong type."""


# --- types of options -----------------------------------------------------------------------------------

WANTED = {bool: "True or False", int: "a whole number", float: "a number", str: "a name"}
INSTEAD = {
    "momentum": "; sgd_momentum is the coefficient of method='sgd'",
    "method": f": one of {', '.join((*CURVATURE_METHODS, *FIRST_ORDER_METHODS, AUTO))}",
    "dtype": ": torch.float32 or torch.float64",
}


def typed(name: str, value: object, hint: Any) -> Any:
    """``value`` as Python's own number, text, tuple or dictionary of the annotated type.

    Raises :class:`~gncompile.errors.CompileError` for any other type: what is given for an option may come
    from a file, and ends up in emitted source.
    """
    plain = _plain(value, hint)
    if not check_of(hint)(plain):
        shown = repr(value) if type(value) in (bool, int, float, str) else ""
        wanted = " or ".join(dict.fromkeys(_wanted(hint)))
        raise CompileError(
            message(
                f"option {name} = {shown[:SHOWN_CHARACTERS]} is of type {type(value).__name__}"
                if shown
                else f"option {name} is of type {type(value).__name__}",
                instead=f"pass {wanted}{INSTEAD.get(name, '')}",
            )
        )
    return plain


def _plain(value: object, hint: Any) -> object:
    """A number of any library, a list, or a mapping as what Python and the annotation have for it."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Real):
        return _number(value, _leaves(hint))
    if isinstance(value, list | tuple):
        parts = get_args(hint) if get_origin(hint) is tuple else ()
        return tuple(map(_plain, value, parts)) if len(parts) == len(value) else value
    if isinstance(value, Mapping):
        return {key: _plain(item, hint) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value


def _number(value: numbers.Real, leaves: tuple[Any, ...]) -> object:
    try:
        if isinstance(value, numbers.Integral) and int in leaves:
            return int(value)
        return float(value) if float in leaves else value
    except (OverflowError, ValueError):
        return value


def _leaves(hint: Any) -> tuple[Any, ...]:
    args = get_args(hint)
    if get_origin(hint) is Literal or not args:
        return (hint,)
    return tuple(leaf for arg in args for leaf in _leaves(arg))


def _wanted(hint: Any) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield f"one of {', '.join(map(str, args))}"
    elif origin is tuple:
        yield f"({', '.join(text for arg in args for text in _wanted(arg))})"
    elif origin is not None and issubclass(origin, Mapping):
        yield f"a mapping from patterns to {WANTED[args[1]].removeprefix('a ')}s"
    elif args:
        for arg in args:
            yield from _wanted(arg)
    else:
        yield WANTED.get(hint, "None" if hint is type(None) else str(hint))
