"""How each kind of kernel is launched: the calls of its template, as records.

A planner takes the kernels of one launch and gives the elements of the list that ``run`` goes through. One
that is ``grouped`` takes its template's form for several kernels, which reads tensors and sizes from a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ..program import operations as ir
from ..program.schedule import Function, Kernel, Kind, Launch, averaged_rows, function_of
from ..program.specs import Dim
from ..program.step_program import StepProgram
from .literals import dimension, literal, plain_name, quoted
from .torch_operations import Options, how_interpolated
from .triton_calls import Call, Expression, Tensor, TileFunction, call, template

Kernels = tuple[Kernel, ...]


class File(Protocol):
    """What a planner may ask of the file under way."""

    program: StepProgram
    variants: Mapping[str, Options]
    """Settings that are not the defaults, by the first value stored."""
    home: dict[str, str]
    """The tensor that each value lives in."""
    constants: dict[str, str]
    """What the file computes once."""

    def device_function(self, kernel: Kernel, function: Function) -> TileFunction:
        """The device function of a kernel, the same for equal kernels."""

    def plus_multiple(self, coefficient: float) -> TileFunction:
        """The device function ``g, w → g + η w``, for η = 0 ``g → g``."""

    def draw(self, name: str) -> Call:
        """Random numbers that a kernel computes itself."""

    def own_scratch(self, name: str, shape: tuple[Dim, ...]) -> Tensor:
        """Scratch space for one value, because those of a group are written at the same time."""

    def sums(self, names: tuple[str, ...]) -> Tensor:
        """The vector that these values are the elements of."""


Planner = Callable[[File, Kernel, Function], list[Call]]
GroupPlanner = Callable[[File, Kernels], list[Call]]
_PLANNERS: dict[Kind, Planner] = {}
_GROUPS: dict[Kind, GroupPlanner] = {}


def planned(w: File, launch: Launch) -> list[Call]:
    """The calls of templates that make a launch."""
    if launch.grouped:
        return _GROUPS[launch.kind](w, launch.kernels)
    (kernel,) = launch.kernels
    return _PLANNERS[launch.kind](w, kernel, function_of(kernel))


def plans(*kinds: Kind) -> Callable[[Planner], Planner]:
    def register(planner: Planner) -> Planner:
        _PLANNERS.update(dict.fromkeys(kinds, planner))
        return planner

    return register


def _groups(*kinds: Kind) -> Callable[[GroupPlanner], GroupPlanner]:
    def register(planner: GroupPlanner) -> GroupPlanner:
        _GROUPS.update(dict.fromkeys(kinds, planner))
        return planner

    return register


# --- pieces of a call ---------------------------------------------------------------------------------


def tensor_of(w: File, name: str) -> Tensor:
    return Tensor(w.home[name])


def tensors_of(w: File, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor_of(w, name) for name in names)


def _operand(w: File, kernel: Kernel, name: str) -> Expression:
    """What a kernel reads: a tensor, or its own draw."""
    drawn = any(i.name == name and isinstance(i.op, ir.Random) for i in kernel.instructions)
    return w.draw(name) if drawn else tensor_of(w, name)


def operands_of(w: File, kernel: Kernel, names: tuple[str, ...]) -> tuple[Expression, ...]:
    return tuple(_operand(w, kernel, name) for name in names)


def chosen(w: File, settings: str, name: str) -> Call | None:
    """The settings chosen for what writes ``name``; None for the defaults."""
    options = w.variants.get(name)
    if not options:
        return None
    return call(settings, **{plain_name(word): literal(value) for word, value in options.items()})


def matrix_settings(w: File, kernels: Kernels) -> dict[str, Expression | None]:
    """The keywords of precision and settings that matrix products take."""
    settings = chosen(w, "MatrixSettings", kernels[0].stores[0])
    return {"precision": "precision", "settings": settings}


def of_tiles(w: File, kernel: Kernel, function: Function) -> dict[str, Expression | None]:
    """The keywords of what is done to the tiles of a product or sample, if anything is."""
    name = w.device_function(kernel, function) if kernel.elementwise else None
    return {"epilogue": name, **_further(w, kernel, function)}


def _further(w: File, kernel: Kernel, function: Function) -> dict[str, Expression | None]:
    """The keywords of the tensors that an epilogue reads, and writes beyond the first."""
    return {
        "epilogue_inputs": operands_of(w, kernel, function.operands) or None,
        "outputs": tensors_of(w, kernel.stores[1:]) or None,
    }


# --- products -----------------------------------------------------------------------------------------


def _products(w: File, kernel: Kernel) -> tuple[list[Call], dict[str, Expression]]:
    """The products a kernel takes, as problems, and their transpositions.

    There is one, or two that are added: ``x Wᵀ`` and then ``y Vᵀ``.
    """
    root, out = kernel.root, tensor_of(w, kernel.stores[0])
    v = tensors_of(w, root.inputs)
    if isinstance(root.op, ir.MatMul):
        flags = {"transpose_a": root.op.transpose_a, "transpose_b": root.op.transpose_b}
        return [call("products.Problem", *v, out)], {n: "True" for n, on in flags.items() if on}
    if not isinstance(root.op, ir.Affine):
        return [call("products.Problem", *v, out)], {}
    bias = v[-1] if len(v) % 2 else None
    transposed: dict[str, Expression] = {"transpose_b": "True"}
    if len(v) < 4:
        return [call("products.Problem", *v[:2], out, bias=bias)], transposed
    partial = w.own_scratch(kernel.stores[0], root.spec.shape)
    last = call("products.Problem", *v[2:4], out, add=partial, bias=bias)
    return [call("products.Problem", *v[:2], partial), last], transposed


def is_plain(kernels: Kernels) -> bool:
    """Whether kernels are products that the library of torch can take too: nothing fused, nothing added."""
    return all(
        kernel.kind is Kind.GEMM and not kernel.elementwise and len(kernel.root.inputs) < 4
        for kernel in kernels
    )


def _library(w: File, kernels: Kernels) -> list[Call] | None:
    """Plain products by torch's own library, if that was chosen."""
    if "library" not in w.variants.get(kernels[0].stores[0], {}):
        return None
    found = []
    for kernel in kernels:
        (problem,), transposed = _products(w, kernel)
        words = {**transposed, **dict(problem.words), "precision": "precision"}
        found.append(call("library_product", *problem.arguments, **words))
    return found


