"""A label: what someone, or something, says a feature is about."""

from __future__ import annotations

from dataclasses import dataclass

from .feature import FeatureId

# Whom to believe first. An automatic label is a statistic, the others are someone's reading.
SOURCES = ("user", "Neuronpedia", "curated", "explained", "automatic")


@dataclass(frozen=True)
class Label:
    """`text` says what `feature` is about; `source` is one of `SOURCES`.

    `score` is the source's own: Neuronpedia's, or for 'explained' the balanced accuracy of detection on held-out
    examples, 0.5 being chance; None where there is none. `made` is an ISO date and time, empty if not known. `by` says
    who wrote it: a language model and its method, or the index an automatic label was computed from. 'curated' ones
    come with a scope, from people who read its features.
    """

    feature: FeatureId
    text: str
    source: str
    score: float | None = None
    made: str = ""
    by: str = ""
