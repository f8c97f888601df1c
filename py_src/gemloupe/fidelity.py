"""Fidelity: how well an SAE fits the tensor it reads, as figures and as a light with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from .errors import refuse
from .site import Site, in_words
from .words import counted, joined, say

# Fewer tokens than this say more about themselves than about the SAE.
LEAST_TOKENS = 16
# The share of variance missed. At 1 the SAE knows no more than the mean; Gemma Scope's own are between .1 and .4, and
# short or unusual texts come out somewhat worse than the text an SAE was trained on.
AMBER_FVU, RED_FVU = 0.6, 0.9
# ... and so many times more than its makers found is amber: the same stream a layer too early still looks alike.
AMBER_WORSE = 3.0
# How many times more, or fewer, features are on than declared.
AMBER_RATIO, RED_RATIO = 2.0, 4.0

LIGHTS = ("green", "amber", "red", "unknown")


@dataclass(frozen=True)
class Fidelity:
    """How well the SAE at `site` fits one text.

    `tokens` counted: ordinary ones, without the `outliers` (sinks, far longer than the others). `l0`: features on per
    token, `declared_l0` what its makers measured. `fvu`: share of the variance around these tokens' mean that the
    reconstruction misses (0 is perfect, 1 no better than the mean; None where the tokens hardly vary), `declared_fvu`
    its makers' figure. `norm_explained`: 1 - |x - x̂|² / |x|², summed over tokens. `loss` is the model's next-token
    loss on the text (nats) and `delta_loss` its rise with the reconstruction in the tensor's place; both None unless
    asked for.
    """

    site: Site
    tokens: int
    l0: float
    fvu: float | None = None
    norm_explained: float | None = None
    declared_l0: float | None = None
    declared_fvu: float | None = None
    outliers: int = 0
    loss: float | None = None
    delta_loss: float | None = None

    @property
    def light(self) -> str:
        """green, amber, red, or unknown."""
        return self._judged()[0]

    @property
    def reason(self) -> str:
        """Why the light is what it is, in words."""
        return self._judged()[1]

    def _judged(self) -> tuple[str, str]:
        if self.tokens < LEAST_TOKENS:
            few = counted(
                "too few tokens to judge: {n} ordinary token, at least {least} needed",
                "too few tokens to judge: {n} ordinary tokens, at least {least} needed",
                self.tokens,
                least=LEAST_TOKENS,
            )
            return "unknown", few
        red: list[str] = []
        amber: list[str] = []
        good: list[str] = []
        if self.l0 == 0:
            red.append(say("no feature is on anywhere"))
        elif self.declared_l0:
            on, declared = f"{self.l0:.0f}", f"{self.declared_l0:.0f}"
            says = say("{on} features on per token, {declared} declared", on=on, declared=declared)
            off = abs(math.log(self.l0 / self.declared_l0))
            bin_ = red if off > math.log(RED_RATIO) else amber if off > math.log(AMBER_RATIO) else good
            bin_.append(says)
        else:
            good.append(say("{on} features on per token", on=f"{self.l0:.0f}"))
        if self.fvu is None:
            amber.append(say("the tokens hardly vary, so the share of variance missed is unknown"))
        else:
            missed = f"{self.fvu:.0%}"
            if self.declared_fvu is None:
                says = say("the reconstruction misses {missed} of the variance", missed=missed)
            else:
                usual = f"{self.declared_fvu:.0%}"
                says = say(
                    "the reconstruction misses {missed} of the variance ({declared} declared)",
                    missed=missed,
                    declared=usual,
                )
            if self.fvu >= 10:  # a tensor of another scale misses it by orders of magnitude
                red.append(say("the reconstruction is off by many times what the tensor varies"))
            elif self.fvu >= RED_FVU:
                red.append(says if self.fvu < 1 else say("{says}, no better than the mean", says=says))
            else:
                most = AMBER_FVU if self.declared_fvu is None else min(AMBER_FVU, AMBER_WORSE * self.declared_fvu)
                (amber if self.fvu > most else good).append(says)
        for light, found in (("red", red), ("amber", amber)):
            if found:
                if light == "red":
                    found.append(say("it reads another tensor than it was trained on, or very unusual text"))
                return light, joined("; ", found)
        return "green", joined("; ", good)


class Fidelities(Mapping[Site, Fidelity]):
    """Fidelity by site, measured when it is first asked for: `f["res.12"]`. Shown or iterated as a whole, all of it is.

    `measure(sites)` runs the text again and returns the figures of these sites.
    """

    def __init__(
        self,
        sites: tuple[Site, ...],
        known: Mapping[Site, Fidelity],
        measure: Callable[[tuple[Site, ...]], Mapping[Site, Fidelity]] | None,
    ) -> None:
        self._sites, self._known, self._measure = sites, dict(known), measure

    @property
    def known(self) -> Mapping[Site, Fidelity]:
        """What has been measured so far."""
        return dict(self._known)

    def _want(self, sites: tuple[Site, ...]) -> None:
        missing = tuple(site for site in sites if site not in self._known)
        if not missing:
            return
        if self._measure is None:
            raise refuse("fidelity-unknown", site=", ".join(map(str, missing)))
        self._known.update(self._measure(missing))

    def __getitem__(self, key: Any) -> Fidelity:
        site = Site.of(key)
        if site not in self._sites:
            raise refuse("site-not-open", site=site, open=in_words(self._sites))
        self._want((site,))
        return self._known[site]

    def __iter__(self) -> Iterator[Site]:
        self._want(self._sites)
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, key: object) -> bool:
        return key in self._sites or (isinstance(key, str) and key in map(str, self._sites))

    _HEAD = ("site", "light", "L0", "declared", "FVU", "norm explained", "delta loss", "tokens", "why")

    def _rows(self) -> list[tuple[str, ...]]:
        def number(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        return [
            (
                str(one.site),
                one.light,
                f"{one.l0:.1f}",
                number(one.declared_l0, ".1f"),
                number(one.fvu, ".3f"),
                number(one.norm_explained, ".3f"),
                number(one.delta_loss, "+.3f"),
                str(one.tokens),
                one.reason,
            )
            for one in self.values()
        ]

    def __repr__(self) -> str:
        rows = [self._HEAD, *self._rows()]
        wide = [max(len(row[i]) for row in rows) for i in range(len(self._HEAD))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self._HEAD)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
