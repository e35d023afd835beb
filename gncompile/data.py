"""Data sets by name, and minibatches whose order can be saved and continued.

``load(DataSpec("curves"))`` returns tensors of flat samples ``[N, size]``. CURVES is drawn
(``curves.py``), MNIST is found or downloaded (``mnist.py``), and a user's own ``.npz``, ``.safetensors`` or
``.csv`` file is read without ever unpickling.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from .curves import SIDE, curves
from .errors import CheckpointError, DataError, expected_got, message, nearest

Target = Literal["input", "label", "value"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class DataSpec:
    """Which data, and what the network has to produce from it.

    ``name`` is ``"curves"``, ``"mnist"``, or a file (in a model file, relative to the model file's folder).
    ``target``: ``"input"`` (an autoencoder), ``"label"`` (class numbers), ``"value"`` (numbers). Default:
    curves ``"input"``, mnist ``"label"``, files ``"value"``. ``train`` and ``validation`` are numbers of
    samples, default everything the set has; CURVES has 20,000 and 10,000 as published.
    ``targets`` names the target columns of a CSV file; ``shape`` says how a flat sample is laid out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    target: Target | None = None
    train: int | None = None
    validation: int | None = None
    seed: int = 0
    targets: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DataSplit:
    """Flat samples ``[N, size]`` and their targets; ``shape`` is one sample's own layout, ``(28, 28)``."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    validation_x: torch.Tensor
    validation_y: torch.Tensor
    shape: tuple[int, ...]

    def to(self, dtype: torch.dtype) -> DataSplit:
        """The same data with floating point tensors in ``dtype``; labels stay integers."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        train_x, validation_x = cast(self.train_x), cast(self.validation_x)
        return replace(
            self,
            train_x=train_x,
            train_y=train_x if self.train_y is self.train_x else cast(self.train_y),
            validation_x=validation_x,
            validation_y=(
                validation_x if self.validation_y is self.validation_x else cast(self.validation_y)
            ),
        )


def load(spec: DataSpec) -> DataSplit:
    """The training and validation data of ``spec``; :class:`DataError` if missing or malformed."""
    if spec.name in NAMED:
        return NAMED[spec.name](spec)
    suffix = Path(spec.name).suffix
    if suffix in READERS:
        return _load_file(spec, READERS[suffix])
    raise DataError(
        message(
            f"unknown data set {spec.name!r}. {nearest(spec.name, NAMED)}".rstrip(),
            instead=f"use one of {', '.join(NAMED)}, or a file ending in {', '.join(READERS)}",
        )
    )


# --- Named sets ----------------------------------------------------------------------------------


def _load_curves(spec: DataSpec) -> DataSplit:
    if spec.target not in (None, "input"):
        raise DataError(
            message(
                f"CURVES has no {spec.target}s: its images are their own targets",
                where="target in [data]",
                instead='write target = "input", or leave it out',
            )
        )
    train = curves(20_000 if spec.train is None else spec.train, spec.seed, "train")
    count = 10_000 if spec.validation is None else spec.validation
    validation = curves(count, spec.seed, "validation")
    x, held_out = torch.from_numpy(train), torch.from_numpy(validation)
    return DataSplit(x, x, held_out, held_out, (SIDE, SIDE))


def _load_mnist(spec: DataSpec) -> DataSplit:
    from . import mnist

    train_x, train_y = mnist.read("train")
    held_x, held_y = mnist.read("t10k")
    arrays = {"x": train_x, "y": train_y, "validation_x": held_x, "validation_y": held_y}
    return _split(replace(spec, target=spec.target or "label", shape=(28, 28)), arrays, "MNIST")


# --- Files ---------------------------------------------------------------------------------------


def _load_file(spec: DataSpec, read: Callable[[Path, DataSpec], dict[str, Array]]) -> DataSplit:
    path = Path(spec.name).expanduser()
    if not path.is_file():
        raise DataError(
            message(
                f"no data file {spec.name!r}",
                where=f"looked at {path.absolute()}",
                instead="check the path; a relative path is taken from the model file's folder",
            )
        )
    try:
        arrays = read(path, spec)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes numpy, zipfile or safetensors raise
        raise DataError(
            message(f"cannot read the data file: {error}", where=str(path), instead=_FORMAT)
        ) from error
    return _split(replace(spec, target=spec.target or "value"), arrays, str(path))


_FORMAT = (
    "store numbers as arrays x [N, ...] and y [N] or [N, K], optionally validation_x and validation_y "
    "(.npz, .safetensors), or as a table with one header line (.csv)"
)


def _read_npz(path: Path, spec: DataSpec) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path, spec: DataSpec) -> dict[str, Array]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _read_csv(path: Path, spec: DataSpec) -> dict[str, Array]:
    with path.open(newline="", encoding="utf-8") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
        table = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
    for name in spec.targets:
        if name not in header:
            raise DataError(
                message(
                    f"no column {name!r}. {nearest(name, header)}".rstrip(),
                    where=f"targets in [data], and the header of {path}",
                    instead=f"use the file's columns: {', '.join(header)}",
                )
            )
    if spec.target != "input" and not spec.targets:
        raise DataError(
            message(
                "a CSV file needs its target columns named",
                where=str(path),
                instead='write targets = ["column"] in [data], or target = "input"',
            )
        )
    y = [header.index(name) for name in spec.targets]
    x = [column for column in range(len(header)) if column not in y]
    return {"x": table[:, x], "y": table[:, y]}


