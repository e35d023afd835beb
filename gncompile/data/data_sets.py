"""Data sets by name, and minibatches whose order can be saved and continued.

``load(DataSpec("curves"))`` returns tensors of flat samples ``[N, size]``. CURVES is drawn
(``data/curves.py``), MNIST is found or downloaded (``data/mnist.py``), and a user's own table or archive is
read (``data/data_split.py``) without ever unpickling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..base.memory_budget import require_memory
from ..base.untrusted import shown
from ..errors import CheckpointError, DataError, expected_got, nearest
from ..losses.targets import mapped, tensors_of
from .curves import SIDE, curves
from .data_files import ARCHIVES
from .data_spec import DataSpec, DataSplit
from .data_split import archive_table, load_file, permutation, split
from .table import Array, Table
from .tables import TABLES

__all__ = ["NAMED", "READERS", "Batches", "DataSpec", "DataSplit", "load"]


def load(spec: DataSpec, classification: bool | None = None) -> DataSplit:
    """The training and validation data of ``spec``; :class:`DataError` if missing or malformed.

    Where ``spec.target`` is None, a file's targets are labels if ``classification``, which a loss of
    classes asks for, and they are texts or one number a sample. Without such a loss (False) they are
    numbers; by default texts are labels, and numbers are values.
    """
    _check(spec)
    if spec.name in NAMED:
        _check_named(spec)
        return NAMED[spec.name](spec)
    if Path(spec.name).suffix in READERS:
        return load_file(spec, classification)
    raise DataError(
        f"unknown data set {shown(spec.name)}. {nearest(spec.name, NAMED)}".rstrip(),
        instead=f"use one of {', '.join(NAMED)}, or a file ending in {', '.join(READERS)}",
    )


def _check(spec: DataSpec) -> None:
    """Raise for numbers that no data set can have."""
    share = isinstance(spec.validation, float) and 0 < spec.validation < 1
    counts = {"train": spec.train, "validation": None if share else spec.validation}
    given = {name: n for name, n in counts.items() if n is not None} | {"seed": spec.seed}
    wrong = {name: n for name, n in given.items() if not _whole(n, name == "train")}
    if not all(_whole(n, 1) for n in spec.shape or ()):
        wrong["shape"] = next(n for n in spec.shape or () if not _whole(n, 1))
    for name, value in wrong.items():
        least = 1 if name in ("train", "shape") else 0
        raise DataError(
            f"{name} = {value} is no whole number from {least}",
            where="[data]",
            instead=f"give a whole number from {least}, or leave it out"
            + ("; of a file also a share below 1" if name == "validation" else ""),
        )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _check_named(spec: DataSpec) -> None:
    """Raise for keys that are about files."""
    for key in FILE_KEYS:
        if getattr(spec, key) != getattr(DataSpec(spec.name), key):
            raise DataError(
                f"{key} is for files, and {spec.name} is a set by name",
                where=f"{key} in [data]",
                instead="leave it out",
            )
    if isinstance(spec.validation, float) or spec.validation == 0:
        share = "a share" if spec.validation else "none"
        raise DataError(
            f"validation = {spec.validation} is {share}, and {spec.name} has validation data of its own",
            where="validation in [data]",
            instead="give a number of samples from 1, or leave it out",
        )


FILE_KEYS = (
    *("targets", "inputs", "ignore", "categories", "missing"),
    *("validation_file", "validation_column", "weights"),
)


# --- Named sets ----------------------------------------------------------------------------------


PARTS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


def _load_curves(spec: DataSpec) -> DataSplit:
    if spec.target not in (None, "input"):
        raise DataError(
            f"CURVES has no {spec.target}s: its images are their own targets",
            where="target in [data]",
            instead='write target = "input", or leave it out',
        )
    counts = (
        20_000 if spec.train is None else spec.train,
        10_000 if spec.validation is None else int(spec.validation),
    )
    for count in counts:
        require_memory(
            3 * 4 * SIDE**2 * count, f"{count} images of CURVES", where="[data]",
            instead="ask for fewer", error=DataError,
        )  # fmt: skip
    train, held = (
        archive_table({"x": curves(count, spec.seed, part)}, ["x"], "", "CURVES")
        for count, part in zip(counts, PARTS, strict=True)
    )
    return split(replace(spec, target="input", shape=(SIDE, SIDE)), train, held)


def _load_mnist(spec: DataSpec) -> DataSplit:
    from . import mnist

    train, held = (
        _mnist_table(*mnist.read(part), count)
        for part, count in (("train", spec.train), ("t10k", spec.validation))
    )
    spec = replace(spec, target=spec.target or "label", shape=(28, 28))
    return split(spec, train, held, classes=tuple("0123456789"))


def _mnist_table(images: Array, labels: Array, count: Any) -> Table:
    """The first ``count`` images, in single precision, and their labels."""
    grey = images[:count].astype(np.float32) / 255
    return archive_table({"x": grey, "y": labels[:count]}, ["x", "y"], "", "MNIST")


NAMED: Mapping[str, Callable[[DataSpec], DataSplit]] = {
    "curves": _load_curves,
    "mnist": _load_mnist,
}
READERS = (*ARCHIVES, *TABLES)
"""Suffixes of the files that can be read."""


# --- Minibatches ---------------------------------------------------------------------------------


class Batches:
    """Shuffled minibatches ``(x, y)`` in an order that depends on ``(seed, epoch)`` only.

    ``x`` is a tensor ``[N, …]``, or a tuple or dict of some where the model has several inputs, and so is
    ``y`` where the loss takes such a target.

    ``for x, y in batches`` goes to the end of the present epoch and starts the next one's count;
    :meth:`forever` goes on without end. ``state_dict`` read after a batch names the batch that follows, so
    a loader that loads it continues with exactly the same batches.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        inputs, targets = (
            [each if isinstance(each, torch.Tensor) else given for each in tensors_of(given)]
            for given in (x, y)
        )
        for name, tensor in (*(("x", each) for each in inputs), *(("y", each) for each in targets)):
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
                raise DataError(
                    f"{name} is no tensor of samples but a {type(tensor).__name__}",
                    where="Batches(x, y)",
                    instead="pass tensors [N, ...]; torch.from_numpy makes one of an array",
                )
        if not inputs:
            raise DataError("x is empty", where="Batches(x, y)", instead="pass tensors [N, ...]")
        samples = len(inputs[0])
        for what, each in (
            *(("samples", i) for i in inputs[1:]),
            *(("targets", t) for t in targets),
        ):
            if len(each) != samples:
                found = f"{samples} samples, but {len(each)} {what}"
                raise DataError(found, where="Batches(x, y)")
        for name, number in (("batch_size", batch_size), ("seed", seed)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise DataError(
                    f"{name} is {number!r}, no whole number", where=f"Batches({name}=...)"
                )
        if batch_size < 1 or not samples or (drop_last and batch_size > samples):
            raise DataError(
                f"no batches of {batch_size} can be made from {samples} samples",
                where="Batches(batch_size=...)",
                instead=f"use a batch size from 1 to {max(1, samples)}",
            )
        if seed < 0:
            raise DataError(f"the seed {seed} is negative", where="Batches(seed=...)")
        self.x, self.y, self.samples = x, y, samples
        self._device = inputs[0].device
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        # One value, so that an interrupt between two cannot part them.
        self._place = 0, 0
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + bool(rest and not self.drop_last)

    @property
    def epoch(self) -> int:
        """Whole passes over the data so far."""
        return self._place[0]

    @property
    def position(self) -> int:
        """Batches of this epoch taken so far."""
        return self._place[1]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        epoch = self.epoch
        while self.epoch == epoch:
            yield self.next()

    def forever(self) -> Iterator[tuple[Any, Any]]:
        """Batches of this epoch, the next, and so on."""
        while True:
            yield self.next()

    def next(self) -> tuple[Any, Any]:
        """The next batch, moving on to a new epoch where one ends."""
        epoch, position = self._place
        start = position * self.batch_size
        rows = self._permutation()[start : start + self.batch_size]
        x = mapped(lambda each: each[rows], self.x)
        batch = x, x if self.y is self.x else mapped(lambda each: each[rows], self.y)
        last = position + 1 == len(self)
        self._place = (epoch + 1, 0) if last else (epoch, position + 1)
        return batch

    def _permutation(self) -> torch.Tensor:
        if self._order is None or self._order[0] != self.epoch:
            order = permutation(self.samples, self.seed, self.epoch)
            self._order = self.epoch, torch.from_numpy(order).to(self._device)
        return self._order[1]

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, and what its order depends on; plain integers."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "samples": self.samples,
            "drop_last": int(self.drop_last),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where ``state`` was taken; the data and the batch size must be the same."""
        here = self.state_dict()
        if set(state) != set(here):
            raise CheckpointError(
                "not the state of a Batches loader\n" + expected_got(sorted(here), sorted(state)),
                where="Batches.load_state_dict",
            )
        for name in ("samples", "batch_size", "drop_last"):
            if state[name] != here[name]:
                raise CheckpointError(
                    f"the saved loader has another {name}\n"
                    + expected_got(here[name], state[name]),
                    where="Batches.load_state_dict",
                    instead="resume with the same data, batch_size and drop_last",
                )
        within = {"seed": 1 << 63, "epoch": 1 << 63, "position": len(self)}
        for name, end in within.items():
            if type(state[name]) is not int or not 0 <= state[name] < end:
                raise CheckpointError(
                    f"the saved loader has the {name} {state[name]!r}\n"
                    + expected_got(f"a whole number from 0 to {end - 1}", state[name]),
                    where="Batches.load_state_dict",
                )
        self.seed, self._order = state["seed"], None
        self._place = state["epoch"], state["position"]
