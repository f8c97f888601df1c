"""What all gemloupe widgets share: answered calls, a live comm in a busy kernel, a static twin, strict arguments."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from .. import words
from ..errors import Refusal
from ..wire.rpc import Calls, Handler
from . import static
from .origin import Origin

STATIC = Path(__file__).parent.parent / "static"
PROTOCOL = 1

_log = logging.getLogger(__name__)


def keep_subshell(comm: Any) -> None:
    """Leave a comm's messages on the shell the front end chose.

    ipykernel 7.4 sends them back to the shell that last *sent* on the comm, which is the main one if a cell did;
    the widget would then not answer until that cell ends. A private hook, so only where it exists.
    """
    if comm is not None and hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


_alive: weakref.WeakSet[LiveWidget] = weakref.WeakSet()
_watchers: list[Callable[[LiveWidget], None]] = []


def alive() -> tuple[LiveWidget, ...]:
    """The gemloupe widgets of this process that are not closed."""
    return tuple(_alive)


def _speak() -> None:
    """Every open widget in the language in use: first what the kernel says, then the words that draw it anew."""
    for widget in alive():
        spoken = words.for_browser(widget._name)
        if widget.language != spoken:
            widget.send_state()
            widget.language = spoken


words.watch(_speak)


def watch(born: Callable[[LiveWidget], None]) -> None:
    """Call `born` with every widget that is made from now on. It must not raise."""
    _watchers.append(born)


@contextmanager
def refusing_traits() -> Iterator[None]:
    """Makes a refusal raised inside also a TraitError: only for those does traitlets put the old value back."""
    try:
        yield
    except Refusal as refusal:
        kind = type(refusal)
        both = type(kind.__name__, (kind, traitlets.TraitError), {"__module__": kind.__module__})(*refusal.args)
        both.code, both.facts = refusal.code, refusal.facts
        raise both from None


class LiveWidget(anywidget.AnyWidget):
    """An anywidget whose browser half may call `methods()`, and that also exists as plain HTML."""

    protocol = traitlets.Int(PROTOCOL).tag(sync=True)
    """Version of the messages and traits; a front end of another version says so instead of misreading them."""

    language: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """What the browser half speaks, {"tag", "messages"}; None is English. See `gl.language`."""

    _name: str = ""

    origin: Origin | None = None
    """The call of a loupe that made it; None where no loupe did."""

    def __init__(self, **traits: Any) -> None:
        unknown = sorted(name for name in traits if not self.has_trait(name))
        if unknown:
            known = ", ".join(sorted(name for name in self.trait_names(sync=True) if not name.startswith("_")))
            raise TypeError(f"{type(self).__name__} has no trait {', '.join(unknown)}. It has: {known}.")
        traits.setdefault("language", words.for_browser(self._name))
        super().__init__(**traits)
        self._calls = Calls({"ping": lambda: None, **self.methods()}, lambda reply: self.send(words.here(reply)))
        self.on_msg(lambda _widget, content, _buffers: self._calls.receive(content))
        _alive.add(self)
        for born in _watchers:
            born(self)

    def methods(self) -> Mapping[str, Handler]:
        """What the browser half may call, by name."""
        return {}

    def open(self) -> None:
        super().open()
        keep_subshell(self.comm)

    def close(self) -> None:
        _alive.discard(self)
        super().close()

    @staticmethod
    def _trait_to_json(value: Any, _widget: Any) -> Any:
        return words.here(value)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """State from the browser. What is refused is answered with what holds here, so that both sides agree."""
        try:
            super().set_state(sync_data)
        except traitlets.TraitError as error:
            _log.warning("%s: the browser sent what cannot be: %s", type(self).__name__, error)
            self.send_state([name for name in sync_data if name in self.keys])

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        """The traits that the static twin shows."""
        return {
            name: getattr(self, name)
            for name in self.trait_names(sync=True)
            if not name.startswith("_") and name not in ("layout", "tabbable", "tooltip", "comm")
        }

    def static_picture(self) -> str:
        """HTML without scripts that shows the last state, for places that run none."""
        return ""

    def to_html(self, *, page: bool = True) -> str:
        """This widget as self-contained HTML that needs no kernel and no network.

        A whole page, or with `page=False` a fragment to put into one.
        """
        return static.html(self._name, words.here(self.static_state()), self.static_picture(), page=page)

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to a file."""
        path = Path(path)
        path.write_text(self.to_html(), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        # Shown where no widget can be: an exported notebook, or one reopened without its kernel.
        return {**(data or {}), "text/html": self.to_html(page=False)}, metadata or {}
