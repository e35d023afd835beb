"""Files of tables as columns: what is a number, what a name, what nothing, and what is refused, where."""

from __future__ import annotations

import datetime
import decimal
import random
from pathlib import Path

import numpy as np
import pytest

from gncompile.data.table import Table
from gncompile.data.tables import read_table
from gncompile.errors import DataError

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

KINDS = ("parquet", "arrow", "feather")


def csv(folder: Path, text: str, *, texts: tuple[str, ...] = ()) -> Table:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return read_table(folder / "t.csv", texts)


def arrow(folder: Path, columns: dict[str, object], kind: str = "parquet", chunk: int = 2) -> Path:
    """A file of these columns, in one of the formats."""
    table = pa.table(columns)
    path = folder / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=chunk)
    elif kind == "feather":
        feather.write_feather(table, path, compression="zstd", chunksize=chunk)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
    return path


def test_numbers_texts_flags_and_what_is_missing(tmp_path: Path) -> None:
    found = csv(
        tmp_path, "a, b ,c,d\n1,cat, TRUE,1e-3\n,dog,false,NaN\n\n3, cat ,,n/a\nNA,null,true,4\n"
    )
    assert found.names == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found.numbers("a"), [1, np.nan, 3, np.nan])
    assert found.column("b").tolist() == ["cat", "dog", "cat", None]
    np.testing.assert_array_equal(found.numbers("c"), [1, 0, np.nan, 1])
    np.testing.assert_array_equal(found.numbers("d"), [1e-3, np.nan, np.nan, 4])
    assert found.rows.tolist() == [2, 3, 5, 6]  # lines of the file: one is blank
    assert found.take(np.array([2, 0])).rows.tolist() == [5, 2]


def test_a_cell_of_several_lines_is_found_again(tmp_path: Path) -> None:
    found = csv(tmp_path, 'a,b\n"two\nlines",1\nx,2\n')
    assert found.column("a").tolist() == ["two\nlines", "x"]
    assert found.rows.tolist() == [3, 4]


def test_numbers_asked_for_as_texts_stay_as_they_are_spelled(tmp_path: Path) -> None:
    found = csv(tmp_path, "zip,y\n00501,1.0\n10001,2\n", texts=("zip",))
    assert found.column("zip").tolist() == ["00501", "10001"]
    assert found.levels("y")[0] == ["1", "2"]


@pytest.mark.parametrize(
    ("column", "text", "line"),
    [
        (["1", "2", "x"], "'x' is not a number", 4),  # a slip among numbers
        (["a", "2", "x"], "'a' is not a number", 2),
        (["1_000", "2_000", "3"], "'_' is in no number", 2),
        (["12,5", "3,4", "1,0"], "'12,5' is not a number", 2),
        (["2020-01-02", "", "2021-03-04"], "'2020-01-02' is not a number", 2),
        (["45%", "$1,200", "3"], "'45%' is not a number", 2),
        (["2020-01-02T03:04:05Z", "", ""], "'2020-01-02T03:04:05Z' is not a number", 2),
    ],
)
def test_what_only_looks_like_a_number_is_refused_when_it_is_used(
    tmp_path: Path, column: list[str], text: str, line: int
) -> None:
    rows = "".join(f'"{cell}",{i}\n' for i, cell in enumerate(column))
    found = csv(tmp_path, "odd,y\n" + rows)
    assert found.numbers("y").tolist() == [0, 1, 2]
    with pytest.raises(
        DataError, match=f"{text.replace('$', '.')}\n.*line {line}, column 'odd'"
    ) as caught:
        found.column("odd")
    assert "categories" in str(caught.value)
    named = csv(tmp_path, "odd,y\n" + rows, texts=("odd",))
    assert named.column("odd").tolist() == [cell or None for cell in column]


