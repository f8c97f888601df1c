"""Text, one token at a time, with a key-value cache and a seed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from .capture import body
from .read import CHUNK, _cache, logits


def generate(
    model: Any,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stop: Collection[int],
    checkpoint: Callable[[float], None] = lambda share: None,
) -> Iterator[tuple[int, float]]:
    """Yields (token id, its log-probability under the model) until a `stop` id or `max_new_tokens`.

    Temperature 0 takes the likeliest token. The same seed gives the same text on the same device and dtype.
    """
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    cache, fresh, at = _cache(model), list(ids), 0
    for step in range(max_new_tokens):
        # Grad mode is per thread and a generator may be resumed on another one, so it is entered around each step.
        with torch.inference_mode():
            while fresh:
                checkpoint(step / max_new_tokens)
                part, fresh = fresh[:CHUNK], fresh[CHUNK:]
                out = body(model)(
                    torch.tensor([part], device=device),
                    past_key_values=cache,
                    use_cache=True,
                    position_ids=torch.arange(at, at + len(part), device=device)[None],
                )
                at += len(part)
            row = logits(model, out.last_hidden_state[:, -1])[0].cpu()
            if temperature > 0:
                chosen = int(torch.multinomial((row / temperature).softmax(-1), 1, generator=random))
            else:
                chosen = int(row.argmax())
            share = float(row.log_softmax(-1)[chosen])
        yield chosen, share
        if chosen in stop:
            return
        fresh = [chosen]
