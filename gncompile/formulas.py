"""A step program as formulas: each value written in the notation of docs/mathematics.md.

``G_0 = (W[2]ᵀ (G_2 W[2])) ⊙ E[b bᵀ]`` is written nowhere: it is read off the instructions, so what is shown
is what runs. Values keep the names they have in the emitted source.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import sympy

from . import step_program as ir
from .functions import select
from .model_graph import Affine, ModelGraph
from .step_program import Instruction, StepProgram

LONGEST_INLINED = 64
"""A value whose formula is longer than this gets a line of its own."""


@dataclass
class Formulas:
    """Writes the values of a program.

    ``names`` are the leaves' names in formulas: ``W[layer]``, ``b[layer]``, states as ``kind[layer]``.
    """

    program: StepProgram
    names: Mapping[str, str]
    _readers: Mapping[str, set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self._readers = self._find_readers()
        self._results = set(self.program.results.values())

    @classmethod
    def of(cls, program: StepProgram, graph: ModelGraph) -> Formulas:
        """The formulas of a graph's program."""
        parameters = {}
        for node in graph:
            if isinstance(node.op, Affine):
                parameters[node.op.weight] = f"W[{node.op.layer}]"
                if node.op.bias:
                    parameters[node.op.bias] = f"b[{node.op.layer}]"
        leaves = program.leaves()
        return cls(program, {leaf.name: _leaf_name(leaf, parameters) for leaf in leaves})

    def lines(self, wanted: Collection[str]) -> list[str]:
        """One line for each of the ``wanted`` values, in program order.

        A wanted value is written inside its reader instead of on a line of its own if only that one reads
        it, it is no result, and its formula is short.
        """
        chosen = [
            i
            for i in self.program
            if i.name in wanted and not isinstance(i.op, (ir.Leaf, *ir.VIEWS))
        ]
        inlined: set[str] = set()
        for i in chosen:
            if self._is_inner(i, wanted) and len(self.write(i, inlined)) <= LONGEST_INLINED:
                inlined.add(i.name)
        shown = [i for i in chosen if i.name not in inlined]
        names = [self.names[i.into] if i.into else i.name for i in shown]
        texts = [self.write(i, inlined) for i in shown]
        left = max(map(len, names), default=0)
        right = min(max(map(len, texts), default=0), LONGEST_INLINED)
        return [
            f"{name:<{left}} {'←' if i.into else '='} {text:<{right}}  : {i.spec}"
            for name, text, i in zip(names, texts, shown, strict=True)
        ]

    def _is_inner(self, instruction: Instruction, wanted: Collection[str]) -> bool:
        readers = self._readers.get(instruction.name, set())
        named = instruction.into or instruction.name in self._results or instruction.comment
        tensor = isinstance(instruction.op, ir.Affine)
        return not named and not tensor and len(readers) == 1 and readers <= set(wanted)

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
        """The right-hand side of an instruction."""
        v = [self._operand(name, inlined) for name in i.inputs]
        match i.op:
            case ir.Pointwise(expression, symbols):
                return _pointwise(expression, dict(zip(symbols, v, strict=True)))
            case ir.Affine():
                products = [f"{v[k]} {_transposed(v[k + 1])}" for k in range(0, len(v) - 1, 2)]
                return " + ".join(products + ([v[-1]] if len(v) % 2 else []))
            case ir.MatMul(a, b):
                left, right = (_transposed(v[0]) if a else v[0]), (_transposed(v[1]) if b else v[1])
                return f"{left} {right}"
            case ir.SymmetricProduct():
                return f"{_transposed(v[0])} {v[1]}"
            case ir.Multiply():
                return f"{self._matrix(i.inputs[0], v[0])} {v[1]}"
            case ir.Hadamard():
                return f"{v[0]} ⊙ {v[1]}"
            case ir.Moment(homogeneous):
                return _moment(v, homogeneous)
            case ir.AddDiagonal():
                return f"{v[0]} + diag({v[1]})"
            case ir.Decay(weight, bias):
                parts = [f"{eta:g} {x}" for eta, x in zip((weight, bias), v[1:], strict=False)]
                return f"{v[0]} + [{', '.join(parts)}]"
            case ir.Average():
                return f"{v[2]} {v[0]} + (1 - {v[2]}) {self._matrix(i.inputs[1], v[1])}"
            case ir.DampedInverse():
                return f"({self._matrix(i.inputs[0], v[0])} + {v[1]} I)⁻¹"
        return _call(i.op, v)

    def _operand(self, name: str, inlined: Collection[str]) -> str:
        instruction = self.program[name]
        match instruction.op:
            case ir.Transpose():
                return _transposed(self._operand(instruction.inputs[0], inlined))
            case ir.Part(which):
                return f"{self._operand(instruction.inputs[0], inlined)}.{which}"
            case ir.AsMatrix() | ir.Head():
                return self._operand(instruction.inputs[0], inlined)
        if instruction.into:
            return self.names[instruction.into]
        if name in inlined:
            return _enclosed(self.write(instruction, inlined))
        return self.names.get(name, name)

    def _matrix(self, name: str, text: str) -> str:
        """``c I`` or ``diag(d)`` where that is how the stored value is read."""
        spec = self.program[name].spec
        if spec.structure is ir.Structure.SCALED_IDENTITY:
            return f"{text} I"
        return f"diag({text})" if spec.structure is ir.Structure.DIAGONAL else text


