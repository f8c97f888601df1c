"""What an index does not keep: an example's passage, read again."""

from __future__ import annotations

from dataclasses import replace

from ...engine.protocol import Engine, ReadRequest
from ...evidence import Example
from ...feature import FeatureId
from .store import Index


def whole(engine: Engine, index: Index, feature: FeatureId, example: Example) -> Example:
    """`example` as its whole passage with the feature's activation at every token; one read at the feature's site."""
    ids = index.passage(example.document)
    trace = engine.read(ReadRequest(tuple(ids.tolist()), (feature.site,))).result()
    acts = trace[feature]
    return replace(
        example,
        tokens=tuple(index.text(ident) for ident in ids.tolist()),
        ids=tuple(ids.tolist()),
        activations=acts,
        peak=example.position,
        value=float(acts[example.position]),
        complete=True,
    )
