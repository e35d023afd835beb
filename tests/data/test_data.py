"""Data sets, their failures, minibatches that can be continued, files and switches."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gncompile.base import config
from gncompile.base.files import atomic_path, atomic_write
from gncompile.data import Batches, DataSpec, load, mnist
from gncompile.data.curves import curves
from gncompile.errors import CheckpointError, DataError, GncompileError

# --- CURVES


def test_curves_are_grey_images_that_depend_on_the_seed_only() -> None:
    images = curves(50, seed=3)
    assert images.shape == (50, 784)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    np.testing.assert_array_equal(images, curves(50, seed=3))
    np.testing.assert_array_equal(images[:7], curves(7, seed=3))
    assert not np.array_equal(images, curves(50, seed=4))
    assert not np.array_equal(images, curves(50, seed=3, split="validation"))


def test_curves_stay_the_same_between_machines() -> None:
    levels = np.rint(255 * curves(20, seed=0)).astype(np.uint8)
    assert hashlib.sha256(levels.tobytes()).hexdigest() == (
        "2a797f527ae40ca092766f72322ee4282702a478339a5f1541e7e223de380d19"
    )


def test_a_chunk_border_does_not_show() -> None:
    np.testing.assert_array_equal(curves(1003)[990:], curves(2000)[990:1003])


def test_each_curve_is_one_stroke_inside_the_image() -> None:
    images = curves(300).reshape(-1, 28, 28)
    border = np.ones((28, 28), dtype=bool)
    border[1:-1, 1:-1] = False
    assert not images[:, border].any()
    assert images.max(axis=(1, 2)).min() > 0.9
    inked = (images > 0.4).sum(axis=(1, 2))
    assert inked.min() > 5
    assert inked.max() < 150
    columns = (images > 0.4).any(axis=1)
    for row in columns:  # no gap in the stroke
        first, last = np.flatnonzero(row)[[0, -1]]
        assert row[first : last + 1].all()


def test_curves_split() -> None:
    split = load(DataSpec("curves", train=30, validation=10))
    assert split.train_x.shape == (30, 784)
    assert split.train_y is split.train_x
    assert split.validation_x.shape == (10, 784)
    assert split.shape == (28, 28)
    wide = split.to(torch.float64)
    assert wide.train_x.dtype is torch.float64
    assert wide.train_y is wide.train_x


def test_curves_have_no_labels() -> None:
    with pytest.raises(DataError, match="CURVES has no labels") as caught:
        load(DataSpec("curves", target="label"))
    assert 'target = "input"' in str(caught.value)


# --- MNIST


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small IDX files under MNIST's names, and checksums that fit them."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    sums = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays = {
            f"{part}-images-idx3-ubyte": random.integers(0, 256, (count, 28, 28), np.uint8),
            f"{part}-labels-idx1-ubyte": random.integers(0, 10, count, np.uint8),
        }
        for name, array in arrays.items():
            sums[name] = hashlib.sha256(idx(array)).hexdigest()
            packed = part == "train"  # plain and gzip files mix freely
            content = gzip.compress(idx(array)) if packed else idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(content)
    monkeypatch.setattr(mnist, "SHA256", sums)
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))  # nothing listens there
    return folder


def test_mnist_from_idx_and_gz_files(small_mnist: Path, tmp_path: Path) -> None:
    with config.using(data=small_mnist.parent, cache=tmp_path / "cache"):
        labelled = load(DataSpec("mnist"))
        autoencoder = load(DataSpec("mnist", target="input", train=7))
    assert labelled.train_x.shape == (12, 784)
    assert labelled.train_x.dtype is torch.float32
    assert labelled.train_x.max() <= 1
    assert labelled.train_y.dtype is torch.int64
    assert labelled.validation_y.shape == (5,)
    assert autoencoder.train_x.shape == (7, 784)
    assert autoencoder.train_y is autoencoder.train_x
    raw = gzip.decompress((small_mnist / "train-images-idx3-ubyte.gz").read_bytes())
    expected = np.frombuffer(raw[16 : 16 + 784], np.uint8) / np.float32(255)
    np.testing.assert_array_equal(labelled.train_x[0].numpy(), expected)


def test_mnist_folder_may_hold_the_files_itself(small_mnist: Path, tmp_path: Path) -> None:
    with config.using(data=small_mnist, cache=tmp_path / "cache"):
        assert load(DataSpec("mnist")).train_x.shape == (12, 784)


def test_missing_mnist_says_where_it_looked(small_mnist: Path, tmp_path: Path) -> None:
    empty, cache = tmp_path / "empty", tmp_path / "cache"
    with config.using(data=empty, cache=cache), pytest.raises(DataError) as caught:
        load(DataSpec("mnist"))
    text = str(caught.value)
    assert "train-images-idx3-ubyte" in text
    assert "could not be downloaded" in text
    for place in (empty, empty / "mnist", cache / "mnist"):
        assert str(place) in text
    assert "127.0.0.1" in text
    assert "set GNCOMPILE_DATA" in text


def test_changed_mnist_file_is_refused(small_mnist: Path, tmp_path: Path) -> None:
    path = small_mnist / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with config.using(data=small_mnist), pytest.raises(DataError, match="SHA-256") as caught:
        load(DataSpec("mnist"))
    assert str(path) in str(caught.value)


def test_damaged_gz_is_refused(small_mnist: Path) -> None:
    path = small_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with config.using(data=small_mnist), pytest.raises(DataError, match=r"damaged \.gz"):
        load(DataSpec("mnist"))


def test_download_fills_the_cache(
    small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in small_mnist.iterdir():  # serve packed files from a folder
        if path.suffix != ".gz":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(mnist, "MIRRORS", ("file:///nowhere/", small_mnist.as_uri() + "/"))
    cache = tmp_path / "cache"
    with config.using(data=None, cache=cache):
        assert load(DataSpec("mnist")).train_x.shape == (12, 784)
        monkeypatch.setattr(mnist, "MIRRORS", ())
        assert load(DataSpec("mnist")).train_x.shape == (12, 784)
    assert len(list((cache / "mnist").iterdir())) == 4


def test_no_more_is_unpacked_than_mnist_has(small_mnist: Path, tmp_path: Path) -> None:
    path = small_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    with config.using(data=small_mnist), pytest.raises(DataError, match="more than 47040016 bytes"):
        load(DataSpec("mnist"))


@pytest.fixture
def mirror() -> Iterator[str]:
    """The address of a server that answers in the ways its paths name."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            if "cut" in self.path:
                self.send_header("Content-Length", "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                if "endless" in self.path:
                    for _ in range(2000):
                        self.wfile.write(bytes(1 << 16))
                while "drip" in self.path:
                    self.wfile.write(b"\x1f")
                    ended.wait(0.02)
                    if ended.is_set():
                        return
                self.wfile.write(b"<html>")

    ended = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["page", "cut", "drip", "endless"])
