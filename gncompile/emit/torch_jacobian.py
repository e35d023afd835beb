"""Operations on the Jacobian's rows as calls of ``runtime/jacobian_rows.py``."""

from __future__ import annotations

from ..program import exact
from ..program.specs import Spec
from ..program.step_program import Instruction
from .layout import WIDTH, filled
from .literals import literal
from .torch_operations import File, writes


@writes(exact.Rows)
def _rows(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, exact.Rows)
    how = f"{literal(i.op.homogeneous)}, {literal(i.op.coordinate)}"
    return [f"jacobian_rows.rows({', '.join(v)}, {how}, out={out})"]


@writes(exact.RowGram)
def _row_gram(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, exact.RowGram)
    weight, *sides = v
    before = sides.pop() if i.op.adds else "None"
    how = f"], {literal(i.op.bias)}, {before}, out={out})"
    return filled(f"jacobian_rows.row_gram({weight}, [", sides, how, WIDTH - 8)


@writes(exact.RowSquares)
def _row_squares(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, exact.RowSquares)
    how = f"], {literal(i.op.vector)}, {literal(i.op.coordinates)}, out={out})"
    return filled("jacobian_rows.row_squares([", v, how, WIDTH - 8)


@writes(exact.Joined)
def _joined(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    return filled("jacobian_rows.join([", v, f"], out={out})", WIDTH - 8)


@writes(exact.RootSolve)
def _root_solve(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, exact.RootSolve)
    how = literal(i.op.diagonal)
    return [f"jacobian_rows.root_solve({', '.join(v)}, {how}, out={out})"]


@writes(exact.PrimalSolve)
def _primal_solve(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    scale = [] if len(v) > 3 else ["None"]
    return [f"jacobian_rows.primal_solve({', '.join([*v, *scale])}, out={out})"]


@writes(exact.RootRest, exact.DualSolve)
def _solve(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    names: dict[type, str] = {exact.RootRest: "root_rest", exact.DualSolve: "dual_solve"}
    return [f"jacobian_rows.{names[type(i.op)]}({', '.join(v)}, out={out})"]
