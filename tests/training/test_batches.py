"""What enters as a batch or a data set: tensors of real numbers, as many targets as inputs, all finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from training import OUTPUTS, WIDTH, compiled, network, samples

import gncompile
from gncompile.data import Batches
from gncompile.errors import BatchError, DataError, GncompileError, ShortDataWarning
from gncompile.training.trainer import Trainer

X, Y = samples(40)

WRONG: dict[str, tuple[Any, Any, str]] = {
    "complex": (X + 1j, Y, "the input is complex, torch.complex128"),
    "sparse": (X.to_sparse(), Y, "the input is of layout torch.sparse_coo"),
    "numpy": (X.numpy(), Y, r"(?s)the input is numpy.ndarray.*torch.from_numpy\(array\)"),
    "a list of numbers": ([1.0, 2.0], Y, "the input, number 0, is float"),
    "a dict": ({"x": X}, Y, "the input is dict"),
    "nothing": ((), Y, "no tensors"),
    "None": (None, Y, "the input is NoneType"),
    "a number": (torch.tensor(1.0), Y, "the input is a single number"),
    "on no device": (X.to("meta"), Y, "on the meta device"),
    "integers": (X.long(), Y, r"(?s)input 'x' holds int64.*x.to\(torch.float64\)"),
    "booleans": (X > 0, Y, "input 'x' holds bool"),
    "two inputs": ((X, X), Y, "the model takes 1 inputs, the batch has 2"),
    "targets in a tuple": (X, (Y,), "(?s)the target is tuple.*pass one torch.Tensor"),
    "targets of numpy": (X, Y.numpy(), "the target is numpy.ndarray"),
    "complex targets": (X, Y + 0j, "the target is complex"),
    "sparse targets": (X, Y.to_sparse(), "the target is of layout"),
    "no targets": (X, None, "the target is NoneType"),
    "more targets": (X, torch.cat([Y, Y]), "40"),
    "no samples": (X[:0], Y[:0], ""),
    "NaN in inputs": (X * float("nan"), Y, "non-finite values in input 0, the first is nan"),
    "inf in targets": (X, Y / 0, "non-finite values in target, the first is inf"),
}
USES: dict[str, Callable[[Trainer, Any, Any], object]] = {
    "step": lambda t, x, y: t.step(x, y),
    "evaluate": lambda t, x, y: t.evaluate(x, y, batch_size=7),
    "check_batch": lambda t, x, y: t.check_batch(x, y),
    "fit": lambda t, x, y: t.fit([(x, y)], updates=1, progress=False),
    "validation": lambda t, x, y: t.fit([(X, Y)], updates=1, validation=(x, y), progress=False),
    "curvature": lambda t, x, y: gncompile.curvature(t.model, "bce_with_logits", x, y),
    "loss": lambda t, x, y: t.loss(x, y),
    "gradients": lambda t, x, y: t.gradients(x, y),
    "predict": lambda t, x, y: t.predict(x),
}


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return compiled(network(), gather_samples=64)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_data_are_refused_everywhere(wrong: str, trainer: Trainer) -> None:
    x, y, found = WRONG[wrong]
    before = [p.clone() for p in trainer.model.parameters()]
    for name, use in USES.items():
        if name == "predict" and (y is not Y or "NaN" in wrong):
            continue  # it has no targets, and its outputs tell of NaN as the model's do
        if name in ("loss", "gradients") and ("NaN" in wrong or "inf" in wrong):
            continue  # the value itself tells
        # There the data are the examples that the model is traced with.
        kind = GncompileError if name == "curvature" else BatchError
        with pytest.raises(kind, match=found if name == "step" else None):
            use(trainer, x, y)
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert trainer.updates == 0


def test_inputs_of_other_precision_and_with_gradients_are_taken(trainer: Trainer) -> None:
    expected = float(trainer.loss(X.float(), Y))
    for x in (X.float().requires_grad_(), X.float().T.contiguous().T):
        assert float(trainer.loss(x, Y)) == expected
    assert float(trainer.loss(X.half(), Y)) == float(trainer.loss(X.half().double(), Y))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_evaluate_needs_a_whole_batch_size(size: Any, trainer: Trainer) -> None:
    with pytest.raises(GncompileError, match="batch_size is .*\n.*a whole number from 1"):
        trainer.evaluate(X, Y, batch_size=size)


def test_evaluate_refuses_other_numbers_of_targets(trainer: Trainer) -> None:
    with pytest.raises(BatchError, match="40 inputs, and 30 targets"):
        trainer.evaluate(X, Y[:30])
    with pytest.raises(BatchError, match="0 inputs, and 0 targets"):
        trainer.evaluate(X[:0], Y[:0])


def test_directions_have_to_be_of_the_parameters(trainer: Trainer) -> None:
    weight = trainer.trained()["0.weight"]
    for direction in ({"0.wieght": weight}, {"0.weight": weight[:1]}, {"0.weight": 1.0}):
        with pytest.raises(BatchError, match="the direction has '0.w"):
            trainer.rop(X, direction)  # type: ignore[arg-type]


def test_what_is_no_model_and_mixed_models() -> None:
    with pytest.raises(GncompileError, match="the model is of type function"):
        gncompile.compile(lambda x: x, "mse", X)  # type: ignore[arg-type]
    mixed = nn.Sequential(nn.Linear(WIDTH, 4).double(), nn.Linear(4, OUTPUTS))
    with pytest.raises(GncompileError, match=r"'0\.weight' is torch\.float64 .*'1\.w"):
        gncompile.compile(mixed, "mse", X)


# --- What fit takes -------------------------------------------------------------------------------------


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


def test_a_loader_without_a_length() -> None:
    streamed, listed = compiled(network()), compiled(network())
    history = streamed.fit(DataLoader(Stream(), batch_size=10), updates=6, progress=False)
    assert (
        history.loss
        == listed.fit(
            DataLoader(TensorDataset(X, Y), batch_size=10), updates=6, progress=False
        ).loss
    )
    assert history.ended == "6 updates made"
    history = streamed.fit(DataLoader(Stream(), batch_size=10), epochs=2, progress=False)
    assert (len(history), history.ended) == (8, "2 epochs made")


def test_one_is_told_in_the_singular() -> None:
    trainer = compiled(network())
    assert trainer.fit([(X, Y)], epochs=1, progress=False).ended == "1 epoch made"
    with pytest.warns(
        ShortDataWarning, match="ended after 1 update of the 3 updates.*, with 1 batch"
    ):
        trainer.fit(iter([(X, Y)]), updates=3, progress=False)


@pytest.mark.parametrize("length", [{"updates": 20}, {"epochs": 3}])
def test_data_that_end_early_are_told(length: dict[str, int]) -> None:
    trainer = compiled(network())
    with pytest.warns(ShortDataWarning, match="the data ended after 5 updates of the (20|3) "):
        history = trainer.fit(((X, Y.clone()) for _ in range(5)), progress=False, **length)
    assert len(history) == 5
    assert "the data ended after 5 updates" in history.ended


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"updates": 2.5}, "updates=2.5"),
        ({"updates": True}, "updates=True"),
        ({"epochs": -1}, "epochs=-1"),
        ({"updates": 2, "checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"updates": 2, "validate_every": 0}, "validate_every is 0"),
        ({"updates": 2, "early_stop": 1.5, "validation": (X, Y)}, r"early_stop=1\.5"),
        ({"updates": 2, "validation": [X, Y]}, "validation is of type list and holds tensors"),
        ({"updates": 2, "validation": iter([(X, Y)])}, "which can be gone through once"),
        ({"updates": 2, "validation": 3}, "validation is of type int"),
        ({"updates": 2, "validation": X}, "validation: a batch has no target"),
        ({"updates": 2, "validation": []}, "the validation data has no batches"),
        ({"updates": 2, "validation": (X, Y[:5])}, "validation: "),
        ({"updates": 2, "callbacks": 3}, "callbacks is 3"),
        ({"updates": 2, "callbacks": [print, None]}, "callbacks is "),
    ],
)
def test_impossible_options_of_fit(options: dict[str, Any], found: str, trainer: Trainer) -> None:
    with pytest.raises(GncompileError, match=found):
        trainer.fit([(X, Y)], progress=False, **options)
    assert trainer.updates == 0


@pytest.mark.parametrize(
    ("train", "found"),
    [
        (None, "the training data is a NoneType"),
        ({"x": X, "y": Y}, "the training data is a dict"),
        (X, "the training data is a Tensor"),
        ([{"x": X, "y": Y, "z": Y}], "a batch is a dict of 'x', 'y', 'z', and it is not clear"),
        ([{"a": X, "y": Y}], "a batch is a dict of 'a', 'y', and it is not clear"),
        ([X], "a batch has no target: it is a Tensor"),
        ([(X, Y, Y)], "a batch is a tuple of 3, and it is not clear"),
        ([({"x": X}, Y)] * 2, "the input is dict"),
        ([(X, 1)], "the target is int"),
    ],
)
def test_loaders_of_other_structures(train: Any, found: str, trainer: Trainer) -> None:
    with pytest.raises(GncompileError, match=found):
        trainer.fit(train, updates=1, progress=False)


def test_one_callback_needs_no_list() -> None:
    told: list[int] = []
    compiled(network()).fit(
        [(X, Y)], updates=2, progress=False, callbacks=lambda record: told.append(record.update)
    )
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((np.zeros((4, 2)), np.zeros((4, 1)), 2), "x is no tensor of samples but a ndarray"),
        ((X, [0] * 40, 2), "y is no tensor of samples but a list"),
        ((X, Y, 2.5), "batch_size is 2.5"),
        ((X, Y, 8, None), "seed is None"),
    ],
)
def test_wrong_arguments_of_batches(arguments: tuple[Any, ...], found: str) -> None:
    with pytest.raises(DataError, match=found):
        Batches(*arguments)


# --- Values that are not finite inside the network ------------------------------------------------------


class Root(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.sqrt(h) * torch.exp(torch.tanh(h))


def test_the_first_node_that_is_not_finite_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 8), Root(), nn.Linear(8, 3)
    ).double()
    hidden = model[:3](X)
    bad = int((hidden < 0).sum())
    first = float(hidden[hidden < 0][0])
    with pytest.raises(BatchError) as caught:
        gncompile.compile(model, "mse", X).step(X, Y)
    text = str(caught.value)
    assert text.splitlines()[0] == "the loss is nan on a batch of finite values"
    assert f"sqrt(layer_2) is nan in {bad} of {hidden.numel()} values" in text
    assert f"layer_2 from {float(hidden.min()):.4g} to {float(hidden.max()):.4g}" in text
    assert f"layer_2 = {first:.4g}" in text
    assert "module '3'" in text
    assert "test_batches.py" in text
    assert "parameters are unchanged" in text


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = network()
    trainer = compiled(model)
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(BatchError, match="the parameter '2.weight' is inf in 1 of 20 values"):
        trainer.step(X, Y)


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 1)).double()
    with torch.no_grad():
        model[0].bias.fill_(2e3)
    with pytest.raises(BatchError, match=r"(?s)the loss .* overflows .* output is finite"):
        gncompile.compile(model, "exp(z) - y*z", X).step(X, Y[:, :1])
