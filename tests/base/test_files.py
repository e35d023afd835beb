"""Files are replaced whole, with sensible permissions, and the process's umask is never touched."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from gncompile.base.files import atomic_path, atomic_write


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert mode(atomic_write(tmp_path / "a", "x")) == 0o666 & ~mask
    finally:
        os.umask(before)


@pytest.mark.parametrize("given", [0o600, 0o640, 0o444, 0o666])
def test_a_file_keeps_its_permissions(tmp_path: Path, given: int) -> None:
    path = atomic_write(tmp_path / "a", "x")
    path.chmod(given)
    assert mode(atomic_write(path, "y")) == given
    assert path.read_text() == "y"


def test_the_umask_is_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(mask: int) -> int:
        raise AssertionError("the umask belongs to every thread of the process")

    monkeypatch.setattr(os, "umask", refuse)
    threads = [
        threading.Thread(target=atomic_write, args=(tmp_path / f"f{i % 2}", b"x" * i))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f0", "f1"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    other = atomic_write(tmp_path / "other", "kept")
    link = tmp_path / "link"
    link.symlink_to(other)
    atomic_write(link, "new")
    assert not link.is_symlink()
    assert (link.read_text(), other.read_text()) == ("new", "kept")


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 123 + ".txt")
    assert atomic_write(path, "x").read_text() == "x"


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
