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
from .errors import Refusal, refuse
from .feature import FeatureId
from .loupe import Loupe, running
from .trace import Trace
from .widgets.feature_card import FeatureCard
from .widgets.latest import Task
from .widgets.layer_evolution import LayerEvolution
from .widgets.live import LiveWidget, alive, keep_subshell, watch
from .widgets.origin import lines_of, lines_of_desk, literal
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


@dataclass(frozen=True)
class View:
    """A widget that sidebars show: one they made, or, where not `own`, one of a notebook."""

    widget: LiveWidget
    own: bool = True

    @property
    def loupe(self) -> Loupe | None:
        return None if self.widget.origin is None else self.widget.origin.loupe

    @property
    def method(self) -> str:
        """The loupe's method, or the widget's own name where no loupe made it."""
        return self.widget._name if self.widget.origin is None else self.widget.origin.method

    def wire(self) -> dict[str, Any]:
        widget: Any = self.widget
        match self.method:
            case "steer":
                given = widget.prompt
            case "card":
                given = str(widget.feature)
            case _:
                given = "" if widget.origin is None else widget.origin.said
        return {
            "id": widget.model_id,
            "method": self.method,
            "given": given,
            "loupe": None if self.loupe is None else self.loupe.number,
            "own": self.own,
            "feature": _feature_of(widget),
        }


class Lab:
    """What the sidebars of one kernel share. `opener` is `gl.open`."""

    def __init__(self, opener: Callable[..., Loupe] | None = None) -> None:
        self._opener = opener
        self._ends: dict[Any, Callable[[dict[str, Any]], None]] = {}
        self._views: dict[str, View] = {}
        self._making: set[Task] = set()
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
            "close_loupe": self.close_loupe,
            "view": self.view,
            "look": self.look,
            "adopt": self.adopt,
            "close": self.close,
            "code": self.code,
            "html": self.html,
            "stop": self.stop,
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

        here = set(alive())
        with self._lock:
            self._views = {ident: view for ident, view in self._views.items() if view.widget in here}
            views = [view.wire() for view in self._views.values()]
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "loupes": [_wire_loupe(loupe) for loupe in running()],
            "views": views,
            "opening": self._opening,
        }

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
        with self._lock:
            self._given_up.set()
            if self._opening is None:
                return
            self._opening = now = {**self._opening, "cancelling": True}
        self.tell("opening", **now)

    def close_loupe(self, number: int) -> None:
        """Close a loupe that a sidebar opened, and free its memory. Its views close too."""
        loupe = self._loupe(number)
        if loupe not in _kept:
            raise refuse("loupe-of-notebook", number=number)
        for ident, view in list(self._views.items()):
            if view.loupe is loupe:
                self.close(ident)
        _kept.remove(loupe)
        loupe.close()
        self.tell("views")

    def _open(self, model: str | None, given_up: threading.Event) -> None:
        def report(what: str, share: float | None = None, *_: Any) -> None:
            with self._lock:
                if given_up.is_set():
                    raise _GivenUp
                self._opening = now = {"model": model, "what": what, "share": share}
            self.tell("opening", **now)

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
            with self._lock:
                self._opening = None
        self.tell("opened", model=model, **end)

    # ---- views

    def _loupe(self, number: int) -> Loupe:
        one = next((open for open in running() if open.number == number), None)
        if one is None:
            raise refuse("loupe-gone", number=number)
        return one

    def view(self, loupe: int, method: str, given: str = "", prompt: str = "") -> dict[str, Any]:
        """Make a view: `method` of a loupe on `given` (a text, words, or a feature). Returns it as `View.wire`.

        A feature given to 'steer' goes to the desk that is open for this loupe, else to a new one on `prompt`. `stop`
        ends it while the model reads: it is then refused as 'cancelled'.
        """
        from .engine.job import followed

        one = self._loupe(loupe)
        if method not in METHODS or not hasattr(one, method):
            raise refuse("view-unknown", given=method, known=", ".join(m for m in METHODS if hasattr(one, m)))
        if method == "steer" and _is_feature(given):
            edit = clamp(given, 1.0)
            desks = [v for v in self._views.values() if v.method == "steer" and v.loupe is one]
            if desks:
                widget: Any = desks[-1].widget
                if edit.feature not in [known.feature for known in widget.edits]:
                    widget.edits = (*widget.edits, edit)
                return desks[-1].wire()
            made: Any = one.steer(prompt, [edit])
        else:
            task = Task(lambda _task: None)
            self._making.add(task)
            try:
                with followed(task.follow):
                    made = one.card(given, text=prompt or None) if method == "card" else getattr(one, method)(given)
            finally:
                self._making.discard(task)
        return self._show(View(made))

    def look(self, id: str) -> dict[str, Any]:
        """What is known of a widget of this kernel, a sidebar's or a notebook's, as `View.wire`."""
        return self._views[id].wire() if id in self._views else View(self._widget(id), own=False).wire()

    def adopt(self, id: str) -> dict[str, Any]:
        """Show a widget of a notebook among the sidebar's views, too. Returns it as `View.wire`."""
        return self._views[id].wire() if id in self._views else self._show(View(self._widget(id), own=False))

    def _show(self, view: View) -> dict[str, Any]:
        with self._lock:
            self._views[view.widget.model_id] = view
        self.tell("views")
        return view.wire()

    def _widget(self, ident: str) -> LiveWidget:
        """A widget of this kernel, a sidebar's or a notebook's."""
        found = next((widget for widget in alive() if widget.model_id == ident), None)
        if found is None:
            raise refuse("view-gone")
        return found

    def close(self, id: str) -> None:
        """Take a view away from the sidebars. A widget that a notebook made goes on there."""
        with self._lock:
            view = self._views.pop(id, None)
        if view is None:
            return
        if view.own:
            view.widget.close()
        self.tell("views")

    def stop(self) -> None:
        """Stop what runs for the sidebars: what is being read, and what their views do."""
        for task in list(self._making):
            task.cancel()
        for view in list(self._views.values()):
            stop = getattr(view.widget, "stop", None)
            if callable(stop):
                stop()

    def code(self, id: str) -> str:
        """The cell that makes the view again as it stands, with the digests of model and SAEs it was made with."""
        return code_of(self._widget(id))

    def html(self, id: str) -> str:
        """A widget of this kernel, the sidebar's or a notebook's, as a self-contained page."""
        return self._widget(id).to_html()

    # ---- the selection is one

    def _follow(self, widget: LiveWidget) -> None:
        if widget.has_trait("selection"):
            widget.observe(self._selected, "selection")
        elif widget.has_trait("shown"):  # a card turns to another feature
            widget.observe(lambda change: self._say_selection(change["owner"]), "shown")

    def _selected(self, change: Any) -> None:
        widget = change["owner"]
        if getattr(self._sharing, "on", False):
            return
        partners = self._partners(widget)
        self._sharing.on = True
        try:
            for other in partners:
                chosen = dict(change["new"])
                if chosen["token"] is None and not isinstance(other, TraceView):
                    chosen["token"] = other.selection["token"]  # a layer picture always shows a token
                try:
                    other.selection = chosen
                except (ValueError, KeyError, IndexError):  # a site that is not open there: it stays as it was
                    _log.debug("a selection could not be shared", exc_info=True)
        finally:
            self._sharing.on = False
        for one in (widget, *partners):
            self._say_selection(one)

    def _say_selection(self, widget: Any) -> None:
        if widget.model_id in self._views:
            self.tell("selection", id=widget.model_id, feature=_feature_of(widget))

    def _partners(self, widget: Any) -> list[Any]:
        """Views of the same text by the same loupe: of a sidebar's view all, of a notebook's the sidebar's."""
        trace, mine = _trace_of(widget), widget.model_id in self._views
        if trace is None or widget.origin is None:
            return []
        ids = [token.id for token in trace.tokens]
        found = []
        for other in alive():
            if other is widget or other.origin is None or not (mine or other.model_id in self._views):
                continue
            theirs = _trace_of(other)
            if theirs is None or other.origin.loupe is not widget.origin.loupe:
                continue
            if [token.id for token in theirs.tokens] == ids:
                found.append(other)
        return found


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
    wanted = _as_written({"model": model, **options})
    found = next((one for one in reversed(running()) if _as_written(one.opened_with) == wanted), None)
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


