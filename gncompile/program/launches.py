"""From a step program to launches: elementwise work joins the product or the sum beside it, then
independent kernels of one kind share a launch.

Both passes only ever contract the graph of dependencies, so every order they leave is a right one.
"""

from __future__ import annotations

import networkx as nx

from . import convolutions as grids
from . import operations as ir
from . import specs
from .buffers import plan_buffers
from .dependencies import dependencies
from .schedule import (
    REDUCTIONS,
    SUMS,
    Kernel,
    Kind,
    Launch,
    Schedule,
    averaged_rows,
    function_of,
    is_elementwise,
    used_outside,
)
from .step_program import Instruction, StepProgram
from .strides import can_take, in_grid_only

MOST_OPERANDS = 12
"""Tensors, not scalars, an elementwise kernel reads and writes at most; beyond, registers run short."""


WITH_TILES = (Kind.ELEMENTWISE, Kind.GEMM, Kind.CONVOLUTION, Kind.CATEGORICAL)
"""Kernels that elementwise work can join, to be done to their tiles before these are stored."""


def schedule(program: StepProgram) -> Schedule:
    """The launches of every phase."""
    return Schedule(program, {p: group(program, fuse(program, p)) for p in program.phases})


def launch_buffers(order: Schedule) -> dict[str, str]:
    """The buffer of every value that a schedule stores, but those that are elements of a vector of sums.

    Scalars do not share memory: their names are worth more.
    """
    program, inside = order.program, {name for names in order.sums for name in names}
    return {
        name: buffer if program[name].spec.shape else name
        for name, buffer in plan_buffers(program, order).items()
        if name not in inside
    }


# --- fusion -------------------------------------------------------------------------------------------


def fuse(program: StepProgram, phase: str) -> nx.DiGraph:
    """The kernels of a phase: a graph whose nodes are :class:`Kernel`, edges from earlier to later.

    ::

        h = Affine(x, W, b)              gemm: h, a from x, W, b
        a = φ[tanh h](h)         →
        g = φ[u (1 - a²)](u, a)          elementwise: g from u, a
    """
    fusion = _Fusion(program, phase)
    for i in program.phase(phase):
        if isinstance(i.op, ir.VIEWS):
            continue
        if isinstance(i.op, ir.SymmetricProduct | ir.Hadamard):
            fusion.join_congruence(i)
        elif isinstance(i.op, ir.Moment):
            fusion.join_patches(i, i.op)
        elif is_elementwise(i) or isinstance(i.op, SUMS):
            fusion.join_producer(i)
    for i in program.phase(phase):
        if isinstance(i.op, ir.Random):
            fusion.join_users(i)
    return fusion.kernels()


