"""FeatureTable: every feature that is on in a text, as a table. The other half is js/widgets/feature-table.ts."""

from __future__ import annotations

from typing import Any

import traitlets

from ..trace import Trace
from .live import STATIC
from .trace_view import FactsOf, TraceView


class FeatureTable(TraceView):
    """The features of a trace: where each peaks, how strongly, how often it fires elsewhere, what it promotes.

    Made from a `TokenHeatmap` (`FeatureTable.beside(heatmap)`), both share site and selection.
    """

    _esm = STATIC / "feature-table.js"
    _css = STATIC / "feature-table.css"
    _name = "feature-table"

    @classmethod
    def beside(cls, other: TraceView, **options: Any) -> FeatureTable:
        """A table of the same trace that follows `other`: select in one, and the other shows it."""
        table = cls(other.trace, other._facts_of, site=other.site or None, selected=other.selected, **options)
        for name in ("site", "selection", "palette"):
            traitlets.link((other, name), (table, name))
        return table

    def __init__(self, trace: Trace, facts_of: FactsOf | None = None, **options: Any) -> None:
        super().__init__(trace, facts_of, **options)
