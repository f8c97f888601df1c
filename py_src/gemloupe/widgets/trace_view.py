"""What the views of one trace share: its tokens and activations as traits, the site shown, and the selection."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from ..engine.protocol import FeatureFacts
from ..errors import Refusal, refuse
from ..feature import FeatureId
from ..fidelity import Fidelity
from ..site import Site
from ..trace import Token, Trace
from ..wire import arrays
from ..wire.rpc import Handler
from ..words import here, joined, say
from .colour import PALETTES, opacity
from .live import LiveWidget, refusing_traits
from .selection import Selection, read_selection

if TYPE_CHECKING:
    from .feature_card import FeatureCard

FactsOf = Callable[[tuple[FeatureId, ...]], tuple[FeatureFacts, ...]]

_FEATURE = re.compile(r"[a-z]+\.[0-9]+/[0-9]+")
_LIGHTS = {"green": say("green"), "amber": say("amber"), "red": say("red"), "unknown": say("unknown")}
# Features per token whose facts the static twin carries: more than fit a screen, few enough for a small file.
_STATIC_FACTS = 12


def wire_token(token: Token) -> dict[str, Any]:
    """A token as the browser gets it."""
    wire: dict[str, Any] = {
        "id": token.id,
        "text": token.text,
        "start": token.start,
        "end": token.end,
        "special": token.special,
    }
    return wire | {"bytes": token.bytes.hex()} if token.partial else wire


def wire_facts(facts: FeatureFacts) -> dict[str, Any]:
    """One feature's facts as the browser gets them."""
    named = {"label": facts.label} if facts.label else {}
    return named | {
        "density": facts.density,
        "maximum": facts.maximum,
        "mean": facts.mean_active,
        "promotes": [[text, _rounded(logit)] for text, logit in facts.promotes],
        "suppresses": [[text, _rounded(logit)] for text, logit in facts.suppresses],
    }


def wire_fidelity(one: Fidelity) -> dict[str, Any]:
    """A site's fidelity as the browser gets it."""
    return {
        "site": str(one.site),
        "light": one.light,
        "reason": one.reason,
        "tokens": one.tokens,
        "l0": round(one.l0, 2),
        "declaredL0": one.declared_l0,
        "fvu": None if one.fvu is None else round(one.fvu, 4),
    }


def _rounded(logit: float) -> float | None:
    return round(logit, 3) if math.isfinite(logit) else None  # JSON has no nan


