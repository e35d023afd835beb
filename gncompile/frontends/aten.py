"""What the compiler knows about aten, PyTorch's operator set: tables of names and one-line rules.

Every operator the frontend understands is in exactly one table:

* :data:`POINTWISE`: elementwise; the rule gives its sympy expression,
* :data:`COMPARISONS`: true where a margin is positive, or where it is not,
* :data:`ALIASES`: the same features in the same order, so no node at all,
* :data:`SELECTING`: every output feature is one input feature, or a fill value,
* :data:`LINEAR`: linear in its one activation, given by a constant matrix,
* :data:`BILINEAR`: products of two activations as matrices; of one and a constant they are linear,
* :data:`COUPLING`: neither linear nor elementwise in a sample's features, with a rule of its own,
* :data:`CONVOLUTIONS`: a weight at every place of a grid,
* :data:`POOLS`, :data:`LOOKUPS`: the maximum or average of windows; tables and grids, read at places,
* :data:`CREATORS`: constants,
* :data:`REFUSED`: understood, and impossible or not supported yet, with the reason.

A rule takes the operator's arguments under aten's own names; tensors arrive as sympy symbols.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any

import sympy
import torch
from sympy import Abs, Expr, Rational

from ..functions.gates import GATES
from ..functions.primitives import (
    erfc,
    expm1,
    log1p,
    maximum,
    minimum,
    number,
    select,
    sigmoid,
)
from ..functions.transfer import ARGUMENT, BUILT_IN

Rule = Callable[..., Expr]
HALF = Rational(1, 2)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _declared(name: str, x: Expr, **parameters: Expr) -> Expr:
    """The vocabulary's ``name`` at ``x``; a parameter may be any expression, such as a constant's symbol."""
    function = BUILT_IN[name]
    values = {key: number(value) for key, value in function.parameters} | parameters
    symbols = {sympy.Symbol(key, real=True): value for key, value in values.items()}
    assert function.general is not None  # it is for whatever is declared
    return function.general.xreplace({ARGUMENT: x, **symbols})


def _unary(function: Rule) -> Rule:
    return lambda self: function(self)


def _vocabulary(name: str) -> Rule:
    """The vocabulary's ``name`` with the parameters it is declared with, which aten calls the same."""

    def rule(self: Expr, **parameters: Expr) -> Expr:
        return _declared(name, self, **parameters)

    names = ("self", *(key for key, _ in BUILT_IN[name].parameters))
    parameters = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in names]
    rule.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return rule


def _gelu(self: Expr, approximate: str) -> Expr:
    return _declared("gelu_tanh" if approximate == "tanh" else "gelu", self)


def _clamp(self: Expr, min: Expr | None, max: Expr | None) -> Expr:
    """``min(max(x, lower), upper)``, ``None`` for no bound; the slope at a bound is 1, as torch's."""
    raised = self if min is None else maximum(min, self)
    return raised if max is None else minimum(max, raised)


def _shared_extreme(a: Expr, b: Expr, larger: bool) -> Expr:
    """The larger or smaller of two; torch shares the slope between equal arguments, half each."""
    c = a - b if larger else b - a
    return select(c, a, select(-c, b, (a + b) / 2))


def _divide(self: Expr, other: Expr, rounding_mode: str | None = None) -> Expr:
    if rounding_mode is not None:
        raise ValueError("division that rounds has no useful slope")
    return self / other


def _power(self: Expr, exponent: Expr) -> Expr:
    """``x^p`` with a number ``p``, or ``c^x = exp(x log c)`` with a number ``c > 0``."""
    if exponent.is_number:
        return self**exponent
    if self.is_number and self > 0:
        return sympy.exp(exponent * sympy.log(self))
    raise ValueError("a power needs a number as exponent, or a positive number as base")


def _elu(self: Expr, alpha: Expr, scale: Expr, input_scale: Expr) -> Expr:
    """``scale x`` above zero, ``scale alpha (e^(input_scale x) - 1)`` below: elu, celu and selu in one."""
    inner = _declared("elu", input_scale * self, alpha=alpha * input_scale)
    return scale / input_scale * inner


SOFTPLUS_THRESHOLD = 20


