"""From what a user names to the scope it is: a folder, SAEs of Gemma Scope, or those a model comes with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import Refusal, refuse
from ..site import Site, in_words
from .builtin import BUILTIN_ID
from .catalog import Catalog, Entry, catalog, knows, named
from .scope import Scope

if TYPE_CHECKING:
    from .builtin import Progress
    from .gemma_scope import GemmaScope

BUILTIN_SCOPE = Path(__file__).parents[1] / "scopes" / BUILTIN_ID
# Only what could be a name of the catalogue is looked up in it: reading the registry takes half a second.
_CATALOGUED = re.compile(r"(https?://(www\.)?neuronpedia\.org/|gemma-)")
_ONE_SITE = re.compile(r"[a-z]+\.\d+")


def find_scope(
    model: str | os.PathLike[str] | None,
    scope: Any = None,
    *,
    sites: Any = None,
    layers: Any = None,
    width: Any = None,
    l0: Any = None,
    progress: Progress | None = None,
) -> Scope | GemmaScope | None:
    """The scope for `model` (as given to `gl.open`), before the model itself is looked for; None for no SAEs.

    `scope` None is the one the model comes with: the built-in's own, Gemma Scope's for a name it knows, none for a
    folder. False is none at all. `sites`, `layers`, `width`, `l0` narrow it, as in `Catalog.filter`.
    """
    narrowed = {"sites": sites, "layers": layers, "width": width, "l0": l0}
    asked = any(value is not None for value in narrowed.values())
    if scope is False:
        return None
    if scope is None:
        if model is None:
            return _narrow(Scope.open(BUILTIN_SCOPE), **narrowed)
        own = isinstance(model, str) and not Path(model).expanduser().is_dir()
        if not (own and knows(model)):
            if asked:
                catalog(str(model))  # refuses, naming the nearest model there is one for
            return None
    elif isinstance(scope, (str, os.PathLike)):
        known = isinstance(scope, str) and _CATALOGUED.match(scope)
        if not known or (named(str(scope)) is None and Path(scope).exists()):
            return _narrow(_open(scope, sites), **narrowed)
    elif isinstance(scope, Scope):
        return _narrow(scope, **narrowed)
    elif not isinstance(scope, (Catalog, Entry)):
        entries = tuple(scope) if isinstance(scope, Iterable) else ()
        if not entries or not all(isinstance(entry, Entry) for entry in entries):
            raise refuse("scope-unreadable", type=type(scope).__name__)
        scope = entries
    from .gemma_scope import gemma_scope

    return gemma_scope(_name(model), scope, **narrowed, progress=progress)


def _open(place: str | os.PathLike[str], sites: Any) -> Scope:
    """The SAEs at `place`; `sites`, if it is one site, says where a lone SAE reads that does not say so itself."""
    try:
        return Scope.open(place)
    except Refusal as refusal:
        named = (sites,) if isinstance(sites, (str, Site)) else tuple(sites or ())
        if refusal.code != "scope-site-unknown" or len(named) != 1 or not _ONE_SITE.fullmatch(str(named[0])):
            raise
        return Scope.open(place, site=named[0])


def _name(model: Any) -> str | None:
    """The model's name, if that can be known without opening it."""
    if model is None:
        return BUILTIN_ID
    return None if not isinstance(model, str) or Path(model).expanduser().is_dir() else model


def _narrow(scope: Scope, sites: Any, layers: Any, width: Any, l0: Any) -> Scope:
    """The SAEs of a folder at `sites` (kinds or sites) and `layers`."""
    if width is not None or l0 is not None:
        raise refuse("scope-without-choice", scope=scope.id, given=f"width={width!r}" if l0 is None else f"l0={l0!r}")
    if sites is None and layers is None:
        return scope
    kinds = None if sites is None else {str(one) for one in ((sites,) if isinstance(sites, (str, Site)) else sites)}
    numbers = None if layers is None else set(layers if isinstance(layers, Iterable) else (layers,))
    left = {
        site: scope._entries[site]
        for site in scope.sites
        if (kinds is None or kinds & {site.kind, str(site)}) and (numbers is None or site.layer in numbers)
    }
    if not left:
        asked = ", ".join(str(one) for one in (sites, layers) if one is not None)
        raise refuse("site-not-open", site=asked, open=in_words(scope.sites))
    return replace(scope, _entries=MappingProxyType(left))
