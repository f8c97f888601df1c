"""The kernel end of the sidebar: finds loupes or opens one, makes their views, and says what cell makes the same.

The other half is js/lab. The browser registers the comm target by running `register()` in the kernel; each browser
that connects then calls the methods below and hears events. Views belong to the kernel, so that a page that is
loaded again finds them as they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .edits import clamp
from .errors import refuse
from .feature import FeatureId
from .loupe import Loupe, running
from .widgets.live import LiveWidget, alive, keep_subshell, watch
from .widgets.trace_view import TraceView
from .wire.rpc import Calls
from .words import follow, here, say

TARGET = "gemloupe.lab"
PROTOCOL = 1
# What can be shown, in the order of the buttons; a loupe that has no such method offers none.
METHODS = ("heatmap", "table", "steer", "evolution", "search", "card")

_log = logging.getLogger(__name__)


class _GivenUp(Exception):
    """Raised inside an opening that the user cancelled."""


@dataclass
class View:
    """One widget that the sidebar made: what was asked of which loupe."""

    widget: LiveWidget
    loupe: Loupe
    method: str
    given: str

    def wire(self) -> dict[str, Any]:
        return {"id": self.widget.model_id, "method": self.method, "given": self.given, "loupe": self.loupe.number}


class Lab:
    """What the sidebars of one kernel share. `opener` is `gl.open`."""

    def __init__(self, opener: Callable[..., Loupe] | None = None) -> None:
        self._opener = opener
        self._ends: dict[Any, Callable[[dict[str, Any]], None]] = {}
        self._views: dict[str, View] = {}
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="gemloupe-lab")
        self._opening: dict[str, Any] | None = None
        self._given_up = threading.Event()
        self._sharing = threading.local()
        for widget in alive():
            self._follow(widget)
        watch(self._follow)

    # ---- connections

    def connect(self, comm: Any, _message: Any = None) -> None:
        """A browser opened the comm."""
        keep_subshell(comm)
        calls = Calls(self.methods(), lambda data: comm.send(data=here(data)), self._threads)
        comm.on_msg(lambda message: calls.receive(message["content"]["data"]))
        comm.on_close(lambda _message: self._ends.pop(comm, None))
        self._ends[comm] = lambda data: comm.send(data=here(data))

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """What the browser may call, by name."""
        return {
            "ping": lambda: None,
            "state": self.state,
            "language": follow,
            "plan": self.plan,
            "open": self.open,
            "give_up": self.give_up,
            "view": self.view,
            "close": self.close,
            "code": self.code,
            "html": self.html,
            "stop": self.stop,
            "widgets": self.widgets,
        }

    def tell(self, event: str, **facts: Any) -> None:
        """Say something to every sidebar that is connected."""
        for comm, send in list(self._ends.items()):
            try:
                send({"kind": "event", "event": event, **facts})
            except Exception:  # that browser is gone; the others must hear it
                _log.debug("a sidebar could not be told %s", event, exc_info=True)
                self._ends.pop(comm, None)

    # ---- what there is

    def state(self) -> dict[str, Any]:
        """Loupes, views and the opening that goes on."""
        from . import __version__

        with self._lock:
            views = [view.wire() for view in self._views.values()]
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "loupes": [_wire_loupe(loupe) for loupe in running()],
            "views": views,
            "opening": self._opening,
        }

    def widgets(self) -> list[dict[str, Any]]:
        """Every widget of gemloupe in this kernel, those of notebooks too."""
        mine = self._views
        return [
            {"id": widget.model_id, "method": type(widget).__name__, "mine": widget.model_id in mine}
            for widget in alive()
            if widget.model_id is not None
        ]

    # ---- opening a model

    def plan(self, model: str | None = None) -> list[list[str]]:
        """What opening `model` will cost, as rows of two texts."""
        from .loupe import plan

        found = plan(model)
        return [[what, much] for what, much in found.rows()] + [[say("note"), note] for note in found.notes]

    def open(self, model: str | None = None) -> None:
        """Open `model` (None: the built-in one) on a thread of its own; events 'opening' say how it goes."""
        with self._lock:
            if self._opening is not None:
                raise refuse("opening-already", model=self._opening["model"] or "the built-in model")
            self._given_up = threading.Event()
            self._opening = {"model": model, "what": "", "share": None}
        threading.Thread(target=self._open, args=(model, self._given_up), name="gemloupe-open", daemon=True).start()

    def give_up(self) -> None:
        """Cancel the opening that goes on: it ends at its next report, and at the latest when the model is there."""
        self._given_up.set()

    def _open(self, model: str | None, given_up: threading.Event) -> None:
        def report(what: str, share: float | None = None, *_: Any) -> None:
            if given_up.is_set():
                raise _GivenUp
            self._opening = {"model": model, "what": what, "share": share}
            self.tell("opening", **self._opening)

        end: dict[str, Any] = {"state": "opened"}
        try:
            report("")
            opener = self._opener or _default_opener
            loupe = opener(model, progress=report)
            if given_up.is_set():
                loupe.close()
                raise _GivenUp
            _kept.append(loupe)
            end["loupe"] = loupe.number
        except _GivenUp:
            end = {"state": "cancelled"}
        except Exception as error:  # the sidebar must hear of it whatever it is
            _log.info("opening %r failed", model, exc_info=True)
            end = {"state": "failed", "error": str(error) or type(error).__name__}
        finally:
            self._opening = None
        self.tell("opened", model=model, **end)

    # ---- views

    def view(self, loupe: int, method: str, given: str = "", prompt: str = "") -> dict[str, Any]:
        """Make a view: `method` of a loupe on `given` (a text, words, or a feature). Returns it as `View.wire`.

        A feature given to 'steer' goes to the desk that is open for this loupe, else to a new one on `prompt`.
        """
        one = next((open for open in running() if open.number == loupe), None)
        if one is None:
            raise refuse("loupe-gone", number=loupe)
        if method not in METHODS or not hasattr(one, method):
            raise refuse("view-unknown", given=method, known=", ".join(m for m in METHODS if hasattr(one, m)))
        if method == "steer" and _is_feature(given):
            edit = clamp(given, 1.0)
            desk = next((v for v in self._views.values() if v.method == "steer" and v.loupe is one), None)
            if desk is not None:
                widget: Any = desk.widget
                if edit.feature not in [known.feature for known in widget.edits]:
                    widget.edits = (*widget.edits, edit)
                return desk.wire()
            made: Any = one.steer(prompt, [edit])
            given = prompt
        else:
            made = getattr(one, method)(given)
        view = View(made, one, method, given)
        with self._lock:
            self._views[made.model_id] = view
        self.tell("views")
        return view.wire()

    def _view(self, ident: str) -> View:
        view = self._views.get(ident)
        if view is None:
            raise refuse("view-gone")
        return view

    def close(self, id: str) -> None:
        """Close a view that the sidebar made."""
        with self._lock:
            view = self._views.pop(id, None)
        if view is not None:
            view.widget.close()
            self.tell("views")

    def stop(self) -> None:
        """Stop what runs in the sidebar's views."""
        for view in list(self._views.values()):
            stop = getattr(view.widget, "stop", None)
            if callable(stop):
                stop()

    def code(self, id: str) -> str:
        """The cell that makes the view again as it stands, with the digests of model and SAEs it was made with."""
        return code_of(self._view(id))

    def html(self, id: str) -> str:
        """A widget of this kernel, the sidebar's or a notebook's, as a self-contained page."""
        for widget in alive():
            if widget.model_id == id:
                return widget.to_html()
        raise refuse("view-gone")

    # ---- the selection is one

    def _follow(self, widget: LiveWidget) -> None:
        if isinstance(widget, TraceView):
            widget.observe(self._selected, "selection")

    def _selected(self, change: Any) -> None:
        widget = change["owner"]
        if getattr(self._sharing, "on", False):
            return
        self._sharing.on = True
        try:
            for other in self._partners(widget):
                try:
                    other.selection = dict(change["new"])
                except (ValueError, KeyError, IndexError):  # a site that is not open there: it stays as it was
                    _log.debug("a selection could not be shared", exc_info=True)
        finally:
            self._sharing.on = False
        self._say_selection(widget)
        for other in self._partners(widget):
            self._say_selection(other)

    def _say_selection(self, widget: TraceView) -> None:
        if widget.model_id in self._views:
            self.tell("selection", id=widget.model_id, **widget.selection)

    def _partners(self, widget: TraceView) -> list[TraceView]:
        """Views of the same text by the same loupe: of a sidebar's view all, of a notebook's the sidebar's."""
        mine = widget.model_id in self._views
        return [
            other
            for other in alive()
            if isinstance(other, TraceView)
            and other is not widget
            and (mine or other.model_id in self._views)
            and _source(other) is not None
            and _source(other) is _source(widget)
            and [token.id for token in other.trace.tokens] == [token.id for token in widget.trace.tokens]
        ]


