"""A schema: rows to tensors and outputs to columns, the same after its JSON was read back."""

from __future__ import annotations

import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gncompile.data import DataSpec, DataSplit
from gncompile.data.learned_schema import input_columns, learn_schema, moments
from gncompile.data.table import Table
from gncompile.data.table_schema import CategoryColumn, NumericColumn, TableSchema
from gncompile.errors import DataError

nan = np.nan


def table(**columns: object) -> Table:
    """Columns of lists: numbers, or texts with None."""
    arrays = {}
    for name, values in columns.items():
        is_text = any(isinstance(each, str) for each in values)  # type: ignore[attr-defined]
        arrays[name] = np.array(values, object if is_text else np.float64)
    return Table(arrays, "t.csv", 2 + np.arange(len(next(iter(arrays.values())))), "line")


def learned(rows: Table, classification: bool | None = None, **spec: object) -> TableSchema:
    given = DataSpec("t.csv", **spec)  # type: ignore[arg-type]
    return learn_schema(given, rows, input_columns(given, rows), classification)


ROWS = table(
    age=[20, 30, 40, 50],
    town=["Rome", "Oslo", "Rome", "Bern"],
    flat=[7, 7, 7, 7],
    floor=[3, 1, 3, 10],
    income=[1.5, 2.5, 3.5, 4.5],
)


def test_columns_by_name_categories_and_scales() -> None:
    schema = learned(ROWS, targets=("income",), categories=("floor",))
    assert [c.name for c in schema.numeric] == ["age", "flat"]
    assert schema.numeric[0] == NumericColumn(name="age", mean=35.0, scale=float(np.sqrt(125)))
    assert schema.numeric[1] == NumericColumn(name="flat", mean=7.0, scale=1.0)  # constant
    town, floor = schema.categories
    assert (town.levels, floor.levels) == (("Bern", "Oslo", "Rome"), ("1", "3", "10"))
    assert (schema.inputs, schema.outputs, schema.output_names) == (2, 1, ["income"])
    assert schema.target_mean == (3.0,)
    assert schema.target_scale == pytest.approx((np.sqrt(1.25),))
    numbers, codes = schema.encode(ROWS)
    assert torch.equal(
        numbers, torch.tensor([[20.0, 7], [30, 7], [40, 7], [50, 7]], dtype=torch.float64)
    )
    assert codes.tolist() == [[2, 1], [1, 0], [2, 1], [0, 2]]
    assert codes.dtype is torch.int64
    assert schema.targets_of(ROWS).tolist() == [[1.5], [2.5], [3.5], [4.5]]


def test_other_orders_more_columns_and_no_targets() -> None:
    schema = learned(ROWS, targets=("income",), inputs=("town", "age"))
    new = table(extra=["?"], age=[33], town=["Oslo"])
    numbers, codes = schema.encode(new)
    assert (numbers.tolist(), codes.tolist()) == ([[33.0]], [[1]])
    with pytest.raises(DataError, match="no column 'income'"):
        schema.targets_of(new)
    with pytest.raises(DataError, match="no column 'age'. Did you mean 'aged'"):
        schema.encode(table(aged=[1], town=["Oslo"]))
    with pytest.raises(
        DataError, match="what to do: add it, or use the file's columns: aged, town"
    ):
        schema.encode(table(aged=[1], town=["Oslo"]))


def test_unknown_levels_and_missing_cells_have_a_place() -> None:
    schema = learned(ROWS, targets=("income",), inputs=("age", "town"))
    with pytest.raises(
        DataError, match="'Paris' is in no training sample\n.*line 3, column 'town'"
    ):
        schema.encode(table(age=[1, 2], town=["Oslo", "Paris"]))
    rows = table(age=[nan, 2, nan, *[nan] * 5], town=["Oslo", None, "Bern", *["Oslo"] * 5])
    with pytest.raises(DataError, match="8 cells are empty") as caught:
        schema.encode(rows)
    for place in (
        "line 2, column 'age'",
        "line 3, column 'town'",
        "line 4, column 'age'",
        "and 3 more",
    ):
        assert place in str(caught.value)
    assert 'missing = "impute"' in str(caught.value)
    with pytest.raises(DataError, match="'old' is not a number\n.*line 3, column 'age'"):
        schema.encode(table(age=["1", "old"], town=["Oslo", "Bern"]))
    with pytest.raises(DataError, match="infinite values: inf\n.*line 2, column 'age'"):
        schema.encode(table(age=[np.inf], town=["Oslo"]))


