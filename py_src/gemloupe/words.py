"""The language of what is read in widgets and the sidebar: English, or Chinese.

English is the key, as in gettext: code says what it shows with `say`, and a text that knows its message is put into
the chosen language where it leaves for the browser (`here`). Python's own output stays English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .errors import refuse

# What may be asked for, and the folder of its messages; English has none.
_LOCALES = {"en": None, "zh": "zh_CN"}
_TAGS = {"en": "en", "zh": "zh-CN"}
_WIDE = {"; ": "；"}  # what stands between sentences there
_PLACE = re.compile(r"\{(\w+)\}")

_chosen: str | None = None  # by the user
_hosts = "en"  # that of the JupyterLab that shows us
_watchers: list[Callable[[], None]] = []


class Said(str):
    """English text that knows the message and values it was made of."""

    message: str
    values: Mapping[str, str]
    parts: tuple[str, ...] | None = None
    """Of several texts in a row; `message` is then what stands between them."""


def say(message: str, /, **values: Any) -> str:
    """A text for the user's eyes: `message` with each {name} replaced by a value, which may be such a text itself."""
    return _said(message, message, values)


def counted(one: str, many: str, n: int, /, **values: Any) -> str:
    """`say` for a number of things: `one` where n is 1, `many` elsewhere; {n} is the number."""
    return _said(one, one if n == 1 else many, {"n": n, **values})


def _said(message: str, english: str, values: Mapping[str, Any]) -> Said:
    # as texts, so that no value is kept alive, or changes, with what was said of it
    kept = {name: value if isinstance(value, str) else str(value) for name, value in values.items()}
    text = Said(_fill(english, kept))
    text.message, text.values = message, kept
    return text


def joined(between: str, parts: Iterable[str]) -> str:
    """`between.join(parts)`, which can be put into another language part by part."""
    parts = tuple(parts)
    text = Said(between.join(parts))
    text.message, text.values, text.parts = between, {}, parts
    return text


def here(value: Any) -> Any:
    """`value` with every text in it that `say` made in the language in use, in lists and dicts at any depth."""
    return value if current() == "en" else _put(value, messages(current()))


def _put(value: Any, into: Mapping[str, list[str]]) -> Any:
    if isinstance(value, Said):
        if value.parts is not None:
            return _WIDE.get(value.message, value.message).join(_put(part, into) for part in value.parts)
        found = into.get(value.message)
        values = {name: _put(part, into) for name, part in value.values.items()}
        return _fill(found[0] if found else value.message, values)
    if isinstance(value, dict):
        return {key: _put(part, into) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_put(part, into) for part in value]
    return value


def _fill(message: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), message)


@cache
def messages(name: str) -> Mapping[str, list[str]]:
    """The messages of a language in gettext's JSON form: English text to its forms. JupyterLab reads the same file."""
    locale = _LOCALES[name]
    if locale is None:
        return {}
    path = Path(__file__).parent / "locale" / locale / "LC_MESSAGES" / "gemloupe.json"
    return {key: forms for key, forms in json.loads(path.read_text(encoding="utf-8")).items() if key}


def for_browser(widget: str) -> dict[str, Any] | None:
    """What the widget of this name needs to speak the language in use; None is English."""
    name = current()
    if name == "en":
        return None
    known, shown = messages(name), _shown_by(widget)
    return {
        "tag": _TAGS[name],
        "messages": {one: known[one] for one in (known if shown is None else shown) if one in known},
    }


@cache
def _shown_by(widget: str) -> tuple[str, ...] | None:
    """The messages of a widget, as js/build.mjs lists them; None without that list."""
    path = Path(__file__).parent / "static" / f"{widget}.messages.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def tag() -> str:
    """The language in use as `lang` attributes have it."""
    return _TAGS[current()]


def current() -> str:
    return _chosen or _hosts


def language(name: str | None = None) -> str:
    """Choose the language of widgets, 'en' or 'zh'; those that are open change too. Returns the one in use.

    Until it is chosen here, widgets speak the language of the JupyterLab that shows them, as far as it is one of the
    two. Refused: 'language-unknown'.
    """
    global _chosen
    if name is not None:
        known = _known(name)
        if known is None:
            raise refuse("language-unknown", given=name, known=", ".join(map(repr, _LOCALES)))
        _chosen = known
        _changed()
    return current()


def follow(tag: str) -> None:
    """Speak the language of the host, as 'zh-CN'; English if it is none of ours. What the user chose stays."""
    global _hosts
    _hosts = _known(tag) or "en"
    _changed()


def _known(name: Any) -> str | None:
    first = re.split(r"[-_]", name.strip().lower())[0] if isinstance(name, str) else ""
    return first if first in _LOCALES else None


def watch(changed: Callable[[], None]) -> None:
    """Call `changed` whenever the language may be another one."""
    _watchers.append(changed)


def _changed() -> None:
    for changed in _watchers:
        changed()
