"""A KFRA step as one would write it in plain torch: the yardstick for what compiling is worth.

For a chain of linear layers with tanh or nothing between them, and the mean squared error. It shares no code
with gncompile and takes the same step, as the benchmark checks before it times either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

SETTINGS = {
    "trace_correction": False,
    "average": 0.0,
    "whole_inputs": 0,
    "layer_steps": 0,
    "search_steps": 0,
    "factors_every": 1,
    "factor_damping_period": 10**9,
    "gather_noise": None,
}
"""gncompile's settings under which the two steps are the same."""


@dataclass
class HandwrittenKFRA:
    """Trains ``model`` in place; ``refresh_every`` as in gncompile, whose other defaults it has built in."""

    model: nn.Sequential
    refresh_every: int = 10
    damping: Tensor = field(init=False)
    length: Tensor = field(init=False)
    usual_length: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [m for m in self.model if isinstance(m, nn.Linear)]
        modules = [*self.model, nn.Identity()]
        self.has_tanh = [
            isinstance(after, nn.Tanh)
            for module, after in pairwise(modules)
            if isinstance(module, nn.Linear)
        ]
        like = self.layers[0].weight
        self.damping = like.new_tensor(0.1)
        self.usual_length = like.new_tensor(0.0)
        self.root_kappa = self.damping.sqrt() / 2
        self.steps = [torch.zeros_like(self.joined(layer)) for layer in self.layers]
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.inverses: list[tuple[Tensor, Tensor]] = []
        self.updates = self.since_refresh = 0

    @staticmethod
    def joined(layer: nn.Linear) -> Tensor:
        """``W̄ = [W, b]``."""
        return torch.cat([layer.weight, layer.bias[:, None]], dim=1)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One update on the batch; returns the loss before it, on the device."""
        activations = self.forward(x)
        loss = nn.functional.mse_loss(activations[-1], y)
        gradients = self.gradients(activations, y)
        rows = min(len(x), max(-(-len(x) // 4), 256))
        first, last = [a[:rows] for a in activations], [a[-rows:] for a in activations]
        self.average(*self.factors(last))
        if self.since_refresh + 1 >= min(self.refresh_every, 1 + self.updates // 5):
            self.inverses = [
                self.inverted(q, g) for q, g in zip(self.inputs, self.outputs, strict=True)
            ]
            self.since_refresh = 0
        else:
            self.since_refresh += 1
        directions = [
            -(g @ d @ q if g.dim() == 2 else g * (d @ q))
            for d, (q, g) in zip(gradients, self.inverses, strict=True)
        ]
        (size, momentum), predicted = self.sizes(first, directions, gradients)
        self.steps = [size * d + momentum * s for d, s in zip(directions, self.steps, strict=True)]
        for layer, step in zip(self.layers, self.steps, strict=True):
            layer.weight.add_(step[:, :-1])
            layer.bias.add_(step[:, -1])
        self.updates += 1
        if self.updates % 5 == 0:
            self.adapt((nn.functional.mse_loss(self.model(x), y) - loss) / predicted)
        return loss

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and every layer's activation."""
        activations = [x]
        for layer, tanh in zip(self.layers, self.has_tanh, strict=True):
            h = layer(activations[-1])
            activations.append(torch.tanh(h) if tanh else h)
        return activations

    def slope(self, number: int, activations: Sequence[Tensor]) -> Tensor | None:
        """f' of a layer by its activation; None where it is linear."""
        return 1 - activations[number + 1] ** 2 if self.has_tanh[number] else None

    def gradients(self, activations: list[Tensor], y: Tensor) -> list[Tensor]:
        """``∇W̄ = (1/N) Σ g āᵀ`` of every layer."""
        g = 2 * (activations[-1] - y) / y.shape[1]
        found = []
        for number in reversed(range(len(self.layers))):
            slope = self.slope(number, activations)
            g = g if slope is None else g * slope
            found.append(g.T @ with_one(activations[number]) / len(y))
            g = g @ self.layers[number].weight
        return found[::-1]

    def factors(self, activations: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """``Q = E[ā āᵀ]``, and ``Ḡ ← (Wᵀ Ḡ W) ⊙ E[b bᵀ]`` from the output's ``2/K`` back."""
        count = len(activations[0])
        inputs = [with_one(a).T @ with_one(a) / count for a in activations[:-1]]
        g = activations[0].new_full((), 2 / activations[-1].shape[1])
        outputs = [g]
        for number in reversed(range(1, len(self.layers))):
            w = self.layers[number].weight
            g = w.T @ (g @ w if g.dim() == 2 else g * w)
            slope = self.slope(number - 1, activations)
            g = g if slope is None else g * (slope.T @ slope / count)
            outputs.append(g)
        return inputs, outputs[::-1]

    def average(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Running averages with weight ``min(1 − 4/(k + 3), 0.95)`` on the past of the k-th batch."""
        if not self.updates:
            self.inputs, self.outputs = inputs, outputs
            return
        weight = 1 - min(1 - 4 / (self.updates + 4), 0.95)
        for old, new in zip([*self.inputs, *self.outputs], [*inputs, *outputs], strict=True):
            old.lerp_(new, weight)

    def inverted(self, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """``(Q + π√κ I)⁻¹`` and ``(Ḡ + √κ/π I)⁻¹``."""
        means = [(f.diagonal().mean() if f.dim() else f).clamp(min=1e-20) for f in (q, g)]
        pi = (means[0] / means[1]).sqrt()
        g_damping = self.root_kappa / pi
        return damped(q, pi * self.root_kappa), damped(g, g_damping) if g.dim() else 1 / (
            g + g_damping
        )

    def sizes(
        self, activations: list[Tensor], directions: list[Tensor], gradients: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Step size and momentum in [0, 1] that minimise ``bᵀc + ½ cᵀMc``, and that minimum; ``−bᵀc`` is at
        most twice its running mean."""
        both = [directions, self.steps]
        tangents = [self.tangent(activations, d) for d in both]
        scale = 2 / activations[-1].numel()
        entries = [
            scale * (tangents[i] * tangents[j]).sum() + self.damping * inner(both[i], both[j])
            for i, j in ((0, 0), (0, 1), (1, 1))
        ]
        m = torch.stack([entries[0], entries[1], entries[1], entries[2]]).view(2, 2).double()
        b = torch.stack([inner(d, gradients) for d in both]).double()
        diagonal = m.diagonal()
        unit = torch.where(diagonal > 0, diagonal.clamp(min=0).rsqrt(), 0.0)
        scaled = unit[:, None] * m * unit + 1e-13 * torch.eye(2, dtype=m.dtype, device=m.device)
        # Cramer's rule: a library's solver would wait for the device.
        r = unit * b
        determinant = scaled[0, 0] * scaled[1, 1] - scaled[0, 1] ** 2
        c = -unit * torch.stack(
            [r[0] * scaled[1, 1] - r[1] * scaled[0, 1], r[1] * scaled[0, 0] - r[0] * scaled[0, 1]]
        )
        momentum = (c[1] / determinant).clamp(0, 1)
        c = torch.stack([-(b[0] + m[0, 1] * momentum) / m[0, 0], momentum])
        length = torch.maximum(c @ m @ c, -(b @ c))
        longest = torch.where(self.usual_length > 0, 2 * self.usual_length, torch.inf)
        c = c * (longest / length).clamp(max=1)
        length = torch.minimum(length, longest)
        self.length = length.to(self.damping.dtype)
        mean = 0.9 * self.usual_length + 0.1 * length
        mean = torch.where(self.usual_length > 0, mean, length)
        self.usual_length = mean.to(self.damping.dtype)
        dtype = directions[0].dtype
        return c.to(dtype), (b @ c + c @ m @ c / 2).to(dtype)

    def tangent(self, activations: list[Tensor], direction: list[Tensor]) -> Tensor:
        """R-operator: the output's derivative along ``direction``."""
        r: Tensor | None = None
        for number, (layer, d) in enumerate(zip(self.layers, direction, strict=True)):
            h = activations[number] @ d[:, :-1].T + d[:, -1]
            h = h if r is None else h + r @ layer.weight.T
            slope = self.slope(number, activations)
            r = h if slope is None else h * slope
        assert r is not None
        return r

    def adapt(self, rho: Tensor) -> None:
        """Levenberg-Marquardt; the damping falls only while it is 1 % of the curvature along the step."""
        factor = 0.95**5
        is_felt = self.damping * inner(self.steps, self.steps) > 0.01 * self.length
        lower = torch.where((rho > 0.75) & is_felt, self.damping * factor, self.damping)
        changed = torch.where(rho > 0.25, lower, self.damping / factor)
        self.damping = changed.clamp(1e-30, 1e4)


def with_one(a: Tensor) -> Tensor:
    """``ā = [a, 1]``."""
    return torch.cat([a, a.new_ones(len(a), 1)], dim=1)


def inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """``Σ a·b`` over layers."""
    return torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()


def damped(m: Tensor, damping: Tensor) -> Tensor:
    """``(M + c I)⁻¹`` by Cholesky, without asking whether it succeeded."""
    shifted = m + damping * torch.eye(len(m), dtype=m.dtype, device=m.device)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted).L)
