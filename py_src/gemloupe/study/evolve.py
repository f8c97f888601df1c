"""One text from layer to layer, with what is known of many texts: which of the features shown are the same thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.protocol import EvolveRequest
from ..errors import Refusal
from ..evolution import Columns, Evolution, Ribbon, alike
from ..feature import FeatureId
from ..words import say
from .matches import joined, neighbours_of

if TYPE_CHECKING:
    from ..engine.protocol import Engine
    from .matches import MatchFile


def evolve(engine: Engine, request: EvolveRequest, file: MatchFile | None) -> Evolution:
    """The reading, and its ribbons: from the file of matches where there is one, else from the decoders of an engine
    in this kernel; from neither, none, and a note says so."""
    found = engine.evolve(request).result()
    local = hasattr(engine, "loaded")
    if file is None and not local:
        note = say("Features are not joined from layer to layer: there is no file of matches (loupe.write_matches).")
        return replace(found, notes=(*found.notes, note))
    return replace(found, ribbons=ribbons(found, engine, file))


def guessed(engine: Engine, found: Evolution, guesses: int, started: Callable[[Any], Any]) -> Evolution:
    """`found` with the model's guesses at all positions that have them by default: another pass, without SAEs.

    `started` gets each job, to cancel it: a job gives way to others, and is begun again.
    """
    ids = tuple(token.id for token in found.trace.tokens)
    more = None
    for last in (False, False, True):
        # What someone waits for comes first; but not for ever.
        job = engine.evolve(EvolveRequest(ids, guesses=guesses, sites=(), gives_way=not last))
        started(job)
        try:
            more = job.result()
            break
        except Refusal as refusal:
            if last or refusal.code != "cancelled":
                raise
    assert more is not None
    columns = found.columns
    assert isinstance(columns, Columns) and isinstance(more.columns, Columns)
    return replace(found, columns=columns.guessing(more.columns.guesses), notes=(*found.notes, *more.notes))


def ribbons(found: Evolution, engine: Any, file: MatchFile | None) -> tuple[Ribbon, ...]:
    """All that join two blocks shown at one token, by layer."""
    columns = found.columns
    assert isinstance(columns, Columns)
    made: list[Ribbon] = []
    sites = found.trace.sites
    for one in sites:
        _, two = neighbours_of(one, sites)
        if two is None:
            continue
        left, right = (np.unique(columns.blocks(site)[1]) for site in (one, two))
        if file is not None and file.holds(one, two):
            partner, cosine, share = file.joined(one, two, left, right)
        elif hasattr(engine, "loaded"):
            partner, cosine = joined(engine, one, two, left, right)
            share = np.full(len(left), np.nan)
        else:
            continue
        known = np.flatnonzero((partner >= 0) & alike(cosine, share))
        together = known[_at_one_token(columns, one, two, left[known], partner[known])] if len(known) else known
        for i in together.tolist():
            seen = None if np.isnan(share[i]) else float(share[i])
            ends = FeatureId(one, int(left[i])), FeatureId(two, int(partner[i]))
            made.append(Ribbon(*ends, float(cosine[i]), seen))
    return tuple(made)


def _at_one_token(columns: Columns, one: Any, two: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether left[i] and right[i] are ever shown at the same token, bool [i]."""

    def places(site: Any, features: np.ndarray) -> np.ndarray:
        starts, shown, _, _ = columns.blocks(site)
        order = np.argsort(features)
        at = np.searchsorted(features[order], shown)
        inside = at < len(features)
        inside[inside] = features[order][at[inside]] == shown[inside]
        tokens = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return tokens[inside] * len(features) + order[at[inside]]

    both = np.intersect1d(places(one, left), places(two, right))
    there = np.zeros(len(left), bool)
    there[np.unique(both % len(left))] = True
    return there
