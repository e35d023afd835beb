"""A step program as formulas: each value written in the notation of docs/mathematics.md.

``G_0 = (W[2]ᵀ (G_2 W[2])) ⊙ E[b bᵀ]`` is written nowhere: it is read off the instructions, so what is shown
is what runs. Values keep the names they have in the emitted source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import sympy

from ..graph.convolution import Convolution, ConvolutionTransposed
from ..graph.layers import Affine
from ..graph.model_graph import ModelGraph
from ..program import collectives, exact, lookups, specs
from ..program import convolutions as grids
from ..program import operations as ir
from ..program.step_program import Instruction, StepProgram
from .notation import (
    Bracket,
    Call,
    Component,
    Elementwise,
    Fraction,
    Group,
    Infix,
    Inverse,
    Math,
    Name,
    Number,
    Sum,
    Transpose,
    Word,
    product,
    text,
)

LONGEST_INLINED = 64
"""A value whose formula is longer than this gets a line of its own."""


@dataclass(frozen=True)
class Equation:
    """``target = formula``, or ``target ← formula`` for a state that is overwritten."""

    target: Name
    formula: Math
    instruction: Instruction

    @property
    def relation(self) -> str:
        return "←" if self.instruction.into else "="


@dataclass
class Formulas:
    """Writes the values of a program.

    ``names`` are the leaves' names in formulas: ``W[layer]``, ``b[layer]``, states as ``kind[layer]``.
    """

    program: StepProgram
    names: Mapping[str, str]
    _readers: Mapping[str, set[str]] = field(init=False)
    _position: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._readers = self._find_readers()
        self._results = set(self.program.results.values())
        written = (i for i in self.program if not isinstance(i.op, (ir.Leaf, *ir.VIEWS)))
        self._position = {i.name: place for place, i in enumerate(written)}

    @classmethod
    def of(cls, program: StepProgram, graph: ModelGraph) -> Formulas:
        """The formulas of a graph's program."""
        parameters = {}
        for node in graph:
            if isinstance(node.op, Affine | Convolution | ConvolutionTransposed):
                parameters[node.op.weight] = f"W[{node.op.layer}]"
                if node.op.bias:
                    parameters[node.op.bias] = f"b[{node.op.layer}]"
        leaves = program.leaves()
        return cls(program, {leaf.name: _leaf_name(leaf, parameters) for leaf in leaves})

    def lines(self, wanted: Collection[str]) -> list[str]:
        """The :meth:`equations` of the ``wanted`` values as aligned text, one line each."""
        equations = self.equations(wanted)
        names = [text(e.target) for e in equations]
        texts = [text(e.formula) for e in equations]
        left = max(map(len, names), default=0)
        right = min(max(map(len, texts), default=0), LONGEST_INLINED)
        return [
            f"{name:<{left}} {e.relation} {written:<{right}}  : {e.instruction.spec}"
            for name, written, e in zip(names, texts, equations, strict=True)
        ]

    def equations(self, wanted: Collection[str]) -> list[Equation]:
        """One equation for each of the ``wanted`` values, in program order.

        A wanted value is written inside its reader instead of on a line of its own if only that one reads
        it, it is no result, and its formula is short.
        """
        chosen = [
            self.program[name]
            for name in sorted(self._position.keys() & set(wanted), key=self._position.__getitem__)
        ]
        inlined: set[str] = set()
        for i in chosen:
            if self._is_inner(i, wanted) and len(self.write(i, inlined)) <= LONGEST_INLINED:
                inlined.add(i.name)
        return [
            Equation(Name(self.names.get(into := i.into or i.name, into)), self.tree(i, inlined), i)
            for i in chosen
            if i.name not in inlined
        ]

    def _is_inner(self, instruction: Instruction, wanted: Collection[str]) -> bool:
        readers = self._readers.get(instruction.name, set())
        named = instruction.into or instruction.name in self._results or instruction.comment
        # Of the many numbers of a quadratic model a formula names a few; each has its line.
        in_model = any(isinstance(self.program[x].op, ir.StepSizes) for x in readers)
        tensor = isinstance(instruction.op, ir.Affine)
        return not (named or in_model or tensor) and len(readers) == 1 and readers <= set(wanted)

    def _find_readers(self) -> dict[str, set[str]]:
        """Which instructions read a value, directly or through views."""
        readers: dict[str, set[str]] = {}
        for i in self.program:
            if isinstance(i.op, ir.VIEWS):
                continue
            for name in i.inputs:
                while isinstance(self.program[name].op, ir.VIEWS):
                    name = self.program[name].inputs[0]
                readers.setdefault(name, set()).add(i.name)
        return readers

    # --- one value ------------------------------------------------------------------------------------

    def write(self, i: Instruction, inlined: Collection[str] = ()) -> str:
        """The right-hand side of an instruction in one line."""
        return text(self.tree(i, inlined))

    def tree(self, i: Instruction, inlined: Collection[str] = ()) -> Math:
        """The right-hand side of an instruction."""
        v = [self._operand(name, inlined) for name in i.inputs]
        match i.op:
            case ir.Pointwise(expression, symbols):
                return _pointwise(expression, dict(zip(symbols, v, strict=True)))
            case ir.Affine():
                products = [product(v[k], Transpose(v[k + 1])) for k in range(0, len(v) - 1, 2)]
                return _plus(*products, *([v[-1]] if len(v) % 2 else []))
            case ir.MatMul(a, b):
                return product(Transpose(v[0]) if a else v[0], Transpose(v[1]) if b else v[1])
            case ir.SymmetricProduct():
                return product(Transpose(v[0]), v[1])
            case ir.Multiply():
                return product(self._matrix(i.inputs[0], v[0]), v[1])
            case ir.Hadamard():
                return Infix("⊙", tuple(v))
            case ir.Moment(homogeneous):
                return _moment(v, homogeneous)
            case grids.Convolve():
                return _plus(Infix("⋆", (v[1], v[0])), *v[2:])
            case ir.AddDiagonal():
                return _plus(v[0], Call("diag", (v[1],)))
            case ir.Decay(weight, bias):
                pairs = zip((weight, bias), v[1:], strict=False)
                parts = tuple(product(Number(f"{eta:g}"), x) for eta, x in pairs)
                return _plus(v[0], Bracket("[", Infix(",", parts), "]"))
            case ir.Average():
                rest = Bracket("(", Sum(((True, Number("1")), (False, v[2]))), ")")
                return _plus(product(v[2], v[0]), product(rest, self._matrix(i.inputs[1], v[1])))
            case ir.Total(mean) | ir.Dot(mean):
                rows = next(
                    (d for d in self.program[i.inputs[0]].spec.shape if d in specs.SAMPLES), ""
                )
                over = (Fraction(Number("1"), Name(str(rows))),) if mean else ()
                return product(*over, Word("Σ"), Infix("⊙", tuple(v)))
            case ir.StepSizes():
                return _step_sizes(i.op, v)
            case ir.DampedInverse():
                damped = _plus(self._matrix(i.inputs[0], v[0]), product(v[1], IDENTITY))
                return Inverse(damped)
        return _call(i.op, v)

    def _operand(self, name: str, inlined: Collection[str]) -> Math:
        instruction = self.program[name]
        match instruction.op:
            case ir.Transpose():
                return Transpose(self._operand(instruction.inputs[0], inlined))
            case ir.Part(which):
                return Component(self._operand(instruction.inputs[0], inlined), which)
            case ir.AsMatrix() | ir.Share() | ir.SampleMatrix() | ir.Unflatten() | ir.Flatten():
                return self._operand(instruction.inputs[0], inlined)
            case grids.FeaturesLast():
                return self._operand(instruction.inputs[0], inlined)
        if instruction.into:
            return Name(self.names.get(instruction.into, instruction.into))
        if name in inlined:
            return Group(self.tree(instruction, inlined))
        return Name(self.names.get(name, name))

    def _matrix(self, name: str, m: Math) -> Math:
        """``c I`` or ``diag(d)`` where that is how the stored value is read."""
        spec = self.program[name].spec
        if spec.structure is specs.Structure.SCALED_IDENTITY:
            return product(m, IDENTITY)
        return Call("diag", (m,)) if spec.structure is specs.Structure.DIAGONAL else m


