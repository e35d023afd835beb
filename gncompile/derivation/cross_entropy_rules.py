"""The rules of softmax cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sympy

from ..losses.constants import BLOCKS
from ..losses.vocabulary import SoftmaxCrossEntropy
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Spec, Structure, matrix
from .loss_target import WEIGHT, LossTarget, exact, in_rows


@dataclass
class CrossEntropyRules:
    """Softmax cross-entropy with index or soft targets ``ŷ`` of mass m (formulas at the declaration).

    Where a sample has P places the output ``[N, K·P]``, classes first, is read as ``[N, P, K]``, and all of
    this happens at every place; c is times the places' weights, if any.
    """

    loss: SoftmaxCrossEntropy
    target: LossTarget

    def __post_init__(self) -> None:
        self.builder, loss, whole = self.target.builder, self.loss, self.target.z
        self.places = loss.count if loss.places else 0
        self.classes = whole.width // loss.count
        builder, k = self.builder, self.classes
        self.c, self.symbols = self.target.scale(loss.count)
        if self.places and WEIGHT in self.symbols:
            self.symbols[WEIGHT] = self._at_places(self.symbols[WEIGHT], 1)
        # Targets reach the program as rows [N, K]; the runtime turns class indices into one-hot rows.
        rows = self._at_places(self.target.column("y"), k)
        y, omega = sympy.Symbol("y", real=True), sympy.Symbol("omega", nonnegative=True)
        smoothing = exact(loss.label_smoothing)
        target, values = (1 - smoothing) * y + smoothing / k, {y: rows}
        if loss.class_weights:
            target *= omega
            values[omega] = self.target.constant("class_weight", Spec((k,)))
        self.y = in_rows(builder, builder.pointwise(target, values, name="y_smooth"), rows)
        self.z = self._at_places(self._classes_last(whole), k)
        self.p = builder.emit(ir.Softmax(), self.z, name="p")
        self.mass = builder.emit(ir.RowSum(), self.y, name="target_mass")

    def _at_places(self, value: Value, width: int) -> Value:
        """Rows ``[N, P·d]`` as ``[N, P, d]``."""
        if not self.places:
            return value
        sizes = (self.places, width)
        return self.builder.emit(ir.Unflatten(sizes), value, name=f"{value.name}_places")

    def _classes_last(self, value: Value) -> Value:
        """``[N, K·P]`` in the order of places."""
        if not self.places:
            return value
        order = tuple(
            k * self.places + place for place in range(self.places) for k in range(self.classes)
        )
        return self.builder.emit(ir.Gather(order), value, name=f"{value.name}_classes_last")

    def _name(self, name: str) -> str:
        """What a value is called where its classes stand last, at places."""
        return f"{name}_places" if self.places else name

    def _flat(self, value: Value, name: str) -> Value:
        """``[…, P, K]`` in the order of the output, ``[…, K·P]``."""
        if not self.places:
            return value
        order = tuple(
            place * self.classes + k for k in range(self.classes) for place in range(self.places)
        )
        rows = self.builder.emit(ir.Flatten(), value, name=f"{name}_rows")
        return self.builder.emit(ir.Gather(order), rows, name=name)

    def _block_diagonal(self, matrices: Value) -> Value:
        """Of ``[K·P, K·P]``, or of one a sample, what belongs to single places."""
        if not self.places:
            return matrices
        blocks = self.target.constant(BLOCKS, matrix(Structure.SYMMETRIC, self.target.z.width))
        if matrices.is_square:
            return self.builder.emit(ir.Hadamard(), matrices, blocks)
        a, b = sympy.symbols("a b", real=True)
        return self.builder.pointwise(a * b, {a: matrices, b: blocks})

    def _at(self, expression: sympy.Expr, name: str, **values: Value) -> Value:
        table = {s: values[s.name] for s in expression.free_symbols if s.name in values}
        return self.builder.pointwise(expression, {**table, **self.symbols}, name=name)

    def value(self) -> Value:
        """``(1/N) Σ_n c (m lse(z) − ŷᵀz)``, as ``c Σ_k ŷ_k (lse(z) − z_k)``."""
        y, lse, z = sympy.symbols("y lse z", real=True)
        log_sum = self.builder.emit(ir.LogSumExp(), self.z, name="lse")
        each = self._at(self.c * y * (lse - z), "loss_elements", y=self.y, lse=log_sum, z=self.z)
        each = self.builder.emit(ir.Flatten(), each, name="loss_rows") if self.places else each
        return self.builder.emit(ir.Total(mean=True), each, name="loss")

    def gradient(self) -> Value:
        """``c (m p − ŷ)``: ``[N, K]``."""
        m, p, y = sympy.symbols("m p y", real=True)
        g = self._at(self.c * (m * p - y), self._name("g_output"), m=self.mass, p=self.p, y=self.y)
        return self._flat(g, "g_output")

    def _weighted_p(self) -> Value:
        """``√(c m) p``, as rows ``[N, K·P]``."""
        m, p = sympy.symbols("m p", real=True)
        q = self._at(sympy.sqrt(self.c * m) * p, "p_weighted", m=self.mass, p=self.p)
        return self._flat(q, "p_weighted_rows")

    def _diagonal(self) -> Value:
        """``c m p``, as rows ``[N, K·P]``."""
        m, p = sympy.symbols("m p", real=True)
        diagonal = self._at(self.c * m * p, "p_mass", m=self.mass, p=self.p)
        return self._flat(diagonal, "p_mass_rows")

    def mean_hessian(self) -> Value:
        """``diag E[c m p] − E[c m p pᵀ]``: symmetric."""
        mean = self.builder.emit(ir.Mean(), self._diagonal(), name="p_mean")
        moment = self.builder.emit(ir.Moment(), self._weighted_p(), name="p_moment")
        moment = self._block_diagonal(moment)
        negative = self.builder.scaled(moment, -1.0)
        return self.builder.emit(ir.AddDiagonal(), negative, mean, name="hessian_mean")

    def sample_hessians(self, *, exact: bool = False) -> Value:
        """``c m (diag p − p pᵀ)`` of every sample: ``[N, K, K]``."""
        a, b = sympy.symbols("a b", real=True)
        q = self._weighted_p()
        outer = self._block_diagonal(self.builder.emit(ir.SampleOuter(), q, q))
        full = self.builder.emit(ir.SampleDiagonal(), self._diagonal())
        return self.builder.pointwise(a - b, {a: full, b: outer})

    def hessian_product(self, r: Value) -> Value:
        """``c m (p ⊙ r − p (pᵀ r))``: ``[N, K]``."""
        builder = self.builder
        m, p, s, t = sympy.symbols("m p s t", real=True)
        r = self._at_places(self._classes_last(r), self.classes)
        pr = builder.pointwise(p * t, {p: self.p, t: r}, name="p_times_r")
        total = builder.emit(ir.RowSum(), pr, name="p_dot_r")
        product = self._at(
            self.c * m * (t - p * s),
            self._name("hessian_times_r"),
            m=self.mass,
            p=self.p,
            s=total,
            t=pr,
        )
        return self._flat(product, "hessian_times_r")

    def root_columns(self) -> Value:
        """A chunk of columns ``√(c m p_k) (e_k − p)``: ``[S, N, K]``."""
        m, p = sympy.symbols("m p", real=True)
        root = self._at(sympy.sqrt(self.c * m * p), "root", m=self.mass, p=self.p)
        columns = self.builder.emit(
            ir.Columns(self.target.first), root, self.p, name=self._name("root_columns")
        )
        return self._flat(columns, "root_columns")

    def _drawn(self, kind: Literal["uniform", "sign"], width: int, name: str) -> Value:
        """Random numbers ``[N, P, width]``, drawn as rows."""
        shape = (self.z.spec.shape[0], self.loss.count * width)
        rows = self.builder.emit(ir.Random(kind, shape, self.target.number), name=name)
        return self._at_places(rows, width)

    def sampled_gradient(self) -> Value:
        """``√(c m) (p − onehot(ỹ))``, ỹ drawn from p: ``[N, K]``."""
        m, p, y = sympy.symbols("m p y", real=True)
        uniform = self._drawn("uniform", 1, "noise")
        sampled = self.builder.emit(ir.SampleCategorical(), self.p, uniform, name="y_sampled")
        g = self._at(
            sympy.sqrt(self.c * m) * (p - y),
            self._name("g_sampled"),
            m=self.mass,
            p=self.p,
            y=sampled,
        )
        return self._flat(g, "g_sampled")

    def projected_gradient(self) -> Value:
        """``√(c m) (√p ⊙ v − p (√pᵀ v))`` with random signs v: ``[N, K]``."""
        m, p, v, s = sympy.symbols("m p v s", real=True)
        signs = self._drawn("sign", self.classes, "signs")
        rooted = self._at(sympy.sqrt(p) * v, "signed_root", p=self.p, v=signs)
        total = self.builder.emit(ir.RowSum(), rooted, name="signed_root_sum")
        g = self._at(sympy.sqrt(self.c * m) * (v - p * s), self._name("g_projected"),
                     m=self.mass, p=self.p, v=rooted, s=total)  # fmt: skip
        return self._flat(g, "g_projected")
