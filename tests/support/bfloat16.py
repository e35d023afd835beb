"""bfloat16 in Triton's interpreter, which keeps it as bit patterns: it multiplies the patterns and truncates.

:func:`teach_bfloat16` makes it compute in float32 and round to nearest, as the hardware does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

BF16 = tl.bfloat16


def to_float(bits: np.ndarray) -> np.ndarray:
    """The numbers behind bfloat16 bit patterns, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(values: np.ndarray) -> np.ndarray:
    """Bit patterns of float32 numbers, rounded to nearest, ties to even."""
    u = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((u + ((u >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bfloat16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == BF16)


def _wide(handle: Any) -> Any:
    """The handle itself, or its float32 twin if it is bfloat16."""
    if not _is_bfloat16(handle):
        return handle
    return interpreter.TensorHandle(to_float(handle.data), tl.float32)


def teach_bfloat16() -> None:
    """Replace the interpreter's dot, casts, negation, and binary operations where bfloat16 takes part."""
    builder = interpreter.InterpreterBuilder
    dot, cast, binary = builder.create_dot, builder.cast_impl, builder.binary_op

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return dot(self, _wide(a), _wide(b), d, *options)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == BF16 and not _is_bfloat16(source):
            bits = to_bits(source.data.astype(np.float32))
            return interpreter.TensorHandle(bits, BF16)
        return cast(self, _wide(source), target) if target.scalar != BF16 else source

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        return cast_impl(self, source, target)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        result = binary(self, _wide(left), _wide(right), op)
        if _is_bfloat16(left) and result.data.dtype == np.float32:
            return interpreter.TensorHandle(to_bits(result.data), BF16)
        return result

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.binary_op = binary_op
    if not hasattr(builder, "get_bf16"):  # Triton 3.6
        builder.get_bf16 = lambda self, value: interpreter.TensorHandle(
            to_bits(np.array([value], dtype=np.float32)), BF16
        )
