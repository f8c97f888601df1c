"""JumpReLU on the device, inside the hook: dense activations in, only what is active out.

Two ways to the same result. `dense` multiplies everything in float32. `screened` first multiplies in int8, which is
several times faster on a CPU with VNNI; an int8 product is off by at most a bound that is known exactly for
each token and feature (Cauchy-Schwarz on the rounding errors), so whatever could be above its threshold is kept
and computed again in float32. No active feature can be missed, and every value is a float32 dot product.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..site import Site
from ..sparse import SparseActs

# torch says once per process that its sparse tensors are in beta; the one operation used here is compared with the
# dense product in the tests.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))

# Entries of a [token, feature] block worked on at a time: bounds memory for long texts and wide SAEs.
_BLOCK = 1 << 22
# Below this many entries the float32 product costs less than the screen's extra steps.
_WORTH_SCREENING = 1 << 18
_OUTLIERS = 32


def encode(sae: Any, x: torch.Tensor, kept: torch.Tensor, site: Site, *, first: int = 0) -> SparseActs:
    """Activations of `sae` on `x` [token, d_in]; rows where `kept` [token] is False stay empty.

    Non-finite input is refused, naming the token; the first row is token `first`.
    """
    positions = kept.nonzero()[:, 0]
    rows = x[positions].to(torch.float32)
    if not torch.isfinite(rows.sum()) and not bool(torch.isfinite(rows).all()):
        bad = int(positions[~torch.isfinite(rows).all(1)][0])
        raise refuse("not-finite", site=site, position=first + bad)
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
        # Rounding an encoder costs as much as multiplying with it: not for an SAE that is used once and paged out.
        if sae.encoder_int8 is not None or sae in _used:
            return screened(sae, x)
        _used.add(sae)
        return unscreened(sae, x)
    return dense(sae, x)


def dense(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The definition: relu(pre) where pre > threshold (strictly), from one float32 product."""
    with exactly():
        pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    rows, columns = (pre > floor(sae)).nonzero(as_tuple=True)
    counts = np.bincount(rows.cpu().numpy(), minlength=len(x))
    return counts, columns.cpu().numpy(), pre[rows, columns].cpu().numpy()


@contextmanager
def exactly() -> Iterator[None]:
    """Float32 products on a GPU are made in float32, also where TF32 has been allowed."""
    settings: Any = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    if before == exact:
        yield
        return
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)


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
    # float32 [3 + outliers, feature]: centre @ w + bias - threshold, |w|, |w - rounded w|, w at the outliers
    lines: torch.Tensor
    centre: torch.Tensor  # float32 [d_in], taken off before rounding: most of a residual's length is its mean
    outliers: torch.Tensor  # the input dimensions kept out of int8


_screen_of: weakref.WeakKeyDictionary[Any, _Screen] = weakref.WeakKeyDictionary()
_used: weakref.WeakSet[Any] = weakref.WeakSet()
_norms_of: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()
_floors: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()


def floor(sae: Any) -> torch.Tensor:
    """What a pre-activation must exceed, float32 [feature]: the threshold, and zero. Computed once."""
    if (known := _floors.get(sae)) is None:
        _floors[sae] = known = sae.threshold.clamp_min(0)
    return known


def norms(sae: Any) -> torch.Tensor:
    """Lengths of the encoder's rows, float32 [feature]; computed once, which also reads all of a mapped encoder."""
    if (known := _norms_of.get(sae)) is None:
        # Not by torch: threads that load SAEs come here, and each that computes with torch gets a pool of its own.
        # More pool threads than cores, and OpenMP sends all of them to sleep between products, the model's too.
        rows = sae.encoder.numpy() if sae.encoder.device.type == "cpu" else None
        squares = None if rows is None else torch.from_numpy(np.einsum("ij,ij->i", rows, rows))
        _norms_of[sae] = known = sae.encoder.norm(dim=1) if squares is None else squares.sqrt_()
    return known


def screen_bytes(width: int, d_in: int) -> int:
    """Bytes that a screen keeps beside its SAE, once there is one."""
    return width * (d_in + 4 * (2 + 3 + min(_OUTLIERS, d_in))) + 4 * d_in


