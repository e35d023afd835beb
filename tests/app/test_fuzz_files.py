"""Mutated files of strangers: our errors only, nothing executed, nothing written elsewhere.

Every case is drawn from a seed, which a failure names.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from payloads import nothing_executed, payloads
from safetensors.numpy import save

from gncompile.app.comparison.store import Point, Run, file_of, read, write
from gncompile.app.loaded_run import load as load_run
from gncompile.app.run_folder import RunFolder
from gncompile.app.started import Started
from gncompile.base import config
from gncompile.data import DataSpec, load, mnist
from gncompile.data.table_schema import NumericColumn, TableSchema
from gncompile.errors import GncompileError
from gncompile.frontends.model_file import load_model_file
from gncompile.tuning.device import this_device, versions
from gncompile.tuning.store import Entry, Store, StoredTrial, import_file

MODEL = """
[model]
name = "fuzzed"
[data]
name = "t.csv"
targets = ["y"]
train = 20
seed = 3
[network]
input_size = 2
[[network.node]]
name = "hidden"
op = "linear"
inputs = ["input"]
size = 3
transfer = "bent"
[[network.node]]
name = "gate"
op = "pointwise"
inputs = ["hidden", "hidden"]
expression = "hidden * sigmoid(hidden)"
[[network.node]]
name = "part"
op = "slice"
inputs = ["gate"]
start = 0
stop = 2
[[network.node]]
name = "result"
op = "linear"
inputs = ["part"]
size = 1
[loss]
expression = "(z - y)**2"
targets = [-5.0, 5.0]
[training]
batch_size = 4
updates = 2
[training.options]
l2 = 1e-4
[transfer.bent]
expression = "k*tanh(x)"
parameters = {k = 1.5}
doc = "bent"
"""
MARKER = "executed%"
"""Of a payload; no slug holds a per cent sign, so a file named after one does not look like it."""
NUMBERS = ("0", "-1", "1e999", "nan", "10" + "0" * 30, "9223372036854775808", "-0.0", "true", "[]")
BYTES = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"[" * 2000,
    b"'''",
    b"\\",
    b"9" * 5000,
    b"=",
)


@contextmanager
def contained(folder: Path, seed: object) -> Iterator[None]:
    """Only our errors leave the block, no payload runs, and nothing is written beside ``folder``."""
    marker = folder.parent / MARKER
    before = set(folder.parent.iterdir())
    with nothing_executed(marker):
        try:
            yield
        except GncompileError as error:
            text = str(error)
            assert text, seed
            assert len(text) < 20_000, seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert set(folder.parent.iterdir()) == before, seed


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes with a few of them changed, cut out, doubled, or put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        i, j = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        match draw.randrange(5):
            case 0:
                data[i:i] = draw.choice(BYTES)
            case 1:
                del data[i : min(j, i + 40)]
            case 2:
                data[i:i] = data[i : min(j, i + 200)]
            case 3 if i < len(data):
                data[i] = draw.randrange(256)
            case _:
                del data[i:]
        if not data:
            break
    return bytes(data)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder alone in another one, which nothing may be written to."""
    (tmp_path / "around" / "home").mkdir(parents=True)
    return tmp_path / "around" / "home"


# --- Model files


def loads(path: Path) -> None:
    """Read a model file, and what else of it is understood before anything is compiled."""
    file = load_model_file(path)
    _ = file.loss
    if all(size < 1000 for size in file.sizes.values()):
        file.build()