def test_names_with_digits_and_signs_are_names(tmp_path: Path) -> None:
    found = csv(tmp_path, "stage,rhesus,plan,size\nT1,+,a-1,9" + "9" * 100_000 + "x\nT2,-,b-2,y\n")
    assert [found.is_text(name) for name in found.names] == [True] * 4


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a;b\n1;2\n", "divided by ';'"),
        ("a\tb\n1\t2\n", "divided by '.t'"),
        ("a,a\n1,2\n", "columns 1 and 2 are both called 'a'"),
        ("a,b\n", "it has no rows"),
        ("a,b\n1\n", "not as long as the header"),
    ],
)
def test_no_table(tmp_path: Path, content: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        csv(tmp_path, content)


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_arrow(tmp_path: Path, kind: str) -> None:
    columns = {
        "small": pa.array([1, None, 3, 4, 5], pa.int8()),
        "unsigned": pa.array([1, 2, 3, 4, 2**53], pa.uint64()),
        "half": pa.array(np.array([0.5, 1, 2, 3, 4], np.float16)),
        "single": pa.array([0.1, float("nan"), None, 2.0, 3.0], pa.float32()),
        "money": pa.array([decimal.Decimal("1.25"), None, *map(decimal.Decimal, ("2", "3", "4"))]),
        "flag": pa.array([True, False, None, True, True]),
        "text": pa.array(["cat", " dog", "", None, "cat"]),
        "levels": pa.array(["lo", "hi", "lo", None, "hi"]).dictionary_encode(),
        "codes": pa.array([7, 8, 7, None, 7], pa.int32()).dictionary_encode(),
        "nothing": pa.nulls(5),
    }
    found = read_table(arrow(tmp_path, columns, kind))
    nan = np.nan
    for name, values in {
        "small": [1, nan, 3, 4, 5],
        "unsigned": [1, 2, 3, 4, 2**53],
        "half": [0.5, 1, 2, 3, 4],
        "single": [float(np.float32(0.1)), nan, nan, 2, 3],
        "money": [1.25, nan, 2, 3, 4],
        "flag": [1, 0, nan, 1, 1],
        "nothing": [nan] * 5,
    }.items():
        assert found.numbers(name).dtype == np.float64
        np.testing.assert_array_equal(found.numbers(name), values, err_msg=name)
    assert found.column("text").tolist() == ["cat", "dog", None, None, "cat"]
    assert found.column("levels").tolist() == ["lo", "hi", "lo", None, "hi"]
    if kind != "parquet":  # which keeps dictionaries of texts only
        assert found.column("codes").tolist() == ["7", "8", "7", None, "7"]
    assert found.rows.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_other_types_are_refused_when_they_are_used(tmp_path: Path, kind: str) -> None:
    columns = {
        "x": [1.0, 2.0],
        "day": pa.array([datetime.date(2020, 1, 1)] * 2),
        "moment": pa.array([datetime.datetime(2020, 1, 1)] * 2),
        "clock": pa.array([datetime.time(1)] * 2),
        "list": pa.array([[1.0], [2.0]]),
        "record": pa.array([{"a": 1}] * 2),
        "bytes": pa.array([b"a", b"b"]),
        "large": pa.array([2**60, 1]),
        "dates": pa.array(["2020-01-01", "2020-01-02"]),
    }
    found = read_table(arrow(tmp_path, columns, kind))
    assert found.numbers("x").tolist() == [1, 2]
    for name, text in {
        "day": "dates or times",
        "moment": "dates or times",
        "clock": "dates or times",
        "list": "holds list",
        "record": "holds struct",
        "bytes": "holds binary",
        "large": "integers beyond",
        "dates": "'2020-01-01' is not a number",
    }.items():
        with pytest.raises(DataError, match=rf"{text}(.|\n)*column '{name}'") as caught:
            found.column(name)
        assert "ignore" in str(caught.value)
    assert read_table(arrow(tmp_path, columns, kind), ("dates",)).is_text("dates")


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    found = read_table(arrow(tmp_path, {"a": [1.0, 2.0], "__index_level_0__": [0, 1]}))
    assert found.names == ["a"]


def test_a_text_that_many_rows_share_is_kept_once(tmp_path: Path) -> None:
    path = arrow(tmp_path, {"long": ["x" * 10_000] * 500}, chunk=500)
    assert path.stat().st_size < 50_000
    found = read_table(path).column("long")
    assert len({id(cell) for cell in found}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_files_of_no_columns_rows_or_sense(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="both called 'a'"):
        table = pa.table([pa.array([1.0]), pa.array([2.0])], ["a", "a"])
        path = tmp_path / f"d.{kind}"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        if kind == "parquet":
            parquet.write_table(table, path)
        read_table(path)
    with pytest.raises(DataError, match="it has no rows"):
        read_table(arrow(tmp_path, {"a": pa.array([], pa.float64())}, kind))
    (tmp_path / f"bad.{kind}").write_bytes(b"ARROW1 no table")
    with pytest.raises(DataError, match="cannot read the data file"):
        read_table(tmp_path / f"bad.{kind}")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_what_packed_buffers_declare_is_known_before_they_are_unpacked(
    tmp_path: Path, compression: str
) -> None:
    from gncompile.data.arrow_tables import unpacked_size

    texts = pa.array(["long " * 1000, "x", "x"] * 400)
    table = pa.table({"n": np.zeros(1200), "t": texts, "d": texts.dictionary_encode()})
    path = tmp_path / "t.feather"
    feather.write_feather(table, path, compression=compression, chunksize=500)
    with pa.OSFile(str(path)) as source:
        source.seek(8)
        found = sum(map(unpacked_size, pa.ipc.MessageReader.open_stream(source)))
    # Of the dictionary's copies in the chunks one is written; padding and lengths differ a little.
    assert found == pytest.approx(table.nbytes, rel=0.05)
    assert read_table(path).column("t")[1] == "x"


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrow(tmp_path, {"a": [1.0]})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="not installed") as caught:
        read_table(path)
    assert "gncompile[tables]" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_held_against_the_memory(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gncompile.base import memory_budget

    path = arrow(tmp_path, {"a": np.zeros(300_000)}, kind, chunk=100_000)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda device=None: 1 << 20)
    with pytest.raises(DataError, match="are free"):
        read_table(path)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_of_arrow_raise_our_error(tmp_path: Path, kind: str) -> None:
    columns = {"a": [1.5, 2.5, 3.5], "b": ["cat", "dog", None]}
    content = arrow(tmp_path, columns, kind).read_bytes()
    for seed in range(60):
        draw = random.Random(seed)
        data = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        path = tmp_path / f"m.{kind}"
        path.write_bytes(bytes(data))
        try:
            found = read_table(path)
        except DataError:
            continue
        for name in found.names:
            try:
                assert len(found.column(name)) == len(found), seed
            except DataError:
                continue