_kept: list[Loupe] = []  # those that the sidebar opened: no variable of the user holds them
_lab: Lab | None = None


def register() -> None:
    """Listen for sidebars in this kernel. Called again, it changes nothing."""
    global _lab
    from comm import get_comm_manager

    if _lab is None:
        _lab = Lab()
    get_comm_manager().register_target(TARGET, _lab.connect)


def opened(model: str | None = None, *, made_with: Mapping[str, str] | None = None, **options: Any) -> Loupe:
    """The loupe of this kernel that `gl.open` made with these arguments, or a new one if there is none.

    `made_with` holds digests as `digests` gives them; where model or SAEs are others, a warning says so.
    """
    wanted = {"model": model, **options}
    found = next((loupe for loupe in reversed(running()) if dict(loupe.opened_with) == wanted), None)
    if found is None:
        found = _default_opener(model, **options)
        _kept.append(found)
    here = digests(found)
    for what, digest in (made_with or {}).items():
        if here.get(what) not in (None, digest):
            warnings.warn(
                f"This cell was made with other {what}: {digest} there, {here[what]} here.", UserWarning, stacklevel=2
            )
    return found


def digests(loupe: Loupe) -> dict[str, str]:
    """Short digests of a loupe's model and of all its SAEs together: {'model', 'SAEs'}; what has none is left out."""
    about = loupe.about.about or {}
    found = {}
    if about.get("model_digest"):
        found["model"] = str(about["model_digest"])[:12]
    if about.get("sae_digests"):
        text = json.dumps({str(site): digest for site, digest in about["sae_digests"].items()}, sort_keys=True)
        found["SAEs"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return found


def code_of(view: View) -> str:
    """The cell that makes a view again."""
    if view.method == "steer":
        desk: Any = view.widget
        return desk.code()
    options: dict[str, Any] = {}
    widget = view.widget
    if isinstance(widget, TraceView):
        if widget.site:
            options["site"] = widget.site
        chosen = widget.selection
        if chosen.get("token") is not None or chosen.get("feature") is not None:
            options["selected"] = (chosen.get("token"), chosen.get("feature"))
        if widget.palette != "blue":
            options["palette"] = widget.palette
    given = str(getattr(widget, "feature", view.given)) if view.method == "card" else view.given
    arguments = ", ".join([repr(given), *(f"{name}={value!r}" for name, value in options.items())])
    opening = {name: value for name, value in view.loupe.opened_with.items() if value is not None}
    if not all(isinstance(value, (str, int, float, bool)) for value in opening.values()):
        raise refuse("cell-not-possible", given=", ".join(opening))
    opening["made_with"] = digests(view.loupe)
    how = ", ".join(f"{name}={value!r}" for name, value in opening.items())
    lines = ["from gemloupe.lab import opened", "", f"loupe = opened({how})", f"loupe.{view.method}({arguments})"]
    return "\n".join(lines)


def _default_opener(model: str | None, **options: Any) -> Loupe:
    from .loupe import open

    return open(model, **options)


def _wire_loupe(loupe: Loupe) -> dict[str, Any]:
    about = loupe.about
    return {
        "number": loupe.number,
        "model": about.model,
        "device": about.device,
        "sites": len(about.widths),
        "methods": [method for method in METHODS if hasattr(loupe, method)],
    }


def _source(view: TraceView) -> Any:
    """The loupe that made a view; None for one made of a trace alone."""
    return getattr(view._facts_of, "__self__", None)


def _is_feature(given: str) -> bool:
    try:
        FeatureId.of(given)
    except (ValueError, TypeError):
        return False
    return True
