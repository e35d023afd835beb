"""Times calls on a device: by CUDA events on a GPU, by the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """Measures ``rounds`` times, each time for at least ``least`` seconds."""

    device: torch.device
    rounds: int = 11
    least: float = 0.02

    @property
    def is_cuda(self) -> bool:
        """Whether the device runs ahead of the host."""
        return self.device.type == "cuda"

    def measure(self, call: Call, cycle: int = 1, warm_up: int = 3) -> list[float]:
        """Seconds a call, one entry a round; a round has a whole number of cycles of calls.

        Calls start one after the other without waiting, so the time is the larger of the device's and of
        what the host needs to start them.
        """
        for _ in range(warm_up):
            call()
        once = self._seconds(call, cycle)
        count = cycle * max(1, round(self.least / max(once, 1e-9)))
        return [self._seconds(call, count) / count for _ in range(self.rounds)]

    def _seconds(self, call: Call, count: int) -> float:
        if not self.is_cuda:
            begun = time.perf_counter()
            for _ in range(count):
                call()
            return time.perf_counter() - begun
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def captured(self, call: Call, warm_up: int = 3) -> Call:
        """``call`` as a CUDA graph; on a CPU as it is. It must not wait for the device."""
        if not self.is_cuda:
            return call
        # On a stream of its own, as torch asks for, so that libraries allocate their workspace there.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay
