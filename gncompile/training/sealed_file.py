"""Tensors and JSON in one safetensors file, because one rename replaces it atomically.

The header's field ``gncompile`` holds the JSON; ``digest`` is over it and all tensors.
Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..base.files import atomic_path
from ..errors import CheckpointError, GncompileError
from .state import Tensors

T = TypeVar("T")


def write_sealed(path: str | os.PathLike[str], about: Mapping[str, Any], tensors: Tensors) -> None:
    """Write ``tensors`` by name, and ``about`` beside them, replacing the file in one step."""
    from safetensors.torch import save_file

    # Clones, because safetensors refuses tensors that share memory.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps(about)
    with atomic_path(path) as temporary:
        save_file(own, temporary, metadata={"gncompile": text, "digest": digest_of(text, own)})


def read_sealed(path: Path, what: str, content: Callable[[Any, Tensors], T], instead: str) -> T:
    """What ``content`` makes of a file's ``about`` and tensors.

    Raises :class:`~gncompile.errors.CheckpointError`, which says what to do ``instead``, if there is no such
    ``what``, if it is damaged or none of ours, or if ``content`` finds a wrong key, type or value.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"no {what} {str(path)!r}", instead="check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = header["gncompile"]
        if header["digest"] != digest_of(text, tensors):
            raise ValueError("its content does not match its digest")
        return content(json.loads(text), tensors)
    except CheckpointError:
        raise
    except (
        SafetensorError, GncompileError, OSError, AttributeError, KeyError, TypeError, ValueError,
        RecursionError,
    ) as error:  # fmt: skip
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"the {what} is damaged, or not one of gncompile's: {found}",
            where=str(path),
            instead=instead,
        ) from error


def digest_of(about: str, tensors: Tensors) -> str:
    """Of the header's text, and of names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
