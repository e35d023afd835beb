"""Who trains on several processes: ours, DistributedDataParallel with Adam, and ASDL's K-FAC and Shampoo.

All get the model and the joined batch, and are data parallel: of the batch a process reads its part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import gncompile
from gncompile.program.timetable import cycle, settled

from .problems import summed_bce

PLAIN, FACTORS, INVERSES = "plain", "factors", "inverses"
"""The kinds of steps: nothing new but the gradient, new factors, and new inverses (roots) too."""
SELDOM = 10
"""Steps between inverses, of ours by default, and of the peers that are not to make them in every step."""
RATE, DAMPING, AVERAGE = 1e-4, 0.1, 0.05
"""Of ASDL: small steps that keep the loss finite; neither bytes nor times depend on them."""


@dataclass(frozen=True)
class Running:
    """A contestant at work: ``step`` takes one on a joined batch and tells its kind.

    After ``warm_up`` steps the same kinds come again every ``cycle`` steps.
    """

    step: Callable[[Tensor], str]
    warm_up: int
    cycle: int


Start = Callable[[nn.Sequential, Tensor], Running]
"""Sets a contestant to work on a model, given a joined batch of inputs, which are the targets too."""

ADAM = "Adam, DistributedDataParallel"


def contestants() -> dict[str, Start]:
    """Those that this environment can run, by name."""
    # Without a choice of γ, which the peers do not make either.
    every = {
        "factor_share": 1.0, "factors_every": 1, "refresh_every": 1, "factor_damping_period": 1000,
    }  # fmt: skip
    found = {
        ADAM: adam,
        "KFRA, defaults": ours("kfra"),
        "KFAC, defaults": ours("kfac"),
        "KFRA, all in every step": ours("kfra", **every),
        "KFAC, all in every step": ours("kfac", **every),
    }
    if find_spec("asdl"):
        found["ASDL K-FAC, all in every step"] = asdl_kfac(1)
        found[f"ASDL K-FAC, in every {SELDOM}th"] = asdl_kfac(SELDOM)
        found[f"ASDL Shampoo, roots in every {SELDOM}th"] = asdl_shampoo(SELDOM)
    return found


def ours(method: str, **options: Any) -> Start:
    """``Trainer.step``, with the defaults but for these options."""

    def start(model: nn.Sequential, x: Tensor) -> Running:
        trainer = gncompile.compile(
            model, "bce_with_logits", x, method=method, tune="off", gather_noise=None, **options
        )
        trainer.joining.deals = dist.is_initialized()
        executable, ran = trainer.compiled.executable, set[str]()
        run = executable.run

        def noted(*phases: str) -> None:
            ran.update(phases)
            run(*phases)

        executable.run = noted  # type: ignore[method-assign]

        def step(x: Tensor) -> str:
            ran.clear()
            trainer.step(x, x)
            return INVERSES if "invert" in ran else FACTORS if "curvature" in ran else PLAIN

        settings = trainer.settings
        return Running(step, settled(settings), SELDOM if options else cycle(settings))

    return start


def adam(model: nn.Sequential, x: Tensor) -> Running:
    """Torch's data parallelism; the hook is what its reducer does without one, but can be counted."""
    called = DistributedDataParallel(model) if dist.is_initialized() else model
    if isinstance(called, DistributedDataParallel):
        called.register_comm_hook(None, allreduce_hook)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(x: Tensor) -> str:
        optimiser.zero_grad()
        own = _own(x)
        summed_bce(called(own), own).backward()
        optimiser.step()
        return PLAIN

    return Running(step, warm_up=3, cycle=SELDOM)


# --- ASDL -----------------------------------------------------------------------------------------------


