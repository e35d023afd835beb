"""Dropout in training mode: its masks as operators of an exported graph, and torch's functions without."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..graph.dropout import Mask, alpha_dropout, dropout
from .aten import DROPOUTS
from .fx_nodes import bind, label_of, op_name, origin_of
from .importer import Importer
from .values import Activation, Args, Shape


@torch.library.custom_op("gncompile::dropout_masks", mutates_args=())
def _masks(input: Tensor, p: float, alpha: bool, feature: bool) -> tuple[Tensor, Tensor]:
    """``m`` and ``s`` of a dropout ``m ⊙ input + s``; s is 0 but for ``alpha``. Of exported graphs only."""
    raise NotImplementedError("masks of dropout are drawn by the compiled step")


@_masks.register_fake
def _shapes(input: Tensor, p: float, alpha: bool, feature: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(input)


def expose_masks(program: ExportedProgram) -> None:
    """Write each dropout that drops something as a product with its mask.

    Torch's own decompositions of it, in place or not, would leave draws that nothing tells from others::

        dropout_(x, 0.5, True)    →    m, s = dropout_masks(x, 0.5, …)    mul_(x, m)
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) in DROPOUTS and _drops(node):
            with graph.inserting_before(node):
                y = _rewrite(graph, node, bind(node))
            program.graph_signature.replace_all_uses(node.name, y.name)
            graph.erase_node(node)
    program.graph_module.recompile()


def _drops(node: fx.Node) -> bool:
    """Whether a dropout drops anything, and nothing but its result is read."""
    args, native = bind(node), op_name(node) == "native_dropout"
    kept = native and any(user.args[1] and user.users for user in node.users)
    return args["train"] is not False and args["p"] > 0 and not kept


def _rewrite(graph: fx.Graph, node: fx.Node, args: Args) -> fx.Node:
    """The node that takes the place of a dropout."""
    name, schema = op_name(node), node.target._schema  # type: ignore[union-attr]
    x, alpha = node.all_input_nodes[0], "alpha" in name and args["p"] < 1  # of 1 nothing is left

    def call(target: Any, *arguments: Any, value: Any = None) -> fx.Node:
        made = graph.call_function(target, arguments)
        made.meta = {**node.meta, "val": x.meta["val"] if value is None else value}
        return made

    aten, shaped = torch.ops.aten, x.meta["val"]
    flags = args["p"], alpha, name.startswith("feature")
    masks = call(torch.ops.gncompile.dropout_masks.default, x, *flags, value=(shaped, shaped))
    m, s = (call(operator.getitem, masks, i) for i in (0, 1))
    y = call(aten.mul_.Tensor if schema.is_mutable else aten.mul.Tensor, x, m)
    if alpha:
        y = call(aten.add_.Tensor if schema.is_mutable else aten.add.Tensor, y, s)
    if name != "native_dropout":
        node.replace_all_uses_with(y)
    for user in list(node.users):  # its first result; nothing reads the second
        user.replace_all_uses_with(y)
        graph.erase_node(user)
    return y


def masks(importer: Importer, node: fx.Node, args: Args, shape: Shape) -> list[Activation]:
    """``m`` and ``s`` as nodes."""
    p, origin, builder = args["p"], origin_of(node), importer.builder
    channels = shape[0] if args["feature"] else math.prod(shape)
    positions = math.prod(shape[1:]) if args["feature"] else 1
    expressions = alpha_dropout(p) if args["alpha"] else (dropout(p),)
    number = builder.count(Mask)
    made = []
    for label, phi, rest in zip(("mask", "shift"), expressions, (1, 0), strict=False):
        op = Mask(number, phi, rest, channels, positions)
        made.append(builder.source(label_of(node, label), op, shape, origin))
    return made * (2 // len(made))  # nothing reads the shift of a plain dropout


class WithoutDropout(TorchFunctionMode):
    """While it is entered, torch's functions drop nothing, whatever the mode that modules are in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            x = args[0] if args else kwargs["input"]
            return (x, torch.ones_like(x, dtype=torch.bool)) if func is torch.native_dropout else x
        if func is functional.multi_head_attention_forward:
            kwargs = {**kwargs, "training": False}
        if func in _RECURRENT:  # (input, state, parameters, bias, layers, dropout, …)
            args = (*args[:5], 0.0, *args[6:])
        if func is functional.scaled_dot_product_attention:
            last = args[5:]  # what follows the fifth argument, dropout_p, has names as well
            names = ("is_causal", "scale", "enable_gqa")[: len(last)]
            kwargs = {**kwargs, **dict(zip(names, last, strict=True)), "dropout_p": 0.0}
            args = args[:4]
        return func(*args, **kwargs)


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_DROPOUTS = frozenset(
    getattr(where, name + suffix)
    for where in (functional, torch)
    for name in (
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "native_dropout"),
        *("alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    )
    for suffix in ("", "_")
    if hasattr(where, name + suffix)
)