IDENTITY = Name("I")


def _plus(*terms: Math) -> Math:
    return Sum(tuple((True, term) for term in terms))


def _pointwise(expression: sympy.Expr, operands: Mapping[sympy.Symbol, Math]) -> Math:
    if set(expression.args) == set(operands):
        if isinstance(expression, sympy.Mul):
            return Infix("⊙", tuple(operands.values()))
        if isinstance(expression, sympy.Add):
            return _plus(*operands.values())
    return Elementwise(expression, tuple(operands.items()))


def _moment(v: list[Math], homogeneous: bool) -> Math:
    a, b = v[0], v[-1]
    if homogeneous:
        row = Bracket("[", Infix(",", (b, Number("1"))), "]")
        return _mean(product(row if len(v) == 1 else a, Transpose(row)))
    return _mean(product(a, Transpose(b)))


def _mean(m: Math) -> Math:
    return Call("E", (m,), "[]")


SHOWN = 3
"""Numbers of a quadratic model that its formula names; of more the first and the last."""


def _step_sizes(op: ir.StepSizes, v: list[Math]) -> Math:
    """``argmin_c bᵀc + ½ cᵀMc`` with what M and b are; bounds are told in words."""
    b, c, m = Name("b"), Name("c"), Name("M")
    entries = op.count * (op.count + 1) // 2
    half = product(Fraction(Number("1"), Number("2")), Transpose(c), m, c)
    quadratic = Group(Sum(((True, product(Transpose(b), c)), (True, half))))
    given = (
        Infix("=", (name, Bracket("[", Infix(",", _some(values)), "]")))
        for name, values in ((m, v[:entries]), (b, v[entries : entries + op.count]))
    )
    bounded = (Word("of bounded length,"),) if op.growth is not None else ()
    return product(
        Word("argmin over"),
        c,
        Word("of"),
        quadratic,
        *bounded,
        Word("with"),
        Infix(",", tuple(given)),
    )