@pytest.mark.parametrize("seed", range(4))
def test_model_files_of_other_bytes(home: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = home / "m.toml"
    for number in range(100):
        path.write_bytes(mutated(MODEL.encode(), draw))
        with contained(home, (seed, number)):
            loads(path)


@pytest.mark.parametrize("seed", range(2))
def test_model_files_of_other_values(home: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = MODEL.splitlines()
    path = home / "m.toml"
    for number in range(40):
        changed = list(lines)
        i = draw.choice([i for i, line in enumerate(lines) if " = " in line])
        key = lines[i].split(" = ", 1)[0]
        value = draw.choice(
            (*NUMBERS, '""', '"../../x"', f'"{"a" * 3000}"', '"\\u0000"', '"x.json"')
        )
        match draw.randrange(4):
            case 0:
                changed[i] = f"{key}{draw.choice('x_9')} = {value}"
            case 1:
                del changed[i]
            case _:
                changed[i] = f"{key} = {value}"
        path.write_text("\n".join(changed))
        with contained(home, (seed, number)):
            loads(path)


def test_payloads_in_every_text_of_a_model_file(home: Path) -> None:
    path = home / "m.toml"
    lines = MODEL.splitlines()
    texts = [i for i, line in enumerate(lines) if '"' in line]
    for payload in payloads(home.parent / MARKER):
        for i in texts:
            changed = list(lines)
            start, _, rest = lines[i].partition('"')
            changed[i] = start + json.dumps(payload) + rest.partition('"')[2]
            path.write_text("\n".join(changed))
            with contained(home, (payload, i)):
                loads(path)


# --- Data


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 3)
    return stream.getvalue()


def header_of(dtype: str, shape: str) -> bytes:
    """An archive whose ``x`` declares what it likes."""
    stream = io.BytesIO()
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(stream, "w") as made:
        magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        made.writestr("x.npy", magic + text + bytes(64))
    return stream.getvalue()


DATA: dict[str, Callable[[], bytes]] = {
    "npz": archive,
    "safetensors": lambda: save({"x": np.ones((20, 2), "f4"), "y": np.arange(20)}),
    "csv": lambda: b"a,b,y\n" + b"1.5,-2e3,3\n" * 20,
}


@pytest.mark.parametrize("suffix", DATA)
def test_data_files(home: Path, suffix: str) -> None:
    draw, content = random.Random(suffix), DATA[suffix]()
    path = home / f"d.{suffix}"
    targets = ("y",) if suffix == "csv" else ()
    for number in range(150):
        path.write_bytes(mutated(content, draw))
        spec = DataSpec(str(path), targets=targets, target=draw.choice(("value", "label", None)))
        with contained(home, number):
            split = load(spec)
            for tensor in (split.train_x, split.train_y, split.validation_x, split.validation_y):
                assert torch.isfinite(tensor).all()


def test_headers_of_arrays(home: Path) -> None:
    path = home / "d.npz"
    dtypes = ["'<f8'", "'|O'", "'<U9'", "'|V8'", "[('a', '<f4')]", "'<f16'", "'<M8[s]'", "1", "'?'"]
    dtypes += [f"__import__('os').system('touch {home.parent}/{MARKER}')"]
    shapes = [
        "(8,)",
        "(-1,)",
        "(0,)",
        "()",
        "(2**70,)",
        f"({10**18}, 0)",
        f"({10**9}, {10**9})",
        "8",
    ]
    for dtype in dtypes:
        for shape in shapes:
            path.write_bytes(header_of(dtype, shape))
            with contained(home, (dtype, shape)):
                load(DataSpec(str(path), target="input"))


def test_idx_files() -> None:
    draw = random.Random(0)
    content = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(6)
    for number in range(300):
        try:
            mnist.parse_idx(mutated(content, draw))
        except GncompileError:
            continue
        except Exception as error:
            raise AssertionError(f"{number}: {type(error).__name__}: {error}") from error


# --- JSON


def json_mutations(content: object, draw: random.Random, texts: tuple[str, ...]) -> object:
    """A document with one of its values replaced."""
    document = json.loads(json.dumps(content))
    places: list[tuple[dict | list, str | int]] = []

    def walk(node: object) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)  # type: ignore[arg-type]
        for key, value in items:
            places.append((node, key))  # type: ignore[arg-type]
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    node, key = draw.choice(places)
    values = (
        None,
        -1,
        1e400,
        float("nan"),
        10**400 if draw.random() < 0.1 else 2**70,
        True,
        [],
        {},
    )
    node[key] = draw.choice((*values, *texts, "a" * 10_000))  # type: ignore[index]
    return document


def dumped(document: object) -> str:
    return json.dumps(document)


def test_stores(home: Path) -> None:
    draw = random.Random(0)
    trial = StoredTrial(options={"border": 64}, predicted=1.0, seconds=0.5, rejected=None)
    entry = Entry(
        kernel="inverse", source="abc", shape=(3, 4), dtype="float32", precision="highest",
        versions=versions(), options={"border": 64}, trials=(trial,), effort="full",
    )  # fmt: skip
    texts = payloads(home.parent / MARKER)
    with config.using(tuning=home / "stores"):
        mine = Store.open()
        assert mine.add([entry])
        content = json.loads(mine.path.read_text())
        own = {"format": 1, "device": content["device"], "entries": content["entries"]}
        for number in range(150):
            given = home / "given.json"
            if number % 3:
                given.write_text(dumped(json_mutations(own, draw, texts)))
            else:
                given.write_bytes(mutated(dumped(own).encode(), draw))
            with contained(home, number):
                import_file(given)
            assert entry.identity in {each.identity for each in Store.open().entries}, number
            assert not Store.open().notes, number


