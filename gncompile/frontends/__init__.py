"""Frontends: from the user's world, a PyTorch module or a model file, to a model graph."""

from __future__ import annotations

from .torch_export import trace

__all__ = ["trace"]
