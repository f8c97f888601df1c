"""Maxima and densities that Neuronpedia measured, for SAEs that come without."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from ..errors import refuse
from ..site import Site

if TYPE_CHECKING:
    from ..engine.local import LocalEngine


def import_maxima(engine: LocalEngine, site: Site, place: str | os.PathLike[str] | None) -> int:
    """The engine uses the maxima in `place`, or those it fetches, at `site`; how many features have one."""
    from ..load.neuronpedia import fetch_maxima, read_maxima
    from ..load.sae import FeatureStats

    if engine.has_own_maxima(site):
        raise refuse("calibrate-known", site=site)
    assert engine.scope is not None
    source = engine.scope.facts(site).get("neuronpedia")
    if source is None:
        why = f"the SAE at {site} is not known to Neuronpedia"
        raise refuse("statistics-unreadable", place=place or "Neuronpedia", why=why)
    found = read_maxima(fetch_maxima(source) if place is None else place, source, engine.scope.width(site))
    # A feature whose maximum is 0 never fired there: its maximum is not known.
    maximum = np.where(found["maximum"] > 0, found["maximum"], np.nan).astype(np.float32)
    density = found["density"] if np.isfinite(found["density"]).all() else None
    engine.learn(site, FeatureStats(maximum=maximum, density=density), f"Neuronpedia's, of {source}")
    return int(np.isfinite(maximum).sum())
