"""Two texts, or two sets of texts: which features fire only in one, only in the other, or in both but differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import refuse
from ..feature import FeatureId
from ..trace import Trace
from .search import FactsOf, Hit, Hits, LabelOf, count, peaks, sparse

GROUPS = ("only a", "only b", "changed")


def texts_of(given: Any) -> tuple[Any, ...]:
    """The texts of one side: a list or tuple of texts or traces is several, anything else is one."""
    if isinstance(given, (list, tuple, set, frozenset)) and all(isinstance(one, (str, Trace)) for one in given):
        several = tuple(sorted(given)) if isinstance(given, (set, frozenset)) else tuple(given)
        if not several:
            raise refuse("text-empty")
        return several
    return (given,)


def contrast(
    a: Any,
    b: Any,
    read: Callable[[Any], Trace],
    facts: FactsOf,
    label: LabelOf,
    *,
    relative: bool = True,
    dense: bool | float = False,
    k: int = 20,
) -> Hits:
    """Up to k features each that fire only in `a`, only in `b`, and in both but not alike, the largest change first.

    Each side is a text or several; a feature's value on a side is the mean over its texts of its largest activation
    there. `relative` ranks by the difference in units of the feature's own maximum. `dense` as in a search by text.
    Refuses 'contrast-equal' where both sides are the same tokens.
    """
    sides = [tuple(one if isinstance(one, Trace) else read(one) for one in texts_of(given)) for given in (a, b)]
    if _ids(sides[0]) == _ids(sides[1]):
        raise refuse("contrast-equal", text=sides[0][0].text[:60])
    return _compared(sides, facts, label, relative, dense, count(k))


def _compared(sides: list[Any], facts: FactsOf, label: LabelOf, relative: bool, dense: bool | float, k: int) -> Hits:
    hits: list[Hit] = []
    hidden = 0
    for group in GROUPS:
        kept, more = sparse(_of_group(sides, group, relative), facts, dense, k)
        hits += [replace(hit, label=label(hit.feature)) for hit in kept]
        hidden += more
    names = [traces[0].text if len(traces) == 1 else f"{len(traces)} texts" for traces in sides]

    def again(relative: bool, shown: bool) -> Hits:
        limit = True if shown else dense if not isinstance(dense, bool) else False
        return _compared(sides, facts, label, relative, limit, k)

    return Hits(
        "contrast",
        f"a: {names[0]}\nb: {names[1]}",
        tuple(hits),
        relative,
        dense is True,
        hidden,
        prompts=(sides[0][0].text, sides[1][0].text),
        again=again,
    )


def _ids(traces: tuple[Trace, ...]) -> list[tuple[int, ...]]:
    return sorted(tuple(token.id for token in trace.tokens) for trace in traces)


def _of_group(sides: list[tuple[Trace, ...]], group: str, relative: bool) -> Iterator[Hit]:
    """Features of one group, the largest change first; those without a known maximum after, by raw change."""
    found: list[tuple[float, float, Hit]] = []
    every = [trace for traces in sides for trace in traces]
    for site in every[0].sites:
        if not all(site in trace.acts for trace in every):
            continue
        (one, best_one), (two, best_two) = (peaks(traces, site) for traces in sides)
        chosen = {
            "only a": (one > 0) & (two == 0),
            "only b": (two > 0) & (one == 0),
            "changed": (one > 0) & (two > 0) & (one != two),
        }[group]
        maxima = every[0].maxima[site]
        for index in np.flatnonzero(chosen).tolist():
            maximum, raw = float(maxima[index]), float(two[index] - one[index])
            where = best_two if raw > 0 else best_one
            _, token, position = where[index]
            strength = raw / maximum
            size = abs(strength) if relative and strength == strength else -1.0 if relative else abs(raw)
            hit = Hit(
                FeatureId(site, index),
                strength=strength,
                raw=raw,
                maximum=maximum,
                token=token,
                position=position,
                group=group,
                a=(float(one[index]) / maximum, float(one[index])),
                b=(float(two[index]) / maximum, float(two[index])),
            )
            found.append((size, abs(raw), hit))
    found.sort(key=lambda one: (-one[0], -one[1], one[2].feature))
    return iter([hit for _, _, hit in found])
