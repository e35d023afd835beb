"""Mathematical text to sympy, by a whitelist; nothing is ever executed.

Grammar::

    expression ::=  number | symbol | symbol[number] | pi | (expression) | -expression
                 |  expression (+ | - | * | / | **) expression
                 |  function(expression, …, parameter=expression)
                 |  select(condition, expression, expression)          also spelled where(…)
    condition  ::=  expression (> | >= | < | <=) expression | expression    the latter means "> 0"

Decimals are read as the exact rationals they mean (0.1 is 1/10). Length, size, nesting, exponents and numbers
are bounded, so a hostile text is refused in milliseconds. Every error names the column.
"""

from __future__ import annotations

import ast
import math
import operator
import unicodedata
from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from ..base.plugins import TRANSFERS, load_plugins
from ..errors import ExpressionError, nearest
from .declarations import MAX_PARTS, tree_size
from .primitives import PRIMITIVES, SHORTHANDS, number, select

MAX_LENGTH = 4000
MAX_NODES = 500
MAX_DEPTH = 32
MAX_EXPONENT = 64
MAX_BITS = 4096
MAX_VALUE = 1e300

Function = Callable[..., Expr]

FUNCTIONS: MutableMapping[str, Function] = ChainMap({}, PRIMITIVES, SHORTHANDS)  # type: ignore[arg-type]
"""What an expression may call; registered transfer functions join it by name."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Expr, Expr], Expr]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}

_REFUSED = {
    ast.Attribute: "an attribute access",
    ast.Subscript: "an index",
    ast.Lambda: "a lambda",
    ast.IfExp: "an if expression",
    ast.BoolOp: "a logical operator",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "a formatted string",
    ast.Starred: "a starred argument",
    ast.Compare: "a comparison outside select",
}


def parse_expression(
    text: str,
    symbols: Mapping[str, Symbol],
    functions: Mapping[str, Function] | None = None,
    *,
    where: str = "",
    unknown: Callable[[str], str] | None = None,
) -> Expr:
    """The expression ``text`` means, over ``symbols`` and ``functions`` (default: all known ones).

    ``where`` names the place in the user's files for error texts, ``unknown`` says what to do about a name
    that is none of ``symbols``. Raises :class:`ExpressionError` for anything outside the grammar above.

    >>> x = Symbol("x", real=True)
    >>> parse_expression("x * sigmoid(2*x)", {"x": x})
    x*sigmoid(2*x)
    """
    known = FUNCTIONS if functions is None else functions
    return _Parser(text, symbols, known, where, unknown).parse()


@dataclass
class _Parser:
    text: str
    symbols: Mapping[str, Symbol]
    functions: Mapping[str, Function]
    where: str
    unknown: Callable[[str], str] | None
    sizes: dict[Expr, int] = field(default_factory=dict)

    def parse(self) -> Expr:
        if not isinstance(self.text, str) or not self.text.strip():
            raise self.refusal("an expression must be a non-empty text", None)
        if len(self.text) > MAX_LENGTH:
            found = (
                f"an expression of {len(self.text)} characters; at most {MAX_LENGTH} are allowed"
            )
            raise self.refusal(found, None, "split it into several functions")
        if unicodedata.normalize("NFKC", self.text) != self.text:
            # Python reads such characters as others, as a wide x for an x.
            raise self.refusal("characters that only look like usual ones", None, "type them again")
        try:
            # Leading blanks would count as indentation, line breaks as further statements.
            tree = ast.parse(self.text.replace("\n", " ").lstrip(), mode="eval")
        except SyntaxError as error:
            raise self.refusal(
                f"the expression is malformed: {error.msg}", (error.offset or 1) - 1
            ) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise self.refusal(f"the expression cannot be read: {error}", None) from None
        if sum(isinstance(node, ast.expr) for node in ast.walk(tree)) > MAX_NODES:
            raise self.refusal(f"an expression of more than {MAX_NODES} parts", None)
        return self.visit(tree.body, 0)

    def visit(self, node: ast.expr, depth: int) -> Expr:
        """The value of one syntax node, its numbers checked."""
        if depth > MAX_DEPTH:
            raise self.refusal(f"an expression nested more than {MAX_DEPTH} deep", node)
        if isinstance(node, ast.Constant):
            value = self.constant(node)
        elif isinstance(node, ast.Name):
            value = self.name(node)
        elif isinstance(node, ast.Subscript) and _indexed(node) in self.symbols:
            value = self.symbols[_indexed(node)]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            operand = self.visit(node.operand, depth + 1)
            value = -operand if isinstance(node.op, ast.USub) else operand
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            value = self.arithmetic(node, depth)
        elif isinstance(node, ast.Call):
            value = self.call(node, depth)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            raise self.refusal("'^' is not a power here", node, "write x**2 for the square of x")
        else:
            kind = _REFUSED.get(type(node), f"a {type(node).__name__}")
            raise self.refusal(f"{kind} has no place in an expression", node)
        return self.checked(value, node)

    def constant(self, node: ast.Constant) -> Expr:
        if type(node.value) is int and node.value.bit_length() <= MAX_BITS:
            return sympy.Integer(node.value)
        if type(node.value) is float and math.isfinite(node.value):
            return number(node.value)
        kind = f"the {type(node.value).__name__} {str(node.value)[:40]!r}"
        if type(node.value) in (int, float):
            kind = "a number too large for floating point"
        raise self.refusal(f"{kind} has no place in an expression", node)

    def name(self, node: ast.Name) -> Expr:
        if node.id in self.symbols:
            return self.symbols[node.id]
        if node.id == "pi":
            return sympy.pi
        if node.id in self.functions:
            raise self.refusal(f"the function {node.id!r} is used without arguments", node)
        known = [*self.symbols, "pi"]
        instead = f"{nearest(node.id, known)} The names here are {', '.join(known)}.".strip()
        if self.unknown is not None:
            instead = self.unknown(node.id)
        raise self.refusal(f"the name {node.id!r} is unknown", node, instead)

    def arithmetic(self, node: ast.BinOp, depth: int) -> Expr:
        # A chain a + b + c leans to the left: it is long, not deep.
        chain = isinstance(node.op, ast.Add | ast.Sub | ast.Mult)
        left = self.visit(node.left, depth if chain else depth + 1)
        right = self.visit(node.right, depth + 1)
        if isinstance(node.op, ast.Div) and right.is_zero:
            raise self.refusal("a division by zero", node)
        if isinstance(node.op, ast.Pow):
            self.check_power(left, right, node)
        return _ARITHMETIC[type(node.op)](left, right)

    def check_power(self, base: Expr, exponent: Expr, node: ast.expr) -> None:
        if exponent.is_number and abs(exponent) > MAX_EXPONENT:
            raise self.refusal(f"the exponent {exponent} is beyond ±{MAX_EXPONENT}", node)
        nested = base.exp * exponent if base.is_Pow else sympy.Integer(0)
        if nested.is_number and abs(nested) > MAX_EXPONENT:
            raise self.refusal(f"nested powers reach beyond the exponent ±{MAX_EXPONENT}", node)
        if base.is_Rational and exponent.is_number and _bits(base) * abs(exponent) > MAX_BITS:
            raise self.refusal("a power of numbers too large for floating point", node)
        if base.is_zero and exponent.is_negative:
            raise self.refusal("a division by zero", node)

    def call(self, node: ast.Call, depth: int) -> Expr:
        if not isinstance(node.func, ast.Name):
            raise self.refusal("only a plain function name can be called", node.func)
        name = node.func.id
        if name in ("select", "where"):
            return self.branch(node, depth)
        if name not in self.functions:
            load_plugins(TRANSFERS)
        if name not in self.functions:
            hint = nearest(name, self.functions)
            instead = hint or f"the functions are {', '.join(sorted(self.functions))}"
            raise self.refusal(f"the function {name!r} is unknown", node, instead)
        arguments = [self.visit(argument, depth + 1) for argument in node.args]
        keywords: dict[str, Expr] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.refusal("a starred argument has no place in an expression", node)
            keywords[keyword.arg] = self.visit(keyword.value, depth + 1)
        if keywords and name in PRIMITIVES:
            raise self.refusal(f"{name} takes no parameter {next(iter(keywords))!r}", node)
        try:
            return self.functions[name](*arguments, **keywords)
        except (TypeError, ValueError) as error:
            raise self.refusal(f"{name} cannot be called so: {error}", node) from None

    def branch(self, node: ast.Call, depth: int) -> Expr:
        if len(node.args) != 3 or node.keywords:
            raise self.refusal(
                f"select takes 3 arguments, not {len(node.args) + len(node.keywords)}",
                node,
                "write select(condition, value where it holds, value elsewhere)",
            )
        test, yes, no = node.args
        u, v = self.visit(yes, depth + 1), self.visit(no, depth + 1)
        if not isinstance(test, ast.Compare):
            return self.selected(self.visit(test, depth + 1), u, v, test)
        if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Gt | ast.Lt | ast.GtE | ast.LtE):
            raise self.refusal("a condition compares two expressions by >, >=, < or <=", test)
        left = self.visit(test.left, depth + 1)
        right = self.visit(test.comparators[0], depth + 1)
        match test.ops[0]:
            case ast.Gt():
                return self.selected(left - right, u, v, test)
            case ast.Lt():
                return self.selected(right - left, u, v, test)
            case ast.GtE():
                return self.selected(right - left, v, u, test)
            case _:
                return self.selected(left - right, v, u, test)

    def selected(self, margin: Expr, u: Expr, v: Expr, node: ast.expr) -> Expr:
        """``select(margin, u, v)``; a constant margin has to have a sign that can be told."""
        if margin.is_number and margin.is_extended_positive is None:
            raise self.refusal("a condition on constants whose sign cannot be told", node)
        return select(margin, u, v)

    def checked(self, value: Expr, node: ast.expr) -> Expr:
        """``value``, refused when it is out of proportion or holds a number that is not real or finite.

        The size comes first: what is asked afterwards walks all parts.
        """
        parts = tree_size(value, self.sizes)
        if parts > MAX_PARTS:
            raise self.refusal(
                f"an expression of {parts} parts, its functions written out; at most {MAX_PARTS} are allowed",
                node,
                "nest functions less deep (relu, clamp and gelu write their argument twice), or use several "
                "layers or nodes",
            )
        if value.is_number:
            if value.is_Rational and _bits(value) > MAX_BITS:
                raise self.refusal("a number too large for floating point", node)
            approximate = value if value.is_infinite else value.evalf(15)
            if approximate.is_finite is not True or approximate.is_real is not True:
                raise self.refusal("this part is not a finite real number", node)
            if abs(approximate) > MAX_VALUE:
                raise self.refusal("a number too large for floating point", node)
        elif value.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise self.refusal("this part is not a finite real expression", node)
        return value

    def refusal(self, found: str, at: ast.expr | int | None, instead: str = "") -> ExpressionError:
        """The error that points at the column of ``at``."""
        places = [self.where] if self.where else []
        if at is not None:
            column = at if isinstance(at, int) else self.characters(at.col_offset)
            column += len(self.text) - len(self.text.lstrip())
            places.append(f"column {column + 1} of {_excerpt(self.text, column)}")
        elif isinstance(self.text, str) and self.text:
            places.append(_excerpt(self.text, 0))
        raise ExpressionError(found, where=", ".join(places), instead=instead or None) from None

    def characters(self, offset: int) -> int:
        """A column in characters; the syntax tree counts bytes."""
        return len(self.text.lstrip().encode()[:offset].decode(errors="ignore"))


def _indexed(node: ast.Subscript) -> str:
    """``z[0]`` as the name of a symbol, or nothing that can be one."""
    plain = isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant)
    return ast.unparse(node) if plain else ""


def _bits(value: sympy.Rational) -> int:
    return int(value.p).bit_length() + int(value.q).bit_length()


def _excerpt(text: str, column: int, width: int = 60) -> str:
    start = max(0, column - width // 2)
    part = text[start : start + width]
    return repr(("…" if start else "") + part + ("…" if start + width < len(text) else ""))
