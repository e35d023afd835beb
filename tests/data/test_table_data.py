"""``load`` of a user's table or archive: divided, encoded, and the same whatever file the numbers are in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gncompile.data import Batches, DataSpec, DataSplit, load
from gncompile.data.data_split import read_rows
from gncompile.data.table_schema import TableSchema
from gncompile.errors import DataError
from gncompile.losses import weighted


def write(path: Path, columns: dict[str, list[object] | np.ndarray]) -> str:
    """A table of these columns, as the suffix says; None and NaN are empty cells."""
    if path.suffix == ".csv":
        lines = [",".join(columns)]
        for row in zip(*columns.values(), strict=True):
            cells = (
                "" if c is None or c != c else c if isinstance(c, str) else repr(float(c))
                for c in row
            )
            lines.append(",".join(cells))
        path.write_text("\n".join(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import feather, parquet

        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        parquet.write_table(table, path) if path.suffix == ".parquet" else feather.write_feather(
            table, path
        )
    return str(path)


def same(a: DataSplit, b: DataSplit) -> bool:
    """Whether all tensors agree to the bit, and means and scales too."""
    parts = ("train_x", "train_y", "validation_x", "validation_y")
    tensors = all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts)
    assert a.schema is not None
    assert b.schema is not None
    moments = all(
        torch.equal(getattr(a.schema, part), getattr(b.schema, part))
        for part in ("input_mean", "input_scale", "output_mean", "output_scale")
    )
    return tensors and moments and a.schema.classes == b.schema.classes


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_tables_of_scikit_learn_are_the_same_from_every_file(tmp_path: Path, name: str) -> None:
    sets = pytest.importorskip("sklearn.datasets")
    found = getattr(sets, f"load_{name}")()
    labels = name != "diabetes"
    x, y = found.data.astype(np.float64), found.target
    features = [f.replace(" ", "_") for f in found.feature_names]
    columns: dict[str, list[object] | np.ndarray] = {f: x[:, i] for i, f in enumerate(features)}
    columns |= {"target": y}
    tables = [
        load(DataSpec(write(tmp_path / f"t.{kind}", columns), targets=("target",)), labels)
        for kind in ("csv", "parquet", "feather")
    ]
    for shape in ((len(y),), (len(y), 1)):
        np.savez(tmp_path / "t.npz", x=x, y=y.reshape(shape))
        tables.append(load(DataSpec(str(tmp_path / "t.npz"), standardise=True), labels))
    assert all(same(tables[0], other) for other in tables[1:])
    split = tables[0]
    assert split.schema is not None
    held = round(len(y) / 10)
    assert (len(split.train_x), len(split.validation_x)) == (len(y) - held, held)
    trained = split.train_x.numpy()
    np.testing.assert_allclose(split.schema.input_mean, trained.mean(0), rtol=1e-12, atol=1e-16)
    scale = trained.std(0)
    np.testing.assert_allclose(split.schema.input_scale, np.where(scale > 0, scale, 1), rtol=1e-12)
    if labels:
        assert split.schema.classes == tuple(map(str, range(len(np.unique(y)))))
        assert split.train_y.dtype is torch.int64
        names = [str(found.target_names[i]) for i in y]
        if name == "breast_cancer":  # malignant 0, benign 1: the other way round by name
            named = load(
                DataSpec(
                    write(tmp_path / "n.csv", columns | {"target": names}), targets=("target",)
                )
            )
            assert named.schema is not None
            assert named.schema.classes == ("benign", "malignant")
            assert torch.equal(named.train_y, 1 - split.train_y)
    else:
        np.testing.assert_allclose(split.schema.output_mean, split.train_y.mean(0), rtol=1e-12)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "arrow"])
def test_validation_rows_do_not_move_means(tmp_path: Path, suffix: str) -> None:
    columns = {
        "x": [1.0, 2.0, 3.0, 1e6],
        "y": [1.0, 2.0, 3.0, 1e6],
        "part": ["train", "train", "train", "validation"],
    }
    path = write(tmp_path / f"t.{suffix}", columns)
    split = load(DataSpec(path, targets=("y",), validation_column="part"))
    assert split.schema is not None
    assert split.schema.columns == ["x"]
    assert (split.schema.input_mean.tolist(), split.schema.target_mean) == ([2.0], (2.0,))
    assert split.validation_x.tolist() == [[1e6]]
    other = write(tmp_path / f"other.{suffix}", {"y": [5.0, 6.0], "x": [7.0, 8.0]})
    split = load(DataSpec(path, targets=("y",), ignore=("part",), validation_file=other))
    assert (len(split.train_x), split.validation_x.tolist()) == (4, [[7.0], [8.0]])


@pytest.mark.parametrize(
    ("marks", "rows"),
    [
        ([0, 1, 0, 1], [1, 3]),
        (["False", "True", "false", "FALSE"], [1]),
        (["train", "valid", "Training", "val"], [1, 3]),
        ([0, 2, 0, 1], "'2' does not say"),
        (["train", "test", "train", "train"], "'test' does not say.*\n.*line 3, column 'part'"),
        (["train", None, "validation", "train"], "an empty cell does not say.*\n.*line 3"),
        (["train"] * 4, "no rows are marked"),
        ([1] * 4, "all rows are marked"),
    ],
)
def test_columns_that_mark_validation_rows(
    tmp_path: Path, marks: list[object], rows: list[int] | str
) -> None:
    path = write(tmp_path / "t.csv", {"x": [0, 1, 2, 3], "y": [5, 6, 7, 8], "part": marks})
    spec = DataSpec(path, targets=("y",), validation_column="part")
    if isinstance(rows, str):
        with pytest.raises(DataError, match=rows):
            load(spec)
    else:
        assert load(spec).validation_x[:, 0].tolist() == rows


def test_a_share_and_a_number_of_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"x": range(40), "y": range(40)})  # type: ignore[dict-item]
    for given, held in ((0.2, 8), (0.001, 1), (8, 8), (None, 4)):
        split = load(DataSpec(path, targets=("y",), validation=given))
        assert (len(split.train_x), len(split.validation_x)) == (40 - held, held)
    shared = load(DataSpec(path, targets=("y",), validation=0.2))
    assert same(shared, load(DataSpec(path, targets=("y",), validation=8)))
    assert len(load(DataSpec(path, targets=("y",), validation=0.5, train=3)).train_x) == 3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"validation": 0.0}, "validation = 0.0 is no whole number"),
        ({"validation": 1.0}, "validation = 1.0 is no whole number"),
        ({"validation": float("nan")}, "validation = nan is no whole number"),
        ({"validation": 0.9999}, "cannot hold 4 of 4"),
        ({"validation_column": "x", "validation_file": "b.csv"}, "by a file and by a column"),
        ({"validation_file": "absent.csv"}, "no data file 'absent.csv'"),
        ({"validation_file": "t.txt"}, "no kind of file"),
        ({"validation_file": "t\0.csv"}, "is no path\n?.*"),
        ({"train": 9}, "9 samples asked for, but there are 3"),
        ({"shape": (2, 2)}, "shape does not fit"),
    ],
)
def test_divisions_that_cannot_be_made(tmp_path: Path, spec: dict[str, object], text: str) -> None:
    path = write(tmp_path / "t.csv", {"x": [0, 1, 2, 3], "y": [5, 6, 7, 8]})
    with pytest.raises(DataError, match=text):
        load(DataSpec(path, targets=("y",), **spec))  # type: ignore[arg-type]


def test_a_label_or_category_only_in_the_validation_rows_is_named(tmp_path: Path) -> None:
    columns: dict[str, list[object] | np.ndarray] = {
        "town": ["Rome", "Oslo", "Rome", "Oslo", "Bern"],
        "kind": ["cat", "dog", "cat", "dog", "cat"],
        "other": ["cat", "dog", "cat", "dog", "owl"],
        "part": [0, 0, 0, 0, 1],
    }
    path = write(tmp_path / "t.csv", columns)
    spec = DataSpec(path, targets=("kind",), validation_column="part", ignore=("other",))
    with pytest.raises(DataError, match="category 'Bern' is in no .*\n.*line 6, column 'town'"):
        load(spec)
    spec = DataSpec(
        path,
        targets=("other",),
        validation_column="part",
        ignore=("kind", "town"),
        inputs=("town",),
    )
    with pytest.raises(DataError, match="named in inputs and ignore"):
        load(spec)
    spec = DataSpec(
        path, targets=("other",), validation_column="part", inputs=("town",), missing="impute"
    )
    with pytest.raises(DataError, match="label 'owl' is in no .*\n.*line 6, column 'other'"):
        load(spec)


def test_all_missing_cells_are_told_in_the_files_order(tmp_path: Path) -> None:
    columns: dict[str, list[object] | np.ndarray] = {
        "x": [None if i in (3, 5, 17) else i for i in range(20)],
        "town": [None if i in (4, 5) else "ab"[i % 2] for i in range(20)],
        "y": np.arange(20.0),
    }
    for suffix, first in (("csv", "line 5"), ("parquet", "row 4")):
        path = write(tmp_path / f"t.{suffix}", columns)
        with pytest.raises(
            DataError, match=f"5 cells are empty\n  where: *{first}, column 'x'"
        ) as caught:
            load(DataSpec(path, targets=("y",)))
        places = [
            int(word) for word in str(caught.value).replace(",", " ").split() if word.isdigit()
        ]
        assert places[1:] == [int(first.split()[1]) + i for i in (0, 1, 2, 2, 14)]
        split = load(DataSpec(path, targets=("y",), missing="impute"))
        assert split.schema is not None
        assert split.schema.categories[0].missing
        numbers = torch.cat([split.train_x[0], split.validation_x[0]])
        assert (numbers == split.schema.numeric[0].fill).sum() == 3


def test_a_table_of_categories_alone(tmp_path: Path) -> None:
    columns: dict[str, list[object] | np.ndarray] = {"town": ["a", "b"] * 10, "y": np.arange(20.0)}
    split = load(DataSpec(write(tmp_path / "t.csv", columns), targets=("y",)))
    assert split.train_x[0].shape == (18, 0)
    assert len(split.to(torch.float32).digest()) == 64


# --- Archives


def test_labels_of_archives(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    numbers, names = np.arange(12) % 3, np.array(["owl", "cat", "dog"] * 4)
    np.savez(tmp_path / "n.npz", x=x, y=numbers)
    np.savez(tmp_path / "t.npz", x=x, y=names)
    save_file({"x": x, "y": numbers.astype(np.int32) + 5}, tmp_path / "s.safetensors")
    plain = load(DataSpec(str(tmp_path / "n.npz")))
    assert plain.train_y.dtype is torch.float32 or plain.train_y.dtype is torch.float64
    by_loss = load(DataSpec(str(tmp_path / "n.npz")), True)
    by_name = load(DataSpec(str(tmp_path / "t.npz")))
    shifted = load(DataSpec(str(tmp_path / "s.safetensors")), True)
    for split, classes in (
        (by_loss, ("0", "1", "2")),
        (by_name, ("cat", "dog", "owl")),
        (shifted, ("5", "6", "7")),
    ):
        assert split.schema is not None
        assert split.schema.classes == classes
        assert split.train_y.dtype is torch.int64
        assert not split.schema.standardise
        assert split.train_x.dtype is torch.float32
    assert torch.equal(by_loss.train_y, shifted.train_y)
    assert torch.equal((by_name.train_y + 1) % 3, (by_loss.train_y + 0) % 3)
    with pytest.raises(DataError, match="holds names, and the loss"):
        load(DataSpec(str(tmp_path / "t.npz")), False)


def test_names_in_archives_and_keys_that_say_nothing_of_them(tmp_path: Path) -> None:
    x = np.ones((6, 2))
    np.savez(tmp_path / "x.npz", x=np.array([["a"] * 2] * 6), y=np.ones(6))
    with pytest.raises(DataError, match="holds no real numbers but <U1"):
        load(DataSpec(str(tmp_path / "x.npz")))
    np.savez(tmp_path / "b.npz", x=x, y=np.array([b"a"] * 6))
    with pytest.raises(DataError, match="holds no real numbers"):
        load(DataSpec(str(tmp_path / "b.npz")))
    np.savez(tmp_path / "e.npz", x=x, y=np.array(["a", "b", "", "a", "b", "a"]))
    with pytest.raises(DataError, match="row 2, column 0 of y"):
        load(DataSpec(str(tmp_path / "e.npz")))
    np.savez(tmp_path / "half.npz", x=x, y=np.array(["a", "\ud800"] * 3))
    with pytest.raises(DataError, match="cannot read the data file"):
        load(DataSpec(str(tmp_path / "half.npz")))
    for key in ("targets", "inputs", "ignore", "categories"):
        with pytest.raises(DataError, match="arrays have no named columns"):
            load(DataSpec(str(tmp_path / "e.npz"), **{key: ("x",)}))  # type: ignore[arg-type]
    for name, spec in (("curves", {"weights": "w"}), ("mnist", {"missing": "impute"})):
        with pytest.raises(DataError, match="is for files"):
            load(DataSpec(name, **spec))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is a share"):
        load(DataSpec("curves", validation=0.5))


def test_weights_marks_and_imputing_in_archives(tmp_path: Path) -> None:
    x = np.array([[1.0, 10], [3, np.nan], [np.nan, 30], [5, 5]])
    np.savez(
        tmp_path / "a.npz", x=x, y=np.arange(4.0), w=np.arange(4.0), part=np.array([0, 0, 0, 1])
    )
    spec = DataSpec(
        str(tmp_path / "a.npz"),
        missing="impute",
        weights="w",
        validation_column="part",
        standardise=True,
    )
    split = load(spec)
    assert split.train_x.tolist() == [[1, 10], [3, 20], [2, 30]]
    y, w = split.train_y
    assert (y[:, 0].tolist(), w.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert split.schema is not None
    assert split.schema.numeric[0].fill == (2.0, 20.0)
    assert split.schema.input_scale.tolist() == [1, 10]


def test_images_are_standardised_as_they_go_in(tmp_path: Path) -> None:
    x = np.array([[0, 255], [255, 255], [0, 255], [255, 255]], np.uint8)
    np.savez(tmp_path / "a.npz", x=x, validation_x=x)
    split = load(DataSpec(str(tmp_path / "a.npz"), target="input", standardise=True))
    assert split.schema is not None
    assert split.schema.input_mean.tolist() == [0.5, 1.0]
    assert split.schema.input_scale.tolist() == [0.5, 1.0]
    assert (split.schema.target_mean, split.schema.target_scale) == ((0.5, 1.0), (0.5, 1.0))


# --- What is kept


def kept(split: DataSplit) -> TableSchema:
    assert split.schema is not None
    return TableSchema.model_validate(json.loads(split.schema.model_dump_json()), strict=False)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_encoded_as_in_training(tmp_path: Path, suffix: str) -> None:
    columns: dict[str, list[object] | np.ndarray] = {
        "age": [20.0, 30.0, 40.0, 50.0] * 5,
        "town": ["Rome", "Oslo"] * 10,
        "kind": ["cat", "dog", "cat", "dog"] * 5,
    }
    split = load(DataSpec(write(tmp_path / f"t.{suffix}", columns), targets=("kind",)))
    schema = kept(split)
    shuffled = {"more": columns["age"], "town": columns["town"], "age": columns["age"]}
    rows = read_rows(write(tmp_path / f"p.{suffix}", shuffled), schema)
    numbers, codes = schema.encode(rows)
    assert numbers[:, 0].tolist() == columns["age"]
    assert codes[:, 0].tolist() == [1, 0] * 10
    columns["day"] = ["2020-01-01"] * 20  # of no use, and no hindrance
    rows = read_rows(write(tmp_path / f"e.{suffix}", columns), schema, targets=True)
    assert schema.targets_of(rows).tolist() == [0, 1] * 10


def test_rows_of_archives_are_matched_by_size(tmp_path: Path) -> None:
    images = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    np.savez(tmp_path / "t.npz", x=images, y=np.arange(10) % 2)
    schema = kept(load(DataSpec(str(tmp_path / "t.npz")), True))
    np.savez(tmp_path / "p.npz", x=images[:3].reshape(3, 6))
    assert torch.equal(
        schema.encode(read_rows(tmp_path / "p.npz", schema)),
        torch.from_numpy(images[:3].reshape(3, 6) / 255),
    )
    with pytest.raises(DataError, match="no array 'y'"):
        read_rows(tmp_path / "p.npz", schema, targets=True)
    np.savez(tmp_path / "wrong.npz", x=images.reshape(20, 3))
    with pytest.raises(DataError, match="differ in size.*\n.*6 features\n.*3 features"):
        schema.encode(read_rows(tmp_path / "wrong.npz", schema))


def test_the_digest_sees_names_scales_weights_and_categories(tmp_path: Path) -> None:
    columns: dict[str, list[object] | np.ndarray] = {
        "x": [1.0, 2.0, 3.0, 4.0],
        "town": ["a", "b", "a", "b"],
        "w": [1.0, 2.0, 1.0, 2.0],
        "kind": ["cat", "dog", "cat", "dog"],
        "part": [0, 0, 0, 1],
    }
    path = write(tmp_path / "t.csv", columns)
    base = DataSpec(path, targets=("kind",), validation_column="part", ignore=("w",))
    found = {
        load(base).digest(),
        load(DataSpec(path, targets=("kind",), validation_column="part", weights="w")).digest(),
        load(DataSpec(**{**vars(base), "standardise": False})).digest(),
        load(DataSpec(**{**vars(base), "missing": "impute"})).digest(),
    }
    for change in (
        {"kind": ["cat", "ewe"] * 2},
        {"town": ["b", "a", "b", "a"]},
        {"town": ["a", "c"] * 2},
    ):
        found.add(
            load(
                DataSpec(**{**vars(base), "name": write(tmp_path / "u.csv", columns | change)})
            ).digest()
        )
    assert len(found) == 7
    assert load(base).digest() == load(base).digest()


def test_batches_of_several_inputs_and_weighted_targets(tmp_path: Path) -> None:
    columns: dict[str, list[object] | np.ndarray] = {
        "x": np.arange(20.0),
        "town": ["a", "b"] * 10,
        "w": np.arange(20.0),
        "y": np.arange(20.0),
    }
    split = load(DataSpec(write(tmp_path / "t.csv", columns), targets=("y",), weights="w"))
    split = split.to(torch.float32)
    batches = Batches(split.train_x, split.train_y, 4, seed=1)
    assert len(batches) == 5
    for (numbers, codes), (y, w) in batches:
        assert torch.equal(numbers, y)
        assert torch.equal(w, y[:, 0])
        assert torch.equal(codes, (numbers % 2).long())
        loss = weighted("mse").bound((1,))
        loss.check_target((len(y), 1), torch.float32, (y, w))
    soft = write(tmp_path / "s.csv", {"x": [1, 2, 3], "a": [0.2, 0, 1], "b": [0.8, 1, 0]})
    assert load(DataSpec(soft, targets=("a", "b")), True).train_y.shape == (2, 2)
    zero = write(tmp_path / "z.csv", columns | {"w": np.zeros(20)})
    with pytest.raises(DataError, match="all samples have the weight 0"):
        load(DataSpec(zero, targets=("y",), weights="w"))
    with pytest.raises(DataError, match="18 samples, but 3 samples"):
        Batches((split.train_x[0], split.train_x[1][:3]), split.train_y, 4)
