"""Building a StepProgram: value handles, sharing of equal values, and the rules of matrix structure.

:class:`ProgramBuilder` is the only way instructions come to be. It shares equal values (same operation on
the same inputs in a phase that can see them), so the derivations in ``propagation`` and ``recursion`` may
ask for the same thing twice, and it picks the cheapest operation for the structure of a matrix, so they
may speak of ``W^T M W`` without asking whether M is diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import sympy

from ..base.names import RESERVED, Names
from ..errors import InternalError
from ..functions.primitives import as_float
from . import operations as ir
from . import specs
from .operations import LeafKind, Op
from .phases import Phase
from .program_check import check
from .shapes import infer
from .specs import Spec, Structure
from .step_program import Instruction, Origin, State, StepProgram

T = TypeVar("T")
U, V = sympy.symbols("u v", real=True)


@dataclass(frozen=True)
class Value:
    """A handle to a value of the program under construction."""

    name: str
    spec: Spec

    @property
    def is_square(self) -> bool:
        """Whether this is a square matrix with a known structure."""
        return self.spec.size > 0

    @property
    def is_full(self) -> bool:
        """Whether every element of the matrix is stored."""
        return not self.spec.is_thin

    @property
    def width(self) -> int:
        """Elements of a row."""
        return int(self.spec.shape[-1])


Factor = float | Value
"""An elementwise factor: a number, or a value ``[N, d]``."""


class ProgramBuilder:
    """Collects instructions of the phases of a step; see the module docstring."""

    def __init__(self, step: Sequence[Phase] = ()) -> None:
        self._made: dict[str, Instruction] = {}
        self._known: dict[tuple[Op, tuple[str, ...]], dict[str, Value]] = {}
        self._step = {phase.name: phase for phase in step}
        self._begun: set[str] = set()
        self._names = Names(RESERVED | set(self._step))  # an emitted file calls functions so
        self._named: dict[str, str] = {}
        self._states: dict[str, State] = {}
        self._phase = ""
        self._visible: frozenset[str] = frozenset()
        self._origin = Origin()
        self.results: dict[str, str] = {}
        self.nodes: dict[str, str] = {}
        self.columns = 0
        self.products = 0
        self.methods: dict[str, str] = {}
        self.reasons: tuple[str, ...] = ()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Emit into the phase ``name``, sharing values with those it sees; the work is the phase's."""
        if name not in self._step:
            raise InternalError(f"no phase of the step is called {name!r}")
        self._begun.add(name)
        saved = self._phase, self._visible, self._origin
        self._phase, self._visible = name, frozenset((name, *self._step[name].sees))
        self._origin = Origin(role=name)
        yield
        self._phase, self._visible, self._origin = saved

    @contextmanager
    def origin(self, **what: str) -> Iterator[None]:
        """What is emitted now is work for this ``node``, ``layer`` or ``role``, the others as they were.

        A shared value keeps the origin of whoever asked first: backwards, the first that needs it.
        """
        saved = self._origin
        self._origin = Origin(**{**vars(saved), **what})
        yield
        self._origin = saved

    def layerwise(self, items: Mapping[str, T]) -> Iterator[tuple[str, T]]:
        """The items of a table by layer; what is emitted while one is looked at is work for that layer."""
        for layer, item in items.items():
            with self.origin(layer=layer):
                yield layer, item

    def finish(self) -> StepProgram:
        """The program, without values that nothing uses."""
        keep = _used(self._made, set(self.results.values()))
        kept = tuple(i for i in self._made.values() if i.name in keep)
        step = tuple(phase for name, phase in self._step.items() if name in self._begun)
        nodes = {node: value for node, value in self.nodes.items() if value in keep}
        tables = dict(self._states), dict(self.results), nodes
        chosen = self.methods, self.reasons
        program = StepProgram(kept, *tables, self.columns, *chosen, step, self.products)
        check(program)
        return program

    # --- leaves and raw instructions ------------------------------------------------------------------

    def leaf(self, kind: LeafKind, key: str, shape: tuple[specs.Dim, ...] | Spec) -> Value:
        """The tensor the runtime keeps under ``kind`` and ``key``."""
        spec = shape if isinstance(shape, Spec) else Spec(shape)
        hint = {"input": f"x{key}", "target": "y"}.get(kind, key)
        return self._emit(ir.Leaf(kind, key), (), hint, spec=spec)

    def batch(self) -> list[Value]:
        """The leaves met so far that hold the batch: the inputs in use, and the target."""
        kinds = ("input", "target")
        leaves = (
            i for i in self._made.values() if isinstance(i.op, ir.Leaf) and i.op.kind in kinds
        )
        return [Value(leaf.name, leaf.spec) for leaf in leaves]

    def state(
        self, key: str, spec: Spec, initial: str | float = "zero", kept_with: str = ""
    ) -> Value:
        """A tensor that survives from step to step, zero (or one, identity, a number) at first."""
        self._states.setdefault(key, State(spec, initial, kept_with))  # type: ignore[arg-type]
        return self.leaf("state", key, spec)

    def emit(
        self, op: Op, *inputs: Value, name: str = "", into: Value | None = None, comment: str = ""
    ) -> Value:
        """``op(inputs)``, shared with an equal visible value.

        ``into`` overwrites a state, a parameter or a value of an earlier phase.
        """
        return self._emit(op, inputs, name, into=into, comment=comment)

    def _emit(
        self,
        op: Op,
        inputs: tuple[Value, ...],
        name: str,
        spec: Spec | None = None,
        into: Value | None = None,
        comment: str = "",
    ) -> Value:
        key = (op, tuple(value.name for value in inputs))
        known = self._known.setdefault(key, {}) if into is None else {}
        # A draw is shared within its phase only: a phase that runs repeatedly draws anew each time.
        visible = {self._phase} if isinstance(op, ir.Random) else self._visible
        for phase, value in known.items():
            if phase in visible or isinstance(op, ir.Leaf):
                return value
        spec = spec or infer(op, [value.spec for value in inputs])
        leaf = isinstance(op, ir.Leaf)
        origin = Origin() if leaf else self._origin
        hint = name or f"{type(op).__name__.lower()}_{origin.layer}".rstrip("_")
        place = "" if leaf or isinstance(op, ir.VIEWS) else self._place(hint)
        value = Value(self._names.fresh(hint, place), spec)
        target = into.name if into else None
        made = Instruction(value.name, op, key[1], spec, self._phase, target, comment, origin)
        self._made[value.name] = made
        known[self._phase] = value
        return value

    def _place(self, hint: str) -> str:
        """What tells a value from an earlier one of its name: its phase, or within that its layer."""
        if self._named.setdefault(hint, self._phase) != self._phase:
            return self._phase
        return "" if self._origin.layer in hint else self._origin.layer

    # --- elementwise ----------------------------------------------------------------------------------

    def pointwise(
        self,
        expression: sympy.Expr | float,
        values: Mapping[sympy.Symbol, Value] | None = None,
        name: str = "",
        into: Value | None = None,
        comment: str = "",
    ) -> Value:
        """``expression`` elementwise; a bare symbol is the value itself."""
        expression = sympy.sympify(expression)
        values = values or {}
        if isinstance(expression, sympy.Symbol) and into is None:
            return values[expression]
        symbols = expression.free_symbols
        used = sorted(symbols & set(values), key=lambda s: s.name)
        if symbols - set(values):
            raise InternalError(f"{expression} has symbols without values")
        op = ir.Pointwise(expression, tuple(used))
        return self._emit(op, tuple(values[s] for s in used), name, into=into, comment=comment)

    def add(self, *terms: Value, name: str = "", into: Value | None = None) -> Value:
        """Sum of values of one shape; one alone is the sum itself."""
        total, symbols = _sum(len(terms))
        return self.pointwise(total, dict(zip(symbols, terms, strict=True)), name=name, into=into)

    def plus(self, a: Factor, b: Factor) -> Factor:
        """Elementwise sum of numbers and values."""
        if isinstance(a, float) and isinstance(b, float):
            return a + b
        if isinstance(a, float):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, float):
            return self.pointwise(U + as_float(b), {U: a})
        return self.add(a, b)

    def times(self, a: Factor, b: Factor, name: str = "") -> Factor:
        """Elementwise product of numbers and values; ones vanish."""
        if isinstance(a, float) and isinstance(b, float):
            return a * b
        if isinstance(a, float):
            return self.scaled(b, a, name)  # type: ignore[arg-type]
        if isinstance(b, float):
            return self.scaled(a, b, name)
        return self.pointwise(U * V, {U: a, V: b}, name=name)

    def scaled(self, value: Value, factor: float, name: str = "") -> Value:
        """``factor · value``."""
        return self.pointwise(as_float(factor) * U, {U: value}, name=name)

    # --- structured matrices --------------------------------------------------------------------------

    def multiply(self, m: Value, b: Value, name: str = "") -> Value:
        """``M b`` for a block M of any structure and a full b."""
        if m.is_square:
            return self.emit(ir.Multiply(), m, b, name=name)
        return self.emit(ir.MatMul(), m, b, name=name)

    def unflatten(self, value: Value, places: int) -> Value:
        """``[.., P·d]`` seen as ``[.., P, d]``; as it is where there is one place."""
        if places == 1:
            return value
        sizes = places, value.width // places
        return self.emit(ir.Unflatten(sizes), value, name=f"{value.name}_at")

    def flatten(self, value: Value) -> Value:
        """``[.., P, d]`` seen as ``[.., P·d]``; a copy of what is seen transposed."""
        made = self._made[value.name]
        if isinstance(made.op, ir.Unflatten):
            source = self._made[made.inputs[0]]
            return Value(source.name, source.spec)
        if isinstance(made.op, ir.Transpose):
            value = self.emit(ir.Gather(tuple(range(value.width))), value)
        return self.emit(ir.Flatten(), value, name=f"{value.name}_flat")

    def transpose(self, m: Value) -> Value:
        """``Mᵀ``; a structured block is its own transpose."""
        return m if m.is_square else self.emit(ir.Transpose(), m, name=f"{m.name}_T")

    def plus_transpose(self, m: Value) -> Value:
        """``M + Mᵀ``."""
        return self.scaled(m, 2.0) if m.is_square else self.emit(ir.PlusTranspose(), m)

    def congruence(self, w: Value, m: Value, v: Value, name: str = "") -> Value:
        """``Wᵀ M V``; symmetric when W is V and M is."""
        mv = self.multiply(m, v)
        if w == v and m.is_square:
            return self.emit(ir.SymmetricProduct(), w, mv, name=name)
        return self.emit(ir.MatMul(transpose_a=True), w, mv, name=name)

    def schur(self, m: Value, b: Factor, c: Factor, name: str = "") -> Value:
        """``M ⊙ E[b cᵀ]``; only the diagonal of the moment is formed where M is diagonal."""
        if isinstance(b, float) or isinstance(c, float):
            return self._schur_number(m, b, c, name)
        if m.is_full:
            moment = self.emit(ir.Moment(), b) if b == c else self.emit(ir.Moment(), b, c)
            return self.emit(ir.Hadamard(), m, moment, name=name)
        product = self.times(b, c)
        assert isinstance(product, Value)
        mean = self._as_diagonal(self.emit(ir.Mean(), product))
        return self.times(m, mean, name)  # type: ignore[return-value]

    def _schur_number(self, m: Value, b: Factor, c: Factor, name: str) -> Value:
        if isinstance(b, Value):
            assert isinstance(c, float)
            return self.scale_rows(self.scaled(m, c), b)
        if isinstance(c, Value):
            return self.scale_rows(self.scaled(m, b), c, right=True)
        return m if b * c == 1.0 else self.scaled(m, b * c, name)

    def scale_rows(self, m: Value, b: Factor, right: bool = False) -> Value:
        """``diag(E[b]) M``, or ``M diag(E[b])`` when ``right``."""
        if isinstance(b, float):
            return m if b == 1.0 else self.scaled(m, b)
        mean = self._as_diagonal(self.emit(ir.Mean(), b))
        if not m.is_full:
            return self.times(m, mean)  # type: ignore[return-value]
        if not right:
            return self.emit(ir.Multiply(), mean, m)
        return self.transpose(self.emit(ir.Multiply(), mean, self._transposed(m)))

    def _transposed(self, m: Value) -> Value:
        return m if m.spec.structure is Structure.SYMMETRIC else self.transpose(m)

    def _as_diagonal(self, v: Value) -> Value:
        return self.as_matrix(v, Structure.DIAGONAL, v.width)

    def as_matrix(self, v: Value, structure: Structure, size: int) -> Value:
        """A scalar or vector read as a scaled identity or diagonal matrix."""
        return self.emit(ir.AsMatrix(structure, size), v, name=f"{v.name}_matrix")

    def add_blocks(self, blocks: list[Value], name: str = "") -> Value:
        """Sum of blocks of any structure."""
        full = [m for m in blocks if m.is_full]
        slim = [m for m in blocks if not m.is_full]
        if not full:
            return self.add(*slim, name=name)
        total = self.add(*full, name=name)
        for m in slim:
            total = self.emit(ir.AddDiagonal(), total, m, name=name)
        return total

    def dense(self, m: Value) -> Value:
        """The full matrix behind a block."""
        return m if m.is_full else self.emit(ir.Densify(), m, name=f"{m.name}_full")


@cache
def _sum(count: int) -> tuple[sympy.Expr, tuple[sympy.Symbol, ...]]:
    """The sum of so many symbols, and these."""
    symbols = tuple(sympy.Symbol(f"t{i}", real=True) for i in range(count))
    return sympy.Add(*symbols), symbols


def _used(made: dict[str, Instruction], results: set[str]) -> set[str]:
    """Names that a result or a state update depends on."""
    used = set(results)
    for instruction in reversed(made.values()):
        if instruction.name in used or instruction.into:
            used.add(instruction.name)
            used.update(instruction.inputs)
            if instruction.into:
                used.add(instruction.into)
    return used
