"""One pass that follows a text from layer to layer: features, lengths, what SAEs miss, what the model would say.

What a layer would say is the logit lens: the final norm, the unembedding and the soft-cap on the residual stream after
that layer, as if no other came.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..load.sae import Transcoder
from ..site import Site
from ..sparse import SparseActs
from .capture import Enough, body, reading
from .encode import encode
from .fidelity import OUTLIER, AskedOnce, reconstruct, target_of
from .lens import Lens, Said
from .read import CHUNK, _cache, _placed


@dataclass(frozen=True, eq=False)
class Layers:
    """What `evolve` found: per site the activations, `norms` float32 [token] and `fvus` float32 [token] (nan where not
    known), and per (layer, position) what the model would say there."""

    acts: dict[Site, SparseActs]
    norms: dict[Site, np.ndarray]
    fvus: dict[Site, np.ndarray]
    said: dict[tuple[int, int], Said]


class _Misses:
    """Squared lengths of what one SAE misses, token by token, and the variance they are measured in."""

    def __init__(self) -> None:
        self.expected: torch.Tensor | None = None
        self._errors: list[np.ndarray] = []
        self._sum: torch.Tensor | float = 0.0
        self._square = 0.0
        self._tokens = 0

    def compare(self, y: torch.Tensor, kept: torch.Tensor) -> None:
        """`y` [token, width], that `expected` stands for; special tokens and sinks do not enter the variance."""
        assert self.expected is not None
        rows = y.to(torch.float32)
        error = (rows - self.expected).pow(2).sum(1)
        self.expected = None
        self._errors.append(torch.where(kept, error, torch.nan).cpu().numpy())
        norms = rows.norm(dim=1)
        inside = kept & (norms <= OUTLIER * norms[kept].median()) if bool(kept.any()) else kept
        rows = rows[inside]
        self._tokens += len(rows)
        self._square += float(rows.pow(2).sum(dtype=torch.float64))
        self._sum = self._sum + rows.sum(0, dtype=torch.float64)

    def fvus(self) -> np.ndarray:
        errors = np.concatenate(self._errors)
        n = self._tokens
        if n < 2:
            return np.full(len(errors), np.nan, np.float32)
        assert isinstance(self._sum, torch.Tensor)
        variance = self._square - float(self._sum.pow(2).sum()) / n
        if variance <= 1e-9 * self._square:
            return np.full(len(errors), np.nan, np.float32)
        return (errors / (variance / (n - 1))).astype(np.float32)


@torch.inference_mode()
def evolve(
    model: Any,
    ids: Sequence[int],
    sites: Iterable[Site],
    sae: Callable[[Site], Any],
    *,
    special: Collection[int],
    guesses: int = 5,
    positions: Collection[int] = (),
    chunk: int = CHUNK,
    checkpoint: Callable[[float], None] = lambda share: None,
) -> Layers:
    """Activations of `sae(site)` at `sites` on token `ids`, with how long each tensor is and how much of it is missed.

    With `guesses`, also the k likeliest next tokens after every layer at `positions`. Tokens whose id is in `special`
    are not encoded. `checkpoint(share done)` is called between sites; it may raise to stop.
    """
    sites = sorted(set(sites))
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    ordinary = torch.tensor([ident not in special for ident in ids], device=device)
    wanted = sorted(set(positions)) if guesses else []
    layers = range(len(body(model).layers)) if wanted else range(0)
    parts: dict[Site, list[SparseActs]] = {site: [] for site in sites}
    norms: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    misses = {site: _Misses() for site in sites}
    judged_at = {target_of(site): site for site in sites if target_of(site) != site}
    asked, lens = AskedOnce(sae), Lens(model, guesses, checkpoint)
    steps = max(1, len(set(sites) | {Site("res", layer) for layer in layers}))
    chunks = -(-len(ids) // chunk)
    cache = _cache(model) if chunks > 1 else None
    for number, start in enumerate(range(0, len(ids), chunk)):
        end = min(start + chunk, len(ids))
        kept = ordinary[start:end]
        here = [position for position in wanted if start <= position < end]
        done = 0

        def take(site: Site, x: torch.Tensor, start: int = start, kept: torch.Tensor = kept, here=here, n=number):
            nonlocal done
            done += 1
            checkpoint(0.8 * min(1.0, (n + done / steps) / chunks))
            rows = x[0]
            if (judged := judged_at.get(site)) is not None and misses[judged].expected is not None:
                misses[judged].compare(rows, kept)
            if site in parts:
                page = asked.take(site)
                acts = encode(page, rows, kept, site)
                parts[site].append(acts)
                norms[site].append(rows.to(torch.float32).norm(dim=1).cpu().numpy())
                misses[site].expected = reconstruct(page, rows, acts)
                if not isinstance(page, Transcoder):
                    misses[site].compare(rows, kept)
            if site.kind == "res" and here:
                lens.add(rows[[position - start for position in here]], [(site.layer, at) for at in here])

        read = {*sites, *judged_at, *(Site("res", layer) for layer in layers if here)}
        with reading(model, read, take, stop=end == len(ids) and bool(read), without_gain=asked.without_gain):
            checkpoint(0.8 * number / chunks)
            try:
                if read or end < len(ids):
                    body(model)(
                        tokens[:, start:end],
                        past_key_values=cache,
                        use_cache=cache is not None,
                        **_placed(start, end, cache, device),
                    )
            except Enough:
                pass
    said = lens.finish()
    checkpoint(1.0)
    return Layers(
        {site: SparseActs.stack(part) for site, part in parts.items()},
        {site: np.concatenate(part) for site, part in norms.items()},
        {site: miss.fvus() for site, miss in misses.items()},
        said,
    )
