"""How good an SAE is, measured in the model it reads: reconstruction, cost in loss, and statistics of every feature.

Two kinds of token are never replaced and never counted: special tokens, which no SAE here was trained on, and outliers
("sinks"), tokens far longer than the others whose activations say little about the text.

The model is run layer by layer over all contexts, so that the activations of one layer exist at a time, and in batches;
an SAE is loaded when its layer is reached and let go after it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..load.sae import FeatureStats, Sae
from ..load.scope import Scope
from ..run.capture import Replacement, body, replacing, width_of
from ..run.read import logits
from ..site import Site
from .partway import Layers, starting_at
from .uniformity import Gradients, uniformity

Progress = Callable[[dict[str, float]], None]

_LOGIT_ROWS = 128  # positions whose logits exist at the same time
_BLOCK = 1 << 24  # dense activations [token, feature] that exist at the same time
_MASSIVE = 4.0  # medians of deviation
_OFTEN = 0.1  # share of tokens
_MEAN_MEDIAN = ("delta_loss_mean", "delta_loss_median")


@dataclass(frozen=True)
class Evaluation:
    """Figures of one SAE on held-out text.

    `fvu` is the share of variance (around the mean of these tokens) that the reconstruction misses; `fvu_other_dims`
    leaves out the massive dimensions, those whose deviation is above four medians. `delta_loss_mean` and
    `delta_loss_median` are the rise in next-token loss (nats) when the reconstruction stands in for the activation,
    over contexts. `loss_recovered` is 1 at no rise and 0 where the mean activation does as well, which costs
    `mean_delta_loss` (Gemma's residual stream must not be set to zero: that costs more than knowing nothing, and would
    flatter every SAE). `dead` is the share of features that never fire on these tokens, `frequent` of those that fire
    on more than a tenth of them, `outliers` the share of tokens left out. `uniformity` is r_L0, see `uniformity.py`.

    `delta_loss` [context] and `frequency` [feature], the share of tokens each fires on, are what the figures are made
    from. `groups` has loss and delta loss by label. `unrounded` has L0, FVU and delta loss of the SAE before it was
    rounded to int8, if that was given.
    """

    tokens: int
    contexts: int
    l0: float
    fvu: float
    fvu_other_dims: float
    outliers: float
    loss: float
    delta_loss_mean: float
    delta_loss_median: float
    mean_delta_loss: float
    loss_recovered: float
    width: int = 0
    dead: float = float("nan")
    frequent: float = float("nan")
    uniformity: float | None = None
    unrounded: Mapping[str, float] | None = None
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    delta_loss: np.ndarray | None = field(default=None, compare=False, repr=False)
    frequency: np.ndarray | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, float]:
        """The plain numbers: one value per name, without groups and arrays."""
        return {name: value for name, value in vars(self).items() if isinstance(value, (int, float))}

    def row(self) -> dict[str, float]:
        """All numbers flat, as a row of a table: `fvu_unrounded`, `delta_loss_mean[fr]`."""
        found = self.as_dict() | {f"{name}_unrounded": value for name, value in (self.unrounded or {}).items()}
        for label, figures in self.groups.items():
            found |= {f"{name}[{label}]": value for name, value in figures.items()}
        return found


def evaluate(
    model: Any,
    tokens: np.ndarray,
    saes: Iterable[Sae] | Scope,
    *,
    special: Sequence[int],
    sites: Iterable[Site | str] | None = None,
    unrounded: Iterable[Sae] | Scope = (),
    groups: Sequence[str] | None = None,
    outlier: float = 3.0,
    loss_contexts: int | None = None,
    importance_contexts: int = 0,
    batch: int = 4,
    progress: Progress | None = None,
) -> dict[Site, Evaluation]:
    """Figures for each SAE on held-out `tokens` [context, position] of a causal language model.

    `saes` are SAEs, one a site, or a scope, whose SAEs are loaded one layer at a time (`sites`: only those).
    The loss is measured on the first `loss_contexts` contexts (all by default): two passes per SAE and context, which
    is most of the work. `importance_contexts` of them are also run backwards, once for all sites, for `uniformity`.
    Outliers are tokens whose norm at the site is above `outlier` medians. `groups` [context] are labels, a language for
    example, by which delta loss is also given. `unrounded` holds the same SAEs before they were rounded to int8, to be
    measured beside them. `progress` gets done, of (in passes over one layer) and seconds_left.
    """
    return _Evaluating(model, tokens, saes, special, sites, unrounded, groups, loss_contexts, batch, progress).go(
        outlier, importance_contexts
    )


class _Saes:
    """SAEs by site, from a list or from a scope."""

    def __init__(self, given: Iterable[Sae] | Scope, sites: Iterable[Site | str] | None) -> None:
        self._scope = given if isinstance(given, Scope) else None
        self._held = {} if isinstance(given, Scope) else {sae.site: sae for sae in given}
        here = given.sites if isinstance(given, Scope) else tuple(self._held)
        asked = None if sites is None else {Site.of(site) for site in sites}
        for site in sorted(asked or ()):
            if site not in here:
                raise refuse("site-not-open", site=site, open=", ".join(map(str, sorted(here))))
        self.sites = sorted(here if asked is None else asked)

    def __getitem__(self, site: Site) -> Sae:
        return self._held[site] if self._scope is None else self._scope.load(site)


class _Evaluating:
    def __init__(
        self,
        model: Any,
        tokens: np.ndarray,
        saes: Iterable[Sae] | Scope,
        special: Sequence[int],
        sites: Iterable[Site | str] | None,
        unrounded: Iterable[Sae] | Scope,
        groups: Sequence[str] | None,
        loss_contexts: int | None,
        batch: int,
        progress: Progress | None,
    ) -> None:
        self.model, self.progress = model, progress
        self.saes, self.unrounded = _Saes(saes, sites), _Saes(unrounded, None)
        self.kept = torch.from_numpy(~np.isin(tokens, list(special)))
        if tokens.ndim != 2 or not self.kept[:, :-1].any():
            raise refuse("evaluate-no-text", shape=tuple(tokens.shape))
        if groups is not None and len(groups) != len(tokens):
            raise refuse("evaluate-groups", labels=len(groups), contexts=len(tokens))
        for site in self.saes.sites:
            if site.kind == "transcoder":
                raise refuse("transcoder-reconstructs-nothing", site=site)
            width_of(model, site)  # refuses a site that the model does not have
        self.ids = torch.from_numpy(tokens.astype(np.int64))
        self.count = len(tokens) if loss_contexts is None else max(1, min(loss_contexts, len(tokens)))
        self.labels = None if groups is None else np.array([str(label) for label in groups[: self.count]])
        self.device = next(model.parameters()).device
        self.layers = Layers(model, self.ids, batch)
        self.base = torch.zeros(self.count, dtype=torch.float64)
        self._done = self._of = 0.0
        self._started = time.monotonic()

    # ---- the work, counted in passes of one context through one layer

    def _cost(self, importance: int) -> float:
        depth = len(body(self.model).layers)
        layer = max(1, sum(p.numel() for p in body(self.model).layers[0].parameters()))
        self._head = self.model.get_output_embeddings().weight.numel() / layer
        total = self.count * (depth + self._head) + importance * 3 * depth
        for site in self.saes.sites:
            total += self.count * (2 + (site in self.unrounded.sites)) * (depth - site.layer + self._head)
        return total + 2 * len(self.ids) * len({site.layer for site in self.saes.sites})

    def _tick(self, cost: float) -> None:
        self._done += cost
        if self.progress is not None:
            seconds = time.monotonic() - self._started
            left = seconds / self._done * max(0.0, self._of - self._done)
            self.progress({"done": min(self._done, self._of), "of": self._of, "seconds_left": left})

    def go(self, outlier: float, importance: int) -> dict[Site, Evaluation]:
        importance = min(importance, len(self.ids))
        self._of = self._cost(importance)
        depth = len(body(self.model).layers)
        rows = slice(0, importance)
        with (
            closing(
                Gradients(self.model, self.ids[rows], self.kept[rows], self.saes.sites, lambda: self._tick(3 * depth))
            ) as self.gradients,
            torch.inference_mode(),
        ):
            by_layer: dict[int, list[Site]] = defaultdict(list)
            for site in self.saes.sites:
                by_layer[site.layer].append(site)
            self._base_loss()
            done: dict[Site, Evaluation] = {}
            for layer, sites in sorted(by_layer.items()):
                if layer > self.layers.layer:
                    self.layers.read((), lambda *_: None, to=layer, done=self._tick)
                done |= self._layer(sites, outlier)
        return done

    def _base_loss(self) -> None:
        for start, ids, _ in self.layers:
            some = ids[: max(0, self.count - start)]
            if len(some):
                self.base[start : start + len(some)] = self._losses(start, some)

    def _layer(self, sites: Sequence[Site], outlier: float) -> dict[Site, Evaluation]:
        """Two passes through one layer (the norms say which tokens count), then the losses from that layer on."""
        norms = {site: torch.zeros(self.kept.shape) for site in sites}

        def measure(start: int, site: Site, x: torch.Tensor) -> None:
            norms[site][start : start + len(x)] = x.float().norm(dim=2).cpu()

        self.layers.read(sites, measure, done=self._tick)
        inside = {}
        for site, norm in norms.items():
            bad = (~torch.isfinite(norm) & self.kept).nonzero()
            if len(bad):
                raise refuse("not-finite", site=site, position=int(bad[0][1]))
            inside[site] = self.kept & (norm <= outlier * norm[self.kept].median())
        saes = {site: self._placed(self.saes[site]) for site in sites}
        before = {site: self._placed(self.unrounded[site]) for site in sites if site in self.unrounded.sites}
        sums = {site: _Sums(sae) for site, sae in saes.items()}
        sums_before = {site: _Sums(sae) for site, sae in before.items()}
        even: dict[Site, list[torch.Tensor]] = defaultdict(list)

        def add(start: int, site: Site, x: torch.Tensor) -> None:
            here = inside[site][start : start + len(x)].to(x.device)
            for some in (sums, sums_before):
                if site in some:
                    some[site].add(x[here])
            for context in range(start, start + len(x)):
                gradient = self.gradients.at(site, context)
                if gradient is not None:
                    counted = here[context - start].clone()
                    counted[-1] = False  # nothing follows it
                    row = x[context - start][counted].float()
                    even[site].append(uniformity(saes[site], row, gradient.to(x.device)[counted]).cpu())

        self.layers.read(sites, add, done=self._tick)
        done = {}
        for site, sae in saes.items():
            average = sums[site].mean().to(self.device)
            stand_ins: dict[str, Replacement] = {
                "sae": lambda rows, sae=sae: sae.decode(sae.encode_dense(rows)),  # type: ignore[misc]
                "mean": lambda rows, average=average: average.expand_as(rows),  # type: ignore[misc]
            }
            if site in before:
                stand_ins["before"] = lambda rows, sae=before[site]: sae.decode(sae.encode_dense(rows))  # type: ignore[misc]
            rises = {name: self._rise(site, stand_in, inside[site]) for name, stand_in in stand_ins.items()}
            mean, ceiling = float(rises["sae"].mean()), float(rises["mean"].mean())
            frequency = sums[site].fired / max(1, sums[site].tokens)
            found = torch.cat(even[site]) if even[site] else torch.zeros(0)
            unrounded = None
            if site in before:
                unrounded = MappingProxyType(
                    sums_before[site].figures() | dict(zip(_MEAN_MEDIAN, _middle(rises["before"]), strict=True))
                )
            done[site] = Evaluation(
                tokens=int(inside[site].sum()),
                contexts=self.count,
                **sums[site].figures(),
                outliers=float(1 - inside[site].sum() / self.kept.sum()),
                loss=float(self.base.mean()),
                **dict(zip(_MEAN_MEDIAN, _middle(rises["sae"]), strict=True)),
                mean_delta_loss=ceiling,
                loss_recovered=1 - mean / ceiling if ceiling else float("nan"),
                width=sae.width,
                dead=float((frequency == 0).double().mean()),
                frequent=float((frequency > _OFTEN).double().mean()),
                uniformity=float(found.mean()) if len(found) else None,
                unrounded=unrounded,
                groups=self._groups(rises["sae"]),
                delta_loss=rises["sae"].numpy(),
                frequency=frequency.float().numpy(),
            )
        return done

    def _placed(self, sae: Sae) -> Sae:
        ours = width_of(self.model, sae.site)
        if sae.d_in != ours:
            raise refuse("evaluate-other-width", site=sae.site, theirs=sae.d_in, ours=ours)
        return sae.to(self.device)

    def _groups(self, rise: torch.Tensor) -> Mapping[str, Mapping[str, float]]:
        if self.labels is None:
            return MappingProxyType({})
        found = {}
        for label in sorted(set(self.labels)):
            here = torch.from_numpy(self.labels == label)
            figures = dict(zip(_MEAN_MEDIAN, _middle(rise[here]), strict=True))
            figures |= {"contexts": int(here.sum()), "loss": float(self.base[here].mean())}
            found[str(label)] = MappingProxyType(figures)
        return MappingProxyType(found)

    # ---- losses

    def _rise(self, site: Site, stand_in: Replacement, inside: torch.Tensor) -> torch.Tensor:
        """How much the loss of each context rises when `stand_in` replaces the tokens `inside` [context, token]."""
        rise = torch.zeros(self.count, dtype=torch.float64)
        for start, ids, hidden in self.layers:
            ids = ids[: max(0, self.count - start)]
            if not len(ids):
                break
            hidden = None if hidden is None else hidden[: len(ids)]
            here = inside[start : start + len(ids)].to(self.device)

            def replacement(x: torch.Tensor, here: torch.Tensor = here) -> torch.Tensor:
                out = x.clone()
                out[here] = stand_in(x[here]).to(x.dtype)
                return out

            with starting_at(self.model, self.layers.layer, hidden), replacing(self.model, site, replacement):
                after = self._losses(start, ids, site.layer)
            rise[start : start + len(ids)] = after - self.base[start : start + len(ids)]
        return rise

    def _losses(self, start: int, ids: torch.Tensor, layer: int = 0) -> torch.Tensor:
        """Mean next-token loss of each context of `ids`, over predictions made from tokens that are kept."""
        hidden = body(self.model)(ids, use_cache=False).last_hidden_state[:, :-1]
        kept = self.kept[start : start + len(ids), :-1].to(self.device)
        context = kept.nonzero()[:, 0]
        losses = []
        for rows, targets in zip(hidden[kept].split(_LOGIT_ROWS), ids[:, 1:][kept].split(_LOGIT_ROWS), strict=True):
            some = logits(self.model, rows)
            losses.append(some.logsumexp(1) - some.gather(1, targets[:, None])[:, 0])
        total = torch.zeros(len(ids), dtype=torch.float64)
        total.index_add_(0, context.cpu(), torch.cat(losses).cpu().double())
        self._tick(len(ids) * (len(body(self.model).layers) - layer + self._head))
        return total / kept.sum(1).clamp_min(1).cpu()


def _middle(rise: torch.Tensor) -> tuple[float, float]:
    return float(rise.mean()), float(rise.quantile(0.5))


class _Sums:
    """What L0, FVU and firing frequencies are made from, gathered block by block."""

    def __init__(self, sae: Sae) -> None:
        self.sae, self.tokens = sae, 0
        self.fired = torch.zeros(sae.width, dtype=torch.float64)
        self.total, self.squares, self.error = (torch.zeros(sae.d_in, dtype=torch.float64) for _ in range(3))

    def add(self, rows: torch.Tensor) -> None:
        """`rows` [token, d_in], raw activations."""
        for some in rows.split(max(1, _BLOCK // self.sae.width)):
            x = some.float()
            acts = self.sae.encode_dense(x)
            self.tokens += len(x)
            self.fired += acts.count_nonzero(0).cpu()
            self.error += (self.sae.decode(acts) - x).pow_(2).sum(0).cpu()
            exact = x.cpu().double()  # not every device has float64
            self.total += exact.sum(0)
            self.squares += exact.pow(2).sum(0)

    def mean(self) -> torch.Tensor:
        return (self.total / max(1, self.tokens)).float()

    def figures(self) -> dict[str, float]:
        """l0, fvu and fvu_other_dims."""
        variance = (self.squares - self.total.pow(2) / max(1, self.tokens)).clamp_min(0)
        spread = variance.sqrt()
        ordinary = spread <= _MASSIVE * spread.median()
        return {
            "l0": float(self.fired.sum()) / max(1, self.tokens),
            "fvu": float(self.error.sum() / variance.sum()),
            "fvu_other_dims": float(self.error[ordinary].sum() / variance[ordinary].sum()),
        }


def reconstruction(sae: Sae, rows: torch.Tensor) -> dict[str, float]:
    """`l0`, `fvu` and `fvu_other_dims` of an SAE on raw activations [token, d_in]."""
    sums = _Sums(sae)
    sums.add(rows)
    return sums.figures()


def feature_stats(sae: Sae, rows: torch.Tensor, *, cut: float = float("inf")) -> FeatureStats:
    """Maximum, density and mean activation of every feature over raw activations [token, d_in].

    Tokens with a norm above `cut` are left out: one outlier would set the maxima of the features it happens to excite.
    """
    maximum = torch.zeros(sae.width)
    total = torch.zeros(sae.width, dtype=torch.float64)
    fired = torch.zeros(sae.width, dtype=torch.float64)
    sae = sae.to(rows.device)
    seen = 0
    with torch.inference_mode():
        for chunk in rows.split(8192):
            x = chunk.float()
            acts = sae.encode_dense(x[x.norm(dim=1) <= cut])
            seen += len(acts)
            maximum = torch.maximum(maximum, acts.amax(0).cpu())
            total += acts.sum(0).cpu()
            fired += (acts > 0).sum(0, dtype=torch.int32).cpu()
    never = fired == 0
    unknown = torch.tensor(torch.nan)
    maximum, mean = torch.where(never, unknown, maximum), torch.where(never, unknown.double(), total / fired)
    return FeatureStats(
        maximum=maximum.numpy(),
        density=(fired / max(seen, 1)).float().numpy(),
        mean_active=mean.float().numpy(),
    )
