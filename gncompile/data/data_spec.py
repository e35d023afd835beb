"""Which data a model is trained on, and what they are once read: two records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from ..errors import DataError

Target = Literal["input", "label", "value"]


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
        """The same data with floating point tensors in ``dtype``; labels stay integers.

        Raises :class:`DataError` for a number that is infinite there.
        """

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            given = tensor.to(dtype)
            if not torch.isfinite(given).all():
                row = int((~torch.isfinite(given)).nonzero()[0][0])
                largest = tensor.flatten()[tensor.abs().argmax()].item()
                raise DataError(
                    f"the data do not fit into {dtype}: {largest:g}",
                    where=f"sample {row}",
                    instead='scale them, or train with dtype = "float64"',
                )
            return given

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

    def digest(self) -> str:
        """A hash of all numbers, their types and shapes."""
        found = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.validation_x, self.validation_y):
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()
