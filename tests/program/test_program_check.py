"""Every field of every operation is of its annotated type before anything is written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import sympy
import torch
from payloads import payloads
from torch import nn

import gncompile
from gncompile.base.typed import check_of, hints, misfits
from gncompile.emit.torch_source import TorchWriter
from gncompile.errors import InternalError
from gncompile.program import operations as ir
from gncompile.program import specs
from gncompile.program.program_check import check_types
from gncompile.program.step_program import StepProgram

OPERATIONS = get_args(ir.Op)
RIGHT: dict[type, Any] = {bool: True, int: 1, float: 0.5, str: "text"}


def right(hint: Any) -> Any:
    """A value of an annotated type."""
    args = get_args(hint)
    if hint in RIGHT:
        return RIGHT[hint]
    if hint is specs.Structure:
        return specs.Structure.GENERAL
    if hint is specs.Spec:
        return specs.Spec((1, "N"))
    if hint in (sympy.Expr, sympy.Symbol):
        return sympy.Symbol("u", real=True)
    if dataclasses.is_dataclass(hint):
        return hint(**{name: right(inner) for name, inner in hints(hint).items()})  # type: ignore[operator]
    if args and args[-1] is ...:
        return (right(args[0]),)
    return args[0] if isinstance(args[0], str) else right(args[0])


FIELDS = [(op, field.name) for op in OPERATIONS for field in dataclasses.fields(op)]


@pytest.mark.parametrize(("op", "name"), FIELDS, ids=[f"{op.__name__}-{n}" for op, n in FIELDS])
def test_every_field_of_every_operation_is_checked(op: type, name: str) -> None:
    values = {field: right(hint) for field, hint in hints(op).items()}
    assert misfits(op(**values)) == []
    wrong: list[Any] = [
        *payloads(Path("/tmp/never")),
        object(),
        b"",
        [1],
        {1: 1},
        math.nan,
        2**70,
        1j,
    ]
    if check_of(hints(op)[name])("text"):
        wrong = [value for value in wrong if type(value) is not str]
    for value in wrong:
        assert misfits(op(**{**values, name: value})) == [name], value


def test_subclasses_and_neighbours_do_not_count() -> None:
    class Sly(int):
        def __repr__(self) -> str:
            return "exec('x')"

    for hint, value in ((bool, 1), (int, True), (int, Sly(1)), (float, 1), (float, True)):
        assert not check_of(hint)(value)
    assert not check_of(tuple[int, ...])([1])
    assert not check_of(tuple[float, float])((1.0,))
    with pytest.raises(TypeError, match="no check"):
        check_of(set[int])


@pytest.fixture(scope="module")
def program() -> StepProgram:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return gncompile.compile(model, "mse", torch.zeros(2, 3), tune="off").program


def changed(program: StepProgram, number: int, **fields: Any) -> StepProgram:
    new = list(program.instructions)
    new[number] = replace(new[number], **fields)
    return replace(program, instructions=tuple(new))


@pytest.mark.parametrize("text", payloads(Path("/tmp/never")), ids=lambda text: ascii(text[:30]))
def test_text_in_a_program_is_refused_before_it_is_written(program: StepProgram, text: str) -> None:
    place = {type(i.op): n for n, i in enumerate(program)}
    sizes = program.instructions[place[ir.StepSizes]].op
    share = place[ir.Share]
    for number, fields in (
        (place[ir.StepSizes], {"op": replace(sizes, momentum=text)}),
        (place[ir.StepSizes], {"op": replace(sizes, growth=text)}),
        (place[ir.StepSizes], {"op": replace(sizes, groups=(text,))}),
        (share, {"op": ir.Share(text)}),
        (share, {"spec": specs.Spec((text, 3))}),
        (share, {"name": text}),
        (share, {"inputs": (text,)}),
        (share, {"phase": text}),
        (share, {"comment": b""}),
    ):
        broken = changed(program, number, **fields)
        with pytest.raises(InternalError):
            check_types(broken)
        with pytest.raises(InternalError):
            TorchWriter(broken, {})


@pytest.mark.parametrize("name", ["class", "torch", "memory", "range", "__x", "ﬁ", "", "a b", "N"])
def test_names_of_the_file_are_no_names_of_values(program: StepProgram, name: str) -> None:
    with pytest.raises(InternalError, match="cannot be a name"):
        check_types(changed(program, 0, name=name))
