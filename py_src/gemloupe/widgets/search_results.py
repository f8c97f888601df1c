"""SearchResults: the features a search found, as a table. The other half is js/widgets/search-results.ts."""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from ..edits import Edit, ablate, clamp
from ..errors import refuse
from ..feature import FeatureId
from ..study.search import Hit, Hits
from ..wire.rpc import Handler
from ..words import here, say
from .colour import PALETTES
from .live import STATIC, LiveWidget, refusing_traits

if TYPE_CHECKING:
    import pandas

    from .feature_card import FeatureCard
    from .steering_desk import SteeringDesk

Steer = Callable[[Any, Edit], "SteeringDesk"]


class SearchResults(LiveWidget):
    """What a search found, best first. Iterate it for `Hit`s; `to_dataframe()` has them as a table.

    `results.selected` is the feature chosen, and may be set; `results.rank(relative=False)` ranks by raw activation,
    `results.rank(dense=True)` shows features that fire everywhere; `results.steer(feature)` opens a `SteeringDesk`
    under the table and returns it.
    """

    _esm = STATIC / "search-results.js"
    _css = STATIC / "search-results.css"
    _name = "search-results"

    about = traitlets.Dict().tag(sync=True)
    """Model, scope, device, dtype and a note: the quiet line under the table."""
    kind = traitlets.Unicode("").tag(sync=True)
    """What was searched by: 'words', 'text', 'contrast' or 'neighbours'."""
    query = traitlets.Unicode("").tag(sync=True)
    """The words, or the text; of a contrast both."""
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The hits, as `wire_hit` writes them."""
    relative = traitlets.Bool(True).tag(sync=True)
    """Whether features are ranked in units of their own maximum, rather than by raw activation."""
    dense = traitlets.Bool(False).tag(sync=True)
    """Whether features that fire everywhere are shown."""
    hidden = traitlets.Int(0).tag(sync=True)
    """How many dense features were left out."""
    complete = traitlets.Bool(True).tag(sync=True)
    """False where a word is so common that a sample of its features was ranked."""
    notes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """What the user should know of this search."""
    selection: traitlets.Dict[str, Any] = traitlets.Dict({"feature": None}).tag(sync=True)
    """The feature chosen, as plain data; `selected` is the same with names."""
    desk = anywidget.WidgetTrait().tag(sync=True)
    """The SteeringDesk or FeatureCard that is open under the table; None without."""
    palette = traitlets.Enum(tuple(PALETTES), "blue").tag(sync=True)
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """None while there is a kernel to ask; the static twin has a dict."""

    def __init__(
        self,
        hits: Hits,
        *,
        about: Mapping[str, Any] | None = None,
        steer: Steer | None = None,
        card: Callable[..., FeatureCard] | None = None,
        **traits: Any,
    ) -> None:
        self._hits, self._steer, self._card_of = hits, steer, card
        self._lock = threading.Lock()
        described = {key: (about or {}).get(key) for key in ("model", "scope", "device", "dtype")}
        super().__init__(
            about=described | {"note": ""}, kind=hits.kind, query=hits.query, **self._shown(hits), **traits
        )

    @staticmethod
    def _shown(hits: Hits) -> dict[str, Any]:
        return {
            "rows": [wire_hit(hit) for hit in hits],
            "relative": hits.relative,
            "dense": hits.dense,
            "hidden": hits.hidden,
            "complete": hits.complete,
            "notes": list(hits.notes),
        }

    # ---- what was found

    @property
    def hits(self) -> Hits:
        """What was found, as plain values."""
        return self._hits

    @property
    def features(self) -> tuple[FeatureId, ...]:
        """The features found, best first."""
        return tuple(hit.feature for hit in self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __len__(self) -> int:
        return len(self._hits)

    def __getitem__(self, place: int) -> Hit:
        return self._hits.hits[place]

    def to_dataframe(self) -> pandas.DataFrame:
        """A row per feature, best first, with the numbers of this kind of search."""
        return self._hits.to_dataframe()

    def rank(self, *, relative: bool | None = None, dense: bool | None = None) -> SearchResults:
        """The same search ranked by strength (`relative`) or raw activation, with dense features or without."""
        again = self._hits.again
        if again is not None:
            now = self._hits
            found = again(
                now.relative if relative is None else bool(relative), now.dense if dense is None else bool(dense)
            )
            with self._lock, self.hold_sync():
                self._hits = found
                for name, value in self._shown(found).items():
                    setattr(self, name, value)
        return self

    # ---- selection

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> dict[str, Any]:
        given = proposal["value"]
        with refusing_traits():
            feature = given.get("feature") if isinstance(given, Mapping) else given
            return {"feature": None if feature is None else str(FeatureId.of(feature))}

    @property
    def selected(self) -> FeatureId | None:
        """The feature chosen. Set it to a feature, its name, or None."""
        feature = self.selection["feature"]
        return None if feature is None else FeatureId.of(feature)

    @selected.setter
    def selected(self, given: FeatureId | str | None) -> None:
        self.selection = {"feature": None if given is None else str(FeatureId.of(given))}

    def card(self, feature: FeatureId | str | None = None) -> FeatureCard:
        """The card of a feature, by default of the selected one, with the text searched by marked in it."""
        chosen = self.selected if feature is None else FeatureId.of(feature)
        if chosen is None:
            raise refuse("card-of-nothing")
        if self._card_of is None:
            raise refuse("card-needs-loupe", feature=str(chosen))
        text = next(iter(self._hits.prompts), None)
        return self._card_of(chosen, text=text if isinstance(text, str) else None)

    # ---- steering

    def steer(self, feature: FeatureId | str) -> SteeringDesk:
        """A `SteeringDesk` with this feature under the table; the one that was there is closed.

        The prompt is the text searched by. Of a contrast it is the text that lacks the feature, and the edit gives it
        what it has in the other: clamped to its strength there; a feature that both have is clamped to side b's.
        """
        name = FeatureId.of(feature)
        if self._steer is None:
            raise refuse("needs-loupe")
        prompt, edit = self.edit(name)
        desk = self._steer(prompt, edit)
        before, self.desk = self.desk, desk
        if before is not None:
            before.close()
        return desk

    def edit(self, feature: FeatureId | str) -> tuple[Any, Edit]:
        """(prompt, edit) that `steer` begins with."""
        name = FeatureId.of(feature)
        hit = next((hit for hit in self._hits if hit.feature == name), None)
        prompts = self._hits.prompts
        if hit is None or hit.group == "":
            return (prompts[0] if prompts else ""), clamp(name, 1.0)
        towards = hit.a[0] if hit.group == "only a" else hit.b[0]
        prompt = prompts[1] if hit.group == "only a" else prompts[0]
        if not math.isfinite(towards):
            return prompts[0 if hit.group == "only a" else 1], ablate(name)
        return prompt, clamp(name, round(towards, 2))

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        return {
            "rank": self._rank,
            "steer": self._open_desk,
            "card": self._open_card,
            "unsteer": self._close_desk,
        }

    def _rank(self, relative: bool, dense: bool) -> None:
        self.rank(relative=relative, dense=dense)

    def _open_desk(self, feature: str) -> None:
        self.steer(feature)

    def _open_card(self, feature: str) -> None:
        before, self.desk = self.desk, self.card(feature)
        if before is not None:
            before.close()

    def _close_desk(self) -> None:
        before, self.desk = self.desk, None
        if before is not None:
            before.close()

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        return super().static_state() | {"desk": None, "facts": {}}

    def static_picture(self) -> str:
        head, body = _table(self._hits)
        cells = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in here(head))
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
        said = f"{self.kind}: {self.query}"
        return f"<div>{html.escape(said)}</div><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"

    def __repr__(self) -> str:
        head, body = _table(self._hits)
        rows = [head, *body[:20]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        more = [f"… {len(body) - 20} more"] if len(body) > 20 else []
        return "\n".join([f"SearchResults by {self.kind}: {len(self)} features", *lines, *more])


def _table(hits: Hits) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(head, rows) of what is printed."""
    numbers = {
        "words": (),
        "text": (say("strength"), say("raw"), say("at token")),
        "contrast": (say("group"), "a", "b"),
        "neighbours": (say("cosine"),),
    }[hits.kind]

    def cells(hit: Hit) -> tuple[str, ...]:
        every = {
            "strength": _said(hit.strength),
            "raw": f"{hit.raw:.4g}",
            "at token": repr(hit.token),
            "group": hit.group,
            "a": _said(hit.a[0]),
            "b": _said(hit.b[0]),
            "cosine": _said(hit.cosine),
        }
        label = "" if hit.label is None else hit.label.text
        source = "" if hit.label is None else hit.label.source
        return (str(hit.feature), *(every[name] for name in numbers), label, source)

    return (say("feature"), *numbers, say("label"), say("from")), [cells(hit) for hit in hits]


def _said(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:.2f}"


def wire_hit(hit: Hit) -> dict[str, Any]:
    """A hit as the browser gets it; null is not known."""
    label = hit.label
    return {
        "feature": str(hit.feature),
        "label": "" if label is None else label.shown,
        "source": "" if label is None else label.source,
        "by": "" if label is None else label.shown_by,
        "score": None if label is None else label.score,
        "strength": _known(hit.strength),
        "raw": _known(hit.raw),
        "density": hit.density,
        "token": hit.token,
        "position": hit.position,
        "group": hit.group,
        "a": [_known(one) for one in hit.a],
        "b": [_known(one) for one in hit.b],
        "words": list(hit.words),
        "cosine": _known(hit.cosine),
    }


def _known(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None