def asdl_kfac(every: int) -> Start:
    """``asdl.KfacGradientMaker``: factors and gradients to a layer's owner, what it made of them to all.

    Its factors are those of the empirical Fisher matrix, the only one it has for this loss: products of the
    gradients of single samples. A step without new factors takes the gradient of each owner's own samples;
    here it is joined before.
    """

    def start(model: nn.Sequential, x: Tensor) -> Running:
        module = _asdl("natural_gradient")

        class Joined(module.KfacGradientMaker):  # type: ignore[name-defined]
            def backward(self) -> None:
                super().backward()
                _average([p.grad for p in self.model.parameters()])

        config = module.PreconditioningConfig(
            damping=DAMPING, ema_decay=AVERAGE, preconditioner_upd_interval=every
        )
        return _asdl_steps(Joined(model, config, fisher_type="fisher_emp"), model, every)

    return start


def asdl_shampoo(every: int) -> Start:
    """``asdl.ShampooGradientMaker``: gradients to a layer's owner, what it made of them to all.

    Statistics are updated in every step. It leaves gradients of biases to each process; here they are joined.
    """

    def start(model: nn.Sequential, x: Tensor) -> Running:
        module = _asdl("shampoo")

        class Joined(module.ShampooGradientMaker):  # type: ignore[name-defined]
            def reduce_scatter_grads(self) -> None:
                super().reduce_scatter_grads()
                _average([p.grad for p in self.model.parameters() if p.ndim == 1])

        config = module.PreconditioningConfig(
            damping=1e-3, preconditioner_upd_interval=every, curvature_upd_interval=1
        )
        return _asdl_steps(Joined(model, config), model, every)

    return start


class _Bce(nn.Module):
    """BCE of logits summed over outputs; ASDL asks for its mean over samples, or its sum over them."""

    reduction = "mean"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        mean = summed_bce(z, y)
        return mean if self.reduction == "mean" else mean * len(z)


def _asdl_steps(maker: Any, model: nn.Sequential, every: int) -> Running:
    optimiser, loss, steps = torch.optim.SGD(model.parameters(), lr=RATE), _Bce(), 0

    def step(x: Tensor) -> str:
        nonlocal steps
        own = _own(x)
        maker.config.data_size = len(own)
        optimiser.zero_grad()
        maker.setup_loss_call(loss, maker.setup_model_call(model, own), own)
        maker.forward_and_backward()
        optimiser.step()
        steps += 1
        return INVERSES if (steps - 1) % every == 0 else PLAIN

    return Running(step, warm_up=every, cycle=SELDOM)


def _asdl(name: str) -> ModuleType:
    """A module of ``asdl.precondition``, made to run without a GPU.

    It asserts that factors lie on one, asks for the collective mean, which gloo does not have, and marks
    ranges for NVIDIA's profiler. Nothing of this is mathematics.
    """
    warnings.filterwarnings("ignore", "Using a non-full backward hook")
    module = import_module(f"asdl.precondition.{name}")
    source = Path(str(module.__file__))
    exec(compile(source.read_text(), source, "exec", optimize=1), vars(module))  # no assertions
    if not torch.cuda.is_available():
        silent = SimpleNamespace(rangePushA=lambda text: 0, rangePop=lambda: 0)
        vars(torch.cuda.nvtx)["_nvtx"] = silent

    vars(module)["dist"] = _WithMeans()
    return module


class _WithMeans:
    """``torch.distributed``, where a reduction to a mean is a sum of parts."""

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def reduce(self, tensor: Tensor, to: int, op: Any, **options: Any) -> Any:
        assert op == dist.ReduceOp.AVG
        tensor.div_(dist.get_world_size(options["group"]))
        return dist.reduce(tensor, to, **options)


def _average(gradients: list[Tensor]) -> None:
    """The mean over the processes, in one message."""
    if dist.is_initialized():
        bucket = parameters_to_vector(gradients)
        dist.all_reduce(bucket)
        vector_to_parameters(bucket / dist.get_world_size(), gradients)


def _own(x: Tensor) -> Tensor:
    """This process's part of the batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else x
