"""The last check of a trace: the graph against the module itself, value and gradient, on random numbers.

Dropout is left out of both. The check sees what no rule about operators can: random numbers or counters of
Python's in ``forward``, a hook or an
``autograd.Function`` whose gradient is not the derivative of what was computed, another path for a batch of
one, and our own mistakes. Parameters are moved off their values, for zeros tell little and sit on kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InternalError, TraceError
from ..graph.dropout import without_dropout
from ..graph.model_graph import TracedModel
from ..graph.torch_network import Network, flat_output
from .dropout import WithoutDropout
from .own_gradients import HOOKS, Observer, own_functions, places_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative, of rounding in a few layers; torch's softplus drops 2e-9. A wrong rule is off by percents."""

COTANGENTS = (1.0, 1e4, 1e-4)
"""A hook or backward that clips or thresholds is not linear in the gradient that comes from above."""

SCALES = (0.3, 3.0, 30.0)
"""Of inputs and biases where gradients are the user's own: they may be the derivative in places only."""

_SENSITIVITY = 100.0
_LARGE = 2**17
"""So many parameters are not all moved, and their gradient is compared only where there is a reason to."""


@dataclass
class Agreement:
    """A module, its graph, and the batches they are compared on."""

    module: nn.Module
    traced: TracedModel
    examples: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        self.network = Network(self.traced.with_graph(without_dropout(self.traced.graph)))
        self.generator = torch.Generator().manual_seed(0)
        self.name = type(self.module).__name__
        self.dtype = computed_in(self.module, self.examples)
        self.trained = {n: p for n, p in self.traced.parameters.items() if p.requires_grad}
        self.large = sum(p.numel() for p in self.trained.values()) > _LARGE

    def check(self) -> None:
        """Raise unless graph and module agree; where the module is not finite nothing is compared."""
        for positive in (False, True):  # a logarithm of the inputs needs them positive
            sample = self.draw(3, 1.0, positive)
            with Observer(HOOKS) as observer:
                z = self.module_at(sample)
            found = self.graph_at(sample)
            self.compare_values(sample, found, z)
            if bool(z.isfinite().all()):
                break
        self.compare_alone(sample, z)
        own = bool(observer.seen or own_functions(z))
        if self.trained and (own or not self.large):
            self.compare_gradients(sample, found, z, COTANGENTS if own else COTANGENTS[:1])
        for scale in SCALES if own and self.trained else ():
            for positive in (False, True):
                sample = self.draw(16, scale, positive)
                found, z = self.graph_at(sample), self.module_at(sample)
                self.compare_gradients(sample, found, z, COTANGENTS)

    def draw(self, samples: int, scale: float, positive: bool) -> Sample:
        """Normal inputs, and parameters moved by a tenth of their size; their absolute values if need be."""

        def normal(like: Tensor, *shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=self.generator)
            return (drawn.abs() + 0.1 if positive else drawn).to(like)

        def whole(like: Tensor) -> Tensor:
            rows = torch.randint(len(like), (samples, *like.shape[1:]), generator=self.generator)
            return like.cpu().gather(0, rows).to(like)  # numbers that the example has there

        inputs = tuple(
            scale * normal(x, samples, *x.shape[1:]) if x.is_floating_point() else whole(x)
            for x in self.examples
        )
        parameters = {}
        for name, p in self.trained.items():
            p = p.detach()
            if not self.large or p.ndim < 2 or not bool(p.flatten()[:1000].any()):
                size = max(float(p.square().mean().sqrt()), 0.1) if p.numel() else 0.0
                p = p + 0.1 * size * (scale if p.ndim < 2 else 1.0) * normal(p, *p.shape)
            parameters[name] = p.detach().requires_grad_()
        return Sample(inputs, parameters)

    def module_at(self, sample: Sample) -> Tensor:
        """The module's output as rows; inputs are copies, for ``forward`` may write into them."""
        inputs = tuple(x.clone() for x in sample.inputs)
        try:
            with WithoutDropout():
                values = _once(self.module, sample.parameters)
                z = functional_call(self.module, values, inputs, tie_weights=False)
        except Exception as error:
            raise TraceError(
                f"{self.name} fails on a random batch of {inputs[0].shape[0]} samples, where it could be "
                f"traced: {type(error).__name__}: {error}",
                instead="let forward take any batch [N, ...] of finite numbers",
            ) from error
        return flat_output(z)

    def graph_at(self, sample: Sample) -> Tensor:
        """The graph's output as rows."""
        flat = tuple(x.reshape(len(x), -1).to(self.dtype) for x in sample.inputs)
        return self.network(sample.copies, flat)

    # comparisons

    def compare_values(self, sample: Sample, found: Tensor, expected: Tensor) -> None:
        """``found`` by the graph against ``expected`` by the module."""
        if not difference([found], [expected]):
            return
        self.require_same(sample, expected)
        if not difference([found], [expected], lambda: [self.module_at(sample.nudged())]):
            return
        raise InternalError(
            f"the traced graph and {self.name} compute different outputs",
            where=f"forward of {self.name}",
            instead="if forward depends on its inputs and parameters alone, this is a fault of "
            "gncompile: please report the module",
        )

    def require_same(self, sample: Sample, before: Tensor) -> None:
        """The module gives ``before`` again."""
        if difference([self.module_at(sample)], [before]):
            raise TraceError(
                f"{self.name} computes something else at every call on the same inputs",
                where=f"forward of {self.name}",
                instead="take random numbers, counters and other state out of forward",
            )

    def compare_alone(self, sample: Sample, expected: Tensor) -> None:
        """A sample in a batch of its own against its row in a larger one."""
        alone = Sample(tuple(x[:1] for x in sample.inputs), sample.parameters)
        try:
            z = self.module_at(alone)
        except TraceError:
            return  # it says so itself, to whoever tries
        row = expected[:1]
        alike = z.shape == row.shape and torch.equal(z.isfinite(), row.isfinite())
        if alike and not difference([row], [z]):
            return
        self.require_same(alone, z)
        if not alike or difference([row], [z], lambda: [self.module_at(alone.nudged())]):
            raise TraceError(
                f"{self.name} computes something else for a sample alone than for it in a batch",
                where=f"forward of {self.name}",
                instead="let no branch depend on the number of samples; squeeze(dim), not squeeze()",
            )

    def compare_gradients(
        self, sample: Sample, found: Tensor, z: Tensor, cotangents: Sequence[float]
    ) -> None:
        """Autograd's gradient of the module against the derivative of the graph."""
        drawn = torch.randn(*z.shape, generator=self.generator).to(z)
        cotangent = torch.where(z.isfinite(), drawn, 0.0)
        derivative = _gradient(found, sample.copies, cotangent)

        def at(scale: float, z: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
            return [g / scale for g in _gradient(z, parameters, scale * cotangent)]

        def nudged(scale: float) -> list[Tensor]:
            moved = sample.nudged()
            return at(scale, self.module_at(moved), moved.parameters)

        for scale in cotangents:
            expected = at(scale, z, sample.parameters)
            error = difference(derivative, expected)
            if error and not difference(at(scale, z, sample.parameters), expected):
                # the same at every call, so it may be a matter of rounding
                error = difference(derivative, expected, partial(nudged, scale))
            if error:
                places = places_of(self.module, lambda: self.module_at(sample))
                raise TraceError(
                    f"autograd's gradient of {self.name} is not the derivative of what {self.name} "
                    f"computes, by {100 * error:.3g} %; the compiled gradient would be the derivative",
                    where="; ".join(places) or f"forward of {self.name}",
                    instead="remove what changes the gradient: hooks on tensors, and each "
                    "torch.autograd.Function whose backward is not the derivative of its forward",
                )


def _once(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of ``parameters``, one for each place where a module holds one of them.

    torch's own ``tie_weights`` names a place twice where a module stands in two, and then leaves the module
    with the values that it was called with.
    """
    named = module.named_parameters(remove_duplicate=False)
    values = {p: parameters[name] for name, p in named if name in parameters}
    return {
        name: values[p]
        for prefix, owner in module.named_modules()
        for name, p in owner.named_parameters(prefix, recurse=False, remove_duplicate=False)
        if p in values
    }


def _gradient(z: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor) -> list[Tensor]:
    """``∂⟨z, cotangent⟩/∂p`` for each parameter."""
    wanted = list(parameters.values())
    if not z.requires_grad:
        return [torch.zeros_like(p) for p in wanted]
    found = torch.autograd.grad(z, wanted, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


@dataclass
class Sample:
    """One random batch, and the parameters it is looked at with."""

    inputs: tuple[Tensor, ...]
    parameters: dict[str, Tensor]

    def __post_init__(self) -> None:
        # for the graph: forward may put hooks on the parameters that it gets
        self.copies = {n: p.detach().requires_grad_() for n, p in self.parameters.items()}

    def nudged(self) -> Sample:
        """The same up to rounding, to see how well the network is conditioned there."""
        moved = tuple(
            x * (1 + 4 * torch.finfo(x.dtype).eps) if x.is_floating_point() else x
            for x in self.inputs
        )
        return Sample(moved, {n: p.detach().requires_grad_() for n, p in self.parameters.items()})


def computed_in(module: nn.Module, examples: Sequence[Tensor]) -> torch.dtype:
    """The floating-point dtype of the inputs, or of the parameters where all inputs are whole numbers."""
    real = [t.dtype for t in (*examples, *module.parameters()) if t.is_floating_point()]
    return real[0] if real else torch.get_default_dtype()


def check_agreement(module: nn.Module, traced: TracedModel, examples: tuple[Tensor, ...]) -> None:
    """Raise :class:`~gncompile.errors.TraceError` or ``InternalError`` unless graph and module agree."""
    if computed_in(module, examples) not in TOLERANCE or any(
        t.is_meta for t in module.parameters()
    ):
        return
    with torch.enable_grad():
        Agreement(module, traced, examples).check()


def agrees(module: nn.Module, traced: TracedModel, examples: tuple[Tensor, ...]) -> bool:
    """Whether graph and module give the same values on a random batch: a quick look, without gradients."""
    looked = Agreement(module, traced, examples)
    try:
        with torch.no_grad():
            for positive in (False, True):
                sample = looked.draw(3, 1.0, positive)
                z = looked.module_at(sample)
                if bool(z.isfinite().all()):
                    break
            found = looked.graph_at(sample)
            return not difference([found], [z], lambda: [looked.module_at(sample.nudged())])
    except TraceError:
        return False


def difference(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    nudged: Callable[[], Sequence[Tensor]] | None = None,
) -> float:
    """The largest relative error; 0.0 within rounding, which ``nudged``, nearly ``expected``, may enlarge."""
    errors = [_distance(f, e) for f, e in zip(found, expected, strict=True)]
    sizes = [_norm(e) for e in expected]
    sizes = [size + 1e-3 * math.hypot(*sizes) for size in sizes]
    allowed = [TOLERANCE[e.dtype] * size for e, size in zip(expected, sizes, strict=True)]
    if _within(errors, allowed):
        return 0.0
    if nudged is not None:
        moved = [_distance(f, e) for f, e in zip(nudged(), expected, strict=True)]
        allowed = [a + _SENSITIVITY * m for a, m in zip(allowed, moved, strict=True)]
        if _within(errors, allowed):
            return 0.0
    return max(error / (size or 1.0) for error, size in zip(errors, sizes, strict=True))


def _within(errors: Sequence[float], allowed: Sequence[float]) -> bool:
    return all(error <= most for error, most in zip(errors, allowed, strict=True))


def _distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference where both are finite."""
    apart = a.detach() - b.detach()
    return _norm(apart)


def _norm(a: Tensor) -> float:
    """The norm of what is finite; in float64, for a square may overflow float32."""
    a = a.detach()
    whole = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    return whole if math.isfinite(whole) else float(a.double().nan_to_num(0.0, 0.0, 0.0).norm())
