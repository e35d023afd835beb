"""Text from outside that would give itself away if it ran as code.

:func:`payloads` are Python and shell expressions that open a marker file; :func:`nothing_executed` fails
where one of them did, by the interpreter's audit events and by the marker itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RUNS = {"open", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
_watched: dict[str, list[str]] = {}
_installed = False


def payloads(marker: Path) -> tuple[str, ...]:
    """Strings for every place a string may stand: alone, after a quote, a line break, a comment."""
    call = f"open({str(marker)!r}, 'w').close()"
    return (
        call,
        f"0 if {call} else 1",
        f"__import__('os').system('touch {marker}')",
        f'"""+str({call})+"""',
        f"'+str({call})+'",
        f"a\n    {call}\n    #",
        f"a\\\n{call}",
        f"$(touch {marker})",
        f"{{{call}}}",
        f"a\r{call}\r#",
        f"a\u2028{call}",
        f"a\f{call}",
    )


@contextmanager
def nothing_executed(marker: Path) -> Iterator[None]:
    """Within the block no payload for ``marker`` may run."""
    _install()
    events = _watched.setdefault(marker.name, [])
    try:
        yield
    finally:
        del _watched[marker.name]
    assert not events, f"text from outside ran as code: {events[0]}"
    assert not marker.exists(), f"text from outside ran as code and made {marker}"


def _install() -> None:
    """An audit hook stays for good, so there is one, and it looks at what is watched at the time."""
    global _installed
    if not _installed:
        sys.addaudithook(_note)
        _installed = True


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event in _RUNS:
        text = repr(arguments)
        for name, events in _watched.items():
            if name in text:
                events.append(f"{event}{text}")
