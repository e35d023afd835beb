"""A posterior as one safetensors file, which other tools can read too.

Tensors: ``<layer>/input`` and ``<layer>/output``, Q and Ḡ of each layer, and ``<name>/value`` of each of the
model's parameters and buffers. The header's field ``gncompile`` holds JSON: how to read the factors
(:data:`CONVENTIONS`), the loss, and all numbers.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.version import __version__
from ..losses.vocabulary import Loss
from ..training.fingerprint import shape_differences
from ..training.sealed_file import read_sealed, write_sealed
from ..training.state import copy_tensors, model_tensors, require_same
from ..training.stored_loss import loss_from_data, loss_to_data

FORMAT = "gncompile posterior 1"
CONVENTIONS = {
    "matrix": "output ⊗ input, the Gauss-Newton block of the negative log-likelihood, noise 1",
    "vec": "W̄ = [W, b] row by row, W as [out, in]: index = output · width of input + input",
    "bias": "the last row and column of input, where the layer has a trained bias",
    "reduction": "input and output are means over samples; multiply their product by samples / noise²",
}


@dataclass(frozen=True)
class StoredPosterior:
    """What a file holds."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Q and Ḡ by layer."""
    values: Mapping[str, Tensor]
    """The model's parameters and buffers."""
    loss: Loss
    layers: Mapping[str, dict[str, Any]]
    """Of each layer the parameters' names, whether there is a bias, and the places that share its factors."""
    prior_precision: Mapping[str, float]
    noise: float | None
    samples: int
    loss_sum: float
    method: str
    sharing: Any

    def write(self, path: str | os.PathLike[str]) -> None:
        """To one file, replaced in one step."""
        named = {
            f"{layer}/{side}": factor
            for layer, pair in self.factors.items()
            for side, factor in zip(("input", "output"), pair, strict=True)
        }
        named |= {f"{name}/value": value for name, value in self.values.items()}
        about = {
            "format": FORMAT,
            "version": __version__,
            "conventions": CONVENTIONS,
            "samples": self.samples,
            "noise": self.noise,
            "prior_precision": dict(self.prior_precision),
            "loss": loss_to_data(self.loss),
            "loss_sum": self.loss_sum,
            "method": self.method,
            "sharing": self.sharing,
            "layers": self.layers,
        }
        write_sealed(path, about, named)

    def into(self, model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """A copy of ``model`` with the stored parameters and buffers, if it has the same."""
        model = copy.deepcopy(model)
        own = model_tensors(model)
        kinds = (
            {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}
            for tensors in (own, self.values)
        )
        require_same(shape_differences(*kinds), Path(path))
        copy_tensors(own, dict(self.values))
        return model


def read_posterior(path: str | os.PathLike[str]) -> StoredPosterior:
    """What :meth:`StoredPosterior.write` wrote.

    Raises :class:`~gncompile.errors.CheckpointError` if the file is missing, damaged, or not one of ours.
    """
    return read_sealed(
        Path(path), "posterior", _stored, "make it again with gncompile.laplace(...).save(path)"
    )


def _stored(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StoredPosterior:
    """The content of a file, each value of its kind; ``TypeError``, ``KeyError`` or ``ValueError`` else."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r:.100}, this is {FORMAT!r}")
    factors = {}
    for layer in about["layers"]:
        pair = tensors[f"{layer}/input"], tensors[f"{layer}/output"]
        for factor in pair:
            square = factor.dim() == 2 and factor.shape[0] == factor.shape[1]
            if factor.dtype != torch.float64 or not square or not bool(factor.isfinite().all()):
                raise ValueError(
                    f"a factor of layer {layer!r} is no finite square matrix in float64"
                )
        factors[layer] = pair
    values = {k.removesuffix("/value"): t for k, t in tensors.items() if k.endswith("/value")}
    if len(values) + 2 * len(factors) != len(tensors):
        raise ValueError("it has tensors that no layer owns")
    samples, noise = about["samples"], about["noise"]
    if type(samples) is not int or samples < 1:
        raise ValueError(f"samples is {samples!r:.100}")
    if {*about["prior_precision"]} != {*factors}:
        raise ValueError("prior_precision is of other layers")
    numbers = [*about["prior_precision"].values(), *([] if noise is None else [noise])]
    if not all(type(each) is float and 0 < each < math.inf for each in numbers):
        raise ValueError("prior_precision or noise is no positive number")
    if type(about["loss_sum"]) is not float or type(about["method"]) is not str:
        raise TypeError("loss_sum or method is of another type")
    return StoredPosterior(
        factors, values, loss_from_data(about["loss"]), about["layers"], about["prior_precision"],
        noise, samples, about["loss_sum"], about["method"], about["sharing"],
    )  # fmt: skip
