"""The PyTorch frontend: ``torch.export`` the module with a dynamic batch, then translate it."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import sympy
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from ..errors import GncompileError, TraceError
from ..graph.fuse_pointwise import fuse_pointwise
from ..graph.model_graph import ModelGraph, TracedModel
from .agreement import check_agreement, computed_in
from .aten import CREATORS, SIZES, is_known
from .computed import WRITTEN_OUT
from .declared_graph import declared_graph
from .decompositions import decomposed
from .dropout import expose_masks
from .example_inputs import checked_examples
from .export_errors import explain_failure, several, without_graph_dumps
from .fx_nodes import bind, op_name
from .graph_builder import GraphBuilder
from .importer import Importer
from .obstacles import Obstacles
from .outputs import network_output
from .residual_network import Inside, ResidualNetwork, residual_graph
from .special import check_batch_norm, check_rrelu
from .translation import stand_in, translate
from .trunk import cut_trunk
from .uses import Uses
from .values import Constant, Weight
from .written_operators import WRITTEN
from .written_out import written_out


def trace(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    name: str | None = None,
    passes: Callable[[ModelGraph], ModelGraph] = lambda graph: graph,
) -> TracedModel:
    """Translate a module into a graph of affine, fixed linear, selecting and pointwise nodes.

    ``example_inputs`` is one tensor ``[N, ...]`` a forward argument; only shapes and dtype matter, and any
    ``N ≥ 1`` gives the same graph. The module's parameters are shared, not copied, and its train or eval
    mode is taken as it is: dropout in training mode becomes masks. What nothing trainable reaches may be any
    torch code; without rules for it, it becomes the trunk of the traced model
    (:mod:`gncompile.frontends.trunk`). ``name`` defaults to the module's class name. What ``passes`` make of
    the graph is compared with the module on a few random samples (:mod:`gncompile.frontends.agreement`).

    Raises :class:`~gncompile.errors.TraceError`, naming module and source line, for whatever is not a
    feedforward network of such nodes: an operator without a rule, samples that influence each other, a
    parameter used twice or outside affine layers, control flow that depends on data.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    >>> print(trace(model, torch.zeros(4, 3)).graph)
    x            = input 0              : [3]
    layer_0      = affine[0](x)         : [2] 0
    layer_1_tanh = tanh(layer_0)        : [2] 1
    output       = output(layer_1_tanh) : [2]
    """
    examples = checked_examples(module, example_inputs)
    with _ONE_AT_A_TIME:
        try:
            traced = _translated(module, examples, name or type(module).__name__)
        except GncompileError:
            raise
        except Exception as error:
            raise explain_failure(error, module, examples) from error
        traced = traced.with_graph(passes(traced.graph))
        check_agreement(module, traced, examples)
    return traced


_ONE_AT_A_TIME = threading.RLock()
"""``torch.export`` changes state of the whole process while it runs: threads wait for each other."""


def _trace_part(module: nn.Module, examples: tuple[Tensor, ...]) -> TracedModel:
    """A function that a part of a model computes, all of it as nodes."""
    traced = _imported(_export(module, examples), module, examples, "the weight")
    traced = traced.with_graph(fuse_pointwise(traced.graph))
    check_agreement(module, traced, examples)
    return traced


def _translated(module: nn.Module, examples: tuple[Tensor, ...], name: str) -> TracedModel:
    """The module as a whole, or what follows a frozen part of it that is a trunk."""
    if isinstance(module, ResidualNetwork):
        return residual_graph(module, _translated(Inside(module.net), examples[:1], name))
    declared = declared_graph(module, examples, name)
    if declared is not None:
        _check_all_used(module, declared.parameters)
        return declared
    program = _export(module, examples)
    try:
        return _imported(program, module, examples, name)
    except TraceError as error:
        refused = error
    importer = _new_importer(program, module, examples)
    _bind_placeholders(program, module, importer)
    try:
        cut = cut_trunk(program, importer, _tensors(program, module))
    except TraceError as error:
        raise TraceError(f"{refused}\n\nNor can a frozen part run as it is: {error}") from refused
    if cut is None:
        raise refused
    return cut.before(_imported(program, module, examples, name))


def _imported(
    program: ExportedProgram, module: nn.Module, examples: tuple[Tensor, ...], name: str
) -> TracedModel:
    obstacles = Obstacles()
    importer = _new_importer(program, module, examples)
    _bind_placeholders(program, module, importer)
    _check_modes(program, importer, obstacles)
    try:
        program = _functional(program)
        importer = _new_importer(program, module, examples)
        _bind_placeholders(program, module, importer)
        if not obstacles:
            with obstacles.collected():
                _check_buffers(program)
        for node in program.graph.nodes:
            if node.op == "call_function":
                with obstacles.collected(node):
                    translate(importer, node)
                if node not in importer.values:
                    importer.values[node] = stand_in(importer, node)
    except Exception:
        if not obstacles:
            raise
    obstacles.raise_all(name)
    traced = importer.builder.finish(*network_output(program, importer), name)
    _check_all_used(module, traced.parameters)
    return traced


def _export(module: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """Export with one symbolic batch size shared by all inputs."""
    batches = several(examples)
    shapes = tuple({0: Dim("batch")} for _ in batches)
    with (
        torch.enable_grad(),
        warnings.catch_warnings(),
        without_graph_dumps(),
        written_out(module),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        # recurrent modules keep a list of their parameters beside these
        warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
        program = torch.export.export(
            module, batches, dynamic_shapes=_by_name(module, shapes), strict=False
        )
    expose_masks(program)
    return program


def _by_name(module: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """``*args`` in forward's signature takes all its shapes as one tuple."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _functional(program: ExportedProgram) -> ExportedProgram:
    """Without in-place operators; operators without a rule are decomposed once if torch knows how."""
    operators = [
        n for n in program.graph.nodes if _is_operator(n) and op_name(n) not in WRITTEN_OUT
    ]
    mutable = any(n.target._schema.is_mutable for n in operators)
    written = {n.target: WRITTEN[n.target] for n in operators if n.target in WRITTEN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if written:
            program = decomposed(program, written)
            operators = [n for n in program.graph.nodes if _is_operator(n)]
        # Functionalising takes three times as long as the export itself: only where it changes something.
        if mutable or not all(is_known(op_name(n)) for n in operators):
            program = decomposed(program, {})
        unknown = {
            n.target for n in program.graph.nodes if _is_operator(n) and not is_known(op_name(n))
        }
        if not unknown:
            return program
        known = torch.export.default_decompositions()
        return decomposed(program, {op: known[op] for op in unknown if op in known})


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _new_importer(
    program: ExportedProgram, module: nn.Module, examples: tuple[Tensor, ...]
) -> Importer:
    inputs = set(program.graph_signature.user_inputs)
    first = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs)
    batch: sympy.Expr = first.meta["val"].shape[0].node.expr
    names = program.graph_signature.inputs_to_parameters
    parameters = dict(module.named_parameters(remove_duplicate=False))
    uses = Uses(program.graph, {node: parameters[target] for node, target in names.items()})
    dtype = computed_in(module, examples)
    return Importer(GraphBuilder(dtype), batch, examples[0].device, uses, _trace_part)


