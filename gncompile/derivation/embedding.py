"""Lookups in tables: the rows that whole numbers choose, and what comes back to them."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph.embedding import Embedding, OneHot
from ..graph.layers import Layer
from ..program import lookups
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Structure
from .forward import LinearRule, node_rule
from .jacobians import Jacobian
from .layer_rules import LayerRule


@node_rule(Embedding)
class EmbeddingRule(LayerRule[Embedding]):
    """``y_s = W[i_s]``; the input moves with nothing, so nothing passes back through it.

    The second moment of one-hot rows is the diagonal of mean counts, so factors need none of them.
    """

    def value(self, inputs: list[Value]) -> Value:
        name = f"h_{self.node.name}"
        return self._looked_up(
            lookups.Lookup(), self.weight, inputs[0], name, f"rows of {self.op.layer}"
        )

    def jacobian(self, position: int) -> Jacobian | None:
        return None

    def tangent(
        self, incoming: list[Value | None], direction: Mapping[str, Value], name: str
    ) -> Value | None:
        """The padding's row may move, by L2, but to the output it is a constant, as to the gradient."""
        v, _ = self.delta(direction)
        if v is None:
            return None
        indices = self.forward.values[self.node.inputs[0]]
        return self._looked_up(lookups.Lookup(self.op.padding), v, indices, name)

    def _looked_up(
        self, op: lookups.Lookup, table: Value, indices: Value, name: str, comment: str = ""
    ) -> Value:
        rows = self.builder.emit(op, table, indices, name=name, comment=comment)
        return self.builder.emit(ir.Flatten(), rows)

    def left(self, g: Value) -> Value:
        return self.builder.emit(ir.Unflatten((self.op.places, g.width // self.op.places)), g)

    def gradient(self, g: Value, x: Value | None, layer: Layer, name: str) -> Value:
        """``(1/N) Σ_n Σ_s e_i g_sᵀ``, row by row."""
        assert x is not None
        op = lookups.LookupGradient(self.op.classes, self.op.padding)
        found = self.builder.emit(
            op, x, self.left(g), name=name, comment=f"gradient of {layer.name}"
        )
        return self.builder.transpose(found) if layer.flipped else found

    def sides(self, columns: Value, x: Value) -> tuple[Value, Value]:
        """The right side is one-hot rows, which are formed here only; none of the padding's index."""
        hot = self.builder.emit(lookups.OneHot(self.op.classes), x, name=f"hot_{self.node.name}")
        if self.op.padding is not None:
            kept = tuple(-1 if i == self.op.padding else i for i in range(self.op.classes))
            hot = self.builder.emit(ir.Gather(kept), hot, name=f"hot_{self.node.name}_kept")
        return self.left(columns), hot

    def input_moment(
        self, x: Value | None, layer: Layer, name: str, into: Value | None = None
    ) -> Value:
        """``(1/N) Σ_n Σ_s e_i e_iᵀ``: how often each row is looked up in a sample."""
        assert x is not None
        op = lookups.Counts(self.op.classes, self.op.padding)
        counts = self.builder.emit(op, x, name=name, comment=f"counts of {layer.name}", into=into)
        return self.builder.as_matrix(counts, Structure.DIAGONAL, self.op.classes)


@node_rule(OneHot)
class OneHotRule(LinearRule[OneHot]):
    """``y_sk = 1`` where ``k = i_s``."""

    def value(self, inputs: list[Value]) -> Value:
        rows = self.builder.emit(
            lookups.OneHot(self.op.classes), inputs[0], name=f"x_{self.node.name}"
        )
        return self.builder.emit(ir.Flatten(), rows)

    def jacobian(self, position: int) -> Jacobian | None:
        return None
