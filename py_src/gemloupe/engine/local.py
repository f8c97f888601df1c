"""The engine in this kernel: one model, one scope, one worker thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..budget import said
from ..errors import refuse
from ..evolution import Attribution, Evolution
from ..feature import FeatureId, whole
from ..fidelity import Fidelity
from ..load.statistics import keep_stats, kept_file, kept_origin, kept_stats
from ..run.capture import model_facts, width_of
from ..run.fidelity import Cost, costs
from ..run.pages import Pager, beside, default_budget, footprint, mapped
from ..run.promote import listable_tokens, promoted
from ..run.read import CHUNK, Reading, read
from ..run.together import read_together
from ..run.tokens import token_text, tokenize
from ..site import Site, in_words
from ..sparse import SparseActs
from ..trace import Guess, Token, Trace
from ..words import say
from .generation import GenerationJob, start, start_compare, start_mean
from .job import ThreadJob, Worker
from .layers import start_attribute, start_evolve, start_without
from .protocol import (
    AttributeRequest,
    CompareRequest,
    Comparison,
    Description,
    EvolveRequest,
    FeatureFacts,
    GenerateRequest,
    MeanRequest,
    Progress,
    PromoteRequest,
    ReadRequest,
    TogetherRequest,
    WithoutRequest,
)

if TYPE_CHECKING:
    import torch

    from ..load.gemma_scope import GemmaScope
    from ..load.model import LoadedModel
    from ..load.sae import FeatureStats, Sae
    from ..load.scope import Scope

T = TypeVar("T")


def _number(given: Any) -> float | None:
    """A declared figure, if it is one that can be compared with."""
    good = isinstance(given, (int, float)) and not isinstance(given, bool) and np.isfinite(given) and given > 0
    return float(given) if good else None


class LocalEngine:
    """Runs requests on this machine. Implements `Engine`."""

    def __init__(
        self,
        loaded: LoadedModel,
        scope: Scope | GemmaScope | None = None,
        *,
        chunk: int = CHUNK,
        budget: int | None = None,
    ) -> None:
        """`budget`: bytes that SAEs may take on the model's device together, half of what is free there by default."""
        if scope is not None:
            scope.check_model(model_facts(loaded))
        self.loaded, self.scope = loaded, scope
        self._facts = model_facts(loaded)
        self._chunk = chunk
        self._pages = self._pager(budget)
        self._worker = Worker("gemloupe-engine")
        self._stats: dict[Site, FeatureStats] = {}
        self._origins: dict[Site, str] = {}
        self._lock = threading.RLock()
        self._closed = False

    # ---- what is here

    @property
    def sites(self) -> tuple[Site, ...]:
        return () if self.scope is None else self.scope.sites

    def check_open(self) -> None:
        if self._closed:
            raise refuse("engine-closed")

    def _site(self, site: Site) -> Site:
        if site not in self.sites:
            raise refuse("site-not-open", site=site, open=in_words(self.sites))
        return site

    def open_sites(self, given: Iterable[Site] | None) -> tuple[Site, ...]:
        """Those of `given` (None: all), each of which must be open."""
        return self.sites if given is None else tuple(dict.fromkeys(self._site(site) for site in given))

    def sae(self, site: Site) -> Sae:
        """The SAE at an open site, on the model's device; read and checked when it is not there already.

        Hold it no longer than it is used: what is held is not counted in the budget.
        """
        self.check_open()
        return self._pages.get(self._site(site))

    @property
    def waited_for(self) -> bool:
        """Whether another request waits for the one that runs."""
        return self._worker.waited_for

    @property
    def pages(self) -> Pager:
        """What is held of the SAEs, within the budget."""
        return self._pages

    def _size(self, site: Site, device: Any = None) -> int:
        """Bytes of an SAE on `device`, the model's by default, as far as it is known before it is loaded."""
        assert self.scope is not None
        device = self.loaded.device if device is None else device
        width, d_in = self.scope.width(site), width_of(self.loaded.model, site)
        entries = getattr(self.scope, "entries", None)
        if entries is not None:  # the catalogue also knows of linear paths past the features
            return entries[site].bytes + beside(width, d_in, device)
        return footprint(width, d_in, device, d_out=self._facts.d_model if site.kind == "transcoder" else None)

    def _pager(self, budget: int | None) -> Pager:
        device = self.loaded.device
        largest = max((self._size(site) for site in self.sites), default=0)
        given = max(default_budget(device), largest) if budget is None else budget
        for site in self.sites:
            if self._size(site) > given:
                raise refuse("budget-too-small", budget=said(given), site=site, need=said(self._size(site)))
        if str(device) == "cpu":
            return Pager(self._from_disk, self._size, budget=given)
        # Beside a GPU the host keeps what it can, so that paging copies from memory rather than from the disk.
        host = Pager(
            self._from_disk,
            lambda site: self._size(site, "cpu"),
            budget=max(default_budget("cpu"), max((self._size(site, "cpu") for site in self.sites), default=0)),
        )
        return Pager(host.get, self._size, budget=given, device=device, below=host)

    def _from_disk(self, site: Site) -> Sae:
        from ..load.scope import Scope

        scope, facts = self.scope, self._facts
        assert scope is not None
        source = scope.source(site) if isinstance(scope, Scope) else None  # Gemma Scope keeps mapped copies itself
        if source is None:
            return scope.load(site, facts)
        sae = mapped(source, site, lambda: scope.load(site, facts))
        fits = (sae.width, sae.d_in) == (scope.width(site), width_of(self.loaded.model, site))
        return sae if fits else scope.load(site, facts)  # which says what does not fit

    def stats(self, site: Site) -> FeatureStats:
        self.check_open()
        with self._lock:
            if self._site(site) not in self._stats:
                assert self.scope is not None
                stats = self.scope.stats(site)
                if stats.maximum is None and (file := self._kept(site)) is not None:
                    stats = self._completed(stats, kept_stats(file, site, self.scope.width(site)))
                self._stats[site] = stats
            return self._stats[site]

    @staticmethod
    def _completed(own: FeatureStats, learned: FeatureStats | None) -> FeatureStats:
        if learned is None:
            return own
        return replace(own, **{name: value for name, value in vars(learned).items() if value is not None})

    def has_own_maxima(self, site: Site) -> bool:
        """Whether the scope itself brings the maxima at an open site."""
        self.check_open()
        assert self.scope is not None
        return self.scope.stats(self._site(site)).maximum is not None

    def learn(self, site: Site, stats: FeatureStats, origin: str) -> None:
        """Use `stats` at a site whose scope brings no maxima, now and whenever model and SAE are opened again.

        `origin` says where they are from, after 'maxima are'. Refuses 'cache-not-writable'.
        """
        assert self.scope is not None
        own = self.scope.stats(self._site(site))
        if (file := self._kept(site)) is not None:
            keep_stats(file, stats, origin)
        with self._lock:
            self._stats[site] = self._completed(own, stats)
            self._origins[site] = origin

    def _kept(self, site: Site) -> Path | None:
        """Where what is learnt of an SAE is kept; None if nothing tells it from another of the same name."""
        scope, loaded = self.scope, self.loaded
        assert scope is not None
        entries = getattr(scope, "entries", None)
        sae: str | None
        if entries is not None:
            sae = f"{entries[site].repo}/{entries[site].path}"
        elif (sae := scope.digest(site)) is None:
            source = scope.source(site) if hasattr(scope, "source") else None
            if source is None:
                return None
            about = source.stat()
            sae = f"{source.resolve()} {about.st_size} {about.st_mtime_ns}"
        return kept_file(loaded.id, loaded.digest, site, sae)

    def _learned(self) -> tuple[str, ...]:
        """A sentence for each origin of maxima that are not the scope's own."""
        by: dict[str, list[str]] = {}
        for site in self.sites:
            origin = self._origins.get(site)
            if origin is None and (file := self._kept(site)) is not None and file.exists():
                origin = None if self.has_own_maxima(site) else kept_origin(file)
            if origin is not None:
                by.setdefault(origin, []).append(str(site))
        return tuple(
            say(
                "Maxima at {sites} are {origin}.",
                sites=", ".join(sites) if len(sites) <= 4 else say("{n} sites", n=len(sites)),
                origin=origin,
            )
            for origin, sites in by.items()
        )

    def maxima(self, site: Site) -> np.ndarray:
        known = self.stats(site).maximum
        if known is None:
            assert self.scope is not None
            return np.full(self.scope.width(site), np.nan, np.float32)
        # A feature that never fired in the sample has no known maximum: 0 would make every strength infinite.
        return np.where(known > 0, known, np.nan).astype(np.float32)

    def direction(self, feature: FeatureId) -> np.ndarray:
        sae = self.sae(feature.site)
        return sae.decoder[feature.within(sae.width).index].float().cpu().numpy().copy()

    def threshold(self, feature: FeatureId) -> float:
        sae = self.sae(feature.site)
        return float(sae.threshold[feature.within(sae.width).index])

    def describe(self) -> Description:
        self.check_open()
        loaded = self.loaded
        return Description(
            model=loaded.id,
            scope=None if self.scope is None else self.scope.id,
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            context=loaded.context,
            widths={site: self.scope.width(site) for site in self.sites} if self.scope is not None else {},
            notes=(*loaded.notes, *self._paging(), *self._learned()),
            about=self.about() | {"sae_digests": self._digests()},
        )

    def _paging(self) -> tuple[str, ...]:
        """What is to be said of the budget, if not all SAEs fit it."""
        sizes = [self._size(site) for site in self.sites]
        if sum(sizes) <= self._pages.budget:
            return ()
        return (
            say(
                "{n} SAEs take {size}; the budget of {budget} holds about {some} of them at a time, the others are "
                "paged in when needed.",
                n=len(sizes),
                size=said(sum(sizes)),
                budget=said(self._pages.budget),
                some=self._pages.budget * len(sizes) // sum(sizes),
            ),
        )

    def _digests(self) -> dict[str, str]:
        """sha256 of each open SAE, by the site's name, where it is known."""
        found = {} if self.scope is None else {str(site): self.scope.digest(site) for site in self.sites}
        return {site: digest for site, digest in found.items() if digest is not None}

    def about(self) -> dict[str, Any]:
        from .. import __version__

        loaded = self.loaded
        return {
            "gemloupe": __version__,
            "model": loaded.id,
            "model_digest": loaded.digest,
            "scope": None if self.scope is None else self.scope.id,
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }

    def facts(self, features: tuple[FeatureId, ...]) -> tuple[FeatureFacts, ...]:
        return tuple(self._fact(feature) for feature in features)

    def _fact(self, feature: FeatureId) -> FeatureFacts:
        from ..load.neuronpedia import page

        stats = self.stats(feature.site)
        assert self.scope is not None
        i = feature.within(self.scope.width(feature.site)).index

        def one(column: np.ndarray | None) -> float | None:
            return None if column is None or not np.isfinite(column[i]) else float(column[i])

        def words(ids: np.ndarray | None, logits: np.ndarray | None) -> tuple[tuple[str, float], ...]:
            if ids is None:
                return ()
            shown = [float("nan")] * len(ids[i]) if logits is None else [float(x) for x in logits[i]]
            return tuple((token_text(self.loaded.tokenizer, t), x) for t, x in zip(ids[i], shown, strict=True))

        return FeatureFacts(
            feature,
            maximum=one(stats.maximum),
            density=one(stats.density),
            mean_active=one(stats.mean_active),
            promotes=words(stats.promotes, stats.promotes_logit),
            suppresses=words(stats.suppresses, stats.suppresses_logit),
            neuronpedia=page(self.scope.facts(feature.site).get("neuronpedia"), i),
        )

    # ---- requests

    def tokenize(self, given: Any) -> tuple[Token, ...]:
        loaded = self.loaded
        return tokenize(
            loaded.tokenizer,
            given,
            special=loaded.special,
            bos=loaded.bos,
            context=loaded.context,
            vocabulary=loaded.model.lm_head.out_features,
            model=loaded.id,
        )

    def read(self, request: ReadRequest) -> ThreadJob[Trace]:
        # Refused here rather than on the worker, so that a bad request never waits behind a long one.
        sites = self.sites if request.sites is None else tuple(self._site(site) for site in request.sites)
        guesses = whole(request.guesses)
        if guesses is None or guesses < 0:
            raise refuse("count-unreadable", name="guesses", given=request.guesses, least=0)
        self.check_open()
        guesses = min(guesses, self.loaded.model.lm_head.out_features)
        measured = tuple(self._site(site) for site in request.fidelity)
        sites = tuple(dict.fromkeys((*sites, *measured)))
        tokens = self.tokenize(request.given)

        def work(job: ThreadJob[Trace]) -> Trace:
            def checkpoint(share: float) -> None:
                job.checkpoint()
                job.emit(Progress(share))

            ids = [token.id for token in tokens]
            special, model = self.loaded.special, self.loaded.model
            with self._pages.round(sorted(sites), job.checkpoint):
                found = read(
                    model,
                    ids,
                    sites,
                    self.sae,
                    special=special,
                    guesses=guesses,
                    measure=measured,
                    chunk=self._chunk,
                    checkpoint=checkpoint,
                )
                spliced = {}
                if request.delta_loss:
                    self._pages.expect(measured)
                    spliced = costs(model, ids, measured, self.sae, special=special, checkpoint=checkpoint)
            return self._trace(tokens, found, guesses, spliced)

        return self._worker.submit(ThreadJob(work))

    def _fidelity(self, found: Reading, spliced: dict[Site, Cost]) -> dict[Site, Fidelity]:
        made = {}
        for site, one in found.measured.items():
            assert self.scope is not None
            declared, cost = self.scope.facts(site), spliced.get(site)
            made[site] = Fidelity(
                site,
                one.tokens,
                one.l0,
                one.fvu,
                one.norm_explained,
                _number(declared.get("l0")),
                _number(declared.get("fvu")),
                one.outliers,
                None if cost is None else cost.loss,
                None if cost is None else cost.delta,
            )
        return made

    def _trace(self, tokens: tuple[Token, ...], found: Reading, guesses: int, spliced: dict[Site, Cost]) -> Trace:
        name = self.loaded.tokenizer
        guessed = (
            tuple(
                tuple(Guess(i, token_text(name, i), p) for i, p in found.guesses[position])
                if position in found.guesses
                else None
                for position in range(len(tokens))
            )
            if guesses
            else None
        )
        maxima = {site: self.maxima(site) for site in found.acts}
        return Trace(tokens, found.acts, maxima, guessed, self.about(), self._fidelity(found, spliced))

    def submit(self, job: ThreadJob[T]) -> ThreadJob[T]:
        """Queue a job on the one thread that runs the model."""
        return self._worker.submit(job)

    def generate(self, request: GenerateRequest) -> GenerationJob:
        return start(self, request)

    def compare(self, request: CompareRequest) -> ThreadJob[tuple[Comparison, ...]]:
        return start_compare(self, request)

    def mean(self, request: MeanRequest) -> ThreadJob[np.ndarray]:
        return start_mean(self, request)

    @cached_property
    def _listable(self) -> torch.Tensor:
        return listable_tokens(self.loaded.tokenizer)

    def promote(self, request: PromoteRequest) -> ThreadJob[FeatureFacts]:
        self.check_open()
        feature, k = request.feature, whole(request.k)
        assert self.scope is not None
        feature.within(self.scope.width(self._site(feature.site)))
        if k is None or k < 1:
            raise refuse("count-unreadable", name="k", given=request.k, least=1)

        def work(job: ThreadJob[FeatureFacts]) -> FeatureFacts:
            row = self.sae(feature.site).decoder[feature.index][None]
            most = min(k, int(self._listable.sum()))
            found = [part[0].tolist() for part in promoted(self.loaded.model, feature.site, row, self._listable, most)]
            up, raised, down, lowered = found
            name = self.loaded.tokenizer
            return FeatureFacts(
                feature,
                promotes=tuple((token_text(name, i), x) for i, x in zip(up, raised, strict=True)),
                suppresses=tuple((token_text(name, i), x) for i, x in zip(down, lowered, strict=True)),
            )

        return self._worker.submit(ThreadJob(work))

    def together(self, request: TogetherRequest) -> ThreadJob[dict[Site, SparseActs]]:
        self.check_open()
        sites = self.sites if request.sites is None else tuple(self._site(site) for site in request.sites)
        longest, limit = max(map(len, request.passages), default=0), self.loaded.context
        if longest > limit:
            over = longest - limit
            raise refuse("text-too-long", tokens=longest, limit=limit, over=over, s="" if over == 1 else "s")
        if not longest or not sites:
            raise refuse("text-empty" if sites else "index-no-sites")

        def work(job: ThreadJob[dict[Site, SparseActs]]) -> dict[Site, SparseActs]:
            with self._pages.round(sorted(sites), job.checkpoint):
                return read_together(
                    self.loaded.model,
                    request.passages,
                    sites,
                    self.sae,
                    special=self.loaded.special,
                    checkpoint=lambda share: job.checkpoint(),
                )

        return self._worker.submit(ThreadJob(work))

    def evolve(self, request: EvolveRequest) -> ThreadJob[Evolution]:
        return start_evolve(self, request)

    def attribute(self, request: AttributeRequest) -> ThreadJob[Attribution]:
        return start_attribute(self, request)

    def without(self, request: WithoutRequest) -> ThreadJob[tuple[float, ...]]:
        return start_without(self, request)

    def close(self) -> None:
        if not self._closed:
            self._worker.close()
            self._closed = True
            self._pages.close()
            self._stats.clear()
