"""What names, paths and texts of strangers may become."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from gncompile.base.untrusted import (
    SLUG_BYTES,
    append_line,
    fenced,
    in_cell,
    in_markdown,
    own_folder,
    require_within,
    slug,
)
from gncompile.errors import GncompileError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("curves-autoencoder", "curves-autoencoder"),
        ("Größe 3", "Größe-3"),
        ("../../etc/passwd", "-..-etc-passwd"),
        ("a\\b:c*d?", "a-b-c-d-"),
        ("", "model"),
        ("...", "model"),
        (".hidden", "hidden"),
        ("con", "con-"),
        ("NUL.txt", "NUL-txt-"),
        ("a\0b\nc", "a-b-c"),
        ("\u202egnp.exe", "-gnp.exe"),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert slug(text, "model") == expected


def test_a_slug_is_always_one_name_in_the_folder(tmp_path: Path) -> None:
    draw = random.Random(0)
    alphabet = "ab./\\~ \0\n\u00df\u4e2d\U0001f600:*-_\u202e"
    for _ in range(300):
        text = "".join(draw.choices(alphabet, k=draw.randrange(0, 300)))
        path = tmp_path / f"{slug(text)}-compare-12.jsonl"
        assert path.parent == tmp_path
        assert len(slug(text).encode()) <= SLUG_BYTES + 1
        assert not slug(text).startswith(".")
        path.touch()
    assert {each.parent for each in tmp_path.rglob("*")} == {tmp_path}


def test_long_names_stay_apart() -> None:
    assert slug("a" * 500) != slug("a" * 501)


def test_paths_stay_within(tmp_path: Path) -> None:
    inside, outside = tmp_path / "home", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "circle").symlink_to(inside / "circle")
    require_within(inside / "a" / ".." / "b.csv", [inside], "here", "")
    require_within(inside / "link" / "b.csv", [inside, outside], "here", "")
    wrong = [
        inside / ".." / "b.csv",
        inside / "link" / "b.csv",
        outside / "b",
        Path("/"),
        inside / "a\0b",
    ]
    wrong.append(tmp_path / "home2" / "b.csv")  # begins like the folder's name
    for path in wrong:
        with pytest.raises(GncompileError, match="outside|no path"):
            require_within(path, [inside], "here", "")


def test_markdown_and_cells() -> None:
    assert in_markdown("my_net-1.5 (big)") == "my_net-1.5 (big)"
    hostile = in_markdown("<img src=x>\n# ![a](http://b) `c` &lt;")
    assert hostile == r"\<img src=x\> \# \!\[a\](http://b) \`c\` \&lt;"
    assert fenced("a\n```\n<b>") == "````text\na\n```\n<b>\n````"
    assert [in_cell(v) for v in ("=1+1", "@a", "-a", "+a", "a=1", -1.5)] == [
        *("'=1+1", "'@a", "'-a", "'+a", "a=1", -1.5)
    ]


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "mine").write_text("MINE")
    (tmp_path / "folder").symlink_to(tmp_path / "victim")
    (tmp_path / "file").symlink_to(tmp_path / "mine")
    (own_folder(tmp_path / "folder") / "x").write_text("")
    assert not any((tmp_path / "victim").iterdir())
    with pytest.raises(OSError, match=os.strerror(40)):
        append_line(tmp_path / "file", "more")
    assert (tmp_path / "mine").read_text() == "MINE"
