"""``gncompile.compile``: from a module and a loss to a trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base.collector import collector_paused
from ..errors import CompileError, MethodWarning, expected_got, warn
from ..frontends.agreement import agrees
from ..graph.model_graph import ModelGraph
from ..losses.vocabulary import LossSpec
from ..pipeline import step_program
from ..program.ownership import own_work
from ..program.reductions import for_processes
from ..runtime.executable import Executable
from ..runtime.processes import current
from ..runtime.shards import shards_here
from ..solvers.solver import Solver
from ..training.arguments import check_arguments, checked_seed
from ..training.batches import input_tensors
from ..training.compiled import Compiled
from ..training.model_identity import ModelIdentity
from ..training.trainer import Trainer
from ..training.unison import require_same_program
from ..tuning.problem import Variants
from ..tuning.tuner import Tune, tunable, variants_for
from .api import loss_of, understand
from .solver_choice import Case, chosen_settings
from .standardise import Standardise, standardised_model


def compile(
    model: nn.Module,
    loss: LossSpec,
    example_inputs: Tensor | tuple[Tensor, ...],
    method: str | Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
    precision: str = "highest",
    tune: Tune = "cached",
    standardise: Standardise = False,
    solver: str = "kronecker",
    process_group: object = None,
    **options: object,
) -> Trainer:
    """Compile a feedforward module and a loss into a :class:`Trainer`.

    ``loss`` is a name (``"mse"``, ``"bce_with_logits"``, ``"cross_entropy"``, …: summed over outputs,
    averaged over samples), an expression in ``z`` and ``y``, a ``torch.nn`` loss (exactly what torch
    computes), a function of tensors ``(z, y)``, one of these :func:`~gncompile.losses.weighted`, or a dict or
    list of them for a model that returns several outputs (:func:`~gncompile.losses.resolve_loss`).
    ``example_inputs`` ``[N, …]`` give shapes only; N is the batch size that ``tune`` looks at.
    ``method`` is ``"kfra"``, the default, ``"kflr"``, ``"kfac"``, ``"kfac_rp"``, ``"empirical"``, or a
    baseline, ``"adam"`` or ``"sgd"``; ``"auto"`` chooses for every layer by cost
    (:mod:`gncompile.derivation.method_choice`), and a mapping of layer patterns chooses by name, ``{"*":
    "kfra", "decoder.*": "kfac"}``. ``options`` are the fields of
    :class:`~gncompile.base.settings.Settings`. ``solver`` is ``"kronecker"``, factors of each layer by
    ``method``, ``"exact"``, the whole Gauss-Newton matrix instead, for small networks or batches
    (:mod:`gncompile.solvers.exact`), ``"block_hessian_free"`` or ``"newton_cg"``, conjugate gradients
    (:mod:`gncompile.solvers.conjugate_gradients`), or ``"auto"``, ``exact`` where it costs little more than
    factors. ``seed`` starts the sampling of KFAC, and the orders that steps read their rows in. ``backend``
    is ``"torch"``, ``"triton"`` (CUDA) or ``"reference"``;
    ``precision`` is that of the Triton backend's float32 products, in the words of
    ``torch.set_float32_matmul_precision``: ``"highest"``, ``"high"`` or ``"medium"``. ``tune`` chooses
    variants of the torch backend's operations on a CPU and settings of the Triton backend's launches
    (:mod:`gncompile.tuning`): ``"cached"`` takes what was measured before on this machine and measures
    nothing, ``"quick"`` and ``"full"`` measure what is not yet known, ``"off"`` takes the defaults, and a
    path of a ``.json`` file those that it pins. Of several processes all take what the first has or finds.

    ``standardise`` is for data of any units: with True the columns of ``example_inputs``, which are then
    training samples, tell the inputs' means and scales, with a pair ``(x, y)`` of training data also those
    of targets, for losses of the difference ``z - y``. ``trainer.model`` is then a
    :class:`~gncompile.frontends.standardised.Standardised` around ``model``: raw units in and out; losses
    are those of standardised targets.

    In an initialised ``torch.distributed`` all processes of ``process_group``, None for the default one,
    train one model together, on the samples that each gives (docs/many_processes.md); compiling is a
    collective call then. With False this process is alone.

    Raises a :class:`~gncompile.errors.GncompileError` that names the place in the model for whatever cannot
    be compiled. Compiling costs about a second; memory is a few copies of the batch's activations, of the
    parameters (eight, with those that undo a step broken off), and eight ``d × d`` matrices a layer.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> trainer = compile(model, "mse", torch.zeros(16, 4))
    >>> stats = trainer.step(torch.ones(16, 4), torch.ones(16, 1))
    """
    if standardise is not False:
        model, loss = standardised_model(model, loss, example_inputs, standardise)
    return compile_into(
        Trainer.__new__(Trainer), model, loss, example_inputs, method, seed=seed, dtype=dtype,
        backend=backend, precision=precision, tune=tune, solver=solver, process_group=process_group,
        **options,
    )  # fmt: skip


def compile_into(
    trainer: Trainer,
    model: nn.Module,
    loss: LossSpec,
    example_inputs: Tensor | tuple[Tensor, ...],
    method: str | Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    backend: str,
    precision: str,
    tune: Tune,
    solver: str | type[Solver] = "kronecker",
    process_group: object = None,
    **options: object,
) -> Trainer:
    """:func:`compile` for a trainer that is not initialised yet, and may be referred to already.

    ``solver`` is a name, or a class that turns gradients into directions (:mod:`gncompile.solvers.solver`).
    """
    with collector_paused():
        traced, declared, reader = understand(model, loss, example_inputs)
        own = None if isinstance(solver, str) else solver
        if own is not None and not (isinstance(own, type) and issubclass(own, Solver)):
            raise CompileError(
                f"the solver is of type {type(own).__name__}",
                instead="give a name, 'kronecker' or 'exact' say, or a subclass of Solver",
            )
        named = "kronecker" if own else solver
        given = {**({} if method is None else {"method": method}), "solver": named, **options}
        samples = reader.inputs(example_inputs)[0].shape[0]
        itemsize, processes = reader.dtype.itemsize, current(process_group)
        case = Case(
            traced.graph, declared, samples, itemsize,
            apart=processes is not None or bool(options.get("deterministic")),
        )  # fmt: skip
        settings, stated = chosen_settings(given, case)
        check_arguments(dtype=dtype, backend=backend, precision=precision, tune=tune)
        settings.check_parameters(list(traced.parameters))
        if settings.strict:
            _require_cover(traced.graph)
        seed = checked_seed(seed)
        if reader.device.type == "cuda" and settings.second_order:
            settings = replace(settings, guarded=True)
        if dtype is not None and dtype != reader.dtype:
            raise CompileError(
                f"the model's parameters have another dtype\n{expected_got(dtype, reader.dtype)}",
                instead=f"convert the model first: model.to({dtype})",
            )
        if settings.inverse == "newton_schulz" and backend != "triton":
            raise CompileError(
                f"inverse='newton_schulz' with the backend {backend!r}",
                instead="use backend='triton', or inverse='cholesky'",
            )
        program = step_program(traced.graph, declared, settings, own)
        if isinstance(settings.method, Mapping) and program.reasons:
            warn(
                MethodWarning,
                "\n".join(program.reasons),
                instead="method='auto' chooses so silently, and a mapping of layers to methods by name",
            )

        def again(variants: Variants) -> Trainer:
            return compile(
                copy.deepcopy(model), loss, example_inputs, method, seed=seed, dtype=dtype,
                backend=backend, precision=precision, tune=variants, standardise=False,
                solver=settings.solver, process_group=False, **options,
            )  # fmt: skip

        if stated:
            program = replace(program, reasons=(*program.reasons, stated))
        place: dict[str, Any] = {
            "backend": backend,
            "device": reader.device,
            "precision": precision,
        }
        bench = tunable(program, settings, samples, reader.dtype, **place)
        shards = shards_here(processes, backend, reader.device) if settings.deterministic else 0
        joint = for_processes(program) if processes is not None or shards else program
        if processes is not None:
            require_same_program(processes, f"{settings}\n{joint.to_text()}")
        variants = variants_for(tune, bench, again, samples, processes)
        if processes is not None or shards:
            place_of = (processes.rank, processes.size) if processes else (0, 1)
            program = own_work(joint, *place_of, by_rows=not shards)
        executable = Executable(
            program,
            traced,
            declared,
            dtype=reader.dtype,
            **place,
            seed=seed,
            rows=settings.rows,
            memory_budget=settings.memory_budget,
            variants=variants,
            processes=processes,
            shards=shards,
        )
        examples = tuple(
            each[:1].detach().to(reader.device, copy=True) for each in input_tensors(example_inputs)
        )
        identity = ModelIdentity(
            model,
            loss,
            traced,
            again=lambda: understand(model, loss, examples)[0],
            agrees=lambda traced: agrees(model, traced, examples),
            same_loss=lambda: loss_of(loss, traced).describe() == declared.describe(),
        )
        compiled = Compiled(model, traced, declared, reader, settings, executable, identity)
        trainer.__init__(compiled)  # type: ignore[misc]
        return trainer


def _require_cover(graph: ModelGraph) -> None:
    """Every trained parameter has a curvature rule."""
    if graph.first_order:
        found = {name: layer.node.origin for name, layer in graph.first_order.items()}
        raise CompileError(
            f"strict=True, and no curvature rule covers the parameters {', '.join(found)}: a weight is "
            "computed of them",
            where="\n              ".join(dict.fromkeys(map(str, found.values()))),
            instead="train the weight itself, freeze them with requires_grad_(False), or leave strict out: a "
            "first-order rule trains them beside the layers",
        )
