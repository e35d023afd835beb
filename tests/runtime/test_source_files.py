"""The cache of emitted sources: for reading only, private, and dispensable; edited copies run as they are."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gncompile
from gncompile.base import config
from gncompile.errors import CompileError, GncompileError
from gncompile.runtime import source_files
from gncompile.runtime.source_files import CacheWarning, load_source, source_of

TEXT = "import torch\n\n\ndef bind(N):\n    return N\n"
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is warned anew."""
    monkeypatch.setattr(source_files, "_said", set())


def load(cache: Path, text: str = TEXT) -> tuple[int, Path | None]:
    """What the source returns for 7, and its file."""
    with config.using(cache=cache):
        module, path = load_source(text, "net")
    return module.bind(7), path


def test_the_folder_is_for_one_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        value, path = load(tmp_path / "new" / "cache")
    finally:
        os.umask(before)
    assert value == 7
    assert path is not None
    assert path.read_text() == TEXT
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir(mode=0o777)
    (tmp_path / "source").chmod(0o777)
    load(tmp_path)
    assert stat.S_IMODE((tmp_path / "source").stat().st_mode) == 0o700


def test_nothing_in_the_cache_runs(tmp_path: Path) -> None:
    """Neither another text under the name of the file, nor bytecode beside it that claims to be newer."""
    _, path = load(tmp_path)
    assert path is not None
    evil = tmp_path / "evil.py"
    evil.write_text("def bind(N):\n    return 666\n")
    planted = Path(importlib.util.cache_from_source(str(path)))
    planted.parent.mkdir()
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), str(planted), str(path), invalidation_mode=mode)
    path.write_text(evil.read_text())
    value, again = load(tmp_path)
    assert (value, again) == (7, path)
    assert path.read_text() == TEXT


@pytest.mark.parametrize("damage", ["bytes", "link", "short", "empty"])
def test_damaged_entries_are_replaced(damage: str, tmp_path: Path) -> None:
    _, path = load(tmp_path)
    assert path is not None
    if damage == "link":
        path.unlink()
        (tmp_path / "elsewhere").write_text(TEXT)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(
            {"bytes": b"\xff\xfe\x00", "short": TEXT[:-9].encode(), "empty": b""}[damage]
        )
    assert load(tmp_path) == (7, path)
    assert not path.is_symlink()
    assert path.read_text() == TEXT


def without_files(cache: Path) -> str:
    """What is said where the sources cannot be kept; once, though it is tried twice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load(cache) == (7, None)
        assert load(cache) == (7, None)
    (only,) = caught
    assert only.category is CacheWarning
    assert "GNCOMPILE_CACHE" in str(only.message)
    return str(only.message)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    _, path = load(tmp_path)
    assert path is not None
    path.unlink()
    path.mkdir()
    without_files(tmp_path)


def test_a_file_in_the_place_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    without_files(tmp_path / "file")
    without_files(tmp_path / "file" / "below")


def test_a_link_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "source").symlink_to(tmp_path / "elsewhere")
    assert "no folder" in without_files(tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


@posix
def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "another user" in without_files(tmp_path)


@posix
def test_a_cache_that_others_may_write_is_told_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.warns(CacheWarning, match="other users may replace") as caught:
        found = [load(tmp_path) for _ in range(2)]
    assert len(caught) == 1
    assert found[0] == found[1]
    assert found[0][1] is not None


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source_files, "atomic_write", full)
    assert "No space left" in without_files(tmp_path)


def test_a_step_without_a_file_tells_all_about_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    x, y = torch.rand(40, 3), torch.rand(40, 2)
    with config.using(cache=tmp_path / "file"), pytest.warns(CacheWarning):
        trainer = gncompile.compile(nn.Linear(3, 2), "mse", x, tune="off")
    trainer.step(x, y)
    assert trainer.source_file is None
    assert "def gradient():" in trainer.source
    assert trainer.emit(tmp_path / "out")[0].read_text() == trainer.source
    assert "Derivation of Linear" in trainer.explain()


def test_the_source_is_what_runs_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    x = torch.rand(40, 3)
    with config.using(cache=tmp_path):
        trainer = gncompile.compile(nn.Linear(3, 2), "mse", x, tune="off")
    before = trainer.source
    assert trainer.source_file is not None
    trainer.source_file.unlink()
    assert trainer.source == before


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "KEPT", 3)
    paths = []
    for number in range(5):
        value, path = load(tmp_path, TEXT.replace("return N", f"return N + {number}"))
        assert value == 7 + number
        assert path is not None
        os.utime(path, (number, number))
        paths.append(path)
    assert [path.exists() for path in paths] == [False, False, True, True, True]


# --- edited copies ---------------------------------------------------------------------------------------


def test_an_edited_copy_runs_loudly_and_as_it_is_now(tmp_path: Path) -> None:
    """Two edits of one length within one tick of the clock: no bytecode of the first may run."""
    _, path = load(tmp_path / "cache")
    assert path is not None
    override = tmp_path / "override"
    override.mkdir()
    for value in (128, 256):
        (override / path.name).write_text(f"import os\n\n\ndef bind(N):\n    return {value}\n")
        os.utime(override / path.name, (1.7e9, 1.7e9))
        with (
            config.using(cache=tmp_path / "cache", override=override),
            pytest.warns(UserWarning, match="runs the edited source"),
        ):
            module, run = load_source(TEXT, "net")
        assert module.bind(7) == value
        assert run == override / path.name
        assert source_of(module) == run.read_text()
    assert [entry.name for entry in override.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"def bind(:\n", b"\xff\xfe", b"\x00"])
def test_an_edited_copy_that_is_no_python(content: bytes, tmp_path: Path) -> None:
    _, path = load(tmp_path)
    assert path is not None
    override = tmp_path / "override"
    override.mkdir()
    (override / path.name).write_bytes(content)
    with (
        config.using(cache=tmp_path, override=override),
        pytest.warns(UserWarning, match="edited"),
        pytest.raises(CompileError, match="is not valid Python"),
    ):
        load_source(TEXT, "net")


@posix
def test_an_edited_copy_that_anybody_may_change(tmp_path: Path) -> None:
    _, path = load(tmp_path)
    assert path is not None
    (tmp_path / path.name).write_text(TEXT)
    (tmp_path / path.name).chmod(0o666)
    with (
        config.using(override=tmp_path),
        pytest.raises(GncompileError, match="any user may change"),
    ):
        load_source(TEXT, "net")


@pytest.mark.skipif(sys.platform != "linux", reason="gives up rights as Linux has them")
def test_a_read_only_home(tmp_path: Path) -> None:
    """In a process of its own, without root's right to write anywhere."""
    tmp_path.chmod(0o555)
    code = (
        "import os\n"
        "os.getuid() or os.setgid(65534) or os.setuid(65534)\n"
        "from gncompile.runtime.source_files import load_source\n"
        f"print(load_source({TEXT!r}, 'net')[1])\n"
    )
    environment = {**os.environ, "GNCOMPILE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if "ModuleNotFoundError" in done.stderr or "PermissionError: [Errno 13]" in done.stderr:
        pytest.skip("the environment is not readable without root's rights")
    assert done.stdout == "None\n"
    assert "CacheWarning" in done.stderr
