"""``gncompile init`` and ``check``: files for any data, and all mistakes before a run."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from payloads import nothing_executed, payloads

import gncompile
from gncompile.app.check_command import check_file
from gncompile.app.init_command import init_file
from gncompile.errors import DataError, GncompileError, ModelFileError
from gncompile.frontends.model_data import load_data
from gncompile.frontends.model_file import load_model_file

ROWS = 60


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return path


def table() -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    return {
        "id": [f"n{i}" for i in range(ROWS)],
        "day": [f"2026-01-{1 + i % 28:02}" for i in range(ROWS)],
        "colour": [["red", "green"][i % 2] for i in range(ROWS)],
        "zone": [i % 3 for i in range(ROWS)],
        "size": ["" if i == 4 else f"{1e4 * draw.random():.3f}" for i in range(ROWS)],
        "price": [f"{1000 * draw.random():.2f}" for _ in range(ROWS)],
    }


# --- init


def test_a_table(tmp_path: Path) -> None:
    path = init_file(write_csv(tmp_path / "houses.csv", table()))
    assert path == tmp_path / "houses.toml"
    text = path.read_text()
    data = tomllib.loads(text)["data"]
    assert data["targets"] == ["price"]
    assert data["target"] == "value"
    assert data["ignore"] == ["id", "day"]
    assert data["missing"] == "impute"
    assert '# categories = ["zone"]  # if these numbers are names' in text
    assert '# categories, embedded: "colour"' in text
    assert "1 empty cell in 1 column" in text
    file = load_model_file(path)
    assert load_data(file).train_x[0].shape == (54, 2)
    assert list(file.sizes.values()) == [
        4,
        64,
        64,
        1,
    ]  # 2 numbers; red, green and missing in 2 more


@pytest.mark.parametrize(
    ("columns", "target", "loss"),
    [
        ({"y": [0, 1] * 30, "a": range(ROWS)}, "y", "cross_entropy"),
        ({"a": range(ROWS), "Label": ["cat", "dog", "owl"] * 20, "b": range(ROWS)}, "Label", "cross_entropy"),
        ({"a": range(ROWS), "b": range(ROWS)}, "b", "mse"),
        ({"a": range(ROWS), "b": [0.5, 1.5] * 30}, "b", "mse"),
        ({"a": range(ROWS), "b": [-1, 1] * 30}, "b", "mse"),
    ],
)  # fmt: skip
def test_what_is_predicted(tmp_path: Path, columns: dict[str, Any], target: str, loss: str) -> None:
    sections = tomllib.loads(init_file(write_csv(tmp_path / "t.csv", columns)).read_text())
    assert sections["data"]["targets"] == [target]
    assert sections["loss"]["name"] == loss


def test_arrays(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        "labels": {"x": draw.normal(size=(ROWS, 4)), "y": np.arange(ROWS) % 3},
        "values": {"x": draw.normal(size=(ROWS, 4)), "y": draw.normal(size=(ROWS, 2))},
        "images": {"x": draw.integers(0, 255, (ROWS, 4, 4), dtype=np.uint8)},
    }
    found = {}
    for name, each in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **each)
        file = load_model_file(init_file(tmp_path / f"{name}.npz"))
        load_data(file)
        found[name] = (file.schema.target, file.schema.standardise, list(file.sizes.values()))
    assert found == {
        "labels": ("label", True, [4, 64, 64, 3]),
        "values": ("value", True, [4, 64, 64, 2]),
        "images": ("input", False, [16, 64, 8, 64, 16]),
    }


@pytest.mark.parametrize("classes", [["no", "yes"], [False, True]])
def test_arrays_of_classes(tmp_path: Path, classes: list[Any]) -> None:
    x = np.random.default_rng(0).normal(size=(ROWS, 4))
    np.savez(tmp_path / "t.npz", x=x, y=np.array(classes * (ROWS // 2)))
    file = load_model_file(init_file(tmp_path / "t.npz"))
    assert load_data(file).train_y.dtype is torch.int64
    assert len(file.schema.classes or ()) == 2


def test_arrays_of_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.zeros((ROWS, 2)), Y=np.zeros(ROWS))
    with pytest.raises(DataError, match="no array 'x' with samples, but X, Y"):
        init_file(tmp_path / "t.npz")


def test_why_a_column_is_left_out(tmp_path: Path) -> None:
    columns = {"a": range(ROWS), "b": ["?" if i == 3 else i * 1.5 for i in range(ROWS)]}
    text = init_file(write_csv(tmp_path / "t.csv", columns | {"y": range(ROWS)})).read_text()
    assert tomllib.loads(text)["data"]["ignore"] == ["b"]
    assert "#   '?' is not a number, line 5, column 'b' of" in text


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_arrow(tmp_path: Path, suffix: str) -> None:
    feather = pytest.importorskip("pyarrow.feather")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    columns = pa.table({"a": [1.0, None] * 30, "class": ["x", "y", "z"] * 20})
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        parquet.write_table(columns, path)
    else:
        feather.write_feather(columns, path)
    file = load_model_file(init_file(path))
    assert load_data(file).train_x.shape == (54, 1)
    assert file.schema.classes == ("x", "y", "z")


def test_nothing_is_replaced_nor_named_outside(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", {"a": range(ROWS), "b": range(ROWS)})
    path = init_file(data)
    with pytest.raises(GncompileError, match="exists already"):
        init_file(data)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GncompileError, match="exists already"):
        init_file(data)
    (tmp_path / "sub").mkdir()
    with pytest.raises(GncompileError, match="data outside its folder"):
        init_file(data, tmp_path / "sub" / "t.toml")
    moved = data.rename(tmp_path / "sub" / "t.csv")
    assert load_data(load_model_file(init_file(moved, tmp_path / "up.toml")))


@pytest.mark.parametrize(
    ("columns", "target", "expected"),
    [
        ({"a": range(ROWS)}, None, "1 usable column, and a table needs inputs and a target"),
        ({"a": range(ROWS), "b": range(ROWS)}, "c", "no column 'c'"),
        ({"a": range(ROWS), "b": ["", *range(ROWS - 1)]}, None, "choose another target with --target"),
    ],
)  # fmt: skip
def test_tables_without_a_target(
    tmp_path: Path, columns: dict[str, Any], target: str | None, expected: str
) -> None:
    with pytest.raises(GncompileError, match=expected):
        init_file(write_csv(tmp_path / "t.csv", columns), target=target)
    assert not (tmp_path / "t.toml").exists()


def test_names_are_data(tmp_path: Path) -> None:
    """Names of files and columns come back from the file as they are, and nothing in them is obeyed."""
    marker = tmp_path / "executed"
    odd = [
        '"',
        "a\nb = 1",
        "]\n[training]\nseed = 7",
        "\x7f\x1b[2J",
        "\\u0041",
        "'''",
        "#",
        "ü 猫",
        "a.b",
    ]
    names = [*odd, *payloads(marker)]
    columns: dict[str, Sequence[Any]] = {
        f"{name} {i}": [f"{(i + row) % 7}.5" for row in range(ROWS)] for i, name in enumerate(names)
    }
    columns |= {"]\n'": [f"{row}.25" for row in range(ROWS)]}
    data = write_csv(tmp_path / 't"]\n[x] #.csv', columns)
    with nothing_executed(marker):
        path = init_file(data, tmp_path / "m.toml")
        sections = tomllib.loads(path.read_text())
        assert sections["data"]["name"] == data.name
        assert sections["data"]["targets"] == ["]\n'"]
        assert sections["training"]["seed"] == 0
        assert set(sections) == {"model", "data", "network", "loss", "training"}
        file = load_model_file(path)
        load_data(file)
        assert [c.name for c in file.schema.numeric] == [each.strip() for each in columns][:-1]


# --- check


def test_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = init_file(write_csv(tmp_path / "houses.csv", table()))
    assert run("check", path) == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for expected in (
        "houses.csv",
        "54 to train, 6 to validate",
        "2 numbers, colour (3 levels), standardised",
        "1 number: price",
        "4 → 64 → 64 → 1",
        "4,551",  # 5 * 64 + 65 * 64 + 65 of the layers, and 3 * 2 of an embedding
        "mse",
        "of 54 samples, 200 epochs, or 20 validations without a better validation_loss",
        "KiB, and",
    ):
        assert expected in words  # broken at the width of the terminal
    assert all(len(line) <= 110 for line in shown.splitlines())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["houses.csv", "houses.toml"]


def test_all_mistakes_of_several_kinds(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"a": range(ROWS), "b": range(ROWS)})
    path = tmp_path / "t.toml"
    path.write_text(
        '[data]\nname = "t.csv"\ntargets = ["b"]\n[network]\nlayers = [3, 1]\n'
        "[training]\nupdates = 2\n[training.options]\ndamping = -1\n"
    )
    with pytest.raises(ModelFileError) as caught:
        check_file(path)
    assert "option damping = -1" in str(caught.value)
    assert "expected: 1 inputs (1 columns)" in str(caught.value)
    assert "change the first of layers to 1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[network]\nlayers = [1, 5, 2]\n", "of a network with 2 outputs"),
        ('[training]\nmethod = "kfro"\n', "Did you mean 'kfra'"),
        ('[training]\nmethod = {layer9 = "kfra"}\n', "layer9"),
        ('[training]\noutput_bias = "mean"\n[loss]\nname = "huber"\n', "is not known for the loss"),
        ('[training]\ntune = "absent.json"\n', "absent.json"),
        ("[network]\nhidden = [200000, 200000]\n", "its states need"),
        ('[loss]\nname = "mze"\n', "Did you mean 'mse'"),
        ('[training]\nmetrics = ["accuracy"]\n', "is for one cross-entropy or binary loss"),
        ('loss = "mse"\n', "loss is a section of its own: write [loss]"),
        ('[training]\nseed = "1"\n', "expected: a whole number"),
        ("[training]\nearly_stop = true\n", "expected: a number of validations, a table, or false"),
        ("[[training]]\nepochs = 3\n", "expected: a section, [training]"),
    ],
)
def test_mistakes_are_found_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    write_csv(tmp_path / "t.csv", {"a": range(ROWS), "b": range(ROWS)})
    path = tmp_path / "t.toml"
    path.write_text(f'[data]\nname = "t.csv"\ntargets = ["b"]\n{text}')
    assert run("check", path) == 1
    assert expected in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.csv", "t.toml"]


def test_all_rows_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "t.toml", tmp_path / "run"
    write_csv(tmp_path / "t.csv", {"a": range(ROWS), "c": ["x", "y", "z"] * 20})
    head = '[data]\nname = "t.csv"\ntargets = ["c"]\nvalidation = 0\n[training]\n'
    path.write_text(head + "metrics = ['accuracy']\nearly_stop = 3\nupdates = 2\n")
    with pytest.raises(ModelFileError, match="early_stop, metrics of .training. need a validation"):
        load_model_file(path)
    path.write_text(head)
    assert run("train", path, "--out", out, "--epochs", 2, "--quiet") == 0
    report = (out / "report.md").read_text()
    assert "60 samples, none for validation" in report
    assert "validation samples" not in report
    assert run("evaluate", out) == 1
    assert "the run has no validation data" in capsys.readouterr().err
    assert run("evaluate", out, tmp_path / "t.csv") == 0
    assert run("compare", path, "--updates", 1, "--out", tmp_path / "c") == 1
    assert "a comparison needs validation data" in capsys.readouterr().err


def test_the_usual_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = np.random.default_rng(0).random(ROWS)
    write_csv(tmp_path / "t.csv", {"a": numbers, "b": 100 * numbers, "c": ["x", "y"] * 30})
    for target, found in (("b", {"r2", "rmse"}), ("c", {"accuracy"})):
        path, out = tmp_path / f"{target}.toml", tmp_path / target
        path.write_text(f'[data]\nname = "t.csv"\ntargets = ["{target}"]\n')
        assert run("train", path, "--out", out, "--updates", 1, "--quiet") == 0
        assert gncompile.load(out).evaluate().keys() == {"loss", *found}
        capsys.readouterr()
        assert run("evaluate", out) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("loss, of standardised targets  ") == (target == "b")
        assert run("evaluate", out, "--metrics", "", "--json") == 0
        assert list(json.loads(capsys.readouterr().out)) == ["loss"]


@pytest.mark.parametrize("target", ["yes", 3.0, 3.5])
def test_targets_that_are_all_the_same(tmp_path: Path, target: Any) -> None:
    data = write_csv(tmp_path / "t.csv", {"a": range(ROWS), "b": [target] * ROWS})
    np.savez(tmp_path / "t.npz", x=np.ones((ROWS, 2)), y=np.full(ROWS, target))
    for path in (data, tmp_path / "t.npz"):
        with pytest.raises(DataError, match=f"all targets are '{target}', which leaves nothing"):
            init_file(path)
    assert not (tmp_path / "t.toml").exists()


def test_as_many_are_held_out_whether_or_not_it_is_said(tmp_path: Path) -> None:
    rows = 57  # a tenth of which is no whole number
    write_csv(tmp_path / "t.csv", {"a": range(rows), "b": [i / 7 for i in range(rows)]})
    said = init_file(tmp_path / "t.csv")
    unsaid = tmp_path / "unsaid.toml"
    unsaid.write_text(re.sub("(?m)^validation = .*\n", "", said.read_text()))
    sizes = {len(load_data(load_model_file(path)).validation_x) for path in (said, unsaid)}
    assert sizes == {6}