class TraceView(LiveWidget):
    """A view of one trace. Only the activations of the site shown cross to the browser; other sites on request."""

    about = traitlets.Dict().tag(sync=True)
    """Model, scope, device, dtype and a note: the quiet line under the picture."""
    tokens = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The tokens, as `wire_token` writes them."""
    sites = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Open sites in the order of the forward pass."""
    site = traitlets.Unicode("").tag(sync=True)
    """The site shown, for example 'res.12'; empty if none is open."""
    acts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """Activations of `site`, as `wire.arrays.sparse` writes them."""
    maxima = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """Largest known activation of each feature that is on in this text."""
    selection: traitlets.Dict[str, Any] = traitlets.Dict({"token": None, "feature": None}).tag(sync=True)
    """The selection as plain data; `selected` is the same with names."""
    palette = traitlets.Enum(tuple(PALETTES), "blue").tag(sync=True)
    """Colour of the bubbles; all choices are safe for colour-blind readers."""
    fidelity: traitlets.Dict[str, Any] = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """How well the SAE of `site` fits this text, as `wire_fidelity` writes it; None until it was measured."""
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """Facts of features by index: only in the static twin, where no kernel can be asked."""

    _card_of: Callable[..., FeatureCard] | None = None
    """What opens a card, where a loupe made this view."""

    def __init__(
        self,
        trace: Trace,
        facts_of: FactsOf | None = None,
        *,
        site: Site | str | None = None,
        selected: Any = None,
        **traits: Any,
    ) -> None:
        self.trace = trace
        self._facts_of = facts_of
        first = read_selection(selected, trace)
        if site is not None:
            site = self._open_site(site)
        if first.feature is not None:
            site = first.feature.site  # a feature is shown at its own site, whatever else was asked for
        elif site is None:
            site = shown_first(trace.sites)
        shown = "" if site is None else str(site)
        super().__init__(
            about={key: trace.about.get(key) for key in ("model", "scope", "device", "dtype")} | {"note": ""},
            tokens=[wire_token(token) for token in trace.tokens],
            sites=[str(one) for one in trace.sites],
            site=shown,
            **self._of_site(shown),
            selection={"token": first.position, "feature": first.feature and str(first.feature)},
            **traits,
        )

    # ---- site

    def _open_site(self, given: Site | str) -> Site:
        site = Site.of(given)
        if site not in self.trace.acts:
            raise refuse("site-not-open", site=site, open=", ".join(map(str, self.trace.sites)) or "none")
        return site

    def _of_site(self, shown: str) -> dict[str, Any]:
        if not shown:
            return {"acts": None, "maxima": None, "fidelity": None}
        site = Site.of(shown)
        acts = self.trace.acts[site]
        known = self.trace.fidelity.known.get(site)
        return {
            "acts": arrays.sparse(acts),
            "maxima": arrays.maxima(acts, self.trace.maxima[site]),
            "fidelity": None if known is None else wire_fidelity(known),
        }

    @traitlets.validate("site")
    def _check_site(self, proposal: Any) -> str:
        with refusing_traits():
            return str(self._open_site(proposal["value"])) if proposal["value"] else ""

    @traitlets.observe("site")
    def _site_changed(self, change: Any) -> None:
        with self.hold_sync():
            for name, value in self._of_site(change["new"]).items():
                setattr(self, name, value)
            feature = self.selection.get("feature")
            if feature is not None and str(FeatureId.of(feature).site) != change["new"]:
                self.selection = {**self.selection, "feature": None}

    # ---- selection

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> dict[str, Any]:
        with refusing_traits():
            found = read_selection(proposal["value"], self.trace)
        return {"token": found.position, "feature": found.feature and str(found.feature)}

    @traitlets.observe("selection")
    def _selection_changed(self, _change: Any) -> None:
        feature = self.selection.get("feature")
        if feature is not None:
            self.site = str(FeatureId.of(feature).site)

    @property
    def selected(self) -> Selection:
        """The selected token and feature. Set it to a position, a token's text, a feature, a pair, or None."""
        return read_selection(self.selection, self.trace)

    @selected.setter
    def selected(self, given: Any) -> None:
        found = read_selection(given, self.trace)
        self.selection = {"token": found.position, "feature": found.feature and str(found.feature)}

    def card(self, feature: FeatureId | str | None = None) -> FeatureCard:
        """The card of a feature, by default of the selected one, with this text marked in it."""
        chosen = self.selected.feature if feature is None else FeatureId.of(feature)
        if chosen is None:
            raise refuse("card-of-nothing")
        if self._card_of is None:
            raise refuse("card-needs-loupe", feature=str(chosen))
        return self._card_of(chosen, text=self.trace)

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        return {"facts": self._facts, "site": self._show_site, "fidelity": self._measure}

    def _measure(self, site: str) -> None:
        """A site's fidelity, into the trait if it is still shown. Costs a pass of the model, up to that site."""
        found = self.trace.fidelity[self._open_site(site)]
        if self.site == site:
            self.fidelity = wire_fidelity(found)

    def _facts(self, site: str, features: Iterable[int]) -> dict[str, Any]:
        """Facts by feature index."""
        names = tuple(FeatureId(self._open_site(site), index) for index in features)
        if self._facts_of is None:
            return {str(name.index): wire_facts(FeatureFacts(name)) for name in names}
        return {str(facts.feature.index): wire_facts(facts) for facts in self._facts_of(names)}

    def _show_site(self, site: str) -> None:
        self.site = str(self._open_site(site))

    # ---- the static twin

    def strengths(self) -> np.ndarray:
        """Strength by which each token is coloured now, float32 [token]: the selected feature's, else the strongest's.

        Where a maximum is unknown the largest value in this text stands in for it.
        """
        strengths = np.zeros(len(self.trace), np.float32)
        if not self.site:
            return strengths
        site = Site.of(self.site)
        acts = self.trace.acts[site]
        known = self.trace.maxima[site].copy()
        here = np.zeros_like(known)
        np.maximum.at(here, acts.indices, acts.values)
        unknown = ~(known > 0)
        known[unknown] = here[unknown]
        feature = self.selected.feature
        if feature is not None:
            return acts.column(feature.index) / (known[feature.index] or 1.0)
        np.maximum.at(strengths, acts.rows, acts.values / known[acts.indices])
        return strengths

    def static_state(self) -> dict[str, Any]:
        state = super().static_state()
        if self.site:
            site = Site.of(self.site)
            acts, chosen = self.trace.acts[site], set()
            with np.errstate(divide="ignore", invalid="ignore"):
                strength = np.nan_to_num(acts.values / self.trace.maxima[site][acts.indices])
            for token in range(len(self.trace)):
                part = slice(int(acts.indptr[token]), int(acts.indptr[token + 1]))
                chosen.update(acts.indices[part][np.argsort(-strength[part])[:_STATIC_FACTS]].tolist())
            try:
                state["facts"] = self._facts(self.site, sorted(chosen)) if chosen else {}
            except Refusal:  # the loupe is closed, or the trace came from a file: the picture stays, without facts
                state["facts"] = {}
        return state

    def static_picture(self) -> str:
        red, green, blue = PALETTES[self.palette]
        shade = opacity(self.strengths())
        spans = []
        for token, alpha, strength in zip(self.trace.tokens, shade, self.strengths(), strict=True):
            text = token.text if token.text else "".join(f"⟨{byte:02X}⟩" for byte in token.bytes)
            colour = f"background-color:rgba({red}, {green}, {blue}, {0 if token.special else alpha:.3f});"
            style = f"{colour}border-radius:8px;padding:1px 3px;margin:1px;white-space:pre-wrap;unicode-bidi:isolate"
            spans.append(f'<span style="{style}" title="{strength:.2f}">{html.escape(text)}</span>')
        parts = [
            self.selection.get("feature") or say("strongest feature on each token"),
            self.site or say("no site open"),
        ]
        if self.fidelity is not None:
            light = _LIGHTS.get(self.fidelity["light"], self.fidelity["light"])
            parts.append(say("fidelity {light}: {reason}", light=light, reason=self.fidelity["reason"]))
        line = f'<div style="opacity:.7;font-size:85%">{html.escape(here(joined(" · ", parts)))}</div>'
        return f'<div dir="auto" style="line-height:2">{"".join(spans)}</div>{line}'


def shown_first(sites: tuple[Site, ...], site: Any = None, selected: Any = None) -> Site | None:
    """The site a view shows first: the one asked for, the selected feature's, or the one two thirds up the stream."""
    for one in selected if isinstance(selected, (tuple, list)) else (selected,):
        if isinstance(one, FeatureId) or (isinstance(one, str) and _FEATURE.fullmatch(one)):
            found = FeatureId.of(one).site
            return found if found in sites else None
    if site is not None:
        found = Site.of(site)
        return found if found in sites else None
    stream = [site for site in sites if site.kind == "res"] or list(sites)
    return stream[len(stream) * 2 // 3] if stream else None  # there, features are most about meaning
