"""Emitted source is read once more before it runs, and held against the little Python that emitters write.

Text from outside enters a file as literals, names, comments and docstrings only, see
:mod:`gncompile.emit.literals`. This is the second wall: whatever an emitter may ever be made to write, a file
runs only if it consists of

* a docstring, imports from a fixed list, and functions of assignments, calls, ``del`` of what they have
  assigned, ``return`` and ``pass``;
* expressions of names, numbers, strings, tuples, lists, dictionaries, slices, arithmetic and comparisons;
* calls of functions and methods by name from fixed lists: of tensors, torch, Triton and the libraries here;
* reading and assigning ``s.name`` for the names that ``memory.numbers`` was given.

So nothing in it can import, open, evaluate, format, loop, or reach an attribute with a leading underscore.
"""

from __future__ import annotations

import ast
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from ..emit.triton_calls import IMPORTS, MODULES
from ..errors import InternalError
from ..functions.primitives import torch_functions

TORCH = frozenset(
    {
        *torch_functions(),
        *("mm", "matmul", "addmm", "bmm", "dot", "stack", "cat", "tensor", "where", "lerp"),
        *("mean", "sum", "softmax", "logsumexp", "log_softmax", "_foreach_zero_"),
        *("add", "sub", "mul", "div", "neg", "pow", "sqrt", "rsqrt", "reciprocal", "square"),
        *("addcmul", "addcdiv", "clamp", "maximum", "minimum", "hypot", "logaddexp", "xlogy"),
        *("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not"),
        *("abs", "sign", "copysign", "floor", "ceil", "trunc", "round", "fmod", "remainder"),
        *("exp2", "log2", "log10", "asin", "acos", "acosh", "atanh", "atan2", "erfinv", "lgamma"),
        *("isfinite", "isnan", "nan_to_num", "float_power", "logit", "sinc", "signbit"),
        *("special.xlog1py", "special.ndtr", "special.log_ndtr", "special.erfcx"),
        *("ops.aten.softplus.out", "ops.aten.tanh_backward.grad_input"),
        *("ops.aten.sigmoid_backward.grad_input", "ops.aten.threshold_backward.grad_input"),
    }
)
"""Functions of torch that compute on tensors; none of them touches a file."""

METHODS = frozenset(
    {
        *("T", "mT", "device", "state", "draws"),
        *("buffer", "parameter", "constant", "scalar", "flat", "random", "precision"),
        *("pack", "all_reduce", "place", "all_gather", "add_up", "unpack"),
        *("add_", "sub_", "mul_", "div_", "addmm_", "copy_", "fill_", "zero_", "neg_", "clamp_"),
        *(
            "diagonal",
            "flatten",
            "unflatten",
            "permute",
            "unsqueeze",
            "squeeze",
            "unbind",
            "movedim",
        ),
        *("numbers", "sum", "item"),
        *("index_copy_", "index_select", "index_add_", "masked_fill_", "lerp_", "addcmul_"),
        *("expand", "launches"),
    }
)
"""Attributes of tensors, of ``memory``, and of what is none of the modules below."""

TRITON_MODULE = frozenset(
    {
        *("Problem", "plan_group", "grouped_gemm", "Moment", "plan_moments", "grouped_moments"),
        *("Inverse", "plan_inverses", "newton_schulz"),
    }
)
"""What a step takes from :data:`~gncompile.emit.triton_calls.MODULES`, before ``launches``."""

