"""Products of two activations as matrices, and attention, which is made of them.

Whatever it is written as, a product of two activations becomes one node ``Y_b = A_b B_b`` over pairs of
matrices of every sample: dimensions that both have and the result has too are paired, those that the result
lacks are summed over.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from ..graph.bilinear import Bilinear
from ..graph.nodes import Select
from ..graph.softmax import Softmax
from .dropout import masks
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .values import Activation, Args, Condition, Constant, Shape, activations_in


def product(importer: Importer, node: fx.Node, name: str, args: Args, shape: Shape) -> Activation:
    """``matmul``, ``bmm`` or ``einsum`` of two activations."""
    if name == "einsum":
        return _einsum(importer, node, args, shape)
    a, b = activations_in(args)
    if len(a.shape) != len(b.shape) or len(a.shape) < 2:
        importer.refuse_mixing(node)  # one of them is broadcast over, or summed along, dimension 0
    return matrices(importer, node, a, b, shape)


def matrices(
    importer: Importer,
    node: fx.Node,
    a: Activation,
    b: Activation,
    shape: Shape,
    transposed: bool = False,
) -> Activation:
    """``A B`` in the last two dimensions, with ``transposed`` ``A Bᵀ``; the others are broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (importer.broadcast(node, x, (*batch, *x.shape[-2:])) for x in (a, b))
    rows = None if transposed else _transposed_of(importer, node, b)
    if rows is not None:
        b, transposed = rows, True
    columns = b.shape[-2] if transposed else b.shape[-1]
    rows_of_a, inner = a.shape[-2:]
    op = Bilinear(math.prod(batch), rows_of_a, inner, columns, transposed)
    return importer.builder.add(label_of(node, op_name(node)), op, [a, b], shape, origin_of(node))


def _transposed_of(importer: Importer, node: fx.Node, x: Activation) -> Activation | None:
    """``x`` transposed in its last two dimensions, where its columns, and not its rows, are as they were."""
    made = importer.builder[x.name]
    if not isinstance(made.op, Select) or len(made.inputs) > 1:
        return None
    table = np.array(made.op.index).reshape(x.shape).swapaxes(-1, -2)
    if not (np.diff(table, axis=-1) == 1).all():
        return None
    source = importer.builder[made.inputs[0]]
    whole = Activation(source.name, source.shape)
    label, origin = label_of(node, f"{x.name}_rows"), origin_of(node)
    return importer.builder.select(label, [whole], table.reshape(-1), table.shape, origin)


