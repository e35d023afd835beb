"""Trainings that many processes and one are to do alike: networks of every kind, losses, methods, solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from training import Residual

import gncompile
from gncompile.losses import weighted
from gncompile.program.costs import CostModel
from gncompile.program.phases import Repeat
from gncompile.training.trainer import Trainer

SAMPLES = 53
STEPS = 4

Data = tuple[Any, Any]


@dataclass(frozen=True)
class Training:
    """A network, a loss, and samples of both, from a seed."""

    network: Callable[[], nn.Module]
    loss: Any = "mse"
    data: Callable[[], Data] = field(default=lambda: reals())
    options: dict[str, Any] = field(default_factory=dict)

    def trainer(self, **options: Any) -> tuple[Trainer, Data]:
        """A trainer, the same wherever it is made, and its samples."""
        torch.manual_seed(0)
        model = self.network().double()
        x, y = self.data()
        loss = self.loss() if callable(self.loss) else self.loss
        own: dict[str, Any] = {"gather_samples": 1, "gather_noise": None, "tune": "off"}
        if self.options.get("solver", "kronecker") == "kronecker":
            own["factor_samples"] = 8
        given = {**own, **self.options, **options}
        return gncompile.compile(model, loss, x, **given), (x, y)


class Equation(Training):
    """Poisson's equation and its boundary values, for the derivatives of a network."""

    def trainer(self, **options: Any) -> tuple[Trainer, Data]:
        torch.manual_seed(0)
        square = gncompile.Box({"x": (0, 1), "y": (0, 1)})
        inside = "u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)"
        terms = {
            "interior": gncompile.Term(inside, square.interior(37)),
            "boundary": gncompile.Term("u", square.faces(16), weight=3),
        }
        net = self.network().double()
        problem = gncompile.residuals(net, "x y", "u", terms, box=square)
        trainer = problem.compile(**{"tune": "off", **self.options, **options})
        return trainer, problem.batch().pair(problem.equations)


class Normed(nn.Module):
    """Blocks with a normalisation, whose average reads KFRA's blocks and the samples together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 5), nn.LayerNorm(5)
        self.inner, self.root = nn.Linear(5, 5), nn.RMSNorm(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.first(x)))
        return self.last(self.root(h + torch.tanh(self.inner(h))))


class Tied(nn.Module):
    """One weight used twice, another also transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.inner = nn.Linear(6, 4), nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.code(x))
        h = torch.tanh(self.inner(torch.tanh(self.inner(h))))
        return h @ self.code.weight + self.bias


class Words(nn.Module):
    """A table that is looked up at several places."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(x)).flatten(1))


class Reading(nn.Module):
    """An image that is read between its points, where a layer says."""

    image: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("image", torch.randn(2, 5, 4))
        self.at, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.tanh(self.at(x)).unflatten(1, (2, 2))
        return self.last(gncompile.interpolate(self.image, at, box=[(-1.0, 1.0)] * 2).flatten(1))


class TwoOutputs(nn.Module):
    """A dict of outputs, each with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(x))
        return {"a": self.a(h), "b": self.b(h)}


def chain(*widths: int) -> Callable[[], nn.Module]:
    """Layers of these widths with tanh in between."""

    def make() -> nn.Module:
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    return make


def images() -> nn.Module:
    """Convolutions with groups and a stride, pooling, and a layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def dropping() -> nn.Module:
    """Dropout between layers."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def computed() -> nn.Module:
    """A weight that is computed of parameters, which a first-order rule trains."""
    return nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def reals(width: int = 6, outputs: int = 3) -> Data:
    """Inputs, and targets that depend on them."""
    generator = _generator()
    x = torch.randn(SAMPLES, width, generator=generator, dtype=torch.float64)
    w = torch.randn(width, outputs, generator=generator, dtype=torch.float64)
    return x, torch.sin(x @ w)


def classes() -> Data:
    """Targets that are one of three classes."""
    x, y = reals()
    return x, y.argmax(dim=1)


def fractions() -> Data:
    """An autoencoder's targets in (0, 1)."""
    x, _ = reals()
    return x, torch.sigmoid(x)


def grids() -> Data:
    """Images of two channels."""
    x = torch.randn(SAMPLES, 2, 8, 8, generator=_generator(), dtype=torch.float64)
    return x, x.mean(dim=(2, 3)).repeat(1, 2)[:, :3]


def words() -> Data:
    """Four words a sample."""
    x = torch.randint(7, (SAMPLES, 4), generator=_generator())
    return x, reals()[1]


def masked() -> Data:
    """Weights of samples, some of them 0."""
    x, y = reals()
    weights = torch.rand(SAMPLES, generator=_generator(), dtype=torch.float64)
    return x, (y, weights * (weights > 0.3))


def two() -> Data:
    """Targets by the names of two outputs."""
    x, y = reals()
    return x, {"a": y[:, :2], "b": y.argmax(dim=1)}


def weighted_classes() -> nn.Module:
    """Classes of unlike weight, whose mean is over the weights that a batch holds."""
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]).double())


SMALL = chain(6, 5, 4, 3)
WIDE = chain(6, 224, 225, 224, 3)
"""So wide that processes share inversions, directions and KFRA's recursion (``program/ownership.py``)."""
KFLR = {"method": "kflr", "memory_budget": 4000}
"""With columns in several chunks."""

