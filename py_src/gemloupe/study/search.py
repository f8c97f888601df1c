"""Finding features: by words, or by a text in which they fire, over all layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.protocol import FeatureFacts
from ..errors import refuse
from ..feature import FeatureId, whole
from ..label import Label
from ..site import Site
from ..trace import Trace
from .find_labels import Found
from .neighbours import Neighbour

if TYPE_CHECKING:
    import pandas

DENSE = 0.1  # share of tokens above which a feature is hidden unless asked for
HOW = ("max", "sum")
_BATCH = 64  # features asked about at once

FactsOf = Callable[[tuple[FeatureId, ...]], tuple[FeatureFacts, ...]]
LabelOf = Callable[[FeatureId], Label | None]
nan = math.nan


@dataclass(frozen=True)
class Hit:
    """A feature that was found.

    `strength` is in units of its own maximum (nan where that is not known) and `raw` as the SAE gives it: by a text,
    the largest there or the sum; in a contrast, b less a. `token` at `position` is where it is strongest. `density` is
    the share of tokens it fires on, None if not known. `group` and `a`, `b` (strength, raw) belong to a contrast: each
    side's mean over its texts of the largest activation. `words` are those of a query that `label` has; `cosine`
    belongs to neighbours.
    """

    feature: FeatureId
    label: Label | None = None
    strength: float = nan
    raw: float = nan
    maximum: float = nan
    density: float | None = None
    token: str = ""
    position: int | None = None
    group: str = ""
    a: tuple[float, float] = (nan, nan)
    b: tuple[float, float] = (nan, nan)
    words: tuple[str, ...] = ()
    cosine: float = nan


@dataclass(frozen=True, eq=False)
class Hits:
    """What a search found, best first. `kind` is 'words', 'text', 'contrast' or 'neighbours'; `query` says of what.

    `hidden` dense features were left out that would have been among them; `complete` is False where a word was so
    common that a sample of its features was ranked. `prompts` are texts to steer: of a contrast, one for each side.
    `again(relative, dense)` is the same search ranked otherwise.
    """

    kind: str
    query: str
    hits: tuple[Hit, ...]
    relative: bool = True
    dense: bool = False
    hidden: int = 0
    complete: bool = True
    prompts: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    again: Callable[[bool, bool], Hits] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def to_dataframe(self) -> pandas.DataFrame:
        """A row per feature, in order; the columns are those that this kind of search has."""
        import pandas

        rows = []
        for hit in self.hits:
            label = hit.label
            row: dict[str, Any] = {
                "feature": str(hit.feature),
                "site": str(hit.feature.site),
                "index": hit.feature.index,
                "label": None if label is None else label.text,
                "source": None if label is None else label.source,
                "score": None if label is None else label.score,
            }
            if self.kind == "contrast":
                row |= {"group": hit.group, "a": hit.a[0], "b": hit.b[0], "raw_a": hit.a[1], "raw_b": hit.b[1]}
            if self.kind in ("text", "contrast"):
                row |= {"strength": hit.strength, "raw": hit.raw, "density": hit.density}
                row |= {"token": hit.token, "position": hit.position}
            if self.kind == "words":
                row |= {"words": " ".join(hit.words)}
            if self.kind == "neighbours":
                row |= {"cosine": hit.cosine}
            rows.append(row)
        columns = ["feature", "site", "index", "label", "source", "score"]
        return pandas.DataFrame(rows, columns=None if rows else columns)


def by_words(query: str, found: Iterable[Found]) -> Hits:
    """What `Labels.search` found, as hits."""
    every = tuple(found)
    hits = tuple(Hit(one.feature, one.label, words=one.words) for one in every)
    return Hits("words", query, hits, complete=all(one.complete for one in every))


def by_neighbours(feature: FeatureId, found: Iterable[Neighbour], label: LabelOf) -> Hits:
    """The neighbours of a feature, as hits."""
    hits = tuple(Hit(one.feature, label(one.feature), cosine=one.cosine) for one in found)
    return Hits("neighbours", str(feature), hits)


def by_text(
    trace: Trace,
    facts: FactsOf,
    label: LabelOf,
    *,
    by: str = "max",
    tokens: Any = None,
    relative: bool = True,
    dense: bool | float = False,
    k: int = 50,
) -> Hits:
    """The k features that fire most strongly on a text that was read, over all its sites.

    `by` 'max' takes a feature's largest activation, 'sum' adds them up; `tokens` (positions or texts) are those looked
    at, all by default. `relative` ranks by strength in units of the feature's own maximum, where raw activations let
    late layers win. Features that fire on more than a tenth of all tokens are hidden, or on more than the share
    `dense`; True shows all.
    """
    check(by, dense, k)
    where = _positions(trace, tokens)
    found = ranked([_summed(trace, site, where, by) for site in trace.sites], relative)
    kept, hidden = sparse(found, facts, dense, count(k))
    hits = tuple(replace(hit, label=label(hit.feature), token=_token(trace, hit.position)) for hit in kept)

    def again(relative: bool, shown: bool) -> Hits:
        limit = True if shown else dense if not isinstance(dense, bool) else False
        return by_text(trace, facts, label, by=by, tokens=tokens, relative=relative, dense=limit, k=k)

    return Hits("text", trace.text, hits, relative, dense is True, hidden, prompts=(trace.text,), again=again)


def check(by: Any, dense: Any, k: Any) -> None:
    """Refuses what a search by a text cannot use, before anything is read."""
    if by not in HOW:
        raise refuse("search-by-unknown", given=by, known=", ".join(map(repr, HOW)))
    _limit(dense)
    count(k)


@dataclass(frozen=True, eq=False)
class Fired:
    """Features of a site that fire: `indices`, `raw` and `strength` float [feature], `position` of the largest."""

    site: Site
    indices: np.ndarray
    raw: np.ndarray
    strength: np.ndarray
    maximum: np.ndarray
    position: np.ndarray


def _summed(trace: Trace, site: Site, where: np.ndarray | None, by: str) -> Fired:
    acts = trace.acts[site]
    rows, columns, values = acts.rows, acts.indices.astype(np.int64), acts.values.astype(np.float64)
    if where is not None:
        kept = np.isin(rows, where)
        rows, columns, values = rows[kept], columns[kept], values[kept]
    order = np.lexsort((rows, -values, columns))  # of each feature its largest first, and of equals the earliest
    rows, columns, values = rows[order], columns[order], values[order]
    indices, first = np.unique(columns, return_index=True)
    raw = values[first] if by == "max" else np.add.reduceat(values, first) if len(first) else values
    maximum = trace.maxima[site][indices].astype(np.float64)
    return Fired(site, indices, raw, raw / maximum, maximum, rows[first])


def ranked(sites: Iterable[Fired], relative: bool) -> Iterator[Hit]:
    """Hits of all sites, strongest first; those without a known maximum come after, by raw activation."""
    every = [one for one in sites if len(one.indices)]
    if not every:
        return
    strength, raw = (np.concatenate([getattr(one, name) for one in every]) for name in ("strength", "raw"))
    ends = np.cumsum([len(one.indices) for one in every])
    order = np.lexsort((-raw, -np.nan_to_num(strength, nan=-np.inf))) if relative else np.argsort(-raw, kind="stable")
    for place in order.tolist():
        which = int(np.searchsorted(ends, place, side="right"))
        one = every[which]
        i = place - (int(ends[which]) - len(one.indices))
        yield Hit(
            FeatureId(one.site, int(one.indices[i])),
            strength=float(one.strength[i]),
            raw=float(one.raw[i]),
            maximum=float(one.maximum[i]),
            position=int(one.position[i]),
        )


def sparse(found: Iterator[Hit], facts: FactsOf, dense: bool | float, k: int) -> tuple[list[Hit], int]:
    """(the first k hits that are not dense, how many dense ones came before the last of them)."""
    limit = _limit(dense)
    kept: list[Hit] = []
    hidden = 0
    while len(kept) < k:
        batch = [hit for _, hit in zip(range(_BATCH), found, strict=False)]
        if not batch:
            break
        for hit, known in zip(batch, facts(tuple(hit.feature for hit in batch)), strict=True):
            if known.density is not None and known.density > limit:
                hidden += len(kept) < k
            elif len(kept) < k:
                kept.append(replace(hit, density=known.density))
    return kept, hidden


def _limit(dense: Any) -> float:
    if isinstance(dense, bool):
        return math.inf if dense else DENSE
    if not isinstance(dense, (int, float)) or not 0 < dense <= 1:
        raise refuse("dense-unreadable", given=dense)
    return float(dense)


def count(k: Any) -> int:
    """`k` as a number of features; refuses what is none."""
    number = whole(k)
    if number is None or number < 1:
        raise refuse("count-unreadable", name="k", given=k, least=1)
    return number


def _positions(trace: Trace, tokens: Any) -> np.ndarray | None:
    """The positions that `tokens` name; None for all. Refuses those that are all special: SAEs are not read there."""
    if tokens is None:
        return None
    given = (tokens,) if isinstance(tokens, (str, int)) else tuple(tokens)
    where = sorted({position for one in given for position in trace.positions(one)})
    if all(trace.tokens[position].special for position in where):
        names = ", ".join(dict.fromkeys(trace.tokens[position].text for position in where))
        raise refuse("text-only-special", count=len(where), names=names or "none")
    return np.array(where)


def _token(trace: Trace, position: int | None) -> str:
    if position is None:
        return ""
    token = trace.tokens[position]
    return token.text or "".join(f"⟨{byte:02X}⟩" for byte in token.bytes)


def peaks(traces: Iterable[Trace], site: Site) -> tuple[np.ndarray, dict[int, tuple[float, str, int]]]:
    """Over several texts: the mean of each feature's largest activation, float64 [feature], 0 where it never fires;
    and for those that fire, (largest, token, position) where they fire most."""
    total, texts = None, 0
    best: dict[int, tuple[float, str, int]] = {}
    for trace in traces:
        one = _summed(trace, site, None, "max")
        if total is None:
            total = np.zeros(trace.acts[site].shape[1])
        total[one.indices] += one.raw
        texts += 1
        for index, raw, position in zip(one.indices.tolist(), one.raw.tolist(), one.position.tolist(), strict=True):
            if index not in best or raw > best[index][0]:
                best[index] = (raw, _token(trace, position), position)
    assert total is not None
    return total / texts, best
