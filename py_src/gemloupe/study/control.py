"""Is it the feature? The same push in a direction that means nothing, and the same feature pushed the other way."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..edits import Edit, add_vector, scale
from ..engine.protocol import Engine
from ..errors import refuse


def control_edits(engine: Engine, edit: Edit, seed: int = 0) -> tuple[Edit, Edit]:
    """(random, flipped): controls for `edit`, with the same `where`, `when` and `specials`.

    `random` adds a vector of a random direction, the same one for the same seed, as long as what the edit adds: for
    `add` and `add_vector` exactly; for `clamp` as long as where the feature is off; for `scale` and `ablate` as long as
    at the feature's mean activation. `flipped` is the edit with its sign turned: `scale(k)` becomes `scale(2 - k)`, so
    that what was taken away is added. Refused ('control-unknown') where that length is not known, or is 0.
    """
    if edit.vector is not None:
        direction, coefficient = edit.vector, edit.strength
    else:
        assert edit.feature is not None
        direction, facts = engine.direction(edit.feature), engine.facts((edit.feature,))[0]
        sized = facts.maximum if edit.kind in ("add", "clamp") else facts.mean_active
        if sized is None and edit.strength != 0:
            why = "the feature's largest or mean activation is not known"
            raise refuse("control-unknown", edit=edit, why=why)
        factor = {"scale": edit.strength - 1, "ablate": -1.0}.get(edit.kind, edit.strength)
        coefficient = factor * (sized or 0.0)
    length = abs(coefficient) * float(np.linalg.norm(direction))
    if not length > 0:
        raise refuse("control-unknown", edit=edit, why="the edit adds nothing")
    drawn = np.random.default_rng(seed).standard_normal(len(direction))
    options: dict[str, Any] = {"where": edit.where, "when": edit.when, "specials": edit.specials}
    random = add_vector(edit.site, drawn / np.linalg.norm(drawn), length, **options)
    if edit.kind in ("scale", "ablate"):
        assert edit.feature is not None
        return random, scale(edit.feature, 2.0 if edit.kind == "ablate" else 2.0 - edit.strength, **options)
    return random, edit.with_strength(-edit.strength)