def test_imputing_has_the_training_mean_and_a_level_of_its_own() -> None:
    rows = table(age=[20, nan, 40], town=["Rome", None, "Oslo"], y=[1, 2, 3])
    with pytest.raises(DataError, match="2 cells are empty"):
        learned(rows, targets=("y",))
    schema = learned(rows, targets=("y",), missing="impute")
    assert schema.numeric == (NumericColumn(name="age", mean=30.0, scale=10.0, fill=30.0),)
    assert schema.categories == (
        CategoryColumn(name="town", levels=("Oslo", "Rome"), missing=True),
    )
    assert schema.categories[0].size == 3
    numbers, codes = schema.encode(table(age=[nan, 7], town=[None, "Paris"]))
    assert (numbers.tolist(), codes.tolist()) == ([[30.0], [7.0]], [[2], [2]])
    lacking = table(age=[1, 2], town=["Oslo", "Rome"], y=[nan, 2])
    with pytest.raises(DataError, match="a cell is empty\n.*line 2, column 'y'"):
        schema.targets_of(lacking)  # never imputed
    plain = learned(rows, targets=("y",), missing="impute", standardise=False)
    assert plain.numeric == (NumericColumn(name="age", mean=0.0, scale=1.0, fill=30.0),)
    assert plain.target_mean is None


@pytest.mark.parametrize(
    ("labels", "classes", "codes", "plain"),
    [
        (["dog", "cat", "owl", "cat"], ("cat", "dog", "owl"), [1, 0, 2, 0], None),
        ([3, 7, 3, 7], ("3", "7"), [0, 1, 0, 1], [3, 7]),
        ([1, 10, 2, 1], ("1", "2", "10"), [0, 2, 1, 0], [1, 2, 10]),
        ([0, 1, 2, 1], ("0", "1", "2"), [0, 1, 2, 1], [0, 1, 2]),
        (["-1", "1.0", "1", "-1"], ("-1", "1"), [0, 1, 1, 0], [-1, 1]),
    ],
)
def test_labels_of_names_and_numbers(
    labels: list[object], classes: tuple[str, ...], codes: list[int], plain: list[int] | None
) -> None:
    rows = table(x=[1, 2, 3, 4], kind=labels)
    schema = learned(rows, True, targets=("kind",))
    assert schema.classes == classes
    assert (schema.outputs, schema.target_mean) == (len(classes), None)
    y = schema.targets_of(rows)
    assert (y.tolist(), y.dtype) == (codes, torch.int64)
    columns = schema.decode(10 * torch.eye(len(classes), dtype=torch.float64))
    assert columns["kind"].tolist() == (plain or list(classes))
    share = np.exp(10) / (np.exp(10) + len(classes) - 1)
    np.testing.assert_allclose(columns[f"probability_{classes[0]}"][0], share, rtol=1e-14)
    with pytest.raises(
        DataError, match="label '9' is in no training sample\n.*line 2, column 'kind'"
    ):
        schema.targets_of(table(kind=[9]))


def test_one_output_for_two_classes_is_the_log_odds_of_the_second() -> None:
    schema = learned(table(x=[1, 2], kind=["no", "yes"]), targets=("kind",))
    columns = schema.decode(np.array([[-800.0], [np.log(3)]]))
    assert columns["kind"].tolist() == ["no", "yes"]
    np.testing.assert_allclose(columns["probability_yes"], [0, 0.75], rtol=1e-14)
    with pytest.raises(DataError, match="not those of this schema"):
        schema.decode(np.zeros((1, 3)))
    with pytest.raises(DataError, match="sample 1 are not finite"):
        schema.decode(np.array([[0.0, 1.0], [np.nan, 0.0]]))


