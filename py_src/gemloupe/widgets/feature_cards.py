"""FeatureCards: two cards side by side. The other half is js/widgets/feature-cards.ts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anywidget
import traitlets

from . import static
from .feature_card import FeatureCard
from .live import STATIC, LiveWidget


class FeatureCards(LiveWidget):
    """Two `FeatureCard`s, `cards.left` and `cards.right`, that share a text and a palette. Iterate it for both."""

    _esm = STATIC / "feature-cards.js"
    _css = STATIC / "feature-cards.css"
    _name = "feature-cards"

    left = anywidget.WidgetTrait().tag(sync=True)
    right = anywidget.WidgetTrait().tag(sync=True)
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """None while there is a kernel to ask; the static twin has a dict."""

    def __init__(self, left: FeatureCard, right: FeatureCard) -> None:
        super().__init__(left=left, right=right)
        # What is typed in one box is tried in both.
        traitlets.link((left, "text"), (right, "text"))
        traitlets.link((left, "palette"), (right, "palette"))

    def __iter__(self) -> Iterator[FeatureCard]:
        return iter((self.left, self.right))

    def wait(self, timeout: float | None = None) -> FeatureCards:
        """Wait until nothing runs behind either card, for each part at most `timeout` seconds."""
        for card in self:
            card.wait(timeout)
        return self

    def close(self) -> None:
        for card in self:
            card.close()
        super().close()

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "facts": {}} | {
            side: getattr(self, side).static_state() for side in ("left", "right")
        }

    def to_html(self, *, page: bool = True) -> str:
        state, picture = self.static_state(), self.static_picture()
        return static.html(self._name, state, picture, page=page, holds=("feature-card",))

    def static_picture(self) -> str:
        sides = "".join(
            f'<td style="vertical-align:top;text-align:left;width:50%">{card.static_picture()}</td>' for card in self
        )
        return f"<table><tr>{sides}</tr></table>"

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))