def _pointwise(expression: sympy.Expr, operands: Mapping[sympy.Symbol, str]) -> str:
    if set(expression.args) == set(operands):
        if isinstance(expression, sympy.Mul):
            return " ⊙ ".join(operands.values())
        if isinstance(expression, sympy.Add):
            return " + ".join(operands.values())
    named = expression.xreplace({s: sympy.Symbol(name) for s, name in operands.items()})
    return str(named.replace(lambda e: isinstance(e, select), _extremum))


def _extremum(branch: select) -> sympy.Expr:
    """``select(u - v, u, v)`` written as ``max(u, v)``, and with exchanged branches as ``min``."""
    condition, u, v = branch.args
    if condition == u - v:
        return sympy.Function("max")(u, v)
    return sympy.Function("min")(u, v) if condition == v - u else branch


def _moment(v: list[str], homogeneous: bool) -> str:
    a, b = v[0], v[-1]
    if homogeneous:
        return f"E[[{a}, 1] [{a}, 1]ᵀ]" if len(v) == 1 else f"E[{a} [{b}, 1]ᵀ]"
    return f"E[{a} {_transposed(b)}]"


_CALLS: Mapping[type, str] = {
    ir.Mean: "E[{0}]",
    ir.Softmax: "softmax({0})",
    ir.LogSumExp: "log Σ exp({0})",
    ir.RowSum: "Σ_j {0}",
    ir.Trace: "tr {0}",
    ir.PlusTranspose: "{0} + {0}ᵀ",
    ir.Precondition: "-{1} {0} {2}",
    ir.PreconditionEigen: "-({1} ⊗ {2} + {3} I)⁻¹ {0}",
    ir.Columns: "columns of {0}",
    ir.BroadcastRows: "{0} in every row",
    ir.Scatter: "selectᵀ({0})",
    ir.Eigen: "eigen({0})",
    ir.Densify: "full({0})",
    ir.Zeros: "0",
}


def _call(op: ir.Op, v: list[str]) -> str:
    """Operations that are written like functions of their operands."""
    if isinstance(op, ir.Gather):
        whole = op.index == tuple(range(len(op.index)))
        return f"[{' | '.join(v)}]" if whole and len(v) > 1 else f"select({', '.join(v)})"
    if isinstance(op, ir.Total | ir.Dot):
        return ("(1/N) " if op.mean else "") + "Σ " + " ⊙ ".join(v)
    if isinstance(op, ir.Random):
        return f"random {op.kind}"
    pattern = _CALLS.get(type(op))
    return pattern.format(*v) if pattern else f"{ir.describe(op)}({', '.join(v)})"


_NAME = r"[\w.]+(\[[^\[\]]*\])?(⁻¹)?(\[[^\[\]]*\])?[\w.]*"
_GROUP = r"(E|diag|softmax|select)?[\[(](?:[^\[\]()]|\[[^\[\]]*\]|\([^()]*\))*[\])]"


def _enclosed(text: str) -> str:
    """The text in parentheses unless it is one name or one group."""
    return text if re.fullmatch(f"({_NAME}|{_GROUP})ᵀ?", text) else f"({text})"


def _transposed(text: str) -> str:
    """The text with a ᵀ, or without the one it has."""
    return text[:-1] if text.endswith("ᵀ") else f"{_enclosed(text)}ᵀ"


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
