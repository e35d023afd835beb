"""A step program before it is written out: every field of every operation is what its annotation says.

What an emitter prints is then a number, a truth value, or a name of a closed set, wherever it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from ..base.names import is_name
from ..base.typed import misfits
from ..errors import InternalError
from .operations import Leaf, Op
from .phases import Phase
from .shapes import infer
from .specs import COLUMNS, SAMPLES, Dim, Spec
from .step_program import Instruction, State, StepProgram

OPERATIONS = frozenset(get_args(Op))
DIMENSIONS = frozenset((*SAMPLES, COLUMNS))


def check(program: StepProgram) -> None:
    """Raise :class:`InternalError` unless every value is defined once, before use, with a spec that fits.

    Types are for the writers to check, once the last pass is done: :func:`check_types`.
    """
    defined: dict[str, Instruction] = {}
    for instruction in program:
        missing = [name for name in instruction.inputs if name not in defined]
        if missing or instruction.name in defined:
            raise InternalError(f"{instruction}: undefined {missing} or defined twice")
        if not isinstance(instruction.op, Leaf):
            spec = infer(instruction.op, [defined[name].spec for name in instruction.inputs])
            if spec != instruction.spec:
                raise InternalError(f"{instruction}: the operation yields {spec}")
        if instruction.into is not None:
            target = defined.get(instruction.into)
            if target is None or target.spec.shape != instruction.spec.shape:
                raise InternalError(f"{instruction}: {instruction.into} has another shape")
        defined[instruction.name] = instruction


def check_types(program: StepProgram) -> None:
    """Raise :class:`InternalError`, with the field, for a value of another type than its annotation's.

    Names have to be identifiers that no emitted file uses itself, dimensions numbers or known symbols.
    """
    known: set[str | int] = set()
    for instruction in program:
        _check_instruction(instruction, known)
    for phase in program.step:
        if type(phase) is not Phase or not is_name(phase.name):
            raise InternalError(f"{phase!r} cannot be a phase of a step")
    for key, state in program.states.items():
        if type(key) is not str or type(state) is not State or misfits(state):
            raise InternalError(f"the state {key!r} of a step has a wrong field")
        _check_dimensions(key, state.spec)
    for table in (program.results, program.nodes, program.methods):
        if not all(type(text) is str for pair in table.items() for text in pair):
            raise InternalError(
                "a table of a step's results, nodes or methods holds something else than text"
            )


def _check_instruction(i: Instruction, known: set[str | int]) -> None:
    """``known`` are the names, and the identities of origins, of the instructions before it."""
    if type(i.op) not in OPERATIONS:
        raise InternalError(f"{i.name}: {type(i.op).__name__} is no operation of a step")
    if wrong := misfits(i.op):
        what = ", ".join(f"{field} = {getattr(i.op, field)!r}"[:200] for field in wrong)
        raise InternalError(f"{i.name}: {type(i.op).__name__} has fields of a wrong type: {what}")
    if type(i) is not Instruction or type(i.comment) is not str:
        raise InternalError(f"{i.name}: a comment is no text")
    if id(i.origin) not in known:
        if misfits(i.origin):
            raise InternalError(f"{i.name}: an origin is no text")
        known.add(id(i.origin))
    phase = () if type(i.op) is Leaf and i.phase == "" else (i.phase,)
    for name in (i.name, *phase, *i.inputs, *(() if i.into is None else (i.into,))):
        if type(name) is str and name in known:
            continue
        if not is_name(name):
            raise InternalError(f"{name!r} cannot be a name in a step")
        known.add(name)
    _check_dimensions(i.name, i.spec)
    _require_dimensions(i.name, getattr(i.op, "shape", ()))
    _require_dimensions(i.name, (i.op.rows,) if hasattr(i.op, "rows") else ())


def _check_dimensions(name: str, spec: Spec) -> None:
    if type(spec) is not Spec or misfits(spec):
        raise InternalError(f"{name}: a spec has a field of a wrong type")
    _require_dimensions(name, spec.shape)


def _require_dimensions(name: str, shape: Iterable[Dim]) -> None:
    for dim in shape:
        if dim not in DIMENSIONS if isinstance(dim, str) else dim < 0:
            raise InternalError(f"{name}: {dim!r} is no dimension")