def _softplus(self: Expr, beta: Expr, threshold: Expr) -> Expr:
    """``log(1 + e^(βx)) / β``; torch returns ``x`` where ``βx`` exceeds the threshold.

    At torch's default of 20 that guards against overflow, drops less than 3e-9, and is not imitated: it would
    put a jump into the slope. A lower threshold is another function, and taken as written.
    """
    smooth = _declared("softplus", self, beta=beta)
    return (
        smooth if threshold >= SOFTPLUS_THRESHOLD else select(beta * self - threshold, self, smooth)
    )


def _where(condition: Expr, u: Expr, v: Expr) -> Expr:
    """``u`` where the mask is 1; a mask that is a comparison itself becomes the branch."""
    if isinstance(condition, select) and condition.args[1:] == (1, 0):
        return select(condition.args[0], u, v)
    if isinstance(condition, select) and condition.args[1:] == (0, 1):
        return select(condition.args[0], v, u)
    return select(condition - HALF, u, v)


POINTWISE: Mapping[str, Rule] = {
    # arithmetic
    "add": lambda self, other, alpha: self + alpha * other,
    "sub": lambda self, other, alpha: self - alpha * other,
    "rsub": lambda self, other, alpha: other - alpha * self,
    "mul": lambda self, other: self * other,
    "div": _divide,
    "neg": lambda self: -self,
    "abs": lambda self: Abs(self),
    "sgn": lambda self: sympy.sign(self),
    "pow": _power,
    "square": lambda self: self**2,
    "reciprocal": lambda self: 1 / self,
    "hypot": lambda self, other: sympy.sqrt(self**2 + other**2),
    "rsqrt": lambda self: 1 / sympy.sqrt(self),
    "addcmul": lambda self, tensor1, tensor2, value: self + value * tensor1 * tensor2,
    "addcdiv": lambda self, tensor1, tensor2, value: self + value * tensor1 / tensor2,
    "lerp": lambda self, end, weight: self + weight * (end - self),
    "maximum": lambda self, other: _shared_extreme(self, other, larger=True),
    "minimum": lambda self, other: _shared_extreme(self, other, larger=False),
    # of equal arguments the first has the slope
    "fmax": lambda self, other: maximum(other, self),
    "fmin": lambda self, other: minimum(other, self),
    "clamp": _clamp,
    "clamp_min": lambda self, min: _clamp(self, min, None),
    "clamp_max": lambda self, max: _clamp(self, None, max),
    **{each.__name__: _unary(each) for each in (sympy.sqrt, sympy.sign)},
    # exponentials and logarithms
    **{each.__name__: _unary(each) for each in (sympy.exp, expm1, sympy.log, log1p, sigmoid)},
    "exp2": lambda self: sympy.exp(self * sympy.log(2)),
    "log2": lambda self: sympy.log(self) / sympy.log(2),
    "log10": lambda self: sympy.log(self) / sympy.log(10),
    # trigonometric and hyperbolic functions, the error function
    **{each.__name__: _unary(each) for each in (sympy.sin, sympy.cos, sympy.tan, sympy.atan)},
    **{each.__name__: _unary(each) for each in (sympy.sinh, sympy.cosh, sympy.tanh, sympy.asinh)},
    **{each.__name__: _unary(each) for each in (sympy.erf, erfc)},
    # transfer functions, as the vocabulary declares them, parameters included
    **{
        name: _vocabulary(name)
        for name in (
            *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "selu", "celu", "silu", "mish"),
            *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "threshold"),
        )
    },
    "elu": _elu,
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": lambda self: _declared("logsigmoid", self),
    "glu": lambda self, gate: GATES["glu"](self, gate),
    # branches; a mask is 1 or 0
    "where": lambda condition, self, other: _where(condition, self, other),
    "masked_fill": lambda self, mask, value: _where(mask, value, self),
    "logical_not": lambda self: 1 - self,
    "logical_and": lambda self, other: self * other,
    "logical_or": lambda self, other: self + other - self * other,
    "batch_norm": lambda input, weight, bias, running_mean, running_var, eps: (
        (input - running_mean) / sympy.sqrt(running_var + eps) * weight + bias
    ),
}

