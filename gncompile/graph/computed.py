"""Weights that are computed of parameters: a network whose one sample the parameters are.

``W = g v / ‖v‖``, ``W = W_0 + B A``, a weight times a number: whatever a network may do to a sample this one may do
to its parameters. Layers meet W as any weight; ``∂/∂W`` goes back to the parameters, and their directions
come forward, by the rules of its nodes. Its parameters are trained by a first-order rule
(:mod:`gncompile.derivation.first_order`): their Gauss-Newton block is no Kronecker product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model_graph import ModelGraph


@dataclass(frozen=True)
class Computed:
    """The ``graph`` from ``parameters`` to a weight; the n-th of them is the input of that position."""

    graph: ModelGraph
    parameters: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each parameter has."""
        return {
            self.parameters[position]: node.size for position, node in enumerate(self.graph.inputs)
        }