@plans(Kind.GEMM)
def _gemm(w: File, kernel: Kernel, function: Function) -> list[Call]:
    if library := _library(w, (kernel,)):
        return library
    (*before, last), transposed = _products(w, kernel)
    how = matrix_settings(w, (kernel,))
    words = {**transposed, **dict(last.words), **of_tiles(w, kernel, function), **how}
    first = [template("gemm", *each.arguments, **transposed, **how) for each in before]
    return [*first, template("gemm", *last.arguments, **words)]


@_groups(Kind.GEMM)
def _grouped_gemm(w: File, kernels: Kernels) -> list[Call]:
    """One launch for the first products of all kernels, one for the second, if there are any."""
    if library := _library(w, kernels):
        return library
    every, transpositions = zip(*(_products(w, kernel) for kernel in kernels), strict=True)
    how = {**transpositions[0], **matrix_settings(w, kernels)}
    *before, last = zip(*every, strict=True)
    functions = [function_of(kernel) for kernel in kernels]
    further = [_further(w, k, f) for k, f in zip(kernels, functions, strict=True)]
    problems = [
        call("products.Problem", *p.arguments, **dict(p.words), **words)
        for p, words in zip(last, further, strict=True)
    ]
    epilogue = w.device_function(kernels[0], functions[0]) if kernels[0].elementwise else None
    groups = [call("products.plan_group", list(stage), **how) for stage in (*before, problems)]
    return [
        *(template("products.grouped_gemm", group) for group in groups[:-1]),
        template("products.grouped_gemm", groups[-1], epilogue=epilogue),
    ]


def moment_words(w: File, kernels: Kernels) -> tuple[str, dict[str, Expression | None]]:
    """``1 / N``, the factor of a moment, and its other keywords."""
    root = kernels[0].instructions[-1]
    assert isinstance(root.op, ir.Moment)
    rows = w.program[root.inputs[0]].spec.samples
    homogeneous = "True" if root.op.homogeneous else None
    return f"1 / {dimension(rows)}", {"homogeneous": homogeneous, **matrix_settings(w, kernels)}


@plans(Kind.SECOND_MOMENT, Kind.CROSS_MOMENT)
def _moment(w: File, kernel: Kernel, function: Function) -> list[Call]:
    name = "syrk" if kernel.kind is Kind.SECOND_MOMENT else "cross_moment"
    operands = tensors_of(w, kernel.root.inputs)
    alpha, words = moment_words(w, (kernel,))
    return [template(name, *operands, tensor_of(w, kernel.root.name), alpha=alpha, **words)]