NAMED: Mapping[str, Callable[[DataSpec], DataSplit]] = {
    "curves": _load_curves,
    "mnist": _load_mnist,
}
READERS: Mapping[str, Callable[[Path, DataSpec], dict[str, Array]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".csv": _read_csv,
}


def _split(spec: DataSpec, arrays: dict[str, Array], where: str) -> DataSplit:
    """Tensors from ``x, y`` and, if present, ``validation_x, validation_y``; else a tenth is held out."""
    needed = ["x"] if spec.target == "input" else ["x", "y"]
    for name in needed:
        if name not in arrays:
            raise DataError(
                message(
                    f"no array {name!r}\n{expected_got(', '.join(needed), ', '.join(arrays) or 'none')}",
                    where=where,
                    instead=_FORMAT,
                )
            )
    if "validation_x" not in arrays:
        arrays = _hold_out(spec, arrays, needed, where)
    train = _samples(spec, arrays, "", spec.train, where)
    held_out = _samples(spec, arrays, "validation_", spec.validation, where)
    if train[0].shape[1] != held_out[0].shape[1]:
        raise DataError(
            message(
                "training and validation samples differ in size\n"
                + expected_got(f"{train[0].shape[1]} features", f"{held_out[0].shape[1]} features"),
                where=where,
            )
        )
    shape = spec.shape or tuple(arrays["x"].shape[1:]) or (1,)
    if math.prod(shape) != train[0].shape[1]:
        raise DataError(
            message(
                "shape does not fit the samples\n"
                + expected_got(f"{train[0].shape[1]} features", f"{list(shape)}"),
                where="shape in [data]",
            )
        )
    return DataSplit(*train, *held_out, shape)


def _hold_out(
    spec: DataSpec, arrays: dict[str, Array], names: list[str], where: str
) -> dict[str, Array]:
    """Divide the rows, in an order that depends on the seed only, into training and validation."""
    rows = len(arrays["x"])
    if any(len(arrays[name]) != rows for name in names):
        raise DataError(
            message(f"x has {rows} samples, y has {len(arrays['y'])}", where=where, instead=_FORMAT)
        )
    held = max(1, rows // 10) if spec.validation is None else spec.validation
    if not 0 < held < rows:
        raise DataError(
            message(
                f"cannot hold {held} of {rows} samples out for validation",
                where=where,
                instead="give fewer, or provide validation_x",
            )
        )
    order = _permutation(rows, spec.seed, 0)
    parts: dict[str, Array] = {}
    for name in names:
        parts[name] = arrays[name][order[held:]]
        parts[f"validation_{name}"] = arrays[name][order[:held]]
    return parts


def _samples(
    spec: DataSpec, arrays: dict[str, Array], prefix: str, count: int | None, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` samples, flat, and their targets as ``spec.target`` says."""
    x = arrays[f"{prefix}x"]
    if count is not None and not 0 < count <= len(x):
        raise DataError(
            message(
                f"{count} samples asked for, but there are {len(x)}",
                where=f"{prefix}x of {where}",
                instead="lower train or validation in [data]",
            )
        )
    count = len(x) if count is None else count
    if x.dtype == np.uint8:  # images
        flat = torch.from_numpy(x[:count].reshape(count, -1)).to(torch.float32) / 255
    else:
        flat = torch.from_numpy(np.ascontiguousarray(x[:count].reshape(count, -1), np.float32))
    if not torch.isfinite(flat).all():
        raise DataError(
            message("samples contain NaN or infinite values", where=f"{prefix}x of {where}")
        )
    if spec.target == "input":
        return flat, flat
    y = arrays.get(f"{prefix}y")
    if y is None or len(y) != len(x):
        found = "missing" if y is None else f"{len(y)} targets for {len(x)} samples"
        raise DataError(message(f"{prefix}y: {found}", where=where, instead=_FORMAT))
    return flat, _targets(spec, y[:count], f"{prefix}y of {where}")


def _targets(spec: DataSpec, y: Array, where: str) -> torch.Tensor:
    if spec.target == "value":
        return torch.from_numpy(np.ascontiguousarray(y.reshape(len(y), -1), np.float32))
    labels = y.reshape(-1)
    if len(labels) != len(y) or not np.array_equal(labels, np.floor(labels)) or labels.min() < 0:
        raise DataError(
            message(
                "labels must be one whole number >= 0 a sample",
                where=where,
                instead='use target = "value" for other targets',
            )
        )
    return torch.from_numpy(labels.astype(np.int64))


# --- Minibatches ---------------------------------------------------------------------------------


def _permutation(count: int, seed: int, epoch: int) -> Array:
    """A permutation of ``range(count)`` that depends on ``(seed, epoch)`` only.

    Sorting uniform numbers keeps it the same across numpy's versions; its own shuffles may change.
    """
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return np.argsort(stream.random(count), kind="stable")


class Batches:
    """Shuffled minibatches ``(x, y)`` in an order that depends on ``(seed, epoch)`` only.

    ``for x, y in batches`` goes to the end of the present epoch and starts the next one's count;
    :meth:`forever` goes on without end. ``state_dict`` read after a batch names the batch that follows, so
    a loader that loads it continues with exactly the same batches.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        for name, tensor in (("x", x), ("y", y)):
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
                raise DataError(
                    message(
                        f"{name} is no tensor of samples but a {type(tensor).__name__}",
                        where="Batches(x, y)",
                        instead="pass tensors [N, ...]; torch.from_numpy makes one of an array",
                    )
                )
        if len(x) != len(y):
            raise DataError(
                message(f"{len(x)} samples, but {len(y)} targets", where="Batches(x, y)")
            )
        for name, number in (("batch_size", batch_size), ("seed", seed)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise DataError(
                    message(f"{name} is {number!r}, no whole number", where=f"Batches({name}=...)")
                )
        if batch_size < 1 or not len(x) or (drop_last and batch_size > len(x)):
            raise DataError(
                message(
                    f"no batches of {batch_size} can be made from {len(x)} samples",
                    where="Batches(batch_size=...)",
                    instead=f"use a batch size from 1 to {max(1, len(x))}",
                )
            )
        if seed < 0:
            raise DataError(message(f"the seed {seed} is negative", where="Batches(seed=...)"))
        self.x, self.y = x, y
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        # One value, so that an interrupt between two cannot part them.
        self._place = 0, 0
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(len(self.x), self.batch_size)
        return full + bool(rest and not self.drop_last)

    @property
    def epoch(self) -> int:
        """Whole passes over the data so far."""
        return self._place[0]

    @property
    def position(self) -> int:
        """Batches of this epoch taken so far."""
        return self._place[1]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = self.epoch
        while self.epoch == epoch:
            yield self.next()

    def forever(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of this epoch, the next, and so on."""
        while True:
            yield self.next()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch, moving on to a new epoch where one ends."""
        epoch, position = self._place
        start = position * self.batch_size
        rows = self._permutation()[start : start + self.batch_size]
        x = self.x[rows]
        batch = x, x if self.y is self.x else self.y[rows]
        last = position + 1 == len(self)
        self._place = (epoch + 1, 0) if last else (epoch, position + 1)
        return batch

    def _permutation(self) -> torch.Tensor:
        if self._order is None or self._order[0] != self.epoch:
            order = _permutation(len(self.x), self.seed, self.epoch)
            self._order = self.epoch, torch.from_numpy(order).to(self.x.device)
        return self._order[1]

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, and what its order depends on; plain integers."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "samples": len(self.x),
            "drop_last": int(self.drop_last),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where ``state`` was taken; the data and the batch size must be the same."""
        here = self.state_dict()
        if set(state) != set(here):
            raise CheckpointError(
                message(
                    "not the state of a Batches loader\n"
                    + expected_got(sorted(here), sorted(state)),
                    where="Batches.load_state_dict",
                )
            )
        for name in ("samples", "batch_size", "drop_last"):
            if state[name] != here[name]:
                raise CheckpointError(
                    message(
                        f"the saved loader has another {name}\n"
                        + expected_got(here[name], state[name]),
                        where="Batches.load_state_dict",
                        instead="resume with the same data, batch_size and drop_last",
                    )
                )
        within = {"seed": 1 << 63, "epoch": 1 << 63, "position": len(self)}
        for name, end in within.items():
            if type(state[name]) is not int or not 0 <= state[name] < end:
                raise CheckpointError(
                    message(
                        f"the saved loader has the {name} {state[name]!r}\n"
                        + expected_got(f"a whole number from 0 to {end - 1}", state[name]),
                        where="Batches.load_state_dict",
                    )
                )
        self.seed, self._order = state["seed"], None
        self._place = state["epoch"], state["position"]
