"""Hooks of mkdocs: the site carries pages and pictures outside docs/, under their paths in the project.

Links are written for a reader of the files: ``../benchmarks/README.md`` leads out of docs/. In the site,
where the pages of docs/ lie at the top, it is ``benchmarks/README.md``; what the site does not carry, such as
source code, stays as text. The README is the site's first page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/notes/*.md",
)
FIRST = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)]*)?\)")
SHOWN = (".png", ".svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the pictures that any page shows."""
    pages = [path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
    for path in pages:
        _add(files, config, path.relative_to(ROOT).as_posix())
    for path in [*pages, *(ROOT / DOCS).rglob("*.md")]:
        here = path.relative_to(ROOT).as_posix()
        for link in LINK.finditer(path.read_text()):
            there = _there(here, link["target"])
            if there.endswith(SHOWN) and not there.startswith(DOCS):
                _add(files, config, there)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as they are in the site."""
    uri = page.file.src_uri
    here = Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix()

    def rewritten(link: re.Match[str]) -> str:
        if not link["target"] or "://" in link["target"]:
            return link[0]
        there = _in_site(_there(here, link["target"]))
        if files.get_file_from_path(there) is None:
            return link["text"]
        relative = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"{link['picture']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return LINK.sub(rewritten, markdown)


def _there(here: str, target: str) -> str:
    """The path in the project that a link on page ``here`` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def _in_site(path: str) -> str:
    return FIRST.get(path, path.removeprefix(DOCS))


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    name = _in_site(path)
    if files.get_file_from_path(name) is None and (ROOT / path).is_file():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
