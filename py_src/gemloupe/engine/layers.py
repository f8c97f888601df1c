"""Requests that follow a text through the layers, for the engine in this kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..budget import said
from ..errors import refuse
from ..evolution import Attribution, Columns, Edge, Evolution, Guess, gaps
from ..feature import FeatureId, whole
from ..load.memory import free_bytes
from ..run.attribution import (
    Effects,
    FeatureTarget,
    Target,
    TokenTarget,
    attribute,
    earlier,
    graph_bytes,
    without_each,
)
from ..run.capture import body
from ..run.evolve import Layers, evolve
from ..run.tokens import token_bytes, token_text
from ..site import Site
from ..trace import Token, Trace
from ..words import say
from .job import Stop, ThreadJob
from .protocol import AttributeRequest, EvolveRequest, Progress, WithoutRequest

if TYPE_CHECKING:
    from .local import LocalEngine

# Positions whose guesses are made where none are named. Each costs a product with the unembedding for every layer.
GUESSED = 64


def start_evolve(engine: LocalEngine, request: EvolveRequest) -> ThreadJob[Evolution]:
    engine.check_open()
    k, guesses = count("k", request.k, 1), count("guesses", request.guesses, 0)
    sites = engine.open_sites(request.sites)
    tokens = engine.tokenize(request.given)
    last = len(tokens) - 1
    asked = range(max(0, last + 1 - GUESSED), last + 1) if request.positions is None else request.positions
    positions = [position_of(given, last) for given in asked]

    def work(job: ThreadJob[Evolution]) -> Evolution:
        report = reporter(job)

        def checkpoint(share: float) -> None:
            if request.gives_way and engine.waited_for:
                raise Stop
            report(share)

        with engine.pages.round(sorted(sites), job.checkpoint):
            found = evolve(
                engine.loaded.model,
                [token.id for token in tokens],
                sites,
                engine.sae,
                special=engine.loaded.special,
                guesses=guesses,
                positions=positions,
                checkpoint=checkpoint,
            )
        notes: tuple[str, ...] = ()
        if guesses and request.positions is None and last + 1 > GUESSED:
            notes = (
                say(
                    "The model's guesses are of the last {some} of {all} tokens; at= chooses others.",
                    some=GUESSED,
                    all=f"{last + 1:,}",
                ),
            )
        return _evolution(engine, tokens, found, k, notes)

    return engine.submit(ThreadJob(work))


def start_attribute(engine: LocalEngine, request: AttributeRequest) -> ThreadJob[Attribution]:
    engine.check_open()
    k = count("k", request.k, 1)
    sites = engine.open_sites(request.sites)
    tokens = engine.tokenize(request.given)
    last = len(tokens) - 1
    position = None if request.position is None else position_of(request.position, last)
    goal, against, target = _target(engine, request.target, request.against)
    need, free = graph_bytes(engine.loaded.model, last + 1), free_bytes(engine.loaded.device)
    if need > free:
        raise refuse(
            "attribution-too-long", tokens=last + 1, need=said(need), free=said(free), device=engine.loaded.device
        )

    def work(job: ThreadJob[Attribution]) -> Attribution:
        before = earlier(sites, target)
        with engine.pages.round(before, job.checkpoint):
            found = attribute(
                engine.loaded.model,
                [token.id for token in tokens],
                before,
                engine.sae,
                target,
                position,
                special=engine.loaded.special,
                checkpoint=reporter(job),
            )
        return _attribution(engine, tokens, found, goal, against, k)

    return engine.submit(ThreadJob(work))


def start_without(engine: LocalEngine, request: WithoutRequest) -> ThreadJob[tuple[float, ...]]:
    engine.check_open()
    tokens = engine.tokenize(request.given)
    last = len(tokens) - 1
    _, _, target = _target(engine, request.target, request.against)
    position = position_of(request.position, last)
    sources = []
    for feature, at in request.sources:
        (site,) = engine.open_sites((feature.site,))
        assert engine.scope is not None
        sources.append((site, feature.within(engine.scope.width(site)).index, position_of(at, last)))

    def work(job: ThreadJob[tuple[float, ...]]) -> tuple[float, ...]:
        ids = [token.id for token in tokens]
        model = engine.loaded.model
        return tuple(without_each(model, ids, engine.sae, target, position, sources, checkpoint=reporter(job)))

    return engine.submit(ThreadJob(work))


def _target(engine: LocalEngine, given: Any, against: Any) -> tuple[FeatureId | Token, Token | None, Target]:
    """The target as the user sees it, what it is set against, and as a pass takes it."""
    if isinstance(given, FeatureId):
        (site,) = engine.open_sites((given.site,))
        assert engine.scope is not None
        if against is not None:
            raise refuse("target-unreadable", given=against, why="only a token can be set against another token")
        return given, None, FeatureTarget(site, given.within(engine.scope.width(site)).index)
    token, other = _token(engine, given), None if against is None else _token(engine, against)
    return token, other, TokenTarget(token.id, None if other is None else other.id)


def _token(engine: LocalEngine, given: Any) -> Token:
    """One token of the vocabulary, from its id or its text."""
    if isinstance(given, str):
        if not given:
            raise refuse("target-unreadable", given=given, why="it is empty")
        made = [token for token in engine.tokenize(given) if not token.special]
        if len(made) != 1:
            parts = ", ".join(repr(token.text) for token in made[:6])
            raise refuse("target-unreadable", given=given, why=f"it is {len(made)} tokens ({parts}), not one")
        return made[0]
    ident, last = whole(given), engine.loaded.model.lm_head.out_features - 1
    if ident is None:
        raise refuse("target-unreadable", given=given, why="it is neither a feature nor a token")
    if not 0 <= ident <= last:
        raise refuse("token-id-unknown", given=given, position="of the target", last=last)
    name = engine.loaded.tokenizer
    return Token(ident, token_text(name, ident), token_bytes(name, ident), 0, 0, ident in engine.loaded.special)


def _attribution(
    engine: LocalEngine,
    tokens: tuple[Token, ...],
    found: Effects,
    target: FeatureId | Token,
    against: Token | None,
    k: int,
) -> Attribution:
    total = error = 0.0
    pairs = 0
    parts: list[tuple[float, float, Site, int, int]] = []
    sums: dict[Site, tuple[float, float, float]] = {}
    for site, effects in found.features.items():
        errors, biases, acts = found.errors[site], found.biases[site], found.acts[site]
        sums[site] = float(effects.sum()), float(errors.sum()), float(biases.sum())
        pairs += int(np.count_nonzero(effects))
        error += float(np.abs(errors).sum())
        total += float(np.abs(effects).sum() + np.abs(errors).sum() + np.abs(biases).sum())
        rows = acts.rows
        some = np.argsort(-np.abs(effects), kind="stable")[:k]
        some = some[effects[some] != 0]
        parts += [(abs(float(effects[i])), float(effects[i]), site, int(acts.indices[i]), int(rows[i])) for i in some]
    parts.sort(key=lambda part: -part[0])
    edges = tuple(Edge(FeatureId(site, index), target, effect, at) for _, effect, site, index, at in parts[:k])
    notes: tuple[str, ...] = ()
    if not found.features:
        notes = (say("No open site comes before {target}, so nothing can have led to it.", target=target),)
    maxima = {site: engine.maxima(site) for site in found.acts}
    return Attribution(
        target,
        found.position,
        found.value,
        edges,
        error / total if total else 0.0,
        sum(part[0] for part in parts[:k]) / total if total else 0.0,
        Trace(tokens, found.acts, maxima, None, engine.about()),
        against,
        pairs,
        sums,
        notes,
    )


def reporter(job: ThreadJob[Any]) -> Any:
    """What a pass calls between its steps: stops a job that is cancelled, and says how far it is."""

    def checkpoint(share: float) -> None:
        job.checkpoint()
        job.emit(Progress(share))

    return checkpoint


def count(name: str, given: Any, least: int) -> int:
    number = whole(given)
    if number is None or number < least:
        raise refuse("count-unreadable", name=name, given=given, least=least)
    return number


def position_of(given: Any, last: int) -> int:
    """A position of the text; negative ones count from the end."""
    position = whole(given)
    if position is None or not -last - 1 <= position <= last:
        raise refuse("position-out-of-range", given=given, last=last)
    return position % (last + 1)


def _evolution(
    engine: LocalEngine, tokens: tuple[Token, ...], found: Layers, k: int, notes: tuple[str, ...]
) -> Evolution:
    name = engine.loaded.tokenizer
    maxima = {site: engine.maxima(site) for site in found.acts}
    trace = Trace(tokens, found.acts, maxima, None, engine.about())
    texts: dict[int, str] = {}

    def text(ident: int) -> str:
        if ident not in texts:
            texts[ident] = token_text(name, ident)
        return texts[ident]

    guesses: dict[int, list[Guess]] = {}
    for (layer, position), one in sorted(found.said.items()):
        shown = tuple((i, text(i), p) for i, p in zip(one.ids, one.probabilities, strict=True))
        guesses.setdefault(position, []).append(Guess(layer, shown, one.entropy))
    of = {position: tuple(made) for position, made in guesses.items()}
    columns = Columns(trace, k, found.norms, found.fvus, of)
    return Evolution(trace, columns, (), gaps(trace.sites), len(body(engine.loaded.model).layers), notes)
