"""KFAC by kfac-jax as a contestant: the network written as a JAX function, its weights kept in step.

The traced graph is evaluated node by node in JAX, each layer as ``x @ W + b``, the pattern by which kfac-jax
knows a dense layer, and the loss is registered with it. Learning rate, momentum and damping are chosen by
its adaptive rules, as in its own examples; the initial damping is searched on a grid.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from ...graph.layers import Affine
from ...graph.model_graph import ModelGraph
from ...graph.nodes import FixedLinear, Input, Output, Pointwise, Select
from ..api import understand
from .task import Pair, Task

BURN_IN = 5
"""Batches whose curvature is averaged before the first step."""
WARM_UP = 6
"""Steps after which all is compiled: every fifth, which adapts the damping, is a program of its own."""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

Array = Any
"""An array of JAX."""


class JaxKfacSteps:
    """Steps of ``kfac_jax.Optimizer`` on a copy of the weights, written back by :meth:`settle`."""

    def __init__(self, task: Task, model: nn.Module, seed: int, damping: float) -> None:
        if torch.get_num_threads() == 1:
            os.environ.setdefault("XLA_FLAGS", ONE_THREAD)  # read when JAX starts
        self.jax, kfac = import_module("jax"), import_module("kfac_jax")
        self.jax.config.update("jax_enable_x64", task.data.train_x.dtype == torch.float64)
        traced, loss, _ = understand(model, task.loss, task.data.train_x[:2])
        self.parameters = dict(model.named_parameters())
        constants = {name: _array(self.jax, value) for name, value in traced.constants.items()}
        network = jax_network(traced.graph, constants)
        losses = jax_loss(loss.name)

        def objective(weights: Mapping[str, Array], batch: tuple[Array, Array]) -> Array:
            x, y = batch
            value = losses(network(weights, x), y)
            for name, weight in weights.items():
                if eta := task.l2(name):
                    value = value + 0.5 * eta * (weight**2).sum()
            return value

        etas = {task.l2(name) for name in self.parameters}
        self.optimiser = kfac.Optimizer(
            value_and_grad_func=self.jax.value_and_grad(objective),
            l2_reg=etas.pop() if len(etas) == 1 else 0.0,
            use_adaptive_learning_rate=True,
            use_adaptive_momentum=True,
            use_adaptive_damping=True,
            initial_damping=damping,
            num_burnin_steps=BURN_IN,
            multi_device=False,
        )
        self.weights = {
            name: _array(self.jax, p.mT if p.ndim == 2 else p)
            for name, p in self.parameters.items()
        }
        self.key = self.jax.random.PRNGKey(seed)
        self.state: Any = None
        self.number = 0
        self._compile(task)

    def _compile(self, task: Task) -> None:
        """Compile before the first step; the steps made for that are forgotten."""
        weights, key = dict(self.weights), self.key
        self.weights = {name: weight.copy() for name, weight in weights.items()}
        rows = slice(None if task.full_batch else task.batch_size)
        x, y = task.data.train_x[rows], task.data.train_y[rows]
        self.stream: Iterator[Pair] = itertools.repeat((x, y))
        for _ in range(WARM_UP):
            self.step(x, y, 0.0)
        self.weights, self.key, self.state, self.number = weights, key, None, 0

    def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
        self.stream = itertools.chain.from_iterable(itertools.repeat(train))
        return self.stream

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        batch = self._pair((x, y))
        self.key, first, second = self.jax.random.split(self.key, 3)
        if self.state is None:
            self.state = self.optimiser.init(self.weights, first, batch)
        # The first step takes the batches of the burn-in from the same stream.
        data = itertools.chain([batch], map(self._pair, self.stream))
        self.weights, self.state, stats = self.optimiser.step(
            self.weights, self.state, second, data_iterator=data, global_step_int=self.number
        )
        float(stats["loss"])  # waits for the step, so that its time is its own
        self.number += 1
        return 1

    def _pair(self, pair: Pair) -> tuple[Array, Array]:
        return _array(self.jax, pair[0]), _array(self.jax, pair[1])

    @torch.no_grad()
    def settle(self, x: Tensor, y: Tensor) -> None:
        """Write the weights back into the torch module."""
        for name, parameter in self.parameters.items():
            value = from_dlpack(self.weights[name])
            parameter.copy_(value.mT if parameter.ndim == 2 else value)


def jax_network(
    graph: ModelGraph, constants: Mapping[str, Array]
) -> Callable[[Mapping[str, Array], Array], Array]:
    """The network as a function of weights ``[in, out]`` and an input ``[N, size]``."""
    jnp = import_module("jax.numpy")
    functions = {
        node.name: sympy.lambdify(
            [*node.op.arguments, *(symbol for symbol, _ in node.op.constants)],
            node.op.expression,
            modules=[_functions(), "jax"],
        )
        for node in graph
        if isinstance(node.op, Pointwise)
    }

    def apply(weights: Mapping[str, Array], x: Array) -> Array:
        values: dict[str, Array] = {}
        for node in graph:
            inputs = [values[name] for name in node.inputs]
            match node.op:
                case Input():
                    result = x
                case Affine(weight=weight, bias=bias):
                    result = inputs[0] @ weights[weight]
                    result = result if bias is None else result + weights[bias]
                case Pointwise(constants=named):
                    result = functions[node.name](*inputs, *(constants[name] for _, name in named))
                case Select(index=index, fill=fill):
                    joined = jnp.concatenate(inputs, axis=-1)
                    taken = joined[..., jnp.maximum(jnp.array(index), 0)]
                    result = jnp.where(jnp.array(index) < 0, fill, taken)
                case FixedLinear(matrix=matrix, before=before, after=after):
                    along = inputs[0].reshape(*inputs[0].shape[:-1], before, -1, after)
                    result = constants[matrix] @ along
                    result = result.reshape(*result.shape[:-3], -1)
                case Output():
                    result = inputs[0]
            values[node.name] = result
        return values[graph.output.name]

    return apply


def _functions() -> dict[str, Callable[..., Array]]:
    """Our primitives of :mod:`gncompile.functions` in JAX."""
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    return {
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
        "log1p": jnp.log1p,
        "expm1": jnp.expm1,
        "erfc": jax.scipy.special.erfc,
        "select": lambda where, yes, no: jnp.where(where > 0, yes, no),
    }


def jax_loss(name: str) -> Callable[[Array, Array], Array]:
    """A loss ``(z, y)``, mean over samples and sum over outputs, registered with kfac-jax."""
    jax, jnp, kfac = (import_module(each) for each in ("jax", "jax.numpy", "kfac_jax"))

    def mse(z: Array, y: Array) -> Array:
        kfac.register_squared_error_loss(z, y, weight=0.5)
        return 0.5 * ((z - y) ** 2).sum(-1).mean()

    def bce_with_logits(z: Array, y: Array) -> Array:
        kfac.register_sigmoid_cross_entropy_loss(z, y)
        return (jax.nn.softplus(z) - y * z).sum(-1).mean()

    def cross_entropy(z: Array, y: Array) -> Array:
        kfac.register_softmax_cross_entropy_loss(z, y)
        picked = jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]
        return (jax.nn.logsumexp(z, axis=-1) - picked).mean()

    return {"mse": mse, "bce_with_logits": bce_with_logits, "cross_entropy": cross_entropy}[name]


def _array(jax: Any, value: Tensor) -> Array:
    return jax.numpy.array(value.detach().numpy())
