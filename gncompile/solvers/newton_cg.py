"""Newton-CG on a share of the batch: CG with the whole Gauss-Newton matrix until the residual is small.

Wang, Tan, Hsieh, Keerthi and Lin, *Distributed Newton methods for deep neural networks*, 2018, arXiv
1802.00130. Their step then goes by backtracking, here by the quadratic model as every step does.
"""

from __future__ import annotations

from collections.abc import Sequence

from .conjugate_gradients import ConjugateGradients


class NewtonCG(ConjugateGradients):
    """One block of all layers."""

    def groups(self) -> Sequence[Sequence[str]]:
        """All layers."""
        return [list(self.layers)]
