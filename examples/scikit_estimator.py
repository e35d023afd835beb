"""scikit-learn estimators: a network trained by Gauss-Newton steps in a pipeline and a grid search.

python examples/scikit_estimator.py
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import nn

import gncompile


@cache
def _compiled(
    sizes: tuple[int, ...], dtype: torch.dtype, loss: str, method: str, alpha: float
) -> tuple[gncompile.Trainer, dict[str, Any]]:
    """A trainer of a network of these sizes with its first state: fits of one search compile once."""
    layers = [layer for d, k in pairwise(sizes) for layer in (nn.Linear(d, k), nn.Tanh())]
    network = nn.Sequential(*layers[:-1]).to(dtype)
    x = torch.zeros(2, sizes[0], dtype=dtype)
    trainer = gncompile.compile(network, loss, x, method, l2={"*.weight": alpha})
    return trainer, copy.deepcopy(trainer.state_dict())


_ONE_AT_A_TIME = threading.Lock()


class _GaussNewtonNetwork(BaseEstimator):
    """A network of tanh units; ``max_iter`` updates on all samples, in the precision of ``X``."""

    def __init__(
        self,
        hidden: Sequence[int] = (16,),
        method: str = "kfra",
        max_iter: int = 30,
        alpha: float = 1e-3,
        random_state: int | None = None,
    ) -> None:
        self.hidden = hidden
        self.method = method
        self.max_iter = max_iter
        self.alpha = alpha
        self.random_state = random_state

    def _fit(self, X: NDArray[Any], y: NDArray[Any], outputs: int, loss: str) -> Self:
        x, y = torch.from_numpy(X), torch.from_numpy(y)
        sizes = (X.shape[1], *self.hidden, outputs)
        with _ONE_AT_A_TIME, torch.random.fork_rng():
            trainer, first = _compiled(sizes, x.dtype, loss, self.method, self.alpha)
            torch.manual_seed(int(check_random_state(self.random_state).randint(2**31)))
            for layer in trainer.model[::2]:
                layer.reset_parameters()
            trainer.load_state_dict({**first, "model": trainer.model.state_dict()})
            scales = (x, y) if y.is_floating_point() else (x,)
            network = gncompile.Standardised.of(trainer.model, *scales)
            inputs = (x - network.input_mean) / network.input_scale
            if y.is_floating_point():
                y = (y - network.output_mean) / network.output_scale
            trainer.fit([(inputs, y)], updates=self.max_iter, progress=False)
            self.network_, self.n_iter_ = copy.deepcopy(network), trainer.updates
        return self

    def _outputs(self, X: ArrayLike) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        parameter = next(self.network_.parameters())
        with torch.no_grad():
            return self.network_(torch.from_numpy(X).to(parameter.dtype))


class GaussNewtonRegressor(RegressorMixin, _GaussNewtonNetwork):
    """Least squares of one target or several; inputs and targets are standardised inside."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on ``X: [N, d]`` and ``y: [N]`` or ``[N, K]``."""
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], y_numeric=True, multi_output=True
        )
        y = y.astype(X.dtype)
        self.one_target_ = y.ndim == 1
        y = y.reshape(len(y), -1)
        return self._fit(X, y, y.shape[1], "mse")

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The network's outputs."""
        outputs = self._outputs(X).numpy()
        return outputs[:, 0] if self.one_target_ else outputs


class GaussNewtonClassifier(ClassifierMixin, _GaussNewtonNetwork):
    """Cross-entropy; inputs are standardised inside."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on ``X: [N, d]`` and labels ``y: [N]``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class only: a classifier needs two classes or more")
        return self._fit(X, labels, len(self.classes_), "cross_entropy")

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Probabilities ``[N, K]`` of the classes, in the order of ``classes_``."""
        return self._outputs(X).softmax(dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable classes."""
        most = self._outputs(X).argmax(dim=1).numpy()
        return self.classes_[most]


def main() -> None:
    """R² on the diabetes table, and a search of hidden sizes on the breast cancer table."""
    X, y = load_diabetes(return_X_y=True)
    train_X, test_X, train_y, test_y = train_test_split(X, y, random_state=0)
    regressor = GaussNewtonRegressor(hidden=(4,), alpha=0.1, random_state=0)
    print(f"diabetes: R² {regressor.fit(train_X, train_y).score(test_X, test_y):.2f}")

    X, y = load_breast_cancer(return_X_y=True)
    train_X, test_X, train_y, test_y = train_test_split(X, y, random_state=0)
    pipeline = make_pipeline(StandardScaler(), GaussNewtonClassifier(random_state=0))
    hidden = {"gaussnewtonclassifier__hidden": [(4,), (8, 4)]}
    search = GridSearchCV(pipeline, hidden, cv=3).fit(train_X, train_y)
    print(f"breast cancer: {search.best_params_}, {search.score(test_X, test_y):.1%} right")


if __name__ == "__main__":
    main()
