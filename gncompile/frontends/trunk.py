"""The frozen trunk of a network: what nothing trainable reaches, cut off to run as it is.

Any torch code is a trunk that keeps samples apart and computes the same at every call: convolutions,
recurrences, attention, ``torch.no_grad()`` regions. It is cut where the network cannot be compiled as a
whole; else its operators are nodes like others, which fuse and cost no call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import Input
from ..graph.trunk import Trunk
from . import aten
from .fx_nodes import bind, op_name
from .importer import Importer
from .special import check_batch_norm, check_rrelu


@torch.library.custom_op("gncompile::features", mutates_args=())
def _features(input: Tensor, shape: list[int], dtype: torch.dtype, position: int) -> Tensor:
    """Stands for one output ``[N, *shape]`` of a trunk. Of exported graphs only."""
    raise NotImplementedError("a trunk runs before the compiled part of its network")


@_features.register_fake
def _shaped(input: Tensor, shape: list[int], dtype: torch.dtype, position: int) -> Tensor:
    return input.new_empty((input.shape[0], *shape), dtype=dtype)


@dataclass
class Cut:
    """A trunk that has been cut: its graph without an output, and what may be one, by position."""

    graph: fx.Graph
    root: fx.GraphModule
    shapes: dict[str, tuple[int, ...]]
    dtypes: tuple[torch.dtype, ...]
    tensors: tuple[Tensor, ...]
    outputs: dict[int, fx.Node]

    def before(self, traced: TracedModel) -> TracedModel:
        """The rest with this trunk: its inputs are those features, and inputs as they are, that it reads."""
        read = [n for n in traced.graph.inputs if traced.graph.consumers(n.name)]
        places = {n.name: self.outputs[n.op.position] for n in read if isinstance(n.op, Input)}
        self.graph.output(tuple(places.values()))
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.graph)
        trunk = Trunk(self.shapes, self.dtypes, module, self.tensors)
        order = {name: Input(position) for position, name in enumerate(places)}
        nodes = [
            replace(node, op=order.get(node.name, node.op))
            for node in traced.graph
            if node.name in order or not isinstance(node.op, Input)
        ]
        return replace(traced, graph=ModelGraph(nodes), trunk=trunk)


def cut_trunk(
    program: ExportedProgram, importer: Importer, tensors: Mapping[str, Tensor]
) -> Cut | None:
    """Cut off what nothing trainable reaches, if an operator of it takes an input; else None.

    In the program that is left, each of its results is one operator. ``tensors`` are those behind parameters,
    buffers and constants by their placeholders' names. Raises :class:`~gncompile.errors.TraceError` for a
    trunk that mixes samples, draws random numbers, or changes what it reads.
    """
    inputs = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    raw = [n for n in placeholders if n.name in inputs]
    held = [n for n in placeholders if n.name in tensors and not tensors[n.name].requires_grad]
    still = _still(program.graph, {*raw, *held})
    reached = _reached(program.graph, raw)
    frozen = {n: None for n in reached if n in still and n.op == "call_function"}
    if not frozen:
        return None
    for node in frozen:
        for inner in (node, *_inside(node, program.graph_module)):
            _check(inner, importer, held)
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in dict.fromkeys((*raw, *held, *(n for n in program.graph.nodes if n in still))):
        env[node] = graph.node_copy(node, env.__getitem__)
    outputs = dict(enumerate(env[n] for n in raw))
    for node in frozen:
        if any(user not in frozen for user in node.users):
            outputs[len(outputs)] = env[node]
            _replace(program, node, raw[0], len(outputs) - 1, frozen, importer)
    for node in reversed(program.graph.nodes):
        region = isinstance(node.target, torch._ops.HigherOrderOperator) and not node.users
        if node in frozen or (region and node in still):  # of a region nothing may be left inside
            program.graph.erase_node(node)
    given = [importer.values[n] for n in raw]
    shapes = {x.name: x.shape for x in given}
    dtypes, own = tuple(n.meta["val"].dtype for n in raw), tuple(tensors[n.name] for n in held)
    return Cut(graph, program.graph_module, shapes, dtypes, own, outputs)


def _still(graph: fx.Graph, known: Collection[fx.Node]) -> set[fx.Node]:
    """What follows from these nodes alone: from no trained parameter, and from no mask of dropout."""
    still = set(known)
    for node in graph.nodes:
        name = op_name(node) if _is_operator(node) else ""
        computes = node.op in ("call_function", "get_attr") and name not in aten.ASSERTS
        if computes and name != aten.MASKS and still.issuperset(node.all_input_nodes):
            still.add(node)
    return still


def _reached(graph: fx.Graph, start: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that these have a value in, in order; a shape is none."""
    found = dict.fromkeys(start)
    for node in graph.nodes:
        shape = _is_operator(node) and op_name(node) in aten.CREATORS | aten.SIZES
        if not shape and any(source in found for source in node.all_input_nodes):
            found[node] = None
    return list(found)


def _replace(
    program: ExportedProgram,
    node: fx.Node,
    x: fx.Node,
    position: int,
    frozen: Collection[fx.Node],
    importer: Importer,
) -> None:
    """Let what reads ``node`` outside the trunk read one operator in its place."""
    value = node.meta["val"]
    if not isinstance(value, Tensor) or value.dtype != importer.builder.dtype:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        importer.refuse(
            node,
            f"{op_name(node)} is in the frozen part of the network, and brings {kind} into the trained one, "
            f"which computes with {importer.builder.dtype}",
            "convert it in the frozen part, .to(x.dtype)",
        )
    (shape,) = importer.sample_shapes(node)
    with program.graph.inserting_after(node):
        arguments = x, list(shape), value.dtype, position
        features = program.graph.call_function(torch.ops.gncompile.features.default, arguments)
    features.meta = {**node.meta}
    node.replace_all_uses_with(features, delete_user_cb=lambda user: user not in frozen)
    program.graph_signature.replace_all_uses(node.name, features.name)


def _inside(node: fx.Node, root: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of the regions that an operator runs."""
    for source in node.all_input_nodes:
        if source.op == "get_attr" and isinstance(
            body := root.get_submodule(str(source.target)), fx.GraphModule
        ):
            for inner in body.graph.nodes:
                yield from (inner, *_inside(inner, body))


def _check(node: fx.Node, importer: Importer, held: Collection[fx.Node]) -> None:
    """Refuse what would mix samples, differ at every call, or change the model."""
    if not _is_operator(node):
        return
    name, args = op_name(node), bind(node)
    if name == "batch_norm":
        check_batch_norm(importer, node, args)
    elif name == "instance_norm" and args["use_input_stats"] and args["running_mean"] is not None:
        importer.refuse(
            node, "instance norm in training mode changes its buffers", "call .eval() on it"
        )
    elif name == "rrelu":
        check_rrelu(importer, node, args)
    elif aten.is_random(node.target, args):
        found = f"{name} cannot be compiled: {aten.RANDOM}"
        importer.refuse(node, found, aten.INSTEAD[aten.RANDOM])
    elif node.target._schema.is_mutable and node.all_input_nodes[0] in held:  # type: ignore[union-attr]
        written = node.all_input_nodes[0].name
        importer.refuse(node, f"{name} changes the buffer {written}", "update it outside forward")


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
