"""Frontends: from the user's world, a PyTorch module or a model file, to a model graph."""

from __future__ import annotations

from .model_file import ModelFile, load_model_file
from .torch_export import trace

__all__ = ["ModelFile", "load_model_file", "trace"]
