"""Every ``torch.nn`` loss: computed exactly as torch does, with every option, or refused with the reason.

The oracle is the module itself under ``torch.func`` in float64, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_programs import check_against
from torch import Tensor, nn

from gncompile.errors import LossError
from gncompile.losses import losses_torch, resolve_loss
from gncompile.losses.weighting import bind_loss

NAN = float("nan")
generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def classes(k: int, *shape: int) -> Tensor:
    return torch.randint(k, shape, generator=generator)


def all_losses() -> set[type]:
    module = nn.modules.loss
    found = {getattr(module, name) for name in module.__all__} | {nn.AdaptiveLogSoftmaxWithLoss}
    return {kind for kind in found if kind.__name__ != "NLLLoss2d"}


def test_every_loss_of_torch_is_computed_or_refused_with_a_reason() -> None:
    compiled, refused = losses_torch.supported_modules(), losses_torch.refused_modules().keys()
    assert not compiled & refused
    assert compiled | refused == all_losses()


REFUSED: dict[type, tuple[Any, ...]] = {
    nn.AdaptiveLogSoftmaxWithLoss: (4, 6, [2]),
    getattr(nn, "LinearCrossEntropyLoss", object): (4, 6),
}


@pytest.mark.parametrize("kind", sorted(losses_torch.refused_modules(), key=lambda k: k.__name__))
def test_the_others_are_refused_with_the_reason(kind: type) -> None:
    module = kind(*REFUSED.get(kind, ()))
    with pytest.raises(LossError) as refusal:
        resolve_loss(module)
    assert losses_torch.refused_modules()[kind] in str(refusal.value)
    assert kind.__name__ in str(refusal.value)


def case(kind: type, shape: tuple[int, ...], target: Callable[[], Any], **options: Any) -> Any:
    text = ", ".join(
        f"{k}={v.tolist() if isinstance(v, Tensor) else v}" for k, v in options.items()
    )
    return pytest.param(kind, shape, target, options, id=f"{kind.__name__}({text}){list(shape)}")


def with_ignored(y: Tensor, index: int) -> Tensor:
    return y.masked_fill(uniform(*y.shape) < 0.4, index)


W3 = torch.tensor([0.5, 2.0, 0.0])
W4 = torch.tensor([0.25, 1.0, 3.0, 0.7])
CASES = [
    case(nn.CrossEntropyLoss, (5, 3), lambda: classes(3, 5), weight=W3),
    case(nn.CrossEntropyLoss, (5, 3), lambda: classes(3, 5), weight=W3, label_smoothing=0.3),
    case(nn.CrossEntropyLoss, (5, 3), lambda: classes(3, 5), label_smoothing=1.0, weight=W3),
    case(nn.CrossEntropyLoss, (5, 3), lambda: uniform(5, 3), weight=W3, label_smoothing=0.3),
    case(nn.CrossEntropyLoss, (5, 3), lambda: torch.tensor([1, 0, 1, 2, 1]), ignore_index=1),
    case(nn.CrossEntropyLoss, (5, 3), lambda: torch.tensor([1, 0, -1, 2, -1]), ignore_index=-1,
         weight=W3 + 0.1, label_smoothing=0.2),
    case(nn.CrossEntropyLoss, (3, 4, 5), lambda: classes(4, 3, 5)),
    case(nn.CrossEntropyLoss, (3, 4, 5), lambda: with_ignored(classes(4, 3, 5), -100)),
    case(nn.CrossEntropyLoss, (3, 4, 5), lambda: with_ignored(classes(4, 3, 5), 0), ignore_index=0,
         weight=W4, label_smoothing=0.1),
    case(nn.CrossEntropyLoss, (3, 4, 5), lambda: uniform(3, 4, 5), weight=W4, label_smoothing=0.1),
    case(nn.CrossEntropyLoss, (2, 3, 2, 3), lambda: with_ignored(classes(3, 2, 2, 3), -100)),
    case(nn.CrossEntropyLoss, (1, 3, 1), lambda: classes(3, 1, 1)),
    case(nn.BCEWithLogitsLoss, (5, 3), lambda: uniform(5, 3), weight=W3),
    case(nn.BCEWithLogitsLoss, (5, 3), lambda: uniform(5, 3).round(), pos_weight=W3),
    case(nn.BCEWithLogitsLoss, (5, 3), lambda: uniform(5, 3), pos_weight=W3, weight=W3 + 0.1),
    case(nn.BCEWithLogitsLoss, (5, 3), lambda: uniform(5, 3), pos_weight=torch.tensor(2.5)),
    case(nn.BCEWithLogitsLoss, (2, 4, 3), lambda: uniform(2, 4, 3), weight=W4[:, None]),
    case(nn.MultiLabelSoftMarginLoss, (5, 3), lambda: uniform(5, 3).round()),
    case(nn.MultiLabelSoftMarginLoss, (5, 3), lambda: uniform(5, 3).round(), weight=W3),
    case(nn.PoissonNLLLoss, (5, 3), lambda: (4 * uniform(5, 3)).round(), full=True),
    case(nn.GaussianNLLLoss, (5, 3), lambda: (normal(5, 3), 0.1 + uniform(5, 3))),
    case(nn.GaussianNLLLoss, (5, 3), lambda: (normal(5, 3), uniform(5, 3)), full=True, eps=0.5),
]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("kind", "shape", "target", "options"), CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_options(
    kind: type, shape: tuple[int, ...], target: Callable[[], Any], options: Any, reduction: str
) -> None:
    options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    module = kind(reduction=reduction, **options)
    y = target()
    given = y if isinstance(y, tuple) else (y,)
    loss = bind_loss(resolve_loss(module), shape[1:])
    check_against(loss, lambda z: module(z, *given), normal(*shape), y)
