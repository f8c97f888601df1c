"""The logit lens: what the model would say after each layer, if no other came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .capture import body
from .product import blocks

# Rows, and entries of the vocabulary, whose logits exist at the same time. Each group of rows reads the whole
# unembedding from memory, so there should be few groups; a block of 38 MB is worked on while it is at hand.
_ROWS, _BLOCK = 576, 1 << 14
# The k largest of a block are in the k groups of this size with the largest peaks: cheaper to find than by sorting.
_GROUP = 32
# exp of less than this, below the largest logit, is 0 in any sum of float32, and slow to add up.
_LEAST = -80.0


@dataclass(frozen=True)
class Said:
    """The likeliest next tokens, `ids` with their `probabilities`, and the `entropy` of all, in nats."""

    ids: list[int]
    probabilities: list[float]
    entropy: float


class Lens:
    """Collects rows of the residual stream and says what the model would make of them: its final norm, unembedding and
    soft-cap, the `k` likeliest tokens of each. Exact: every logit is computed, a block of the vocabulary at a time."""

    def __init__(self, model: Any, k: int, checkpoint: Callable[[float], None] = lambda share: None) -> None:
        self._model, self._checkpoint = model, checkpoint
        self._weight = model.lm_head.weight
        self._cap = getattr(body(model).config, "final_logit_softcapping", None)
        self._k = min(k, len(self._weight))
        self._rows: list[torch.Tensor] = []
        self._names: list[tuple[int, int]] = []
        self._waiting = 0
        self._found: dict[tuple[int, int], Said] = {}

    def add(self, rows: torch.Tensor, names: Sequence[tuple[int, int]]) -> None:
        """Rows [row, d_model] of the residual stream, and the name of each in what `finish` returns."""
        self._rows.append(body(self._model).norm(rows))
        self._names += names
        self._waiting += len(rows)
        if self._waiting >= _ROWS:
            self._say()

    def finish(self) -> dict[tuple[int, int], Said]:
        self._say()
        return self._found

    def _say(self) -> None:
        if not self._waiting:
            return
        rows, names = torch.cat(self._rows), self._names
        self._rows, self._names, self._waiting = [], [], 0
        for start in range(0, len(rows), _ROWS):
            self._found.update(zip(names[start : start + _ROWS], self._said(rows[start : start + _ROWS]), strict=True))

    def _said(self, rows: torch.Tensor) -> list[Said]:
        """One `Said` for each of rows [row, d_model], normed. Sums go along the vocabulary as in an online softmax."""
        n, device = len(rows), rows.device
        peak = torch.full((n, 1), -torch.inf, device=device)
        total = torch.zeros((n, 1), device=device)  # of exp(logit - peak)
        moment = torch.zeros((n, 1), device=device)  # of exp(logit - peak) (logit - peak)
        values: list[torch.Tensor] = []
        ids: list[torch.Tensor] = []
        # Kept from block to block: fresh memory costs more than the arithmetic done in it.
        product = torch.empty((n, _BLOCK), dtype=rows.dtype, device=device)
        buffers = torch.empty((2, n * _BLOCK), device=device)
        for start in range(0, len(self._weight), _BLOCK):
            self._checkpoint(1.0)
            weight = self._weight[start : start + _BLOCK]
            logits = blocks(rows, weight, product if len(weight) == _BLOCK else None).to(torch.float32)
            if self._cap is not None:
                logits = logits.div_(self._cap).tanh_().mul_(self._cap)
            best, where, tops = self._tops(logits)
            values.append(best)
            ids.append(where + start)
            higher = torch.maximum(peak, tops)
            rest, shares = (buffer[: logits.numel()].view_as(logits) for buffer in buffers)
            torch.sub(logits, higher, out=rest).clamp_min_(_LEAST)
            torch.exp(rest, out=shares)
            # Both sums so far are moved to the new peak.
            fade, shift = (peak - higher).exp(), torch.where(total > 0, peak - higher, 0.0)
            moment = fade * (moment + total * shift) + rest.mul_(shares).sum(1, keepdim=True)
            total = fade * total + shares.sum(1, keepdim=True)
            peak = higher
        chosen = torch.cat(values, 1).topk(self._k)
        names = torch.cat(ids, 1).gather(1, chosen.indices)
        chances = (chosen.values - peak).exp() / total
        # -sum of p log p, with log p = (logit - peak) - log total
        entropy = (total.log() - moment / total)[:, 0].clamp_min(0)
        return [Said(*each) for each in zip(names.tolist(), chances.tolist(), entropy.tolist(), strict=True)]

    def _tops(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The k largest of each row with their places, and the largest [row, 1]."""
        n, width = logits.shape
        if width % _GROUP or width // _GROUP <= self._k:
            found = logits.topk(min(self._k, width))
            return found.values, found.indices, found.values[:, :1]
        groups = logits.view(n, -1, _GROUP)
        likely = groups.amax(2).topk(self._k)
        inside = groups.gather(1, likely.indices[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
        found = inside.topk(self._k)
        group = likely.indices.gather(1, found.indices // _GROUP)
        return found.values, group * _GROUP + found.indices % _GROUP, likely.values[:, :1]
