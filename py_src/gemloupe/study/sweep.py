"""One edit at several strengths: what the text becomes, and from where on it works or breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..edits import Edit, clamp, edits_of
from ..engine.protocol import CompareRequest, Engine, GenerateRequest, Generation
from ..errors import refuse
from ..feature import FeatureId
from ..trace import Token

J = TypeVar("J")

# Fine near nothing, then up to where text breaks.
STRENGTHS = (-2.0, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
BANDS = ("none", "works", "breaks")
# Divergence per token, in nats, below which the predictions are nearly the same.
FAINT = 0.02
# Surprise per token, in nats, beyond the default text's own, from which a text no longer holds together. On the
# built-in model fluent text in another language lies up to 2.2 above, the word salad of too much strength from 2.6 on.
LOST = 2.5
# Share of four-token sequences that have occurred before, beyond what the default text itself repeats.
REPEATS = 0.35


@dataclass(frozen=True, eq=False)
class Dose:
    """One strength. `diverges`: index of the first new token that differs from the default's, None if none does.
    `kl`: mean KL(steered || default) in nats over the default's own tokens: how far the predictions were moved, which
    may be far although the text is good. `surprise`: the text's mean -log probability per token under the default, in
    nats: text that has come apart surprises the model that wrote it. `repetition`: share of four-token sequences that
    occurred before, 0 to 1. `band`: 'breaks' (repetition or surprise far beyond the default text's, or numbers that
    are not finite), 'none' (predictions nearly the same; one token may still differ and the rest with it), or
    'works'."""

    strength: float
    generation: Generation
    diverges: int | None
    kl: float
    surprise: float
    repetition: float
    band: str


@dataclass(frozen=True, eq=False)
class Sweep:
    """The default continuation and one `Dose` per strength, in ascending order; all from one seed. `surprise` and
    `repetition` are the default text's own."""

    edit: Edit
    default: Generation
    rows: tuple[Dose, ...]
    surprise: float
    repetition: float

    @property
    def bands(self) -> dict[str, tuple[float, ...]]:
        """Measured strengths by band."""
        return {band: tuple(row.strength for row in self.rows if row.band == band) for band in BANDS}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "edit": self.edit.to_dict(),
            "default": self.default.text,
            "surprise": _finite(self.surprise),
            "repetition": self.repetition,
            "bands": {band: list(found) for band, found in self.bands.items()},
            "rows": [
                {
                    "strength": row.strength,
                    "text": row.generation.text,
                    "diverges": row.diverges,
                    "kl": _finite(row.kl),
                    "surprise": _finite(row.surprise),
                    "repetition": row.repetition,
                    "band": row.band,
                    "stopped": row.generation.stopped,
                }
                for row in self.rows
            ],
        }

    def __repr__(self) -> str:
        lines = [f"Sweep of {self.edit.with_strength(1.0)} on {self.default.text!r}"]
        for row in self.rows:
            same = "the same" if row.diverges is None else f"other from token {row.diverges}"
            measured = f"KL {row.kl:.3f}  surprise {row.surprise:.2f}"
            lines.append(f"  {row.strength:5g}  {row.band:6}  {measured}  {same}: {row.generation.text!r}")
        return "\n".join(lines)


def sweep(
    engine: Engine,
    given: Any,
    edit: Edit | FeatureId | str,
    strengths: Iterable[float] = STRENGTHS,
    *,
    others: Edit | Iterable[Edit] = (),
    follow: Callable[[Any], Any] = lambda job: job,
    **sampling: Any,
) -> Sweep:
    """Run `edit` (a feature alone is clamped) at each of `strengths`, with `others` unchanged, as one batch.

    The default has the `others` only. `sampling` as in `GenerateRequest`; `follow(job)` is handed each job as it
    starts, so that it can be cancelled.
    """
    if not isinstance(edit, Edit):
        edit = clamp(edit, 1.0)
    if edit.kind == "ablate":
        raise refuse("edit-unreadable", given=edit, why="ablate has no strength to sweep; sweep gl.scale instead")
    kept = edits_of(others)
    doses = tuple(edit.with_strength(strength) for strength in sorted(set(strengths)))
    if not doses:
        raise refuse("count-unreadable", name="the number of strengths", given=0, least=1)
    rows = (kept, *((*kept, dose) for dose in doses))
    default, *made = follow(engine.generate(GenerateRequest(given, rows=rows, **sampling))).result()
    prompt, ids = _ids(default.prompt), _ids(default.tokens)
    compared: Sequence[Any] = ()
    if ids:
        compared = follow(engine.compare(CompareRequest(prompt, ids, rows, reference=0))).result()[1:]

    def surprise(text: tuple[int, ...]) -> float:
        if not text:
            return math.nan
        (seen,) = follow(engine.compare(CompareRequest(prompt, text, (kept,)))).result()
        return -float(np.mean(seen.logprobs))

    usual, own = surprise(ids), repetition(ids)
    found = []
    for at, (dose, generation) in enumerate(zip(doses, made, strict=True)):
        text = _ids(generation.tokens)
        kl = float(np.mean(compared[at].kl)) if ids else math.nan
        first, lost, repeats = _first_difference(default, generation), surprise(text), repetition(text)
        if generation.stopped == "not-finite" or lost > usual + LOST or repeats > own + REPEATS:
            band = "breaks"
        else:
            band = "none" if kl < FAINT or (not ids and first is None) else "works"
        found.append(Dose(dose.strength, generation, first, kl, lost, repeats, band))
    return Sweep(edit, default, tuple(found), usual, own)


def repetition(ids: Sequence[int], length: int = 4) -> float:
    """Share of the sequences of `length` tokens that occurred before in the same text; 0 for a shorter text."""
    windows = [tuple(ids[at : at + length]) for at in range(len(ids) - length + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def _ids(tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(token.id for token in tokens)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _first_difference(one: Generation, two: Generation) -> int | None:
    pairs = zip(one.tokens, two.tokens, strict=False)
    for index, (left, right) in enumerate(pairs):
        if left.id != right.id:
            return index
    return None if len(one.tokens) == len(two.tokens) else min(len(one.tokens), len(two.tokens))
