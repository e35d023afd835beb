"""Formulas as LaTeX, for ``amsmath``."""

from __future__ import annotations

from ..notation import (
    Bracket,
    Call,
    Cases,
    Component,
    Elementwise,
    Fraction,
    Group,
    Infix,
    Inverse,
    Math,
    Name,
    Number,
    Power,
    Root,
    Sum,
    Transpose,
    Word,
    bare,
    expanded,
)
from .symbols import as_term, is_one_thing, typeset_name

SYMBOLS = {
    "⊙": r"\odot ", "⊗": r"\otimes ", "≈": r"\approx ", "←": r"\leftarrow ", "·": r"\cdot ", "|": r"\mid ",
    "−": "-", "∂": r"\partial ", "∇": r"\nabla ", "Σ": r"\textstyle\sum ", "∑": r"\textstyle\sum ",
    "Δ": r"\Delta ", "δ": r"\delta ", "ε": r"\varepsilon ", "γ": r"\gamma ", "η": r"\eta ", "κ": r"\kappa ",
    "λ": r"\lambda ", "π": r"\pi ", "ρ": r"\rho ", "σ": r"\sigma ", "φ": r"\varphi ", "√": r"\surd ",
    "𝓗": r"\mathcal{H}", "Ḡ": r"\bar G", "W̄": r"\bar W", "ŷ": r"\hat y", "ỹ": r"\tilde y", "g̃": r"\tilde g",
    "′": "'", "″": "''", "½": r"\tfrac12 ", "ᵀ": r"^{\top}", "≥": r"\geq ", "≤": r"\leq ", "→": r"\to ",
    "×": r"\times ", "±": r"\pm ", "…": r"\dots ", "∈": r"\in ", "²": "^2", "⁻¹": "^{-1}", "∞": r"\infty ",
    "⋆": r"\star ", "∗": r"\ast ",
    "ā": r"\bar a", "θ": r"\theta ", "Ē": r"\bar E", "‖": r"\|", "∝": r"\propto ", "x̄": r"\bar x",
    **{digit: f"_{i}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}  # fmt: skip
"""Characters of our formulas and prose in LaTeX's mathematics."""

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_\allowbreak{}", "&": r"\&", "%": r"\%",
    "$": r"\$", "#": r"\#", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "’": "'", "“": "``", "”": "''", "–": "--", "—": "---",
    "§": r"\S{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a character it may lack is written by its code point, as [U+4E2D]."""
    longest = sorted(SYMBOLS, key=len, reverse=True)
    written, at = [], 0
    while at < len(text):
        sign = next((s for s in longest if s not in "|" and text.startswith(s, at)), None)
        character = text[at]
        if sign:
            written.append(rf"\ensuremath{{{SYMBOLS[sign].strip()}}}")
        elif character in ESCAPES:
            written.append(ESCAPES[character])
        else:
            known = character.isascii() and (character.isprintable() or character == "\n")
            written.append(character if known else f"{{[U+{ord(character):04X}]}}")
        at += len(sign or character)
    return "".join(written)


def latex_math(m: Math) -> str:
    """A tree between dollars. Brackets do not grow, so that long formulas break at operators."""
    match m:
        case Name(text):
            return _name(*typeset_name(text))
        case Number(text):
            return text.replace("−", "-")
        case Word("Σ"):
            return SYMBOLS["Σ"]
        case Word(text):
            return rf"\text{{{escaped(text)} }}"
        case Infix(sign, parts):
            between = {"": r"\,", ",": ", "}.get(sign) or SYMBOLS.get(sign, sign)
            return between.join(map(latex_math, parts))
        case Sum(terms):
            signed = "".join(
                f" {'+' if plus else '-'} {latex_math(as_term(term))}" for plus, term in terms
            )
            return signed.removeprefix(" + ")
        case Group(body):
            return latex_math(body) if is_one_thing(body) else f"({latex_math(body)})"
        case Bracket(opening, body, closing):
            left, right = (r"\lvert ", r"\rvert ") if opening == "|" else (opening, closing)
            return f"{left}{latex_math(bare(body))}{right}"
        case Call(function, arguments, brackets):
            inner = ", ".join(latex_math(bare(argument)) for argument in arguments)
            return f"{_function(function)}{brackets[0]}{inner}{brackets[1]}"
        case Elementwise(expression, operands):
            return latex_math(expanded(expression, dict(operands)))
    return _decorated(m)


def _decorated(m: Transpose | Inverse | Component | Fraction | Power | Root | Cases) -> str:
    match m:
        case Transpose(Transpose(body)):
            return latex_math(body)
        case Transpose(body):
            return rf"{{{latex_math(Group(bare(body)))}}}^{{\top}}"
        case Inverse(body):
            return f"({latex_math(body)})^{{-1}}"
        case Component(body, which):
            return rf"{latex_math(body)}\text{{.{escaped(which)}}}"
        case Fraction(above, below):
            return rf"\frac{{{latex_math(above)}}}{{{latex_math(below)}}}"
        case Power(base, exponent):
            return f"{{{latex_math(base)}}}^{{{latex_math(exponent)}}}"
        case Root(body):
            return rf"\sqrt{{{latex_math(body)}}}"
        case Cases(branches):
            rows = r" \\ ".join(f"{latex_math(v)} & {latex_math(c)}" for v, c in branches)
            return rf"\begin{{cases}} {rows} \end{{cases}}"


def _name(base: str, below: str, inverse: bool) -> str:
    symbol = (
        SYMBOLS.get(base, base)
        if len(base) == 1 or base in SYMBOLS
        else rf"\text{{{escaped(base)}}}"
    )
    if base[:-1].isalpha() and base[-1:] in ("′", "″"):
        symbol = f"{base[:-1]}{SYMBOLS[base[-1]]}"
    subscript = rf"_{{\text{{{escaped(below)}}}}}" if below else ""
    return f"{symbol.strip()}{subscript}{'^{-1}' if inverse else ''}"


def _function(name: str) -> str:
    if name in SYMBOLS:
        return SYMBOLS[name]
    if len(name) == 1:
        return rf"\mathrm{{{name}}}"
    return (
        rf"\operatorname{{{name}}}"
        if name.isascii() and name.isalpha()
        else rf"\text{{{escaped(name)}}}"
    )
