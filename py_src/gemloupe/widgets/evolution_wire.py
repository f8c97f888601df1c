"""An evolution and an attribution as the browser gets them. The other halves: js/core/evolution.ts, attribution.ts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..evolution import Attribution, Columns, Evolution
from ..feature import FeatureId
from ..trace import Token, Trace
from ..wire import arrays

_LEAST = 2.0**-24  # the smallest float16 above 0
_MOST = 60_000.0


def wire_evolution(evolution: Evolution, kept: range | None = None) -> dict[str, Any]:
    """All columns as compact arrays: about four bytes for each block. `kept` are the positions whose blocks are sent,
    None for all; special tokens' never are, since the SAEs were not trained on them."""
    columns, trace = evolution.columns, evolution.trace
    assert isinstance(columns, Columns)
    sites = trace.sites
    shown = np.array([not token.special for token in trace.tokens], bool)
    if kept is not None:
        shown &= np.isin(np.arange(len(trace)), np.asarray(kept))
    counts, features, values, scales, maxima, norms, norm_scales = [], [], [], [], [], [], []
    for site in sites:
        starts, indices, raw, _ = columns.blocks(site)
        length = np.diff(starts)
        inside = np.repeat(shown, length)
        indices, raw = indices[inside], raw[inside]
        counts.append(np.where(shown, length, 0))
        features.append(indices)
        scales.append(float(raw.max()) if len(raw) else 1.0)
        values.append(np.maximum(raw / scales[-1], _LEAST))
        maxima.append(trace.maxima[site][np.unique(indices)])
        norm_scales.append(float(np.nanmax(columns.norms[site], initial=0.0)) or 1.0)
        norms.append(np.nan_to_num(columns.norms[site]) / norm_scales[-1])
    fvus = [np.minimum(columns.fvus[site], _MOST) for site in sites]
    return {
        "k": columns.k,
        "layers": evolution.layers,
        "sites": [str(site) for site in sites],
        "missing": [str(site) for site in evolution.missing],
        "kept": None if kept is None else [kept.start, kept.stop],
        "counts": arrays.whole_numbers(_joined(counts)),
        "features": arrays.whole_numbers(_joined(features)),
        "values": arrays.array(_joined(values), "f2"),
        "scales": arrays.array(scales, "f4"),
        "maxima": arrays.array(_joined(maxima), "f4"),
        "l0": arrays.whole_numbers(_joined([trace.acts[site].l0 for site in sites])),
        "norms": arrays.array(_joined(norms), "f2"),
        "normScales": arrays.array(norm_scales, "f4"),
        "fvus": arrays.array(_joined(fvus), "f2"),
        "ribbons": _ribbons(evolution),
    }


def _joined(parts: list[Any]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _ribbons(evolution: Evolution) -> dict[str, Any]:
    place = {site: i for i, site in enumerate(evolution.trace.sites)}
    ribbons = evolution.ribbons
    together = [math.nan if one.coactivation is None else one.coactivation for one in ribbons]
    return {
        "from": arrays.whole_numbers(np.array([place[one.source.site] for one in ribbons], np.int64)),
        "to": arrays.whole_numbers(np.array([place[one.target.site] for one in ribbons], np.int64)),
        "source": arrays.whole_numbers(np.array([one.source.index for one in ribbons], np.int64)),
        "target": arrays.whole_numbers(np.array([one.target.index for one in ribbons], np.int64)),
        "cosine": arrays.array([one.cosine for one in ribbons], "f2"),
        "coactivation": arrays.array(together, "f2"),
    }


def wire_guesses(evolution: Evolution) -> dict[str, Any]:
    """The guesses of all positions that have some, each token's text once; and the notes, which speak of them too."""
    columns = evolution.columns
    assert isinstance(columns, Columns)
    positions = sorted(position for position, made in columns.guesses.items() if made)
    every = [guess for position in positions for guess in columns.guesses[position]]
    layers = [guess.layer for guess in columns.guesses[positions[0]]] if positions else []
    places: dict[tuple[int, str], int] = {}
    tokens = [[places.setdefault((i, text), len(places)) for i, text, _ in guess.tokens] for guess in every]
    shape = (len(positions), len(layers), len(tokens[0]) if tokens else 0)
    shares = np.array([[share for *_, share in guess.tokens] for guess in every])
    return {
        "positions": arrays.whole_numbers(np.array(positions, np.int64)),
        "layers": arrays.whole_numbers(np.array(layers, np.int64)),
        "texts": [text for _, text in places],
        "ids": arrays.whole_numbers(np.array([i for i, _ in places], np.int64)),
        "tokens": arrays.whole_numbers(np.array(tokens, np.int64).reshape(shape)),
        "probabilities": arrays.array(shares.reshape(shape), "f2"),
        "entropies": arrays.array([guess.entropy for guess in every], "f2"),
        "notes": list(evolution.notes),
    }


def wire_attribution(found: Attribution, trace: Trace) -> dict[str, Any]:
    """An attribution in `trace`; each edge also says how strongly its source is on there."""

    def raw(feature: FeatureId, position: int) -> float:
        indices, values = trace.acts[feature.site].row(position)
        at = np.searchsorted(indices, feature.index)
        return float(values[at]) if at < len(indices) and indices[at] == feature.index else 0.0

    def strength(feature: FeatureId, position: int) -> float | None:
        share = raw(feature, position) / float(trace.maxima[feature.site][feature.index])
        return share if math.isfinite(share) else None

    target = found.target
    token = target if isinstance(target, Token) else None
    return {
        "target": {
            "feature": None if token is not None else str(target),
            "token": None if token is None else token.id,
            "text": "" if token is None else token.text,
        },
        "position": found.position,
        "value": found.value,
        "effects": found.effects,
        "explained": found.explained,
        "error": found.error,
        "notes": list(found.notes),
        "edges": [
            {
                "feature": str(edge.source),
                "position": edge.position,
                "effect": edge.effect,
                "measured": edge.measured,
                "raw": raw(edge.source, edge.position),
                "strength": strength(edge.source, edge.position),
            }
            for edge in found.edges
            if edge.source.site in trace.acts
        ],
    }


def shown_features(evolution: Evolution, most: int, first: Iterable[FeatureId] = ()) -> list[FeatureId]:
    """Features that some block shows, at most so many: `first`, those that are joined, then the strongest."""
    columns = evolution.columns
    assert isinstance(columns, Columns)
    found = dict.fromkeys(first)
    found.update(dict.fromkeys(end for ribbon in evolution.ribbons for end in (ribbon.source, ribbon.target)))
    rest: list[tuple[float, FeatureId]] = []
    for site in evolution.trace.sites:
        _, indices, _, strengths = columns.blocks(site)
        features, place = np.unique(indices, return_inverse=True)
        peak = np.zeros(len(features), np.float32)
        np.maximum.at(peak, place, np.nan_to_num(strengths))
        best = np.argsort(-peak)[:most]
        rest += [(float(peak[i]), FeatureId(site, int(features[i]))) for i in best.tolist()]
    rest.sort(key=lambda one: (-one[0], one[1].site, one[1].index))
    found.update(dict.fromkeys(feature for _, feature in rest))
    return list(found)[:most]
