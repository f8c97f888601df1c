"""What led to a feature or to a next token, and the check of it: each source taken out, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..engine.protocol import AttributeRequest, Engine, Given, ReadRequest, WithoutRequest
from ..errors import Refusal
from ..evolution import Attribution, Edge
from ..feature import FeatureId
from ..site import Site


def attribution(
    engine: Engine,
    given: Given,
    target: FeatureId | str | int,
    *,
    token: int | str | None = None,
    against: int | str | None = None,
    k: int = 60,
    sites: tuple[Site, ...] | None = None,
) -> Attribution:
    """As `Loupe.attribution`; the result can be checked as long as the engine is open."""
    position = token
    if isinstance(token, str):
        position = engine.read(ReadRequest(given, ())).result().positions(token)[-1]
    request = AttributeRequest(given, target_of(target), position, against, k, sites)  # type: ignore[arg-type]
    found = engine.attribute(request).result()

    def ablate(one: Attribution, edges: Sequence[Edge]) -> tuple[float, ...]:
        sources = tuple((edge.source, edge.position) for edge in edges)
        ids = tuple(token.id for token in one.trace.tokens)
        goal = one.target if isinstance(one.target, FeatureId) else one.target.id
        other = None if one.against is None else one.against.id
        return engine.without(WithoutRequest(ids, goal, one.position, sources, other)).result()

    return replace(found, ablate=ablate)


def target_of(given: Any) -> FeatureId | str | int:
    """A feature where the text is one ('res.12/834'); any other text is a token's."""
    if isinstance(given, str):
        try:
            return FeatureId.of(given)
        except Refusal:
            return given
    return given