TRAININGS: dict[str, Training] = {
    "kfra": Training(SMALL),
    "kfra of a residual net": Training(Residual, options={"whole_inputs": 0}),
    "kfra through norms": Training(Normed),
    "kfra of shared weights": Training(Tied, "bce_with_logits", fractions),
    "kfra, nearest": Training(Tied, "bce_with_logits", fractions, {"sharing": "nearest"}),
    "kfra, eigen and l2": Training(SMALL, options={"inverse": "eigen", "l2": 1e-3}),
    "kfra, guarded": Training(SMALL, options={"guarded": True, "gather_noise": 0.4}),
    "kfra of wide layers": Training(WIDE),
    "kfra of wide layers, eigen": Training(WIDE, options={"inverse": "eigen"}),
    "kfra, noise": Training(SMALL, options={"gather_noise": 0.4}),
    "kflr": Training(SMALL, "cross_entropy", classes, KFLR),
    "kflr of images": Training(images, data=grids, options=KFLR),
    "kfac": Training(SMALL, "cross_entropy", classes, {"method": "kfac", "samples": 3}),
    "kfac_rp of a table": Training(Words, data=words, options={"method": "kfac_rp"}),
    "empirical, reduce": Training(
        images, data=grids, options={"method": "empirical", "sharing": "reduce"}
    ),
    "exact": Training(SMALL, options={"solver": "exact", "exact_form": "primal"}),
    "exact of shared weights": Training(
        Tied, "bce_with_logits", fractions, {"solver": "exact", "exact_form": "primal"}
    ),
    "exact, dampings tried": Training(
        SMALL,
        options={"solver": "exact", "exact_form": "primal", "damping_tries": 4, "damping": 1e-9},
    ),
    "exact, diagonal": Training(
        SMALL, options={"solver": "exact", "exact_form": "primal", "damping_scale": "diagonal"}
    ),
    "solver auto": Training(SMALL, options={"solver": "auto"}),
    "newton_cg": Training(SMALL, options={"solver": "newton_cg", "cg_iterations": 8}),
    "newton_cg, preconditioned": Training(
        Residual, options={"solver": "newton_cg", "cg_iterations": 5, "preconditioner": "kronecker"}
    ),
    "block_hessian_free": Training(
        images, data=grids, options={"solver": "block_hessian_free", "cg_iterations": 4}
    ),
    "an image read between its points": Training(Reading),
    "an equation, exact": Equation(chain(2, 6, 1)),
    "an equation, factors": Equation(chain(2, 6, 1), options={"method": "kflr"}),
    "adam": Training(SMALL, options={"method": "adam", "learning_rate": 1e-2}),
    "sgd": Training(SMALL, options={"method": "sgd", "learning_rate": 1e-2}),
    "dropout": Training(dropping),
    "computed weights": Training(computed),
    "a sum over samples": Training(SMALL, lambda: nn.MSELoss(reduction="sum")),
    "weights of classes": Training(SMALL, weighted_classes, classes),
    "a weighted mean": Training(
        SMALL, lambda: weighted("mse", normalize=True), masked, {"method": "kflr"}
    ),
    "two outputs": Training(TwoOutputs, lambda: {"a": "mse", "b": "cross_entropy"}, two),
}


@dataclass(frozen=True)
class Joint:
    """A training whose batches come in parts: so many samples for each process, or rows dealt to all."""

    training: str
    splits: tuple[tuple[int, ...], ...] = ()
    """The counts of every step; none where all processes are given the whole batch."""
    backend: str = "torch"


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    losses: tuple[float, ...]
    dampings: tuple[float, ...]
    parameters: dict[str, Tensor]
    stated: tuple[int, int] = (0, 0)
    """Bytes and messages that the cost model states for the phases that were run."""
    sent: tuple[int, int] = (0, 0)


def alone(training: str, steps: int = STEPS) -> Outcome:
    """The training on one process."""
    trainer, (x, y) = TRAININGS[training].trainer(process_group=False)
    return _outcome(trainer, [(x, y)] * steps)


def fixed(training: str, samples: int | None = None, **options: Any) -> Outcome:
    """A deterministic training, by default, on batches that all processes have."""
    trainer, (x, y) = TRAININGS[training].trainer(**{"deterministic": True, **options})
    return _outcome(trainer, [(x[:samples], y[:samples])] * STEPS)


def together(joint: Joint, **options: Any) -> Outcome:
    """The training on the processes of this group."""
    trainer, (x, y) = TRAININGS[joint.training].trainer(backend=joint.backend, **options)
    if not joint.splits:
        trainer.joining.deals = True
        return _outcome(trainer, [(x, y)] * STEPS)
    return _outcome(trainer, [_rows(x, y, counts) for counts in joint.splits])


def _rows(x: Any, y: Any, counts: Sequence[int]) -> Data:
    rank = dist.get_rank()
    first = sum(counts[:rank])
    rows = slice(first, first + counts[rank])

    def part(of: Any) -> Any:
        if isinstance(of, dict):
            return {key: each[rows] for key, each in of.items()}
        return tuple(each[rows] for each in of) if isinstance(of, tuple) else of[rows]

    return part(x), part(y)


def _outcome(trainer: Trainer, batches: Sequence[Data]) -> Outcome:
    executable = trainer.compiled.executable
    stated, run = [0, 0], executable.run

    def counted(*phases: str) -> None:
        costs = CostModel(executable.program, 1, itemsize=8)
        for phase in phases:
            run(phase)
            products = executable.program.record(phase).repeat is Repeat.PRODUCTS
            times = int(executable.memory.states["products"]) if products else 1
            for k, number in enumerate(costs.sent(phase)):
                stated[k] += number * times

    executable.run = counted  # type: ignore[method-assign]
    stats = [trainer.step(x, y).resolved() for x, y in batches]
    processes = executable.processes
    return Outcome(
        tuple(s.loss for s in stats),
        tuple(s.damping or 0.0 for s in stats),
        {name: p.detach().clone() for name, p in trainer.trained().items()},
        stated=(stated[0], stated[1]),
        sent=(processes.sent_bytes, processes.messages) if processes else (0, 0),
    )
