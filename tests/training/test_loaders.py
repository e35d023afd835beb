"""What loaders may give as a batch, and validation data that come in batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from training import UNGATHERED, batches, compiled, network, samples

import gncompile
from gncompile.data import Batches
from gncompile.errors import BatchError, DataError, GncompileError
from gncompile.losses import weighted
from gncompile.losses.vocabulary import LossSpec
from gncompile.training.loaders import PairOf
from gncompile.training.trainer import Trainer


class Two(nn.Module):
    """Two inputs, and one output or two."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.left, self.right, self.outputs = nn.Linear(2, 3), nn.Linear(4, 3), outputs

    def forward(self, image: Tensor, table: Tensor) -> Tensor | dict[str, Tensor]:
        z = self.left(image) + self.right(table)
        return z if self.outputs == 1 else {"mean": z, "other": torch.tanh(z)}


A, B, Y, W, X = (
    torch.ones(5, 2),
    torch.ones(5, 4),
    torch.ones(5, 3),
    torch.ones(5),
    torch.ones(5, 3),
)


def made(model: nn.Module, loss: LossSpec | dict[str, str], *sizes: int) -> Callable[[], PairOf]:
    def reads() -> PairOf:
        trainer = gncompile.compile(model, loss, tuple(torch.zeros(1, size) for size in sizes))
        return PairOf(trainer.compiled.reader)

    return reads


MODELS = {
    "one": made(nn.Linear(4, 3), "mse", 4),
    "two": made(Two(), "mse", 2, 4),
    "weighted": made(Two(), weighted("mse"), 2, 4),
    "outputs": made(Two(2), {"mean": "mse", "other": "mse"}, 2, 4),
    "autoencoder": made(nn.Linear(3, 3), "mse", 3),
}


@pytest.fixture(scope="module")
def reads() -> dict[str, PairOf]:
    return {name: make() for name, make in MODELS.items()}


FORMS: list[tuple[str, Any, Any]] = [
    ("one", (B, Y), (B, Y)),
    ("one", [B, Y], (B, Y)),
    ("one", {"input": B, "target": Y}, (B, Y)),
    ("one", OrderedDict(anything=Y, input=B), (B, Y)),
    ("two", ((A, B), Y), ((A, B), Y)),
    ("two", (A, B, Y), ((A, B), Y)),
    ("two", [A, B, Y], ((A, B), Y)),
    ("two", {"y": Y, "table": B, "image": A}, ((A, B), Y)),
    ("weighted", (A, B, Y, W), ((A, B), (Y, W))),
    ("weighted", {"table": B, "image": A, "y": (Y, W)}, ((A, B), (Y, W))),
    ("outputs", {"table": B, "image": A, "mean": Y, "other": X}, ((A, B), {"mean": Y, "other": X})),
    ("autoencoder", X, (X, X)),
    ("autoencoder", [X], (X, X)),
    ("autoencoder", {"input": X}, (X, X)),
    ("autoencoder", (X, Y), (X, Y)),
]


def same(got: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return got is expected
    if isinstance(expected, dict):
        return list(got) == list(expected) and same([*got.values()], [*expected.values()])
    return len(got) == len(expected) and all(map(same, got, expected))


@pytest.mark.parametrize(("model", "batch", "pair"), FORMS)
def test_forms(model: str, batch: Any, pair: Any, reads: dict[str, PairOf]) -> None:
    assert same(reads[model](batch), pair)


@pytest.mark.parametrize(
    ("model", "batch", "found"),
    [
        (
            "one",
            B,
            r"no target: it is a Tensor\nthat is one of an autoencoder, and this model's outputs \[3\]",
        ),
        ("one", {"input": B}, "no target"),
        ("one", {"input": B, "y": Y, "w": W}, "a dict of 'input', 'y', 'w', and it is not clear"),
        ("one", {"inputs": B, "y": Y}, "the model's inputs are input\n"),
        ("one", (B, Y, W), "a tuple of 3, and it is not clear"),
        ("two", (A, B, Y, W), "a tuple of 4, and it is not clear"),
        ("two", {"image": A, "y": Y}, "the model's inputs are image, table\n"),
        ("two", (A,), "no target"),
        (
            "weighted",
            {"table": B, "image": A, "y": Y, "w": W},
            "a dict of 'table', 'image', 'y', 'w'",
        ),
        ("outputs", {"table": B, "image": A, "mean": Y, "another": X}, "a dict of"),
        ("one", (), "a tuple of 0"),
        ("one", "text", "a batch is a str"),
    ],
)
def test_what_is_not_clear(model: str, batch: Any, found: str, reads: dict[str, PairOf]) -> None:
    with pytest.raises(BatchError, match=found) as caught:
        reads[model](batch)
    assert "batch=lambda b: (" in str(caught.value)


def test_a_function_of_ones_own_reads(reads: dict[str, PairOf]) -> None:
    reader = reads["one"].reader
    assert same(PairOf(reader, lambda b: (b["u"], b["v"]))({"u": B, "v": Y, "id": "a"}), (B, Y))
    with pytest.raises(BatchError, match="batch= gave a Tensor"):
        PairOf(reader, lambda b: b)(B)
    with pytest.raises(GncompileError, match="batch is 'x'"):
        PairOf(reader, "x")  # type: ignore[arg-type]


# --- In a fit ------------------------------------------------------------------------------------------


class Dicts(Dataset[dict[str, Tensor]]):
    """The shared samples as dicts."""

    def __init__(self) -> None:
        self.x, self.y = samples()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"label": self.y[index], "x": self.x[index]}


