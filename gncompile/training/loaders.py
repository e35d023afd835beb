"""What loaders give as a batch, read as a pair of inputs and targets ``(x, y)``.

    batch=f                      f(b) is the pair
    (x, y)                       the pair; x may be a tuple of inputs, and y what the loss takes
    (a, b, …, y, …)              the model's inputs in order, then the target
    {"a": …, "b": …, "y": …}     entries named like forward's arguments are the inputs, the rest is the target
    x, (x,)                      the target is the input, of a model whose output has the input's shape

Where more than one tensor is left for the target, the loss has to take several: a tuple gives them in order,
and a dict by the names of the outputs. Nothing is guessed: another form is refused, and ``batch=`` tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor

from ..data.data_sets import Batches
from ..errors import BatchError, GncompileError
from ..losses.sum_loss import SumLoss
from .batches import BatchReader, Target, first_tensor, input_tensors

Rows = Tensor | tuple[Tensor, ...]
Pair = tuple[Rows, Target]
ReadBatch = Callable[[Any], Pair]
"""From what a loader gives to ``(x, y)``."""


@dataclass(frozen=True)
class PairOf:
    """Reads batches for one model and loss, by the module's rule or by ``own``, which a user gave."""

    reader: BatchReader
    own: ReadBatch | None = None

    def __post_init__(self) -> None:
        if self.own is not None and not callable(self.own):
            raise GncompileError(
                f"batch is {self.own!r}",
                instead="give a function of what the loader gives: batch=lambda b: (b['x'], b['y'])",
            )

    def __call__(self, batch: object) -> Pair:
        """The pair; :class:`~gncompile.errors.BatchError` if the batch has no form that is known."""
        x, y = self._own(batch) if self.own else self._pair(batch)
        input_tensors(x)
        first_tensor(y)
        return x, y

    def inputs(self, batch: Any) -> Rows:
        """The inputs of a batch, which needs no target: of a tuple its first entries."""
        if self.own:
            x = self._own(batch)[0]
        elif isinstance(batch, Mapping) and all(name in batch for name in self.names):
            x = tuple(batch[name] for name in self.names)
        elif isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
            x = tuple(batch[: len(self.names)])
        elif isinstance(batch, tuple | list) and batch:
            x = batch[0]
        else:
            x = batch
        return input_tensors(x)

    @property
    def names(self) -> list[str]:
        """The names of forward's arguments."""
        return [node.name for node in self.reader.nodes]

    def _own(self, batch: object) -> Any:
        assert self.own is not None
        pair = self.own(batch)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise BatchError(
                f"batch= gave {_form(pair)}", instead="let it return a pair (inputs, targets)"
            )
        return pair

    def _pair(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return self._alone(batch)
        if isinstance(batch, Mapping):
            return self._of_dict(batch)
        if not isinstance(batch, tuple | list) or not batch:
            raise self._refused(batch)
        if len(batch) == 2:
            return tuple(batch)
        if len(batch) == 1:
            return self._alone(batch[0])
        count = len(self.names)
        x, targets = tuple(batch[:count]), tuple(batch[count:])
        if not targets or (len(targets) > 1 and not self.reader.loss.structured):
            raise self._refused(batch)
        return x[0] if count == 1 else x, targets[0] if len(targets) == 1 else targets

    def _of_dict(self, batch: Mapping[str, Any]) -> Any:
        names = self.names
        rest = {key: value for key, value in batch.items() if key not in names}
        if not all(name in batch for name in names):
            raise self._refused(batch)
        x = batch[names[0]] if len(names) == 1 else tuple(batch[name] for name in names)
        if not rest:
            return self._alone(x)
        if len(rest) == 1:
            return x, next(iter(rest.values()))
        loss = self.reader.loss
        if not isinstance(loss, SumLoss) or {*rest} != {term.key for term in loss.terms}:
            raise self._refused(batch)
        return x, rest if loss.named else tuple(rest[term.key] for term in loss.terms)

    def _alone(self, x: Any) -> Any:
        """An autoencoder's batch."""
        nodes, output = self.reader.nodes, self.reader.graph.output
        if len(nodes) != 1 or output.shape != nodes[0].shape or not isinstance(x, Tensor):
            raise BatchError(
                f"a batch has no target: it is {_form(x)}\nthat is one of an autoencoder, and this model's "
                f"outputs {list(output.shape)} are not shaped like "
                f"its inputs {', '.join(str(list(node.shape)) for node in nodes)}",
                where="the data",
                instead="give batches (x, y), or say what they are: batch=lambda b: (b[0], target)",
            )
        return x, x

    def _refused(self, batch: object) -> BatchError:
        return BatchError(
            f"a batch is {_form(batch)}, and it is not clear what of it are inputs and what the target\n"
            f"the model's inputs are {', '.join(self.names)}",
            where="the data",
            instead="give pairs (x, y), name the entries of a dict like the arguments of forward, or say "
            "what they are: batch=lambda b: (inputs, targets)",
        )


def _form(batch: object) -> str:
    """What a batch is, in words."""
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(repr, batch))}" if batch else "an empty dict"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


