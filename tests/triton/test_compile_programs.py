"""Every kernel of whole programs, as emitted, compiled for GPUs that are not here.

The programs are KFRA steps for the tanh autoencoders of MNIST and CURVES at a batch of 1000, and for networks
with weights at many places: a convolution, norms, and a transformer block. Kernels that
differ only in names, or in what Triton does not specialise on, are compiled once. The plain run takes one of
each form for compute capability 90, a quarter of these for 80 and 100; with ``--all-kernels`` everything is
compiled for all three, at both precisions.
"""

from __future__ import annotations

import inspect
import multiprocessing
import re
from collections.abc import Hashable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from places import network
from small_programs import triton_texts
from torch import nn

from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.pipeline import step_program
from gncompile.runtime.draws import PhiloxDraws
from gncompile.runtime.memory import Memory
from gncompile.runtime.source_files import load_source
from gncompile.triton_kernels.launches import Launch
from gncompile.triton_kernels.resources import resources
from gncompile.triton_kernels.settings import SHARED_MEMORY

ENCODERS = {
    "mnist": (784, 1000, 500, 250, 30),
    "curves": (784, 400, 200, 100, 50, 25, 6),
}
PLACES = {"convolutions": (16, 13), "norms": (32,), "block": (64, 4)}
"""Sizes of the networks whose weights act at places."""
BATCH, SAMPLES, COLUMNS = 1000, 256, 3
TENSOR_CORES = {80: "mma", 90: "wgmma", 100: "tcgen05"}
TENSOR_MEMORY = 512  # columns, on compute capability 100
SPILLED = {
    80: 8,
    90: 0,
    100: 0,
}  # a register of one kernel, stored before its loop and loaded after it
PROCESSES = 2


def autoencoder(encoder: tuple[int, ...]) -> nn.Sequential:
    """Tanh layers there and back; the code and the logits are linear."""
    sizes = (*encoder, *encoder[-2::-1])
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers.append(nn.Linear(inputs, outputs))
        if number not in (len(encoder) - 1, len(sizes) - 1):
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


@cache
def emitted(name: str) -> tuple[Any, Any, Any, Any]:
    """Kernels and step of a program as modules, with what its memory is made of."""
    if name in PLACES:
        model, example, _ = network(name, 2, *PLACES[name])
    else:
        model, example = autoencoder(ENCODERS[name]), torch.zeros(2, 784)
    traced, loss, _ = understand(model, "bce_with_logits", example)
    settings = Settings(l2=1e-5, average=0.99, guarded=True)
    program = step_program(traced.graph, loss, settings)
    kernels, step = triton_texts(program)
    modules = [
        load_source(text, f"{name}_{part}")[0] for part, text in (("k", kernels), ("s", step))
    ]
    return *modules, program, traced


def launches(name: str, precision: str) -> Iterator[Launch]:
    """What the program launches, over tensors of the real sizes on the host."""
    kernels, step, program, traced = emitted(name)
    tensors = traced.parameters, traced.constants
    device = torch.device("cpu")
    draws = PhiloxDraws(0, device)
    memory = Memory(program, *tensors, torch.float32, device, draws, precision)
    phases, _ = step.bind(memory, kernels, BATCH, SAMPLES, SAMPLES, SAMPLES, COLUMNS)
    for phase in phases.values():
        for value in inspect.getclosurevars(phase).nonlocals.values():
            if isinstance(value, list):
                yield from (each for each in value if isinstance(each, Launch))


def specialisation(launch: Launch) -> Hashable:
    """Equal for launches that one compiled kernel serves."""
    arguments = tuple(
        (name, constant(value) if name.isupper() else kind(value))
        for name, value in launch.arguments.items()
    )
    return launch.kernel.cache_key, launch.num_warps, launch.num_stages, arguments


def constant(value: Any) -> Hashable:
    """A compile-time argument; of a function the body, its parameters by number."""
    if not hasattr(value, "arg_names"):
        return value
    body = value.src.partition(":\n")[2].rpartition('"""')[2]
    numbers = {name: f"t{n}" for n, name in enumerate(value.arg_names)}
    return re.sub(r"\w+", lambda word: numbers.get(word[0], word[0]), body)