def _screen(sae: Any, x: torch.Tensor) -> _Screen:
    screen = _screen_of.get(sae)
    if screen is None:
        encoder, least = sae.encoder, floor(sae)
        # Gemma has a few dimensions tens of times larger than the rest; inside int8 they would drown the others.
        centre = x.mean(0)
        outliers = (x - centre).abs().amax(0).topk(min(_OUTLIERS, x.shape[1])).indices.sort().values
        packed, scale = sae.encoder_int8, sae.encoder_scale
        if packed is None or scale is None:
            scale = encoder.abs().amax(1).clamp_min(1e-30) / 127
            packed = (encoder / scale[:, None]).round_().to(torch.int8)
        lost = (packed.to(torch.float32) * scale[:, None]).sub_(encoder).norm(dim=1)
        offset = encoder @ centre + sae.b_enc - least + 2**-22 * (sae.b_enc.abs() + least)
        lines = torch.cat([torch.stack([offset, norms(sae), lost]), encoder[:, outliers].T])
        screen = _Screen(packed.T, scale, lines, centre, outliers)
        _screen_of[sae] = screen
    return screen


def screened(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as `dense`, by way of int8."""
    return _exactly(sae, x, *_candidates(_screen(sae, x), x))


def unscreened(sae: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as `screened`, bit for bit, by way of a float32 product: so it does not matter what was used before."""
    least = floor(sae)
    slack = _rounding(x) * (x.norm(dim=1, keepdim=True) * norms(sae)) + 2**-22 * (sae.b_enc.abs() + least)
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    found = (pre.add_(slack) > least).nonzero()
    return _exactly(sae, x, found[:, 0], found[:, 1])


def _rounding(x: torch.Tensor) -> float:
    """What float32 can round off in a dot product with a row of `x`, by the product of the lengths; with a margin."""
    return 2**-23 * (x.shape[1] + 64)


def _exactly(
    sae: Any, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is on among the entries (rows, columns), each computed by itself."""
    pre = _dots(x, sae.encoder, rows, columns).add_(sae.b_enc[columns])
    on = pre > sae.threshold[columns].clamp_min_(0)
    return np.bincount(rows[on].numpy(), minlength=len(x)), columns[on].numpy(), pre[on].numpy()


def _candidates(screen: _Screen, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns), in order, of every entry that can be above its threshold, and of some that are not."""
    rest = x - screen.centre
    big = rest[:, screen.outliers]
    rest[:, screen.outliers] = 0
    scale = rest.abs().amax(1, keepdim=True).clamp_min_(1e-20) / 127
    rounded = (rest / scale).round_()
    known = rounded * scale
    shape = (len(x), len(screen.scale))
    whole, product, hopeless = (_buffer(dtype, shape) for dtype in (torch.int32, torch.float32, torch.bool))
    torch._int_mm(rounded.to(torch.int8), screen.weights, out=whole)
    product.copy_(whole).mul_(screen.scale)
    # pre <= product + big @ w + centre @ w + b + |rest - known| |w| + |known| |w - w'|, and what float32 rounds off
    # in a sum of d_in products, here and in `dense`.
    slack = _rounding(x) * (x.norm(dim=1, keepdim=True) + screen.centre.norm())
    lost = (rest - known).norm(dim=1, keepdim=True) + slack
    product.addmm_(
        torch.cat([torch.ones_like(scale), lost, known.norm(dim=1, keepdim=True), big], 1) / scale, screen.lines
    )
    mask = np.less_equal(product.numpy(), 0, out=hopeless.numpy())  # a NaN, from a sum that overflows, is not
    found = torch.from_numpy(np.flatnonzero(np.logical_not(mask, out=mask)))
    rows = torch.div(found, shape[1], rounding_mode="floor")
    return rows, found - rows * shape[1]


class _Buffers(threading.local):
    """Kept between calls, since fresh pages cost more than the arithmetic done in them. A thread has its own."""

    def __init__(self) -> None:
        self.of: dict[torch.dtype, torch.Tensor] = {}


_buffers = _Buffers()


def _buffer(dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
    """Uninitialised; valid until the next call with the same dtype."""
    size = shape[0] * shape[1]
    kept = _buffers.of.get(dtype)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):  # else it could not be written to outside of inference mode
            kept = _buffers.of[dtype] = torch.empty(size, dtype=dtype)
    return kept[:size].view(shape)


def _dots(x: torch.Tensor, encoder: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x[row] . encoder[column] at every listed (row, column), without the rest of the product."""
    # By column, so that each row of the encoder is fetched from memory once; x is small and stays in the cache.
    order = torch.argsort(columns, stable=True)
    indptr = torch.zeros(len(encoder) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(columns, minlength=len(encoder)), 0, out=indptr[1:])
    pattern = torch.sparse_csr_tensor(
        indptr, rows[order], torch.zeros(len(rows)), size=(len(encoder), len(x)), check_invariants=False
    )
    dots = torch.empty(len(rows))
    dots[order] = torch.sparse.sampled_addmm(pattern, encoder, x.T, beta=0.0).values()
    return dots
