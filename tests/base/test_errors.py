"""Every error has the one form, whoever raises it, also in another process."""

import pickle

import pytest

from gncompile.errors import BatchError, CompileError, GncompileError, InternalError, message


@pytest.mark.parametrize("kind", [GncompileError, BatchError, CompileError, InternalError])
def test_error_says_what_where_and_what_to_do(kind: type[GncompileError]) -> None:
    """The text is that of ``message``, and survives pickling."""
    error = kind("no \x1b layer", where="fc1", instead="add one")
    assert str(error) == message("no \x1b layer", where="fc1", instead="add one")
    assert str(error) == "no \\x1b layer\n  where:      fc1\n  what to do: add one"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