@pytest.mark.parametrize(
    ("labels", "asked", "spec", "found"),
    [
        ([1, 2, 3], None, {}, "value"),
        ([1, 2, 3], True, {}, "label"),
        ([1, 2, 3], True, {"target": "value"}, "value"),
        ([1, 2, 3], None, {"target": "label"}, "label"),
        ([1, 2, 3], None, {"categories": ("y",)}, "label"),
        (["a", "b", "a"], None, {}, "label"),
        (["a", "b", "a"], False, {}, "holds names, and the loss is one of numbers"),
        (["a", "b", "a"], None, {"target": "value"}, "'a' is not a number"),
        ([2, 2, 2], True, {}, "all samples have the label '2'"),
        ([nan, nan, nan], True, {}, "no sample has a label"),
        ([1, 2.5, 3], True, {}, "one whole number or text a sample, and there is 2.5"),
    ],
)
def test_what_makes_a_classification(
    labels: list[object], asked: bool | None, spec: dict[str, object], found: str
) -> None:
    rows = table(x=[1, 2, 3], y=labels)
    if found in ("value", "label"):
        assert learned(rows, asked, targets=("y",), **spec).target == found
    else:
        with pytest.raises(DataError, match=found):
            learned(rows, asked, targets=("y",), **spec)


def test_soft_targets_stay_numbers() -> None:
    rows = table(x=[1, 2], a=[0.3, 1], b=[0.7, 0])
    assert learned(rows, True, targets=("a", "b")).target == "value"
    with pytest.raises(DataError, match="more than one"):
        learned(rows, True, targets=("a", "b"), target="label")


def test_weights_come_beside_the_targets() -> None:
    rows = table(x=[1, 2, 3], y=[1, 2, 3], w=[0.5, 0, 2])
    schema = learned(rows, targets=("y",), weights="w")
    assert schema.columns == ["x"]
    y, w = schema.targets_of(rows)
    assert (y.tolist(), w.tolist()) == ([[1], [2], [3]], [0.5, 0, 2])
    for bad, text in ((-1, "the weight -1\n.*line 3"), (nan, "is empty\n.*line 3, column 'w'")):
        with pytest.raises(DataError, match=text):
            schema.targets_of(table(x=[1, 2], y=[1, 2], w=[1, bad]))


def test_weights_that_vanish_in_single_precision_are_refused() -> None:
    rows = table(a=[1, 2, 3], w=[0.0, 1e-60, 1e-50], y=[1, 2, 3])
    schema = learned(rows, targets=("y",), weights="w")
    x, y = schema.encode(rows), schema.targets_of(rows)
    split = DataSplit(x, y, x, y, (1,), schema)
    assert split.to(torch.float64).train_y[1].any()
    with pytest.raises(DataError, match="all 0 in torch.float32, the largest being 1e-50"):
        split.to(torch.float32)


def test_an_autoencoder_gives_its_columns_back() -> None:
    rows = table(a=[1, 3], b=[10, 30])
    schema = learned(rows, target="input")
    assert (schema.target_mean, schema.target_scale) == ((2.0, 20.0), (1.0, 10.0))
    columns = schema.decode(schema.targets_of(rows))
    assert {name: each.tolist() for name, each in columns.items()} == {"a": [1, 3], "b": [10, 30]}
    with pytest.raises(DataError, match="'x' is not a number"):
        learned(table(a=[1, 2], b=["x", "y"]), target="input")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, "needs its target columns named"),
        ({"targets": ("incom",)}, "no column 'incom'. Did you mean 'income'"),
        ({"targets": ("income", "income")}, "names a column twice"),
        ({"targets": ("income",), "ignore": ("income",)}, "named in targets and ignore"),
        ({"targets": ("income",), "weights": "income"}, "named in targets and weights"),
        (
            {"targets": ("income",), "inputs": ("age",), "ignore": ("age",)},
            "named in inputs and ignore",
        ),
        ({"targets": ("income",), "inputs": ("age",), "categories": ("floor",)}, "does not go in"),
        ({"targets": ("income",), "validation_column": "part"}, "no column 'part'"),
        ({"target": "input", "categories": ("age",), "inputs": ("age", "flat")}, "no categories"),
        ({"targets": ("age", "town", "flat", "floor", "income")}, "none is left as an input"),
    ],
)
def test_parts_that_columns_cannot_play(spec: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        learned(ROWS, **spec)


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e15])
def test_moments_do_not_cancel(offset: float) -> None:
    values = np.array([0.0, 1, 3, nan, 4, 8])
    mean, scale = moments((offset + values)[:, None], "x", ROWS)
    assert mean[0] == pytest.approx(offset + 3.2, rel=1e-15)
    exact = np.sqrt(np.mean((values[[0, 1, 2, 4, 5]] - 3.2) ** 2))
    assert scale[0] == pytest.approx(exact, rel=1e-14)


