"""CUDA graphs: a sequence of phases run once as it is, captured the second time, replayed from then on.

Phases that factorise a matrix are not captured but launched one by one between graphs, even where they need
nothing from the host:

* ``torch.linalg.eigh`` cannot be captured (pytorch/pytorch#188355, #195731).
* cuSOLVER makes no promise for ``cholesky_ex`` and ``cholesky_inverse``. They are not among the operations
  reported to fail, but trying has its price: after a capture that fails, depending on torch's version, its
  default generator refuses to draw (#171263) or memory stays reserved (#190308), and the user pays.

With ``inverse="newton_schulz"`` no matrix is factorised, and the whole step is captured.

Of one of many processes the phases that wait for the others are launched one by one too: a collective in a
graph ties all processes to one order of replays, and the shares that sums are weighed by are numbers of the
host.
"""

from __future__ import annotations

from itertools import groupby
from weakref import WeakKeyDictionary

import torch

from ..program import collectives, exact
from ..program import operations as ir
from ..program.step_program import Instruction, StepProgram
from .draws import TorchDraws
from .executable import Executable

Plan = tuple[str, ...]


def uncaptured_phases(program: StepProgram) -> frozenset[str]:
    """Phases launched one by one between graphs: they factorise a matrix, or wait for other processes."""
    return frozenset(name for name in program.phases if any(map(_stays, program.phase(name))))


def _stays(instruction: Instruction) -> bool:
    """Whether cuSOLVER is called: not for a diagonal, nor where an inverse is refined by products. Or whether
    it is a matter of several processes."""
    match instruction.op:
        case collectives.AllReduce() | collectives.AllGather() | ir.Random(joined=True):
            return True
        case ir.DampedInverse(refined=False) | ir.Eigen() | ir.SampleRoot():
            return len(instruction.spec.shape) > 1
        case exact.RootSolve(diagonal=False) | exact.DualSolve() | exact.PrimalSolve():
            return True
    return False


class Graphs:
    """Runs sequences of phases of one executable; on CUDA devices by replaying what was captured.

    The first run of a sequence compiles its kernels and allocates what they need, so that the second can be
    captured. A graph belongs to the buffers of one batch size and goes with them. The reference backend
    allocates as it goes and is never captured.
    """

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self._captures = (
            executable.memory.device.type == "cuda" and executable.backend != "reference"
        )
        self._uncaptured = uncaptured_phases(executable.program)
        self._known: WeakKeyDictionary[object, dict[Plan, torch.cuda.CUDAGraph | None]] = (
            WeakKeyDictionary()
        )

    def run(self, plan: Plan) -> None:
        """Run the phases in order on the loaded batch."""
        if not self._captures:
            self._executable.run(*plan)
            return
        with self._executable.on_device():
            for uncaptured, part in groupby(plan, self._uncaptured.__contains__):
                if uncaptured:
                    self._executable.run(*part)
                else:
                    self._run_captured(tuple(part))

    def _run_captured(self, plan: Plan) -> None:
        known = self._known.setdefault(self._executable.step, {})
        if plan not in known:
            known[plan] = None
            self._executable.run(*plan)
            return
        graph = known[plan]
        if graph is None:
            graph = known[plan] = self._capture(plan)
        graph.replay()

    def _capture(self, plan: Plan) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        draws = self._executable.memory.draws
        if isinstance(draws, TorchDraws):
            # They go on from replay to replay instead of repeating those of the capture.
            graph.register_generator_state(draws.generator)
        # What other threads do meanwhile, a loader that pins memory say, does not end the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._executable.run(*plan)
        return graph
