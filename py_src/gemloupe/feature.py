"""The name of one SAE latent: a site and an index."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from .errors import refuse
from .site import Site


def whole(index: Any) -> int | None:
    """`index` as an int if it is a whole number (numpy's too), else None. True and 1.0 are not whole numbers here."""
    if isinstance(index, bool) or type(index).__name__ in ("bool_", "bool"):
        return None
    try:
        return operator.index(index)
    except TypeError:
        return None


@dataclass(frozen=True)
class FeatureId:
    """`FeatureId(Site("res", 12), 834)`, written `res.12/834`. Index 0 is a feature like any other."""

    site: Site
    index: int

    def __post_init__(self) -> None:
        index = whole(self.index)
        if index is None or index < 0:
            raise refuse("feature-unreadable", given=f"{self.site}/{self.index}")
        object.__setattr__(self, "index", index)

    @classmethod
    def of(cls, given: Any) -> FeatureId:
        """A `FeatureId` from a `FeatureId` or from text such as 'res.12/834'."""
        if isinstance(given, cls):
            return given
        site, slash, index = given.partition("/") if isinstance(given, str) else ("", "", "")
        if not slash or not (index.isascii() and index.isdigit()):
            raise refuse("feature-unreadable", given=given)
        return cls(Site.of(site), int(index))

    def within(self, width: int) -> FeatureId:
        """This feature, if an SAE with `width` features has it; otherwise a refusal naming the range."""
        if self.index >= width:
            raise refuse("feature-out-of-range", index=self.index, site=self.site, last=width - 1)
        return self

    def __str__(self) -> str:
        return f"{self.site}/{self.index}"

    def __lt__(self, other: FeatureId) -> bool:
        return (self.site, self.index) < (other.site, other.index)
