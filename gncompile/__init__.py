"""gncompile: compile a feedforward network and a loss into a second-order trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base.handed_down import hand_down
from .base.version import __version__ as __version__

if TYPE_CHECKING:
    from . import optim as optim
    from .app.api import curvature as curvature
    from .app.compile import compile as compile
    from .app.curve_fit import fit as fit
    from .app.laplace import laplace as laplace
    from .app.posterior import Posterior as Posterior
    from .app.residual_terms import Term as Term
    from .app.residuals import residuals as residuals
    from .app.runs import load as load
    from .data.domains import Box as Box
    from .data.domains import Points as Points
    from .frontends.standardised import Standardised as Standardised
    from .frontends.torch_export import trace as trace
    from .functions.grids import Grid as Grid
    from .functions.interpolate import interpolate as interpolate
    from .functions.transfer import register_transfer as register_transfer
    from .functions.transfer import transfer as transfer
    from .functions.transfer import transfer_function as transfer_function
    from .functions.transfer import transfer_names as transfer_names
    from .losses.vocabulary import loss_function as loss_function
    from .losses.vocabulary import register_loss as register_loss
    from .training.early_stop import EarlyStop as EarlyStop
    from .training.early_stop import StopTraining as StopTraining
    from .training.factors import KroneckerFactors as KroneckerFactors
    from .training.loggers import CSVLogger as CSVLogger
    from .training.loggers import TensorBoardLogger as TensorBoardLogger
    from .training.metrics import Metric as Metric
    from .training.trainer import Trainer as Trainer
    from .verification.accuracy import measure_accuracy as measure_accuracy
    from .verification.transfer_report import transfer_page as transfer_page
    from .verification.verification import verify as verify

_HOMES = {
    "Box": "data.domains",
    "CSVLogger": "training.loggers",
    "EarlyStop": "training.early_stop",
    "Grid": "functions.grids",
    "KroneckerFactors": "training.factors",
    "Metric": "training.metrics",
    "Posterior": "app.posterior",
    "Points": "data.domains",
    "Standardised": "frontends.standardised",
    "StopTraining": "training.early_stop",
    "TensorBoardLogger": "training.loggers",
    "Term": "app.residual_terms",
    "Trainer": "training.trainer",
    "compile": "app.compile",
    "curvature": "app.api",
    "fit": "app.curve_fit",
    "interpolate": "functions.interpolate",
    "laplace": "app.laplace",
    "load": "app.runs",
    "loss_function": "losses.vocabulary",
    "measure_accuracy": "verification.accuracy",
    "register_loss": "losses.vocabulary",
    "register_transfer": "functions.transfer",
    "residuals": "app.residuals",
    "trace": "frontends.torch_export",
    "transfer": "functions.transfer",
    "transfer_function": "functions.transfer",
    "transfer_names": "functions.transfer",
    "transfer_page": "verification.transfer_report",
    "verify": "verification.verification",
}
"""Where each public name lives; looked up on first use, so that ``import gncompile`` stays quick."""

__all__ = sorted([*_HOMES, "optim"])


hand_down("backends", lambda: import_module(".verification.accuracy", __name__).BACKENDS)
hand_down("compile_into", lambda: import_module(".app.compile", __name__).compile_into)


def __getattr__(name: str) -> Any:
    if name == "optim":
        return import_module(".optim", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'gncompile' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