def test_a_bad_mirror_leads_to_the_next(
    small_mnist: Path, tmp_path: Path, mirror: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in small_mnist.iterdir():
        if path.suffix != ".gz":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(mnist, "MIRRORS", (f"{mirror}/{kind}/", small_mnist.as_uri() + "/"))
    monkeypatch.setattr(mnist, "GRACE", 0.3)
    with config.using(data=None, cache=tmp_path / "cache"):
        assert load(DataSpec("mnist")).train_x.shape == (12, 784)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\1\0", "not an IDX file"),
        (b"\0\0\x08\1\0\0\0\2\0", "cut short"),
    ],
)
def test_wrong_idx_files(content: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        mnist.parse_idx(content)


@pytest.mark.skipif("GNCOMPILE_DATA" not in os.environ, reason="GNCOMPILE_DATA is not set")
def test_the_real_mnist() -> None:
    images, labels = mnist.read("t10k")
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]


# --- Files


def table(rows: int = 20) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(rows, 3)).astype(np.float32), np.arange(rows, dtype=np.int64) % 4


def test_npz_and_safetensors_hold_out_a_tenth(tmp_path: Path) -> None:
    x, y = table()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    save_file({"x": x, "y": y}, tmp_path / "set.safetensors")
    a = load(DataSpec(str(tmp_path / "set.npz"), target="label", seed=5))
    b = load(DataSpec(str(tmp_path / "set.safetensors"), target="label", seed=5))
    assert a.train_x.shape == (18, 3)
    assert a.validation_x.shape == (2, 3)
    assert torch.equal(a.train_x, b.train_x)
    assert torch.equal(a.train_y, b.train_y)
    both = torch.cat([a.train_x, a.validation_x])
    assert torch.equal(both.sort(0).values, torch.from_numpy(x).sort(0).values)
    for sample, label in zip(a.train_x, a.train_y, strict=True):  # rows stay together
        assert y[(x == sample.numpy()).all(1)] == label


