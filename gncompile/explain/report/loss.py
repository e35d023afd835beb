"""A loss as the field writes it: value, gradient, output Hessian, its root, and what KFAC samples."""

from __future__ import annotations

from dataclasses import replace

import sympy

from ...losses.coupled_loss import CoupledLoss
from ...losses.vocabulary import Loss, SeparableLoss, SoftmaxCrossEntropy, SumLoss
from ..notation import (
    Call,
    Elementwise,
    Group,
    Infix,
    Math,
    Name,
    Number,
    Power,
    Root,
    Sum,
    Transpose,
    product,
)
from .blocks import Line
from .rules import derivative


def loss_rules(loss: Loss) -> list[Line]:
    """Value, gradient, output Hessian, a root of it and the sampled gradient, per sample; c is the scale."""
    match loss:
        case SeparableLoss():
            return _separable(loss)
        case SoftmaxCrossEntropy():
            return _softmax()
        case CoupledLoss():
            return _coupled(loss)
        case SumLoss():
            pairs = ((term, line) for term in loss.terms for line in loss_rules(term.loss))
            return [replace(line, label=f"{term.key}: {line.label}") for term, line in pairs]


NOISE = {
    "normal": "sampled gradient, noise ~ N(0, 1)",
    "uniform": "sampled gradient, noise uniform on [0, 1)",
    "sign": "projected gradient, noise = ±1",
}


def _separable(loss: SeparableLoss) -> list[Line]:
    c, e, j = Name("c"), Name("e"), Name("Σ_j")
    first, second = Name("e′"), Name("e″")
    arguments = (Name("z_j"), Name("y_j"))

    def written(expression: sympy.Expr) -> Math:
        return Elementwise(expression, ())

    return [
        Line("value", Name("E_n"), product(c, j, Call("e", arguments))),
        Line("with", e, written(loss.expression)),
        Line("gradient", Name("g"), product(c, first)),
        Line("with", first, written(loss.slope)),
        Line("output Hessian", Name("𝓗"), product(c, Call("diag", (second,)))),
        Line("with", second, written(loss.curvature)),
        Line("root, C Cᵀ = 𝓗", Name("C"), product(Root(c), Call("diag", (written(loss.root),)))),
        Line(NOISE[loss.noise], Name("g̃"), product(Root(c), Group(written(loss.sampled_slope)))),
    ]


def _softmax() -> list[Line]:
    c, m, p, z = Name("c"), Name("m"), Name("p"), Name("z")
    y, drawn = Name("ŷ"), Name("ỹ")
    roots = Root(p)
    square = Sum(((True, Call("diag", (p,))), (False, product(p, Transpose(p)))))
    root = Sum(((True, Call("diag", (roots,))), (False, product(p, Transpose(roots)))))
    scale = Root(product(c, m))
    value = product(c, Name("Σ_k"), Name("ŷ_k"), Call("log", (Name("p_k"),)))
    return [
        Line("value", Name("E_n"), Sum(((False, value),))),
        Line("with", p, Call("softmax", (z,))),
        Line("and the target's mass", m, product(Name("Σ_k"), Name("ŷ_k"))),
        Line("gradient", Name("g"), product(c, Group(Sum(((True, product(m, p)), (False, y)))))),
        Line("output Hessian", Name("𝓗"), product(c, m, Group(square))),
        Line("root, C Cᵀ = 𝓗", Name("C"), product(scale, Group(root))),
        Line("sampled gradient, ỹ ~ Categorical(p)", Name("g̃"),
             product(scale, Group(Sum(((True, p), (False, Call("onehot", (drawn,)))))))),
    ]  # fmt: skip


def _coupled(loss: CoupledLoss) -> list[Line]:
    """Gradient and Hessian entry by entry; entries that vanish are left out."""
    c, e = Name("c"), Name("e")
    z = [Name(str(symbol)) for symbol in loss.z]

    def written(expression: sympy.Expr) -> Math:
        return Elementwise(expression, ())

    second = Power(Name("∂"), Number("2"))
    hessian = product(
        c, Infix("/", (product(second, e), product(Name("∂"), Power(Name("z"), Number("2")))))
    )
    decomposed = "𝓗 = U Λ Uᵀ sample by sample" + (
        ", negative eigenvalues set to zero" if loss.negative_curvature == "clip" else ""
    )
    eigenvalues = Root(Group(Name("Λ")))
    return [
        Line("value", Name("E_n"), product(c, e)),
        Line("with", e, written(loss.value)),
        Line("gradient", Name("g_i"), product(c, derivative(e, (Name("z_i"),)))),
        *(
            Line("with", derivative(e, (z[i],)), written(slope))
            for i, slope in enumerate(loss.gradient)
            if slope != 0
        ),
        Line("output Hessian", Name("𝓗"), hessian),
        *(
            Line("with", derivative(e, (z[i], z[j])), written(entry))
            for (i, j), entry in loss.hessian.items()
            if entry != 0
        ),
        Line(f"root, {decomposed}", Name("C"), product(Name("U"), eigenvalues)),
        Line("projected gradient, noise = ±1", Name("g̃"), product(Name("C"), Name("noise"))),
    ]
