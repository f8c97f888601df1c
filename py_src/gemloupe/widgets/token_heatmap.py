"""TokenHeatmap: the text as coloured tokens, each with its features. The other half is js/widgets/token-heatmap.ts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from ..trace import Trace
from ..wire.rpc import Handler
from .live import STATIC
from .trace_view import FactsOf, TraceView


class TokenHeatmap(TraceView):
    """A trace as coloured tokens. Hover one for its strongest features, click it to list them all.

    `w.selected` is the selection, and may be set: `w.selected = " Paris"`, `w.selected = "res.12/834"`. `w.card()` is
    the card of the selected feature; in the browser the button beside its name opens it under the text.
    """

    _esm = STATIC / "token-heatmap.js"
    _css = STATIC / "token-heatmap.css"
    _name = "token-heatmap"

    guesses: traitlets.List[Any] = traitlets.List(allow_none=True, default_value=None).tag(sync=True)
    """Per token, the model's next-token guesses as [text, probability] pairs, likeliest first; None if not asked."""

    below = anywidget.WidgetTrait().tag(sync=True)
    """The FeatureCard that is open under the text; None without."""

    def __init__(self, trace: Trace, facts_of: FactsOf | None = None, **options: Any) -> None:
        guesses = trace.guesses and [[[g.text, round(g.probability, 4)] for g in one or ()] for one in trace.guesses]
        super().__init__(trace, facts_of, guesses=guesses, **options)

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        return {**super().methods(), "card": self._open_card, "uncard": self._close_card}

    def _open_card(self, feature: str) -> None:
        before, self.below = self.below, self.card(feature)
        if before is not None:
            before.close()

    def _close_card(self) -> None:
        before, self.below = self.below, None
        if before is not None:
            before.close()

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        return super().static_state() | {"below": None}
