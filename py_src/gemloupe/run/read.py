"""One pass over a text: the features at every open site, and the model's next-token guesses where asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..load.sae import Transcoder
from ..site import Site
from ..sparse import SparseActs
from .capture import Enough, body, reading
from .encodings import Encodings
from .fidelity import AskedOnce, Measured, Tally, target_of

# Tokens that go through the model together. Attention keeps heads x chunk x length scores at a time, so this bounds
# memory for long texts; at 512 the matrix products are already as fast per token as they get.
CHUNK = 512
# Positions whose logits exist at the same time: 128 x 262,144 float32 is 134 MB. Fewer are slower, since
# each batch reads the whole unembedding from memory.
_LOGIT_ROWS = 128


@dataclass(frozen=True)
class Reading:
    """`acts` per site, per asked position the ids and probabilities of the likeliest next tokens, and how well the
    SAEs of the sites that were to be measured fit."""

    acts: dict[Site, SparseActs]
    guesses: dict[int, list[tuple[int, float]]]
    measured: dict[Site, Measured] = field(default_factory=dict)


@torch.inference_mode()
def read(
    model: Any,
    ids: Sequence[int],
    sites: Iterable[Site],
    sae: Callable[[Site], Any],
    *,
    special: Collection[int],
    guesses: int = 0,
    positions: Sequence[int] | None = None,
    measure: Collection[Site] = (),
    chunk: int = CHUNK,
    checkpoint: Callable[[float], None] = lambda share: None,
) -> Reading:
    """Activations of `sae(site)` at `sites` on token `ids`, encoded inside the hooks: nothing dense is kept.

    Tokens whose id is in `special` are masked. With `guesses`, the k likeliest next tokens after each of
    `positions` (default: all). At the sites in `measure`, which must be among `sites`, reconstructions are compared
    with what they reconstruct: one sparse product more for each. `checkpoint(share done)` is called between sites and
    chunks; it may raise to stop.
    """
    sites = sorted(set(sites))
    opened = frozenset(sites)
    wanted = set(range(len(ids)) if positions is None else positions) if guesses else set()
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    ordinary = torch.tensor([ident not in special for ident in ids])
    found = Encodings(len(ids), len(sites), device)
    tallies = {site: Tally() for site in sites if site in measure}
    # What a transcoder is compared with passes later, at a site that may or may not be read itself.
    judged_at = {target_of(site): site for site in tallies if target_of(site) != site}
    asked = AskedOnce(sae)
    guessed: dict[int, list[tuple[int, float]]] = {}
    cache = _cache(model) if len(ids) > chunk else None
    for start in range(0, len(ids), chunk):
        end = min(start + chunk, len(ids))
        kept = ordinary[start:end]
        found.begin(kept, start)

        def take(site: Site, x: torch.Tensor, start: int = start, kept: torch.Tensor = kept) -> None:
            checkpoint(start / len(ids))
            if (judged := judged_at.get(site)) is not None and tallies[judged].waits:
                tallies[judged].compare(x[0], kept)
            if site not in opened:
                return
            page = asked.take(site)
            if site not in tallies:
                found.add(site, page, x[0])
            else:
                tallies[site].expect(page, x[0], found.now(site, page, x[0]))
                if site not in judged_at.values() or not isinstance(page, Transcoder):
                    tallies[site].compare(x[0], kept)

        here = [position for position in range(start, end) if position in wanted]
        # Without logits or later chunks to serve, layers above the last site need not run.
        stop = not here and end == len(ids)
        with reading(
            model,
            [*sites, *judged_at],
            take,
            stop=stop and bool(sites),
            without_gain=asked.without_gain,
        ):
            checkpoint(start / len(ids))
            try:
                if sites or here or end < len(ids):
                    out = body(model)(
                        tokens[:, start:end],
                        past_key_values=cache,
                        use_cache=cache is not None,
                        **_placed(start, end, cache, device),
                    )
            except Enough:
                pass
        for first in range(0, len(here), _LOGIT_ROWS):
            checkpoint(start / len(ids))
            some = here[first : first + _LOGIT_ROWS]
            hidden = out.last_hidden_state[0, [position - start for position in some]]
            shares = logits(model, hidden)
            best = torch.softmax(shares, -1, out=shares).topk(guesses)  # in place: fresh memory costs more than exp
            for position, names, chances in zip(some, best.indices.tolist(), best.values.tolist(), strict=True):
                guessed[position] = list(zip(names, chances, strict=True))
    checkpoint(1.0)
    return Reading(found.finish(), guessed, {site: tally.measured() for site, tally in tallies.items()})


def logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits float32 [row, vocabulary] from final, normed hidden states [row, d_model]; soft-capped where Gemma is.

    The product is two-dimensional on purpose: in bfloat16 on a CPU a three-dimensional one is 45 times slower.
    """
    raw = model.lm_head(hidden).to(torch.float32)
    cap = getattr(body(model).config, "final_logit_softcapping", None)
    return raw if cap is None else torch.tanh(raw / cap) * cap


def _cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=body(model).config)


def _placed(start: int, end: int, cache: Any, device: torch.device) -> dict[str, Any]:
    return {} if cache is None else {"position_ids": torch.arange(start, end, device=device)[None]}
