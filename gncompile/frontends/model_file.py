"""TOML model files: read, validated, checked for sense, and built into an ``nn.Module``.

Nothing in a model file is executed: expressions go through :mod:`gncompile.functions.parsing`, everything
else is data. All mistakes of one kind are listed at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path

import torch
from sympy import Expr, Symbol

from ..base.memory_budget import require_memory
from ..base.plugins import TRANSFERS, load_plugins
from ..base.settings import FIRST_ORDER_METHODS
from ..base.untrusted import require_within
from ..data.data_sets import READERS, DataSpec
from ..errors import ExpressionError, GncompileError, ModelFileError, nearest
from ..functions.applied import Function
from ..functions.declarations import check_size, shortened
from ..functions.parsing import FUNCTIONS, parse_expression
from ..functions.transfer import (
    BUILT_IN,
    TransferFunction,
    called_by_name,
    define_transfer,
    is_registered,
    transfer_names,
)
from ..losses.vocabulary import Loss, define_loss
from .declared_network import ARGUMENT, INPUT, DeclaredNetwork, function_name
from .model_reading import read, validate
from .model_schema import Concat, Linear, Node, Pointwise, Sections, Select, Slice, Training

Functions = Mapping[str, Callable[..., Expr]]

_ARGUMENTS = {
    "u": ARGUMENT,
    "x": ARGUMENT,
}  # transfer functions declared in Python are written in x


@dataclass(frozen=True)
class ModelFile:
    """A model file that makes sense: its sections, and its network's sizes and functions by node name.

    ``content`` is the file as it was read; ``transfers`` are its own transfer functions.
    """

    path: Path
    content: bytes
    sections: Sections
    sizes: Mapping[str, int]
    functions: Mapping[str, Function]
    transfers: Mapping[str, TransferFunction]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.sections.model.name

    @property
    def data(self) -> DataSpec:
        """The data; a file's path is already relative to the model file."""
        return self.sections.data

    @property
    def loss(self) -> str | Loss:
        """The loss as ``gncompile.compile`` takes it: its name, or what the file's expression declares."""
        section = self.sections.loss
        if section.expression is None:
            return section.text
        return define_loss(
            shortened(section.text),
            section.expression,
            targets=section.targets,
            outputs=section.outputs,
            negative_curvature=section.negative_curvature,
        )

    @property
    def training(self) -> Training:
        """The ``[training]`` section."""
        return self.sections.training

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type to train in."""
        return torch.float64 if self.training.dtype == "float64" else torch.float32

    @property
    def input_size(self) -> int:
        """Features of one sample."""
        return self.sections.network.input_size

    def build(self, seed: int | None = None) -> DeclaredNetwork:
        """The network with fresh weights, drawn from ``seed`` (default: the file's).

        Raises :class:`~gncompile.errors.ModelFileError` where training it would not fit into memory.
        """
        _require_memory_for(self)
        network = self.sections.network
        seed = self.training.seed if seed is None else seed
        return DeclaredNetwork(
            network.input_size, network.node, self.functions, self.sizes, seed, self.dtype
        )


def load_model_file(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
) -> ModelFile:
    """Read and check a model file; :class:`ModelFileError` names the key, the place and a remedy.

    Relative paths of data and of tuned settings are taken from ``base``, by default the file's own folder.
    They may not lead out of it, links followed, except into the folder ``data_root``.
    """
    path = Path(path)
    content = read(path)
    sections = validate(content, path)
    roots = [path.parent if base is None else Path(base)]
    roots += [] if data_root is None else [Path(data_root)]
    spec = sections.data
    if Path(spec.name).suffix in READERS:
        spec = dataclasses.replace(spec, name=_located(spec.name, roots, "[data] name", path))
        sections = sections.model_copy(update={"data": spec})
    if sections.training.tune.endswith(".json"):
        tune = _located(sections.training.tune, roots, "[training] tune", path)
        training = sections.training.model_copy(update={"tune": tune})
        sections = sections.model_copy(update={"training": training})
    transfers = _declared_transfers(sections, path)
    own = {name: called_by_name(function, name) for name, function in transfers.items()}
    known = ChainMap(own, FUNCTIONS)
    nodes = sections.network.node
    _check_names(nodes, path)
    sizes = _sizes(nodes, sections.network.input_size, path)
    _check_all_read(nodes, path)
    functions = {
        node.name: _function(node, known, path)
        for node in nodes
        if isinstance(node, Linear | Pointwise)
    }
    return ModelFile(path, content, sections, sizes, functions, transfers)


def _located(name: str, roots: list[Path], key: str, path: Path) -> str:
    """The path ``name`` of a model file, relative to the first of ``roots``, if it stays in one of them."""
    where = f"{key} of {path}"
    try:
        given = Path(name).expanduser()
    except RuntimeError as error:
        raise ModelFileError(f"{name[:80]!r} is no path: {error}", where=where) from None
    located = roots[0] / given
    instead = (
        "put the file beside the model file, or allow its folder: --data-root DIR on the command line, "
        "data_root in Python"
    )
    try:
        require_within(located, roots, where, instead)
    except GncompileError as error:
        raise ModelFileError(str(error)) from None
    return str(located.absolute())


# --- The network -----------------------------------------------------------------------------------


def _declared_transfers(sections: Sections, path: Path) -> dict[str, TransferFunction]:
    """The file's own ``[transfer.NAME]``, each of which may call those above it."""
    declared: dict[str, TransferFunction] = {}
    own: dict[str, Callable[..., Expr]] = {}
    for name, record in sections.transfer.items():
        place = f"[transfer.{name}] of {path}"
        if name in BUILT_IN or (name in FUNCTIONS and not is_registered(name)):
            raise ModelFileError(
                f"the transfer function {name!r} exists already",
                where=place,
                instead="choose another name",
            )
        function = define_transfer(
            name,
            record.expression,
            record.parameters,
            record.domain,
            record.doc,
            place,
            ChainMap(own, FUNCTIONS),
            tuple(_ARGUMENTS),
            place,
        )
        function.check()
        declared[name], own[name] = function, called_by_name(function, name)
    return declared


def _check_names(nodes: tuple[Node, ...], path: Path) -> None:
    """Each node has a name of its own and reads nodes above it."""
    seen = [INPUT]
    taken = {INPUT}
    module = DeclaredNetwork(1, (), {}, {})
    for number, node in enumerate(nodes, start=1):
        place = f"node {number} ({node.name!r}) of {path}"
        if node.name in taken or hasattr(module, node.name) or iskeyword(node.name):
            kind = "twice" if node.name in seen else "for a node, but it is reserved"
            raise ModelFileError(
                f"the name {node.name!r} is used {kind}", where=place, instead="choose another name"
            )
        for name in node.inputs:
            if name not in seen:
                later = any(name == other.name for other in nodes)
                found = "comes later" if later else f"is unknown. {nearest(name, seen)}".rstrip()
                raise ModelFileError(
                    f"the input {name!r} {found}",
                    where=place,
                    instead=f"read nodes further up: {', '.join(seen)}",
                )
        seen.append(node.name)
        taken |= {node.name, function_name(node)}


def _check_all_read(nodes: tuple[Node, ...], path: Path) -> None:
    """Each node but the last is read; a forgotten one would hold weights that never learn."""
    read = {name for node in nodes for name in node.inputs}
    unread = [node.name for node in nodes[:-1] if node.name not in read]
    if unread:
        raise ModelFileError(
            f"computed but never read: {', '.join(unread)}",
            where=str(path),
            instead="remove them, or put the network's output last",
        )


def _sizes(nodes: tuple[Node, ...], input_size: int, path: Path) -> dict[str, int]:
    """Features of every node, the input included."""
    sizes = {INPUT: input_size}
    for node in nodes:
        inputs = [sizes[name] for name in node.inputs]
        problem = _misfit(node, inputs)
        if problem:
            shown = ", ".join(f"{name}: {sizes[name]}" for name in node.inputs) or "none"
            raise ModelFileError(
                f"{problem}\n  inputs: {shown}", where=f"node {node.name!r} of {path}"
            )
        match node:
            case Linear():
                sizes[node.name] = node.size
            case Pointwise():
                sizes[node.name] = inputs[0]
            case Concat():
                sizes[node.name] = sum(inputs)
            case Slice():
                sizes[node.name] = node.stop - node.start
            case Select():
                sizes[node.name] = len(node.index)
    return sizes


def _misfit(node: Node, inputs: list[int]) -> str:
    """What is wrong with the number or the sizes of a node's inputs, or nothing."""
    several = isinstance(node, Pointwise | Concat)
    if not inputs or (len(inputs) > 1 and not several):
        return (
            f"{node.op} takes {'one or more inputs' if several else 'one input'}, not {len(inputs)}"
        )
    if isinstance(node, Pointwise) and len(set(inputs)) > 1:
        return "a pointwise node's inputs differ in size"
    if isinstance(node, Slice) and not node.start < node.stop <= inputs[0]:
        return f"the slice {node.start}:{node.stop} is empty or leaves the input"
    if isinstance(node, Select) and not (node.index and max(node.index) < inputs[0]):
        return "index is empty or leaves the input"
    return ""


def _function(node: Linear | Pointwise, known: Functions, path: Path) -> Function:
    """The function a linear node ends with, or a pointwise node is."""
    place = f"node {node.name!r} of {path}"
    if isinstance(node, Pointwise) and node.expression is not None:
        symbols = {name: Symbol(name, real=True) for name in node.inputs}
        names = {**symbols, "u": symbols[node.inputs[0]]} if len(symbols) == 1 else symbols
        expression = parse_expression(node.expression, names, known, where=place)
        arguments = tuple(symbols[name] for name in node.inputs)
        check_size(expression, arguments, place)
        return Function(expression, arguments)
    expression = _transfer(str(node.transfer), known, place)
    check_size(expression, (ARGUMENT,), place)
    return Function(expression, (ARGUMENT,))


def _transfer(text: str, known: Functions, place: str) -> Expr:
    """A transfer function: a name, or an expression in ``u``."""
    if not text.isidentifier() or text in _ARGUMENTS:
        return parse_expression(text, _ARGUMENTS, known, where=place)
    if text not in known:
        load_plugins(TRANSFERS)
    if text not in known:
        declared = [*transfer_names(), *(name for name in known if name not in FUNCTIONS)]
        raise ModelFileError(
            f"unknown transfer function {text!r}. {nearest(text, declared)}".rstrip(),
            where=place,
            instead=f"declare it as [transfer.{text}] with an expression in u",
        )
    try:
        return parse_expression(f"{text}(u)", _ARGUMENTS, known, where=place)
    except ExpressionError as error:
        raise ModelFileError(
            f"{text!r} cannot be used as a transfer function: {error}",
            where=place,
            instead="write it as an expression in u",
        ) from error


# --- The memory of a network, from its declared sizes alone -------------------------------------------------

TRACED = 2
"""Samples that the network is traced with."""


def _require_memory_for(file: ModelFile) -> None:
    """Raise :class:`~gncompile.errors.ModelFileError` where there is less than the network takes at least.

    Counted are what stands between reading the file and the program, which counts for itself: the weights
    with their gradient, the draw of the largest in float64, for second-order methods the two factors of every
    layer and their inverses, ``2 (a² + b²)`` numbers, and all values of :data:`TRACED` samples.
    """
    size = file.dtype.itemsize
    layers = list(_layers(file))
    weights = {name: a * b for name, a, b in layers}
    needed = {f"weights of {name}": 2 * size * count for name, count in weights.items()}
    needed["the draw of the largest weights"] = 8 * max(weights.values(), default=0)
    if file.training.method not in FIRST_ORDER_METHODS:
        needed |= {f"factors of {name}": 2 * size * (a**2 + b**2) for name, a, b in layers}
    for name, features in file.sizes.items():
        needed[f"values of {name}"] = TRACED * size * features
    require_memory(
        needed,
        f"the network of {file.name!r} and its states",
        where=f"[network] of {file.path}",
        instead="declare smaller layers, or use a machine with more memory",
        error=ModelFileError,
    )


def _layers(file: ModelFile) -> Iterable[tuple[str, int, int]]:
    """Name, inputs (the bias's one included) and outputs of every affine layer."""
    for node in file.sections.network.node:
        if isinstance(node, Linear):
            yield node.name, file.sizes[node.inputs[0]] + node.bias, node.size