COMPARISONS: Mapping[str, tuple[Rule, bool]] = {
    # name: (margin, holds where the margin is positive)
    "gt": (lambda self, other: self - other, True),
    "lt": (lambda self, other: other - self, True),
    "ge": (lambda self, other: other - self, False),
    "le": (lambda self, other: self - other, False),
    "ne": (lambda self, other: Abs(self - other), True),
    "eq": (lambda self, other: Abs(self - other), False),
}

SYNONYMS: Mapping[str, str] = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "arctan": "atan",
    "arcsinh": "asinh",
    "bitwise_not": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "special_expit": "sigmoid",
    "special_erf": "erf",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "_prelu_kernel": "prelu",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "concat": "cat",
    "concatenate": "cat",
}

LOGICAL = _words("logical_not logical_and logical_or")

FEATURES = "features"
"""The operator that stands for an output of a frozen trunk; see ``trunk.py``."""

DECLARED = "applied"
"""The operator that a declared function is exported as; see :mod:`~gncompile.functions.applied`."""

ALIASES = _words(
    "alias clone contiguous flatten lift lift_fresh lift_fresh_copy ravel reshape reshape_as "
    "squeeze squeeze_copy unflatten "
    "unsqueeze unsqueeze_copy view view_as view_copy _reshape_alias _reshape_copy _unsafe_view "
    "positive resolve_conj resolve_neg"
)

DROPOUTS = _words("alpha_dropout dropout feature_alpha_dropout feature_dropout native_dropout")

MASKS = "dropout_masks"
"""The operator that a dropout in training mode is exported as a product with; see ``dropout.py``."""

CASTS = _words("to type_as _to_copy float double")

SELECTING = _words(
    "broadcast_to cat channel_shuffle chunk constant_pad_nd diagonal expand expand_as expand_copy "
    "flip fliplr flipud getitem hstack index index_select mT movedim moveaxis narrow numpy_T pad "
    "permute permute_copy pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d "
    "reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d "
    "replication_pad3d roll rot90 select select_copy slice slice_copy split split_copy split_with_sizes "
    "stack swapaxes swapdims t t_copy tensor_split tile transpose transpose_copy unbind unfold "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d vstack"
)

PRODUCTS = _words("linear addmm matmul mm")

LOOKUPS = _words("embedding one_hot interpolate grid_sampler grid_sampler_2d grid_sampler_3d")

LINEAR = _words(
    "bmm col2im cumsum einsum mean mv sum tril triu "
    "upsample_bilinear2d upsample_linear1d upsample_trilinear3d"
)

BILINEAR = _words("matmul mm bmm einsum")

COUPLING = _words(
    "layer_norm group_norm instance_norm rms_norm softmax log_softmax linalg_vector_norm linalg_norm norm "
    "scaled_dot_product_attention bilinear"
)

CONVOLUTIONS = _words(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution"
)

MAX_POOLS = _words(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices"
)
ADAPTIVE_MAX_POOLS = _words("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
AVERAGE_POOLS = _words("avg_pool1d avg_pool2d avg_pool3d")
ADAPTIVE_AVERAGE_POOLS = _words(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d"
)
POOLS = MAX_POOLS | ADAPTIVE_MAX_POOLS | AVERAGE_POOLS | ADAPTIVE_AVERAGE_POOLS

CREATORS = _words(
    "empty empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like scalar_tensor "
    "zeros zeros_like"
)
# of another tensor these want its shape or dtype alone
SHAPED_AS = _words("expand_as reshape_as type_as view_as")

# sizes that depend on the batch; the importer takes their values from the trace
SIZES = _words("sym_numel sym_size")

# asserts that torch.export adds about shapes and values; they compute nothing
ASSERTS = _words("_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range")

_RECURRENT = "it is unrolled only as a module with trainable parameters"
_ORDER = "it depends on the order of a sample's features"
RANDOM = "random numbers inside the network make the loss a different function at every call"
_DRAWN = "its windows are drawn at random"
_DETACH = "it cuts the gradient, and the compiled gradient would not be the one autograd gives"
_ASSIGNMENT = "a value is assigned to a part of a tensor"
_BAG = "rows are looked up and summed in one operator"
_BY_VALUES = "which features it takes depends on values of the input"
_RENORM = "max_norm rescales rows of the table while they are read, beside any gradient"
_STEPS = "its slope is zero wherever it is defined, so nothing below it would learn"

_WRITERS = _words(
    "copy slice_scatter select_scatter index_put fill diagonal_scatter as_strided_scatter"
)
_ORDERED = _words("median nanmedian mode kthvalue sort argsort topk argmax argmin cummax cummin")
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_words("detach detach_"), _DETACH),
    **dict.fromkeys(_words("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell"), _RECURRENT),
    **dict.fromkeys(_ORDERED, _ORDER),
    **dict.fromkeys(_words("fractional_max_pool2d fractional_max_pool3d"), _DRAWN),
    **dict.fromkeys(_words("embedding_bag _embedding_bag _embedding_bag_forward_only"), _BAG),
    **dict.fromkeys(_words("gather take_along_dim take masked_select nonzero"), _BY_VALUES),
    "embedding_renorm": _RENORM,
    **dict.fromkeys(
        _words("rand rand_like randn randn_like randint bernoulli normal multinomial randperm"),
        RANDOM,
    ),
    **dict.fromkeys(_words("floor ceil round trunc fix floor_divide remainder fmod frac"), _STEPS),
    **dict.fromkeys(_WRITERS, _ASSIGNMENT),
}

