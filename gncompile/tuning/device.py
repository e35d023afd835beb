"""What a measured setting depends on besides the operation: the device, and the versions of its libraries."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..environment import package_version
from ..tables import count


class Device(BaseModel):
    """A kind of device; settings measured on one are used on all of its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: str
    name: str
    capability: str
    """Instruction set of a processor."""
    threads: int

    @property
    def slug(self) -> str:
        """A file name for it."""
        text = f"{self.kind} {self.name} {self.capability} {self.threads} threads"
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

    def __str__(self) -> str:
        return f"{self.name}, {self.capability}, {count(self.threads, 'thread')}"


def this_device() -> Device:
    """The processor that torch's CPU operations run on, with as many threads as they use now."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return Device(
        kind="cpu",
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


def versions() -> dict[str, str]:
    """Versions of torch, Triton and the device's driver; a setting measured with others is stale."""
    import torch

    # A processor has no driver; its linear algebra is a library built into torch.
    blas = "mkl" if torch.backends.mkl.is_available() else "no mkl"
    return {
        "torch": package_version("torch"),
        "triton": package_version("triton"),
        "driver": blas,
    }