def code_of(widget: LiveWidget) -> str:
    """The cell that makes a widget again."""
    origin = widget.origin
    if origin is None:
        raise refuse("cell-no-loupe")
    opening = {name: value for name, value in origin.loupe.opened_with.items() if value is not None}
    start = "from gemloupe.lab import opened"
    if origin.method == "steer":
        desk: Any = widget
        options = {"controls": True} if desk.controls else {}
        options |= {} if desk.follow == "restart" else {"follow": desk.follow}
        options |= {} if desk.palette == "blue" else {"palette": desk.palette}
        then = lines_of_desk(desk)
        options |= {"run": False} if "desk.run()" in then else {}
        code = desk.preset.code(f"opened({literal(opening)})", options)
        code = code.replace("import gemloupe as gl\n", f"import gemloupe as gl\n{start}\n", 1)
        return "\n".join([*code.removesuffix("\ndesk").split("\n"), *then, "desk"])
    made_with = digests(origin.loupe)
    how = literal(opening | ({"made_with": made_with} if made_with else {}))
    return "\n".join([start, "", f"loupe = opened({how})", *lines_of(widget)])


def _as_written(opening: Mapping[str, Any]) -> str | None:
    """The arguments of an opening as a cell writes them: equal where they open the same."""
    if not opening:
        return None  # another way than `gl.open` made it
    try:
        return literal({name: opening[name] for name in sorted(opening) if opening[name] is not None})
    except Refusal:
        return repr(opening)


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
        "mine": loupe in _kept,
        "methods": [method for method in METHODS if hasattr(loupe, method)],
    }


def _trace_of(widget: Any) -> Trace | None:
    """The text that a widget shows, token by token; None for those that show none."""
    return widget.trace if isinstance(widget, (TraceView, LayerEvolution)) else None


def _feature_of(widget: Any) -> str | None:
    """The feature that is chosen in a widget."""
    if isinstance(widget, FeatureCard):
        return str(widget.feature)
    return widget.selection.get("feature") if widget.has_trait("selection") else None


def _is_feature(given: str) -> bool:
    try:
        FeatureId.of(given)
    except (ValueError, TypeError):
        return False
    return True