def data_set(data: object, what: str) -> Iterable[object]:
    """One batch in a list, or what gives several; ``what`` is the data's name in errors.

    A ``Batches`` is its tensors: to go through it would be to draw an order. A list is one of batches.
    """
    if isinstance(data, Batches):
        return [(data.x, data.y)]
    if isinstance(data, tuple | Tensor | Mapping):
        return [data]
    tensors = isinstance(data, list) and any(isinstance(each, Tensor) for each in data)
    if tensors or isinstance(data, str) or not isinstance(data, Iterable):
        found = f"of type {type(data).__name__}{' and holds tensors' * tensors}"
    elif isinstance(data, Iterator):
        found = f"a {type(data).__name__}, which can be gone through once"
    else:
        return data
    raise GncompileError(
        f"{what} is {found}",
        instead=f"give a tuple of tensors (x, y), the whole {what} set, or batches: a Batches, a "
        "DataLoader, a list of pairs",
    )


def gives_batches(data: object) -> TypeGuard[Iterable[object]]:
    """Whether ``data`` is a loader, and not a batch: a ``Batches``, a list of batches, ``DataLoader``, ….

    A list or tuple of tensors is one batch, and so is what is like a tensor.
    """
    if isinstance(data, list):
        return any(isinstance(each, tuple | list | Mapping) for each in data)
    single = isinstance(data, Tensor | tuple | Mapping | str) or hasattr(data, "__array__")
    return isinstance(data, Batches) or (isinstance(data, Iterable) and not single)


def length_of(train: object) -> int | None:
    """Batches in one epoch, where that is known; a loader of an iterable data set has no length."""
    try:
        return len(train)  # type: ignore[arg-type]
    except TypeError:
        return None


def the_only(train: object, more: tuple[object, ...]) -> Any:
    """``train``, or :class:`~gncompile.errors.GncompileError` where ``fit`` was given more without a name."""
    if more:
        kinds = " and ".join(type(each).__name__ for each in (train, *more))
        raise GncompileError(
            f"fit was given {kinds}, and takes one thing that gives batches",
            instead="fit(gncompile.data.Batches(X, Y, batch_size), epochs=...), with all else by name",
        )
    return train


def require_batches(train: object) -> None:
    """Raise :class:`~gncompile.errors.GncompileError` unless ``train`` can be gone through in batches."""
    tensors = isinstance(train, Tensor)
    pair = isinstance(train, tuple) and any(isinstance(each, Tensor) for each in train)
    if tensors or pair or isinstance(train, Mapping | str) or not isinstance(train, Iterable):
        found = f"a {type(train).__name__}{' of tensors' * pair}, not something that gives batches"
        raise GncompileError(
            f"the training data is {found}",
            instead="pass gncompile.data.Batches(x, y, batch_size), a DataLoader, or a list of pairs",
        )
