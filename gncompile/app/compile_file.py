"""From a model file to its trainer: what it says as ``gncompile.compile`` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..frontends.model_file import ModelFile
from .device import CPU

if TYPE_CHECKING:
    import torch

    from ..frontends.pde_file import PdeFile
    from ..training.trainer import Trainer


def compile_file(
    file: ModelFile,
    seed: int | None = None,
    *,
    device: torch.device | str = CPU,
    **options: Any,
) -> Trainer:
    """The trainer of a model file, on a device; ``options`` go before those in the file."""
    from .compile import compile as compile_model

    model = file.build(seed).to(device)
    training = file.training
    settings = {"tune": training.tune, **trainer_options(file), **options}
    return compile_model(
        model,
        loss=file.loss,
        example_inputs=file.example(file.batch_size),
        seed=file.training.seed if seed is None else seed,
        dtype=file.dtype,
        **settings,
    )


def trainer_options(file: ModelFile | PdeFile) -> dict[str, Any]:
    """The ``[training.options]`` of a model file, and its method, as ``gncompile.compile`` takes them."""
    training = file.training
    given = {"method": training.method} if "method" in training.model_fields_set else {}
    return {**given, **{name: _tuples(value) for name, value in training.options.items()}}


def _tuples(value: Any) -> Any:
    """TOML's arrays as the tuples that options are."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