TRITON_LANGUAGE = frozenset(
    {
        *("abs", "exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "rsqrt", "erf", "sigmoid"),
        *("where", "maximum", "minimum", "fma", "floor", "ceil", "clamp"),
    }
)
BUILTINS = frozenset({"range", "float", "abs"})
RUNTIME = ("linalg", "convolutions", "interpolation", "lookups", "jacobian_rows", "scalars")
"""Modules beside this one that a step may call the functions of."""

_CONSTANTS = frozenset({bool, int, float, str, type(None), type(...)})
_LIBRARY = "gncompile.triton_kernels"
_IMPORTS = frozenset(
    {
        "import torch",
        "import triton",
        "import triton.language as tl",
        *(f"from gncompile.runtime import {module}" for module in RUNTIME),
        f"from {_LIBRARY} import accurate",
        *(f"from {_LIBRARY} import {module} as {name}" for name, module in MODULES.items()),
        *(f"from {_LIBRARY}.{m} import {name}" for m, names in IMPORTS.items() for name in names),
    }
)


_PARSING = threading.Lock()
"""Python 3.11 counts the depth of trees for all threads together, and now and then takes a sound file for one
that is nested too deeply where two parse at once."""


def checked(text: str) -> ast.Module:
    """The tree of an emitted file.

    Raises :class:`InternalError`, with the line, for text that is not Python, or more than is listed here.
    """
    try:
        with _PARSING:
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(
            f"it is not valid Python: {error}", text, getattr(error, "lineno", 0)
        ) from error
    try:
        _Check(tree)
    except RecursionError:
        raise _refused("an expression is nested too deeply", text, 0) from None
    except _Unknown as unknown:
        raise _refused(str(unknown), text, getattr(unknown.node, "lineno", 0)) from None
    return tree


def _refused(why: str, text: str, line: int | None) -> InternalError:
    lines = text.split("\n")
    shown = ascii(lines[line - 1].strip())[:200] if line and line <= len(lines) else ""
    return InternalError(
        f"emitted source is refused: {why}",
        where=f"line {line}: {shown}" if shown else None,
        instead="report it with the model: this is a fault of gncompile, and nothing has been run",
    )


class _Unknown(Exception):
    def __init__(self, node: ast.AST, what: str) -> None:
        super().__init__(what)
        self.node = node


class _Check:
    """One walk over a tree, in the order of the file; a name is known once it has been bound."""

    def __init__(self, tree: ast.Module) -> None:
        self.imported: dict[str, str] = {}
        self.bound: set[str] = set()
        self.numbers: set[str] = set()
        self.own: set[str] = set()  # what the function being read assigns to
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports(node)
            elif isinstance(node, ast.FunctionDef):
                self.function(node)
            elif not _is_docstring(node):
                raise _Unknown(node, f"{type(node).__name__} outside a function")

    # Statements

    def imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name
            as_name = f" as {alias.asname}" if alias.asname else ""
            if isinstance(node, ast.Import):
                line = f"import {alias.name}{as_name}"
            else:
                line = f"from {'.' * node.level}{node.module} import {alias.name}{as_name}"
            if line not in _IMPORTS or bound in self.bound:
                raise _Unknown(node, f"{line!r} is not among its imports")
            self.imported[bound] = line

    def function(self, node: ast.FunctionDef) -> None:
        given = node.args
        unusual = (given.posonlyargs, given.kwonlyargs, given.vararg, given.kwarg, given.defaults)
        if any(unusual) or node.returns or any(a.annotation for a in given.args):
            raise _Unknown(node, "a function takes its arguments by position")
        for decorator in node.decorator_list:
            if not (isinstance(decorator, ast.Attribute) and _dotted(decorator) == "triton.jit"):
                raise _Unknown(decorator, "a function is decorated")
        self.bind(node, node.name)
        for argument in given.args:
            self.bind(argument, argument.arg)
        outer, self.own = self.own, _assigned(node)
        for statement in node.body:
            self.statement(statement)
        self.own = outer

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr):
            if not _is_docstring(node):
                if not isinstance(node.value, ast.Call):
                    raise _Unknown(node, "an expression is not used")
                self.value(node.value)
        elif isinstance(node, ast.Assign):
            self.value(node.value)
            for target in node.targets:
                self.target(target)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if not (isinstance(target, ast.Name) and target.id in self.own):
                    raise _Unknown(node, "something other than a function's own value is deleted")
        elif isinstance(node, ast.FunctionDef):
            self.function(node)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                self.value(node.value)
        elif not isinstance(node, ast.Pass):
            raise _Unknown(node, f"{type(node).__name__} in a function")

    def target(self, node: ast.expr) -> None:
        if isinstance(node, ast.Tuple):
            for element in node.elts:
                self.target(element)
        elif isinstance(node, ast.Name):
            self.bind(node, node.id)
        elif not self.is_number(node):
            raise _Unknown(node, "something other than a name or a number is assigned to")

    def is_number(self, node: ast.expr) -> bool:
        """Whether it is an attribute ``s.name`` that ``s = memory.numbers(name=…)`` has made."""
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            return False
        return node.value.id == "s" and node.attr in self.numbers

    def bind(self, node: ast.AST, name: str) -> None:
        if name in self.imported or name in BUILTINS or name.startswith("__"):
            raise _Unknown(node, f"the name {name!r} is given a new meaning")
        self.bound.add(name)

    # Expressions

    def value(self, node: ast.expr) -> None:
        check = _EXPRESSIONS.get(type(node))
        if check is None:
            raise _Unknown(node, f"{type(node).__name__} in an expression")
        check(self, node)

    def values(self, nodes: Iterable[ast.expr | None]) -> None:
        for node in nodes:
            if node is not None:
                self.value(node)

    def name(self, node: ast.Name) -> None:
        if node.id not in self.bound and node.id not in self.imported:
            raise _Unknown(node, f"the name {node.id!r} is not known")

    def constant(self, node: ast.Constant) -> None:
        if type(node.value) not in _CONSTANTS:
            raise _Unknown(node, f"a constant of type {type(node.value).__name__}")

    def call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Name):
            imported = called.id in self.imported and self.imported[called.id].startswith("from")
            if not imported and called.id not in BUILTINS:
                raise _Unknown(node, f"{called.id!r} is called")
        elif isinstance(called, ast.Attribute):
            self.attribute(called)
        else:
            raise _Unknown(node, f"{type(called).__name__} is called")
        for argument in node.args:
            self.value(argument.value if type(argument) is ast.Starred else argument)
        made = isinstance(called, ast.Attribute) and _dotted(called) == "memory.numbers"
        for keyword in node.keywords:
            if keyword.arg is None or (made and keyword.arg.startswith("_")):
                raise _Unknown(node, f"the keyword {keyword.arg or '**'!r}")
            if made:
                self.numbers.add(keyword.arg)
            self.value(keyword.value)

    def attribute(self, node: ast.Attribute) -> None:
        inner = node.value
        if self.is_number(node):
            self.name(inner)  # type: ignore[arg-type]
            return
        if isinstance(inner, ast.Name) and inner.id not in self.imported:
            allowed = node.attr in METHODS or (inner.id == "kernels" and _is_tile(node.attr))
            if not allowed:
                raise _Unknown(node, f"the attribute {node.attr!r}")
            self.name(inner)
            return
        dotted = _dotted(node)
        root, _, rest = dotted.partition(".")
        if root not in self.imported:
            if node.attr not in METHODS:
                raise _Unknown(node, f"the attribute {node.attr!r}")
            self.value(inner)
        elif not _members(root)(rest):
            raise _Unknown(node, f"{dotted!r}")


