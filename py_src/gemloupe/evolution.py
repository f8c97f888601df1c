"""From layer to layer: what each site holds at each token, which features are the same thing, what led to what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .errors import refuse
from .feature import FeatureId, whole
from .site import Site
from .sparse import SparseActs
from .trace import Token, Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# What a grid can show besides a feature: one number per layer or site and token.
MEASURES = ("l0", "norm", "fvu", "entropy")


@dataclass(frozen=True, eq=False)
class Block:
    """One feature that is on at one token. `value` is raw; `strength` is in units of the feature's own maximum, None
    where that is not known."""

    feature: FeatureId
    value: float
    strength: float | None


@dataclass(frozen=True, eq=False)
class SiteAt:
    """One token at one site: its strongest features, and how the site as a whole looks there.

    `blocks`: at most k, strongest first (features without a known maximum last, by raw value). `l0`: features on.
    `norm`: length of the tensor. `fvu`: squared length of what the reconstruction misses, by the mean squared distance
    of the text's tokens from their mean; the mean of it over ordinary tokens is the fraction of variance unexplained.
    None at special tokens and where that distance is not known.
    """

    site: Site
    blocks: tuple[Block, ...]
    l0: int
    norm: float
    fvu: float | None


@dataclass(frozen=True)
class Ribbon:
    """Two features of neighbouring layers, of the same kind of site, that are the same thing: each is the other's
    nearest.

    `cosine` is that of their directions; `coactivation` the share of the tokens where one of them fires on which both
    do (Jaccard), estimated from an index, None where it has not seen both.
    """

    source: FeatureId
    target: FeatureId
    cosine: float
    coactivation: float | None


@dataclass(frozen=True)
class Match:
    """A feature of a neighbouring layer that may be the same thing as one asked about.

    `cosine` and `coactivation` as of a `Ribbon`. `mutual`: each is the other's nearest, so that a ribbon joins them.
    """

    feature: FeatureId
    cosine: float
    coactivation: float | None
    mutual: bool = False


@dataclass(frozen=True, eq=False)
class Guess:
    """What the model would say next if it stopped after `layer`: its final norm, unembedding and soft-cap on the
    residual stream there.

    `tokens` are (id, display text, probability), likeliest first; `entropy` of the whole distribution, in nats.
    """

    layer: int
    tokens: tuple[tuple[int, str, float], ...]
    entropy: float


@dataclass(frozen=True, eq=False)
class TokenColumn:
    """One token, from the first layer to the last. `guesses` has one `Guess` per layer, or is empty where they were
    not asked for."""

    position: int
    sites: tuple[SiteAt, ...]
    guesses: tuple[Guess, ...] = ()


class Columns(Sequence[TokenColumn]):
    """The columns of a text, kept as arrays: each is made when it is looked at, so that a long text costs little.

    `k`: blocks at most per site. `norms` and `fvus` hold float32 [token] per site (nan where unknown), `guesses` one
    `Guess` per layer for the positions that have them.
    """

    def __init__(
        self,
        trace: Trace,
        k: int,
        norms: Mapping[Site, np.ndarray],
        fvus: Mapping[Site, np.ndarray],
        guesses: Mapping[int, tuple[Guess, ...]],
    ) -> None:
        self.k, self.norms, self.fvus, self.guesses = k, norms, fvus, guesses
        self._trace = trace
        self._shown = {site: shown(acts, trace.maxima[site], k) for site, acts in trace.acts.items()}

    def __len__(self) -> int:
        return len(self._trace)

    @overload
    def __getitem__(self, key: int) -> TokenColumn: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[TokenColumn]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(self._made(position) for position in range(*key.indices(len(self))))
        position = whole(key)
        if position is None or not -len(self) <= position < len(self):
            raise refuse("position-out-of-range", given=key, last=len(self) - 1)
        return self._made(position % len(self))

    def blocks(self, site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All shown blocks at a site, as arrays: `starts` int64 [token + 1], then in the order of the tokens and
        strongest first `features` int64, `values` float32, `strengths` float32 (nan where unknown)."""
        return self._shown[site]

    def _made(self, position: int) -> TokenColumn:
        made = []
        for site, (starts, features, values, strengths) in self._shown.items():
            part = slice(starts[position], starts[position + 1])
            rows = zip(features[part].tolist(), values[part].tolist(), strengths[part].tolist(), strict=True)
            blocks = tuple(Block(FeatureId(site, i), v, None if np.isnan(s) else s) for i, v, s in rows)
            fvu = float(self.fvus[site][position])
            l0 = int(self._trace.acts[site].l0[position])
            made.append(SiteAt(site, blocks, l0, float(self.norms[site][position]), None if np.isnan(fvu) else fvu))
        return TokenColumn(position, tuple(made), self.guesses.get(position, ()))