@_groups(Kind.SECOND_MOMENT, Kind.CROSS_MOMENT)
def _grouped_moments(w: File, kernels: Kernels) -> list[Call]:
    """All layers' ``E[a aᵀ]``, or all weight gradients ``E[v bᵀ]``."""
    problems: list[Expression] = []
    for kernel in kernels:
        a, *b = tensors_of(w, kernel.root.inputs)
        out = tensor_of(w, kernel.root.name)
        problems.append(call("moments.Moment", a, b[0] if b else "None", out))
    alpha, words = moment_words(w, kernels)
    group = call("moments.plan_moments", problems, **words)
    return [template("moments.grouped_moments", group, alpha=alpha)]


@plans(Kind.CONGRUENCE)
def _congruence(w: File, kernel: Kernel, function: Function) -> list[Call]:
    parts = {type(i.op): i for i in kernel.instructions}
    product, moment = parts[ir.Multiply], parts.get(ir.Moment)
    g, weight = tensors_of(w, product.inputs)
    slopes = "None" if moment is None else tensor_of(w, moment.inputs[0])
    words: dict[str, Expression | None] = {}
    if len(w.program[product.inputs[0]].spec.shape) == 2:
        words["scratch"] = w.own_scratch(kernel.stores[0], product.spec.shape)
        words["product_settings"] = chosen(w, "MatrixSettings", product.name)
    out = tensor_of(w, kernel.stores[0])
    how = matrix_settings(w, (kernel,))
    return [template("congruence", weight, g, slopes, out, **words, **how)]


@_groups(Kind.PRECONDITION)
def _precondition(w: File, kernels: Kernels) -> list[Call]:
    """All layers' directions at once."""
    layers: list[Expression] = []
    for kernel in kernels:
        gradient, g, q = tensors_of(w, kernel.root.inputs)
        scratch = w.own_scratch(kernel.root.name, kernel.root.spec.shape)
        layers.append(call("Layer", g, gradient, q, tensor_of(w, kernel.root.name), scratch))
    return [template("grouped_precondition", layers, **matrix_settings(w, kernels))]


RESIDUAL = 0.5
"""Largest ``‖I - M X‖_F`` of an old inverse that is refined; two iterations leave 1/16 at most."""
RESTART = 30
"""Iterations of one that is not: enough for a condition of 10⁶ at n = 1000."""


@_groups(Kind.INVERSE)
def _inverses(w: File, kernels: Kernels) -> list[Call]:
    """All factors' inverses, refined from those of before, or started afresh where these are too far off."""
    w.constants["exact"] = '"high" if precision == "medium" else precision'
    problems: list[Expression] = []
    for kernel in kernels:
        factor, damping = tensors_of(w, kernel.root.inputs)
        problems.append(call("inverses.Inverse", factor, tensor_of(w, kernel.root.name), damping))
    words = {**matrix_settings(w, kernels), "precision": "exact"}
    group = call("inverses.plan_inverses", problems, **words)
    how = {"iterations": "2", "restart": literal(RESTART), "limit": literal(RESIDUAL)}
    return [template("inverses.newton_schulz", group, **how)]


# --- elementwise work and sums --------------------------------------------------------------------------


@plans(Kind.ELEMENTWISE)
def _elementwise(w: File, kernel: Kernel, function: Function) -> list[Call]:
    name, stores = w.device_function(kernel, function), tensors_of(w, kernel.stores)
    settings = chosen(w, "ElementwiseSettings", kernel.stores[0])
    operands = operands_of(w, kernel, function.operands)
    return [template("elementwise", name, operands, stores, settings=settings)]


@_groups(Kind.ELEMENTWISE)
def _grouped_elementwise(w: File, kernels: Kernels) -> list[Call]:
    name = w.device_function(kernels[0], function_of(kernels[0]))
    problems: list[Expression] = [
        call("tiles.Problem", tensors_of(w, function_of(k).operands), tensors_of(w, k.stores))
        for k in kernels
    ]
    return [_group_of_tiles(w, kernels, name, problems)]


def _group_of_tiles(
    w: File, kernels: Kernels, function: TileFunction, problems: list[Expression]
) -> Call:
    settings = chosen(w, "ElementwiseSettings", kernels[0].stores[0])
    group = call("plan_elementwise_group", problems, settings=settings)
    return template("grouped_elementwise", function, group, num_warps=_warps(w, kernels))


def _warps(w: File, kernels: Kernels) -> str | None:
    """The warps of a group of tiles, which are no part of its table."""
    options = w.variants.get(kernels[0].stores[0])
    return literal(options["num_warps"]) if options else None


