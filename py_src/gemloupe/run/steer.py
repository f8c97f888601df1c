"""Edits written into the model while it runs, for several continuations in one batch.

At each site one pass over the tensor does everything: the features that edits or conditions there look at are encoded
together, each edit's coefficient follows from its formula, and coefficients times decoder rows are added once. So the
cost grows with the number of sites, hardly with the number of edits. All arithmetic is float32; the sum is
rounded to the model's dtype once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any

import numpy as np
import torch

from ..edits import Edit
from ..errors import refuse
from ..feature import FeatureId
from ..site import Site
from .capture import module_of

# Gets the tensor [row, token, width] at a site; what it returns takes the tensor's place, None leaves it.
Tap = Callable[[torch.Tensor], torch.Tensor | None]


@contextmanager
def tapped(model: Any, taps: Mapping[Site, Tap]):
    """While this is open, every forward pass hands the tensor at each site to its tap, and goes on with the answer.

    Yields a set of the sites that have fired; empty it before a pass and give it to `check_fired` after. The hooks
    are gone on leaving, however that comes, and passes of other threads (a cell that uses the bridge) are let alone.
    """
    fired: set[Site] = set()
    mine = get_ident()

    def before(site: Site, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if get_ident() != mine:
            return None
        fired.add(site)
        new = taps[site](args[0])
        return None if new is None else (new, *args[1:])

    def after(site: Site, out: Any) -> Any:
        if get_ident() != mine:
            return None
        fired.add(site)
        new = taps[site](out[0] if isinstance(out, tuple) else out)
        return None if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

    with ExitStack() as hooks:
        for site in taps:
            module, side, _ = module_of(model, site)
            if side == "input":
                hook = module.register_forward_pre_hook(lambda _m, args, site=site: before(site, args))
            else:
                hook = module.register_forward_hook(lambda _m, _a, out, site=site: after(site, out))
            hooks.callback(hook.remove)
        yield fired


def check_fired(model: Any, taps: Iterable[Site], fired: Collection[Site]) -> None:
    """Refuse 'hook-silent' if a pass went by without one of the taps."""
    for site in taps:
        if site not in fired:
            raise refuse("hook-silent", site=site, module=module_of(model, site)[2])


@dataclass(frozen=True)
class Now:
    """What a pass is about: token positions from `start`, and the ids [row, token] there."""

    start: int
    ids: Sequence[Sequence[int]]

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.ids[0]))


@dataclass
class Record:
    """What one edit did in one pass: arrays over its tokens, kept as tensors until they are asked for."""

    start: int
    fired: torch.Tensor  # bool [line, token]
    activation: torch.Tensor  # [line, token]
    norm: torch.Tensor  # [line, token]
    length: torch.Tensor  # [line, token]: of the tensor the edit was added to


@dataclass
class _Line:
    """One edit of one row, at its site."""

    row: int
    number: int  # among the row's edits
    edit: Edit
    feature: int  # among the site's encoded features; -1 for a vector
    direction: int  # among the site's directions
    slope: float  # coefficient = offset + slope * f
    offset: float


@dataclass
class _Plan:
    """Everything that is done at one site."""

    site: Site
    lines: list[_Line]
    watched: list[tuple[FeatureId, int]]  # conditions read here, and their place among the encoded features
    encoder: torch.Tensor  # [feature, width]
    b_enc: torch.Tensor  # [feature]
    threshold: torch.Tensor  # [feature]
    directions: torch.Tensor  # [direction, width]
    lengths: torch.Tensor  # [line]: of its direction
    rows: torch.Tensor  # [line]
    features: torch.Tensor  # [line]
    places: torch.Tensor  # [line]: direction
    slope: torch.Tensor  # [line, 1]
    offset: torch.Tensor  # [line, 1]
    sloped: bool
    records: list[Record] = field(default_factory=list)


class Steering:
    """The edits of all rows, ready to be tapped into a model.

    `sae(site)` gives an SAE at a site with features in `edits` or conditions, `maximum(feature)` its largest known
    activation in raw units. `prompt` is the number of tokens in the prompt; tokens in `special` are left alone.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Edit]],
        *,
        prompt: int,
        special: Collection[int],
        sae: Callable[[Site], Any],
        maximum: Callable[[FeatureId], float],
        device: Any = "cpu",
    ) -> None:
        self.rows = tuple(tuple(row) for row in rows)
        self._prompt, self._special = prompt, special
        self._sae, self._maximum, self._device = sae, maximum, device
        by_site: dict[Site, list[tuple[int, int, Edit]]] = {}
        conditions: dict[Site, set[FeatureId]] = {}
        for row, edits in enumerate(self.rows):
            for number, edit in enumerate(edits):
                by_site.setdefault(edit.site, []).append((row, number, edit))
                if edit.when is not None:
                    conditions.setdefault(edit.when.feature.site, set()).add(edit.when.feature)
        self._plans = {
            site: self._plan(site, by_site.get(site, []), sorted(conditions.get(site, ())))
            for site in sorted(by_site.keys() | conditions.keys())
        }
        self._now = Now(0, [[]])
        self._open: dict[FeatureId, torch.Tensor] = {}  # condition -> [row, token] activations of this pass
        self._masks: dict[Site, torch.Tensor | None] = {}

    @property
    def taps(self) -> dict[Site, Tap]:
        return {site: partial(self._write, plan) for site, plan in self._plans.items()}

    def _plan(self, site: Site, edits: list[tuple[int, int, Edit]], watched: list[FeatureId]) -> _Plan:
        names = sorted({edit.feature for _, _, edit in edits if edit.feature is not None} | set(watched))
        place = {name: at for at, name in enumerate(names)}
        directions: list[torch.Tensor] = []
        width = 0
        if names:
            sae = self._sae(site)
            index = torch.tensor([name.index for name in names])
            encoder, b_enc, threshold, decoder = (
                part[index.to(part.device)].to(self._device, torch.float32)
                for part in (sae.encoder, sae.b_enc, sae.threshold, sae.decoder)
            )
            directions, width = [decoder], encoder.shape[1]
        else:
            encoder = torch.zeros(0, 0, device=self._device)
            b_enc = threshold = torch.zeros(0, device=self._device)
        lines: list[_Line] = []
        vectors = len(names)
        for row, number, edit in edits:
            if edit.vector is not None:
                vector = torch.from_numpy(np.array(edit.vector))
                directions.append(vector[None].to(self._device))
                lines.append(_Line(row, number, edit, -1, vectors, 0.0, edit.strength))
                vectors += 1
                width = len(vector)
                continue
            assert edit.feature is not None
            at = place[edit.feature]
            raw = edit.strength * self._maximum(edit.feature) if edit.kind in ("add", "clamp") else 0.0
            slope = {"add": 0.0, "clamp": -1.0, "scale": edit.strength - 1.0, "ablate": -1.0}[edit.kind]
            lines.append(_Line(row, number, edit, at, at, slope, raw))
        stacked = torch.cat(directions) if directions else torch.zeros(0, width, device=self._device)

        def column(values: Iterable[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(list(values), dtype=dtype, device=self._device)

        places = column((line.direction for line in lines), torch.int64)
        return _Plan(
            site,
            lines,
            [(name, place[name]) for name in watched],
            encoder,
            b_enc,
            threshold.clamp_min(0),
            stacked,
            stacked[places].norm(dim=1) if lines else torch.zeros(0),
            column((line.row for line in lines), torch.int64),
            column((max(line.feature, 0) for line in lines), torch.int64),
            places,
            column((line.slope for line in lines), torch.float32)[:, None],
            column((line.offset for line in lines), torch.float32)[:, None],
            any(line.slope for line in lines),
        )

    # ---- a pass

    def begin(self, now: Now) -> None:
        """Say what the next pass is about."""
        self._now = now
        self._open.clear()
        for site, plan in self._plans.items():
            self._masks[site] = self._mask(plan)

    def _mask(self, plan: _Plan) -> torch.Tensor | None:
        """bool [line, token]: where each edit may act, conditions aside; None if that is everywhere."""
        positions = self._now.positions
        may = np.ones((len(plan.lines), len(positions)), bool)
        for at, line in enumerate(plan.lines):
            edit = line.edit
            if edit.where != "all":
                may[at] = [edit.covers(position, self._prompt) for position in positions]
            if not edit.specials:
                may[at] &= [token not in self._special for token in self._now.ids[line.row]]
        return None if may.all() else torch.from_numpy(may).to(self._device)

    def _write(self, plan: _Plan, x: torch.Tensor) -> torch.Tensor | None:
        if not plan.lines and not plan.watched:
            return None
        h = x.to(torch.float32)
        acts = self._acts(plan, h)
        if not plan.lines:
            return None
        rows, tokens, _ = h.shape
        f = h.new_zeros(len(plan.lines), tokens) if acts is None else acts[plan.rows, :, plan.features]
        coefficient = plan.offset + plan.slope * f if plan.sloped else plan.offset.expand(-1, tokens)
        mask = self._conditions(plan, self._masks[plan.site])
        if mask is not None:
            coefficient = torch.where(mask, coefficient, 0.0)
        together = h.new_zeros(rows, len(plan.directions), tokens)
        together.index_put_((plan.rows, plan.places), coefficient, accumulate=True)
        changed = (h + together.transpose(1, 2) @ plan.directions).to(x.dtype)
        norm = coefficient.abs() * plan.lengths[:, None]
        plan.records.append(
            Record(
                self._now.start,
                norm > 0 if mask is None else mask & (norm > 0),
                f,
                norm,
                h.norm(dim=2)[plan.rows],
            )
        )
        return changed

    def _acts(self, plan: _Plan, h: torch.Tensor) -> torch.Tensor | None:
        """Activations of the features that edits or conditions look at, [row, token, feature]; None if there are none.

        Those of conditions are noted for sites that come later."""
        if not len(plan.encoder):
            return None
        pre = h @ plan.encoder.T + plan.b_enc
        acts = torch.where(pre > plan.threshold, pre, 0.0)
        for feature, at in plan.watched:
            self._open[feature] = acts[:, :, at]
        return acts

    def _conditions(self, plan: _Plan, mask: torch.Tensor | None) -> torch.Tensor | None:
        waiting = [(at, line) for at, line in enumerate(plan.lines) if line.edit.when is not None]
        if not waiting:
            return mask
        if mask is None:
            mask = torch.ones(len(plan.lines), len(self._now.positions), dtype=torch.bool, device=self._device)
        else:
            mask = mask.clone()
        for at, line in waiting:
            when = line.edit.when
            assert when is not None
            above = when.above * self._maximum(when.feature) if when.above else 0.0
            mask[at] &= self._open[when.feature][line.row] > above
        return mask

    # ---- afterwards

    def effects(self, row: int, tokens: int) -> list[tuple[Edit, dict[str, np.ndarray]]]:
        """Per edit of a row, its arrays over `tokens` positions: fired, activation, norm, share."""
        found: list[tuple[Edit, dict[str, np.ndarray]]] = []
        for number, edit in enumerate(self.rows[row]):
            plan = self._plans[edit.site]
            at = next(i for i, line in enumerate(plan.lines) if (line.row, line.number) == (row, number))
            arrays = {name: np.zeros(tokens, np.float32) for name in ("activation", "norm", "share")}
            arrays["fired"] = np.zeros(tokens, bool)
            for record in plan.records:
                part = slice(record.start, min(record.start + record.fired.shape[1], tokens))
                size = part.stop - part.start
                if size <= 0:
                    continue
                arrays["fired"][part] = record.fired[at, :size].cpu().numpy()
                arrays["activation"][part] = record.activation[at, :size].cpu().numpy()
                arrays["norm"][part] = norm = record.norm[at, :size].cpu().numpy()
                length = record.length[at, :size].cpu().numpy()
                arrays["share"][part] = np.divide(norm, length, out=np.zeros_like(norm), where=length > 0)
            found.append((edit, arrays))
        return found

    def strongest(self, row: int) -> Edit | None:
        """The edit of a row that added the most in the last pass: the likeliest cause of numbers that overflowed."""
        best: tuple[float, Edit] | None = None
        for plan in self._plans.values():
            for at, line in enumerate(plan.lines):
                if line.row != row or not plan.records:
                    continue
                norm = plan.records[-1].norm[at].nan_to_num(float("inf"), posinf=float("inf"))
                size = float(norm.max())
                if size > 0 and (best is None or size > best[0]):
                    best = size, line.edit
        return None if best is None else best[1]


class FixedSteering:
    """A `Steering` at work on one token per row, in fixed buffers and without asking the host, so that one capture of
    a step serves every token. `start` is the position of the first step, `room` the number of steps; it is put to work
    at step `first`.
    """

    def __init__(self, steering: Steering, start: int, room: int, vocabulary: int, first: int = 0) -> None:
        self._steering, self._start, self._collected = steering, start, first
        device = steering._device
        self._ordinary = torch.ones(vocabulary, dtype=torch.bool, device=device)
        self._ordinary[sorted(steering._special)] = False
        self._plans = {
            site: _FixedPlan(plan, start, room, len(steering.rows), steering._prompt, device)
            for site, plan in steering._plans.items()
        }

    @property
    def taps(self) -> dict[Site, Tap]:
        return {site: partial(self._write, plan) for site, plan in self._plans.items()}

    def begin(self, tokens: torch.Tensor, at: torch.Tensor) -> None:
        """Say what the next pass is about: each row's token, int64 [row], and the number of the step, int64 [1]."""
        self._at = at
        ordinary = self._ordinary[tokens]
        for plan in self._plans.values():
            if plan.plan.lines:
                spared = (ordinary[plan.plan.rows] | plan.specials)[:, None]
                plan.mask = plan.covers.index_select(1, at) & spared

    def _write(self, fixed: _FixedPlan, x: torch.Tensor) -> torch.Tensor | None:
        plan = fixed.plan
        h = x.to(torch.float32)
        acts = self._steering._acts(plan, h)
        if not plan.lines:
            return None
        f = h.new_zeros(len(plan.lines), 1) if acts is None else acts[plan.rows, :, plan.features]
        mask = self._steering._conditions(plan, fixed.mask)
        assert mask is not None
        coefficient = torch.where(mask, plan.offset + plan.slope * f, 0.0)
        norm = coefficient.abs() * plan.lengths[:, None]
        found = (mask & (norm > 0), f, norm, h.norm(dim=2)[plan.rows])
        for buffer, column in zip(fixed.buffers, found, strict=True):
            buffer.index_copy_(1, self._at, column)
        added = (fixed.of_row * coefficient.T) @ fixed.directions
        return (h + added[:, None]).to(x.dtype)

    def collect(self, end: int) -> None:
        """Note what was done from where the last call ended up to step `end`, the last one by itself."""
        for first, last in ((self._collected, end - 1), (end - 1, end)):
            if first < last and first >= self._collected:
                for fixed in self._plans.values():
                    if fixed.plan.lines:
                        parts = [buffer[:, first:last] for buffer in fixed.buffers]
                        fixed.plan.records.append(Record(self._start + first, *parts))
        self._collected = max(self._collected, end)


class _FixedPlan:
    """A `_Plan` with what `FixedSteering` needs beside it."""

    def __init__(self, plan: _Plan, start: int, room: int, rows: int, prompt: int, device: Any) -> None:
        self.plan = plan
        lines = plan.lines
        covers = [line.edit.covers(start + step, prompt) for line in lines for step in range(room)]
        self.covers = torch.tensor(covers, dtype=torch.bool, device=device).reshape(-1, room)  # [line, step]
        self.specials = torch.tensor([line.edit.specials for line in lines], dtype=torch.bool, device=device)
        self.mask = self.covers[:, :1]
        of_row = [[float(line.row == row) for line in lines] for row in range(rows)]
        self.of_row = torch.tensor(of_row, device=device)  # [row, line]
        self.directions = plan.directions[plan.places]  # [line, width]
        # fired, activation, norm, length: as `Record`
        self.buffers = [
            torch.zeros(len(lines), room, dtype=dtype, device=device) for dtype in (torch.bool, *[torch.float32] * 3)
        ]
