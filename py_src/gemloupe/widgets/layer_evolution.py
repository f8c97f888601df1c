"""LayerEvolution: a text from layer to layer, for one token or one concept. The other half is
js/widgets/layer-evolution.ts."""

from __future__ import annotations

import html
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from ..engine.protocol import FeatureFacts
from ..errors import Refusal, refuse
from ..evolution import Attribution, Evolution, Grid, TokenColumn
from ..feature import FeatureId
from ..label import Label
from ..site import Site
from ..trace import Trace
from ..wire.rpc import Handler
from ..words import here, say
from .colour import PALETTES
from .evolution_wire import shown_features, wire_attribution, wire_evolution, wire_guesses
from .latest import Latest, Task
from .live import STATIC, LiveWidget, refusing_traits
from .selection import Selection, read_selection
from .trace_view import wire_facts, wire_token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FactsOf = Callable[[tuple[FeatureId, ...]], tuple[FeatureFacts, ...]]
NamesOf = Callable[[Iterable[FeatureId]], Mapping[FeatureId, Label]]
Attribute = Callable[..., Attribution]
Card = Callable[[FeatureId], Any]
More = Callable[[Callable[[Any], Any]], Evolution]

_log = logging.getLogger(__name__)

VIEWS = ("layers", "grid")
_NAMED, _AT_ONCE = 4000, 200  # features that get a name, and how many are looked up before the next look at a stop
_KEPT = 256  # tokens whose features a notebook's saved output keeps
# Seconds from the call that a cell waits for names and guesses, to have them in what it saves, and from the picture.
_PATIENCE, _LEAST = 1.0, 0.3


