"""What a FeatureCard sends to the browser: evidence, examples, neighbours and readings. Read by js/core/card.ts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..engine.protocol import FeatureFacts
from ..evidence import Example, FeatureEvidence
from ..feature import FeatureId
from ..label import Label
from ..study.ablation import Ablation, Followed
from ..study.neighbours import Neighbour
from ..trace import Trace
from .steering_wire import number
from .trace_view import wire_token

_BEFORE = 6  # tokens shown before the peak of an ablated example
_NAMED = 4  # promoted tokens that stand beside a feature without a label

Known = Callable[[Example], tuple[int, int] | None]


def wire_feature(
    feature: FeatureId, width: int, facts: FeatureFacts, evidence: FeatureEvidence | None, why: str
) -> dict[str, Any]:
    """All that is known at once of a feature among the `width` of its site. Without evidence, `why` says what to do."""
    found = None if evidence is None else wire_evidence(evidence)
    maximum = facts.maximum
    if maximum is None and evidence is not None and evidence.fired:
        maximum = evidence.maximum
    density = facts.density if evidence is None else evidence.density
    return {
        "feature": str(feature),
        "width": width,
        "maximum": number(maximum, 6),
        "density": number(density, 6),
        "promotes": _weighed(facts.promotes),
        "suppresses": _weighed(facts.suppresses),
        "neuronpedia": facts.neuronpedia,
        "evidence": found,
        "why": why,
    }


def wire_evidence(evidence: FeatureEvidence) -> dict[str, Any]:
    """What an index counted of a feature."""
    return {
        "index": evidence.index,
        "tokens": evidence.tokens,
        "fired": evidence.fired,
        "maximum": number(evidence.maximum, 6),
        "mean": number(evidence.mean, 6),
        "counts": evidence.histogram.tolist(),
        "edges": [number(float(edge), 6) for edge in evidence.edges],
        "on": [[one.text, one.count] for one in evidence.on],
        "looked_at": evidence.looked_at,
        "together": [[str(one.feature), round(one.share, 4), one.together] for one in evidence.together],
    }


def wire_examples(evidence: FeatureEvidence | None, context: int | None, known: Known) -> dict[str, Any]:
    """The examples with `context` tokens on each side; `known` says between which tokens activations are."""
    made = lambda some: [wire_example(one, known(one)) for one in some]  # noqa: E731
    return {
        "context": context,
        "top": [] if evidence is None else made(evidence.top),
        "intervals": []
        if evidence is None
        else [
            {"low": number(one.low, 6), "high": number(one.high, 6), "examples": made(one.examples)}
            for one in evidence.intervals
        ],
    }


def wire_example(example: Example, known: tuple[int, int] | None = None) -> dict[str, Any]:
    """One example. `known` is null where the activations of all tokens shown are."""
    return {
        "tokens": list(example.tokens),
        "acts": [number(value) for value in example.activations.tolist()],
        "peak": example.peak,
        "value": number(example.value),
        "document": example.document,
        "position": example.position,
        "known": known,
    }


def wire_label(label: Label) -> dict[str, Any]:
    """One label and who gave it."""
    return {"text": label.shown, "source": label.source, "by": label.shown_by, "score": number(label.score)}


def wire_name(label: Label | None, facts: FeatureFacts) -> dict[str, Any]:
    """What stands beside another feature's number: its label, or what it promotes."""
    return {
        "label": "" if label is None else label.shown,
        "source": "" if label is None else label.source,
        "promotes": [text for text, _ in facts.promotes[:_NAMED]],
    }


def wire_near(own: Iterable[Neighbour], others: Iterable[Neighbour]) -> dict[str, Any]:
    """The nearest features of the feature's own site and of other sites."""
    both = {"own": own, "others": others}
    return {"state": "known", "error": None} | {
        where: [[str(one.feature), round(one.cosine, 3)] for one in found] for where, found in both.items()
    }


def wire_reading(text: str, trace: Trace, feature: FeatureId) -> dict[str, Any]:
    """A text with the feature's activation at every token."""
    acts = np.asarray(trace[feature], np.float32)
    return {
        "text": text,
        "feature": str(feature),
        "tokens": [wire_token(token) for token in trace.tokens],
        "acts": [number(value) for value in acts.tolist()],
        "error": None,
    }


def wire_ablation(found: Ablation | None, of: int, state: str, error: str | None = None) -> dict[str, Any]:
    """What an ablation has measured so far, of `of` examples."""
    followed = () if found is None else found.followed
    return {
        "state": state,
        "error": error,
        "of": of,
        "next": None if found is None else number(found.next),
        "after": None if found is None else number(found.after),
        "helped": 0 if found is None else found.helped,
        "tokens": 0 if found is None else found.tokens,
        "rows": [_wire_followed(one) for one in followed],
    }


def _wire_followed(one: Followed) -> dict[str, Any]:
    peak = one.example.peak
    return {
        "before": list(one.example.tokens[max(0, peak - _BEFORE) : peak + 1]),
        "after": list(one.tokens),
        "change": [number(value) for value in one.change.tolist()],
    }


def _weighed(pairs: Iterable[tuple[str, float]]) -> list[list[Any]]:
    return [[text, number(logit)] for text, logit in pairs]


def mentioned(shown: Mapping[str, Any], near: Mapping[str, Any] | None) -> tuple[FeatureId, ...]:
    """The other features that a card names, each once."""
    together = [] if shown["evidence"] is None else shown["evidence"]["together"]
    lists = [together, *((near or {}).get(where) or [] for where in ("own", "others"))]
    return tuple(FeatureId.of(name) for name in dict.fromkeys(row[0] for rows in lists for row in rows))
