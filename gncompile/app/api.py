"""Curvature without training: Kronecker factors of a model on one batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.options import Count, checked
from ..base.settings import CURVATURE_METHODS, Settings
from ..errors import CompileError, require_known
from ..frontends.wrapped import require_unwrapped
from ..graph.model_graph import TracedModel
from ..graph.nodes import Output
from ..losses.vocabulary import Loss, LossSpec, resolve_loss
from ..losses.weighting import bind_loss
from ..pipeline import prepare
from ..runtime.executable import BACKENDS
from ..training.arguments import checked_seed, require_dtype
from ..training.batches import BatchReader, Target
from ..training.factors import KroneckerFactors
from ..training.model_identity import require_no_gradient_hooks
from .measured_factors import Measurement, batches_of, example_of

METHODS = (*CURVATURE_METHODS, "ggn", "hessian")


def curvature(
    model: nn.Module,
    loss: LossSpec,
    x: Any,
    y: Target = None,
    method: str = "kfra",
    dtype: torch.dtype | None = None,
    *,
    sharing: str | Mapping[str, str] = "expand",
    samples: int = 1,
    seed: int = 0,
    backend: str = "torch",
    memory_budget: int = 1 << 30,
) -> dict[str, KroneckerFactors]:
    """Kronecker factors ``Ḡ ⊗ Q`` of every trainable affine layer on a batch ``(x, y)``, or on batches.

    ``method`` is one of ``"kfra"`` [BRB §3.3, here on any DAG], ``"kflr"`` [BRB §3.2, exact Ḡ],
    ``"kfac"`` and ``"kfac_rp"`` (``samples`` random vectors drawn with ``seed``: model-sampled targets, ±1
    projections), ``"empirical"`` (training gradients), and two oracles with ``[N, d, d]`` memory per layer:
    ``"ggn"`` (exact, any loss) and ``"hessian"`` (with second-derivative terms).

    ``sharing`` is how the places of a weight that is used at several make one pair of factors: ``"expand"``,
    ``"reduce"``, ``"nearest"`` (docs/mathematics.md#places-that-share-factors), or a mapping of patterns.

    ``x: [N, …]``, ``y`` as the loss takes it; or ``x`` alone, a loader or list of such batches in any form
    that ``fit`` takes, whose factors are the means over the samples of all. ``dtype`` (float32 or float64)
    defaults to the parameters'; with another one the model is copied. ``memory_budget`` bounds the bytes of
    KFLR's columns: they go through the network in chunks of columns and, below one column, of samples.

    Returns factors keyed by the layer's module path, averaged over the N samples. Raises
    :class:`~gncompile.errors.TraceError`, ``LossError``, ``BatchError`` or ``CompileError``. Cost: one
    gradient, plus per layer ``O(N d²)`` for Q and ``O(d³ + N d²)`` (KFRA) or K backward passes (KFLR); every
    call traces the model, some 40 ms for a small one.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    >>> factors = curvature(net, "mse", torch.ones(4, 3).double(), torch.zeros(4, 1).double())
    >>> {layer: (f.input.shape[0], f.output.shape[0]) for layer, f in factors.items()}
    {'0': (4, 2), '2': (3, 1)}
    """
    require_known("curvature method", method, METHODS)
    require_known("backend", backend, BACKENDS)
    for name, number in (("samples", samples), ("memory_budget", memory_budget)):
        checked(name, number, Count, "a whole number, 1 or more")
    seed = checked_seed(seed)
    batches = batches_of(x, y)
    example = example_of(model, batches) if y is None else x
    traced, declared, reader = understand(model, loss, example, dtype)
    settings = Settings.from_options(sharing=sharing, samples=samples, memory_budget=memory_budget)
    measured = Measurement(traced, declared, reader, method, settings, backend=backend, seed=seed)
    return measured.of(batches)[0]


def understand(
    model: nn.Module,
    loss: LossSpec,
    x: Tensor | tuple[Tensor, ...],
    dtype: torch.dtype | None = None,
) -> tuple[TracedModel, Loss, BatchReader]:
    """Trace and prepare a model, resolve its loss, and make the reader of its batches."""
    from ..frontends.example_inputs import checked_examples
    from ..frontends.torch_export import trace

    dtype, device = _computed_in(model, dtype)
    require_no_gradient_hooks(model, loss)
    if dtype != next(model.parameters()).dtype:
        model = copy.deepcopy(model).to(dtype)
    examples = checked_examples(model, x, dtype)
    traced = trace(model, examples, name=type(model).__name__, passes=prepare)
    declared = loss_of(loss, traced)
    return traced, declared, BatchReader(traced.graph, declared, dtype, device, traced.inputs)


def loss_of(loss: LossSpec, traced: TracedModel) -> Loss:
    """What is understood as a loss, for the outputs of this model."""
    output = traced.graph.output
    assert isinstance(output.op, Output)
    return bind_loss(resolve_loss(loss), output.shape, output.op.outputs)


def _computed_in(model: nn.Module, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    """The dtype asked for, or else that of the model's parameters, and their device."""
    if not isinstance(model, nn.Module):
        raise CompileError(
            f"the model is of type {type(model).__name__}", instead="pass a torch.nn.Module"
        )
    require_unwrapped(model)
    named = list(model.named_parameters())
    if not named:
        raise CompileError(
            "the model has no parameters", instead="pass a module with nn.Linear layers"
        )
    first, parameter = named[0]
    for name, other in named:
        if (other.dtype, other.device) != (parameter.dtype, parameter.device):
            raise CompileError(
                f"{first!r} is {parameter.dtype} on {parameter.device}, {name!r} is {other.dtype} on "
                f"{other.device}",
                where=f"parameter {name!r}",
                instead="bring the model to one dtype and device with model.to(dtype, device)",
            )
    dtype = dtype or parameter.dtype
    require_dtype(dtype)
    return dtype, parameter.device
