"""JumpReLU on the device, inside the hook: dense activations in, only what is active out.

Two ways to the same result. `dense` multiplies everything in float32. `screened` first multiplies in int8, which is
several times faster on a CPU with VNNI; an int8 product is off by at most a bound that is known exactly for
each token and feature (Cauchy-Schwarz on the rounding errors), so whatever could be above its threshold is kept
and computed again in float32. No active feature can be missed, and every value is a float32 dot product.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..site import Site
from ..sparse import SparseActs

# torch says so once per process; the one operation used here is compared with the dense product in the tests.
warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks)", category=UserWarning)

# Entries of a [token, feature] block worked on at a time: bounds memory for long texts and wide SAEs.
_BLOCK = 1 << 22
# Below this many entries the float32 product costs less than the screen's extra steps.
_WORTH_SCREENING = 1 << 18
_OUTLIERS = 32


def encode(sae: Any, x: torch.Tensor, kept: torch.Tensor, site: Site) -> SparseActs:
    """Activations of `sae` on `x` [token, d_in]; rows where `kept` [token] is False stay empty.

    Non-finite input is refused, naming the token.
    """
    positions = kept.nonzero()[:, 0]
    rows = x[positions].to(torch.float32)
    if not torch.isfinite(rows.sum()) and not bool(torch.isfinite(rows).all()):
        bad = int(positions[~torch.isfinite(rows).all(1)][0])
        raise refuse("not-finite", site=site, position=bad)
    width = sae.encoder.shape[0]
    step = max(1, _BLOCK // width)
    parts = [_block(sae, rows[start : start + step]) for start in range(0, len(rows), step)]
    lengths = np.zeros(len(x), np.int64)
    if parts:
        lengths[positions.cpu().numpy()] = np.concatenate([part[0] for part in parts])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    columns = np.concatenate([part[1] for part in parts]) if parts else np.zeros(0)
    values = np.concatenate([part[2] for part in parts]) if parts else np.zeros(0)
    return SparseActs((len(x), width), indptr, columns, values)


def _block(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features per row, their indices, their values) of a block of rows."""
    if x.device.type == "cpu" and len(x) * sae.encoder.shape[0] >= _WORTH_SCREENING and can_screen():
        return screened(sae, x)
    return dense(sae, x)


def dense(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The definition: relu(pre) where pre > threshold (strictly), from one float32 product."""
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    on = (pre > sae.threshold) & (pre > 0)
    columns = on.nonzero()[:, 1]
    return on.sum(1).cpu().numpy(), columns.cpu().numpy(), pre[on].cpu().numpy()


def can_screen() -> bool:
    """Whether this CPU multiplies int8 in hardware (AVX-512 VNNI); without it the screen would be slower."""
    global _screens
    if _screens is None:
        check = getattr(torch.cpu, "_is_vnni_supported", None)
        _screens = bool(check is not None and check() and hasattr(torch, "_int_mm"))
    return _screens


_screens: bool | None = None


@dataclass
class _Screen:
    """An encoder rounded to int8, with what its rounding can cost."""

    weights: torch.Tensor  # int8 [d_in, feature], a view of [feature, d_in]
    scale: torch.Tensor  # float32 [feature]
    lines: torch.Tensor  # float32 [3, feature]: centre @ w + bias - threshold, |w|, |w - rounded w|
    centre: torch.Tensor  # float32 [d_in], taken off before rounding: most of a residual's length is its mean
    outliers: torch.Tensor  # the input dimensions kept out of int8
    outlier_weights: torch.Tensor  # float32 [outliers, feature]


_screen_of: weakref.WeakKeyDictionary[Any, _Screen] = weakref.WeakKeyDictionary()


def _screen(sae: Any, x: torch.Tensor) -> _Screen:
    screen = _screen_of.get(sae)
    if screen is None:
        encoder = sae.encoder
        # Gemma has a few dimensions tens of times larger than the rest; inside int8 they would drown the others.
        centre = x.mean(0)
        outliers = (x - centre).abs().amax(0).topk(min(_OUTLIERS, x.shape[1])).indices.sort().values
        packed, scale = sae.encoder_int8, sae.encoder_scale
        if packed is None or scale is None:
            scale = encoder.abs().amax(1).clamp_min(1e-30) / 127
            packed = (encoder / scale[:, None]).round_().to(torch.int8)
        lost = (packed.to(torch.float32) * scale[:, None]).sub_(encoder).norm(dim=1)
        # an activation must also be positive, so a negative threshold counts as 0
        offset = encoder @ centre + sae.b_enc - sae.threshold.clamp_min(0)
        lines = torch.stack([offset, encoder.norm(dim=1), lost])
        screen = _Screen(packed.T, scale, lines, centre, outliers, encoder[:, outliers].T.contiguous())
        _screen_of[sae] = screen
    return screen


def screened(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as `dense`, by way of int8."""
    screen = _screen(sae, x)
    rest = x - screen.centre
    big = rest[:, screen.outliers]
    rest[:, screen.outliers] = 0
    scale = rest.abs().amax(1, keepdim=True).clamp_min_(1e-30) / 127
    rounded = (rest / scale).round_()
    product = torch._int_mm(rounded.to(torch.int8), screen.weights).to(torch.float32).mul_(screen.scale)
    known = rounded * scale
    # pre <= product + big @ w + centre @ w + b + |rest - known| |w| + |known| |w - w'|, and float32's own rounding
    slack = 1e-5 * (x.norm(dim=1, keepdim=True) + screen.centre.norm())
    bound = torch.cat(
        [torch.ones_like(scale), (rest - known).norm(dim=1, keepdim=True) + slack, known.norm(dim=1, keepdim=True)], 1
    )
    left = torch.cat([bound, big], 1) / scale
    product.addmm_(left, torch.cat([screen.lines, screen.outlier_weights]))
    candidates = torch.from_numpy(np.flatnonzero(product.numpy().ravel() > 0))
    width = product.shape[1]
    columns = candidates % width
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(candidates // width, minlength=len(x)).cumsum(0)
    pre = _dots(x, sae.encoder, indptr, columns).add_(sae.b_enc[columns])
    on = (pre > sae.threshold[columns]) & (pre > 0)
    kept = torch.cat([torch.zeros(1, dtype=torch.int64), on.cumsum(0)])[indptr].diff()
    return kept.numpy(), columns[on].numpy(), pre[on].numpy()


def _dots(x: torch.Tensor, encoder: torch.Tensor, indptr: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x[row] . encoder[column] at every listed (row, column), without the rest of the product."""
    pattern = torch.sparse_csr_tensor(
        indptr, columns, torch.zeros(len(columns)), size=(len(x), len(encoder)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, x, encoder.T, beta=0.0).values()
