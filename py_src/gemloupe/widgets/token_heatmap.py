"""TokenHeatmap: the text as coloured tokens, each with its features. The other half is js/widgets/token-heatmap.ts."""

from __future__ import annotations

from typing import Any

import traitlets

from ..trace import Trace
from .live import STATIC
from .trace_view import FactsOf, TraceView


class TokenHeatmap(TraceView):
    """A trace as coloured tokens. Hover one for its strongest features, click it to list them all.

    `w.selected` is the selection, and may be set: `w.selected = " Paris"`, `w.selected = "res.12/834"`.
    """

    _esm = STATIC / "token-heatmap.js"
    _css = STATIC / "token-heatmap.css"
    _name = "token-heatmap"

    guesses: traitlets.List[Any] = traitlets.List(allow_none=True, default_value=None).tag(sync=True)
    """Per token, the model's next-token guesses as [text, probability] pairs, likeliest first; None if not asked."""

    def __init__(self, trace: Trace, facts_of: FactsOf | None = None, **options: Any) -> None:
        guesses = trace.guesses and [[[g.text, round(g.probability, 4)] for g in one or ()] for one in trace.guesses]
        super().__init__(trace, facts_of, guesses=guesses, **options)
