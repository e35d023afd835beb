"""Emitted source: one writer of foreign text, one namer, and a list of what a file may hold."""

from __future__ import annotations

import ast
import inspect
import keyword
import math
import re
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import nothing_executed, payloads
from torch import nn

import gncompile
from gncompile.base.names import RESERVED, Names, identifier, is_name
from gncompile.emit.literals import comment, docstring, literal, plain_name
from gncompile.emit.triton_calls import IMPORTS, MODULES
from gncompile.errors import InternalError
from gncompile.runtime.source_check import METHODS, checked
from gncompile.runtime.source_files import load_source, source_of

HEAD = "import torch\n\nfrom gncompile.runtime import linalg\n\n\ndef bind(memory, N):\n"
ODD = (
    *(
        "",
        "class",
        "None",
        "True",
        "lambda",
        "range",
        "memory",
        "torch",
        "x",
        "N",
        "float",
        "print",
    ),
    *(
        "__class__",
        "_",
        "1st",
        "a.b",
        "größe",
        "ﬁ",
        "a²",
        "a\u2028b",
        '"',
        "\\",
        "{x}",
        "%s",
        "\ud800",
    ),
    *("a" * 100_000, "ä" * 1000, "import", "def", "run", "gemm", "kernels", "x0", "triton", "np"),
)


# --- the writer ------------------------------------------------------------------------------------------


@given(st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text()))
@settings(max_examples=100, deadline=None)
def test_literals_are_read_back_as_they_were(value: object) -> None:
    text = literal((value, [value]))
    tree = ast.parse(text, mode="eval")
    again = eval(compile(tree, "literal", "eval"), {"__builtins__": {"float": float}})
    for read in (again[0], again[1][0]):
        assert type(read) is type(value)
        assert read == value or (math.isnan(read) and math.isnan(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [object(), {1}, {"a": 1}, torch.ones(()), b"x", 1j, ast, type])
def test_nothing_else_has_a_literal(value: object) -> None:
    with pytest.raises(InternalError, match="no literal for"):
        literal(value)


def test_a_subclass_does_not_print_itself() -> None:
    class Sly(float):
        def __repr__(self) -> str:
            return "exec('x')"

    with pytest.raises(InternalError, match="no literal for a Sly"):
        literal(Sly(1.0))


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_comments_and_docstrings_hold_any_text(text: str) -> None:
    doc = f'"""{docstring(text)}"""'
    source = f"{doc}\n\n\ndef f():\n    {doc}\n    pass  # {comment(text)}\n"
    tree = ast.parse(source)
    assert [type(node) for node in tree.body] == [ast.Expr, ast.FunctionDef]
    assert [type(node) for node in tree.body[1].body] == [ast.Expr, ast.Pass]  # type: ignore[attr-defined]
    assert source.isascii() or all(line.isprintable() for line in source.split("\n"))
    assert len(source.splitlines()) == source.count("\n")


def test_names_are_identifiers_given_once() -> None:
    names = Names()
    given_names = [names.fresh(hint) for hint in ODD * 2]
    assert len(set(given_names)) == len(given_names)
    for name in given_names:
        assert is_name(name)
        assert plain_name(name) == name
        assert name.isidentifier()
        assert name.isascii()
        assert len(name) < 200
        assert not keyword.iskeyword(name)
    assert identifier("encoder.0") == "encoder_0"
    assert identifier("0.weight") == "v_0_weight"


def test_every_name_that_a_step_imports_is_reserved() -> None:
    for names in (*IMPORTS.values(), MODULES):
        assert set(names) <= RESERVED


def test_many_equal_names_stay_cheap() -> None:
    names = Names()
    assert [names.fresh("dot") for _ in range(20_000)][-1] == "dot_20000"


# --- the list --------------------------------------------------------------------------------------------

REFUSED = (
    "import os",
    "from os import system",
    "x = __import__('os')",
    "x = memory.__class__",
    "x = memory._flat",
    "x = torch.load('f')",
    "x = torch.ops.load_library('f')",
    "x = torch.hub.load('a', 'b')",
    "x = torch.ops.aten.set_.source(N)",
    "x = linalg.torch.load('f')",
    "x = linalg._eigh(N)",
    "x = open('f')",
    "x = exec('1')",
    "x = eval('1')",
    "x = getattr(memory, 'a')",
    "x = print",
    "x = unknown",
    "x = memory('a')",
    "x = (lambda: 1)()",
    "x = [n for n in range(N)]",
    "x = f'{N}'",
    "x = b'bytes'",
    "x = 1j",
    "x = (y := 1)",
    "x = N if N else open('f')",
    "x = memory.buffer('x', (N,)).__class__",
    "x = memory.buffer(**N)",
    "memory.x = 1",
    "memory['x'] = 1",
    "torch = 1",
    "range = N",
    "__builtins__ = N",
    "N",
    "N + 1",
    "for i in range(N):\n        pass",
    "while True:\n        pass",
    "if N:\n        pass",
    "with N:\n        pass",
    "try:\n        pass\n    except N:\n        pass",
    "global N",
    "del N",
    "x = N\n    del x.T",
    "raise N",
    "assert N",
    "class A:\n        pass",
    "async def f():\n        pass",
    "def f(a=open('f')):\n        pass",
    "def f(*a):\n        pass",
    "def f() -> open('f'):\n        pass",
    "def f(a: open('f')):\n        pass",
    "@N\n    def f():\n        pass",
    "@torch.compile\n    def f():\n        pass",
    "x: open('f') = 1",
    "x += 1",
    "yield N",
    "await N",
    "match N:\n        case 1:\n            pass",
    "x = " + "(" * 500 + "N" + ")" * 500,
    "x = " + "-" * 100_000 + "N",
    "x = 'open",
    "\x00",
)


@pytest.mark.parametrize("statement", REFUSED, ids=lambda text: ascii(text[:40]))
def test_what_no_emitter_writes_is_refused(statement: str, tmp_path: Path) -> None:
    marker = tmp_path / "from_a_statement"
    with pytest.raises(InternalError, match="emitted source is refused"), nothing_executed(marker):
        load_source(f"{HEAD}    {statement}\n", "refused")


@pytest.mark.parametrize("statement", ["x = 1", "open('f')", "if 1:\n    pass", "x: int = 1", "1"])
def test_a_file_holds_imports_and_functions_only(statement: str) -> None:
    with pytest.raises(InternalError, match="emitted source is refused"):
        checked(f"{HEAD}    pass\n\n\n{statement}\n")


def test_the_place_is_named() -> None:
    with pytest.raises(InternalError, match=r"'open' is called\n  where:      line 8: .x = open"):
        checked(f"{HEAD}    y = N\n    x = open('f')\n")


@pytest.mark.parametrize("text", payloads(Path("/tmp/never")), ids=lambda text: ascii(text[:30]))
def test_payloads_as_values_do_not_pass(text: str) -> None:
    if text.startswith('"""'):  # a string, as it stands
        text = text.strip('"').removeprefix("+").removesuffix("+")
    with pytest.raises(InternalError, match="emitted source is refused"):
        checked(f"{HEAD}    x = {text}\n")


# --- in memory ---------------------------------------------------------------------------------------------


def test_tracebacks_and_inspect_show_the_text_whatever_the_file_says() -> None:
    module, path = load_source(f"{HEAD}    return torch.mm(N, N)\n", "shown")
    assert path is not None
    path.write_text("raise SystemExit\n" * 20)
    assert inspect.getsource(module.bind) == "def bind(memory, N):\n    return torch.mm(N, N)\n"
    assert source_of(module) == f"{HEAD}    return torch.mm(N, N)\n"
    with pytest.raises(TypeError) as caught:
        module.bind(None, 1)
    assert "return torch.mm(N, N)" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ODD, ids=lambda text: ascii(text[:20]))
