"""Curvature without training: Kronecker factors of a model on one batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..base.options import Count, checked
from ..base.settings import CURVATURE_METHODS, Settings
from ..errors import CompileError, require_known
from ..frontends.wrapped import require_unwrapped
from ..graph.dropout import without_dropout
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import Output
from ..losses.rows import as_parts
from ..losses.vocabulary import Loss, LossSpec, resolve_loss
from ..losses.weighting import bind_loss
from ..pipeline import factor_program, prepare
from ..program.costs import column_bytes
from ..runtime.executable import BACKENDS, Executable
from ..runtime.memory import dense
from ..training.arguments import checked_seed, require_dtype
from ..training.batches import BatchReader, Target
from ..training.factors import KroneckerFactors
from ..training.model_identity import require_no_gradient_hooks

METHODS = (*CURVATURE_METHODS, "ggn", "hessian")


def curvature(
    model: nn.Module,
    loss: LossSpec,
    x: Tensor | tuple[Tensor, ...],
    y: Target,
    method: str = "kfra",
    dtype: torch.dtype | None = None,
    *,
    sharing: str | Mapping[str, str] = "expand",
    samples: int = 1,
    seed: int = 0,
    backend: str = "torch",
    memory_budget: int = 1 << 30,
) -> dict[str, KroneckerFactors]:
    """Kronecker factors ``Ḡ ⊗ Q`` of every trainable affine layer on the batch ``(x, y)``.

    ``method`` is one of ``"kfra"`` [BRB §3.3, here on any DAG], ``"kflr"`` [BRB §3.2, exact Ḡ],
    ``"kfac"`` and ``"kfac_rp"`` (``samples`` random vectors drawn with ``seed``: model-sampled targets, ±1
    projections), ``"empirical"`` (training gradients), and two oracles with ``[N, d, d]`` memory per layer:
    ``"ggn"`` (exact, any loss) and ``"hessian"`` (with second-derivative terms).

    ``sharing`` is how the places of a weight that is used at several make one pair of factors: ``"expand"``,
    ``"reduce"``, ``"nearest"`` (docs/mathematics.md#places-that-share-factors), or a mapping of patterns.

    ``x: [N, …]``, ``y`` as the loss takes it. ``dtype`` (float32 or float64) defaults to the parameters';
    with another one the model is copied. ``memory_budget`` bounds the bytes of KFLR's columns: they go
    through the network in chunks of columns and, below one column, of samples.

    Returns factors keyed by the layer's module path, averaged over the N samples. Raises
    :class:`~gncompile.errors.TraceError`, ``LossError``, ``BatchError`` or ``CompileError``. Cost: one
    gradient, plus per layer ``O(N d²)`` for Q and ``O(d³ + N d²)`` (KFRA) or K backward passes (KFLR).

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
    traced, declared, reader = understand(model, loss, x, dtype)
    traced = traced.with_graph(without_dropout(traced.graph))
    inputs, target = reader.pair(x, y)
    reader.require_finite(inputs, target)
    settings = Settings.from_options(sharing=sharing, samples=samples, memory_budget=memory_budget)
    program = factor_program(traced.graph, declared, method, settings)
    executable = Executable(
        program, traced, declared,
        backend=backend, dtype=reader.dtype, device=reader.device, seed=seed, memory_budget=memory_budget,
    )  # fmt: skip
    rows = _rows_within(
        memory_budget, column_bytes(program, 1, reader.dtype.itemsize), inputs[0].shape[0]
    )
    if rows < len(target) and "pair" in program.phases:  # whose result is no mean over samples
        raise CompileError(
            f"a column of {len(target)} samples does not fit into memory_budget, and Q and Ḡ of a layer "
            "depend on each other",
            instead='use a smaller batch, a greater memory_budget, or method="kfra"',
        )
    return _run(executable, traced.graph, inputs, target, rows)


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


def _rows_within(budget: int, bytes_per_row: int, batch: int) -> int:
    """Samples that may go through together when even one column of the batch exceeds the budget."""
    return max(1, min(batch, budget // bytes_per_row)) if bytes_per_row else batch


def _run(
    executable: Executable,
    graph: ModelGraph,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    rows: int,
) -> dict[str, KroneckerFactors]:
    batch, target = target.shape[0], as_parts(executable.loss, graph.output.size, target)
    sums: dict[str, Tensor] = {}
    for start in range(0, batch, rows):
        part = slice(start, start + rows)
        executable.load(tuple(x[part] for x in inputs), target[part], whole=batch)
        executable.run(*executable.program.phases)
        share = target[part].shape[0] / batch
        for role, name in executable.program.results.items():
            if role[:2] in ("Q.", "G."):
                value = _dense(executable, name) * share
                sums[role] = sums[role] + value if role in sums else value
    return {
        layer: KroneckerFactors(layer, sums[f"Q.{layer}"], sums[f"G.{layer}"])
        for layer in graph.layers
        if f"G.{layer}" in sums
    }


def _dense(executable: Executable, name: str) -> Tensor:
    """A factor in full, whatever its structure."""
    value = dense(executable.step.value(name), executable.program[name].spec)
    return value.clone(memory_format=torch.contiguous_format)
