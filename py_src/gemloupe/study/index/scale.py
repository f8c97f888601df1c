"""The steps in which activations are counted and sampled: eighths of an octave, the same for every feature."""

from __future__ import annotations

import numpy as np

OCTAVE = 8  # bins
LOWEST, HIGHEST = -8, 16  # powers of two; what lies outside is counted in the outermost bin
BINS = (HIGHEST - LOWEST) * OCTAVE
_MANTISSA = 11  # bits of it that say which bin: then the bits alone decide, the same way on every machine


def _edges() -> np.ndarray:
    exact = np.exp2(np.arange(BINS + 1) / OCTAVE + LOWEST).astype(np.float32)
    cut = 23 - _MANTISSA
    return (exact.view(np.uint32) >> cut << cut).view(np.float32)


EDGES = _edges()
"""float32 [BINS + 1]: bin b holds EDGES[b] <= value < EDGES[b + 1]."""
_FIRST_BITS = (np.arange(1 << (8 + _MANTISSA), dtype=np.uint32) << np.uint32(23 - _MANTISSA)).view(np.float32)
with np.errstate(invalid="ignore"):
    _BIN_OF = np.searchsorted(EDGES[1:-1], _FIRST_BITS, side="right").astype(np.uint8)


def bins(values: np.ndarray) -> np.ndarray:
    """Bin of every value (float32, above 0), uint8."""
    return _BIN_OF[values.view(np.uint32) >> np.uint32(23 - _MANTISSA)]


def coded(bins: np.ndarray) -> np.ndarray:
    """Values by their bins as one byte each: the bin and 1, so that 0 is left for silence."""
    return bins + np.uint8(1)


def decoded(codes: np.ndarray) -> np.ndarray:
    """What `coded` says, float32: the geometric middle of the bin, at most 4.5 % off."""
    return np.sqrt(EDGES[codes - np.uint8(1)].astype(np.float64) * EDGES[codes]).astype(np.float32)


# ---- numbers that look random and are not


def mixed(numbers: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one: a change in one bit of the input changes half of the output (splitmix64)."""
    with np.errstate(over="ignore"):
        x = numbers + np.uint64(0x9E3779B97F4A7C15)
        shifted = x >> np.uint64(30)
        x ^= shifted
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= np.right_shift(x, np.uint64(27), out=shifted)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def of_token(place: np.ndarray, seed: int) -> np.ndarray:
    """A number for each token of a text (uint64 places); the same for all features."""
    with np.errstate(over="ignore"):
        return mixed(place ^ mixed(np.array([seed], np.uint64)))


def of_firing(token: np.ndarray, feature: np.ndarray, site: str) -> np.ndarray:
    """A number for each (token, feature): `token` from `of_token`, indices of features, the site's name."""
    from zlib import crc32

    with np.errstate(over="ignore"):
        number = feature.astype(np.uint64)
        number <<= np.uint64(32)
        number += token
        number += np.uint64(crc32(site.encode()))
        return mixed(number)