def _einsum(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """Any einsum of two: dimensions are paired, summed over, or belong to one of them."""
    equation = args["equation"].replace(" ", "")
    sides, _, result = equation.partition("->")
    names = sides.split(",")
    found = activations_in(args["tensors"])
    words = (*names, result)
    plain = "->" in equation and all(w.isalpha() and len(set(w)) == len(w) for w in words)
    if not plain or len(names) != 2 or len(found) != len(args["tensors"]):
        importer.refuse(
            node,
            f"the einsum {equation!r} of activations",
            "write it as products of two, with an arrow, one letter a dimension and no letter twice in a "
            "factor",
        )
    (a, b), n = names, result[0]
    if any(w[0] != n for w in names):
        importer.refuse_mixing(node)
    lone = [c for c in a + b if c not in result and (c in a) != (c in b)]
    if lone:
        importer.refuse(
            node,
            f"the einsum {equation!r} sums {', '.join(lone)} over one factor alone",
            "sum that factor over it first",
        )
    paired = [c for c in a[1:] if c in b and c in result]
    summed = [c for c in a[1:] if c in b and c not in result]
    rows, columns = ([c for c in w[1:] if c not in other] for w, other in ((a, b), (b, a)))
    sizes = {
        c: s for w, x in zip(names, found, strict=True) for c, s in zip(w[1:], x.shape, strict=True)
    }

    def matrix(x: Activation, letters: str, *order: list[str]) -> Activation:
        moved = _permuted(importer, node, x, letters[1:], "".join(map("".join, order)))
        return Activation(moved.name, tuple(math.prod(sizes[c] for c in group) for group in order))

    left, right = (
        matrix(found[0], a, paired, rows, summed),
        matrix(found[1], b, paired, summed, columns),
    )
    made = [*paired, *rows, *columns]
    y = matrices(importer, node, left, right, tuple(sizes[c] for c in made))
    return _permuted(importer, node, y, "".join(made), result[1:])


def _permuted(
    importer: Importer, node: fx.Node, x: Activation, letters: str, wanted: str
) -> Activation:
    """The dimensions of ``x``, called by ``letters``, in the order ``wanted``."""
    table = np.arange(math.prod(x.shape)).reshape(x.shape)
    table = table.transpose([letters.index(c) for c in wanted])
    label = label_of(node, f"{op_name(node)}_{wanted}")
    return importer.builder.select(label, [x], table.reshape(-1), table.shape, origin_of(node))


def attention(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> Activation:
    """``softmax(scale Q Kᵀ + mask) V``."""
    q, k, v = (args[name] for name in ("query", "key", "value"))
    if not all(isinstance(x, Activation) for x in (q, k, v)):
        importer.refuse(
            node,
            "attention with queries, keys or values that do not depend on the network's input",
            "write it out: torch.softmax(q @ k.transpose(-2, -1) / d**0.5, -1) @ v",
        )
    if args["enable_gqa"]:
        k, v = (_repeated(importer, node, x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
    scores = (*batch, q.shape[-2], k.shape[-2])
    raw = matrices(importer, node, q, k, scores, transposed=True)
    scale = q.shape[-1] ** -0.5 if args["scale"] is None else args["scale"]
    mask, seen = _mask(importer, node, args["attn_mask"], args["is_causal"], scores)
    given = {"self": raw, "scale": scale, "mask": 0 if mask is None else mask}
    scaled = importer.pointwise(
        node, "scores", given, scores, lambda self, scale, mask: scale * self + mask
    )
    builder, origin = importer.builder, origin_of(node)
    op = Softmax(math.prod(scores[:-1]))
    p = builder.add(label_of(node, "softmax"), op, [scaled], scores, origin)
    if seen is not None:
        p = importer.pointwise(node, "mul", {"self": p, "other": seen}, scores)
    if args["dropout_p"]:
        how = {"p": args["dropout_p"], "alpha": False, "feature": False}
        kept, _ = masks(importer, node, how, scores)
        p = importer.pointwise(node, "mul", {"self": p, "other": kept}, scores)
    return matrices(importer, node, p, v, shape)


def _mask(
    importer: Importer, node: fx.Node, mask: Any, causal: bool, scores: Shape
) -> tuple[Any, Constant | None]:
    """What to add to the scores, and 0 for queries that see no key, whose result is 0, if there are any."""
    if causal:
        size = scores[-2:]
        mask = Constant(f"causal_{size[0]}_{size[1]}", torch.ones(size, dtype=torch.bool).tril())
    if isinstance(mask, Condition):
        importer.refuse(
            node,
            "an attention mask that is computed from the network's input",
            "compute it outside, and pass what to add to the scores as an input, finite numbers",
        )
    if not isinstance(mask, Constant):
        return mask, None
    if mask.tensor.dtype == torch.bool:
        blocked = torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -torch.inf)
        mask = Constant(f"{mask.name}_added", blocked, batched=mask.batched)
    blind = (mask.tensor == -torch.inf).all(-1, keepdim=True)
    if not bool(blind.any()):
        return mask, None
    open_ = torch.where(blind, torch.zeros_like(mask.tensor), mask.tensor)
    seen = Constant(f"{mask.name}_seen", (~blind).to(mask.tensor.dtype), batched=mask.batched)
    return Constant(f"{mask.name}_open", open_, batched=mask.batched), seen


def _repeated(importer: Importer, node: fx.Node, x: Activation, times: int) -> Activation:
    """Every head of keys or values for so many heads of queries."""
    table = np.arange(math.prod(x.shape)).reshape(x.shape).repeat(times, axis=-3)
    label = label_of(node, f"{x.name}_repeated")
    return importer.builder.select(label, [x], table.reshape(-1), table.shape, origin_of(node))