def _some(values: list[Math]) -> tuple[Math, ...]:
    if len(values) <= SHOWN:
        return tuple(values)
    return (values[0], Word("…"), values[-1])


def _damped(v: list[Math]) -> Math:
    """``(A ⊗ B + c I)⁻¹``."""
    return Inverse(_plus(Infix("⊗", (v[1], v[2])), product(v[3], IDENTITY)))


def _shifted(v: list[Math]) -> Math:
    """``(A + c I)⁻¹``."""
    return Inverse(_plus(v[0], product(v[1], IDENTITY)))


_CALLS: Mapping[type, Callable[[list[Math]], Math]] = {
    ir.Mean: lambda v: _mean(v[0]),
    ir.Softmax: lambda v: Call("softmax", (v[0],)),
    ir.LogSumExp: lambda v: Call("log Σ exp", (v[0],)),
    ir.RowSum: lambda v: product(Name("Σ_j"), v[0]),
    ir.Trace: lambda v: product(Word("tr"), v[0]),
    ir.DiagonalMoment: lambda v: Call("mean square", tuple(v)),
    ir.TakeDiagonal: lambda v: Call("diagonal", tuple(v)),
    ir.PlaceBlocks: lambda v: Call("sum of blocks", tuple(v)),
    ir.PlaceDots: lambda v: Call("⟨blocks, factor⟩", tuple(v)),
    ir.PlusTranspose: lambda v: _plus(v[0], Transpose(v[0])),
    ir.Precondition: lambda v: Sum(((False, product(v[1], v[0], v[2])),)),
    ir.PreconditionEigen: lambda v: Sum(((False, product(_damped(v), v[0])),)),
    ir.SampleRoot: lambda v: Call("root", (v[0],)),
    ir.SampleMultiply: lambda v: product(*v),
    ir.Columns: lambda v: product(Word("columns of"), v[0]),
    ir.Scatter: lambda v: Call("selectᵀ", (v[0],)),
    ir.Eigen: lambda v: Call("eigen", (v[0],)),
    ir.Densify: lambda v: Call("full", (v[0],)),
    ir.Zeros: lambda v: Number("0"),
    ir.Repeat: lambda v: product(v[0], Word("in every row")),
    lookups.Lookup: lambda v: Call("rows", (v[1], v[0])),
    lookups.LookupGradient: lambda v: _mean(product(Transpose(Call("indicators", (v[0],))), v[1])),
    lookups.Counts: lambda v: _mean(Call("counts", (v[0],))),
    lookups.OneHot: lambda v: Call("indicators", (v[0],)),
    exact.Rows: lambda v: product(v[0], Transpose(v[1])),
    exact.RowGram: lambda v: Call("Gram", tuple(v)),
    exact.RowSquares: lambda v: Call("diagonal of the Gram", tuple(v)),
    exact.Joined: lambda v: Call("vec", tuple(v)),
    exact.RootSolve: lambda v: product(Inverse(v[0]), v[1]),
    exact.RootRest: lambda v: Call("rest", tuple(v)),
    exact.DualSolve: lambda v: product(_shifted(v), v[2]),
    exact.PrimalSolve: lambda v: Sum(((False, product(_shifted(v), v[2])),)),
    collectives.AllReduce: lambda v: Call("sums over processes", tuple(v)),
    collectives.AllGather: lambda v: Call("of all processes", tuple(v)),
    collectives.CongruenceRows: lambda v: Call("own rows", (product(Transpose(v[0]), v[1], v[0]),)),
    collectives.Reduced: lambda v: product(Word("of all processes in"), v[0]),
    grids.ConvolveAdjoint: lambda v: Infix("∗", (v[1], v[0])),
    grids.ConvolveGradient: lambda v: _mean(Infix("⋆", tuple(v))),
    grids.Patches: lambda v: Call("patches", (v[0],)),
    grids.MaxPool: lambda v: Call("max", (v[0],)),
    grids.SumPool: lambda v: Call("sum", (v[0],)),
    grids.Winners: lambda v: Call("winners", (v[0],)),
    grids.Pick: lambda v: Call("pick", tuple(v)),
    grids.Spread: lambda v: Call("spread", tuple(v)),
    grids.BlockDiagonal: lambda v: Call("blocks", (v[0],)),
}


