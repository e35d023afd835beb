"""Block-diagonal Hessian-free: CG in every block of the Gauss-Newton matrix, few products, begun warm.

Zhang, Xiong, Bradbury and Socher, *Block-diagonal Hessian-free optimization for training neural networks*,
2017, arXiv 1712.07296.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..base.options import by_pattern
from ..errors import CompileError
from .conjugate_gradients import ConjugateGradients


class BlockHessianFree(ConjugateGradients):
    """Blocks are layers, or the groups of ``settings.blocks``."""

    def groups(self) -> Sequence[Sequence[str]]:
        """Each layer alone, or the layers that the user gives one name.

        Raises :class:`~gncompile.errors.CompileError` for a layer that no pattern matches, and for a pattern
        that matches no layer.
        """
        names = list(self.layers)
        if self.settings.blocks == "layers":
            return [[name] for name in names]
        chosen = by_pattern("blocks", self.settings.blocks, names)
        if missing := [name for name in names if name not in chosen]:
            raise CompileError(
                f"blocks names none for {', '.join(missing)}",
                instead='begin the mapping with a block for the other layers: {"*": "others", …}',
            )
        blocks = dict.fromkeys(chosen.values())
        return [[name for name in names if chosen[name] == block] for block in blocks]
