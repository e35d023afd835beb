"""What a measured setting depends on besides the operation: the device, and the versions of its libraries."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..base.environment import package_version
from ..base.tables import count
from ..base.untrusted import slug
from ..errors import GncompileError


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters")
    return text


Word = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
"""A name in a store, which may be somebody else's file and is printed."""


class Device(BaseModel):
    """A kind of device; settings measured on one are used on all of its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Word
    """``cpu``, ``cuda``, or ``interpreter``, which runs Triton's kernels on a CPU."""
    name: Word
    capability: Word
    """Instruction set of a processor; compute capability of a GPU, ``9.0``."""
    threads: Annotated[int, Field(ge=0, lt=10**6)] = 0
    """Of a processor."""

    @property
    def slug(self) -> str:
        """A file name for it."""
        threads = f"{self.threads} threads" if self.threads else ""
        text = f"{self.kind} {self.name} {self.capability} {threads}"
        return slug(re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-"))

    def __str__(self) -> str:
        threads = [count(self.threads, "thread")] if self.threads else []
        return ", ".join([self.name, self.capability, *threads])


KINDS = ("cpu", "cuda", "interpreter")


def this_device(kind: str = "cpu") -> Device:
    """The device of a kind that is current in this process; ``GncompileError`` if there is none."""
    require_kind(kind)
    return graphics_processor() if kind == "cuda" else processor(kind)


def require_kind(kind: str) -> None:
    """Raise ``GncompileError`` unless there is such a kind of device."""
    if kind not in KINDS:
        raise GncompileError(
            f"unknown kind of device {kind!r}", instead=f"use one of {', '.join(KINDS)}"
        )


def graphics_processor(index: int | None = None) -> Device:
    """A CUDA device, by default the current one."""
    import torch

    if not torch.cuda.is_available():
        raise GncompileError(
            "there is no CUDA device", instead="ask for the settings of the device 'cpu'"
        )
    major, minor = torch.cuda.get_device_capability(index)
    return Device(
        kind="cuda", name=torch.cuda.get_device_name(index), capability=f"{major}.{minor}"
    )


def processor(kind: str = "cpu") -> Device:
    """The processor that torch's CPU operations run on, with as many threads as they use now."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return Device(
        kind=kind,
        name=_processor(),
        capability=str(capability),
        threads=torch.get_num_threads(),
    )


def _processor() -> str:
    """The processor's model, by Linux' list where there is one."""
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        listed = ""
    model = re.search(r"^model name\s*:\s*(.+)$", listed, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def versions(kind: str = "cpu") -> dict[str, str]:
    """Versions of torch, Triton and the device's driver; a setting measured with others is stale."""
    import torch

    # A processor has no driver; its linear algebra is a library built into torch.
    blas = "mkl" if torch.backends.mkl.is_available() else "no mkl"
    return {
        "torch": package_version("torch"),
        "triton": package_version("triton"),
        "driver": _nvidia_driver() if kind == "cuda" else blas,
    }


def _nvidia_driver() -> str:
    """The version of NVIDIA's driver as its kernel module says it, where that can be read."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", said)
    return found[1] if found else "unknown"
