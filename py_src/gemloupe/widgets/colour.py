"""How strongly a token is coloured. The other half is js/core/colour.ts; tests/wire/colour.json holds both to it."""

from __future__ import annotations

import numpy as np

# The bubbles' full colour on a light page, as r, g, b: light enough that text on it need not be recoloured.
PALETTES = {
    "blue": (77, 148, 255),
    "orange": (255, 145, 48),
    "purple": (176, 130, 246),
    "grey": (146, 152, 160),
}


def opacity(strength: np.ndarray) -> np.ndarray:
    """0 where a feature is off, else 0.05 to 1, nearly logarithmic: the same scale for every feature and row.

    Opacity 0.05 + 0.95 log10(1 + 9 r) with r the strength, from 0 to 1, as Neuronpedia draws it.
    """
    r = np.clip(np.nan_to_num(np.asarray(strength, np.float64), nan=0.0), 0, 1)
    return np.where(r > 0, 0.05 + 0.95 * np.log10(1 + 9 * r), 0.0)