def test_a_loader_of_dicts_trains_as_one_of_pairs() -> None:
    given = [DataLoader(Dicts(), 16), DataLoader(TensorDataset(*samples()), 16)]
    losses = []
    for loader in given:
        history = compiled(network()).fit(loader, epochs=2, validation=loader, progress=False)
        losses.append((history.loss, history.validation_loss))
    assert losses[0] == losses[1]
    trainer = compiled(network())
    history = trainer.fit(
        given[0],
        epochs=2,
        validation=given[0],
        progress=False,
        batch=lambda b: (b["x"], b["label"]),
    )
    assert history.loss == losses[0][0]
    gathered = list(trainer.gather(given[0], batch=lambda b: (b["x"], b["label"])))
    assert torch.equal(torch.cat([x for x, _ in gathered]), samples()[0])


# --- Validation -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainers() -> dict[str, Trainer]:
    losses: dict[str, LossSpec] = {
        "mean": nn.MSELoss(),
        "sum": nn.MSELoss(reduction="sum"),
        "mean over weights": weighted(nn.MSELoss(), normalize=True),
    }
    example = torch.zeros(2, 6, dtype=torch.float64)
    return {
        name: gncompile.compile(network(), loss, example, **UNGATHERED)
        for name, loss in losses.items()
    }


@pytest.mark.parametrize("loss", ["mean", "sum", "mean over weights"])
def test_a_loader_has_the_loss_of_the_joined_set(loss: str, trainers: dict[str, Trainer]) -> None:
    trainer = trainers[loss]
    x, y = samples()
    weights = torch.linspace(0, 3, len(x), dtype=torch.float64)
    target = (y, weights) if "weights" in loss else y
    parts = [slice(0, 16), slice(16, 17), slice(17, 50)]
    listed = [(x[p], (y[p], weights[p]) if "weights" in loss else y[p]) for p in parts]
    history = trainer.fit([(x, target)], updates=1, validation=listed, progress=False)
    assert history[0].validation_loss == pytest.approx(trainer.evaluate(x, target), rel=1e-12)
    # By plain torch, which shares nothing with this.
    squares = (trainer.model(x) - y) ** 2
    expected = {
        "mean": squares.mean(),
        "sum": squares.sum(),
        "mean over weights": (weights[:, None] * squares).sum() / (3 * weights.sum()),
    }
    assert history[0].validation_loss == pytest.approx(expected[loss].item(), rel=1e-10)


def test_batches_validate_without_moving(trainers: dict[str, Trainer]) -> None:
    trainer, held_out = trainers["mean"], batches(size=7)
    held_out.next()
    history = trainer.fit(
        Batches(*samples(), 50), updates=2, validation=held_out, validate_every=1, progress=False
    )
    assert history[1].validation_loss == trainer.evaluate(*samples())
    assert held_out.position == 1


def test_a_validation_set_does_not_change(trainers: dict[str, Trainer]) -> None:
    class Shrinking:
        left = 4

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.left -= 1
            return iter([samples()] * self.left)

    with pytest.raises(DataError, match="has given 100 samples, and 150 before"):
        trainers["mean"].fit([samples()], updates=1, validation=Shrinking(), progress=False)


def test_a_batch_that_does_not_fit_is_told_before_the_training() -> None:
    trainer = compiled(network())
    x, y = samples()
    with pytest.raises(BatchError, match="validation: "):
        trainer.fit([(x, y)], updates=1, validation=[(x, y), (x, y[:, :2])], progress=False)
    assert trainer.updates == 0


# --- evaluate, predict and fit on what gives batches ----------------------------------------------------


def test_evaluate_and_predict_take_loaders() -> None:
    trainer, (x, y) = compiled(network()), samples(70)
    loss, outputs = trainer.evaluate(x, y), trainer.predict(x)
    given = DataLoader(TensorDataset(x, y), 16), Batches(x, y, 16), [(x[:3], y[:3]), (x[3:], y[3:])]
    for loader in given:
        assert trainer.evaluate(loader) == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(trainer.predict(loader), outputs)
    inputs_alone = DataLoader(TensorDataset(x), 16)
    torch.testing.assert_close(trainer.predict(inputs_alone), outputs)
    assert trainer.evaluate((x, y)) == loss


def test_predictions_of_several_inputs_and_outputs_come_from_loaders() -> None:
    reads = gncompile.compile(
        Two(2), {"mean": "mse", "other": "mse"}, (torch.zeros(1, 2), torch.zeros(1, 4))
    )
    expected = reads.predict((A, B))
    for batch in (A, B, Y), ((A, B), Y), {"image": A, "table": B, "mean": Y}:
        found = reads.predict([batch, batch])
        for name in "mean", "other":
            torch.testing.assert_close(found[name], torch.cat([expected[name]] * 2))


def test_what_is_no_data_set_is_refused_in_words() -> None:
    trainer, (x, y) = compiled(network()), samples(8)
    with pytest.raises(BatchError, match="a batch has no target"):
        trainer.evaluate(x)
    with pytest.raises(BatchError, match="from_numpy"):
        trainer.predict(x.numpy())
    with pytest.raises(BatchError, match="from_numpy"):
        trainer.evaluate(x.numpy(), y.numpy())
    with pytest.raises(GncompileError, match="data is a generator, which can be gone through once"):
        trainer.evaluate(pair for pair in [(x, y)])
    with pytest.raises(DataError, match="no batches"):
        trainer.predict(DataLoader(TensorDataset(x[:0], y[:0]), 4))
    for more in (y,), (y, 10):
        with pytest.raises(GncompileError, match=r"Batches\(X, Y, batch_size\)"):
            trainer.fit(x, *more, epochs=1)