@_groups(Kind.DECAY)
def _decay(w: File, kernels: Kernels) -> list[Call]:
    """``∇W + η W`` and ``∇b + η b`` of all layers, by coefficient; what does not decay is copied."""
    by_coefficient: dict[float, list[Expression]] = {}
    for kernel in kernels:
        root = kernel.root
        assert isinstance(root.op, ir.Decay)
        g, weight, *bias = tensors_of(w, root.inputs)
        homogeneous = root.spec.shape[1] != w.program[root.inputs[1]].spec.shape[1]
        parts = [("[:, :-1]" if homogeneous else "", root.op.weight, [weight])]
        if homogeneous:
            parts.append(("[:, -1]", root.op.bias if bias else 0.0, bias))
        for part, coefficient, parameter in parts:
            read = Tensor(g.name, part), *(parameter if coefficient else ())
            problem = call("tiles.Problem", read, (Tensor(w.home[root.name], part),))
            by_coefficient.setdefault(coefficient, []).append(problem)
    return [
        _group_of_tiles(w, kernels, w.plus_multiple(coefficient), problems)
        for coefficient, problems in by_coefficient.items()
    ]


@plans(Kind.REDUCTION)
def _reduction(w: File, kernel: Kernel, function: Function) -> list[Call]:
    root = kernel.root
    over = {ir.Mean: "rows", ir.RowSum: "columns"}.get(type(root.op))
    words: dict[str, Expression | None] = {
        "over": quoted(over) if over else None,
        "outputs": tensors_of(w, tuple(n for n in kernel.stores if n != root.name)) or None,
        "settings": chosen(w, "ReduceSettings", kernel.stores[0]),
        "alpha": _mean(w, kernel),
    }
    given = w.device_function(kernel, function), _summed(w, kernel, function)
    return [template("reduce", *given, tensor_of(w, root.name), **words)]


def _summed(w: File, kernel: Kernel, function: Function) -> Expression:
    """The operands of a sum; of a trace the diagonal."""
    full = len(w.program[function.operands[0]].spec.shape) == 2
    if isinstance(kernel.root.op, ir.Trace) and full:
        return (Tensor(w.home[function.operands[0]], ".diagonal()"),)
    return operands_of(w, kernel, function.operands)


def _mean(w: File, kernel: Kernel) -> str | None:
    """The factor of a sum that is a mean."""
    rows = averaged_rows(kernel.root, w.program)
    return f"1 / {dimension(rows[0])}" if rows else None


@_groups(Kind.REDUCTION)
def _grouped_reduction(w: File, kernels: Kernels) -> list[Call]:
    """Sums of one function over many tensors, into one vector that the values are elements of."""
    name = w.device_function(kernels[0], function_of(kernels[0]))
    problems: list[Expression] = [
        call("tiles.Problem", _summed(w, kernel, function_of(kernel)), slot=literal(slot))
        for slot, kernel in enumerate(kernels)
    ]
    settings = chosen(w, "ReduceSettings", kernels[0].stores[0])
    group = call("plan_sums", problems, settings=settings)
    sums = w.sums(tuple(kernel.root.name for kernel in kernels))
    words = {"alpha": _mean(w, kernels[0]), "num_warps": _warps(w, kernels)}
    return [template("grouped_reduce", name, group, sums, **words)]


@plans(Kind.SOFTMAX)
def _softmax(w: File, kernel: Kernel, function: Function) -> list[Call]:
    root = kernel.root
    word = "out" if isinstance(root.op, ir.Softmax) else "log_sum"
    words = {word: tensor_of(w, root.name), "settings": chosen(w, "ReduceSettings", root.name)}
    return [template("softmax", tensor_of(w, root.inputs[0]), **words)]


@plans(Kind.CATEGORICAL)
def _categorical(w: File, kernel: Kernel, function: Function) -> list[Call]:
    p, uniform = operands_of(w, kernel, kernel.root.inputs)
    words = of_tiles(w, kernel, function)
    return [template("categorical", p, uniform, tensor_of(w, kernel.stores[0]), **words)]


@plans(Kind.INTERPOLATION)
def _interpolation(w: File, kernel: Kernel, function: Function) -> list[Call]:
    (grid, *places), out = tensors_of(w, kernel.root.inputs), tensor_of(w, kernel.root.name)
    return [template("interpolate", grid, tuple(places), out, how_interpolated(kernel.root, True))]
