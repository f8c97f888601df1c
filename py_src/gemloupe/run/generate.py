"""Text, one token at a time, for several rows at once: a key-value cache, a seed, and edits that steer each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..edits import Edit
from ..errors import Refusal
from ..site import Site
from ..sparse import SparseActs
from .ahead import Ahead, Step, say_why_not
from .capture import body, module_of
from .choose import GREEDY, Sampling, chooser
from .decode import HuggingFace, Lean, untouched
from .encode import encode
from .prefix import read_prompt
from .read import CHUNK, logits
from .steer import Now, Steering, Tap, check_fired, tapped

# Positions whose logits exist at the same time, twice.
_LOGIT_ROWS = 32
# Single tokens whose activations are encoded together.
_TOGETHER = 8
# A capture costs about as much as this many tokens gain by it.
_WORTH_CAPTURING = 16


@dataclass(frozen=True)
class Made:
    """What one step gave a row: a token and its log-probability; or None where the numbers were no longer finite, and
    then `blamed` is the edit that added the most."""

    row: int
    id: int | None
    logprob: float
    blamed: Edit | None = None


class Recorder:
    """Keeps the activations at `sites` for every row while text is generated, sparse."""

    def __init__(
        self, model: Any, rows: int, sites: Collection[Site], sae: Callable[[Site], Any], special: Collection[int]
    ) -> None:
        self._model = model
        self.sites, self._sae, self._special = sorted(sites), sae, special
        self._parts: dict[tuple[int, Site], list[SparseActs]] = {(r, s): [] for r in range(rows) for s in self.sites}
        self._now = Now(0, [[]])
        # Passes over one token: their ids [row], and of each site the tensors that are still to be encoded.
        self._fed: list[list[int]] = []
        self._waiting: dict[Site, list[torch.Tensor]] = {site: [] for site in self.sites}

    def begin(self, now: Now) -> None:
        self._now = now
        if len(now.ids[0]) == 1:
            self._fed = [*self._fed[1 - _TOGETHER :], [ids[0] for ids in now.ids]]

    @property
    def began(self) -> bool:
        """Whether every site has been passed at least once."""
        return all(parts or self._waiting[site] for (_, site), parts in self._parts.items())

    def take(self, site: Site, x: torch.Tensor) -> None:
        """Keep what `site` does with x [row, token, width] in the pass that has begun. Single tokens are encoded some
        at a time: an encoder is much larger than they are."""
        if x.shape[1] > 1:
            self._encode_waiting(site)
            self._encode(site, x, self._now.ids)
            return
        self._waiting[site].append(x)
        if len(self._waiting[site]) == _TOGETHER:
            self._encode_waiting(site)

    def _encode_waiting(self, site: Site) -> None:
        waiting, self._waiting[site] = self._waiting[site], []
        if waiting:
            fed = self._fed[-len(waiting) :]
            self._encode(site, torch.cat(waiting, 1), [list(ids) for ids in zip(*fed, strict=True)])

    def _encode(self, site: Site, x: torch.Tensor, ids_of: Sequence[Sequence[int]]) -> None:
        sae = self._sae(site)
        rows, tokens, width = x.shape
        if getattr(sae, "before_gain", False):
            norm: Any = module_of(self._model, site)[0]
            gain = 1.0 + norm.weight.float()
            x = (x.float() / gain).nan_to_num(0.0)
        kept = torch.tensor([[ident not in self._special for ident in ids] for ids in ids_of])
        try:
            acts = encode(sae, x.reshape(-1, width), kept.reshape(-1).to(x.device), site)
        except Refusal as refusal:
            if refusal.code != "not-finite":
                raise
            kept &= torch.isfinite(x).all(2).cpu()
            acts = encode(sae, x.reshape(-1, width), kept.reshape(-1).to(x.device), site)
        for row in range(rows):
            start, end = acts.indptr[row * tokens], acts.indptr[(row + 1) * tokens]
            lengths = acts.indptr[row * tokens : (row + 1) * tokens + 1].astype("int64") - int(start)
            part = SparseActs((tokens, acts.shape[1]), lengths, acts.indices[start:end], acts.values[start:end])
            self._parts[row, site].append(part)

    def acts(self, row: int, tokens: int) -> dict[Site, SparseActs]:
        """Per site [tokens, feature]; tokens that the model has not read are empty rows."""
        for site in self.sites:
            self._encode_waiting(site)
        found = {}
        for site in self.sites:
            whole = SparseActs.stack(self._parts[row, site])
            length = min(tokens, whole.shape[0])
            end = int(whole.indptr[length])
            indptr = np.pad(whole.indptr[: length + 1], (0, tokens - length), constant_values=end)
            found[site] = SparseActs((tokens, whole.shape[1]), indptr, whole.indices[:end], whole.values[:end])
        return found


def _taps(steering: Steering, recorder: Recorder | None) -> dict[Site, Tap]:
    """Edits first, then the recorder: what is kept is what the rest of the model sees."""
    writes = steering.taps
    taps: dict[Site, Tap] = dict(writes)
    for site in recorder.sites if recorder is not None else ():
        write = writes.get(site)

        def tap(x: torch.Tensor, site: Site = site, write: Tap | None = write) -> torch.Tensor | None:
            new = None if write is None else write(x)
            assert recorder is not None
            recorder.take(site, x if new is None else new)
            return new

        taps[site] = tap
    return taps


def _has_graphs(device: torch.device) -> bool:
    # Streams, events and captures are the current device's.
    return device.type == "cuda" and device.index in (None, torch.cuda.current_device())


def generate(
    model: Any,
    ids: Sequence[int],
    steering: Callable[[], Steering],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: Collection[int] = (),
    recorder: Recorder | None = None,
    way: str | None = None,
    checkpoint: Callable[[], None] = lambda: None,
) -> Generator[list[Made]]:
    """Yields, step by step, what each unfinished row got, until all have met a `stop` id or `max_new_tokens`.

    `steering()` is asked before every pass, so that other edits can take over between two tokens; it always has the
    same number of rows. All rows draw from the same stream of random numbers, that of `seed`, so each is what it would
    be alone. Temperature 0 takes the likeliest token. The same seed gives the same text on the same device and dtype.
    `checkpoint()` is called before every pass; it may raise to stop. `way` of decoding: 'modules', 'lean' or 'ahead'
    (which asks for edits one token earlier); by default the quickest that this model and device allow.
    """
    device = next(model.parameters()).device
    rows = len(steering().rows)
    random = torch.Generator(device).manual_seed(seed)
    vocabulary = model.lm_head.weight.shape[0]
    choose = None
    steps: HuggingFace | Lean = HuggingFace(model, rows)
    ahead: Ahead | None = None
    texts = [list(ids) for _ in range(rows)]
    open_ = set(range(rows))
    # A pass over a long prompt holds its scores for all rows, so more rows take shorter passes.
    chunk = max(CHUNK // rows, 16)
    steered = steering()
    quick = way != "modules" and untouched(model)

    def feed(part: list[list[int]]) -> torch.Tensor:
        nonlocal steered
        checkpoint()
        steered = steering()
        now = Now(steps.length, part)
        steered.begin(now)
        if recorder is not None:
            recorder.begin(now)
        taps = _taps(steered, recorder)
        if quick and isinstance(steps, HuggingFace) and not steps.length and len(part[0]) == len(ids):
            return read_prompt(model, steps, part, taps)
        return steps.feed(part, taps)

    def choice(hidden: torch.Tensor) -> Step:
        noise = None
        if sampling.temperature > 0:
            noise = torch.empty(vocabulary, device=device).exponential_(1, generator=random)
        finite = torch.isfinite(hidden).all(1).tolist()
        if not all(finite):
            hidden = hidden.nan_to_num(0.0, 0.0, 0.0)
        assert choose is not None
        chosen, shares = choose(hidden, noise, sampling)
        good = [fine and math.isfinite(share) for fine, share in zip(finite, shares, strict=True)]
        return Step(chosen, shares, good, {row: steered.strongest(row) for row in range(rows) if not good[row]})

    def begun(first: list[int]) -> Ahead | None:
        """Decoding one step ahead, if that is asked for or worth its beginning, and possible."""
        nonlocal steered
        left = max_new_tokens - 1
        graphs = _has_graphs(device) and left >= _WORTH_CAPTURING
        if not left or not isinstance(steps, HuggingFace) or not (way == "ahead" or (way is None and graphs)):
            return None
        steered = steering()
        try:
            return Ahead(model, steps, first, left, steered, recorder, sampling, random)
        except Exception as error:  # whatever a driver or a device may have against it
            if way == "ahead":
                raise
            say_why_not(error)
            return None

    try:
        for step in range(max_new_tokens):
            # Grad mode is per thread and a generator may be resumed on another one, so it is entered around each step.
            with torch.inference_mode():
                if step == 0:
                    for start in range(0, len(ids), chunk):
                        hidden = feed([text[start : start + chunk] for text in texts])
                    choose = chooser(model)
                    got = choice(hidden)
                elif step == 1 and quick:  # only now: nobody should wait longer for the first
                    assert isinstance(steps, HuggingFace)
                    ahead = begun([text[-1] for text in texts])
                    steps = Lean(model, steps, max_new_tokens) if ahead is None else steps
                if step > 0 and ahead is None:
                    got = choice(feed([text[-1:] for text in texts]))
                elif ahead is not None:
                    while ahead.launched < min(step + 1, max_new_tokens - 1):
                        checkpoint()
                        ahead.steer(steering())
                        ahead.launch()
                    got = ahead.take()
            made = []
            for row in range(rows):
                if row not in open_:
                    texts[row].append(texts[row][-1])  # a place holder: the batch keeps its shape
                    continue
                good = got.finite[row]
                made.append(Made(row, got.ids[row] if good else None, got.shares[row], got.blamed.get(row)))
                texts[row].append(got.ids[row])
                if not good or got.ids[row] in stop:
                    open_.discard(row)
            yield made
            if not open_:
                return
    finally:
        if ahead is not None:
            with torch.inference_mode():
                ahead.finish()


@torch.inference_mode()
def compare(
    model: Any,
    ids: Sequence[int],
    tokens: Sequence[int],
    steering: Callable[[Sequence[Sequence[Edit]]], Steering],
    rows: Sequence[Sequence[Edit]],
    reference: Sequence[Edit] = (),
    *,
    checkpoint: Callable[[], None] = lambda: None,
) -> list[tuple[list[float], list[float]]]:
    """Per row and token of `tokens`: KL(with its edits || with those of `reference`) in nats, and the token's
    log-probability with its edits."""
    whole = [*ids, *tokens[:-1]]
    first = len(ids) - 1

    def hidden(edits: Sequence[Edit]) -> torch.Tensor:
        """[token, d_model] at the positions that predict `tokens`; one row at a time keeps memory flat."""
        steered, kept = steering([edits]), []
        cache = HuggingFace(model, 1)
        for start in range(0, len(whole), CHUNK):
            checkpoint()
            part = whole[start : start + CHUNK]
            steered.begin(Now(start, [part]))
            with tapped(model, steered.taps) as fired:
                device = next(model.parameters()).device
                out = body(model)(
                    torch.tensor([part], device=device),
                    past_key_values=cache.cache,
                    use_cache=True,
                    position_ids=torch.arange(start, start + len(part), device=device)[None],
                )
                check_fired(model, steered.taps, fired)
            kept.append(out.last_hidden_state[0, max(first - start, 0) :])
        return torch.cat(kept)

    default = hidden(reference)
    states = [default if tuple(edits) == tuple(reference) else hidden(edits) for edits in rows]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in rows]
    names = torch.tensor(list(tokens), device=default.device)
    for start in range(0, len(tokens), _LOGIT_ROWS):
        part = slice(start, start + _LOGIT_ROWS)
        plain = logits(model, default[part]).log_softmax(-1)
        for (kl, shares), state in zip(found, states, strict=True):
            checkpoint()
            steered = logits(model, state[part]).log_softmax(-1)
            kl += (steered.exp() * (steered - plain)).sum(-1).clamp_min(0).tolist()
            shares += steered.gather(1, names[part, None])[:, 0].tolist()
    return found


@torch.inference_mode()
def mean(
    model: Any,
    ids: Sequence[int],
    site: Site,
    special: Collection[int],
    checkpoint: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The mean of the tensor at `site` over the tokens not in `special`, float32 [width]."""
    kept = torch.tensor([ident not in special for ident in ids])
    total: list[torch.Tensor] = []
    steps, at = HuggingFace(model, 1), 0

    def tap(x: torch.Tensor) -> None:
        total.append(x[0, kept[at : at + x.shape[1]].to(x.device)].to(torch.float64).sum(0))

    for at in range(0, len(ids), CHUNK):
        checkpoint()
        steps.feed([list(ids[at : at + CHUNK])], {site: tap})
    return (torch.stack(total).sum(0) / int(kept.sum())).to(torch.float32).cpu()