def kind(value: Any) -> Hashable:
    """What Triton knows of a run-time argument: of a tensor the type, of an integer if it is 1 or of 16s."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return value == 1, value % 16 == 0
    if isinstance(value, tuple):
        return tuple(map(kind, value))
    return type(value)


def distinct(precision: str) -> list[Launch]:
    """The kernels of all programs, each once."""
    found: dict[Hashable, Launch] = {}
    for name in (*ENCODERS, *PLACES):
        for launch in launches(name, precision):
            found.setdefault(specialisation(launch), launch)
    return list(found.values())


class Compiled(NamedTuple):
    """What is checked of a compiled kernel."""

    kernel: str
    tile: int
    precision: str
    shared: int
    tensor_memory: int
    spilled: int
    is_trap: bool
    instructions: dict[str, int]


_queue: list[Launch] = []
"""Launches that forked processes take by number, because their tensors cannot be sent."""


def compiled(task: tuple[int, int]) -> Compiled:
    number, capability = task
    launch = _queue[number]
    used = resources(launch, capability)
    function = launch.arguments.get("FUNCTION") or launch.arguments.get("EPILOGUE")
    size = [launch.arguments.get(name, 0) for name in ("BLOCK_M", "BLOCK_N")]
    return Compiled(
        f"{launch.kernel.__name__} {getattr(function, '__name__', '')}", max(size),
        launch.arguments.get("PRECISION", ""), used.shared, used.tensor_memory, used.spilled,
        used.is_trap, used.instructions,
    )  # fmt: skip


def instruction(kernel: Compiled, capability: int) -> str:
    """What a product is multiplied with; the tensor cores from 90 on take 64 rows or more."""
    if kernel.precision != "tf32x3":
        return "fma"
    return TENSOR_CORES[capability] if kernel.tile >= 64 else "mma"


def check(selected: list[Launch], capability: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Compile launches in parallel; each fits its device, spills nothing, and multiplies as it should."""
    patch.setenv("TRITON_CACHE_DIR", str(folder))
    _queue[:] = selected
    tasks = [(number, capability) for number in range(len(selected))]
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        results = pool.map(compiled, tasks, chunksize=1)
    assert len(results) == len(selected) > 0
    wrong = [str(kernel) for kernel in results if not is_sound(kernel, capability)]
    assert not wrong, "\n".join(wrong)


def is_sound(kernel: Compiled, capability: int) -> bool:
    return (
        not kernel.is_trap
        and kernel.spilled <= SPILLED[capability]
        and kernel.shared <= SHARED_MEMORY[capability]
        and kernel.tensor_memory <= TENSOR_MEMORY
        and (not kernel.precision or kernel.instructions[instruction(kernel, capability)] > 0)
    )


def form(launch: Launch) -> Hashable:
    """Equal for launches of one kernel with equal tiles; for products with equal kinds of operands, too."""
    words = launch.arguments
    sizes = tuple(words.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    operands = (words["KINDS"], words["STORED"]) if "STORED" in words else ()
    return launch.kernel.__name__, sizes, words.get("EPILOGUE") is not None, operands


def sample(precision: str) -> list[Launch]:
    """One launch of each form, the one with the most tensors."""
    launches = sorted(distinct(precision), key=lambda x: len(x.arguments.get("KINDS", ())))
    return list({form(launch): launch for launch in launches}.values())


@pytest.mark.parametrize(("capability", "every"), [(90, 1), (80, 4), (100, 4)])
def test_kernels_of_every_form(
    capability: int, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(sample("high")[::every], capability, tmp_path, monkeypatch)


@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_all_kernels(
    capability: int,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    if not pytestconfig.getoption("--all-kernels", False):
        pytest.skip("takes minutes; run with --all-kernels")
    check(distinct(precision), capability, tmp_path, monkeypatch)