def test_any_name_of_a_model_gives_a_short_file_name(name: str) -> None:
    _, path = load_source(f"{HEAD}    return N\n", name)
    assert path is not None
    assert path.parent.name == "source"
    assert len(path.name) < 100


# --- text from a user's model --------------------------------------------------------------------------


def named(key: str, inplace: bool) -> nn.Module:
    """A network with a layer, a buffer and a normalisation under ``key``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({key: nn.Linear(2, 3)})
            self.register_buffer(f"{key}_scale", torch.ones(3))
            self.act = nn.ReLU(inplace=True) if inplace else nn.Tanh()
            self.out = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.act(self.heads[key](x) * getattr(self, f"{key}_scale")))

    Net.__name__ = key
    return Net()


@pytest.mark.parametrize("inplace", [False, True])
def test_module_paths_are_only_text(inplace: bool, tmp_path: Path) -> None:
    """In-place functions make torch write the paths into code of its own, which is to see none of them."""
    marker = tmp_path / "from_a_module_path"
    torch.manual_seed(0)
    x, y = torch.rand(40, 2), torch.rand(40, 1)
    start = named("plain", inplace).state_dict()
    losses, method = [], "adam" if inplace else "kfra"
    keys = [text.replace(".", "\u2024") for text in payloads(marker)]
    for key in ("plain", "class", *(keys[3:6:2] if inplace else keys[10:11])):
        model = named(key, inplace)
        model.load_state_dict(dict(zip(model.state_dict(), start.values(), strict=True)))
        with nothing_executed(marker):
            trainer = gncompile.compile(model, "mse", x[:2], method, tune="off")
            losses.append([float(trainer.step(x, y).loss) for _ in range(2)])
    assert all(each == losses[0] for each in losses)


def test_parameters_of_any_name_get_variables_of_their_own() -> None:
    keys = [key for key in ODD if key and "." not in key and not hasattr(nn.Module(), key)]
    keys += [f"{key}_flat" for key in ("l", "memory")] + ["l"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key in dict.fromkeys(keys):
                self.add_module(key, nn.Linear(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.children():
                x = layer(x).tanh()
            return x

    model = Net()
    trainer = gncompile.compile(model, "mse", torch.zeros(2, 2), "adam", tune="off")
    loss = trainer.step(torch.ones(40, 2), torch.ones(40, 2)).loss
    with torch.no_grad():
        expected = ((model(torch.ones(1, 2)) - 1) ** 2).sum() / 2
    assert trainer.evaluate(torch.ones(40, 2), torch.ones(40, 2)) == pytest.approx(float(expected))
    assert loss > float(expected)
    long = [line for line in trainer.source.splitlines() if len(line) > 1000]
    assert all(" = memory.parameter('" in line for line in long)  # by their keys, as they are
    assert len(long) == 4


def test_whatever_is_asked_of_the_memory_is_known() -> None:
    """Also in branches of the writers that no program of the tests comes to."""
    folder = Path(inspect.getfile(gncompile)).parent / "emit"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    asked = set(re.findall(r"\bmemory\.([a-z_]+)", text))
    assert {"add_up", "buffer"} <= asked
    assert asked <= METHODS
