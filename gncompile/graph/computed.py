"""Weights that are computed of parameters: a network whose one sample the parameters are.

``W = g v / ‖v‖``, ``W = W_0 + B A``, a weight times a number: whatever a network may do to a sample this one
may do to its parameters. Layers meet W as any weight; ``∂/∂W`` goes back to the parameters, and their
directions come forward, by the rules of its nodes. A first-order rule trains the parameters
(:mod:`gncompile.derivation.first_order`): their Gauss-Newton block is no Kronecker product.
"""

from __future__ import annotations

from dataclasses import dataclass

from .nodes import Input, Node


@dataclass(frozen=True)
class Computed:
    """The ``nodes`` of the graph from ``parameters`` to a weight; the n-th is the input of that position."""

    nodes: tuple[Node, ...]
    parameters: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, Node]:
        """The parameters and the nodes that stand for them."""
        found = {node.op.position: node for node in self.nodes if isinstance(node.op, Input)}
        return {name: found[position] for position, name in enumerate(self.parameters)}
