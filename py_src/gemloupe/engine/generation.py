"""Requests that generate or compare, for the engine in this kernel: checked here and now, then run on its worker."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..edits import Edit, When, check_conflicts
from ..errors import refuse
from ..feature import FeatureId, whole
from ..run.capture import module_of, width_of
from ..run.choose import Sampling
from ..run.generate import Recorder, compare, generate, mean
from ..run.steer import Steering
from ..run.tokens import token_bytes
from ..trace import Token, Trace
from ..words import say
from .job import Stop, ThreadJob
from .protocol import CompareRequest, Comparison, Effect, GenerateRequest, Generation, MeanRequest, NewToken

if TYPE_CHECKING:
    from .local import LocalEngine

# Logits divided by less than this overflow; the likeliest token has all the probability long before.
_COLDEST = 1e-6

Rows = tuple[tuple[Edit, ...], ...]


class GenerationJob(ThreadJob[tuple[Generation, ...]]):
    """A generation whose edits can be changed while it runs. Implements `GenerateJob`."""

    def __init__(self, run: _Run) -> None:
        super().__init__(run.work)
        self._run = run

    def change(self, rows: Rows) -> None:
        self._run.change(rows)


def start(engine: LocalEngine, request: GenerateRequest) -> GenerationJob:
    """Check a request and queue it."""
    job = GenerationJob(_Run(engine, request))
    engine.submit(job)
    return job


def start_compare(engine: LocalEngine, request: CompareRequest) -> ThreadJob[tuple[Comparison, ...]]:
    engine.check_open()
    ids = [token.id for token in engine.tokenize(request.given)]
    tokens = [token.id for token in engine.tokenize([*ids, *request.tokens])][len(ids) :]
    if not tokens:
        raise refuse("count-unreadable", name="the number of tokens to compare", given=0, least=1)
    rows, reference = check_rows(engine, request.rows, len(ids)), request.reference
    if reference is not None and not 0 <= reference < len(rows):
        raise refuse("rows-unreadable", given=f"reference {reference!r}")

    def work(job: ThreadJob[tuple[Comparison, ...]]) -> tuple[Comparison, ...]:
        found = compare(
            engine.loaded.model,
            ids,
            tokens,
            lambda rows: steering(engine, rows, len(ids)),
            rows,
            rows[reference] if reference is not None else (),
            checkpoint=job.checkpoint,
        )
        return tuple(Comparison(np.array(kl, np.float32), np.array(shares, np.float32)) for kl, shares in found)

    return engine.submit(ThreadJob(work))


def start_mean(engine: LocalEngine, request: MeanRequest) -> ThreadJob[np.ndarray]:
    engine.check_open()
    module_of(engine.loaded.model, request.site)
    ids = [token.id for token in engine.tokenize(request.given)]

    def work(job: ThreadJob[np.ndarray]) -> np.ndarray:
        return mean(engine.loaded.model, ids, request.site, engine.loaded.special, job.checkpoint).numpy()

    return engine.submit(ThreadJob(work))


def steering(engine: LocalEngine, rows: Sequence[Sequence[Edit]], prompt: int) -> Steering:
    return Steering(
        rows,
        prompt=prompt,
        special=engine.loaded.special,
        sae=engine.sae,
        maximum=lambda feature: float(engine.maxima(feature.site)[feature.index]),
        device=engine.loaded.device,
    )


# ---- what a request must be


def temperature_of(given: Any) -> float:
    """A temperature as a float, refused unless it is finite and at least 0."""
    try:
        value = float(given) if isinstance(given, Real) and not isinstance(given, bool) else -1.0
    except OverflowError:
        value = float("inf")
    if not 0 <= value < float("inf"):
        raise refuse("temperature-unreadable", given=given)
    return value if value >= _COLDEST else 0.0


def sampling_of(request: GenerateRequest) -> Sampling:
    temperature = temperature_of(request.temperature)
    k = whole(request.top_k)
    if request.top_k is not None and (k is None or k < 1):
        raise refuse("sampling-unreadable", name="top_k", given=request.top_k, wanted="a whole number of at least 1")
    p = request.top_p
    good = isinstance(p, Real) and not isinstance(p, bool) and 0 < p <= 1
    if p is not None and not good:
        raise refuse("sampling-unreadable", name="top_p", given=p, wanted="a number above 0 and at most 1")
    return Sampling(temperature, k, None if p is None else float(p))


def check_rows(engine: LocalEngine, given: Any, prompt: int) -> Rows:
    """Rows of edits that this engine can make on a prompt of `prompt` tokens; refused otherwise."""
    try:
        rows = tuple(tuple(row) for row in given)
    except TypeError as error:
        raise refuse("rows-unreadable", given=given) from error
    if not rows or any(not isinstance(edit, Edit) for row in rows for edit in row):
        raise refuse("rows-unreadable", given=given)
    for edit in dict.fromkeys(edit for row in rows for edit in row):
        _check_edit(engine, edit)
    for row in rows:
        check_conflicts(row, prompt)
    return rows


def _check_edit(engine: LocalEngine, edit: Edit) -> None:
    model = engine.loaded.model
    if edit.vector is not None:
        module_of(model, edit.site)
        width = width_of(model, edit.site)
        if len(edit.vector) != width:
            raise refuse("vector-other-width", site=edit.site, got=len(edit.vector), expected=width)
    else:
        assert edit.feature is not None
        _check_feature(engine, edit, edit.feature, unit=edit.kind in ("add", "clamp") and edit.strength != 0)
    when = edit.when
    if isinstance(when, When):
        _check_feature(engine, edit, when.feature, unit=when.above != 0)
        if edit.site < when.feature.site:
            raise refuse("when-too-late", edit=edit, feature=when.feature, site=when.feature.site, at=edit.site)


def _check_feature(engine: LocalEngine, edit: Edit, feature: FeatureId, *, unit: bool) -> None:
    site = engine._site(feature.site)
    if site.kind == "transcoder":
        raise refuse("edit-site-read-only", edit=edit, site=site)
    assert engine.scope is not None
    feature.within(engine.scope.width(site))
    if unit and not np.isfinite(engine.maxima(site)[feature.index]):
        known = engine.stats(site).maximum
        why = "This scope has no maxima." if known is None else "It never fired in the text they were measured on."
        raise refuse("maximum-unknown", feature=feature, edit=edit, why=why, site=str(site), index=feature.index)


# ---- a run


class _Row:
    """What one row has so far."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.shares: list[float] = []
        self.stopped = "length"
        self.not_finite: tuple[int, Edit | None] | None = None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")


