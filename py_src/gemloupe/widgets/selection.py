"""What is selected in a widget: a token, a feature, both or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import refuse
from ..feature import FeatureId, whole
from ..trace import Token, Trace


@dataclass(frozen=True)
class Selection:
    """`position` and `token` of the selected token, and the selected `feature`; None where nothing is selected."""

    position: int | None = None
    token: Token | None = None
    feature: FeatureId | None = None


def read_selection(given: Any, trace: Trace) -> Selection:
    """A `Selection` in `trace` from what a user or the browser gives.

    None clears; 'res.12/834' or a FeatureId is a feature; a position or a token's text (its first place) is a
    token; a pair (token, feature) or a mapping with 'token' and 'feature' is both. What does not exist is refused.
    """
    token: Any
    feature: Any
    match given:
        case Selection():
            token, feature = given.position, given.feature
        case Mapping():
            token, feature = given.get("token"), given.get("feature")
        case tuple() | list() if len(given) == 2:
            token, feature = given
        case None:
            token, feature = None, None
        case FeatureId():
            token, feature = None, given
        case str() if "/" in given and not any(t.text == given for t in trace.tokens):
            token, feature = None, given
        case _:
            token, feature = given, None
    position = None
    if token is not None:
        if not isinstance(token, str) and (whole(token) is None or not 0 <= token < len(trace)):
            raise refuse("position-out-of-range", given=token, last=len(trace) - 1)
        position = trace.positions(token)[0]
    name = None
    if feature is not None:
        name = FeatureId.of(feature)
        if name.site not in trace.acts:
            raise refuse("site-not-open", site=name.site, open=", ".join(map(str, trace.sites)) or "none")
        name.within(trace.acts[name.site].shape[1])
    return Selection(position, None if position is None else trace.tokens[position], name)
