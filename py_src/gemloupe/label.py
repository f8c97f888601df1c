"""A label: what someone, or something, says a feature is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .feature import FeatureId
from .words import joined, say

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

    @property
    def shown(self) -> str:
        """`text` for the user's eyes. What counting found can be said in other languages; what people wrote cannot."""
        if self.source != "automatic":
            return self.text
        return joined(" · ", map(_part, self.text.split(" · ")))

    @property
    def shown_by(self) -> str:
        """`by` for the user's eyes."""
        if self.source != "automatic":
            return self.by
        _, counts, index = self.by.partition("counts over the index ")
        return say("counts over the index {index}", index=index) if counts else say("what its decoder promotes")


def _part(text: str) -> str:
    """One part of an automatic label, as `study/automatic.py` writes them."""
    for begins, words in _PARTS.items():
        if text.startswith(begins) and (begins.endswith(" ") or text == begins):
            return words(text[len(begins) :])
    return text


_PARTS: dict[str, Callable[[str], str]] = {
    "never fired": lambda _: say("never fired"),
    "on many tokens, as ": lambda tokens: say("on many tokens, as {tokens}", tokens=tokens),
    "on many tokens": lambda _: say("on many tokens"),
    "on ": lambda tokens: say("on {tokens}", tokens=tokens),
    "after ": lambda token: say("after {tokens}", tokens=token),
    "before ": lambda token: say("before {tokens}", tokens=token),
    "near ": lambda tokens: say("near {tokens}", tokens=tokens),
    "promotes ": lambda tokens: say("promotes {tokens}", tokens=tokens),
}
