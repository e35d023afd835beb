"""Model files and their data: what a file leaves out, tables in any units, and sizes that do not fit."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gncompile.app.training_run import compile_file
from gncompile.data import Batches
from gncompile.errors import GncompileError, ModelFileError
from gncompile.frontends.declared_network import DeclaredNetwork
from gncompile.frontends.model_data import load_data
from gncompile.frontends.model_file import ModelFile, load_model_file
from gncompile.frontends.standardised import Standardised
from gncompile.frontends.table_network import TableNetwork, embedding_width
from gncompile.losses import SeparableLoss, resolve_loss
from gncompile.training.trainer import Trainer

SMALL = "[network]\nhidden = [6]\n"


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))


def loaded(folder: Path, text: str) -> ModelFile:
    path = folder / "rows.toml"
    path.write_text(text)
    return load_model_file(path)


def trained(file: ModelFile, updates: int) -> tuple[Trainer, list[float]]:
    """A trainer after some full-batch steps, and their losses."""
    data, trainer = load_data(file), compile_file(file)
    batches = Batches(data.train_x, data.train_y, file.batch_size, file.training.seed)
    return trainer, [trainer.step(*batches.next()).loss for _ in range(updates)]


@pytest.fixture
def rides(tmp_path: Path) -> Path:
    """A folder with rows.csv: two categories, two numbers in odd units, a target in the thousands."""
    draw = np.random.default_rng(0)
    place, day = draw.choice(["a.b", "c", "d, e"], 90), draw.choice(["sat", "sun"], 90)
    length, hour = draw.normal(3e4, 1e4, 90), draw.uniform(0, 0.01, 90)
    price = length / 10 + 900 * (place == "c") - 400 * (day == "sun") + 1e4 * hour
    columns = {"place": place, "day": day, "length": length, "hour": hour, "price": price}
    write_csv(tmp_path / "rows.csv", columns)
    return tmp_path


# --- What is left out


def test_three_lines_are_a_model_file(rides: Path) -> None:
    file = loaded(rides, '[data]\nname = "rows.csv"\ntargets = ["price"]\n')
    assert file.name == "rows"
    assert list(file.sizes.values()) == [5, 64, 64, 1]  # 2 numbers, 2 of a place, 1 of a day
    assert resolve_loss(file.loss).name == "mse"
    assert (file.training.epochs, file.training.updates) == (200, None)
    assert file.training.early_stop is not None
    assert file.batch_size == 81  # a tenth is held out, and there are no 1000
    trainer, losses = trained(file, 4)
    assert losses[-1] < losses[0] / 4
    assert trainer.summary().count("embeddings.") >= 2


def test_classes_by_name(rides: Path) -> None:
    file = loaded(rides, '[data]\nname = "rows.csv"\ntargets = ["place"]\n' + SMALL)
    assert file.loss == "cross_entropy"
    assert file.schema.classes == ("a.b", "c", "d, e")
    assert list(file.sizes.values()) == [4, 6, 3]
    _, losses = trained(file, 3)
    assert losses[-1] < losses[0]


def test_a_table_of_categories_alone(rides: Path) -> None:
    text = '[data]\nname = "rows.csv"\ntargets = ["day"]\ninputs = ["place"]\n'
    trainer, _ = trained(loaded(rides, text + SMALL), 1)
    x = torch.zeros(3, 0), torch.tensor([[0], [1], [2]])
    torch.testing.assert_close(trainer.predict(x), trainer.model(*x))
    trainer.report(rides / "pages")
    assert "what follows does not read it" in (rides / "pages" / "00-x.html").read_text()


def test_an_autoencoder_has_a_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(40, 6)))
    file = loaded(tmp_path, '[data]\nname = "rows.npz"\ntarget = "input"\n')
    assert list(file.sizes.values()) == [6, 64, 3, 64, 6]
    assert file.functions["layer2"].is_identity
    assert not file.functions["layer1"].is_identity


def test_nodes_take_their_input_from_the_data(rides: Path) -> None:
    node = '[[network.node]]\nname = "out"\nop = "linear"\ninputs = ["input"]\nsize = 1\n'
    file = loaded(rides, f'[data]\nname = "rows.csv"\ntargets = ["price"]\n{node}')
    assert dict(file.sizes) == {"input": 5, "out": 1}


def test_a_coupled_loss_says_how_many_outputs(rides: Path) -> None:
    loss = '[loss]\nexpression = "(z1 - y1)**2*exp(-z2) + exp(z2) + z2**2"\nnegative_curvature = "clip"\n'
    file = loaded(rides, f'[data]\nname = "rows.csv"\ntargets = ["price"]\n{SMALL}{loss}')
    assert list(file.sizes.values()) == [5, 6, 2]
    assert not isinstance(file.build(), TableNetwork) or not file.build().units


# --- Units


def test_the_module_is_what_is_trained(rides: Path) -> None:
    file = loaded(rides, f'[data]\nname = "rows.csv"\ntargets = ["price"]\n{SMALL}')
    trainer, _ = trained(file, 2)
    model, (x, categories) = trainer.model, load_data(file).validation_x
    torch.testing.assert_close(trainer.predict((x, categories)), model(x, categories))
    # The same by hand: scales of the schema, rows of the embeddings, the declared layers.
    tables = [model.get_submodule(f"embeddings.{name}") for name in ("place", "day")]
    parts = [(x - file.schema.input_mean.float()) / file.schema.input_scale.float()]
    parts += [table(categories[:, i]) for i, table in enumerate(tables)]
    hidden = torch.tanh(model.get_submodule("layer1")(torch.cat(parts, dim=1)))
    z = model.get_submodule("layer2")(hidden)
    by_hand = file.schema.output_mean.float() + file.schema.output_scale.float() * z
    torch.testing.assert_close(model(x, categories), by_hand)
    assert trainer.predict((x, categories)).mean() > 1000  # in the file's units


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_standardised_inside_trains_as_outside(rides: Path, loss: str) -> None:
    text = (
        f'[data]\nname = "rows.csv"\ntargets = ["price", "hour"]\ninputs = ["length", "hour2"]\n{SMALL}'
        f'[loss]\nname = "{loss}"\n[training]\ndtype = "float64"\nupdates = 4\n'
    )
    draw = np.random.default_rng(1)
    length, hour = draw.normal(3e4, 1e4, 90), draw.uniform(0, 0.01, 90)
    price = 3 * length + 1e6 * hour + draw.normal(size=90)
    columns = {"length": length, "hour2": hour**2, "price": price, "hour": hour}
    write_csv(rides / "rows.csv", columns)
    file = loaded(rides, text)
    inside, losses = trained(file, 4)
    mean = [*file.schema.input_mean.tolist(), *file.schema.output_mean.tolist()]
    scale = [*file.schema.input_scale.tolist(), *file.schema.output_scale.tolist()]
    plain = {
        name: ((np.asarray(values) - m) / s).tolist()
        for (name, values), m, s in zip(columns.items(), mean, scale, strict=True)
    }
    write_csv(rides / "rows.csv", plain)
    other = loaded(rides, text.replace("[network]", "standardise = false\n[network]"))
    assert type(other.build()) is DeclaredNetwork
    _, outside = trained(other, 4)
    # Four steps multiply the roundings of float64, and of the numbers written into the file.
    assert losses == pytest.approx(outside, rel=1e-9)
    model, x = inside.model, load_data(file).validation_x
    assert isinstance(model, TableNetwork)
    wrapped = Standardised(
        DeclaredNetwork(2, file.nodes, file.functions, file.sizes, 0, file.dtype),
        model.input_mean, model.input_scale, model.output_mean, model.output_scale,
    )  # fmt: skip
    wrapped.module.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(x), wrapped(x))
    assert ", standardises 2 columns, scales 2 outputs back\n" in repr(model)
    assert "  standardises 2 columns\n" in repr(wrapped)


def test_losses_without_units_leave_the_targets_alone(rides: Path) -> None:
    loss = '[loss]\nname = "poisson_nll"\n'
    file = loaded(rides, f'[data]\nname = "rows.csv"\ntargets = ["price"]\n{SMALL}{loss}')
    assert file.loss == "poisson_nll"
    model = file.build()
    assert isinstance(model, TableNetwork)
    assert model.standardises
    assert not model.units


@pytest.mark.parametrize(
    ("loss", "good", "bad"),
    [
        ("bce_with_logits", (0.0, 1.0), (0.0, 1.5)),
        ("poisson_nll", (0.0, 7.0), (-1.0, 7.0)),
        ("soft_margin", (-1.0, 1.0), (0.0, 1.0)),
    ],
)
def test_targets_that_a_loss_is_not_made_for(
    tmp_path: Path, loss: str, good: tuple[float, float], bad: tuple[float, float]
) -> None:
    text = f'[data]\nname = "rows.csv"\ntargets = ["y"]\n{SMALL}[loss]\nname = "{loss}"\n'
    write_csv(tmp_path / "rows.csv", {"a": range(40), "y": good * 20})
    assert len(load_data(loaded(tmp_path, text)).train_y) == 36
    write_csv(tmp_path / "rows.csv", {"a": range(40), "y": bad * 20})
    with pytest.raises(ModelFileError, match=f"got:      numbers from {bad[0]:g} to {bad[1]:g}"):
        load_data(loaded(tmp_path, text))


def test_numbers_that_are_no_classes(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", {"a": range(40), "y": range(40)})
    text = '[data]\nname = "rows.csv"\ntargets = ["y"]\n[loss]\nname = "cross_entropy"\n'
    with pytest.raises(GncompileError, match='no classes, write target = "value"'):
        load_data(loaded(tmp_path, text))


def test_weights_of_samples(rides: Path) -> None:
    text = '[data]\nname = "rows.csv"\ntargets = ["price"]\nweights = "length"\n'
    file = loaded(rides, text + SMALL)
    loss = file.loss
    assert isinstance(loss, SeparableLoss)
    assert loss.weighted
    assert loss.weights is not None  # 1/σ² of the targets
    _, losses = trained(file, 2)
    assert losses[-1] < losses[0]


def test_an_unscaled_table_from_three_lines(tmp_path: Path) -> None:
    """20 columns of scales from 0.1 to 1000, as good as if the file held standardised ones."""
    draw = np.random.default_rng(0)
    scale = np.geomspace(0.1, 1000, 20)
    plain = draw.normal(size=(400, 20))
    y = np.tanh(plain @ draw.normal(size=20) / 4) + 0.1 * plain[:, 0] * plain[:, 1]
    names = [f"c{i}" for i in range(20)]
    found = {}
    for kind, x, targets in (
        ("odd", 100 * scale + plain * scale, 5e4 + 2e3 * y),
        ("plain", plain, (y - y.mean()) / y.std()),
    ):
        write_csv(tmp_path / f"{kind}.csv", {**dict(zip(names, x.T, strict=True)), "t": targets})
        off = "standardise = false\n" if kind == "plain" else ""
        file = loaded(tmp_path, f'[data]\nname = "{kind}.csv"\ntargets = ["t"]\n{off}')
        trainer, _ = trained(file, 15)
        data = load_data(file)
        errors = trainer.predict(data.validation_x) - data.validation_y
        found[kind] = (errors.square().mean().sqrt() / np.std(targets)).item()
    assert found["plain"] < 0.5  # of the standard deviation: something is learnt
    assert found["odd"] < 1.1 * found["plain"]


@pytest.mark.parametrize("kind", ["csv", "npz"])
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_tables_of_scikit_learn(tmp_path: Path, name: str, kind: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    given = getattr(datasets, f"load_{name}")()
    classes = name != "diabetes"
    data, target = given.data[:300], given.target[:300]
    labels = given.target_names[target] if classes else target
    if kind == "csv":
        columns = dict(zip(map(str, given.feature_names), data.T, strict=True))
        write_csv(tmp_path / "rows.csv", {**columns, "species": labels})
        text = '[data]\nname = "rows.csv"\ntargets = ["species"]\n'
    else:
        np.savez(tmp_path / "rows.npz", x=data, y=target)
        text = '[data]\nname = "rows.npz"\nstandardise = true\n'
    text += "[network]\nhidden = [8]\n[loss]\n"
    text += f'name = "{"cross_entropy" if classes else "mse"}"\n[training]\nupdates = 3\n'
    assert len(text.splitlines()) <= 10
    file = loaded(tmp_path, text)
    assert file.schema.target == ("label" if classes else "value")
    outputs = len(given.target_names) if classes else 1
    assert list(file.sizes.values()) == [data.shape[1], 8, outputs]
    _, losses = trained(file, 3)
    assert losses[-1] < 0.8 * losses[0]


# --- Sizes that do not fit


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("layers = [4, 3, 1]", "expected: 5 inputs (4 columns, 2 of them categories, embedded)"),
        (
            "layers = [4, 3, 1]",
            "change the first of layers to 5 in [network], or give hidden = [3]",
        ),
        ("layers = [5, 3, 2]", "of a network with 2 outputs"),
        ("layers = [5, 3, 2]", "the last node, in [network], to 1"),
    ],
)
def test_what_fits_is_said(rides: Path, network: str, expected: str) -> None:
    file = loaded(rides, f'[data]\nname = "rows.csv"\ntargets = ["price"]\n[network]\n{network}\n')
    with pytest.raises(ModelFileError) as caught:
        load_data(file)
    assert expected in str(caught.value)


def test_width_of_an_embedding() -> None:
    assert [embedding_width(levels) for levels in (1, 2, 3, 10, 99, 100, 10_000)] == [
        1, 1, 2, 5, 50, 50, 50,
    ]  # fmt: skip


def test_data_are_read_only_where_they_are_asked_for(tmp_path: Path) -> None:
    file = loaded(tmp_path, f'[data]\nname = "absent.csv"\ntargets = ["a"]\n{SMALL}')
    with pytest.raises(GncompileError, match="no data file"):
        _ = file.sizes
    chain = (
        '[data]\nname = "mnist"\n[network]\nlayers = [784, 10]\n[loss]\nname = "cross_entropy"\n'
    )
    file = loaded(tmp_path, chain)
    assert type(file.build()) is DeclaredNetwork
    assert "split" not in vars(file)