class _Fusion:
    """Groups of instructions under contraction; a group is named after its first member."""

    def __init__(self, program: StepProgram, phase: str) -> None:
        self.program = program
        self.home = program.storage
        self.graph = dependencies(program, phase)
        self.members = {name: [program[name]] for name in self.graph}
        self.group_of = {name: name for name in self.graph}

    def join_producer(self, i: Instruction) -> None:
        """Let an elementwise instruction or a sum join the group that computes one of its operands."""
        computed = [n for n in i.inputs if not isinstance(self.program[n].op, ir.Random)]
        for producer in dict.fromkeys(self.group_of.get(self._seen(name)) for name in computed):
            if producer is not None and self._fits(producer, i) and self._free(producer, i.name):
                self._contract(producer, i.name)
                return

    def join_users(self, draw: Instruction) -> None:
        """Compute a draw in the group that uses it, if it is one and takes it tile by tile.

        A draw waits for nothing, so it can join any group, whatever else that group has joined.
        """
        users = self.program.readers[draw.name]
        groups = {self.group_of.get(i.name) for i in users}
        in_one = len(groups) == 1 and None not in groups
        if not in_one or not all(self._takes_draw(i, draw) for i in users):
            return
        together = [draw, *self.members[self.group_of[users[0].name]]]
        if kind_of(self.program, together) is not Kind.TORCH:
            self._contract(draw.name, users[0].name)

    @staticmethod
    def _takes_draw(i: Instruction, draw: Instruction) -> bool:
        if isinstance(i.op, ir.SampleCategorical):
            return i.inputs[1] == draw.name
        return is_elementwise(i) and i.spec.shape == draw.spec.shape

    def join_congruence(self, i: Instruction) -> None:
        """``Wᵀ (M W)``, and ``(Wᵀ M W) ⊙ E[b bᵀ]``, become one kernel if nothing else reads their parts."""
        parts = [self.program[name] for name in i.inputs]
        if isinstance(i.op, ir.SymmetricProduct):
            w, product = parts
            if not isinstance(product.op, ir.Multiply) or product.inputs[1] != w.name:
                return
            parts = [product]
        elif not self._is_kfra_step(*parts):
            return
        if any(len(self.program[n].spec.shape) > 2 for part in parts for n in part.inputs):
            return
        names = {m.name for part in parts for m in self.members.get(part.name, [])}
        if len(names) < len(parts) or used_outside(self.program, [*names, i.name]) & names:
            return
        if all(self._free(self.group_of[part.name], i.name) for part in parts):
            for part in parts:
                self._contract(self.group_of[part.name], i.name)
                # A group goes by its first member; what others know is the last.
                self._rename(self.group_of[i.name], i.name)

    def join_patches(self, moment: Instruction, op: ir.Moment) -> None:
        """Let a moment of patches see them in their grid, if nothing else reads them."""
        rows = self.program[moment.inputs[0]]
        patches = self.program[rows.inputs[0]] if rows.inputs else rows
        alone = len(moment.inputs) == 1 and op.coordinate == 1.0
        if not alone or not isinstance(patches.op, grids.Patches):
            return
        together = [patches, rows, moment]
        apart = used_outside(self.program, [m.name for m in together]) - {moment.name}
        seen = kind_of(self.program, together) is Kind.PATCH_MOMENT
        here = patches.name in self.members
        if here and seen and not apart and self._free(patches.name, moment.name):
            self.members[patches.name].append(rows)
            self._contract(patches.name, moment.name)

    def _is_kfra_step(self, product: Instruction, moment: Instruction) -> bool:
        joined = len(self.members.get(product.name, ())) == 2
        return (
            joined
            and isinstance(product.op, ir.SymmetricProduct)
            and (isinstance(moment.op, ir.Moment) and len(moment.inputs) == 1)
        )

    def _seen(self, name: str) -> str:
        """The value itself, or that which it is the whole of under another type."""
        op = self.program[name].op
        return self.program[name].inputs[0] if isinstance(op, ir.AsMatrix) else name

    def _fits(self, producer: str, i: Instruction) -> bool:
        members = self.members[producer]
        kind, shape = kind_of(self.program, members), members[-1].spec.shape
        joined = [*members, i]
        reduces = not is_elementwise(i)
        if kind not in ((Kind.ELEMENTWISE,) if reduces else WITH_TILES):
            return False
        of = self.program[i.inputs[0]].spec.shape if reduces else i.spec.shape
        if of != shape or any(m.spec.shape != shape for m in members) or (reduces and not shape):
            return False
        if kind_of(self.program, joined) is Kind.TORCH:
            return False
        operands = {name for m in joined for name in (*m.inputs, m.name)}
        return (len(operands) <= MOST_OPERANDS or not shape) and self._same_places(joined)

    def _same_places(self, joined: list[Instruction]) -> bool:
        """Whether what the group overwrites is read by it at the same places only: no tile races another."""
        written = {self.home[m.name]: m.spec.shape for m in joined if m.into is not None}
        own = {m.name for m in joined}
        for m in joined:
            for name in m.inputs:
                if self.home[name] not in written or self._seen(name) in own:
                    continue
                whole = self.program[name].spec.shape == written[self.home[name]]
                if not whole or not is_elementwise(m):
                    return False
        return True

    def _free(self, first: str, last: str) -> bool:
        """Whether two groups can become one: no way leads from one to the other through a third."""
        last = self.group_of[last]
        between = (s for s in self.graph.successors(first) if s != last)
        return first != last and not any(nx.has_path(self.graph, s, last) for s in between)

    def _contract(self, first: str, last: str) -> None:
        last = self.group_of[last]
        nx.contracted_nodes(self.graph, first, last, self_loops=False, copy=False)
        self.members[first] += self.members.pop(last)
        for m in self.members[first]:
            self.group_of[m.name] = first

    def _rename(self, old: str, new: str) -> None:
        nx.relabel_nodes(self.graph, {old: new}, copy=False)
        self.members[new] = self.members.pop(old)
        for m in self.members[new]:
            self.group_of[m.name] = new

    def kernels(self) -> nx.DiGraph:
        """The groups as kernels, members in program order."""
        order = {i.name: position for position, i in enumerate(self.program)}
        kernels = {}
        for name, members in self.members.items():
            members.sort(key=lambda m: order[m.name])
            needed = used_outside(self.program, [m.name for m in members])
            # A value nothing reads was asked for by a later phase's view or is the kernel's purpose.
            stores = tuple(m.name for m in members if m.name in needed) or (members[-1].name,)
            kernels[name] = Kernel(kind_of(self.program, members), tuple(members), stores)
        graph = nx.DiGraph()
        graph.add_nodes_from(kernels[name] for name in self.graph)
        graph.add_edges_from((kernels[a], kernels[b]) for a, b in self.graph.edges)
        return graph


