"""A declared expression as one operator of an exported graph, to be read back as what was declared.

Tracing the operators that an evaluator happens to call would give back another formula, in the operators of
that evaluator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sympy import Expr, Symbol
from torch import Tensor, nn

from .plain_torch import plain


@dataclass(frozen=True)
class Function:
    """An expression and its arguments' symbols, in the order of the node's inputs."""

    expression: Expr
    arguments: tuple[Symbol, ...]

    @property
    def is_identity(self) -> bool:
        """Whether there is nothing to compute."""
        return self.expression == self.arguments[0]

    def __call__(self, *inputs: Expr) -> Expr:
        """The expression of other symbols."""
        return self.expression.xreplace(dict(zip(self.arguments, inputs, strict=True)))


_EXPORTED: dict[Function, int] = {}
"""The functions that exported graphs speak of, numbered: an operator's arguments are tensors and numbers."""


def apply(function: Function, *inputs: Tensor) -> Tensor:
    """``function`` of tensors of one shape; under ``torch.export`` one operator that names it."""
    if torch.compiler.is_exporting():
        number = _EXPORTED.setdefault(function, len(_EXPORTED))
        return _applied(list(inputs), number)
    return _evaluated(function, inputs)


def exported(number: int) -> Function:
    """The function that an exported operator names."""
    return list(_EXPORTED)[number]


def _evaluated(function: Function, inputs: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    result = plain(function.expression, dict(zip(function.arguments, inputs, strict=True)))
    return result.expand_as(inputs[0])  # a constant has no shape of its own


@torch.library.custom_op("gncompile::applied", mutates_args=())
def _applied(inputs: list[Tensor], number: int) -> Tensor:
    return _evaluated(exported(number), inputs).clone()


@_applied.register_fake
def _shape(inputs: list[Tensor], number: int) -> Tensor:
    return torch.empty_like(inputs[0])


class Elementwise(nn.Module):
    """A :class:`Function` as a module, so that graphs and error texts have a name for it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return apply(self.function, *inputs)

    def extra_repr(self) -> str:
        return str(self.function.expression)