def _call(op: ir.Op, v: list[Math]) -> Math:
    """Operations that are written like functions of their operands."""
    if isinstance(op, ir.Gather):
        whole = op.index == tuple(range(len(op.index)))
        if whole and len(v) > 1:
            return Bracket("[", Infix("|", tuple(v)), "]")
        return Call("select", tuple(v))
    if isinstance(op, ir.Random):
        return Word(f"random {op.kind}")
    if isinstance(op, ir.Interpolate):
        of = f"∂{list(op.of.order)} " if any(op.of.order) else ""
        return Call(f"{of}interpolate", tuple(v))
    written = _CALLS.get(type(op))
    return written(v) if written else Call(_words(op), tuple(v))


def _words(op: ir.Op) -> str:
    """The operation's name in words, without its attributes: ``place moments``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(op).__name__).lower()


def _leaf_name(leaf: Instruction, parameters: Mapping[str, str]) -> str:
    op = leaf.op
    assert isinstance(op, ir.Leaf)
    if op.kind == "parameter":
        return parameters.get(op.key, op.key)
    if op.kind == "state":
        kind, dot, layer = op.key.partition(".")
        known = {"damping": "λ", "Q_inverse": "Q⁻¹", "G_inverse": "G⁻¹", "step": "δ"}
        return f"{known.get(kind, kind)}[{layer}]" if dot else known.get(kind, kind)
    return leaf.name