def kind_of(program: StepProgram, members: list[Instruction]) -> Kind:
    """The template that computes these instructions together; torch where it cannot take their tensors."""
    kind = _template_of(program, members)
    return kind if can_take(program, kind, members) else Kind.TORCH


def _template_of(program: StepProgram, members: list[Instruction]) -> Kind:
    rooted = [m for m in members if not is_elementwise(m)]
    if not rooted:
        tiles = any(m.inputs or isinstance(m.op, ir.Random) for m in members)
        return Kind.ELEMENTWISE if tiles else Kind.TORCH
    if len(rooted) > 1:
        return Kind.PATCH_MOMENT if isinstance(rooted[0].op, grids.Patches) else Kind.CONGRUENCE
    root = rooted[0]
    shapes = [program[name].spec.shape for name in root.inputs]
    match root.op:
        case ir.Total() | ir.Dot():
            return Kind.REDUCTION
        case ir.Mean(matrix=False) | ir.RowSum() if len(shapes[0]) > 1:
            return Kind.REDUCTION
        case ir.Trace() if shapes[0]:
            return Kind.REDUCTION
        case ir.Softmax() | ir.LogSumExp() if len(shapes[0]) > 1:
            return Kind.SOFTMAX
        case ir.Interpolate():
            return Kind.INTERPOLATION
        case ir.SampleCategorical() if len(shapes[0]) == 2:
            return Kind.CATEGORICAL
        case ir.Decay():
            return Kind.DECAY
        case ir.DampedInverse(refined=True):
            return Kind.INVERSE
        case ir.Affine() | ir.MatMul() if len(shapes[0]) > 1 and len(shapes[1]) == 2:
            return Kind.GEMM
        case ir.Multiply() if len(shapes[0]) == len(shapes[1]) == 2:
            return Kind.GEMM
        case ir.Moment(coordinate=1.0) if len(shapes) == 1 and in_grid_only(
            program, root.inputs[0]
        ):
            return Kind.PATCH_MOMENT
        case ir.Moment(coordinate=1.0):
            return Kind.SECOND_MOMENT if len(shapes) == 1 else Kind.CROSS_MOMENT
        case grids.Convolve() | grids.ConvolveAdjoint():
            return Kind.CONVOLUTION
        case grids.ConvolveGradient(coordinate=1.0):
            return Kind.CONVOLUTION_GRADIENT
        case ir.Precondition() if len(shapes[2]) == 2:
            return Kind.PRECONDITION
    return Kind.TORCH


# --- grouping -----------------------------------------------------------------------------------------


def group(program: StepProgram, kernels: nx.DiGraph) -> tuple[Launch, ...]:
    """Kernels that wait for nothing but earlier launches and do the same go together::

        g2 → grad2, g1       g2 → g1                  gemm: g1
        g1 → grad1      →    g1, g2 → grad1, grad2    cross_moment: grad2 + grad1

    A kernel lets others run first if they lead to more of its kind, so the gradients and moments of all
    layers are one launch at the end. What it reads is kept until then. Work on scalars, however different,
    is one kernel: what it costs is the launch.
    """
    likeness = {kernel: _likeness(program, kernel) for kernel in kernels}
    after = {kernel: nx.descendants(kernels, kernel) for kernel in kernels}
    waiting = dict(kernels.in_degree())  # how many others a kernel waits for
    launches = []
    while waiting:
        alike: dict[tuple, list[Kernel]] = {}
        for kernel in waiting:
            alike.setdefault(likeness[kernel], []).append(kernel)
        ready = {
            like: [k for k in some if not waiting[k]]
            for like, some in alike.items()
            if not all(waiting[k] for k in some)
        }
        # More of a kind would be ready later, unless it is for these that they wait.
        later = {
            like: len(set(alike[like]).difference(some, *(after[k] for k in some)))
            for like, some in ready.items()
        }
        together = ready[min(later, key=later.__getitem__)]
        launches.append(_launch(program, together))
        for done in together:
            del waiting[done]
            for following in kernels.successors(done):
                waiting[following] -= 1
    return tuple(launches)


