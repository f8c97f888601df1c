"""Where in the model an SAE reads: Gemma Scope's sites."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import refuse

KINDS = ("res", "mlp", "att", "transcoder")
MEANING = {
    "res": "residual stream after the block",
    "mlp": "MLP output after its post-norm",
    "att": "concatenated attention heads before W_O",
    "transcoder": "MLP input, read by a transcoder",
}
# A block is read in the order the forward pass reaches its sites.
_ORDER = {"att": 0, "transcoder": 1, "mlp": 2, "res": 3}
# So many sites are named one by one.
_SHORT = 8
_PATTERN = re.compile(r"(res|mlp|att|transcoder)\.(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Site:
    """One place in the model: `Site("res", 12)`, written `res.12`. Layers count from 0."""

    kind: str
    layer: int

    def __post_init__(self) -> None:
        good = isinstance(self.layer, int) and not isinstance(self.layer, bool) and self.layer >= 0
        if self.kind not in KINDS or not good:
            raise refuse("site-unreadable", given=f"{self.kind}.{self.layer}")

    @classmethod
    def of(cls, given: Any) -> Site:
        """A `Site` from a `Site` or from text such as 'res.12'."""
        if isinstance(given, cls):
            return given
        match = _PATTERN.fullmatch(given) if isinstance(given, str) else None
        if match is None:
            raise refuse("site-unreadable", given=given)
        return cls(match[1], int(match[2]))

    @property
    def meaning(self) -> str:
        return MEANING[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def __lt__(self, other: Site) -> bool:
        return (self.layer, _ORDER[self.kind]) < (other.layer, _ORDER[other.kind])


def in_words(sites: Iterable[Site]) -> str:
    """Sites in a sentence; of many, those in a row as 'res.0 to res.17'. 'none' if there are none."""
    given = list(sites)
    if len(given) <= _SHORT:
        return ", ".join(map(str, given)) or "none"
    parts = []
    for kind in KINDS:
        layers = sorted({site.layer for site in given if site.kind == kind})
        while layers:
            run = 1
            while run < len(layers) and layers[run] == layers[0] + run:
                run += 1
            ends = [f"{kind}.{layers[0]}", f"{kind}.{layers[run - 1]}"]
            parts += [" to ".join(ends)] if run > 2 else ends[:run]
            layers = layers[run:]
    return ", ".join(parts)
