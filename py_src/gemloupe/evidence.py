"""What an index knows of a feature: where it fires, how strongly, on which tokens, beside which other features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .feature import FeatureId


@dataclass(frozen=True, eq=False)
class Example:
    """One place where a feature fires, in its passage.

    `tokens` are the display texts of a window of the passage and `ids` their vocabulary ids; a piece of a character
    shows as ⟨F0⟩, a special token by its name. `activations` float32 [token] are 0 where the feature is silent, in the
    SAE's own units; `peak` is the index into `tokens` of the place meant, and `value` the activation there.
    `document` says which passage of the index this is, `position` which token of it the peak is (0 is BOS).
    `complete`: whether `activations` are known for every token shown. Those near the peak are; the rest of a passage
    takes a read.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    activations: np.ndarray
    peak: int
    value: float
    document: int
    position: int
    complete: bool

    @property
    def text(self) -> str:
        """The display texts of the window, one after the other."""
        return "".join(self.tokens)


@dataclass(frozen=True, eq=False)
class Interval:
    """Random examples whose value lies in `low` < value <= `high`, strongest first; one of five of equal width."""

    low: float
    high: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class TokenCount:
    """A vocabulary entry that a feature fires on, and how often among the firings looked at."""

    text: str
    id: int
    count: int


@dataclass(frozen=True)
class Companion:
    """Another feature of the same site that fires on the same tokens.

    `share` is the Jaccard index: of the tokens where one of the two fires, the share where both do. It is exact for
    features that fire rarely and estimated from `together` tokens that both were seen on otherwise.
    """

    feature: FeatureId
    together: int
    share: float


@dataclass(frozen=True, eq=False)
class FeatureEvidence:
    """What an index found of one feature, in the SAE's own units.

    `tokens` ordinary tokens were indexed; the feature fires on `fired` of them, at most with `maximum`, with `mean` on
    average where it fires. `histogram` int64 [bin] counts its non-zero activations between `edges` float32 [bin + 1].
    `top` are its strongest examples, one for each place; `intervals` five of equal width between 0 and `maximum`,
    lowest first, with random examples. `on` are the tokens it fires on, most often first, among `looked_at` of its
    firings chosen at random (all of them, if they are few). `together` are the features that fire on the same tokens,
    closest first. A feature that never fired has `fired` 0, `maximum` and `mean` 0.0, and empty tuples and arrays.
    `index` names the index this is from.
    """

    feature: FeatureId
    tokens: int
    fired: int
    maximum: float
    mean: float
    histogram: np.ndarray
    edges: np.ndarray
    top: tuple[Example, ...]
    intervals: tuple[Interval, ...]
    on: tuple[TokenCount, ...]
    together: tuple[Companion, ...]
    index: str
    looked_at: int = 0

    @property
    def density(self) -> float:
        """Share of ordinary tokens it fires on, 0 to 1."""
        return self.fired / self.tokens if self.tokens else 0.0

    @property
    def dead(self) -> bool:
        """Whether it never fired on the indexed text."""
        return self.fired == 0
