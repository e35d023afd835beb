"""A module for data in any units: it standardises what it reads, and gives its outputs the units back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.tables import count
from ..errors import DataError

Numbers = Tensor | Sequence[float]


class Standardised(nn.Module):
    """``f(x) = μ_y + σ_y · module((x - μ_x) / σ_x)``, by columns: plain torch, in which the four are buffers.

    The module inside sees numbers of mean 0 and scale 1 while whoever calls, a trainer, a checkpoint or an
    exported file, speaks in the data's own units. A loss of differences takes ``σ_y`` into account:
    :func:`gncompile.losses.standardised`.

    >>> x = torch.tensor([[0.0, 500.0], [1.0, 700.0]])
    >>> model = Standardised.of(nn.Linear(2, 1), x, y=torch.tensor([[10.0], [30.0]]))
    >>> model.input_mean.tolist(), model.output_scale.tolist()
    ([0.5, 600.0], [10.0])
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(
        self,
        module: nn.Module,
        input_mean: Numbers = (0.0,),
        input_scale: Numbers = (1.0,),
        output_mean: Numbers = (0.0,),
        output_scale: Numbers = (1.0,),
    ) -> None:
        super().__init__()
        self.module = module
        register_scales(
            self,
            next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(())),
            input_mean=input_mean,
            input_scale=input_scale,
            output_mean=output_mean,
            output_scale=output_scale,
        )

    @classmethod
    def of(cls, module: nn.Module, x: Tensor, y: Tensor | None = None) -> Standardised:
        """Around ``module``, with the column means and scales of the samples ``x`` and of the targets ``y``.

        Without ``y`` the outputs stay what the module returns, as is right for class scores. A column that is
        constant has the scale 1. Raises :class:`~gncompile.errors.DataError` for what has no finite ones.
        """
        return cls(module, *means_and_scales(x), *(() if y is None else means_and_scales(y)))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.module((x - self.input_mean) / self.input_scale)
        outputs: Tensor = self.output_mean + self.output_scale * inner
        if outputs.shape != inner.shape:
            raise DataError(
                f"{list(self.output_mean.shape)} means for samples of {list(inner.shape[1:])} outputs",
                where=type(self).__name__,
                instead="give one for each output",
            )
        return outputs

    def extra_repr(self) -> str:
        return f"standardises {count(self.input_mean.numel(), 'column')}"


def register_scales(module: nn.Module, like: Tensor, **scales: Numbers) -> None:
    """Give ``module`` buffers of these names, of the dtype and on the device of ``like``."""
    for name, numbers in scales.items():
        given = torch.as_tensor(numbers, dtype=torch.float64, device="cpu").detach()
        buffer = given.to(dtype=like.dtype, device=like.device, copy=True)
        if not torch.isfinite(buffer).all() or (name.endswith("scale") and not (buffer > 0).all()):
            raise DataError(
                f"{name} holds numbers that cannot be used in {like.dtype}",
                where=type(module).__name__,
                instead="give finite means, and scales above 0",
            )
        module.register_buffer(name, buffer)


def means_and_scales(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Column means and standard deviations over the samples (their number in the denominator), in float64.

    ``samples: [N, …]``. A column that is constant, to rounding, has the scale 1.
    """
    numbers = samples.detach().double()
    if numbers.dim() == 0 or not len(numbers) or not torch.isfinite(numbers).all():
        raise DataError(
            f"samples {list(samples.shape)} have no finite means and scales",
            where="standardising",
            instead="give finite numbers [N, …], N ≥ 1",
        )
    mean = numbers.mean(dim=0)
    scale = (numbers - mean).square().mean(dim=0).sqrt()
    rounding = 1e-12 * torch.maximum(mean.abs(), numbers.abs().amax(dim=0))
    return mean, torch.where(scale > rounding, scale, 1.0)