def _check_modes(program: ExportedProgram, importer: Importer, obstacles: Obstacles) -> None:
    """Refuse what is impossible, first of all and before functionalisation rewrites it.

    So attention is refused as such, and not for the transposition that prepares it.
    """
    inputs = set(program.graph_signature.user_inputs)
    moved = _reached_by(inputs, program)
    learnt = _reached_by(inputs | set(program.graph_signature.inputs_to_parameters), program)
    for node in program.graph.nodes:
        with obstacles.collected(node):
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                if node in learnt:
                    _refuse_region(node, program, importer)
            elif _is_operator(node):
                _check_mode(node, importer, node in moved)


def _check_mode(node: fx.Node, importer: Importer, active: bool) -> None:
    name = op_name(node)
    if name == "batch_norm":
        known = {key: importer.values.get(value, value) for key, value in bind(node).items()}
        check_batch_norm(importer, node, known)
    elif name == "rrelu":
        check_rrelu(importer, node, bind(node))
    elif active and node.target not in WRITTEN:
        importer.refuse_known(node, name)


def _refuse_region(node: fx.Node, program: ExportedProgram, importer: Importer) -> NoReturn:
    """A ``with`` block or a control flow operator; its first inner operator tells where it is."""
    inner = [n for n in node.all_input_nodes if n.op == "get_attr"]
    body = [m for n in inner for m in program.graph_module.get_submodule(str(n.target)).graph.nodes]
    place = next((m for m in body if m.meta.get("stack_trace")), node)
    name = node.target.name()  # type: ignore[union-attr]
    found = {
        "wrap_with_set_grad_enabled": "torch.no_grad() inside forward cuts the gradient",
        "wrap_with_autocast": "torch.autocast inside forward changes the dtype",
    }.get(name, f"the control flow operator {name} has no rule")
    importer.refuse(
        place,
        found,
        "remove it from forward (torch.utils.checkpoint: use_reentrant=False); torch.where chooses per "
        "element",
    )


