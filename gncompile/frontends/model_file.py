"""TOML model files: read, validated, checked for sense, and built into an ``nn.Module``.

Nothing in a model file is executed: expressions go through :mod:`gncompile.functions.parsing`, everything
else is data. All mistakes of one kind are listed at once. What a file leaves out, sizes and the loss, follows
from its data, which are read where they are first asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from sympy import Expr

from ..base.untrusted import require_within
from ..data.data_sets import READERS, DataSpec, DataSplit, load
from ..data.table_schema import TableSchema
from ..errors import GncompileError, ModelFileError
from ..functions.applied import Function
from ..functions.declarations import shortened
from ..functions.parsing import FUNCTIONS
from ..functions.transfer import (
    BUILT_IN,
    TransferFunction,
    called_by_name,
    define_transfer,
    is_registered,
)
from ..losses.loss_types import CoupledLoss
from ..losses.standardising import is_of_differences, standardised
from ..losses.targets import tensors_of
from ..losses.vocabulary import Loss, define_loss, resolve_loss
from ..losses.weighting import weighted
from .declared_network import DeclaredNetwork
from .declared_nodes import ARGUMENTS, check_all_read, check_names, function_of, sizes_of
from .model_reading import read, validate
from .model_schema import Model, Sections, Transfer
from .network_memory import require_memory_for
from .network_schema import Layers, Linear, Node, Nodes, Pointwise
from .table_network import TableNetwork, table_width
from .training_schema import Training

CLASSIFIES = "cross_entropy"


@dataclass(frozen=True)
class ModelFile:
    """A model file that makes sense: its sections, and its network's functions by node name.

    ``content`` is the file as it was read; ``transfers`` are its own transfer functions. ``given`` is the
    schema of data that were read before, as a run folder keeps it; without one the file's data are read.
    """

    path: Path
    content: bytes
    sections: Sections
    functions: Mapping[str, Function]
    transfers: Mapping[str, TransferFunction]
    given: TableSchema | None = None

    @property
    def name(self) -> str:
        """The model's name; by default the file's, or its folder's where that is ``model.toml``."""
        return title(self.sections.model, self.path)

    @property
    def data(self) -> DataSpec:
        """The data; a file's path is already relative to the model file."""
        return self.sections.data

    @property
    def training(self) -> Training:
        """The ``[training]`` section."""
        return self.sections.training

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type to train in."""
        return torch.float64 if self.training.dtype == "float64" else torch.float32

    # --- what follows from the data ---------------------------------------------------------------------

    @cached_property
    def split(self) -> DataSplit:
        """The data, read once, in the file's dtype; that they fit the network is not checked yet."""
        section = self.sections.loss
        classification = None if section is None else section.name == CLASSIFIES
        return load(self.data, classification).to(self.dtype)

    @property
    def needs_data(self) -> bool:
        """Whether the network and the loss cannot be known without the data, or their schema."""
        network, from_file = self.sections.network, Path(self.data.name).suffix in READERS
        unsaid = network is None or not network.complete or self.sections.loss is None
        return unsaid or from_file or bool(self.data.standardise) or self.given is not None

    @cached_property
    def schema(self) -> TableSchema:
        """What goes in and comes out."""
        schema = self.given or self.split.schema
        assert schema is not None
        return schema

    @cached_property
    def loss(self) -> str | Loss:
        """The loss as ``gncompile.compile`` takes it: its name, or what the file and its data declare.

        It is that of standardised targets where these are standardised and the loss is one of differences,
        and weighted where samples have weights.
        """
        declared = self.declared_loss
        if not self.needs_data:
            return declared
        if self.in_units:
            declared = standardised(declared, self.schema.output_scale)
        return weighted(declared) if self.schema.weights else declared

    @cached_property
    def declared_loss(self) -> str | Loss:
        """The loss as the file says it, or by default: of targets in their units, and without weights."""
        section = self.sections.loss
        if section is None:
            return CLASSIFIES if self.schema.target == "label" else "mse"
        if section.expression is None:
            return section.text
        return define_loss(
            shortened(section.text),
            section.expression,
            targets=section.targets,
            outputs=section.outputs,
            negative_curvature=section.negative_curvature,
        )

    @cached_property
    def in_units(self) -> bool:
        """Whether the network learns standardised outputs, which its module takes back into their units."""
        scales = self.needs_data and self.schema.target_scale is not None
        return scales and is_of_differences(resolve_loss(self.declared_loss))

    @cached_property
    def network(self) -> Layers | Nodes:
        """The network with all its sizes, those that the file leaves out taken from data and loss."""
        network = self.sections.network or Layers()
        if network.complete:
            return network
        sizes = self.inputs_wanted, self.outputs_wanted
        return network.completed(*sizes, autoencoder=_is_autoencoder(self.data))

    @property
    def inputs_wanted(self) -> int:
        """Features that the data give to the network: numbers, and embeddings of categories."""
        return table_width(self.schema)

    @property
    def outputs_wanted(self) -> int:
        """Outputs that the loss and the data ask for."""
        loss = resolve_loss(self.declared_loss)
        return loss.outputs if isinstance(loss, CoupledLoss) else self.schema.outputs

    @property
    def nodes(self) -> Sequence[Node]:
        """The network's nodes, in order."""
        return self.network.nodes()

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Features of the input and of every node."""
        return sizes_of(self.nodes, self.input_size, self.path)

    @property
    def input_size(self) -> int:
        """Features that the declared network reads."""
        size = self.network.input_size
        assert size is not None
        return size

    @property
    def output_size(self) -> int:
        """Features of the last node."""
        return self.sizes[self.nodes[-1].name]

    @property
    def batch_size(self) -> int:
        """Samples of a step: the file's, or all there are."""
        if self.needs_data and self.given is None:
            return min(self.training.batch_size, len(tensors_of(self.split.train_y)[0]))
        return min(self.training.batch_size, self.data.train or self.training.batch_size)

    def example(self, samples: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Inputs of the right shapes and dtypes, to trace the network with."""
        features = self.schema.inputs if self.needs_data else self.input_size
        x = torch.zeros(1, features, dtype=self.dtype).expand(samples, -1)
        if not self.needs_data or not self.schema.categories:
            return x
        return x, torch.zeros(samples, len(self.schema.categories), dtype=torch.int64)

    def build(self, seed: int | None = None) -> DeclaredNetwork:
        """The network with fresh weights, drawn from ``seed`` (default: the file's).

        Raises :class:`~gncompile.errors.ModelFileError` where training it would not fit into memory.
        """
        require_memory_for(self)
        seed = self.training.seed if seed is None else seed
        declared = self.nodes, self.functions, self.sizes, seed, self.dtype
        if self.needs_data and (self.schema.standardise or self.schema.categories):
            return TableNetwork(self.schema, self.in_units, *declared)
        return DeclaredNetwork(self.input_size, *declared)


def title(model: Model | None, path: Path) -> str:
    """The name that a model file gives, or its own, or its folder's where that is ``model.toml``."""
    if model is not None:
        return model.name
    parts = (path.stem, path.absolute().parent.name)
    name = next((each for each in parts if each not in ("", "model")), "model")[:200]
    return name if name.isprintable() else "model"


def _is_autoencoder(spec: DataSpec) -> bool:
    return (spec.target or ("input" if spec.name == "curves" else "")) == "input"


def load_model_file(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    schema: TableSchema | None = None,
) -> ModelFile:
    """Read and check a model file; :class:`ModelFileError` names the key, the place and a remedy.

    Relative paths of data and of tuned settings are taken from ``base``, by default the file's own folder.
    They may not lead out of it, links followed, except into the folder ``data_root``. The data are not read
    here; with ``schema``, that of the data that a model was trained on, they never need to be.
    """
    path = Path(path)
    content = read(path)
    sections = validate(content, path)
    roots = [path.parent if base is None else Path(base)]
    roots += [] if data_root is None else [Path(data_root)]
    spec = sections.data
    if Path(spec.name).suffix in READERS:
        spec = dataclasses.replace(spec, name=_located(spec.name, roots, "[data] name", path))
    if spec.validation_file is not None:
        held_out = _located(spec.validation_file, roots, "[data] validation_file", path)
        spec = dataclasses.replace(spec, validation_file=held_out)
    sections = sections.model_copy(update={"data": spec})
    if sections.training.tune.endswith(".json"):
        tune = _located(sections.training.tune, roots, "[training] tune", path)
        training = sections.training.model_copy(update={"tune": tune})
        sections = sections.model_copy(update={"training": training})
    transfers = declared_transfers(sections.transfer, path)
    own = {name: called_by_name(function, name) for name, function in transfers.items()}
    known = ChainMap(own, FUNCTIONS)
    network = sections.network or Layers()
    # Names and functions are those of any size.
    nodes = network.completed(1, 1, autoencoder=_is_autoencoder(spec)).nodes()
    check_names(nodes, path)
    if network.complete:
        sizes_of(nodes, network.input_size or 0, path)
    check_all_read(nodes, path)
    loss = None if sections.loss is None else sections.loss.name
    functions = declared_functions(nodes, known, path, loss)
    return ModelFile(path, content, sections, functions, transfers, schema)


def declared_functions(
    nodes: Sequence[Node],
    known: Mapping[str, Callable[..., Expr]],
    path: Path,
    loss: str | None = None,
) -> dict[str, Function]:
    """The functions of a network's nodes by name; all mistakes in them, and in a ``loss``, are told."""
    functions: dict[str, Function] = {}
    mistakes: dict[str, GncompileError] = {}  # by what was found, which many layers may share
    for node in nodes:
        if isinstance(node, Linear | Pointwise):
            with _noted(mistakes):
                functions[node.name] = function_of(node, known, path)
    if loss is not None:
        with _noted(mistakes):
            resolve_loss(loss)
    if len(mistakes) == 1:
        raise next(iter(mistakes.values()))
    if mistakes:
        raise ModelFileError("\n".join(map(str, mistakes.values())))
    return functions


@contextmanager
def _noted(mistakes: dict[str, GncompileError]) -> Iterator[None]:
    """Go on after a mistake, which is kept."""
    try:
        yield
    except GncompileError as error:
        mistakes.setdefault(str(error).partition("\n")[0], error)


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


# --- Transfer functions ---------------------------------------------------------------------------


def declared_transfers(given: Mapping[str, Transfer], path: Path) -> dict[str, TransferFunction]:
    """The file's own ``[transfer.NAME]``, each of which may call those above it."""
    declared: dict[str, TransferFunction] = {}
    own: dict[str, Callable[..., Expr]] = {}
    for name, record in given.items():
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
            tuple(ARGUMENTS),
            place,
        )
        function.check()
        declared[name], own[name] = function, called_by_name(function, name)
    return declared
