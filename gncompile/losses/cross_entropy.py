"""Softmax cross-entropy: of one distribution a sample, or of one at every place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import LossError
from ..functions.convexity import Convexity
from .loss_scale import PER_SAMPLE, Scale
from .per_output import PerOutput
from .targets import (
    check_class_target,
    class_rows,
    element_weights,
    of_mass,
    rows_of,
    taken_apart,
)

if TYPE_CHECKING:
    import torch

UNMARKED = -100
"""torch's ``ignore_index`` where the user has said nothing."""


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """``E_n = -c Σ_k ŷ_k log p_k`` with ``p = softmax(z)`` and ``ŷ = ω ((1-ε) y + ε/K)``.

    ``y`` is a class index (its one-hot row) or a row of soft targets. As in torch such a row need
    not sum to one: with the mass ``m = Σ_k ŷ_k``, which is 1 for indices and for probabilities,

        g = m p - ŷ,   𝓗 = m (diag p - p pᵀ),   C = √m (diag √p - p √pᵀ),   C Cᵀ = 𝓗,
        g̃ = √m (p - onehot(ỹ)),  ỹ ~ Categorical(p),   E[g̃ g̃ᵀ] = 𝓗

    multiplied by ``c`` (``g``, ``𝓗``) or ``√c`` (``C``, ``g̃``). ``ε`` is ``label_smoothing``, ω are the
    ``class_weights``, 1 without.

    Of an output ``[N, K, *places]``, classes first as in torch, ``E_n`` is the sum over places, and 𝓗 is
    block-diagonal; targets are indices ``[N, *places]``, or soft ones like the output. A target of
    ``ignore_index`` counts as of the weight 0, and with ``weighted`` so many weights come with each batch,
    ``(y, w)``. An ``ignore_index`` says that the loss is torch's (:attr:`as_torch`), which means over places,
    and of which ``-100`` is the default: of one distribution a sample, which can be left out of a batch as
    well, that is refused as an index.
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    scale: Scale = PER_SAMPLE
    class_weights: PerOutput | None = None
    ignore_index: int | None = None
    weighted: bool = False
    classes: int = 0
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise LossError(f"label_smoothing must lie between 0 and 1, got {self.label_smoothing}")
        if self.scale.over == "outputs":
            raise LossError(
                "a softmax cross-entropy cannot be averaged over its classes",
                instead='use Scale(over="samples") or Scale(over="sum")',
            )

    @property
    def sampler(self) -> str:
        """The model that targets are sampled from."""
        return "categorical"

    @property
    def targets(self) -> tuple[float, float]:
        """What a soft target may be: anything whose row has a mass that is not negative."""
        return (-math.inf, math.inf)

    @property
    def convexity(self) -> Convexity:
        """Convex: a log-sum-exp less a linear function."""
        return Convexity("convex", "𝓗 = m (diag p - p pᵀ) is a covariance")

    @property
    def structured(self) -> bool:
        """Whether a batch's target is a tuple, ``(y, w)``."""
        return self.weighted

    @property
    def as_torch(self) -> bool:
        """Whether this is torch's module, not the name's convention."""
        return self.ignore_index is not None

    @property
    def masked(self) -> bool:
        """Whether every place has a weight of its own, if only 0 or 1."""
        return self.weighted or self._ignored is not None

    @property
    def _ignored(self) -> int | None:
        """The index of targets that do not count, if there may be any."""
        unmarked = self.ignore_index == UNMARKED and not self.places
        return None if unmarked else self.ignore_index

    @property
    def count(self) -> int:
        """The number of places."""
        return math.prod(self.places)

    @property
    def constants(self) -> Mapping[str, PerOutput]:
        """The class weights, if any."""
        return {"class_weight": self.class_weights} if self.class_weights else {}

    def target_mass(self, total: torch.Tensor) -> torch.Tensor:
        """``m = (1-ε) Σ_k y_k + ε`` from the row sums ``total`` of soft targets, without class weights."""
        return (1 - self.label_smoothing) * total + self.label_smoothing

    def bound(self, shape: tuple[int, ...]) -> SoftmaxCrossEntropy:
        """The loss of outputs ``[K, *places]`` a sample; torch's mean is then one over targets."""
        self.check_output(shape)
        weights = self.class_weights
        if weights is not None and weights.shape != shape[:1]:
            raise LossError(
                f"the weight of {self.name} has the shape {list(weights.shape)}, and there are {shape[0]} "
                "classes",
                where="the loss",
                instead="give one weight a class",
            )
        scale = self.scale
        if self.as_torch and shape[1:] and scale.over == "samples":
            scale = Scale(scale.factor, "targets")
        return replace(self, classes=shape[0], places=shape[1:], scale=scale)

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`LossError` unless the per-sample output holds logits of two or more classes."""
        if len(shape) >= 1 and shape[0] >= 2:
            return
        batch = ", ".join(["N", *map(str, shape)])
        raise LossError(
            f"{self.name!r} needs a network output [N, K] or [N, K, places] with K ≥ 2 classes, got "
            f"[{batch}]",
            where="the model's output",
            instead="use 'bce_with_logits' for one logit"
            if shape == (1,)
            else "return logits with the classes in the dimension behind the samples, as torch takes them: "
            "logits.transpose(1, 2) of [N, T, K]",
        )

    def layout(self, outputs: int) -> dict[str, int]:
        """The columns of a target's row: ŷ place by place, the places' weights, the d of the scale."""
        columns = {"y": outputs}
        columns |= {"weight": self.count} if self.masked else {}
        return columns | ({"divisor": 1} if self.scale.of_batch else {})

    def check_target(self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: Any) -> None:
        """Raise :class:`BatchError` unless ``target`` has int64 indices [N] or soft rows [N, K]."""
        self.check_output(z_shape[1:])
        y, *weights = self._apart(target)
        hidden = None
        if weights:
            shape = (z_shape[0], *z_shape[2:])
            hidden = element_weights(self.name, shape, z_dtype, *weights) == 0
        check_class_target(self.name, z_shape, z_dtype, y, self._ignored, hidden)

    def _apart(self, target: Any) -> tuple[torch.Tensor, ...]:
        """Target and weights."""
        return taken_apart(self.name, target, ("y", "w") if self.weighted else ("y",))

    def rows(self, target: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The target as rows, see :meth:`layout`: one-hot for indices, zero where the weight is 0."""
        import torch

        y, *given = self._apart(target)
        batch, classes = len(y), shape[0]
        indexed = not y.is_floating_point()
        places = (batch, *shape[1:])
        weights = element_weights(self.name, places, dtype, *given) if given else None
        kept = y != self._ignored if indexed and self._ignored is not None else None
        used = weights
        if kept is not None:
            used = kept.to(dtype) if weights is None else weights * kept
        if used is None and self.masked:
            used = torch.ones(places, dtype=dtype, device=y.device)
        if used is not None:
            hidden = used == 0
            y = y.masked_fill(hidden if indexed else hidden[:, None], 0)
        rows = class_rows(y, classes, dtype) if indexed else y.movedim(1, -1)
        if not indexed:
            rows = of_mass(rows)
        columns = [rows] + ([used] if used is not None and self.masked else [])
        if self.scale.of_batch:
            counted = torch.ones(places, dtype=dtype, device=y.device) if used is None else used
            if self.scale.over != "targets":
                counted = weights if weights is not None else counted
            elif indexed and self.class_weights is not None:
                each = torch.tensor(self.class_weights.values, dtype=dtype, device=y.device)
                counted = counted * each[y.clamp(0, classes - 1)]
            divisor = counted.reshape(batch, -1).sum(dim=1)
            columns.append(divisor / (self.count if self.scale.over == "sample weights" else 1))
        return rows_of(columns, dtype)

    def describe(self) -> str:
        """One line: value, gradient, output Hessian, scale."""
        smooth = f", ŷ = (1 - {self.label_smoothing:g}) y + {self.label_smoothing:g}/K"
        target = "ŷ" if self.label_smoothing else "y"
        facts = (
            f"{self.name}: E = -c Σ {target} log softmax(z), g = c (p - {target}), "
            f"𝓗 = c (diag p - p pᵀ){smooth if self.label_smoothing else ''}, {self.scale}"
        )
        if self.class_weights:
            facts += f", targets times the class weights {list(self.class_weights.values)}"
        if self._ignored is not None:
            facts += f", targets {self.ignore_index} left out"
        return facts + (", times the weights of the batch" if self.weighted else "")
