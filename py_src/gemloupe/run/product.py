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
