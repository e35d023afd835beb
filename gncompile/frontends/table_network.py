"""The network of a model file for rows of a table: embeddings of categories, and numbers in any units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..base.names import Names
from ..base.tables import count
from ..data.table_schema import TableSchema
from ..functions.applied import Function
from .declared_network import DeclaredNetwork
from .network_schema import Node
from .standardised import register_scales

WIDEST = 50
"""Numbers that stand for a category at most."""


class TableNetwork(DeclaredNetwork):
    """``f(x, c) = μ_y + σ_y · network([(x - μ_x) / σ_x, E_1[c_1], E_2[c_2], …])``.

    ``x: [N, d]`` are numbers in the file's own units, ``c: [N, k]`` int64 the levels of its categories. The
    means and scales are those of ``schema``, buffers as those of
    :class:`~gncompile.frontends.standardised.Standardised`; outputs get units only where ``units`` says so.
    ``E_i`` has :func:`embedding_width` columns, drawn from ``seed`` with variance 1/width: a category weighs
    as much as a standardised number.
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(
        self,
        schema: TableSchema,
        units: bool,
        nodes: Sequence[Node],
        functions: Mapping[str, Function],
        sizes: Mapping[str, int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(table_width(schema), nodes, functions, sizes, seed, dtype)
        self.standardises = schema.standardise and schema.inputs > 0
        self.units = units
        like = torch.zeros((), dtype=dtype)
        if self.standardises:
            register_scales(
                self, like, input_mean=schema.input_mean, input_scale=schema.input_scale
            )
        if units:
            register_scales(
                self, like, output_mean=schema.output_mean, output_scale=schema.output_scale
            )
        self.embeddings = nn.ModuleDict()
        generator = torch.Generator().manual_seed(
            (seed + 1) % 2**63
        )  # the layers' draws are seed's
        names = Names(dir(self.embeddings))
        for column in schema.categories:
            width = embedding_width(column.size)
            drawn = torch.randn(column.size, width, generator=generator, dtype=torch.float64)
            table = nn.Embedding.from_pretrained((drawn / math.sqrt(width)).to(dtype), freeze=False)
            self.embeddings[names.fresh(column.name)] = table

    def forward(self, x: Tensor, categories: Tensor | None = None) -> Tensor:
        if self.standardises:
            x = (x - self.input_mean) / self.input_scale
        if categories is not None:
            found = [table(categories[:, i]) for i, table in enumerate(self.embeddings.values())]
            x = torch.cat([x, *found], dim=1)
        z = super().forward(x)
        return self.output_mean + self.output_scale * z if self.units else z

    def extra_repr(self) -> str:
        told = [super().extra_repr()]
        if self.standardises:
            told.append(f"standardises {count(self.input_mean.numel(), 'column')}")
        if self.units:
            told.append(f"scales {count(self.output_mean.numel(), 'output')} back")
        return ", ".join(told)


def embedding_width(levels: int) -> int:
    """Numbers that stand for a category of so many levels: half as many, :data:`WIDEST` at most."""
    return min(WIDEST, (levels + 1) // 2)


def table_width(schema: TableSchema) -> int:
    """Features that the declared network reads: numbers, and the embeddings of categories."""
    return schema.inputs + sum(embedding_width(column.size) for column in schema.categories)
