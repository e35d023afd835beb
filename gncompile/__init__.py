"""gncompile: compile a feedforward network and a loss into a second-order trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from .accuracy import measure_accuracy as measure_accuracy
    from .api import curvature as curvature
    from .factors import KroneckerFactors as KroneckerFactors
    from .frontends.torch_export import trace as trace
    from .losses import loss_function as loss_function
    from .losses import register_loss as register_loss
    from .optimiser.compile import compile as compile
    from .optimiser.trainer import Trainer as Trainer
    from .transfer import register_transfer as register_transfer
    from .transfer import transfer_function as transfer_function
    from .transfer_report import transfer_page as transfer_page
    from .verification import verify as verify

_HOMES = {
    "Trainer": "optimiser.trainer",
    "KroneckerFactors": "factors",
    "compile": "optimiser.compile",
    "curvature": "api",
    "loss_function": "losses",
    "measure_accuracy": "accuracy",
    "register_loss": "losses",
    "register_transfer": "transfer",
    "trace": "frontends.torch_export",
    "transfer_function": "transfer",
    "transfer_page": "transfer_report",
    "verify": "verification",
}
"""Where each public name lives; looked up on first use, so that ``import gncompile`` stays quick."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gncompile' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
