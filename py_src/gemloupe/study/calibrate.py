"""Maxima of features for SAEs that come without: measured on text that the model writes itself.

Steering is said in units of a feature's own maximum, and Gemma Scope ships none. Text of the model's own needs no
download, and is what it will be steered on. It is little, so a rare feature may stay unknown, and a maximum may be low.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.protocol import GenerateRequest, TogetherRequest
from ..errors import refuse
from ..feature import whole
from ..site import Site

if TYPE_CHECKING:
    from ..engine.local import LocalEngine

# How the texts begin: a model with nothing but BOS before it writes the same kinds of page again and again.
_OPENINGS = (
    "The",
    "I",
    "In",
    "How to",
    "When",
    "def",
    "Dear",
    "Once",
    "My",
    "According to",
    "La",
    '"',
    "1.",
    "What",
    "News:",
    "We",
)
_LENGTH = 128
# Passages read in one pass.
_TOGETHER = 8


def calibrate(
    engine: LocalEngine,
    sites: Iterable[Site] | None,
    tokens: int,
    *,
    seed: int,
    progress: Callable[[str, float], Any] | None = None,
) -> tuple[Site, ...]:
    """Measures maximum, density and mean activation of every feature at `sites` over `tokens` tokens, and returns them.

    `sites` None: those without maxima of their own; one with them is refused ('calibrate-known').
    """
    count = whole(tokens)
    if count is None or count < 1:
        raise refuse("count-unreadable", name="tokens", given=tokens, least=1)
    if sites is None:
        chosen = tuple(site for site in engine.sites if not engine.has_own_maxima(site))
    else:
        chosen = tuple(dict.fromkeys(sites))
        for site in chosen:
            if engine.has_own_maxima(site):
                raise refuse("calibrate-known", site=site)
    if not chosen:
        return ()
    passages = _written(engine, count, seed, progress)
    tallies: dict[Site, _Tally] = {}
    for start in range(0, len(passages), _TOGETHER):
        if progress is not None:
            progress("reading what the model wrote", start / len(passages))
        some = tuple(passages[start : start + _TOGETHER])
        ordinary = sum(not token.special for ids in some for token in engine.tokenize(ids))
        for site, acts in engine.together(TogetherRequest(some, chosen)).result().items():
            tallies.setdefault(site, _Tally(acts.shape[1])).add(acts, ordinary)
    read = next(iter(tallies.values())).tokens
    origin = f"calibrated on {read:,} tokens that the model wrote itself (seed {seed})"
    for site in chosen:
        engine.learn(site, tallies[site].stats(), origin)
    return chosen


def _written(
    engine: LocalEngine, count: int, seed: int, progress: Callable[[str, float], Any] | None
) -> list[np.ndarray]:
    """Passages of ids, sampled from the model until `count` tokens were written. The same seed gives the same."""
    passages: list[np.ndarray] = []
    written = 0
    length = min(_LENGTH, engine.loaded.context - 8)
    while written < count:
        if progress is not None:
            progress("writing text to calibrate on", written / count)
        number = len(passages)
        request = GenerateRequest(_OPENINGS[number % len(_OPENINGS)], min(length, count - written), 1.0, seed + number)
        made = engine.generate(request).result()[0]
        passages.append(np.array([token.id for token in (*made.prompt, *made.tokens)], np.int64))
        written += max(1, len(made.tokens))
    return passages


class _Tally:
    """What the features of one SAE did so far."""

    def __init__(self, width: int) -> None:
        self.tokens = 0
        self._most, self._sum = np.zeros(width, np.float32), np.zeros(width)
        self._fired = np.zeros(width, np.int64)

    def add(self, acts: Any, tokens: int) -> None:
        self.tokens += tokens
        np.maximum.at(self._most, acts.indices, acts.values)
        width = len(self._most)
        self._sum += np.bincount(acts.indices, weights=acts.values, minlength=width)
        self._fired += np.bincount(acts.indices, minlength=width)

    def stats(self) -> Any:
        from ..load.sae import FeatureStats

        on = self._fired > 0
        mean = np.divide(self._sum, self._fired, out=np.full(len(on), np.nan), where=on)
        return FeatureStats(
            maximum=np.where(on, self._most, np.nan).astype(np.float32),
            density=(self._fired / max(1, self.tokens)).astype(np.float32),
            mean_active=mean.astype(np.float32),
        )
