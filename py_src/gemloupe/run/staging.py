"""From the host to a GPU at the speed of the bus.

A GPU reads memory that the system may move only by way of a copy, and its driver makes that copy on one thread. Two
pinned buffers are filled in turn, on all threads, while the bus empties the other.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

_SIZE = 32 << 20


class Staging:
    """Copies tensors to `device`, through `size` bytes at a time. Safe to use from several threads."""

    def __init__(self, device: torch.device, size: int = _SIZE) -> None:
        self._device, self._lock = device, threading.Lock()
        self._gpu = device.type == "cuda"
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=self._gpu) for _ in range(2)]
        self._emptied: list[Any] = [torch.cuda.Event() if self._gpu else None for _ in range(2)]

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        """`source` on the device, queued on the current stream; `source` may be changed as soon as this returns."""
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        size = len(self._buffers[0])
        parts = (one.reshape(-1).view(torch.uint8).split(size) for one in (source.detach(), target))
        with self._lock:
            for number, (part, there) in enumerate(zip(*parts, strict=True)):
                buffer, emptied = self._buffers[number % 2][: len(part)], self._emptied[number % 2]
                if self._gpu:
                    emptied.synchronize()
                buffer.copy_(part)
                there.copy_(buffer, non_blocking=self._gpu)
                if self._gpu:
                    emptied.record()
        return target