def _check_buffers(program: ExportedProgram) -> None:
    mutated = list(program.graph_signature.buffers_to_mutate.values())
    if mutated:
        raise TraceError(
            f"forward changes the buffers {', '.join(mutated)}",
            instead="call .eval(), or update buffers outside forward",
        )


def _reached_by(names: set[str], program: ExportedProgram) -> set[fx.Node]:
    """The nodes that the values of the named placeholders reach, and not only their shapes."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        shapes_only = _is_operator(node) and op_name(node) in CREATORS | SIZES
        if node.name in names or (
            not shapes_only and any(source in reached for source in node.all_input_nodes)
        ):
            reached.add(node)
    return reached


def _bind_placeholders(program: ExportedProgram, module: nn.Module, importer: Importer) -> None:
    """Give parameters, buffers, constants and inputs their values."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}  # of several names of one parameter
    for name, parameter in parameters.items():
        first.setdefault(id(parameter), name)
    names = _input_names(module)
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    position = 0
    for spec in program.graph_signature.input_specs:
        node, target = nodes[spec.arg.name], spec.target
        if spec.kind is InputKind.USER_INPUT:
            shape = importer.sample_shapes(node)[0]
            label = names[position] if position < len(names) else f"input_{position}"
            whole = not node.meta["val"].is_floating_point()
            importer.values[node] = importer.builder.input(label, position, shape, whole)
            position += 1
        elif target in parameters:
            importer.values[node] = Weight(first[id(parameters[target])], parameters[target])
        elif target in buffers:
            importer.values[node] = Constant(target, buffers[target])
        elif target is not None:
            tensor = program.constants[target]
            if isinstance(tensor, FakeTensor):
                raise RuntimeError(f"the tensor {target} comes from outside the traced operators")
            literal = float(tensor) if isinstance(tensor, Tensor) and tensor.ndim == 0 else None
            importer.values[node] = Constant(target, tensor, literal)


def _tensors(program: ExportedProgram, module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors, and constants, by the names of their placeholders."""
    named = (module.named_parameters, module.named_buffers)
    own = {name: t for each in named for name, t in each(remove_duplicate=False)}
    held = {**program.constants, **own}
    specs = program.graph_signature.input_specs
    return {spec.arg.name: held[spec.target] for spec in specs if spec.target in held}


def _input_names(module: nn.Module) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    # containers call their argument `input`, which says nothing
    if isinstance(module, nn.Sequential):
        return ["x"]
    return [p.name for p in parameters if p.kind in named]


def _check_all_used(module: nn.Module, used: Mapping[str, Tensor]) -> None:
    """Every trainable parameter must be in the graph; a silent leftover would never be trained."""
    known = {id(parameter) for parameter in used.values()}
    empty = [n for n, p in module.named_parameters() if p.requires_grad and not p.numel()]
    if empty:
        raise TraceError(
            f"the trainable parameters {', '.join(empty)} have no elements",
            instead="give the layers features, or freeze them with requires_grad_(False)",
        )
    unused = [
        name for name, p in module.named_parameters() if p.requires_grad and id(p) not in known
    ]
    if unused:
        raise TraceError(
            f"the output does not depend on the trainable parameters {', '.join(unused)}",
            instead="freeze them with requires_grad_(False), remove them, or use them in forward",
        )