SCALARS = ("scalars",)
"""The likeness of all elementwise work on scalars."""


def _likeness(program: StepProgram, kernel: Kernel) -> tuple:
    """Equal for kernels that differ in tensors and sizes only, so that one launch can hold them."""
    if not _can_share(program, kernel):
        return kernel.stores
    if kernel.kind in (Kind.PRECONDITION, Kind.DECAY, Kind.INVERSE, Kind.TORCH):
        return (kernel.kind,)
    if _is_scalar(kernel):
        return SCALARS
    function = function_of(kernel)
    places = tuple(_place(program, name, kernel) for name in function.operands)
    if kernel.kind is Kind.REDUCTION:
        return kernel.kind, function.signature, places, averaged_rows(kernel.root, program)
    # The number and ranks of a product's own operands: with a bias or without, one product or two.
    own = [i for i in kernel.instructions if not is_elementwise(i)]
    ranks = tuple((type(i.op), len(program[name].spec.shape)) for i in own for name in i.inputs)
    operations = tuple(i.op for i in own)
    samples = _samples(program, kernel)
    return kernel.kind, operations, ranks, function.signature, places, samples


def _can_share(program: StepProgram, kernel: Kernel) -> bool:
    """Whether there is a template for several kernels like this: matrices in memory, nothing unusual."""
    if any(isinstance(i.op, ir.Random) for i in kernel.instructions):
        return False
    match kernel.kind:
        case Kind.TORCH:
            return isinstance(kernel.root.op, ir.Zeros)
        case Kind.CONGRUENCE | Kind.SOFTMAX | Kind.CATEGORICAL | Kind.INTERPOLATION:
            return False
        case Kind.CONVOLUTION | Kind.CONVOLUTION_GRADIENT | Kind.PATCH_MOMENT:
            return False  # a kernel is compiled for one window
        case Kind.SECOND_MOMENT | Kind.CROSS_MOMENT:
            return True  # of rows, whatever they are the rows of
        case Kind.REDUCTION:
            partial = isinstance(kernel.root.op, ir.Mean | ir.RowSum)
            if partial or len(kernel.stores) > 1:
                return False
    names = (*kernel.inputs, *kernel.stores)
    return all(len(program[name].spec.shape) <= 2 for name in names)


def _samples(program: StepProgram, kernel: Kernel) -> specs.Dim:
    """The dimension that a moment is the mean over."""
    is_moment = isinstance(kernel.root.op, ir.Moment)
    return program[kernel.root.inputs[0]].spec.samples if is_moment else ""


def _place(program: StepProgram, name: str, kernel: Kernel) -> str:
    """How an operand meets the kernel's tiles."""
    shape, own = program[name].spec.shape, kernel.instructions[0].spec.shape
    if isinstance(kernel.root.op, REDUCTIONS):
        own = program[kernel.root.inputs[0]].spec.shape
    if shape == own:
        return "full"
    return f"{len(shape)} column" if shape[-1:] == (1,) else f"{len(shape)} broadcast"


def _is_scalar(kernel: Kernel) -> bool:
    return kernel.kind is Kind.ELEMENTWISE and kernel.root.spec.shape == ()


def _launch(program: StepProgram, together: list[Kernel]) -> Launch:
    """One launch; of scalars one kernel."""
    if len(together) > 1 and _is_scalar(together[0]):
        order = {i.name: position for position, i in enumerate(program)}
        inside = sorted((i for k in together for i in k.instructions), key=lambda i: order[i.name])
        stores = tuple(name for k in together for name in k.stores)
        together = [Kernel(Kind.ELEMENTWISE, tuple(inside), stores)]
    return Launch(together[0].kind, tuple(together))