def test_run_records_and_histories(home: Path) -> None:
    draw = random.Random(0)
    model = home / "m.toml"
    model.write_text(MODEL)
    settings = {"updates": 2, "epochs": None, "seed": 0, "checkpoint_every": 1}
    folder = RunFolder.create(home / "run", model, {**settings, "data": "0", "data_root": None})
    record = json.loads((folder.path / "run.json").read_text())
    texts = payloads(home.parent / MARKER)
    line = {"update": 1, "loss": 0.5, "rejected": 0, "validation_loss": None}
    for number in range(150):
        changed = dumped(json_mutations(record, draw, texts))
        (folder.path / "run.json").write_bytes(
            changed.encode() if number % 3 else mutated(changed.encode(), draw)
        )
        lines = [dumped(json_mutations(line, draw, texts)) for _ in range(3)]
        (folder.path / "history.jsonl").write_text("\n".join(lines) + "\n")
        with contained(home, number):
            Started.of(folder)
        with contained(home, number):
            folder.rewind(5)


@pytest.fixture
def trained(home: Path) -> RunFolder:
    """A run folder as of a training that has ended, and rows to predict."""
    model, rows = home / "m.toml", home / "rows.csv"
    model.write_text(MODEL)
    rows.write_text("a,b\n1,2\n3,4\n")
    schema = TableSchema(
        target="value",
        numeric=(NumericColumn(name="a"), NumericColumn(name="b", mean=1.0, scale=2.0)),
        targets=("y",),
        outputs=1,
        standardise=True,
    )
    settings = {"updates": 2, "epochs": None, "seed": 0, "checkpoint_every": 1, "ended": "so"}
    folder = RunFolder.create(home / "run", model, {**settings, "data": "0", "data_root": None})
    folder.schema = schema
    file = load_model_file(folder.model_file, home, schema=schema)
    folder.weights.write_bytes(
        save({name: each.numpy() for name, each in file.build().state_dict().items()})
    )
    assert set(load_run(folder.path).predict(rows)) == {"y"}
    return folder


@pytest.mark.parametrize("name", ["data.json", "weights.safetensors", "model.toml"])
def test_run_folders_as_models(home: Path, trained: RunFolder, name: str) -> None:
    draw, path = random.Random(name), trained.path / name
    content, texts = path.read_bytes(), payloads(home.parent / MARKER)
    for number in range(60):
        if name == "data.json" and number % 3:
            path.write_text(dumped(json_mutations(json.loads(content), draw, texts)))
        else:
            path.write_bytes(mutated(content, draw))
        with contained(home, number):
            predicted = load_run(trained.path).predict(home / "rows.csv")
            assert all(len(column) == 2 for column in predicted.values())


def test_a_schema_that_asks_for_more_than_memory(trained: RunFolder) -> None:
    path = trained.path / "data.json"
    asked = json.loads(path.read_text())
    asked |= {"archive": True, "numeric": [{"name": "x", "size": 10**14}]}
    path.write_text(dumped(asked))
    with pytest.raises(GncompileError):
        load_run(trained.path)


def test_stored_runs(home: Path) -> None:
    draw = random.Random(0)
    run = Run("t", "adam", {"lr": 0.1}, 0, "8u", "done", points=(Point(0, 0.0, 1.0, 2.0),) * 2)
    path = write(home, run)
    header, *points = map(json.loads, path.read_text().splitlines())
    texts = payloads(home.parent / MARKER)
    for number in range(150):
        lines = [json_mutations(header, draw, texts), *points]
        if number % 2:
            lines = [header, json_mutations(points[0], draw, texts), points[1]]
        path.write_text("\n".join(map(dumped, lines)))
        with contained(home, number):
            kept = read(path)
            assert all(isinstance(point.train, float) for point in kept.points)
    hostile = replace(run, task="../../" * 9 + "x" * 300)
    assert home in write(home, hostile).resolve().parents
    assert file_of(home, "..", "adam", {}, 0, "8u").parent.parent == home
    assert this_device().slug
