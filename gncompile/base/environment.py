"""What a result depends on besides the model: versions, machine, switches."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .tables import aligned
from .version import __version__

PACKAGES = (
    "torch",
    "sympy",
    "networkx",
    "numpy",
    "pydantic",
    "safetensors",
    "matplotlib",
    "triton",
)


def environment() -> dict[str, str]:
    """Name and value of each, in the order they are shown; ``"absent"`` for a package not installed."""
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gncompile": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "CUDA device": cuda,
        **{name: package_version(name) for name in PACKAGES},
    }


def package_version(package: str) -> str:
    """An installed package's version, or ``"absent"``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def table(rows: dict[str, str]) -> str:
    """One aligned ``name  value`` line each."""
    return aligned(list(rows.items()))
