"""How well an SAE fits the tensor it reads, on the text at hand: one that reads the wrong tensor shows here.

L0, the share of the variance its reconstruction misses, and, where asked for, what putting the reconstruction in the
tensor's place costs the model. Special tokens are left out, since SAEs are not trained on them, and so are tokens far
longer than the others ("sinks"), whose activations say little about the text and would outweigh all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, embedding_bag, linear

from ..load.sae import Sae, Transcoder
from ..site import Site
from ..sparse import SparseActs
from .capture import body, reading, replacing

# Tokens whose norm is above so many medians are sinks.
OUTLIER = 3.0
# Positions whose logits exist at the same time.
_LOGIT_ROWS = 128


@dataclass(frozen=True)
class Measured:
    """What was measured at one site. `fvu` is None where fewer than two tokens, or no variance, are left."""

    tokens: int
    outliers: int
    l0: float
    fvu: float | None
    norm_explained: float | None


def target_of(site: Site) -> Site:
    """The site whose tensor the SAE at `site` is to give back: its own, but for transcoders the MLP's output."""
    return Site("mlp", site.layer) if site.kind == "transcoder" else site


def without_gain(sae: Sae) -> bool:
    """Whether it reads the norm's output without the norm's gain, as Gemma Scope's transcoders do."""
    return isinstance(sae, Transcoder) and sae.before_gain


class AskedOnce:
    """SAEs for one pass, each asked for once: a transcoder before its tensor is made, and kept until it encodes.

    A pager that holds few would fetch it twice.
    """

    def __init__(self, sae: Callable[[Site], Sae]) -> None:
        self._sae = sae
        self._ready: dict[Site, Sae] = {}

    def without_gain(self, site: Site) -> bool:
        """For `reading`: which tensor the transcoder at `site` reads."""
        self._ready[site] = self._sae(site)
        return without_gain(self._ready[site])

    def take(self, site: Site) -> Sae:
        return self._ready.pop(site) if site in self._ready else self._sae(site)


def reconstruct(sae: Sae, x: torch.Tensor, acts: SparseActs) -> torch.Tensor:
    """What `sae` makes of its activations `acts` on `x` [token, d_in]: float32 [token, width of its target]."""
    device = sae.decoder.device
    columns = torch.from_numpy(acts.indices.astype(np.int64)).to(device)
    starts = torch.from_numpy(acts.indptr[:-1].astype(np.int64)).to(device)
    values = torch.from_numpy(np.array(acts.values)).to(device)
    if acts.nnz:
        out = embedding_bag(columns, sae.decoder, starts, mode="sum", per_sample_weights=values) + sae.b_dec
    else:
        out = sae.b_dec.repeat(acts.shape[0], 1)
    skip = sae.skip if isinstance(sae, Transcoder) else None
    return out if skip is None else out + linear(x.to(skip.dtype), skip)


