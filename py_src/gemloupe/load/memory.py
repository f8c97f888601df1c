"""What memory there is, and what a model's weights will take of it, known before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# In the files of models with a vision tower, which is not opened.
_NOT_TEXT = ("vision_tower.", "multi_modal_projector.")
_NAMES = {"F32": "float32", "BF16": "bfloat16"}


def free_bytes(device: Any) -> int:
    """Bytes free on `device` now; on a CPU, what the system can give without swapping."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        # What torch's allocator holds but nobody uses is free for us.
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return free_memory()


def free_memory() -> int:
    """Bytes of main memory that can be had without swapping, within a container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        facts = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free = min(free, limit - int(facts["anon"]))
    except (OSError, ValueError, KeyError):  # no limit, or no such files
        pass
    return max(0, free)


def weights_bytes(folder: Path, dtype: str) -> tuple[int, bool]:
    """(bytes that the weights in `folder` take in `dtype`, whether they are stored so and need no copy on a CPU).

    From the headers of its safetensors files alone; 0 where those cannot be read, which loading then says.
    """
    from math import prod

    from safetensors import SafetensorError, safe_open

    numbers, stored = 0, True
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if not any(part in name for part in _NOT_TEXT):
                        tensor = opened.get_slice(name)
                        numbers += prod(tensor.get_shape())
                        stored &= _NAMES.get(tensor.get_dtype()) == dtype
    except (SafetensorError, OSError):
        return 0, stored
    return numbers * (2 if dtype == "bfloat16" else 4), stored
