"""Networks whose weights act at many places: two convolutional ones, and a transformer that reads rows.

Convolutions are cuDNN's in torch's rows, and in ours by default; *implicit* are those of our own kernels,
with default settings, which a tuned step takes where they win.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import gncompile
from gncompile.emit.torch_operations import Options
from gncompile.program.schedule import Kind
from gncompile.program.specs import SAMPLES
from gncompile.runtime.memory import dense
from gncompile.training.trainer import Trainer

from ..compare import Check, largest, relative_error
from ..compiled import Compiled
from ..conv_step import CLASSES, FACTORS, NETWORKS, Network, adam, autograd
from ..convergence.networks import RowTransformer
from .checks import ALLOWED, AMPLIFIED, STEPS
from .clock import Call, Clock
from .ours import Engine, phases, step
from .rates import tf32
from .rows import Entry, Left, Prepared

AUTOGRAD = "gradient, torch eager"
CAPTURED = "gradient, torch eager, captured"
OUR_GRADIENT = "gradient, ours"
IMPLICIT_GRADIENT = "gradient, ours, implicit convolutions"
OUR_FACTORS = "KFAC factors + gradient, ours"
IMPLICIT_FACTORS = "KFAC factors + gradient, ours, implicit convolutions"
TORCH_ADAM = "Adam step, torch eager, captured"
OUR_STEP = "default step, ours"

BASELINES = {"/eager": AUTOGRAD, "/captured": CAPTURED, "/Adam": TORCH_ADAM}
"""Rows that the others are divided by, under these heads."""


def transformer() -> Network:
    """One block of width 64 on 256 images of 28 rows."""
    model = RowTransformer(28, 64, heads=4, blocks=1, outputs=CLASSES)
    return model, torch.rand(256, 28 * 28), torch.randint(CLASSES, (256,))


EVERY: dict[str, Callable[[], Network]] = {
    **NETWORKS,
    "transformer": transformer,
}


@dataclass(frozen=True)
class Places:
    """One network with its batch on one device."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    engine: Engine
    clock: Clock

    @classmethod
    def make(cls, name: str, engine: Engine, clock: Clock, batch: int | None = None) -> Places:
        """The network of this name, on its whole batch or the first of it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x, y = EVERY[name]()
        x, y = x[:batch].to(clock.device), y[:batch].to(clock.device)
        return cls(name, model.to(clock.device), x, y, engine, clock)

    # --- ours -----------------------------------------------------------------------------------------

    def compiled(
        self,
        backend: str,
        dtype: torch.dtype = torch.float32,
        variants: Mapping[str, Options] | None = None,
    ) -> Compiled:
        """The step under KFAC, on a copy of the model."""
        model, x = copy.deepcopy(self.model).to(dtype), self.x.to(dtype)
        precision = self.engine.precision
        return Compiled(model, "cross_entropy", x, self.y, "kfac", backend, precision, variants)

    @cached_property
    def ours(self) -> Compiled:
        """By default settings."""
        return self.compiled(self.engine.backend)

    @cached_property
    def implicit(self) -> Compiled:
        """With every convolution an implicit product."""
        if self.engine.backend != "triton":
            raise Left("implicit products are Triton's; without a GPU set TRITON_INTERPRET=1")
        from gncompile.tuning.gpu import GpuBench

        dims = dict.fromkeys(SAMPLES, len(self.x)) | {"S": 1}
        precision, device = self.engine.precision, self.clock.device
        bench = GpuBench(self.ours.program, dims, torch.float32, precision, device)
        kinds = Kind.CONVOLUTION, Kind.CONVOLUTION_GRADIENT
        chosen = {
            name: asdict(subject.work.space()[0])
            for name, subject in bench.subjects.items()
            if subject.kind in kinds
        }
        if not chosen:
            raise Left("there are no convolutions")
        return self.compiled("triton", variants=chosen)

    def trainer(self, backend: str, dtype: torch.dtype = torch.float32) -> Trainer:
        """A trainer on a copy of the model, by default but for noise, whose draws no two backends share."""
        model, x = copy.deepcopy(self.model).to(dtype), self.x.to(dtype)
        options: dict[str, Any] = (
            {"precision": self.engine.precision} if backend == "triton" else {}
        )
        return gncompile.compile(model, "cross_entropy", x, backend=backend, tune="off", **options)

    # --- checks ---------------------------------------------------------------------------------------

    def checks(self) -> Iterator[Check]:
        """Gradient, factors and steps at the size that is timed, against float64."""
        allowed = ALLOWED[self.engine.precision]
        with tf32(False):
            exact = self.compiled("reference", torch.float64)
            run(exact)
            expected = self._autograd(exact)
            for words, of in (("", lambda: self.ours), (", implicit", lambda: self.implicit)):
                try:
                    found = of()
                except Left:
                    continue
                run(found)
                name = f"{self.name}{words}"
                error = largest(found.gradients(), expected)
                yield Check(f"{name}: gradient, against autograd", error, allowed)
                error = largest(inputs_of(found), inputs_of(exact))
                yield Check(f"{name}: KFAC's input factors, against the reference", error, allowed)
            error = self._steps_apart()
            name = f"{self.name}: {STEPS} steps, against the torch backend in float64"
            yield Check(name, error, AMPLIFIED[self.engine.precision])

    def _autograd(self, of: Compiled) -> dict[str, Tensor]:
        """``∇W̄`` by layer, in float64."""
        model = copy.deepcopy(self.model).double()
        nn.functional.cross_entropy(model(self.x.double()), self.y).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name: layer.joined(gradients) for name, layer in of.traced.graph.layers.items()}

    def _steps_apart(self) -> float:
        """How far ours is from float64 after a few steps, relative to the way gone."""
        start = torch.cat([p.detach().double().flatten() for p in self.model.parameters()])
        ways = []
        for backend, dtype in ((self.engine.backend, torch.float32), ("torch", torch.float64)):
            one = self.trainer(backend, dtype)
            for _ in range(STEPS):
                one.step(self.x.to(dtype), self.y)
            ended = [p.detach().double().flatten() for p in one.model.parameters()]
            ways.append(torch.cat(ended) - start)
        return relative_error(*ways)

    # --- rows -----------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Gradient, factors and steps, of torch and of ours."""
        clock = self.clock
        yield Entry(AUTOGRAD, lambda: Prepared(self._backward()))
        yield Entry(CAPTURED, lambda: Prepared(clock.captured(self._backward(), warm_up=5)))
        yield Entry(OUR_GRADIENT, lambda: self._phases(self.ours, "gradient"))
        yield Entry(IMPLICIT_GRADIENT, lambda: self._phases(self.implicit, "gradient"))
        yield Entry(OUR_FACTORS, lambda: self._phases(self.ours, *FACTORS))
        yield Entry(IMPLICIT_FACTORS, lambda: self._phases(self.implicit, *FACTORS))
        yield Entry(TORCH_ADAM, lambda: Prepared(clock.captured(self._adam(), warm_up=5)))
        yield Entry(OUR_STEP, self._step)

    def _backward(self) -> Call:
        return autograd((self.model, self.x, self.y))

    def _adam(self) -> Call:
        return adam((self.model, self.x, self.y), capturable=self.clock.is_cuda)

    def _phases(self, of: Compiled, *names: str) -> Prepared:
        """Those of the phases that a program has."""
        return phases(of, len(self.x), *present(of, names))

    def _step(self) -> Prepared:
        ours = self.trainer(self.engine.backend)
        return step(ours, lambda: ours.step(self.x, self.y), len(self.x), self.clock)


def present(of: Compiled, names: Sequence[str]) -> tuple[str, ...]:
    """The names that are phases of a program."""
    return tuple(name for name in names if name in of.program.phases)


def run(of: Compiled) -> None:
    """The phases up to the factors."""
    of.run(*present(of, FACTORS))


def inputs_of(of: Compiled) -> dict[str, Tensor]:
    """Q of every layer that has one."""
    names = {key: name for key, name in of.program.results.items() if key.startswith("Q.")}
    step = of.executable.step
    return {key: dense(step.value(name), of.program[name].spec) for key, name in names.items()}
