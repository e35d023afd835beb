"""Keys of caches: equal for equal records only, whatever ``==`` says."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import numpy as np
import pytest
import sympy
import torch

from gncompile.base.exact_key import NoKeyError, Recent, exact_key
from gncompile.base.settings import Settings

U = sympy.Symbol("u", real=True)


@dataclass(frozen=True)
class Record:
    value: object
    other: object = 1

    @cached_property
    def derived(self) -> int:
        return 2


@dataclass(frozen=True)
class Twin:
    value: object
    other: object = 1


class Undeclared(Record):
    """A dataclass by descent, with a field that no declaration names."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        object.__setattr__(self, "more", 3)


DIFFERENT = [
    *(1, 1.0, True, "1", None, 0.0, -0.0, 0, False, "", (), []),
    *((1,), [1], (1.0,), (1, 2), ((1,), 2), {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1.0, "b": 2}),
    *(U, sympy.Symbol("u"), sympy.Integer(1), sympy.Float(1.0), sympy.Float(1.0, 30), 2 * U, 2.0 * U),
    *(sympy.tanh(U), sympy.Function("tanh")(U), int, bool, Record, Twin),
    *(Record(1), Record(1.0), Record(True), Record(1, 2), Twin(1), Record(Record(1)), Record((1,))),
    *(float("inf"), float("nan"), MappingProxyType({"a": 1, "b": 2})),
]  # fmt: skip


def test_no_two_of_these_are_one() -> None:
    keys = [exact_key(value) for value in DIFFERENT]
    assert len(set(keys)) == len(keys)


def test_equal_records_have_one_key() -> None:
    first, second = (Record({"a": (1, 2.5, 2 * sympy.Symbol("u", real=True))}) for _ in range(2))
    assert exact_key(first) == exact_key(second)
    assert first.derived == 2
    assert exact_key(first) == exact_key(second)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2), np.zeros(2), np.float64(1), print, lambda: 1, {1, 2}, object(), Undeclared(1)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_compared_has_none(value: object) -> None:
    for held in (value, (1, value), {"a": value}, Record(value)):
        with pytest.raises(NoKeyError, match=type(value).__qualname__):
            exact_key(held)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_counts(name: str) -> None:
    settings = Settings()
    changed = object.__new__(Settings)
    vars(changed).update({**vars(settings), name: "another value"})
    assert exact_key(changed) != exact_key(settings) == exact_key(Settings())


def test_the_last_few_results_are_kept() -> None:
    made: list[str] = []
    recent: Recent[str] = Recent(kept=2)

    def make(key: str) -> str:
        made.append(key)
        return f"result {key}"

    def ask(key: str) -> str:
        return recent.get(key, partial(make, key))

    assert [ask(key) for key in "aabacab"] == [f"result {key}" for key in "aabacab"]
    assert "".join(made) == "abcb"  # b was the one not asked for when c came


def fail(error: type[Exception]) -> int:
    raise error


def test_nothing_is_kept_of_a_failure() -> None:
    recent: Recent[int] = Recent(kept=2)
    for error in (ValueError, KeyError):
        with pytest.raises(error):
            recent.get("key", partial(fail, error))
    assert recent.get("key", lambda: 1) == 1


def test_threads_share_them() -> None:
    recent: Recent[int] = Recent(kept=3)
    wrong: list[int] = []

    def work() -> None:
        for number in range(300):
            if recent.get(number % 7, partial(int, number % 7)) != number % 7:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