INSTEAD: Mapping[str, str] = {
    _DETACH: "leave it out; buffers and frozen parameters (requires_grad_(False)) are constants without it",
    _ORDER: "use what takes the largest or smallest: amax, amin, max pooling",
    _BAG: "use nn.Embedding, and sum or average its rows: embedding(x).mean(1)",
    _BY_VALUES: "choose by torch.where, or multiply by functional.one_hot(indices, K) and sum",
    _RENORM: "leave max_norm out, and divide in forward: functional.normalize(embedding(x), dim=-1)",
    _ASSIGNMENT: "build the result of its parts by torch.cat or torch.stack, or choose by torch.where",
    RANDOM: "call .eval() where a module draws them, or draw them outside and pass them as an input",
}
"""What to do instead, for the reasons that have more to tell than the general advice."""


def canonical(name: str) -> str:
    """The name the tables use for aten's ``name``: no overload, no in-place underscore, no synonym."""
    if not name.startswith("_") or name.endswith("_"):
        name = name.removesuffix("_") or name
    return SYNONYMS.get(name, name)


def is_known(name: str) -> bool:
    """Whether a canonical name is in one of the tables, the refused ones included."""
    return any(name in table for table in _TABLES)


_TABLES: tuple[Container[str], ...] = (
    POINTWISE, COMPARISONS, ALIASES, CASTS, SELECTING, DROPOUTS, PRODUCTS, LINEAR, BILINEAR, COUPLING,
    CONVOLUTIONS, POOLS, LOOKUPS, CREATORS, SIZES, ASSERTS, REFUSED, (DECLARED, MASKS, FEATURES),
)  # fmt: skip


def is_random(operator: Any, args: Mapping[str, Any]) -> bool:
    """Whether the operator draws random numbers: torch marks it so, and no argument makes it drop nothing."""
    marked = torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
    off = (
        args.get(key, 1) in (0, False) for key in ("train", "training", "p", "dropout", "dropout_p")
    )
    return marked and not any(off)


def expression_of(rule: Rule, arguments: Mapping[str, Any]) -> Expr:
    """Apply a rule to those of the operator's arguments that it asks for."""
    wanted = inspect.signature(rule).parameters
    return sympy.sympify(rule(**{name: arguments[name] for name in wanted if name in arguments}))


def supported() -> str:
    """The supported operators in the words of an error text."""
    shown = sorted(name for name in POINTWISE if not name.startswith("_"))
    linear = sorted(name for name in LINEAR | PRODUCTS if not name.startswith("_"))
    windows = sorted(name for name in CONVOLUTIONS | POOLS if not name.startswith("_"))
    selecting = sorted(name for name in SELECTING if not name.startswith("_"))
    return (
        f"elementwise: {', '.join(shown)}; linear: {', '.join(linear)}; "
        f"of windows: {', '.join(windows)}; moving features: {', '.join(selecting)}"
    )
