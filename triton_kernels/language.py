"""Triton and its language, or a clear error where Triton is not installed.

Every template imports ``tl`` and ``triton`` from here.
"""

from __future__ import annotations

from gncompile.errors import CompileError

try:
    import triton as triton
    import triton.language as tl
except ModuleNotFoundError as missing:
    raise CompileError(
        "the kernel templates need Triton, which is not installed",
        instead="pip install 'gncompile[gpu]', or compile for the torch backend",
    ) from missing

__all__ = ["tl", "triton"]
