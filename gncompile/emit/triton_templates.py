"""How each kind of kernel is planned: the call of its template, as lines of the emitted file.

A planner takes the kernels of one launch and gives the elements of the list that ``run`` goes through. Most
templates have a form for several kernels, which reads tensors and sizes from a table; one kernel alone takes
the plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..program import step_program as ir
from ..program.schedule import Function, Kernel, Kind, Launch, averaged_rows, function_of
from ..program.step_program import Instruction
from .literals import dimension, literal
from .triton_calls import PRECISION, call, grouped

if TYPE_CHECKING:
    from .triton_source import TritonWriter

Kernels = tuple[Kernel, ...]
Planner = Callable[["TritonWriter", Kernel, Function], list[str]]
GroupPlanner = Callable[["TritonWriter", Kernels], list[str]]
_PLANNERS: dict[Kind, Planner] = {}
_GROUPS: dict[Kind, GroupPlanner] = {}

ALWAYS_GROUPED = frozenset({Kind.PRECONDITION, Kind.DECAY, Kind.INVERSE})
"""Kinds whose template takes any number of kernels, one included."""


def planned(w: TritonWriter, launch: Launch) -> Iterator[tuple[Kernels, list[str]]]:
    """The kernels of a launch with the lines that plan them, together if there is a form for several."""
    group = _GROUPS.get(launch.kind)
    if group and (len(launch.kernels) > 1 or launch.kind in ALWAYS_GROUPED):
        yield launch.kernels, group(w, launch.kernels)
        return
    for kernel in launch.kernels:
        yield (kernel,), _PLANNERS[launch.kind](w, kernel, function_of(kernel))


def _plans(kind: Kind) -> Callable[[Planner], Planner]:
    def register(planner: Planner) -> Planner:
        _PLANNERS[kind] = planner
        return planner

    return register


def _groups(kind: Kind) -> Callable[[GroupPlanner], GroupPlanner]:
    def register(planner: GroupPlanner) -> GroupPlanner:
        _GROUPS[kind] = planner
        return planner

    return register


# --- products -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    """``a b`` with what is added to it, as texts; ``words`` are the transpositions."""

    a: str
    b: str
    out: str
    words: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


def _products(w: TritonWriter, kernel: Kernel) -> list[_Product]:
    """The products a kernel takes: one, or two that are added, ``x Wᵀ`` and then ``y Vᵀ``."""
    root, out = kernel.root, w.home[kernel.stores[0]]
    v = [w.home[name] for name in root.inputs]
    if isinstance(root.op, ir.MatMul):
        flags = (("transpose_a", root.op.transpose_a), ("transpose_b", root.op.transpose_b))
        return [_Product(v[0], v[1], out, tuple(f"{name}=True" for name, on in flags if on))]
    if not isinstance(root.op, ir.Affine):
        return [_Product(v[0], v[1], out)]
    words, bias = ("transpose_b=True",), (f"bias={v[-1]}",) if len(v) % 2 else ()
    if len(v) < 4:
        return [_Product(v[0], v[1], out, words, bias)]
    partial = w.own_scratch(kernel.stores[0], root.spec.shape)
    last = _Product(v[2], v[3], out, words, (f"add={partial}", *bias))
    return [_Product(v[0], v[1], partial, words), last]


def _epilogue(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    """The keyword of what is done to a product's tiles; none if they are stored as they are."""
    return [f"epilogue={w.device_function(kernel, function)}"] if kernel.elementwise else []


