"""Several passages in one pass: what makes reading a corpus fast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch

from ..site import Site
from ..sparse import SparseActs
from .capture import Enough, body, reading
from .encodings import Encodings
from .fidelity import AskedOnce


@torch.inference_mode()
def read_together(
    model: Any,
    rows: Sequence[Any],
    sites: Iterable[Site],
    sae: Callable[[Site], Any],
    *,
    special: Collection[int],
    checkpoint: Callable[[float], None] = lambda share: None,
) -> dict[Site, SparseActs]:
    """Activations of `sae(site)` at `sites` on passages of token ids, [token, feature] over all their tokens in order.

    A row is a list or an array of ids. Tokens whose id is in `special` are masked, wherever they stand.

    Passages of about the same length waste least. `checkpoint(share done)` is called between sites; it may raise.
    """
    sites = sorted(set(sites))
    device = next(model.parameters()).device
    longest = max(map(len, rows))
    # Shorter passages are filled up on the right: attention looks back, so no token sees what fills the rows.
    tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
    real = torch.zeros((len(rows), longest), dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        real[number, : len(row)] = True
    ordinary = ~torch.isin(tokens[real], torch.tensor(sorted(special), dtype=torch.int64))
    where = real.flatten().nonzero()[:, 0].to(device)
    found = Encodings(len(ordinary), len(sites), device)
    found.begin(ordinary)
    asked, done = AskedOnce(sae), 0

    def take(site: Site, x: torch.Tensor) -> None:
        nonlocal done
        checkpoint(done / len(sites))
        found.add(site, asked.take(site), x.flatten(0, 1)[where])
        done += 1

    with reading(model, sites, take, stop=True, without_gain=asked.without_gain):
        checkpoint(0.0)
        with suppress(Enough):
            body(model)(tokens.to(device), use_cache=False)
    return found.finish()
