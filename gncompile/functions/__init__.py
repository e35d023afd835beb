"""Functions of numbers: primitives, transfer functions, stable forms, slopes, and how all are checked."""

from .primitives import (
    PRIMITIVES,
    SHORTHANDS,
    Primitive,
    clamp,
    erfc,
    expm1,
    log1p,
    maximum,
    minimum,
    number,
    relu,
    select,
    sigmoid,
    softplus,
)

__all__ = [
    "PRIMITIVES",
    "SHORTHANDS",
    "Primitive",
    "clamp",
    "erfc",
    "expm1",
    "log1p",
    "maximum",
    "minimum",
    "number",
    "relu",
    "select",
    "sigmoid",
    "softplus",
]
