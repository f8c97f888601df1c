"""What the SteeringDesk sends to the browser: rows, texts, effects and doses as plain data. Read by js/core/desk.ts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..edits import Edit
from ..engine.protocol import Effect, FeatureFacts, Generation
from ..feature import FeatureId
from ..trace import Token
from ..words import counted, joined, say
from .trace_view import wire_token

_PROMOTED = 6


def number(value: float | None, digits: int = 4) -> float | None:
    """A number for JSON, which has no nan and no infinity, with `digits` significant digits."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def wire_edit(key: int, edit: Edit, facts: FeatureFacts | None, error: str | None) -> dict[str, Any]:
    """One edit as a row of the desk. `maximum` is None for a vector, and where it is not known."""
    maximum = None if facts is None else facts.maximum
    known = maximum is not None and maximum > 0
    raw = None
    if edit.kind in ("add", "clamp") and known:
        raw = edit.strength * maximum  # type: ignore[operator]
    elif edit.vector is not None:
        raw = edit.strength * float(np.linalg.norm(edit.vector))
    return {
        "key": key,
        "kind": edit.kind,
        "site": str(edit.site),
        "feature": None if edit.feature is None else str(edit.feature),
        "strength": edit.strength,
        "maximum": number(maximum) if known else None,
        "label": "" if facts is None else facts.label,
        "promotes": [text for text, _ in facts.promotes[:_PROMOTED]] if facts is not None else [],
        "where": _places(edit),
        "when": None
        if edit.when is None
        else say("while {feature} > {above}", feature=edit.when.feature, above=f"{edit.when.above:g}"),
        "formula": edit.formula(maximum if known or edit.feature is None else None),
        "raw": number(raw),
        "error": error,
    }


def _places(edit: Edit) -> str | None:
    """Where an edit acts, in words; None for everywhere but special tokens."""
    if isinstance(edit.where, tuple):
        listed = ", ".join(map(str, edit.where[:8])) + (", …" if len(edit.where) > 8 else "")
        words = counted("at token {listed}", "at tokens {listed}", len(edit.where), listed=listed)
    else:
        words = {"all": "", "prompt": say("in the prompt only"), "generated": say("in the new text only")}[edit.where]
    parts = [part for part in (words, say("special tokens too") if edit.specials else "") if part]
    return joined(" · ", parts) if parts else None


def wire_new(ident: int, text: str, logprob: float) -> dict[str, Any]:
    """A token that has just been made."""
    return {"id": ident, "text": text, "logprob": number(logprob)}


def wire_tokens(tokens: Sequence[Token], logprobs: Sequence[float]) -> list[dict[str, Any]]:
    """The new tokens of a finished text."""
    kept = ("id", "text", "special", "bytes")
    return [
        {name: value for name, value in wire_token(token).items() if name in kept and value is not False}
        | {"logprob": number(logprob)}
        for token, logprob in zip(tokens, logprobs, strict=True)
    ]


def wire_effect(effect: Effect) -> dict[str, Any]:
    """What an edit did: `why` it did nothing, or at how many tokens it acted, how strongly, and at which."""
    fired = np.asarray(effect.fired, bool)
    acted = fired & (np.asarray(effect.norm) > 0)
    return {
        "silent": effect.silent,
        "why": effect.why if effect.silent else None,
        "fired": int(fired.sum()),
        "of": len(fired),
        "share": number(float(np.mean(effect.share[acted])), 3) if acted.any() else None,
        "norm": number(float(np.mean(effect.norm[acted]))) if acted.any() else None,
        "peak": number(float(np.max(effect.activation))) if len(effect.activation) else None,
        "timeline": "".join("1" if one else "0" for one in fired) if effect.edit.when is not None else None,
    }


def wire_dose(row: Any, safety: float | None) -> dict[str, Any]:
    """One strength of a sweep."""
    return {
        "strength": row.strength,
        "tokens": wire_tokens(row.generation.tokens, row.generation.logprobs),
        "diverges": row.diverges,
        "kl": number(row.kl),
        "surprise": number(row.surprise),
        "repetition": number(row.repetition),
        "band": row.band,
        "safety": number(safety),
    }


def wire_movers(layer: int, found: Iterable[Any], facts: Mapping[FeatureId, FeatureFacts]) -> dict[str, Any]:
    """The features of one layer that moved most: mean strengths (None: maximum unknown) and raw means."""
    features = [
        {
            "feature": str(one.feature),
            "label": facts[one.feature].label,
            "promotes": [text for text, _ in facts[one.feature].promotes[:3]],
            "from": number(one.before, 3),
            "to": number(one.after, 3),
            "raw": [number(value, 3) for value in one.raw],
        }
        for one in found
    ]
    return {"layer": layer, "features": features}


def strengths(generation: Generation, feature: FeatureId) -> list[float] | None:
    """Strength of a feature at each new token, or None if its site was not recorded.

    In units of its own maximum; where that is unknown, of its largest value in this text.
    """
    trace = generation.trace
    if trace is None or feature.site not in trace.acts:
        return None
    values = trace.acts[feature.site].column(feature.index)
    maximum = float(trace.maxima[feature.site][feature.index])
    if not maximum > 0:
        maximum = float(values.max()) if len(values) else 0.0
    shown = values[len(generation.prompt) :] / maximum if maximum > 0 else np.zeros(len(generation.tokens))
    return [round(float(value), 3) for value in shown]


def rows_of(refusal_facts: Mapping[str, Any], rows: Iterable[tuple[int, Edit]]) -> list[int]:
    """Keys of the rows that a refusal is about: those whose edit, feature or site it names."""
    values = list(refusal_facts.values())
    named = {str(value) for value in values}
    found = []
    for key, edit in rows:
        if (
            any(value is edit for value in values)
            or str(edit) in named
            or (edit.feature is not None and str(edit.feature) in named)
            or str(edit.site) in named
            or (edit.when is not None and str(edit.when.feature) in named)
        ):
            found.append(key)
    return found