class LayerEvolution(LiveWidget):
    """A text from layer to layer: at a token, the strongest features of every site, joined where they are the same.

    `w.selected` is the token shown and the feature followed, and may be set: `w.selected = " Paris"`,
    `w.selected = "res.12/834"`. `w.evolution` holds the values, `w.attribute(" Paris")` shows only what leads to a
    next token (`None` shows all again), `w.found` is what that found; `w.open_card("res.12/834")` opens a card below;
    `w.figure()` is what is shown as a plotly figure.
    """

    _esm = STATIC / "layer-evolution.js"
    _css = STATIC / "layer-evolution.css"
    _name = "layer-evolution"

    about = traitlets.Dict().tag(sync=True)
    """Model, scope, device, dtype and a note: the quiet line under the picture."""
    tokens = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The tokens, as `trace_view.wire_token` writes them."""
    layers: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """All columns, as `evolution_wire.wire_evolution` writes them: scrubbing asks the kernel nothing."""
    guesses: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """What the model would say after each layer, and the notes, as `evolution_wire.wire_guesses` writes them: at first
    at one token, where the others take a moment longer."""
    guessing = traitlets.Bool(False).tag(sync=True)
    """Whether guesses are still to come."""
    names = traitlets.Dict().tag(sync=True)
    """What features are about, [text, whether someone gave it], by name; they arrive a moment after the picture."""
    selection: traitlets.Dict[str, Any] = traitlets.Dict({"token": None, "feature": None}).tag(sync=True)
    """The token shown and the feature followed, as plain data; `selected` is the same with names."""
    view = traitlets.Enum(VIEWS, "layers").tag(sync=True)
    """'layers' for one token, or 'grid' for layers by tokens."""
    attribution: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """What leads to a target, as `evolution_wire.wire_attribution` writes it; None while all is shown."""
    card = anywidget.WidgetTrait().tag(sync=True)
    """The FeatureCard that is open under the picture; None without."""
    palette = traitlets.Enum(tuple(PALETTES), "blue").tag(sync=True)
    """Colour of the residual stream's features; the other bands take the palettes left."""
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """Facts of features by name: only in the static twin, where no kernel can be asked."""

    def __init__(
        self,
        evolution: Evolution,
        *,
        token: int | str | None = None,
        selected: Any = None,
        facts_of: FactsOf | None = None,
        names_of: NamesOf | None = None,
        attribute: Attribute | None = None,
        card_of: Card | None = None,
        more: More | None = None,
        begun: float | None = None,
        **traits: Any,
    ) -> None:
        """`token` (position, negative from the end, or text) is shown first, by default the last ordinary one.

        `more(started)` makes the same evolution with the guesses it lacks, and tells `started` of its job; `begun` is
        when the picture was asked for, on the monotonic clock.
        """
        self._evolution = evolution
        self._facts_of, self._names_of, self._attribute, self._card_of = facts_of, names_of, attribute, card_of
        self._found: Attribution | None = None
        self._lock = threading.RLock()
        self._naming = Latest("gemloupe-evolution-names")
        self._guessing = Latest("gemloupe-evolution-guesses")
        self._begun = time.monotonic() if begun is None else begun
        self._late, self._drawn = time.monotonic() - self._begun > _PATIENCE / 2, threading.Event()
        trace = evolution.trace
        first = read_selection(selected, trace)
        position = first.position if token is None else trace.positions(token)[-1]
        if position is None:
            ordinary = [i for i, one in enumerate(trace.tokens) if not one.special]
            position = ordinary[-1] if ordinary else len(trace) - 1
        super().__init__(
            about={key: trace.about.get(key) for key in ("model", "scope", "device", "dtype")} | {"note": ""},
            tokens=[wire_token(one) for one in trace.tokens],
            layers=wire_evolution(evolution),
            guesses=wire_guesses(evolution),
            selection={
                "token": position if position >= 0 else None,
                "feature": None if first.feature is None else str(first.feature),
            },
            **traits,
        )
        if more is not None:
            self.guessing = True
            self._guessing.submit(Task(partial(self._guess_all, more)))
        if names_of is not None:
            self._naming.submit(Task(self._name_all))

    @property
    def evolution(self) -> Evolution:
        """What is shown, as values; waits for the guesses that are still to come."""
        self._drawn.set()
        self._guessing.wait()
        return self._evolution

    @property
    def trace(self) -> Trace:
        """The text, with all activations."""
        return self._evolution.trace

    def close(self) -> None:
        self._naming.cancel()
        self._guessing.cancel()
        self._drawn.set()
        if self.card is not None:
            self.card.close()
        super().close()

    # ---- what follows the picture

    def _guess_all(self, more: More, task: Task) -> None:
        """The guesses at the other tokens, while the picture is already there."""
        if self._late:  # they would not come in time for what the cell saves, and hold up the picture
            self._drawn.wait(_PATIENCE)
        try:
            found = more(task.follow)
            self._evolution = found
            if not task.cancelled:
                self.guesses = wire_guesses(found)
        except Refusal as stopped:  # closed meanwhile: the picture stays, without them
            _log.info("guesses: %s", stopped)
        finally:
            if not task.cancelled:
                self.guessing = False

    def _name_all(self, task: Task) -> None:
        """Looks names up while the picture is already there; those of the token shown come first."""
        assert self._names_of is not None
        column = self._column()
        here = [] if column is None else [block.feature for site in column.sites for block in site.blocks]
        asked = shown_features(self._evolution, _NAMED, here)
        named: dict[str, Any] = {}
        for start in range(0, len(asked), _AT_ONCE):
            if task.cancelled:
                return
            try:
                found = self._names_of(asked[start : start + _AT_ONCE])
            except Refusal as refusal:  # a loupe that was closed: the picture stays, without names
                _log.info("names of features: %s", refusal)
                break
            named |= {str(name): [label.shown, label.source != "automatic"] for name, label in found.items()}
            if start == 0 and named:
                self.names = dict(named)
        if not task.cancelled:
            self.names = named

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all names and guesses are there; whether that was in time."""
        self._drawn.set()
        end = None if timeout is None else time.monotonic() + timeout
        return self._guessing.wait(timeout) and self._naming.wait(None if end is None else end - time.monotonic())

    # ---- selection

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> dict[str, Any]:
        with refusing_traits():
            found = read_selection(proposal["value"], self.trace)
        return {"token": found.position, "feature": found.feature and str(found.feature)}

    @property
    def selected(self) -> Selection:
        """The token shown and the feature followed. Set it to a position, a token's text, a feature, or a pair."""
        return read_selection(self.selection, self.trace)

    @selected.setter
    def selected(self, given: Any) -> None:
        found = read_selection(given, self.trace)
        token = self.selection["token"] if found.position is None and found.feature is not None else found.position
        self.selection = {"token": token, "feature": found.feature and str(found.feature)}

    def _column(self) -> TokenColumn | None:
        position = self.selection.get("token")
        return None if position is None else self._evolution.columns[position]

    # ---- what leads to a target

    @property
    def found(self) -> Attribution | None:
        """The attribution that is shown; None while all features are."""
        return self._found

    def attribute(self, target: FeatureId | str | int | None, *, token: int | str | None = None) -> Attribution | None:
        """Show only what leads to a target, a next token's text or id, or a feature; None shows everything again.

        `token` is the one after which the next is predicted, or where the feature fires: by default the one shown.
        Refuses what `loupe.attribution` refuses.
        """
        if target is None:
            self._found = self.attribution = None
            return None
        if self._attribute is None:
            raise refuse("evolution-needs-loupe")
        trace = self.trace
        position = self.selection["token"] if token is None else trace.positions(token)[-1]
        ids = tuple(one.id for one in trace.tokens)
        found = self._attribute(ids, target, token=position)
        with self._lock:
            self._found = found
            self.attribution = wire_attribution(found, trace)
        return found

    def _asked(self, target: str | int | None, position: int) -> None:
        self.attribute(target, token=position)

    def check(self, which: Any = 5) -> Attribution | None:
        """Take sources of the attribution shown out, one at a time, and show what that changed: the so many strongest,
        or a feature, an edge, or several, as in `Attribution.check`."""
        before = self._found
        if before is None:
            return None
        found = before.check(which)
        with self._lock:
            if self._found is before:  # another target may have been chosen meanwhile
                self._found = found
                self.attribution = wire_attribution(found, self.trace)
        return found

    # ---- one concept in all layers

    def grid(self, what: FeatureId | str, kind: str = "res") -> Grid:
        """A feature with its matches in all layers, or a measure of whole layers: as `Evolution.grid`."""
        return self.evolution.grid(what, kind)

    def _concept(self, feature: str) -> dict[str, Any]:
        """A feature with its matches, and for each a row of [position, value] pairs, only where it is on."""
        grid = self._evolution.strengths(self._evolution.trail(feature))
        on = [np.flatnonzero(np.nan_to_num(row) > 0) for row in grid.values]
        rows = [
            [[int(i), round(float(row[i]), 4)] for i in at.tolist()] for row, at in zip(grid.values, on, strict=True)
        ]
        return {"measure": grid.measure, "features": [str(one) for one in grid.features or ()], "rows": rows}

    def figure(self) -> Figure:
        """What is shown, as a plotly figure: the attribution where there is one, the layers, or the grid."""
        feature, position = self.selection["feature"], self.selection["token"]
        if self.view == "grid":
            return self.evolution.grid("l0" if feature is None else feature).figure(self._short_names())
        if self._found is not None:
            return self._found.figure(self._short_names())
        return self.evolution.figure(-1 if position is None else position, self._short_names())

    def _short_names(self) -> dict[FeatureId, str]:
        return {FeatureId.of(name): text.split(" · ")[0] for name, (text, _) in self.names.items()}

    # ---- the card below

    def open_card(self, feature: FeatureId | str) -> Any:
        """Open a `FeatureCard` under the picture, with this text marked in it; returns it."""
        if self._card_of is None:
            raise refuse("evolution-needs-loupe")
        made = self._card_of(FeatureId.of(feature))
        before, self.card = self.card, made
        if before is not None:
            before.close()
        return made

    def close_card(self) -> None:
        """Close the card under the picture."""
        before, self.card = self.card, None
        if before is not None:
            before.close()

    def _open_card(self, feature: str) -> None:
        self.open_card(feature)

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        return {
            "facts": self._facts,
            "attribution": self._asked,
            "check": self._check,
            "concept": self._concept,
            "card": self._open_card,
            "uncard": self.close_card,
        }

    def _check(self, n: int, feature: str | None = None, position: int | None = None) -> None:
        """The n strongest, or the one edge that begins with `feature` at `position`."""
        if feature is None or self._found is None:
            self.check(n)
            return
        source = FeatureId.of(feature)
        self.check([e for e in self._found.edges if (e.source, e.position) == (source, position)] or source)

    def _facts(self, site: str, features: Iterable[int]) -> dict[str, Any]:
        """Facts by feature index."""
        names = tuple(FeatureId(Site.of(site), index) for index in features)
        if self._facts_of is None:
            return {}
        return {str(facts.feature.index): wire_facts(facts) for facts in self._facts_of(names)}

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        # A cell shows its picture when this is done, and they come on their own; the file a user saves waits for them.
        if self._brief:
            patience = max(self._begun + _PATIENCE - time.monotonic(), _LEAST)
            (self._naming if self._late else self).wait(patience)
        else:
            self.wait(30)
        return super().static_state() | {"card": None, "facts": self._static_facts()}

    def _static_facts(self) -> dict[str, Any]:
        column = self._column()
        if column is None or self._facts_of is None:
            return {}
        shown = tuple(block.feature for site in column.sites for block in site.blocks)
        try:
            return {str(facts.feature): wire_facts(facts) for facts in self._facts_of(shown)}
        except Refusal:  # the loupe is closed: the picture stays, without facts
            return {}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._brief = True
        try:
            return super()._repr_mimebundle_(**kwargs)
        finally:
            self._brief = False
            self._drawn.set()

    _brief = False

    def to_html(self, *, page: bool = True) -> str:
        """This widget as self-contained HTML that needs no kernel and no network.

        A whole page, or with `page=False` a fragment to put into one. What a notebook saves by itself keeps of a long
        text only the features of 256 tokens around the one shown.
        """
        if not (self._brief and len(self.tokens) > _KEPT):
            return super().to_html(page=page)
        from . import static

        start = min(max((self.selection["token"] or 0) - _KEPT // 2, 0), len(self.tokens) - _KEPT)
        state = self.static_state() | {"layers": wire_evolution(self._evolution, range(start, start + _KEPT))}
        return static.html(self._name, state, self.static_picture(), page=page)

    def static_picture(self) -> str:
        """A table: per layer its strongest feature of each kind, and what the model would say there."""
        column = self._column()
        if column is None:
            return ""
        trace = self.trace
        kinds = list(dict.fromkeys(site.kind for site in sorted(trace.sites, key=lambda s: _ORDER.index(s.kind))))
        said = {guess.layer: guess for guess in column.guesses}
        layers = sorted({site.site.layer for site in column.sites} | set(said))
        rows = []
        for layer in layers:
            cells = [str(layer)]
            for kind in kinds:
                at = next((s for s in column.sites if s.site == Site(kind, layer)), None)
                block = at.blocks[0] if at is not None and at.blocks else None
                number = "" if block is None else f" {_number(block.strength)}"
                cells.append(
                    here(say("not open")) if at is None else "–" if block is None else f"{block.feature}{number}"
                )
            guess = said.get(layer)
            cells.append("" if guess is None or not guess.tokens else f"{guess.tokens[0][1]!r}")
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        head = "".join(
            f"<th style='text-align:left'>{html.escape(name)}</th>"
            for name in here([say("layer"), *kinds, say("the model's guess")])
        )
        token = trace.tokens[column.position].text
        title = html.escape(here(say("token {position}: {token}", position=column.position, token=repr(token))))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<div>{title}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        columns = self._evolution.columns
        position = self.selection["token"]
        return f"LayerEvolution of {len(columns)} tokens, {len(self.trace.sites)} sites, at {position}"


_ORDER = ("res", "att", "mlp", "transcoder")


def _number(strength: float | None) -> str:
    return "?" if strength is None or math.isnan(strength) else f"{strength:.2f}"
