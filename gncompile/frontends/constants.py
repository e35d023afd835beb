"""Operators on constants, run at once: what is the same for every sample of every batch is kept.

A constant may have been made from the batch size, as ``torch.zeros(x.shape[0], 4)`` is. Such an operator
runs for batches of several sizes, and its result is kept, as one row, only if all rows of all sizes are
equal. Everything else becomes :class:`~gncompile.frontends.values.Varying`, which no activation may meet. A
comparison at a few sizes proves nothing about others where numbers are made of the batch size
(``full((1,), N // 100)``), so these vary whatever their values: only sizes may be made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .fx_nodes import op_name
from .importer import Importer
from .values import VALUES, Activation, Args, Constant, Turned, Varying, Weight, values_in

SAMPLES = (2, 3, 5)
_SIZES = ("size", "sizes", "shape", "length", "repeats", "end")
_UNFILLED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_ALONG_DIAGONALS = ("tril", "triu")


def run(node: fx.Node, args: Mapping[str, Any], leaf: Callable[[Any], Any]) -> Any:
    """Call the node's operator on ``args`` (by schema name) after mapping each leaf by ``leaf``."""

    def mapped(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [mapped(item) for item in value]
        return leaf(value)

    schema = node.target._schema  # type: ignore[union-attr]
    positional = [mapped(args[a.name]) for a in schema.arguments if not a.kwarg_only]
    keywords = {a.name: mapped(args[a.name]) for a in schema.arguments if a.kwarg_only}
    with torch.no_grad():
        return node.target(*positional, **keywords)  # type: ignore[operator]


def on_constants(
    importer: Importer, node: fx.Node, args: Args, names: Callable[[int | None], str]
) -> Any:
    """A constant, or a list of them; ``names(i)`` names the result number ``i``, ``None`` the only one."""
    values = list(values_in(args))
    varying = next((value for value in values if isinstance(value, Varying)), None)
    if varying is not None:
        return varying
    results = node.meta["val"]
    several = not isinstance(results, Tensor)
    shapes = [tuple(result.shape) for result in (results if several else [results])]
    of_batch = any(isinstance(v, Activation) or getattr(v, "batched", False) for v in values)
    if why := _number_of_samples(importer, node, args, values):
        return Varying(node, why)
    symbolic = of_batch or any(True for _ in symbolic_numbers(args))
    found = [_at(importer, node, args, rows, several) for rows in (SAMPLES if symbolic else (1,))]
    settled = [
        _settled(importer, node, names(i if several else None), shape, list(tensors))
        for i, (shape, *tensors) in enumerate(zip(shapes, *found, strict=True))
    ]
    return settled if several else settled[0]


def symbolic_numbers(args: Args) -> Iterator[tuple[str, Any]]:
    """The numbers made of the batch size among an operator's arguments, with the argument's name."""
    for name, value in args.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool):
                yield name, number


def is_batch_size(importer: Importer, name: str, number: Any) -> bool:
    """Whether ``number`` is the batch size itself, as an argument that sets a size."""
    return name in _SIZES and number.node.expr == importer.batch


def number_at(importer: Importer, number: Any, rows: int) -> Any:
    """A number made of the batch size, in a batch of ``rows`` samples."""
    kind = {torch.SymInt: int, torch.SymFloat: float}.get(type(number), bool)
    return kind(number.node.expr.subs(importer.batch, rows))


def _number_of_samples(importer: Importer, node: fx.Node, args: Args, values: list[Any]) -> str:
    """Why the result varies whatever the values found at a few sizes, or an empty string."""
    name = op_name(node)
    batched = any(getattr(value, "batched", False) for value in values)
    for argument, number in symbolic_numbers(args):
        if number.node.expr.free_symbols - {importer.batch}:
            return VALUES
        rows = argument == "end" and not batched  # the first N rows of a table
        if rows or not is_batch_size(importer, argument, number):
            return "the number of samples"
    first = values[0] if values else None
    if name in _ALONG_DIAGONALS and isinstance(first, Constant) and first.batched:
        return "a sample's position in the batch" if first.tensor.ndim == 2 else ""
    return ""


def _at(importer: Importer, node: fx.Node, args: Args, rows: int, several: bool) -> list[Tensor]:
    """The operator's results in a batch of ``rows`` samples."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Activation):
            shape = (rows, *value.shape)
            return torch.empty(shape, dtype=importer.builder.dtype, device=importer.device)
        return concrete(importer, value, rows)

    try:
        result = run(node, args, leaf)
    except Exception as error:
        importer.refuse(
            node,
            f"{op_name(node)} on constants fails: {type(error).__name__}: {error}",
            "compute the constant in __init__ and keep it with register_buffer",
        )
    if op_name(node) in _UNFILLED and result.is_floating_point():
        result.fill_(torch.nan)  # whatever memory held is no constant; filled later, it is one
    return list(result) if several else [result]


def _settled(
    importer: Importer, node: fx.Node, name: str, shape: tuple[Any, ...], found: list[Tensor]
) -> Constant | Turned | Varying:
    """What is the same for every sample of every batch; ``shape`` tells where the batch dimension is."""
    symbolic = [place for place, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if any(shape[place].node.expr.free_symbols - {importer.batch} for place in symbolic):
        return Varying(node, VALUES)
    if not symbolic:
        same = all(equal(tensor, found[0]) for tensor in found)
        return Constant(name, found[0]) if same else Varying(node, "the number of samples")
    dim = symbolic[0]
    if len(symbolic) > 1 or shape[dim].node.expr != importer.batch:
        return Varying(node, "the number of samples")
    found = [tensor.movedim(dim, 0) for tensor in found]
    row = found[0][:1]
    if all(equal(tensor, row.expand_as(tensor)) for tensor in found):
        constant = Constant(name, row, batched=True)
        return Turned(constant, dim) if dim else constant
    return Varying(node, "a sample's position in the batch")


def concrete(importer: Importer, value: Any, rows: int, dtype: torch.dtype | None = None) -> Any:
    """A leaf argument for running an operator on ``rows`` samples, floating tensors as ``dtype``."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return number_at(importer, value, rows)
    if isinstance(value, Turned):
        tensor = concrete(importer, value.value, rows, dtype)
        return tensor.movedim(0, value.dim)
    if isinstance(value, Constant | Weight):
        tensor = value.rows(rows) if isinstance(value, Constant) else value.tensor
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return value


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: a mean over two and over three equal rows may differ in the last digit."""
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=8 * torch.finfo(a.dtype).eps, atol=0.0, equal_nan=True)
