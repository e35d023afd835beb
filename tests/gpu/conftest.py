"""The Triton backend on a CUDA device::

    python -m pytest tests/gpu -m gpu

Without one every test is skipped, except that ``TRITON_INTERPRET=1`` runs those on a CPU, slowly, that need
kernels but no graphs. Not part of the plain ``pytest`` run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("platformdirs") is None:  # which alone knows where caches belong
    os.environ.setdefault("GNCOMPILE_CACHE", tempfile.mkdtemp())

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing unless this folder was asked for."""
    asked = any("gpu" in str(argument) for argument in config.invocation_params.args)
    return None if asked else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """Where kernels run here."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A device that runs ahead of the host."""
    if device.type != "cuda":
        pytest.skip("no CUDA device")
    return device


@pytest.fixture(autouse=True)
def _exact_torch(device: torch.device) -> Iterator[None]:
    """What is compared with is computed without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
