"""Frontends: from the user's world, a PyTorch module or a model file, to a model graph.

``model_file`` is imported where it is wanted: compiling a module needs none of what reads and checks files.
"""

from __future__ import annotations

from .torch_export import trace

__all__ = ["trace"]