class _Run:
    """One generation request, from its check to its `Generation`s."""

    def __init__(self, engine: LocalEngine, request: GenerateRequest) -> None:
        most, seed = whole(request.max_new_tokens), whole(request.seed)
        if most is None or most < 1:
            raise refuse("count-unreadable", name="max_new_tokens", given=request.max_new_tokens, least=1)
        if seed is None or not 0 <= seed < 2**63:
            raise refuse("count-unreadable", name="seed", given=request.seed, least=0)
        self._sampling = sampling_of(request)
        engine.check_open()
        self._prompt = engine.tokenize(request.given)
        self._ids = [token.id for token in self._prompt]
        if len(self._ids) + most > engine.loaded.context:
            over = len(self._ids) + most - engine.loaded.context
            s, limit = "" if over == 1 else "s", engine.loaded.context
            raise refuse("text-too-long", tokens=len(self._ids) + most, limit=limit, over=over, s=s)
        wanted = engine.sites if request.sites is None else request.sites
        self._sites = tuple(engine._site(site) for site in wanted)
        self._engine, self._most, self._seed = engine, most, seed
        self._wanted = check_rows(engine, request.rows, len(self._ids))
        self._rows = [_Row() for _ in self._wanted]
        self._steered: list[Steering] = []  # one for every set of edits that has been in force

    def change(self, rows: Rows) -> None:
        checked = check_rows(self._engine, rows, len(self._ids))
        if len(checked) != len(self._rows):
            raise refuse("rows-other-number", got=len(checked), expected=len(self._rows))
        self._wanted = checked

    def _steering(self) -> Steering:
        wanted = self._wanted  # read once: another thread may put other edits there
        if not self._steered or self._steered[-1].rows != wanted:
            self._steered.append(steering(self._engine, wanted, len(self._ids)))
        return self._steered[-1]

    def work(self, job: ThreadJob[tuple[Generation, ...]]) -> tuple[Generation, ...]:
        engine = self._engine
        special = engine.loaded.special
        recorder = None
        if self._sites:
            recorder = Recorder(engine.loaded.model, len(self._rows), self._sites, engine.sae, special)
        steps = generate(
            engine.loaded.model,
            self._ids,
            self._steering,
            max_new_tokens=self._most,
            sampling=self._sampling,
            seed=self._seed,
            stop=special,
            recorder=recorder,
            checkpoint=job.checkpoint,
        )
        try:
            for made in steps:
                for one in made:
                    row = self._rows[one.row]
                    if one.id is None:
                        row.stopped = "not-finite"
                        row.not_finite = len(row.ids), one.blamed
                        continue
                    row.ids.append(one.id)
                    row.shares.append(one.logprob)
                    if one.id in special:
                        row.stopped = "end"
                    raw = b"" if one.id in special else token_bytes(engine.loaded.tokenizer, one.id)
                    text = row.decoder.decode(raw)
                    job.emit(NewToken(len(row.ids) - 1, one.id, one.logprob, one.row, text))
        except Stop as stop:
            for row in self._rows:
                if row.stopped == "length" and len(row.ids) < self._most:
                    row.stopped = "cancelled"
            raise Stop(self._generations(recorder)) from stop
        finally:
            steps.close()
        return self._generations(recorder)

    def _generations(self, recorder: Recorder | None) -> tuple[Generation, ...]:
        return tuple(self._generation(number, recorder) for number in range(len(self._rows)))

    def _generation(self, number: int, recorder: Recorder | None) -> Generation:
        engine, row = self._engine, self._rows[number]
        # the prompt's own tokens: from ids alone, a ▁ that the user typed would come back as a space
        new = engine.tokenize(self._ids + row.ids)[len(self._ids) :]
        tokens = (*self._prompt, *new)
        trace = None
        if recorder is not None and recorder.began:
            acts = recorder.acts(number, len(tokens))
            trace = Trace(tokens, acts, {site: engine.maxima(site) for site in acts}, None, engine.about())
        edits = self._steered[-1].rows[number] if self._steered else self._wanted[number]
        notes: tuple[str, ...] = ()
        if row.not_finite is not None:
            at, edit = row.not_finite
            blamed = say("without any edit at work") if edit is None else say("with {edit} adding the most", edit=edit)
            stopped = say(
                "Stopped before new token {n}: the model's numbers were no longer finite, {blamed}.",
                n=at,
                blamed=blamed,
            )
            notes = (stopped,)
        return Generation(
            prompt=self._prompt,
            tokens=new,
            logprobs=tuple(row.shares),
            trace=trace,
            effects=self._effects(number, edits, tokens),
            edits=edits,
            seed=self._seed,
            stopped=row.stopped,
            not_finite=row.not_finite,
            notes=notes,
        )

    def _effects(self, number: int, edits: Sequence[Edit], tokens: Sequence[Token]) -> tuple[Effect, ...]:
        """One per edit in force at the end, then one per edit that was before."""
        found: dict[Edit, dict[str, np.ndarray]] = {}
        for one in self._steered:
            for edit, arrays in one.effects(number, len(tokens)):
                if edit in found:  # two times of the same edit never meet at a token
                    arrays = {
                        name: np.maximum(part, found[edit][name]) if name != "fired" else part | found[edit][name]
                        for name, part in arrays.items()
                    }
                found[edit] = arrays
        order = [*edits, *(edit for edit in found if edit not in edits)]
        prompt = len(self._ids)
        return tuple(Effect(edit, **found[edit], why=_why(edit, found[edit], tokens, prompt)) for edit in order)


def _why(edit: Edit, arrays: dict[str, np.ndarray], tokens: Sequence[Token], prompt: int) -> str:
    """Why an edit changed nothing, as the end of a sentence; empty if it did."""
    if arrays["norm"].any():
        return ""
    named = [token for position, token in enumerate(tokens[:-1]) if edit.covers(position, prompt)]
    if not named:
        return say("its where= names no token here")
    if not edit.specials and all(token.special for token in named):
        return say("every token it names is special")
    if edit.kind in ("add", "add_vector") and edit.strength == 0:
        return say("its strength is 0")
    if edit.kind == "scale" and edit.strength == 1:
        return say("a factor of 1 changes nothing")
    if edit.kind in ("scale", "ablate") or edit.strength == 0:
        if edit.when is None or not arrays["activation"].any():
            return say("its feature is never active here")
        return say("its condition is never met here")
    return say("its condition is never met here") if edit.when is not None else say("it does not reach this text")
