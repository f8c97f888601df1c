"""Weights times a few rows: the product that decoding spends its time in."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

# On a CPU in float32 (MKL, AVX-512), `weight @ x.T` with two columns reads the weights once at full speed, where
# `x @ weight.T` takes 1.4 times as long for one row and twice for two; a single column takes the slow way as well.
# With three to eight rows that holds for weights that are wider than deep.
_FEW, _PAIR = 8, 2


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [row, in] times weight [out, in]: [row, out], the same numbers as `linear` up to float32 rounding.

    Two-dimensional on purpose: in bfloat16 on a CPU a three-dimensional product is 45 times slower.
    """
    rows = len(x)
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows > _FEW:
        return linear(x, weight)
    if rows > _PAIR and weight.shape[0] < weight.shape[1]:
        return linear(x, weight)
    # The transposed view, not a transposed copy, is what the fast way takes.
    columns = torch.cat((x, x)).T if rows == 1 else x.contiguous().T
    return torch.mm(weight, columns)[:, :rows].T.contiguous()


def blocks(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """x [row, in] times weight [out, in]: [row, out], for many rows; float32 where `x` is.

    On a CPU by oneDNN, whose float32 product takes half of MKL's time on an AMD machine and no longer on Intel's.
    `out` is written to only where it is of use.
    """
    fused = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _onednn()
    if fused and weight.is_contiguous():
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, "none", [], "")
    return torch.mm(x, weight.T, out=out)


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