class Tally:
    """Sums over the chunks of a text at one site."""

    def __init__(self) -> None:
        self._expected: torch.Tensor | None = None
        self._l0: np.ndarray = np.zeros(0, np.int64)
        self._tokens = self._outliers = self._active = 0
        self._error = self._square = 0.0
        self._sum: torch.Tensor | float = 0.0

    @property
    def waits(self) -> bool:
        """Whether a chunk was expected and not yet compared."""
        return self._expected is not None

    def expect(self, sae: Sae, x: torch.Tensor, acts: SparseActs) -> None:
        """A chunk's activations; `compare` must follow with the tensor they stand for."""
        self._expected, self._l0 = reconstruct(sae, x, acts), acts.l0

    def compare(self, y: torch.Tensor, kept: torch.Tensor) -> None:
        """The tensor `y` [token, width] that was to be given back; only rows `kept` [token] count."""
        assert self._expected is not None
        expected, self._expected = self._expected, None
        inside = kept.to(y.device)
        norms = y.to(torch.float32).norm(dim=1)
        if bool(inside.any()):
            inside = inside & (norms <= OUTLIER * norms[inside].median())
        self._outliers += int(kept.sum()) - int(inside.sum())
        rows = y[inside].to(torch.float32)
        self._tokens += len(rows)
        self._active += int(self._l0[inside.cpu().numpy()].sum())
        self._error += float((expected[inside] - rows).pow(2).sum(dtype=torch.float64))
        self._square += float(rows.pow(2).sum(dtype=torch.float64))
        self._sum = self._sum + rows.sum(0, dtype=torch.float64)

    def measured(self) -> Measured:
        n = self._tokens
        if not n:
            return Measured(0, self._outliers, 0.0, None, None)
        assert isinstance(self._sum, torch.Tensor)
        variance = self._square - float(self._sum.pow(2).sum()) / n
        # The mean comes from these few tokens too, which makes the variance look smaller than it is.
        fvu = self._error / n / (variance / (n - 1)) if n > 1 and variance > 1e-9 * self._square else None
        explained = 1 - self._error / self._square if self._square else None
        return Measured(n, self._outliers, self._active / n, fvu, explained)


# ---- the cost in loss


@dataclass(frozen=True)
class Cost:
    """Mean next-token loss (nats) of a text, as it is and with the reconstruction in place of the tensor."""

    loss: float
    spliced: float

    @property
    def delta(self) -> float:
        return self.spliced - self.loss


@torch.inference_mode()
def costs(
    model: Any,
    ids: Sequence[int],
    sites: Sequence[Site],
    sae: Callable[[Site], Sae],
    *,
    special: Any,
    checkpoint: Callable[[float], None] = lambda share: None,
) -> dict[Site, Cost]:
    """What each site's reconstruction costs on token `ids`: one pass, and one more per site.

    Special tokens and sinks keep their own activations. Predictions made from special tokens do not count. Empty if
    no prediction is left.
    """
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    kept = torch.tensor([ident not in special for ident in ids], device=device)
    if not bool(kept[:-1].any()):
        return {}
    base = _loss(model, tokens, kept)
    found = {}
    for number, site in enumerate(sites):
        checkpoint(number / len(sites))
        found[site] = Cost(base, _spliced(model, tokens, kept, site, sae(site)))
    return found


def _spliced(model: Any, tokens: torch.Tensor, kept: torch.Tensor, site: Site, sae: Sae) -> float:
    made: dict[str, torch.Tensor] = {}

    def stand_in(y: torch.Tensor) -> torch.Tensor:
        norms = y[0].to(torch.float32).norm(dim=1)
        inside = kept & (norms <= OUTLIER * norms[kept].median())
        x = made.pop("x")[0] if made else y[0]
        new = sae.predict(x[inside]) if isinstance(sae, Transcoder) else sae.decode(sae.encode_dense(x[inside]))
        out = y.clone()
        out[0, inside] = new.to(y.dtype)
        return out

    if not isinstance(sae, Transcoder):
        with replacing(model, site, stand_in):
            return _loss(model, tokens, kept)
    with (
        reading(model, [site], lambda _, x: made.update(x=x), without_gain=lambda _: sae.before_gain),
        replacing(model, target_of(site), stand_in),
    ):
        return _loss(model, tokens, kept)


def _loss(model: Any, tokens: torch.Tensor, kept: torch.Tensor) -> float:
    """Mean next-token loss over the predictions made from tokens that are `kept`."""
    from .read import logits

    hidden = body(model)(tokens, use_cache=False).last_hidden_state[0, :-1][kept[:-1]]
    following = tokens[0, 1:][kept[:-1]]
    total = 0.0
    for rows, ids in zip(hidden.split(_LOGIT_ROWS), following.split(_LOGIT_ROWS), strict=True):
        total += float(cross_entropy(logits(model, rows), ids, reduction="sum"))
    return total / len(following)
