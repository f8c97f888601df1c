"""The encodings of many sites in one pass, without waiting for a GPU at any of them.

What is on can only be listed once it is known how much is, and asking a GPU that means waiting until it has caught up.
So there the hook only queues the float32 product and the comparison with the thresholds; the lists are made together,
when the pass is over or when `ENTRIES` are waiting. Elsewhere, each site is encoded in its hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..load.memory import free_bytes
from ..site import Site
from ..sparse import SparseActs
from .encode import encode, exactly, floor

# Entries of [token, feature] blocks that wait on a GPU at most, and the bytes of each: its value, and whether it is on.
ENTRIES, _BYTES = 1 << 27, 5


def waiting_bytes(tokens: int, widths: Sequence[int], device: torch.device) -> int:
    """The most that waits on `device` while `tokens` tokens are read at sites of such widths."""
    most = max(max(widths, default=0), min(ENTRIES, tokens * sum(widths)))
    return _BYTES * most if device.type == "cuda" else 0


@dataclass(frozen=True)
class _Piece:
    """Rows of one site that wait: the tokens they stand for, and their extremes, where what is not finite shows."""

    site: Site
    width: int
    tokens: np.ndarray
    bounds: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Listed:
    """What was on in some rows of a site: `lengths` features per token of `tokens`, one after the other."""

    tokens: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray
    values: np.ndarray


class Encodings:
    """Collects what `sites` sites of a text of `tokens` tokens have on.

    Per chunk of the text `begin`, then `add` for each site; `finish` at the end. An input that is not finite is refused
    ('not-finite') by `add` or, on a GPU, by any later call. `together`: queue instead of encoding each site at once
    (default: on a GPU).
    """

    def __init__(self, tokens: int, sites: int, device: torch.device, *, together: bool | None = None) -> None:
        self._tokens, self._sites, self._device = tokens, sites, device
        self._together = device.type == "cuda" if together is None else together
        self._done: dict[Site, list[SparseActs]] = {}
        self._listed: dict[Site, list[_Listed]] = {}
        self._widths: dict[Site, int] = {}
        self._waiting: list[_Piece] = []
        self._used = self._wanted = self._room = 0
        self._pre = self._on = torch.empty(0)

    def begin(self, kept: torch.Tensor, first: int = 0) -> None:
        """Rows that follow stand for the tokens from `first` on; those where `kept` [token] is False stay empty."""
        self._first = first
        self._here = kept.to(self._device)
        where = kept.cpu().nonzero()[:, 0]
        self._where = where.numpy()
        gap = len(where) and int(where[-1] - where[0]) + 1 > len(where)
        start = int(where[0]) if len(where) else 0
        self._rows: slice | torch.Tensor = where.to(self._device) if gap else slice(start, start + len(where))

    def now(self, site: Site, sae: Any, x: torch.Tensor) -> SparseActs:
        """As `add`, for who needs the activations at once: [rows of `x`, feature]."""
        acts = encode(sae, x, self._here, site, first=self._first)
        self._done.setdefault(site, []).append(acts)
        return acts

    def add(self, site: Site, sae: Any, x: torch.Tensor) -> None:
        """Encode `x` [token, d_in], the rows at `site` since `begin`."""
        if not self._together:
            self.now(site, sae, x)
            return
        width = sae.encoder.shape[0]
        self._widths[site] = width
        rows, tokens = x[self._rows].to(torch.float32), self._where + self._first
        self._make_room(width)
        step = self._room // width
        for start in range(0, len(tokens), step):
            self._queue(site, sae, rows[start : start + step], tokens[start : start + step])

    def _make_room(self, width: int) -> None:
        """Memory in which rows of `width` features can wait: for all sites, if there is that much."""
        wanted = max(width, min(ENTRIES, self._sites * self._tokens * width))
        if wanted <= self._wanted:
            return
        self._flush()
        self._wanted = self._room = wanted
        if self._device.type == "cuda":  # what is free is also for the rest of the pass
            self._room = max(width, min(wanted, free_bytes(self._device) // (4 * _BYTES)))
        self._pre = torch.empty(self._room, dtype=torch.float32, device=self._device)
        self._on = torch.empty(self._room, dtype=torch.bool, device=self._device)

    def _queue(self, site: Site, sae: Any, rows: torch.Tensor, tokens: np.ndarray) -> None:
        shape = len(tokens), self._widths[site]
        size = shape[0] * shape[1]
        if self._used + size > self._room:
            self._flush()
        block = slice(self._used, self._used + size)
        pre = self._pre[block].view(shape)
        with exactly():
            torch.addmm(sae.b_enc, rows, sae.encoder.T, out=pre)
        torch.gt(pre, floor(sae), out=self._on[block].view(shape))
        low, high = torch.aminmax(rows, dim=1)  # a NaN comes out of both
        self._waiting.append(_Piece(site, shape[1], tokens, (low, high)))
        self._used += size

    def _flush(self) -> None:
        """List what waits; this is where the host waits for the device."""
        if not self._waiting:
            return
        waiting, self._waiting, self._used = self._waiting, [], 0
        low, high = (torch.cat(ends) for ends in zip(*(piece.bounds for piece in waiting), strict=True))
        finite = torch.isfinite(low) & torch.isfinite(high)
        arriving, at = [], 0
        for width, group in groupby(waiting, key=lambda piece: piece.width):
            pieces = list(group)
            rows = sum(len(piece.tokens) for piece in pieces)
            block = slice(at, at + rows * width)
            at = block.stop
            on = self._on[block]
            found = on.nonzero()[:, 0]
            columns = (found % width).to(torch.int32)
            lengths, values = on.view(rows, width).sum(1), self._pre[block][found]
            arriving.append((pieces, [_coming(one) for one in (lengths, columns, values)]))
        good = _coming(finite)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._check(waiting, good.numpy())
        for pieces, lists in arriving:
            self._share(pieces, *(one.numpy() for one in lists))

    @staticmethod
    def _check(waiting: list[_Piece], finite: np.ndarray) -> None:
        at = 0
        for piece in waiting:
            bad = np.flatnonzero(~finite[at : at + len(piece.tokens)])
            if len(bad):
                raise refuse("not-finite", site=piece.site, position=int(piece.tokens[bad[0]]))
            at += len(piece.tokens)

    def _share(self, pieces: list[_Piece], lengths: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """To each piece its rows of what was listed for several."""
        ends = np.concatenate([[0], np.cumsum(lengths)])
        at = 0
        for piece in pieces:
            rows = slice(at, at + len(piece.tokens))
            at = rows.stop
            own = slice(ends[rows.start], ends[rows.stop])
            part = _Listed(piece.tokens, lengths[rows], columns[own], values[own])
            self._listed.setdefault(piece.site, []).append(part)

    def finish(self) -> dict[Site, SparseActs]:
        """Activations [token, feature] by site, in the order of the forward pass."""
        self._flush()
        self._pre = self._on = torch.empty(0)
        found = {site: parts[0] if len(parts) == 1 else SparseActs.stack(parts) for site, parts in self._done.items()}
        for site, width in self._widths.items():
            listed = self._listed.get(site, [])
            lengths = np.zeros(self._tokens + 1, np.int64)
            for part in listed:
                lengths[part.tokens + 1] = part.lengths
            columns = [part.columns for part in listed] or [np.zeros(0, np.int32)]
            values = [part.values for part in listed] or [np.zeros(0, np.float32)]
            found[site] = SparseActs(
                (self._tokens, width),
                np.cumsum(lengths),
                columns[0] if len(columns) == 1 else np.concatenate(columns),
                values[0] if len(values) == 1 else np.concatenate(values),
            )
        return {site: found[site] for site in sorted(found)}


def _coming(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the host, once the stream has got there: from a GPU it goes to pinned memory."""
    return tensor.to("cpu", non_blocking=tensor.is_cuda)