def test_moments_of_extreme_columns() -> None:
    values = np.array([[1e308, 0.1, 1e-320, -1.7e308], [-1e308, 0.1, 3e-320, 1.7e308]])
    mean, scale = moments(values, "x", ROWS)
    np.testing.assert_array_equal(mean, [0, 0.1, 2e-320, 0])
    np.testing.assert_allclose(scale, [1e308, 1, 1e-320, 1.7e308], rtol=1e-3)
    with pytest.raises(DataError, match="'x' holds no numbers"):
        moments(np.full((3, 1), nan), "x", ROWS)


def test_a_column_that_single_precision_cannot_tell_apart() -> None:
    rows = table(time=[1.7e9, 1.7e9 + 1, 1.7e9 + 2], same=[1e9] * 3, y=[1, 2, 3])
    schema = learned(rows, targets=("y",))
    x, y = schema.encode(rows), schema.targets_of(rows)
    split = DataSplit(x, y, x, y, (2,), schema)
    assert split.to(torch.float64).train_x is not None
    with pytest.raises(DataError, match="between 1700000000 and 1700000002 apart\n.*column 'time'"):
        split.to(torch.float32)


# --- A record that is kept

names = st.text(string.printable + "äß€猫", min_size=1, max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False)


@st.composite
def schemas(draw: st.DrawFn) -> TableSchema:
    """Schemas of tables and of archives, with all that these may hold."""
    archive, target = draw(st.booleans()), draw(st.sampled_from(["input", "label", "value"]))
    found = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    size = draw(st.integers(1, 4))
    many = st.tuples(*[finite] * size), st.tuples(*[positive] * size)
    if archive:
        fill = draw(st.none() | many[0])
        numeric = [
            NumericColumn(name="x", mean=draw(many[0]), scale=draw(many[1]), fill=fill, size=size)
        ]
    else:
        fills = st.none() | finite
        numeric = [
            NumericColumn(name=n, mean=draw(finite), scale=draw(positive), fill=draw(fills))
            for n in found[1:]
        ]
    categories = []
    if not archive and target != "input":
        levels = tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
        categories = [CategoryColumn(name=found[0], levels=levels, missing=draw(st.booleans()))]
    classes = None
    outputs = {"input": sum(c.size for c in numeric), "value": 1}.get(target, 0)
    if target == "label":
        classes = tuple(draw(st.lists(names, min_size=2, max_size=4, unique=True)))
        outputs = len(classes)
    scaled = target != "label" and draw(st.booleans())
    return TableSchema(
        target=target,
        numeric=tuple(numeric),
        categories=tuple(categories),
        targets=() if target == "input" else ("y",),
        classes=classes,
        target_mean=draw(st.tuples(*[finite] * outputs)) if scaled else None,
        target_scale=draw(st.tuples(*[positive] * outputs)) if scaled else None,
        outputs=outputs,
        weights=draw(st.none() | names),
        standardise=scaled,
        archive=archive,
    )


@settings(max_examples=60, deadline=None)
@given(schemas())
def test_a_schema_is_the_same_after_its_json(schema: TableSchema) -> None:
    text = schema.model_dump_json()
    again = TableSchema.model_validate_json(text)
    assert again == schema
    assert again.model_dump_json() == text
    assert torch.equal(again.input_mean, schema.input_mean)
    assert len(again.output_scale) == again.outputs


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": 5},
        {"archive": True, "numeric": ({"name": "a"}, {"name": "b"})},
        {"classes": ("a", "b")},
        {"target_mean": (1.0, 2.0)},
        {"numeric": ()},
        {"unknown": 1},
        {"numeric": ({"name": "a", "scale": 0.0},)},
        {"numeric": ({"name": "a", "mean": float("nan")},)},
        {"numeric": ({"name": "a"}, {"name": "a"})},
        {"numeric": ({"name": "a", "mean": (1.0, 2.0)},)},
        {"categories": ({"name": "c", "levels": ("u", "u")},)},
        {"targets": ("y", "y"), "outputs": 2},
        {"target": "label", "classes": ("u", "u"), "outputs": 2},
        {"target": "label", "classes": ("u", "v"), "outputs": 2, "targets": ()},
    ],
)
def test_a_schema_of_a_stranger_is_checked(change: dict[str, object]) -> None:
    good = {"target": "value", "numeric": ({"name": "a"},), "targets": ("y",), "outputs": 1}
    TableSchema.model_validate(good)
    with pytest.raises(ValidationError):
        TableSchema.model_validate(good | change)
