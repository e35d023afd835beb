"""Say in the user's terms why ``torch.export`` could not follow a module."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from .example_inputs import failure
from .fx_nodes import origin_of_error
from .own_gradients import Observer

_CONTROL_FLOW = (
    "data-dependent",
    "datadependent",
    "could not guard",
    "could not extract specialized",
)

_OUTSIDE_THE_GRAPH = {
    torch.autograd.grad: "torch.autograd.grad",
    Tensor.backward: "Tensor.backward",
    Tensor.data.__get__: "Tensor.data",  # type: ignore[attr-defined]
    Tensor.numpy: "Tensor.numpy",
}

_NUMBERS = {
    Tensor.item: "Tensor.item",
    Tensor.tolist: "Tensor.tolist",
    Tensor.__float__: "float(tensor)",
    Tensor.__int__: "int(tensor)",
}

DERIVED = (
    "leave derivatives with respect to inputs to gncompile.residuals, which takes the network without them; "
    "write others, and maps over samples, out with tensor operators"
)
"""What to do about derivatives and maps inside forward."""

# export itself goes through other files of that folder
_FUNCTORCH = ("_functorch/apis.py", "_functorch/eager_transforms.py", "_functorch/vmap.py")


def several(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two rows for one: ``torch.export`` takes a batch of one for a constant."""
    return tuple(x if x.shape[0] > 1 else torch.cat([x, x]) for x in examples)


def explain_failure(
    error: Exception, module: nn.Module, examples: tuple[Tensor, ...]
) -> TraceError:
    """The :class:`TraceError` for an exception that ``torch.export`` raised, or what it exported."""
    name, text = type(module).__name__, str(error)
    where = str(origin_of_error(error)) if origin_of_error(error).location else f"forward of {name}"
    with Observer({**_OUTSIDE_THE_GRAPH, **_NUMBERS}) as observer:
        own = failure(module, examples)
    if own is not None:
        works_for_one = failure(module, tuple(x[:1] for x in examples)) is None
        if examples[0].shape[0] > 1 and works_for_one:
            size = examples[0].shape[0]
            return _fixed_batch(
                where, f"{name} runs for a batch of 1 and fails for a batch of {size}"
            )
        return TraceError(
            f"{name} itself fails on the example inputs: {type(own).__name__}: {own}",
            where=where,
            instead="make module(*example_inputs) work first",
        )
    if failure(module, several(examples)) is not None:
        return _fixed_batch(where, f"{name} runs for a batch of 1 and fails for a batch of 2")
    if _inside_functorch(error):
        return TraceError(
            f"forward uses torch.func ({type(error).__name__}), which no graph of operators can hold",
            where=where,
            instead=DERIVED,
        )
    if observer.seen:
        return _outside_the_graph(observer.seen)
    if any(sign in text.lower() for sign in _CONTROL_FLOW):
        return TraceError(
            f"control flow in {name} depends on the data, not only on shapes",
            where=where,
            instead="use torch.where, so that every sample takes the same path",
        )
    if "batch" in text and ("constraint" in text.lower() or "specializ" in text.lower()):
        return _fixed_batch(f"forward of {name}", f"{name} works only for some batch sizes")
    return TraceError(
        f"torch.export cannot trace {name}: {text.strip().splitlines()[0] if text else error!r}",
        where=where,
        instead="make forward traceable by torch.export.export",
    )


def _outside_the_graph(seen: Mapping[str, str]) -> TraceError:
    """Calls that leave no trace in a graph, with their places."""
    calls = [what for what in seen if what not in _NUMBERS.values()]
    if calls:
        return TraceError(
            f"forward uses {calls[0]}, which no graph of operators can hold",
            where=seen[calls[0]],
            instead=DERIVED,
        )
    what, place = next(iter(seen.items()))
    return TraceError(
        f"forward takes a number out of a tensor ({what}), and goes on with it",
        where=place,
        instead="keep it a tensor; torch.where chooses per element",
    )


def _inside_functorch(error: BaseException) -> bool:
    """Whether the error comes out of ``torch.func``."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.endswith(_FUNCTORCH) for file in files)


def _fixed_batch(where: str, found: str) -> TraceError:
    return TraceError(
        f"the model fixes the batch size: {found}",
        where=where,
        instead="write x.shape[0] or -1 for the batch dimension; neither branch on it nor slice it",
    )


@contextmanager
def without_graph_dumps() -> Iterator[None]:
    """Keep off stderr what ``torch.export`` says before it raises: its graph, and :data:`LOGGED`."""
    held = _Held(sys.stderr)
    dumped = ""
    filtered = {logging.getLogger(name): wanted for name, wanted in LOGGED.items()}
    for logger, wanted in filtered.items():
        logger.addFilter(wanted)
    try:
        with redirect_stderr(held):
            yield
    except Exception as error:
        dumped = str(getattr(error, "partial_fx_graph", ""))
        raise
    finally:
        for logger, wanted in filtered.items():
            logger.removeFilter(wanted)
        written = "".join(held.parts)
        held.stream.write(written.replace(f"{dumped}\n", "") if dumped else written)


def _all_but(start: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not str(record.msg).startswith(start)


LOGGED = {
    "torch.fx.experimental.symbolic_shapes": _all_but("Unable to find user code"),
    "torch._subclasses.fake_tensor": _all_but("failed while attempting to run meta"),
}
"""What torch logs that our error says better: where in the user's code, and which shapes do not fit."""


class _Held:
    """Holds what this thread writes to ``stream``, and hands on what others write."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.parts: list[str] = []
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return int(self.stream.write(text))
        self.parts.append(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
