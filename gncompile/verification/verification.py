"""Check the rules derived for one model against ``torch.func``, on a shrunken copy, in float64.

The full network is compared with the module itself: its outputs, and the gradient of the loss that the
compiled program computes, in float64 and in float32, with that of autograd. Then every width of the graph is
shrunk to a few features (:func:`shrink`), parameters are drawn anew, and loss, gradients, curvature factors
and the R-operator of the compiled programs are compared, layer by layer, with brute force: the graph as a
plain torch function (:mod:`gncompile.graph.torch_network`), differentiated by ``torch.func``, which shares
neither a derivative nor a way to evaluate expressions with us.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp

from ..base.settings import Settings
from ..frontends.dropout import WithoutDropout
from ..frontends.example_inputs import checked_examples
from ..frontends.torch_export import trace
from ..graph.dropout import without_dropout
from ..graph.embedding import classes_of, is_whole
from ..graph.layers import Layer
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import Node, Output
from ..graph.torch_network import Network, flat_output, objective
from ..losses.examples import example_target
from ..losses.targets import mapped
from ..losses.vocabulary import CoupledLoss, Loss, LossSpec, resolve_loss
from ..losses.weighting import bind_loss, needs_all_outputs, output_shape
from ..pipeline import (
    factor_program,
    prepare,
    quadratic_program,
    step_program,
    tangent_program,
)
from ..program.step_program import StepProgram
from ..runtime.executable import Executable
from .checks import Check, VerifyReport
from .exact_factors import block_at_places, factor_pair, input_moment
from .shrinking import normal, shrink

FLOAT32_TOLERANCE, FLOAT32_FACTOR = 1e-4, 10
"""Rounding in float32: 1e-4, or ten times the error of torch's own gradient where the network amplifies."""
SAMPLES = 5
FULL_SAMPLES = 8


def verify(
    model: nn.Module,
    loss: LossSpec,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    seed: int = 0,
) -> VerifyReport:
    """Compare what is compiled for ``model`` and ``loss`` with brute force; takes seconds, changes nothing.

    For the network as it is: its output, and its gradient per layer, with the module's under autograd. Per
    layer of a small copy: the gradient, Q, Ḡ of KFRA and KFLR at N = 1 and of KFLR at N = 5 (the exact
    Gauss-Newton block of the pre-activation), and the R-operator (``jvp``). ``seed`` draws parameters,
    inputs and targets. Raises what :func:`gncompile.compile` would for a model that cannot be compiled.
    """
    generator = torch.Generator().manual_seed(seed)
    full = copy.deepcopy(model).to(device="cpu", dtype=torch.float64)
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    examples = checked_examples(model, examples, next(model.parameters()).dtype)
    inputs = tuple(
        normal(generator, FULL_SAMPLES, *x.shape[1:])
        if x.is_floating_point()
        else x[:1].expand(FULL_SAMPLES, *x.shape[1:])  # numbers that the tables have
        for x in examples
    )
    traced = trace(full, inputs, name=type(model).__name__)
    traced = traced.with_graph(without_dropout(traced.graph))
    output = traced.graph.output
    assert isinstance(output.op, Output)
    declared = bind_loss(resolve_loss(loss), output.shape, output.op.outputs)
    checks = [_forward_check(full, traced, inputs)]
    traced = traced.with_graph(prepare(traced.graph))
    checks.append(_forward_check(full, traced, inputs, "after the passes"))
    loss_module = loss if isinstance(loss, nn.Module) else None
    if all(check.ok for check in checks):  # else the gradients are those of another network
        checks += Problem(traced, declared, loss_module, generator).against_module(full, inputs)
    small = shrink(traced, generator, whole_output=needs_all_outputs(declared))
    problem = Problem(small, declared, loss_module, generator)
    checks += [
        *problem.first_order(),
        *problem.curvature(),
        *problem.tangents(),
        *problem.quadratic(),
    ]
    places = {layer: place for place, layer in enumerate(["", *traced.graph.trained])}
    checks.sort(key=lambda check: places[check.layer])
    return VerifyReport(traced.name, seed, _sizes(traced.graph, small.graph), tuple(checks))


