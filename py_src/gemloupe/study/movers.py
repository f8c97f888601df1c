"""What steering did to the other features: whose mean activation moved most, site by site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import refuse
from ..feature import FeatureId, whole
from ..site import Site
from ..trace import Trace


@dataclass(frozen=True)
class Mover:
    """One feature's mean over the ordinary tokens of two texts: `before` and `after` as strengths (in units of the
    feature's own maximum, nan where that is not known), `raw` as activations (before, after)."""

    feature: FeatureId
    before: float
    after: float
    raw: tuple[float, float]


def movers(default: Trace, steered: Trace, k: int = 10, *, start: int = 0) -> dict[Site, tuple[Mover, ...]]:
    """Per site that both traces have, the k features whose mean activation changed most, the largest change first.

    Changes are ordered by strength; features without a known maximum come after, by raw change. Only tokens from
    position `start` on count (the length of the prompt, to look at what was generated only); the texts may differ in
    length.
    """
    count = whole(k)
    if count is None or count < 1:
        raise refuse("count-unreadable", name="k", given=k, least=1)
    found = {}
    for site in default.sites:
        if site not in steered.acts:
            continue
        before, after = (_mean(trace, site, start) for trace in (default, steered))
        maxima = default.maxima[site]
        moved = np.flatnonzero(before != after)
        change = np.abs(after - before)[moved]
        order = np.lexsort((-change, -np.nan_to_num(change / maxima[moved], nan=-1.0)))[:count]
        found[site] = tuple(
            Mover(
                FeatureId(site, int(i)),
                float(before[i] / maxima[i]),
                float(after[i] / maxima[i]),
                (float(before[i]), float(after[i])),
            )
            for i in moved[order]
        )
    return found


def _mean(trace: Trace, site: Site, start: int) -> np.ndarray:
    """Mean raw activation per feature [feature]."""
    acts = trace.acts[site]
    kept = np.array([not token.special for token in trace.tokens]) & (np.arange(len(trace)) >= start)
    # A generation's last token has no activations, since the model has not read it.
    if len(trace) and acts.l0[-1] == 0:
        kept[-1] = False
    picked = kept[acts.rows]
    total = np.bincount(acts.indices[picked], acts.values[picked], minlength=acts.shape[1])
    return total / max(int(kept.sum()), 1)