def test_own_validation_arrays_and_values(tmp_path: Path) -> None:
    x, y = table()
    np.savez(tmp_path / "s.npz", x=x, y=y, validation_x=x[:4], validation_y=y[:4])
    split = load(DataSpec(str(tmp_path / "s.npz")))
    np.testing.assert_array_equal(split.train_x.numpy(), x)
    assert split.validation_y.tolist() == [[0.0], [1.0], [2.0], [3.0]]


def test_csv_with_named_targets(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,price,b\n1,10,2\n3,30,4\n5,50,6\n")
    split = load(DataSpec(str(tmp_path / "t.csv"), targets=("price",), validation=1))
    rows = torch.cat([split.train_x, split.validation_x])
    prices = torch.cat([split.train_y, split.validation_y])
    assert torch.equal(prices[:, 0], rows[:, 0] * 10)
    assert torch.equal(rows[:, 1], rows[:, 0] + 1)


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load(DataSpec(str(tmp_path / "p.npz"), target="input"))


@pytest.mark.parametrize(
    ("arrays", "spec", "text"),
    [
        ({"x": np.ones((5, 2))}, {}, "no array 'y'"),
        ({"y": np.ones(5)}, {}, "no array 'x'"),
        ({"x": np.ones((5, 2)), "y": np.ones(4)}, {}, "x has 5 samples, y has 4"),
        ({"x": np.full((5, 2), np.nan)}, {"target": "input"}, "NaN or infinite"),
        ({"x": np.ones((5, 2)), "y": np.full(5, 0.5)}, {"target": "label"}, "whole number"),
        ({"x": np.ones((5, 2))}, {"target": "input", "train": 9}, "9 samples asked for"),
        ({"x": np.ones((5, 2))}, {"target": "input", "validation": 5}, "cannot hold 5 of 5"),
        ({"x": np.ones((5, 2))}, {"target": "input", "shape": (3,)}, "shape does not fit"),
        (
            {"x": np.ones((5, 2)), "validation_x": np.ones((5, 3))},
            {"target": "input"},
            "differ in size",
        ),
    ],
)
def test_malformed_files(
    tmp_path: Path, arrays: dict[str, np.ndarray], spec: dict[str, object], text: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=text):
        load(DataSpec(str(tmp_path / "bad.npz"), **spec))  # type: ignore[arg-type]


def test_missing_and_unknown_data() -> None:
    with pytest.raises(DataError, match="no data file 'absent.npz'"):
        load(DataSpec("absent.npz"))
    with pytest.raises(DataError, match="Did you mean 'curves'"):
        load(DataSpec("curvs"))


def test_damaged_files(tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors", "a.csv"):
        (tmp_path / name).write_bytes(b"x\nno number\n")
        with pytest.raises(DataError, match="cannot read the data file"):
            load(DataSpec(str(tmp_path / name), target="input"))


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i4", "i8", "u2", "?", ">f8"])
def test_numbers_are_those_in_the_file(tmp_path: Path, dtype: str) -> None:
    x = (np.arange(40).reshape(20, 2) * 7 % 5).astype(dtype)
    if x.dtype.itemsize == 8:
        x += 2**24  # where float32 holds every other integer only
    np.savez(tmp_path / "a.npz", x=x, y=x[:, 0], validation_x=x, validation_y=x[:, 0])
    split = load(DataSpec(str(tmp_path / "a.npz"))).to(torch.float64)
    np.testing.assert_array_equal(split.train_x.numpy(), x.astype(np.float64))
    np.testing.assert_array_equal(split.validation_y[:, 0].numpy(), x[:, 0].astype(np.float64))


def test_a_tables_numbers_are_read_as_float64(tmp_path: Path) -> None:
    rows = [(1.7e9 + i, i, 1 / (3 + i)) for i in range(30)]
    lines = ["time,label,y", *(",".join(map(repr, row)) for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    split = load(DataSpec(str(tmp_path / "t.csv"), targets=("y",))).to(torch.float64)
    both = torch.cat([split.train_x, split.validation_x])
    assert sorted(both[:, 0].tolist()) == [row[0] for row in rows]
    both = torch.cat([split.train_y, split.validation_y])
    assert sorted(both[:, 0].tolist()) == sorted(row[2] for row in rows)


def test_images_of_a_file_are_divided_in_full_precision(tmp_path: Path) -> None:
    x = np.arange(256, dtype=np.uint8).reshape(64, 2, 2)
    np.savez(tmp_path / "a.npz", x=x, validation_x=x)
    split = load(DataSpec(str(tmp_path / "a.npz"), target="input"))
    np.testing.assert_array_equal(split.to(torch.float64).train_x.numpy().ravel(), x.ravel() / 255)
    expected = x.ravel() / np.float32(255)
    np.testing.assert_array_equal(split.to(torch.float32).train_x.numpy().ravel(), expected)


def test_only_the_named_arrays_are_read(tmp_path: Path) -> None:
    x, y = table()
    np.savez(tmp_path / "a.npz", x=x, y=y, junk=np.array([{}], dtype=object))
    save_file({"x": x, "y": y, "junk": np.ones(3, np.int8)}, tmp_path / "a.safetensors")
    for suffix in ("npz", "safetensors"):
        assert load(DataSpec(str(tmp_path / f"a.{suffix}"), target="label")).train_x.shape == (
            18,
            3,
        )


def packed(path: Path, header: dict[str, object], content: bytes) -> None:
    """An archive whose x is what ``header`` declares, then ``content``."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as x,
    ):
        np.lib.format.write_array_header_1_0(x, header)
        x.write(content)


def test_declared_sizes_are_looked_at_first(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
    packed(tmp_path / "a.npz", header, b"\0" * 1000)
    with pytest.raises(DataError, match="not as long as it declares"):
        load(DataSpec(str(tmp_path / "a.npz"), target="input"))


def test_arrays_are_held_against_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gncompile.base import memory_budget

    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20,)}
    packed(tmp_path / "a.npz", header, bytes(8 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 100_000)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda device=None: 1 << 20)
    for spec in (
        DataSpec(str(tmp_path / "a.npz"), target="input"),
        DataSpec(str(tmp_path / "a.csv"), target="input"),
        DataSpec("curves", train=10**6),
    ):
        with pytest.raises(DataError, match="are free"):
            load(spec)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones((5, 2), complex), "holds no real numbers but complex128"),
        (np.array(["a"] * 5), "holds no real numbers but <U1"),
        (np.zeros(5, [("a", "f4")]), "holds no real numbers"),
        (np.array(["2020-01-01"] * 5, "M8[D]"), "holds no real numbers"),
        (np.float64(3.0), "is a single number"),
        (np.ones((0, 2)), r"of shape \[0, 2\] is empty"),
        (np.ones((5, 0)), r"of shape \[5, 0\] is empty"),
        (np.full(5, 2**60), "integers beyond"),
        (np.array([[1.0, 2.0], [3.0, np.inf]]), "infinite values: inf\n.*row 1, column 1 of x"),
    ],
)
def test_arrays_that_are_no_samples(tmp_path: Path, array: np.ndarray, text: str) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(DataError, match=text):
        load(DataSpec(str(tmp_path / "a.npz"), target="input"))


@pytest.mark.parametrize("name", ["x", "y", "validation_x", "validation_y"])
def test_no_array_may_hold_nan(tmp_path: Path, name: str) -> None:
    x, y = (np.ones((6, 2)), np.ones(6))
    arrays = {"x": x, "y": y, "validation_x": x.copy(), "validation_y": y.copy()}
    arrays[name][3] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"row 3, column 0 of {name}"):
        load(DataSpec(str(tmp_path / "a.npz")))


def test_a_number_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((5, 1), 1e300))
    split = load(DataSpec(str(tmp_path / "a.npz"), target="input"))
    assert split.to(torch.float64).train_x[0] == 1e300
    with pytest.raises(DataError, match="do not fit into torch.float32"):
        split.to(torch.float32)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a,y,y\n1,2,3\n4,5,6\n", "columns 2 and 3 are both called 'y'"),
        (b"a,y\n1,2\n3,\n", "a cell is empty\n.*line 3, column 'y'"),
        (b"a,y\n1,2\n3,b c\n", "'b c' is not a number\n.*line 3, column 'y'"),
        (b"a,y\n1,2\n3,4,5\n", "not as long as the header\n.*2 cells\n.*3"),
        (b"a,y\n1,2\n3,nan\n", "a cell is empty\n.*line 3, column 'y'"),
        (b"a,y\n1_0,2\n", "'_' is in no number"),
        (b"a,y\n", "is empty"),
        (b"", "it is empty"),
        (b",y\n1,2\n3,4\n", "column 1 has no name"),
        (b"1.5,2\n1,2\n3,4\n", "the first line holds numbers"),
        (b"a,y\n\xe4,2\n", "not text in UTF-8"),
        ("a,y\n1,2\n".encode("utf-16"), "not text in UTF-8"),
        (b'a,y\n"1,2\n', "cannot read the data file"),
        (b"y\n1\n2\n", "none is left as an input"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=text):
        load(DataSpec(str(tmp_path / "t.csv"), targets=("y",)))


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    plain = b"a,y\n1,2\n3,4\n5,6\n"
    for name, content in {
        "plain": plain,
        "mark": b"\xef\xbb\xbf" + plain,
        "windows": plain.replace(b"\n", b"\r\n"),
        "quoted": b'"a","y"\n"1","2"\n3,4\n\n 5 ,"6"',
    }.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(content)
        split = load(DataSpec(str(path), targets=("y",)))
        rows = torch.cat([split.train_x, split.validation_x])
        assert sorted(rows.flatten().tolist()) == [1, 3, 5], name


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"train": -5}, "train = -5 is no whole number from 1"),
        ({"validation": -1}, "validation = -1 is no whole number from 0"),
        ({"validation": 0}, "validation = 0 is none, and curves has validation data of its own"),
        ({"seed": -1}, "seed = -1 is no whole number from 0"),
        ({"seed": 10**40}, "is no whole number from 0"),
        ({"train": True}, "train = True is no whole number"),
        ({"shape": (-7, 4)}, "shape = -7 is no whole number from 1"),
    ],
)
def test_numbers_that_no_data_set_has(spec: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(DataSpec("curves", **spec))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\0.csv", "a" * 5000 + ".csv", "~nosuchuser/a.csv"])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(DataError, match="is no path"):
        load(DataSpec(name))


def test_csv_column_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,price\n1,2\n3,4\n")
    with pytest.raises(DataError, match="Did you mean 'price'"):
        load(DataSpec(str(tmp_path / "t.csv"), targets=("prices",)))
    with pytest.raises(DataError, match="target columns named"):
        load(DataSpec(str(tmp_path / "t.csv")))


# --- Minibatches


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return x, 10 * x


def test_an_epoch_visits_every_sample_once() -> None:
    batches = Batches(*numbered(10), batch_size=4, seed=1)
    sizes, seen = [], []
    for x, y in batches:
        assert torch.equal(y, 10 * x)
        sizes.append(len(x))
        seen += x[:, 0].tolist()
    assert sizes == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(seen) == list(range(10))
    assert [len(x) for x, _ in Batches(*numbered(10), 4, drop_last=True)] == [4, 4]


def test_order_depends_on_seed_and_epoch_only() -> None:
    def epoch(batches: Batches) -> list[float]:
        return torch.cat([x for x, _ in batches])[:, 0].tolist()

    small, large = Batches(*numbered(12), 3, seed=2), Batches(*numbered(12), 12, seed=2)
    first, second = epoch(small), epoch(small)
    assert first != second
    assert [first, second] == [epoch(large), epoch(large)]
    assert epoch(Batches(*numbered(12), 3, seed=3)) != first


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5])
def test_resuming_continues_with_the_same_batches(taken: int) -> None:
    batches = Batches(*numbered(11), batch_size=4, seed=7)
    endless = batches.forever()
    for _ in range(taken):
        next(endless)
    state = batches.state_dict()
    expected = [batches.next()[0] for _ in range(7)]
    again = Batches(*numbered(11), batch_size=4, seed=0)
    again.load_state_dict(state)
    for x in expected:
        assert torch.equal(again.next()[0], x)


def test_iteration_finishes_a_resumed_epoch() -> None:
    batches = Batches(*numbered(10), batch_size=4)
    batches.next()
    assert len(list(batches)) == 2
    assert len(list(batches)) == 3
    assert batches.epoch == 2


def test_a_shared_target_stays_shared() -> None:
    x, _ = numbered(6)
    a, b = Batches(x, x, 2).next()
    assert a is b


def test_wrong_batches() -> None:
    x, y = numbered(6)
    with pytest.raises(DataError, match="6 samples, but 5 targets"):
        Batches(x, y[:5], 2)
    with pytest.raises(DataError, match="no batches of 0"):
        Batches(x, y, 0)
    with pytest.raises(DataError, match="no batches of 7"):
        Batches(x, y, 7, drop_last=True)
    with pytest.raises(DataError, match="negative"):
        Batches(x, y, 2, seed=-1)
    batches = Batches(x, y, 2)
    with pytest.raises(CheckpointError, match="another batch_size"):
        batches.load_state_dict(Batches(x, y, 3).state_dict())
    with pytest.raises(CheckpointError, match="not the state"):
        batches.load_state_dict({"epoch": 1})
    assert batches.state_dict() == Batches(x, y, 2).state_dict()


# --- Files and switches


def test_atomic_write_replaces_or_leaves_alone(tmp_path: Path) -> None:
    path = atomic_write(tmp_path / "new" / "a.txt", "one")
    atomic_write(path, b"two")
    with pytest.raises(RuntimeError, match="killed"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_switches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GNCOMPILE_CHECK", "on")
    monkeypatch.setenv("GNCOMPILE_DUMP", str(tmp_path))
    assert config.flag("check")
    assert config.folder("dump") == tmp_path
    with config.using(check=False, dump=None):
        assert not config.flag("check")
        assert config.folder("dump") is None
        with config.using(dump="inner"):
            assert config.folder("dump") == Path("inner")
            assert not config.flag("check")
    assert config.flag("check")
    for switch in config.SWITCHES.values():
        assert switch.variable in config.describe()
    with config.using(cache=None):
        assert config.folder("cache") is not None


def test_wrong_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GncompileError, match="Did you mean 'dump'"), config.using(dumps="x"):
        pass
    with pytest.raises(GncompileError, match="wrong value"), config.using(check="maybe"):
        pass
    monkeypatch.setenv("GNCOMPILE_CHEK", "1")
    with pytest.raises(GncompileError, match="Did you mean 'GNCOMPILE_CHECK'"):
        config.flag("check")


def test_numbers_beyond_float64_are_infinite(tmp_path: Path) -> None:
    largest = np.finfo(np.longdouble).max
    if largest <= np.finfo(np.float64).max:
        pytest.skip("long doubles are no longer here")
    np.savez(tmp_path / "wide.npz", x=np.full((10, 2), largest), y=np.ones(10))
    with pytest.raises(DataError, match="NaN or infinite"):
        load(DataSpec(str(tmp_path / "wide.npz")))