def shown(acts: SparseActs, maxima: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The k strongest of each token, by value / maximum, without a known maximum last and by value: as `blocks`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        strengths = acts.values / maxima[acts.indices]
    rows = acts.rows
    order = np.lexsort((-acts.values, -np.nan_to_num(strengths, nan=-1.0), rows))
    starts = acts.indptr.astype(np.int64)
    kept = order[np.arange(len(order)) - starts[rows] < k]  # rows ascend in `order` too
    counts = np.minimum(acts.l0, k)
    return (
        np.concatenate([[0], np.cumsum(counts)]),
        acts.indices[kept].astype(np.int64),
        acts.values[kept],
        strengths[kept],
    )


def gaps(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sites that are not among `sites`, between the first and the last layer of each kind that is."""
    open_ = set(sites)
    by_kind: dict[str, list[int]] = {}
    for site in open_:
        by_kind.setdefault(site.kind, []).append(site.layer)
    between = {Site(kind, layer) for kind, layers in by_kind.items() for layer in range(min(layers), max(layers))}
    return tuple(sorted(between - open_))


@dataclass(frozen=True, eq=False)
class Evolution:
    """How the features of one text appear, change and go, layer by layer.

    `columns` has one `TokenColumn` per token of `trace`. `ribbons` join any two shown blocks that are the same thing.
    `missing` are sites that are not open, between the first and the last open layer of their kind: nothing is joined
    across them. `layers` is how many the model has. `notes` are sentences for the user.
    """

    trace: Trace
    columns: Sequence[TokenColumn]
    ribbons: tuple[Ribbon, ...] = ()
    missing: tuple[Site, ...] = ()
    layers: int = 0
    notes: tuple[str, ...] = ()

    def column(self, token: int | str) -> TokenColumn:
        """The column of a token, by position (negative counts from the end) or text (its last occurrence)."""
        return self.columns[self.trace.positions(token)[-1]]

    def figure(self, token: int | str = -1) -> Figure:
        """A plotly figure of one token: features as blocks in three bands, ribbons, and the measures below."""
        from .evolution_figures import profile

        return profile(self, self.column(token))

    def sankey(self, token: int | str = -1) -> Figure:
        """A plotly Sankey diagram of one token's features and the ribbons between them."""
        from .evolution_figures import sankey

        return sankey(self, self.column(token))

    def __repr__(self) -> str:
        lines = [f"Evolution({self.trace.text!r}, {len(self.columns)} tokens, {len(self.trace.sites)} sites)"]
        if self.missing:
            lines.append(f"  not open: {', '.join(map(str, self.missing))}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False)
class Grid:
    """Layers by tokens: one number for each.

    `values` float32 [site, token], nan where there is none; `sites` in the order of the forward pass; `features` are
    those whose strengths are shown, one per site (None where a layer has no match), or None for a measure. `measure`
    is 'strength', or 'activation' where a feature's maximum is not known, or one of `MEASURES`; `unit` says what it
    is in. `missing` as in `Evolution`.
    """

    tokens: tuple[Token, ...]
    sites: tuple[Site, ...]
    values: np.ndarray
    measure: str
    features: tuple[FeatureId | None, ...] | None = None
    missing: tuple[Site, ...] = ()

    def figure(self) -> Figure:
        """A plotly heat map."""
        from .evolution_figures import heat

        return heat(self)


@dataclass(frozen=True, eq=False)
class Edge:
    """A feature that was on at token `position`, and what it did to the target.

    `effect`: its activation times the gradient of the target by it, in the target's unit: to first order, what the
    target would lose without it. `measured`: what it did lose when the feature was taken out there, everything after
    computed anew; None until `Attribution.check` has measured it.
    """

    source: FeatureId
    target: FeatureId | Token
    effect: float
    position: int
    measured: float | None = None


@dataclass(frozen=True, eq=False)
class Attribution:
    """Which features raised or lowered a target: a feature's activation at a token, or the logit of a next token.

    `position` is the token where the feature fires, or after which the next token is predicted; `value` the target's
    value there: of a token's logit, less that of `against` where one is given. `edges`, strongest effect first, are
    those shown.

    `explained` is the share of all effects that they carry, `error` the share that passes through what the SAEs miss.
    Shares are of absolute effects: of every feature, and of every (site, token)'s error and bias. Effects at two
    layers are not to be added up, since the later one carries on what the earlier one began. `sums` gives for each
    site (features, errors, biases), signed: together the effect of the whole tensor there. At late layers that is
    nearly 0 whatever the target, because a norm forgets the length of what it reads; so it is no measure of a share.
    """

    target: FeatureId | Token
    position: int
    value: float
    edges: tuple[Edge, ...]
    error: float
    explained: float
    trace: Trace
    against: Token | None = None
    sums: Mapping[Site, tuple[float, float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ablate: Callable[[Attribution, tuple[Edge, ...]], tuple[float, ...]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", MappingProxyType(dict(self.sums)))

    def check(self, n: int = 10) -> Attribution:
        """The same, with `measured` of the n strongest edges filled: each source is taken out, one at a time.

        A pass of the model for each. Refuses 'count-unreadable', and 'attribution-unchecked' where the loupe that
        made this is not there.
        """
        count = whole(n)
        if count is None or count < 1:
            raise refuse("count-unreadable", name="n", given=n, least=1)
        if self.ablate is None:
            raise refuse("attribution-unchecked")
        asked = self.edges[:count]
        found = self.ablate(self, asked)
        checked = [replace(edge, measured=change) for edge, change in zip(asked, found, strict=True)]
        return replace(self, edges=(*checked, *self.edges[count:]))

    def figure(self) -> Figure:
        """A plotly figure: the sources by layer and token, raising ones and lowering ones."""
        from .evolution_figures import sources

        return sources(self)

    def __repr__(self) -> str:
        name = repr(self.target.text) if isinstance(self.target, Token) else str(self.target)
        name += "" if self.against is None else f" against {self.against.text!r}"
        lines = [
            f"Attribution of {name} at position {self.position}: {self.value:.4g}",
            f"  {len(self.edges)} edges carry {self.explained:.0%} of all effects, what the SAEs miss {self.error:.0%}",
        ]
        for edge in self.edges[:12]:
            seen = "" if edge.measured is None else f"  measured {edge.measured:+.4g}"
            token = self.trace.tokens[edge.position].text
            lines.append(f"  {edge.effect:+.4g}  {edge.source} at {edge.position} {token!r}{seen}")
        if len(self.edges) > 12:
            lines.append(f"  and {len(self.edges) - 12} more")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
