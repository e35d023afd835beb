"""Kernels without a GPU: run by Triton's interpreter, or compiled for a GPU that is not here.

Triton decides at its import which of the two a process does, so there are two commands::

    TRITON_INTERPRET=1 python -m pytest tests/triton       # numbers
    python -m pytest tests/triton                          # test_compile*.py: resources

Neither belongs to the plain ``pytest`` run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests in this folder."""
    parser.addoption(
        "--all-kernels", action="store_true", help="compile every kernel of whole programs"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect what this process can do, and nothing unless this folder was asked for."""
    asked = any("triton" in str(argument) for argument in config.invocation_params.args)
    compiles = collection_path.name.startswith("test_compile")
    return None if asked and compiles != INTERPRETED else True


if INTERPRETED:
    from bfloat16 import teach_bfloat16
    from quick_interpreter import leave_out_unread_bounds, look_up_dtypes, patch_once

    teach_bfloat16()
    patch_once()
    leave_out_unread_bounds()
    look_up_dtypes()