def _sizes(full: ModelGraph, small: ModelGraph) -> tuple[tuple[str, int, int], ...]:
    uses = [layer.node for layer in full.layers.values()]
    shown = [*full.inputs, *uses, full.output]
    return tuple((node.name, node.size, small[node.name].size) for node in shown)


def _forward_check(
    module: nn.Module, traced: TracedModel, inputs: tuple[Tensor, ...], stage: str = "as traced"
) -> Check:
    with torch.no_grad(), WithoutDropout():
        expected = flat_output(module(*inputs))
        flat = tuple(x.reshape(len(x), -1).double() for x in inputs)
        found = Network(traced)({}, flat)
    return Check("", f"graph's output, {stage}", "the module, full size", _error(found, expected))


@dataclass
class Problem:
    """A small network with a loss, and the comparisons made on random batches of it."""

    traced: TracedModel
    loss: Loss
    loss_module: nn.Module | None
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.network = Network(self.traced)
        self.graph = self.traced.graph
        self.objective = objective(self.loss, self.loss_module)

    def batch(self, samples: int) -> tuple[tuple[Tensor, ...], Any]:
        """Normal inputs and targets that the loss accepts."""
        return tuple(self._input(node, samples) for node in self.graph.inputs), self.targets(
            samples
        )

    def _input(self, node: Node, samples: int) -> Tensor:
        """Normal numbers, or whole ones that the network's tables have."""
        if not is_whole(node.op):
            return normal(self.generator, samples, node.size)
        columns = [
            torch.randint(classes or 2, (samples,), generator=self.generator)
            for classes in classes_of(self.graph, node.name)
        ]
        return torch.stack(columns, dim=1).double()

    def targets(self, samples: int) -> Any:
        """Random targets that the loss accepts."""
        shape = output_shape(self.loss, self.graph.output.size)
        return example_target(self.loss, samples, shape, self.generator, torch.float64)

    def against_module(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Check]:
        """The compiled gradient in float64 and float32, against autograd through the user's module.

        Its parameters, which the traced model shares, are drawn anew, as those of the small copy are.
        """
        y = self.targets(len(inputs[0]))
        with torch.no_grad():
            for parameter in self._trained().values():
                scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5
                parameter.copy_(normal(self.generator, *parameter.shape) * scale)
        flat = tuple(x.reshape(len(x), -1).double() for x in inputs)
        trained = self._trained()
        with WithoutDropout():
            value = self.objective(flat_output(module(*inputs)), y)
        names = list(trained)
        wanted = dict(
            zip(names, torch.autograd.grad(value, [trained[n] for n in names]), strict=True)
        )
        program = step_program(self.graph, self.loss, Settings(method="sgd"))
        executable = self._run(program, flat, y, "gradient")
        single = self._in_float32()
        small = single._run(program, tuple(x.float() for x in flat), _float32(y), "gradient")
        plain = grad(lambda p: single._value(p, tuple(x.float() for x in flat), _float32(y)))
        by_torch = plain(single._trained())
        checks = []
        for layer, record in self.graph.trained.items():
            expected = record.joined(wanted)
            found = _error(executable.result(f"grad.{layer}"), expected)
            checks.append(Check(layer, "gradient, full size", "the module under autograd", found))
            reached = _error(record.joined(by_torch).double(), expected)
            rounding = max(FLOAT32_TOLERANCE, FLOAT32_FACTOR * reached)
            found = _error(small.result(f"grad.{layer}").double(), expected)
            beyond = 0.0 if found <= rounding else found
            what = "gradient, full size, float32 beyond rounding"
            checks.append(Check(layer, what, "the module under autograd", beyond))
        return checks

    def _in_float32(self) -> Problem:
        """The same problem with float32 copies of parameters and constants."""
        tensors = [
            {name: t.detach().float() if t.is_floating_point() else t for name, t in group.items()}
            for group in (self.traced.parameters, self.traced.constants)
        ]
        traced = dataclasses.replace(self.traced, parameters=tensors[0], constants=tensors[1])
        return Problem(traced, self.loss, self.loss_module, self.generator)

    def first_order(self) -> list[Check]:
        """Loss and gradients against ``torch.func.grad``."""
        inputs, y = self.batch(SAMPLES)
        program = step_program(self.graph, self.loss, Settings(method="sgd"))
        executable = self._run(program, inputs, y, "gradient")
        trained = self._trained()
        expected = self._value(trained, inputs, y)
        slopes = grad(lambda parameters: self._value(parameters, inputs, y))(trained)
        reference = "its torch module" if self.loss_module else "its formula in torch"
        checks = [Check("", "loss", reference, _error(executable.result("loss"), expected))]
        for layer, record in self.graph.trained.items():
            found, wanted = executable.result(f"grad.{layer}"), record.joined(slopes)
            checks.append(Check(layer, "gradient", "torch.func.grad", _error(found, wanted)))
        return checks

    def curvature(self) -> list[Check]:
        """Q, and Ḡ of KFRA and KFLR, against exact Gauss-Newton blocks."""
        single, several = self.batch(1), self.batch(SAMPLES)
        cases = [("kflr", several), ("kflr", single), ("kfra", single)]
        checks = []
        for method, (inputs, y) in cases:
            program = factor_program(self.graph, self.loss, method, partly=True)
            executable = self._run(program, inputs, y, *program.phases)
            for layer, (moment, block) in self._factors(inputs, y).items():
                if f"G.{layer}" not in program.results:
                    continue
                if method == "kflr" and len(inputs[0]) > 1:
                    q = _dense(executable, f"Q.{layer}")
                    checks.append(Check(layer, "Q", "E[ā āᵀ]", _error(q, moment)))
                g = _dense(executable, f"G.{layer}")
                what = f"Ḡ of {method.upper()}, N = {len(inputs[0])}"
                checks.append(Check(layer, what, "exact GGN by jacrev", _error(g, block)))
        return checks

    def tangents(self) -> list[Check]:
        """The R-operator along each layer's parameters, against ``torch.func.jvp``."""
        inputs, y = self.batch(SAMPLES)
        executable = self._executable(tangent_program(self.graph))
        checks = []
        for layer, record in self.graph.trained.items():
            direction = self._direction(record)
            self._set_direction(executable, direction)
            self._load(executable, inputs, y, "gradient", "quadratic")
            found = executable.result("tangent")
            error = _error(found, self._tangent(inputs, direction))
            checks.append(Check(layer, "R-operator", "torch.func.jvp", error))
        return checks

    def quadratic(self) -> list[Check]:
        """``dᵀ(G + λI)d`` and ``dᵀ∇`` of the step-size rule for a random d, ``G`` by torch.func."""
        inputs, y = self.batch(SAMPLES)
        settings = Settings()
        executable = self._executable(quadratic_program(self.graph, self.loss, settings, 1))
        direction = self._direction(*self.graph.trained.values())
        self._set_direction(executable, direction)
        self._load(executable, inputs, y, "gradient", "quadratic")
        r, curvature = self._tangent(inputs, direction), self._output_hessians(inputs, y)
        norm = sum(float(d.square().sum()) for d in direction.values())
        m = torch.einsum("nk,nkl,nl->", r, curvature, r) / len(inputs[0]) + settings.damping * norm
        slope = jvp(lambda p: self._value(p, inputs, y), (self._trained(),), (direction,))[1]
        return [
            Check(
                "",
                "quadratic model, dᵀ(G + λI)d",
                "jvp and hessian",
                _error(executable.result("M.0.0"), m),
            ),
            Check(
                "",
                "quadratic model, dᵀ∇",
                "torch.func.jvp",
                _error(executable.result("b.0"), slope),
            ),
        ]

    def _tangent(self, inputs: tuple[Tensor, ...], direction: Mapping[str, Tensor]) -> Tensor:
        return jvp(lambda p: self.network(p, inputs), (self._trained(),), (dict(direction),))[1]

    def _value(
        self, parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...], y: Any
    ) -> Tensor:
        return self.objective(self.network(parameters, inputs), y)

    def _output_hessians(self, inputs: tuple[Tensor, ...], y: Any) -> Tensor:
        """``𝓗_n``, without negative eigenvalues where the loss says so: ``[N, K, K]``."""
        z = self.network({}, inputs)
        whole = hessian(lambda u: self.objective(u, y))(z) * len(z)
        exact = torch.stack([whole[n, :, n] for n in range(len(z))])
        if not (isinstance(self.loss, CoupledLoss) and self.loss.negative_curvature == "clip"):
            return exact
        values, vectors = torch.linalg.eigh(exact)
        return (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT

    def _factors(self, inputs: tuple[Tensor, ...], y: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Q and Ḡ of every layer, exact, and of tied weights the marginals of both sides."""
        values, blocks = self.network.values({}, inputs, {}), self.gauss_newton(inputs, y)
        moments = {side.name: input_moment(side, values, len(inputs[0])) for side in self._sides()}
        return {
            name: factor_pair(layer, moments, blocks) for name, layer in self.graph.layers.items()
        }

    def gauss_newton(self, inputs: tuple[Tensor, ...], y: Any) -> dict[str, Tensor]:
        """``(1/(N S)) Σ_n Σ_s J_nsᵀ 𝓗_n J_ns`` at the S places of every side of a layer, by torch.func."""
        curvature = self._output_hessians(inputs, y)
        blocks = {}
        for side in self._sides():
            uses = [
                block_at_places(self.network, node, inputs, curvature) for node in side.straight
            ]
            blocks[side.name] = torch.stack(uses).sum(dim=0) / side.places
        return blocks

    def _sides(self) -> list[Layer]:
        return [side for layer in self.graph.layers.values() for side in layer.sides]

    # --- parameters by name and by layer --------------------------------------------------------------

    def _trained(self) -> dict[str, Tensor]:
        names = [name for layer in self.graph.trained.values() for name in layer.parameters]
        return {name: self.traced.parameters[name] for name in names}

    def _direction(self, *layers: Layer) -> dict[str, Tensor]:
        """Random changes of these layers' parameters, zero for all others."""
        direction = {name: torch.zeros_like(p) for name, p in self._trained().items()}
        for name in [name for layer in layers for name in layer.parameters]:
            direction[name] = normal(self.generator, *direction[name].shape)
        return direction

    def _set_direction(self, executable: Executable, direction: Mapping[str, Tensor]) -> None:
        for name, layer in self.graph.trained.items():
            executable.memory.states[f"direction0.{name}"].copy_(layer.joined(direction))

    # --- compiled programs ----------------------------------------------------------------------------

    def _executable(self, program: StepProgram) -> Executable:
        dtype = next(iter(self.traced.parameters.values())).dtype
        return Executable(program, self.traced, self.loss, dtype=dtype, device=torch.device("cpu"))

    def _run(
        self, program: StepProgram, inputs: tuple[Tensor, ...], y: Any, *phases: str
    ) -> Executable:
        executable = self._executable(program)
        self._load(executable, inputs, y, *phases)
        return executable

    def _load(
        self, executable: Executable, inputs: tuple[Tensor, ...], y: Any, *phases: str
    ) -> None:
        shape = output_shape(self.loss, self.graph.output.size)
        executable.load(inputs, self.loss.rows(y, shape, executable.memory.dtype))
        executable.run(*phases)


def _dense(executable: Executable, role: str) -> Tensor:
    from ..runtime.memory import dense

    name = executable.program.results[role]
    return dense(executable.step.value(name), executable.program[name].spec)


def _float32(y: Any) -> Any:
    return mapped(lambda each: each.float() if each.is_floating_point() else each, y)


def _error(found: Tensor, expected: Tensor) -> float:
    """``‖found − expected‖ / ‖expected‖``; 0 where both vanish, NaN where either is not finite."""
    if found.shape != expected.shape:
        return float("nan")
    difference, norm = float((found - expected).norm()), float(expected.norm())
    return difference / norm if norm > 0 else difference
