"""FeatureTable: every feature that is on in a text, as a table. The other half is js/widgets/feature-table.ts."""

from __future__ import annotations

from typing import Any

from ..site import Site
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
    def beside(
        cls, other: TraceView, *, site: Site | str | None = None, selected: Any = None, **traits: Any
    ) -> FeatureTable:
        """A table of the same trace that follows `other`: select in one, and the other shows it.

        It begins as `other` is; what is given here, site, selection or palette, is shown in both.
        """
        shown = other.selected if selected is None else selected
        if site is not None and selected is None and shown.feature is not None and shown.feature.site != Site.of(site):
            shown = shown.position  # a feature of another site would bring that one back
        traits = {"palette": other.palette} | traits
        table = cls(other.trace, other._facts_of, site=site or other.site or None, selected=shown, **traits)
        table._card_of = other._card_of
        _join(table, other)
        return table

    def __init__(self, trace: Trace, facts_of: FactsOf | None = None, **options: Any) -> None:
        super().__init__(trace, facts_of, **options)


def _join(one: TraceView, two: TraceView) -> None:
    """Keep site, selection and palette of two views of one trace equal; both begin as `one`.

    Not `traitlets.link`: it copies one trait at a time, and a site that arrives before its selection drops it.
    """
    busy = False

    def copy(source: TraceView, target: TraceView) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            target.selection = source.selection  # brings its site along
            target.site = source.site
            target.palette = source.palette
        finally:
            busy = False

    names = ["site", "selection", "palette"]
    one.observe(lambda _change: copy(one, two), names)
    two.observe(lambda _change: copy(two, one), names)
    copy(one, two)
