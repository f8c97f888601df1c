"""Where a widget comes from: the call of a loupe that made it, and the lines of a cell that make it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import refuse
from ..evolution import Evolution
from ..feature import FeatureId
from ..site import Site
from ..trace import Token, Trace


@dataclass(frozen=True, eq=False)
class Origin:
    """The loupe, its method, and what that was given."""

    loupe: Any
    method: str
    given: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What was looked at, in one line."""
        found = self.given[0] if self.given else next((o for o in self.options.values() if o is not None), "")
        if isinstance(found, Evolution):
            found = found.trace
        if isinstance(found, Trace):
            return found.text
        if isinstance(found, (list, tuple)) and found and isinstance(found[-1], Mapping):
            return str(found[-1].get("content", ""))
        return str(found)


def lines_of(widget: Any) -> list[str]:
    """The lines that make a widget again from `loupe`, with what is chosen in it. The last one shows it."""
    origin: Origin = widget.origin
    given, options = list(origin.given), dict(origin.options)
    then: list[str] = []
    match origin.method:
        case "heatmap" | "table":
            options |= _chosen(widget) | ({"site": widget.site} if widget.site else {}) | _palette(widget)
        case "evolution":
            chosen = widget.selection
            options |= {"token": chosen["token"], "selected": chosen["feature"], "view": widget.view}
            options = {name: one for name, one in (options | _palette(widget)).items() if one not in (None, "layers")}
            if widget.found is not None:
                found = widget.found
                target = found.target.text if isinstance(found.target, Token) else str(found.target)
                then.append(f"view.attribute({target!r}, token={found.position})")
                out = [i for i, edge in enumerate(found.edges) if edge.measured is not None]
                if out == [*range(len(out))]:
                    then += [f"view.check({len(out)})"] if out else []
                else:
                    then.append(f"view.check([view.found.edges[i] for i in {out}])")
        case "card":
            given[0] = str(widget.feature)
            options |= {"text": widget.text or None, "context": widget.context} | _palette(widget)
            options = {name: one for name, one in options.items() if name == "context" or one is not None}
            if options["context"] == 10:
                del options["context"]
        case "cards":
            given = [str(card.feature) for card in widget]
            options["text"] = widget.left.text or None
            options = {name: one for name, one in options.items() if name == "context" or one is not None}
        case "search" | "contrast":
            if widget.kind in ("text", "contrast"):
                options |= {"relative": widget.relative, "dense": options.get("dense") or widget.dense}
            options = {name: one for name, one in options.items() if (name, one) not in _PLAIN}
            then += [f"view.palette = {widget.palette!r}"] if widget.palette != "blue" else []
            then += [] if widget.selected is None else [f"view.selected = {str(widget.selected)!r}"]
    method = "card" if origin.method == "cards" else origin.method
    written = [_written(one, "the text") for one in given]
    written += [f"{name}={_written(one, name)}" for name, one in options.items()]
    made = f"loupe.{method}({', '.join(written)})"
    return [f"view = {made}", *then, "view"] if then else [made]


def lines_of_desk(desk: Any) -> list[str]:
    """The lines that, after the one that makes a steering desk, show in it what is shown: a chat's answers of either
    side, the colour chosen, the dose strip."""
    then = []
    if any(turn["default"] != turn["steered"] for turn in desk.turns):
        then += [f"desk.turns = {desk.turns!r}", "desk.run()"]
    first = next((edit.feature for edit in desk.edits if edit.feature is not None), None)
    if desk.coloured != first:
        then.append(f"desk.coloured = {None if desk.coloured is None else str(desk.coloured)!r}")
    row = next((row for row in desk.rows if desk.dose is not None and row["key"] == desk.dose["key"]), None)
    if row is not None and (row["feature"] or row is desk.rows[0]):
        then += ["desk.wait()", f"desk.sweep({row['feature'] or None!r})"]
    return then


_PLAIN = [("relative", True), ("dense", False), ("by", "max")]


def _chosen(widget: Any) -> dict[str, Any]:
    token, feature = widget.selection.get("token"), widget.selection.get("feature")
    if token is None and feature is None:
        return {}
    return {"selected": (token, feature)}


def _palette(widget: Any) -> dict[str, Any]:
    return {} if widget.palette == "blue" else {"palette": widget.palette}


def _written(given: Any, what: str) -> str:
    """A value as Python writes it. What was read already is read again from its token ids, which are exact."""
    if isinstance(given, Evolution):
        return repr([token.id for token in given.trace.tokens])
    if isinstance(given, Trace):
        guesses = max((len(one or ()) for one in given.guesses or ()), default=0)
        also = f", guesses={guesses}" if guesses else ""
        return f"loupe.read({[token.id for token in given.tokens]!r}{also})"
    return repr(_plain(given, what))


def _plain(given: Any, what: str) -> Any:
    if given is None or isinstance(given, (str, int, float, bool, range)):
        return given
    if isinstance(given, (Site, FeatureId)):
        return str(given)
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if hasattr(given, "tolist"):
        return given.tolist()
    if isinstance(given, Mapping):
        return {str(name): _plain(one, what) for name, one in given.items()}
    if isinstance(given, (list, tuple)):
        return [_plain(one, what) for one in given]
    raise refuse("cell-not-possible", given=what)


def literal(options: Mapping[str, Any]) -> str:
    """Arguments as a cell writes them. Refused is what has no name there: 'cell-not-possible'."""
    return ", ".join(f"{name}={_written(one, name)}" for name, one in options.items())
