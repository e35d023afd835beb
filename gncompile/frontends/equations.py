"""Differential equations as users write them, read into residuals of a network.

Grammar: that of :mod:`gncompile.functions.parsing` over these names::

    x, y, t, …       the inputs, columns of the points
    u, v, …          the outputs
    u__x, u__x__y    derivatives of an output, of any order; the order of differentiation does not matter
    f, …             given fields, columns of data that come with the points
    nu, …            unknowns, trainable numbers
    image(x + u, y)  a given grid, read at a place that expressions give

A sympy expression may hold ``u(x, t).diff(t, 2)`` as well, of a function of the output's name: so the
equations of PhysicsNeMo's ``PDE`` classes, ``.equations``, are read. ``Eq(l, r)`` is its residual ``l - r``.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy
from sympy import Expr, Symbol
from sympy.core.function import AppliedUndef

from ..errors import CompileError, ExpressionError, nearest
from ..functions.declarations import check_name, over_symbols, without_piecewise
from ..functions.faa_di_bruno import Derivative
from ..functions.grids import Grid, callers, calls
from ..functions.parsing import FUNCTIONS, parse_expression
from ..functions.robust import signed_root
from ..functions.stable_forms import stable
from ..graph.residuals import TERM, LookUp, Residuals, by_term
from .misspelt import derivative_meant

MARK = "__"
"""Between an output and what it is differentiated by."""

MAX_ORDER = 8
"""The highest derivative; that of order n of a function of a function has as many terms as n things have
partitions, 4140 for 8."""

GRID = "grid_"
"""Before the name of a grid, the name of its tensor."""

_DERIVATIVE = re.compile(rf"[A-Za-z]\w*?{MARK}\w+")


@dataclass(frozen=True)
class Names:
    """What the names of a problem's equations stand for."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fields: tuple[str, ...] = ()
    unknowns: tuple[str, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {
            "input": self.inputs,
            "output": self.outputs,
            "field": self.fields,
            "unknown": self.unknowns,
            "grid": tuple(self.grids),
        }
        seen: dict[str, str] = {}
        for kind, names in kinds.items():
            for name in names:
                check_name(kind, name, reserved=frozenset({"pi", TERM.name, *FUNCTIONS}))
                if name in seen or MARK in f"{name}_":
                    raise CompileError(
                        f"two names {name!r}: {seen[name]} and {kind}"
                        if name in seen
                        else f"{MARK!r} in {name!r}, or '_' at its end, an {kind}",
                        where="inputs, outputs, fields, unknowns and grids of the residuals",
                        instead=f"give each another name, without {MARK!r}, which marks derivatives",
                    )
                seen[name] = kind
        for kind in ("input", "output"):
            if not kinds[kind]:
                raise CompileError(
                    f"no {kind} has a name", instead='write inputs="x y", outputs="u"'
                )

    @cached_property
    def symbols(self) -> dict[str, Symbol]:
        """By name, derivatives not among them."""
        every = (*self.inputs, *self.outputs, *self.fields, *self.unknowns)
        return {name: Symbol(name, real=True) for name in every}

    def derivative(self, name: str, where: str) -> tuple[str, tuple[int, ...]]:
        """Output and inputs, sorted, that a name like ``u__x__y`` means; :class:`ExpressionError` if none."""
        output, *by = name.split(MARK)
        if output not in self.outputs:
            raise ExpressionError(
                f"{name!r} is a derivative of {output!r}, which is no output. "
                f"{nearest(output, self.outputs)}".rstrip(),
                where=where,
                instead=f"the outputs are {', '.join(self.outputs)}; a derivative is written "
                f"{self.outputs[0]}{MARK}{self.inputs[0]}",
            )
        for each in by:
            if each not in self.inputs:
                meant = MARK.join(derivative_meant(name, self.outputs, self.inputs))
                hint = f"Did you mean {meant!r}?" if meant else nearest(each, self.inputs)
                by_what = f"by {each!r}, which is no" if each else f"with a {MARK!r} before no"
                raise ExpressionError(
                    f"{name!r} is a derivative {by_what} input of the network. {hint}".rstrip(),
                    where=where,
                    instead=f"the inputs are {', '.join(self.inputs)}",
                )
        if len(by) > MAX_ORDER:
            raise ExpressionError(
                f"{name!r} is a derivative of order {len(by)}; at most {MAX_ORDER} are taken, since the "
                "terms of the chain rule grow faster than exponentially",
                where=where,
                instead="name lower derivatives as outputs of their own, and let equations say so",
            )
        return output, tuple(sorted(map(self.inputs.index, by)))

    def trained(self, equation: Expr) -> bool:
        """Whether an equation depends on an output or an unknown."""
        heads = {symbol.name.split(MARK)[0] for symbol in equation.free_symbols}
        return bool(heads & {*self.outputs, *self.unknowns})

    def symbol(self, output: str, by: Iterable[int]) -> Symbol:
        """The symbol of a derivative, its inputs in order."""
        return Symbol(MARK.join([output, *(self.inputs[i] for i in by)]), real=True)

    def advice(self, name: str) -> str:
        """What to do about a name that there is not."""
        known = [*self.symbols, "pi"]
        meant = MARK.join(derivative_meant(name, self.outputs, self.inputs))
        hint = f"Did you mean {meant!r}?" if meant else nearest(name, known)
        return (
            f"{hint} The names here are {', '.join(known)}; a number that is to be found is one of "
            f"unknowns={{{name!r}: 1.0}}, with its first value, and data are fields of a term".strip()
        )

    def read(self, equation: object, where: str) -> Expr:
        """One equation, as text or sympy, in :attr:`symbols` and those of derivatives."""
        if isinstance(equation, str):
            called = {
                m: self.symbol(*self.derivative(m, where)) for m in _DERIVATIVE.findall(equation)
            }
            functions = ChainMap(callers(self.grids), FUNCTIONS)
            known = {**self.symbols, **called}
            return parse_expression(equation, known, functions, where=where, unknown=self.advice)
        if isinstance(equation, sympy.Eq):
            equation = equation.lhs - equation.rhs
        if not isinstance(equation, Expr):
            raise ExpressionError(
                f"an equation is a {type(equation).__name__}",
                where=where,
                instead="write its residual as text, 'u__t - u__x__x', or as a sympy expression",
            )
        return self._of_sympy(equation, where)

    def _of_sympy(self, equation: Expr, where: str) -> Expr:
        derivatives = {
            d: self._called(d.expr, d.variables, where) for d in equation.atoms(sympy.Derivative)
        }
        plain = equation.xreplace(derivatives)
        apart: dict[Expr, Expr] = {}
        reads: dict[Symbol, Expr] = {}
        for function in calls(plain):
            call = callers(self.grids).get(function.func.__name__)
            if call is None:
                apart[function] = self._called(function, (), where)
                continue
            places = [self._in_symbols(p.xreplace(apart), reads, where) for p in function.args]
            apart[function] = sympy.Dummy(function.func.__name__, real=True)
            try:
                reads[apart[function]] = call(*places)
            except TypeError as error:
                raise ExpressionError(
                    f"{function} cannot be called so: {error}", where=where
                ) from error
        plain = self._in_symbols(plain.xreplace(apart), reads, where)
        for symbol, read in reversed(reads.items()):
            plain = plain.xreplace({symbol: read})
        return plain

    def _in_symbols(self, plain: Expr, others: Collection[Symbol], where: str) -> Expr:
        """An expression without functions of the inputs, in our symbols and ``others``."""
        known = dict(self.symbols)
        for symbol in plain.free_symbols - {*others}:
            if MARK in symbol.name:
                known[symbol.name] = self.symbol(*self.derivative(symbol.name, where))
            elif symbol.name not in known:
                raise ExpressionError(
                    f"the name {symbol.name!r} is unknown",
                    where=f"{where}, {plain}",
                    instead=self.advice(symbol.name),
                )
        return stable(without_piecewise(over_symbols(plain, known), where))

    def _called(self, function: Expr, by: Sequence[Symbol], where: str) -> Symbol:
        """``u(x, t)``, differentiated by symbols."""
        of_inputs = isinstance(function, AppliedUndef) and all(
            isinstance(each, Symbol) and each.name in self.inputs for each in function.args
        )
        if not of_inputs:
            raise ExpressionError(
                f"{function} is no function of the network's inputs",
                where=where,
                instead=f"write the outputs as functions of {', '.join(self.inputs)}, at no other place; the "
                "points of a term say where it holds",
            )
        name = function.func.__name__
        if not by and name not in self.outputs and name in self.symbols:
            return self.symbols[name]  # a field that depends on the coordinates
        text = MARK.join([name, *(each.name for each in by)])
        return self.symbol(*self.derivative(text, where))


def equations_of(given: object, where: str) -> list[Any]:
    """The equations of a term one by one: of a list, a dict, or an object with ``.equations``."""
    given = getattr(given, "equations", given)
    if isinstance(given, Mapping):
        given = list(given.values())
    if not isinstance(given, list | tuple):
        return [given]
    if not given:
        raise ExpressionError("a term without equations", where=where, instead="give it one")
    return list(given)


@dataclass(frozen=True)
class System:
    """The equations of all terms, each a list of residuals in the symbols of :class:`Names`.

    ``losses`` are a name and a scale a term, of :mod:`gncompile.functions.robust`; without them, ``mse``.
    """

    names: Names
    equations: tuple[tuple[Expr, ...], ...]
    losses: tuple[tuple[str, float], ...] = ()

    @classmethod
    def read(cls, names: Names, terms: Mapping[str, object]) -> System:
        """The equations of terms by name, as users write them; mistakes name the term."""
        read = []
        for term, given in terms.items():
            several = equations_of(given, f"the term {term!r}")
            places = [f"the term {term!r}"] * len(several)
            if len(several) > 1:
                places = [f"{place}, equation {i}" for i, place in enumerate(places, start=1)]
            equations = tuple(names.read(*each) for each in zip(several, places, strict=True))
            for equation, place in zip(equations, places, strict=True):
                if not names.trained(equation):
                    raise CompileError(
                        f"the residual {equation} does not depend on the network",
                        where=place,
                        instead=f"write it with the outputs {', '.join(names.outputs)} or their derivatives",
                    )
            read.append(equations)
        return cls(names, tuple(read))

    def residuals(self, unknowns: Mapping[str, str]) -> Residuals:
        """What the graph is to compute; ``unknowns`` are the names of their parameters.

        A sum ``Σ_j w_j u__j__j`` of pure second derivatives, its coefficients numbers, is one stream: the
        streams of a sum cost what those of one derivative cost. The signed roots of losses are taken last.
        """
        names = self.names
        equations, lookups = _with_lookups(self.equations, names)
        equations, sums = _with_sums(equations, names)
        if self.losses:
            several = zip(equations, self.losses, strict=True)
            equations = [[signed_root(e, *loss) for e in each] for each, loss in several]
        outputs = max(map(len, equations))
        zero = sympy.Integer(0)
        expressions = tuple(
            by_term([each[k] if k < len(each) else zero for each in equations])
            for k in range(outputs)
        )
        places = (place for read in lookups.values() for place in read.places)
        used = set().union(*(e.free_symbols for e in (*expressions, *places))) - lookups.keys()
        wanted: list[Derivative] = []
        streams: dict[Symbol, tuple[int, int]] = {}
        for symbol in sorted(used, key=lambda s: s.name):
            head = symbol.name.split(MARK)[0]
            if symbol in sums:
                derivative = sums[symbol]
            elif MARK in symbol.name:
                derivative = Derivative(((names.derivative(symbol.name, "")[1], 1.0),))
            elif head in names.outputs:
                streams[symbol] = 0, names.outputs.index(head)
                continue
            else:
                continue
            if derivative not in wanted:
                wanted.append(derivative)
            streams[symbol] = 1 + wanted.index(derivative), names.outputs.index(head)
        symbols = names.symbols
        return Residuals(
            expressions,
            coordinates={symbols[name]: i for i, name in enumerate(names.inputs)},
            columns={TERM: 0} | {symbols[name]: 1 + i for i, name in enumerate(names.fields)},
            unknowns={symbols[name]: parameter for name, parameter in unknowns.items()},
            streams=streams,
            wanted=tuple(wanted),
            lookups=lookups,
        )


def _with_lookups(
    equations: Sequence[Sequence[Expr]], names: Names
) -> tuple[list[list[Expr]], dict[Symbol, LookUp]]:
    """The equations, what they read of grids being symbols ``image__1``, …, and what these are."""
    known: dict[Expr, Symbol] = {}
    lookups: dict[Symbol, LookUp] = {}
    for equation in (e for several in equations for e in several):
        for call in calls(equation):
            if call not in known:
                name = call.func.__name__
                grid, number = names.grids[name], sum(c.func == call.func for c in known) + 1
                known[call] = Symbol(f"{name}{MARK}{number}", real=True)
                places = grid.in_points([place.xreplace(known) for place in call.args])
                lookups[known[call]] = LookUp(f"{GRID}{name}", grid.of, places)
    return [[e.xreplace(known) for e in several] for several in equations], lookups


def _with_sums(
    equations: Sequence[Sequence[Expr]], names: Names
) -> tuple[list[list[Expr]], dict[Symbol, Derivative]]:
    """The equations, weighted sums of pure second derivatives being symbols of their own, and what these are.

    before::

        a u__x__x + 2 a u__y__y + r

    after, the sum of weights 1 and 2 being ``u__sum``::

        a u__sum + r

    One that is somewhere needed by itself stays: its own stream is there anyway.
    """
    pure = {
        names.symbol(output, (i, i)): (output, i)
        for output in names.outputs
        for i in range(len(names.inputs))
    }
    groups = {e: _proportional(e, pure) for several in equations for e in several}
    alone: set[Symbol] = set()
    for equation, found in groups.items():
        alone |= (equation.free_symbols & pure.keys()) - {s for weights in found for s in weights}
    sums: dict[Symbol, Derivative] = {}

    def sum_of(weights: Mapping[Symbol, Expr]) -> Symbol:
        output, _ = pure[next(iter(weights))]
        derivative = Derivative(tuple(((pure[s][1],) * 2, float(w)) for s, w in weights.items()))
        for symbol, known in sums.items():
            if (known, symbol.name.split(MARK)[0]) == (derivative, output):
                return symbol
        kind = "laplacian" if set(weights.values()) == {1} else "sum"
        number = sum(kind in symbol.name for symbol in sums)
        symbol = Symbol(f"{output}{MARK}{kind}{number or ''}", real=True)
        sums[symbol] = derivative
        return symbol

    def rewritten(equation: Expr) -> Expr:
        for weights in groups[equation]:
            if not alone & weights.keys():
                coefficient = equation.diff(next(iter(weights)))
                rest = equation.xreplace(dict.fromkeys(weights, sympy.Integer(0)))
                equation = coefficient * sum_of(weights) + rest
        return equation

    return [[rewritten(e) for e in several] for several in equations], sums


def _proportional(
    equation: Expr, pure: Mapping[Symbol, tuple[str, int]]
) -> list[dict[Symbol, Expr]]:
    """Groups of ``pure`` derivatives of one output in which ``equation`` is linear, with their weights.

    Within a group coefficients are multiples of the first one by numbers.
    """
    found: list[tuple[str, Expr, dict[Symbol, Expr]]] = []
    inside = sorted(equation.free_symbols & pure.keys(), key=lambda s: pure[s])
    for symbol in inside:
        coefficient, output = equation.diff(symbol), pure[symbol][0]
        if coefficient.free_symbols & pure.keys():
            continue
        for of, first, weights in found:
            ratio = coefficient / first
            if of == output and ratio.is_number:
                weights[symbol] = ratio
                break
        else:
            found.append((output, coefficient, {symbol: sympy.Integer(1)}))
    return [weights for _, _, weights in found if len(weights) > 1]
