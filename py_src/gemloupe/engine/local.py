"""The engine in this kernel: one model, one scope, one worker thread."""

from __future__ import annotations

import threading
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import refuse
from ..feature import FeatureId, whole
from ..run.generate import generate
from ..run.read import CHUNK, Reading, read
from ..run.tokens import token_text, tokenize
from ..site import Site
from ..trace import Guess, Token, Trace
from .job import ThreadJob, Worker
from .protocol import (
    Description,
    FeatureFacts,
    Generated,
    GenerateRequest,
    NewToken,
    Progress,
    ReadRequest,
)

if TYPE_CHECKING:
    from ..load.model import LoadedModel
    from ..load.sae import FeatureStats, Sae
    from ..load.scope import ModelFacts, Scope


# Logits divided by less than this overflow; the likeliest token has all the probability long before.
_COLDEST = 1e-6


def _temperature(given: Any) -> float:
    try:
        value = float(given) if isinstance(given, Real) and not isinstance(given, bool) else -1.0
    except OverflowError:
        value = float("inf")
    if not 0 <= value < float("inf"):
        raise refuse("temperature-unreadable", given=given)
    return value if value >= _COLDEST else 0.0


def model_facts(loaded: LoadedModel) -> ModelFacts:
    """What a scope checks before its SAEs are used with this model."""
    from ..load.scope import ModelFacts
    from ..run.capture import body, width_of

    return ModelFacts(
        id=loaded.id,
        architecture=loaded.architecture,
        n_layers=len(body(loaded.model).layers),
        d_model=body(loaded.model).config.hidden_size,
        digest=loaded.digest,
        z_width=width_of(loaded.model, Site("att", 0)),
    )


class LocalEngine:
    """Runs requests on this machine. Implements `Engine`."""

    def __init__(self, loaded: LoadedModel, scope: Scope | None = None, *, chunk: int = CHUNK) -> None:
        if scope is not None:
            scope.check_model(model_facts(loaded))
        self.loaded, self.scope = loaded, scope
        self._facts = model_facts(loaded)
        self._chunk = chunk
        self._worker = Worker("gemloupe-engine")
        self._saes: dict[Site, Sae] = {}
        self._stats: dict[Site, FeatureStats] = {}
        self._lock = threading.RLock()
        self._closed = False

    # ---- what is here

    @property
    def sites(self) -> tuple[Site, ...]:
        return () if self.scope is None else self.scope.sites

    def _check_open(self) -> None:
        if self._closed:
            raise refuse("engine-closed")

    def _site(self, site: Site) -> Site:
        if site not in self.sites:
            raise refuse("site-not-open", site=site, open=", ".join(map(str, self.sites)) or "none")
        return site

    def sae(self, site: Site) -> Sae:
        """The SAE at an open site, on the model's device; read and checked the first time it is asked for."""
        self._check_open()
        assert self.scope is not None or self._site(site)
        with self._lock:
            if site not in self._saes:
                assert self.scope is not None
                self._saes[site] = self.scope.load(self._site(site), self._facts).to(self.loaded.device)
            return self._saes[site]

    def stats(self, site: Site) -> FeatureStats:
        self._check_open()
        with self._lock:
            if self._site(site) not in self._stats:
                assert self.scope is not None
                self._stats[site] = self.scope.stats(site)
            return self._stats[site]

    def maxima(self, site: Site) -> np.ndarray:
        known = self.stats(site).maximum
        if known is None:
            assert self.scope is not None
            return np.full(self.scope.width(site), np.nan, np.float32)
        # A feature that never fired in the sample has no known maximum: 0 would make every strength infinite.
        return np.where(known > 0, known, np.nan).astype(np.float32)

    def describe(self) -> Description:
        self._check_open()
        loaded = self.loaded
        return Description(
            model=loaded.id,
            scope=None if self.scope is None else self.scope.id,
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            context=loaded.context,
            widths={site: self.scope.width(site) for site in self.sites} if self.scope is not None else {},
            notes=tuple(loaded.notes),
            about=self._about(),
        )

    def _about(self) -> dict[str, Any]:
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
        self._check_open()
        guesses = min(guesses, self.loaded.model.lm_head.out_features)
        tokens = self.tokenize(request.given)

        def work(job: ThreadJob[Trace]) -> Trace:
            def checkpoint(share: float) -> None:
                job.checkpoint()
                job.emit(Progress(share))

            found = read(
                self.loaded.model,
                [token.id for token in tokens],
                sites,
                self.sae,
                special=self.loaded.special,
                guesses=guesses,
                chunk=self._chunk,
                checkpoint=checkpoint,
            )
            return self._trace(tokens, found, guesses)

        return self._worker.submit(ThreadJob(work))

    def _trace(self, tokens: tuple[Token, ...], found: Reading, guesses: int) -> Trace:
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
        return Trace(tokens, found.acts, maxima, guessed, self._about())

    def generate(self, request: GenerateRequest) -> ThreadJob[Generated]:
        most, seed = whole(request.max_new_tokens), whole(request.seed)
        if most is None or most < 1:
            raise refuse("count-unreadable", name="max_new_tokens", given=request.max_new_tokens, least=1)
        if seed is None or not 0 <= seed < 2**63:
            raise refuse("count-unreadable", name="seed", given=request.seed, least=0)
        temperature = _temperature(request.temperature)
        self._check_open()
        prompt = self.tokenize(request.given)
        ids = [token.id for token in prompt]
        if len(ids) + most > self.loaded.context:
            over = len(ids) + most - self.loaded.context
            s = "" if over == 1 else "s"
            raise refuse("text-too-long", tokens=len(ids) + most, limit=self.loaded.context, over=over, s=s)

        def work(job: ThreadJob[Generated]) -> Generated:
            new, shares = [], []
            steps = generate(
                self.loaded.model,
                ids,
                max_new_tokens=most,
                temperature=temperature,
                seed=seed,
                stop=self.loaded.special,
                checkpoint=lambda share: job.checkpoint(),
            )
            for index, (ident, share) in enumerate(steps):
                new.append(ident)
                shares.append(share)
                job.emit(NewToken(index, ident, share))
            everything = self.tokenize(ids + new)
            # the prompt's own tokens: from ids alone, a ▁ that the user typed would come back as a space
            return Generated(prompt, everything[len(ids) :], tuple(shares))

        return self._worker.submit(ThreadJob(work))

    def close(self) -> None:
        if not self._closed:
            self._worker.close()
            self._closed = True
            self._saes.clear()
            self._stats.clear()
