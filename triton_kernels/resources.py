"""Compile a launch for a GPU that need not be here, and report what the kernel uses.

The launch is compiled through Triton's own launcher with its real arguments, so that the types, alignments
and constants are those of a run. Needs a process in which Triton compiles: not its interpreter.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gncompile.errors import InternalError

from .language import triton
from .launches import Launch

INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma": r"\bmma\.sync",
    "fma": r"\bfma\.rn\.(?:f32|f64)",
}
"""Ways to multiply in PTX: Hopper's, Blackwell's, and earlier tensor cores; and without any."""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses: bytes of shared memory, registers of a thread, bytes spilled by it.

    ``instructions`` counts those of :data:`INSTRUCTIONS`, ``copies`` asynchronous copies by their bytes.
    """

    shared: int
    tensor_memory: int
    registers: int
    spilled: int
    instructions: dict[str, int]
    copies: dict[int, int]
    ptx: str = field(repr=False)

    @property
    def is_trap(self) -> bool:
        """Whether the body is a lone ``trap``: how Triton compiles what the target cannot do."""
        body = [line.strip() for line in self.ptx.splitlines()]
        return "trap;" in body and not any(line.startswith(("st.", "@%p")) for line in body)


def can_compile(launch: Launch) -> bool:
    """Whether Triton compiles kernels in this process, and does not interpret them."""
    return hasattr(launch.kernel, "device_caches")


def resources(launch: Launch, capability: int) -> Resources:
    """Compile ``launch`` for compute capability ``capability`` (80, 90, 100) and measure the result."""
    if not can_compile(launch):
        raise InternalError(
            "Triton interprets kernels in this process and cannot compile them",
            instead="run without TRITON_INTERPRET",
        )
    select_target(capability)
    launch.kernel.device_caches.clear()  # they are by device, and every target is device 0 here
    compiled = _compile(launch)
    ptx = compiled.asm["ptx"]
    log = _assemble(ptx, capability)
    return Resources(
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        registers=_number(r"Used (\d+) registers", log),
        spilled=_number(r"(\d+) bytes spill stores", log)
        + _number(r"(\d+) bytes spill loads", log),
        instructions={name: len(re.findall(text, ptx)) for name, text in INSTRUCTIONS.items()},
        copies={
            size: len(re.findall(rf"cp\.async\.c[ag]\.shared\.global .*\], {size:#x}, ", ptx))
            for size in (4, 8, 16)
        },
        ptx=ptx,
    )


def select_target(capability: int) -> None:
    """Let Triton compile for a capability from now on, with no device; nothing can be run after that."""
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(_NoDevice(target))


def compile_together(launches: Sequence[Launch], threads: int) -> None:
    """Compile launches for the current device in threads; what fails will fail again when it is run."""
    with ThreadPoolExecutor(threads) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for launch in launches:
            _compile(launch)


def _compile(launch: Launch) -> Any:
    """Triton's handle of the compiled kernel."""
    return launch.kernel.warmup(
        grid=launch.grid,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **launch.arguments,
    )


class _NoDevice:
    """The part of a Triton driver that compiling needs."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def _assemble(ptx: str, capability: int) -> str:
    """What the assembler of Triton's own wheel says about the kernel."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={sm_arch_from_capability(capability)}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise InternalError("the assembler's report is not understood", where=text[:500])
    return int(found.group(1))
