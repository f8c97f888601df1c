"""Statistics of the features of one SAE on disk: as they are, or in small types in a compressed file; and in our cache,
those that were measured or imported for an SAE that comes with none.

The small form stores token ids as three planes of bytes (a vocabulary of 262,144 leaves the fourth empty, and each
plane compresses with a code of its own), and the change in logit as 127ths of the largest in its list.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Refusal, refuse
from ..site import Site
from . import cache
from .artifact import DEFLATED, Content, check_shapes, read_safetensors
from .sae import FeatureStats

NAMES = (f"features.safetensors{DEFLATED}", "features.safetensors")

_NUMBERS = ("maximum", "density", "mean_active")
_TOKENS = ("promotes", "suppresses")
_LOGITS = ("promotes_logit", "suppresses_logit")
_PLAIN = {
    **dict.fromkeys(_NUMBERS, torch.float32),
    **dict.fromkeys(_TOKENS, torch.int32),
    **dict.fromkeys(_LOGITS, torch.float16),
}
_SMALL = {
    **dict.fromkeys(_NUMBERS, torch.float32),
    **dict.fromkeys(_TOKENS, torch.uint8),  # [byte, feature, place]
    **dict.fromkeys(_LOGITS, torch.int8),
    **dict.fromkeys([f"{name}_largest" for name in _LOGITS], torch.float16),
}


def stats_tensors(stats: FeatureStats) -> dict[str, torch.Tensor]:
    """What is known, as tensors: [feature] float32 numbers; [feature, place] int32 tokens and float16 logits."""
    known = {name: value for name, value in vars(stats).items() if value is not None}
    return {name: torch.from_numpy(np.ascontiguousarray(v)).to(_PLAIN[name]) for name, v in known.items()}


def small_stats(stats: FeatureStats) -> dict[str, torch.Tensor]:
    """The same in the small form."""
    tensors = stats_tensors(stats)
    for name in _TOKENS:
        if name in tensors:
            tokens = tensors[name]
            tensors[name] = torch.stack([(tokens >> shift & 255).to(torch.uint8) for shift in (0, 8, 16)])
    for name in _LOGITS:
        if name in tensors:
            logits = tensors[name].float()
            largest = logits.abs().amax(1, keepdim=True)
            tensors[name] = (127 * logits / largest.clamp_min(torch.finfo(torch.float16).tiny)).round().to(torch.int8)
            tensors[f"{name}_largest"] = largest[:, 0].half()
    return tensors


def read_stats(file: Path, site: Site, width: int, content: Content | None = None) -> FeatureStats:
    """The statistics in `file`, of either form; refuses other shapes, dtypes, negative and non-finite numbers."""
    small = file.suffix == DEFLATED
    dtypes = _SMALL if small else _PLAIN
    tensors = read_safetensors(file, (), optional=dtypes, content=content)
    for name, value in tensors.items():
        if value.dtype != dtypes[name]:
            raise refuse("scope-damaged", file=file, why=f"{name} holds {value.dtype}, expected {dtypes[name]}")
        places = value.shape[-1] if value.ndim else 0
        shape: tuple[int, ...] = (width, places) if name in _TOKENS + _LOGITS else (width,)
        if small and name in _TOKENS:
            shape = (3, *shape)
        # NaN is how an unknown maximum or mean is written
        known = (
            torch.nan_to_num(value, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
            if value.is_floating_point()
            else value
        )
        check_shapes(file, {name: known if name in ("maximum", "mean_active") else value}, {name: shape}, site=site)
        if name not in _LOGITS and (known < 0).any():
            raise refuse("scope-damaged", file=file, why=f"{name} holds negative numbers")
    if small:
        tensors = _widened(file, tensors)
    return FeatureStats(**{name: value.numpy() for name, value in tensors.items()})


def _widened(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The small form as the plain one."""
    found = {name: tensors[name] for name in _NUMBERS if name in tensors}
    for name in _TOKENS:
        if name in tensors:
            low, middle, high = tensors[name].to(torch.int32)
            found[name] = low | middle << 8 | high << 16
    for name in _LOGITS:
        largest = f"{name}_largest"
        if (name in tensors) != (largest in tensors):
            raise refuse("scope-damaged", file=file, why=f"it holds only one of {name} and {largest}")
        if name in tensors:
            found[name] = (tensors[name].float() * tensors[largest].float()[:, None] / 127).half()
    return found


# ---- measured or imported here


def kept_file(*identity: Any) -> Path:
    """Where statistics are kept that belong to what `identity` names: the model and the SAE."""
    name = sha256(json.dumps([str(one) for one in identity]).encode()).hexdigest()
    return cache.folder() / "statistics" / f"{name}.safetensors"


def keep_stats(file: Path, stats: FeatureStats, origin: str) -> None:
    """Writes `stats` with the sentence that says where they are from. Refuses 'cache-not-writable'."""
    from safetensors.torch import save

    with cache.explained("1 MB", cache.folder()):
        file.parent.mkdir(parents=True, exist_ok=True)
        cache.write_atomically(file, save(stats_tensors(stats), {"origin": origin}))


def kept_origin(file: Path) -> str | None:
    """Where the statistics in `file` are from; None if there are none, or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as opened:
            return (opened.metadata() or {}).get("origin")
    except (OSError, SafetensorError):
        return None


def kept_stats(file: Path, site: Site, width: int) -> FeatureStats | None:
    """What `keep_stats` wrote; None where there is nothing usable, since it can be measured again."""
    if kept_origin(file) is None:
        return None
    try:
        return read_stats(file, site, width)
    except Refusal:
        return None