def _further(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    """The keywords of the tensors that a product's epilogue reads, and writes beyond the first."""
    words = []
    if function.operands:
        words.append(f"epilogue_inputs={w.operands(kernel, function.operands)}")
    if len(kernel.stores) > 1:
        words.append(f"outputs={w.tensors(kernel.stores[1:])}")
    return words


def is_plain(kernels: Kernels) -> bool:
    """Whether kernels are products that the library of torch can take too: nothing fused, nothing added."""
    return all(
        kernel.kind is Kind.GEMM and not kernel.elementwise and len(kernel.root.inputs) < 4
        for kernel in kernels
    )


def _library(w: TritonWriter, kernels: Kernels) -> list[str]:
    """Plain products by torch's own library."""
    lines = []
    for kernel in kernels:
        (p,) = _products(w, kernel)
        words = ", ".join([p.a, p.b, p.out, *p.words, *p.rest, PRECISION])
        lines.append(f"library_product({words}),")
    return lines


def _by_library(w: TritonWriter, kernels: Kernels) -> bool:
    return "library" in w.variants.get(kernels[0].stores[0], {})


def _matrix_settings(w: TritonWriter, kernels: Kernels) -> list[str]:
    return w.chosen("MatrixSettings", kernels[0].stores[0])


@_plans(Kind.GEMM)
def _gemm(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    if _by_library(w, (kernel,)):
        return _library(w, (kernel,))
    *before, last = _products(w, kernel)
    how = (PRECISION, *_matrix_settings(w, (kernel,)))
    lines = [x for p in before for x in call("gemm", p.a, p.b, p.out, *p.words, *how)]
    of_tiles = (*_epilogue(w, kernel, function), *_further(w, kernel, function))
    words = (*last.words, *last.rest, *of_tiles, *how)
    return lines + call("gemm", last.a, last.b, last.out, *words)


@_groups(Kind.GEMM)
def _grouped_gemm(w: TritonWriter, kernels: Kernels) -> list[str]:
    """One launch for the first products of all kernels, one for the second, if there are any."""
    if _by_library(w, kernels):
        return _library(w, kernels)
    how = (PRECISION, *_matrix_settings(w, kernels))
    functions = [function_of(kernel) for kernel in kernels]
    *before, last = zip(*(_products(w, kernel) for kernel in kernels), strict=True)
    lines: list[str] = []
    for stage in before:
        problems = [f"products.Problem({p.a}, {p.b}, {p.out})" for p in stage]
        options = *stage[0].words, *how
        lines += grouped("products.grouped_gemm", "products.plan_group", problems, options)
    problems = [
        f"products.Problem({', '.join([p.a, p.b, p.out, *p.rest, *_further(w, kernel, function)])})"
        for p, kernel, function in zip(last, kernels, functions, strict=True)
    ]
    options = *last[0].words, *how
    words = _epilogue(w, kernels[0], functions[0])
    return lines + grouped(
        "products.grouped_gemm", "products.plan_group", problems, options, *words
    )


@_plans(Kind.SECOND_MOMENT)
@_plans(Kind.CROSS_MOMENT)
def _moment(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    template = "syrk" if kernel.kind is Kind.SECOND_MOMENT else "cross_moment"
    operands = map(w.flattened, kernel.root.inputs)
    words = f"alpha=1 / {dimension(w.rows(kernel.root))}", *_homogeneous(kernel.root), PRECISION
    words = *words, *_matrix_settings(w, (kernel,))
    return call(template, *operands, w.home[kernel.root.name], *words)


@_groups(Kind.SECOND_MOMENT)
@_groups(Kind.CROSS_MOMENT)
def _grouped_moments(w: TritonWriter, kernels: Kernels) -> list[str]:
    """All layers' ``E[a aᵀ]``, or all weight gradients ``E[v bᵀ]``."""
    problems = []
    for kernel in kernels:
        a, *b = (w.home[name] for name in kernel.root.inputs)
        problems.append(f"moments.Moment({a}, {b[0] if b else None}, {w.home[kernel.root.name]})")
    options = *_homogeneous(kernels[0].root), PRECISION, *_matrix_settings(w, kernels)
    alpha = f"alpha=1 / {dimension(w.rows(kernels[0].root))}"
    return grouped("moments.grouped_moments", "moments.plan_moments", problems, options, alpha)


def _homogeneous(root: Instruction) -> list[str]:
    assert isinstance(root.op, ir.Moment)
    return ["homogeneous=True"] if root.op.homogeneous else []


@_plans(Kind.CONGRUENCE)
def _congruence(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    parts = {type(i.op): i for i in kernel.instructions}
    g, weight = (w.home[name] for name in parts[ir.Multiply].inputs)
    moment = parts.get(ir.Moment)
    slopes = "None" if moment is None else w.flattened(moment.inputs[0])
    words = [weight, g, slopes, w.home[kernel.stores[0]]]
    if len(w.program[parts[ir.Multiply].inputs[0]].spec.shape) == 2:
        scratch = w.own_scratch(kernel.stores[0], parts[ir.Multiply].spec.shape)
        words.append(f"scratch={scratch}")
        words += w.chosen("MatrixSettings", parts[ir.Multiply].name, "product_settings")
    return call("congruence", *words, PRECISION, *_matrix_settings(w, (kernel,)))


@_groups(Kind.PRECONDITION)
def _precondition(w: TritonWriter, kernels: Kernels) -> list[str]:
    """All layers' directions at once."""
    layers = []
    for kernel in kernels:
        gradient, g, q = (w.home[name] for name in kernel.root.inputs)
        scratch = w.own_scratch(kernel.root.name, kernel.root.spec.shape)
        layers.append(f"Layer({g}, {gradient}, {q}, {w.home[kernel.root.name]}, {scratch})")
    lines = [f"        {layer}," for layer in layers]
    how = [f"    {word}," for word in (PRECISION, *_matrix_settings(w, kernels))]
    return ["*grouped_precondition.launches(", "    [", *lines, "    ],", *how, "),"]


RESIDUAL = 0.5
"""Largest ``‖I - M X‖_F`` of an old inverse that is refined; two iterations leave 1/16 at most."""
RESTART = 30
"""Iterations of one that is not: enough for a condition of 10⁶ at n = 1000."""


@_groups(Kind.INVERSE)
def _inverses(w: TritonWriter, kernels: Kernels) -> list[str]:
    """All factors' inverses, refined from those of before, or started afresh where these are too far off."""
    w.constants["exact"] = '"high" if precision == "medium" else precision'
    problems = []
    for kernel in kernels:
        factor, damping = (w.home[name] for name in kernel.root.inputs)
        problems.append(f"inverses.Inverse({factor}, {w.home[kernel.root.name]}, {damping})")
    options = ("precision=exact", *_matrix_settings(w, kernels))
    words = "iterations=2", f"restart={RESTART}", f"limit={RESIDUAL}"
    return grouped("inverses.newton_schulz", "inverses.plan_inverses", problems, options, *words)


# --- elementwise work and sums --------------------------------------------------------------------------


@_plans(Kind.ELEMENTWISE)
def _elementwise(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    words = w.device_function(kernel, function), w.operands(kernel, function.operands)
    settings = w.chosen("ElementwiseSettings", kernel.stores[0])
    return call("elementwise", *words, w.tensors(kernel.stores), *settings)


@_groups(Kind.ELEMENTWISE)
def _grouped_elementwise(w: TritonWriter, kernels: Kernels) -> list[str]:
    name = w.device_function(kernels[0], function_of(kernels[0]))
    problems = [
        f"tiles.Problem({w.tensors(function_of(k).operands)}, {w.tensors(k.stores)})"
        for k in kernels
    ]
    return _group_of_tiles(w, kernels, name, problems)


def _group_of_tiles(
    w: TritonWriter, kernels: Kernels, function: str, problems: Sequence[str]
) -> list[str]:
    settings = w.chosen("ElementwiseSettings", kernels[0].stores[0])
    return [
        "*grouped_elementwise.launches(",
        f"    {function},",
        "    plan_elementwise_group([",
        *(f"        {problem}," for problem in problems),
        f"    ]{''.join(f', {word}' for word in settings)}),",
        *_warps(w, kernels),
        "),",
    ]


def _warps(w: TritonWriter, kernels: Kernels) -> list[str]:
    """The line with the warps of a group of tiles, which are no part of its table."""
    options = w.variants.get(kernels[0].stores[0])
    return [f"    num_warps={literal(options['num_warps'])},"] if options else []


@_groups(Kind.DECAY)
def _decay(w: TritonWriter, kernels: Kernels) -> list[str]:
    """``∇W + η W`` and ``∇b + η b`` of all layers, by coefficient; what does not decay is copied."""
    by_coefficient: dict[float, list[str]] = {}
    for kernel in kernels:
        root = kernel.root
        assert isinstance(root.op, ir.Decay)
        g, weight, *bias = (w.home[name] for name in root.inputs)
        out = w.home[root.name]
        homogeneous = root.spec.shape[1] != w.program[root.inputs[1]].spec.shape[1]
        parts = [("[:, :-1]" if homogeneous else "", root.op.weight, weight)]
        if homogeneous:
            parts.append(("[:, -1]", root.op.bias if bias else 0.0, "".join(bias)))
        for part, coefficient, parameter in parts:
            operands = f"({g}{part}, {parameter})" if coefficient else f"({g}{part},)"
            problem = f"tiles.Problem({operands}, ({out}{part},))"
            by_coefficient.setdefault(coefficient, []).append(problem)
    return [
        line
        for coefficient, problems in by_coefficient.items()
        for line in _group_of_tiles(w, kernels, w.plus_multiple(coefficient), problems)
    ]


@_plans(Kind.REDUCTION)
def _reduction(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    root = kernel.root
    over = {ir.Mean: "rows", ir.RowSum: "columns"}.get(type(root.op))
    rest = tuple(name for name in kernel.stores if name != root.name)
    words = [w.device_function(kernel, function), _summed(w, kernel, function), w.home[root.name]]
    words += [f'over="{over}"'] if over else []
    words += [f"outputs={w.tensors(rest)}"] if rest else []
    words += w.chosen("ReduceSettings", kernel.stores[0])
    return call("reduce", *words, *_mean(w, root))


def _summed(w: TritonWriter, kernel: Kernel, function: Function) -> str:
    """The operands of a sum; of a trace the diagonal."""
    full = len(w.program[function.operands[0]].spec.shape) == 2
    if isinstance(kernel.root.op, ir.Trace) and full:
        return f"({w.home[function.operands[0]]}.diagonal(),)"
    return w.operands(kernel, function.operands)


def _mean(w: TritonWriter, root: Instruction) -> list[str]:
    return [f"alpha=1 / {dimension(rows)}" for rows in averaged_rows(root, w.program)]


@_groups(Kind.REDUCTION)
def _grouped_reduction(w: TritonWriter, kernels: Kernels) -> list[str]:
    """Sums of one function over many tensors, into one vector that the values are elements of."""
    name = w.device_function(kernels[0], function_of(kernels[0]))
    sums = w.sums_of(kernels)
    lines = [
        f"        tiles.Problem({_summed(w, kernel, function_of(kernel))}, slot={slot}),"
        for slot, kernel in enumerate(kernels)
    ]
    words = [sums, *_mean(w, kernels[0].root)]
    settings = w.chosen("ReduceSettings", kernels[0].stores[0])
    return [
        "*grouped_reduce.launches(",
        f"    {name},",
        "    plan_sums([",
        *lines,
        f"    ]{''.join(f', {word}' for word in settings)}),",
        f"    {', '.join(words)},",
        *_warps(w, kernels),
        "),",
    ]


@_plans(Kind.SOFTMAX)
def _softmax(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    root = kernel.root
    word = "out" if isinstance(root.op, ir.Softmax) else "log_sum"
    settings = w.chosen("ReduceSettings", kernel.stores[0])
    return call("softmax", w.home[root.inputs[0]], f"{word}={w.home[root.name]}", *settings)


@_plans(Kind.CATEGORICAL)
def _categorical(w: TritonWriter, kernel: Kernel, function: Function) -> list[str]:
    p, uniform = (w.operand(kernel, name) for name in kernel.root.inputs)
    of_tiles = (*_epilogue(w, kernel, function), *_further(w, kernel, function))
    return call("categorical", p, uniform, w.home[kernel.stores[0]], *of_tiles)
