"""What a time depends on besides the code: processor, threads, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "backpack-for-pytorch", "numpy", "sympy")


def environment() -> dict[str, str]:
    """Name and value of each, in the order they are shown."""
    return {
        "cpu": cpu(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "commit": commit(),
    }


def cpu() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def installed(package: str) -> str:
    """The version of a package, or ``"absent"``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
