"""Budgets: bytes as people write them, and a plan of what a model with its SAEs will cost before any is loaded.

Not named plan: `gemloupe.plan` is the function that makes one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any

from .errors import refuse
from .site import Site
from .words import say

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(budget: Any) -> int | None:
    """A budget in bytes, from a whole number or from text such as '4 GB' or '512 MiB'; None stays None."""
    if budget is None:
        return None
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?I?B|)\s*", budget.upper())
        if match is not None and match[2] in _UNITS:
            return int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(budget, int) and not isinstance(budget, bool) and budget >= 0:
        return budget
    raise refuse("budget-unreadable", given=budget)


def said(count: float) -> str:
    """Bytes as people say them: '302 MB'."""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.0f} {unit}" if count >= 100 * least else f"{count / least:.1f} {unit}"
    return f"{count:.0f} bytes"


@dataclass(frozen=True)
class Plan:
    """What opening and reading will cost. Sizes are bytes; None is unknown (and then left out of sums).

    `download`: still to be fetched; `disk`: taken in the caches once all is there, with the pages that SAEs are
    mapped from; `model_bytes`: the model's weights on `device`; `sae_bytes` per site, on `device`; `budget`: what the
    SAEs may hold there together, and `budget_from` where that number comes from. `host_bytes` and `device_bytes`: the
    most that is held at a time (on a CPU they are the same memory). `seconds` per read of `tokens` tokens at all
    sites, estimated as `how` says.
    """

    model: str
    scope: str | None
    device: str
    dtype: str
    model_bytes: int | None
    sae_bytes: Mapping[Site, int] = field(repr=False)
    budget: int
    budget_from: str
    download: int | None
    disk: int | None
    host_bytes: int | None
    device_bytes: int | None
    free: int | None
    seconds: float | None
    tokens: int
    how: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sae_bytes", MappingProxyType(dict(self.sae_bytes)))

    @property
    def paged(self) -> bool:
        """Whether the SAEs do not fit the budget together, so that they come and go."""
        return sum(self.sae_bytes.values()) > self.budget

    @property
    def resident(self) -> int:
        """How many of the SAEs are held at a time."""
        if not self.paged:
            return len(self.sae_bytes)
        return self.budget // max(self.sae_bytes.values())

    @property
    def fits(self) -> bool | None:
        """Whether the device has room for it now; None if that is unknown."""
        if self.device_bytes is None or self.free is None:
            return None
        return self.device_bytes <= self.free

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much) as text, in the order they are shown."""

        def size(count: int | None) -> str:
            return say("unknown") if count is None else said(count)

        every = sum(self.sae_bytes.values())
        number = len(self.sae_bytes)
        where = say("all held")
        if self.paged:
            where = say("{some} of {all} held at a time, the rest paged", some=self.resident, all=number)
        room = {True: say("fits"), False: say("does not fit"), None: say("free memory unknown")}[self.fits]
        memory = size(self.device_bytes)
        if self.free is not None:
            memory = say("{size} of {free} free: {room}", size=memory, free=said(self.free), room=room)
        seconds = say("unknown: {how}", how=self.how)
        if self.seconds is not None:
            number_of = f"{self.seconds:.{0 if self.seconds >= 10 else 1}f}"
            seconds = say("about {seconds} s ({how})", seconds=number_of, how=self.how)
        saes = say("none: texts only")
        if number:
            saes = say("{n} of {scope}: {size}", n=number, scope=self.scope, size=said(every))
        model = say(
            "{model}, {dtype} on {device}: {size}",
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            size=size(self.model_bytes),
        )
        budget = say("{size} ({origin}); {where}", size=said(self.budget), origin=self.budget_from, where=where)
        return [
            (say("model"), model),
            (say("SAEs"), saes),
            *([(say("budget for SAEs"), budget)] if number else []),
            (say("download"), say("nothing") if self.download == 0 else size(self.download)),
            (say("disk"), size(self.disk)),
            (say("host memory"), size(self.host_bytes)),
            (say("device memory"), memory),
            (say("a read of {n} tokens", n=self.tokens), seconds),
        ]

    def __repr__(self) -> str:
        rows = self.rows()
        wide = max(len(what) for what, _ in rows)
        lines = [f"{what.ljust(wide)}  {much}" for what, much in rows]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align:left">{escape(what)}</th><td style="text-align:left">{escape(much)}</td></tr>'
            for what, much in self.rows()
        )
        return f"<table><tbody>{cells}</tbody></table>" + "".join(f"<p>{escape(note)}</p>" for note in self.notes)