def _assigned(function: ast.FunctionDef) -> set[str]:
    """The names that a function's own statements give a value."""
    assignments = (s for s in function.body if isinstance(s, ast.Assign))
    return {t.id for s in assignments for t in s.targets if isinstance(t, ast.Name)}


def _is_tile(name: str) -> bool:
    return name.endswith("_tile") and not name.startswith("_")


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and type(node.value.value) is str
    )


def _dotted(node: ast.expr) -> str:
    """``a.b.c``, or text without a name before the first dot."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(names))


@cache
def _members(root: str) -> Callable[[str], bool]:
    """Which dotted names of an import may be used."""
    if root == "torch":
        return TORCH.__contains__
    if root == "triton":
        return {"jit"}.__contains__
    if root == "tl":
        return TRITON_LANGUAGE.__contains__
    if root in RUNTIME:
        module = import_module(f"..{root}", __name__)
        return _functions(inspect.getsource(module)).__contains__
    if root == "accurate":
        from ..triton_kernels import accurate

        return _functions(inspect.getsource(accurate)).__contains__
    if root in MODULES:
        return {*TRITON_MODULE, *(f"{name}.launches" for name in TRITON_MODULE)}.__contains__
    return {"launches"}.__contains__


def _functions(source: str) -> frozenset[str]:
    """The public functions that a module defines, not those it imports."""
    return frozenset(re.findall(r"^def ([A-Za-z]\w*)\(", source, re.MULTILINE))


def _parts(*fields: str) -> Callable[[_Check, ast.expr], None]:
    """A check of the expressions in some fields of a node."""

    def check(self: _Check, node: ast.expr) -> None:
        for name in fields:
            part = getattr(node, name)
            if isinstance(part, list):
                self.values(part)
            elif part is not None:
                self.value(part)

    return check


_EXPRESSIONS: Mapping[type[ast.expr], Callable[[_Check, Any], None]] = {
    ast.Name: _Check.name,
    ast.Constant: _Check.constant,
    ast.Call: _Check.call,
    ast.Attribute: _Check.attribute,
    ast.Tuple: _parts("elts"),
    ast.List: _parts("elts"),
    ast.Starred: _parts("value"),
    ast.Dict: _parts("keys", "values"),
    ast.Subscript: _parts("value", "slice"),
    ast.Slice: _parts("lower", "upper", "step"),
    ast.UnaryOp: _parts("operand"),
    ast.BinOp: _parts("left", "right"),
    ast.Compare: _parts("left", "comparators"),
    ast.IfExp: _parts("test", "body", "orelse"),
}
