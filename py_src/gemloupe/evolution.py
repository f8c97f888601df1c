"""From layer to layer: what each site holds at each token, which features are the same thing, what led to what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .errors import Refusal, refuse
from .feature import FeatureId, whole
from .site import KINDS, Site, in_words
from .sparse import SparseActs
from .trace import Token, Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NamesOf = Callable[[Iterable[FeatureId]], Mapping[FeatureId, Any]]
"""What features are called: anything with a `text` for each that is known, such as a `Label`."""

# What a grid can show besides a feature: one number per layer or site and token.
MEASURES = ("l0", "norm", "fvu", "entropy")


def named(names_of: NamesOf | None, features: Iterable[FeatureId]) -> Mapping[FeatureId, str]:
    """Short names of features; none where nobody is there to be asked."""
    if names_of is None:
        return {}
    try:
        return {one: str(label.text).split(" · ")[0] for one, label in names_of(tuple(dict.fromkeys(features))).items()}
    except Refusal:  # the loupe is closed
        return {}


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
    """Two features of neighbouring layers, of the same kind of site, that are the same thing: see `Match.same`.

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

    `cosine` and `coactivation` as of a `Ribbon`. `mutual`: each is the other's nearest. `same`: the two are taken for
    the same thing, so that a ribbon joins them: no feature is the same as two others of one layer.
    """

    feature: FeatureId
    cosine: float
    coactivation: float | None
    mutual: bool = False
    same: bool = False


LEAST_COSINE, LEAST_TOGETHER = 0.3, 0.05


def alike(cosine: Any, coactivation: Any) -> np.ndarray:
    """Whether pairs are near enough and fire together enough to be one thing, bool; nan is not known, and no objection.

    The nearest of 2,048 random directions of 640 numbers has a cosine of 0.15. Directions that share a massive
    dimension have 0.9 and more, but fire together on no more tokens than any two features.
    """
    return (np.asarray(cosine) >= LEAST_COSINE) & ~(np.asarray(coactivation) < LEAST_TOGETHER)


class Matches(tuple[Match, ...]):
    """What `feature` is one layer earlier and one later: by layer, closest first."""

    feature: FeatureId
    names_of: NamesOf | None

    def __new__(cls, feature: FeatureId, found: Iterable[Match] = (), names_of: NamesOf | None = None) -> Matches:
        made = super().__new__(cls, found)
        made.feature, made.names_of = feature, names_of
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {}  # without the loupe that gives names

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.feature, tuple(self)

    def figure(self, names: Mapping[FeatureId, str] | None = None) -> Figure:
        """A plotly Sankey diagram: earlier, the feature, later; with the loupe's labels as long as it is open."""
        from .evolution_figures import matched

        ends = (self.feature, *(one.feature for one in self))
        return matched(self, named(self.names_of, ends) if names is None else names)

    def __repr__(self) -> str:
        if not self:
            return f"Matches of {self.feature}: none, since no layer beside it is open"
        lines = [f"Matches of {self.feature}"]
        for one in self:
            together = "not known" if one.coactivation is None else f"{one.coactivation:.0%}"
            same = "  the same thing" if one.same else ""
            lines.append(f"  {one.feature!s:<14} cosine {one.cosine:.2f}  together {together}{same}")
        return "\n".join(lines)


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

    def guessing(self, guesses: Mapping[int, tuple[Guess, ...]]) -> Columns:
        """The same with these guesses beside those that are there."""
        made = copy(self)
        made.guesses = {**self.guesses, **guesses}
        return made

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
    across them. `layers` is how many the model has. `notes` are sentences for the user. `follow` finds a feature's
    matches in all layers, shown here or not, as long as the loupe is open; `names_of` says what features are called.
    """

    trace: Trace
    columns: Sequence[TokenColumn]
    ribbons: tuple[Ribbon, ...] = ()
    missing: tuple[Site, ...] = ()
    layers: int = 0
    notes: tuple[str, ...] = ()
    follow: Callable[[FeatureId], tuple[FeatureId, ...]] | None = field(default=None, repr=False)
    names_of: NamesOf | None = field(default=None, repr=False)

    def column(self, token: int | str) -> TokenColumn:
        """The column of a token, by position (negative counts from the end) or text (its last occurrence)."""
        return self.columns[self.trace.positions(token)[-1]]

    def trail(self, feature: FeatureId | str) -> tuple[FeatureId, ...]:
        """A feature with what is the same thing in earlier and later layers, by layer, whether it is on here or not.

        It ends where no feature of the next layer is its mutual nearest, and where the next site is not open. Without
        the loupe that read the text, only along the ribbons shown.
        """
        name = self._known(feature)
        if self.follow is not None:
            try:
                return self.follow(name)
            except Refusal as refusal:
                if refusal.code not in ("engine-closed", "not-local"):
                    raise
        after = {one.source: one.target for one in self.ribbons}
        before = {one.target: one.source for one in self.ribbons}
        found = [name]
        while found[0] in before:
            found.insert(0, before[found[0]])
        while found[-1] in after:
            found.append(after[found[-1]])
        return tuple(found)

    def grid(self, what: FeatureId | str, kind: str = "res") -> Grid:
        """Layers by tokens: a feature with its matches in all layers ('res.12/834'), or a measure of whole layers.

        Measures are 'l0', 'norm' and 'fvu' of the sites of `kind`, and 'entropy' of the model's guess after each layer.
        Special tokens have no values. Refuses 'measure-unknown', 'site-not-open' and 'feature-out-of-range'.
        """
        if isinstance(what, FeatureId) or (isinstance(what, str) and "/" in what):
            return self.strengths(self.trail(what), every_layer=True)
        if what not in MEASURES or kind not in KINDS:
            raise refuse("measure-unknown", given=what if what not in MEASURES else kind, known=", ".join(MEASURES))
        columns, trace = self.columns, self.trace
        assert isinstance(columns, Columns)
        ordinary = self._ordinary()
        if what == "entropy":
            layers = sorted({guess.layer for made in columns.guesses.values() for guess in made})
            table = np.full((len(layers), len(trace)), np.nan, np.float32)
            for position, made in columns.guesses.items():
                for guess in made:
                    table[layers.index(guess.layer), position] = guess.entropy
            return Grid(trace.tokens, tuple(Site("res", layer) for layer in layers), table, what, unit="nats")
        sites = tuple(site for site in trace.sites if site.kind == kind)
        of = {"l0": lambda s: trace.acts[s].l0, "norm": lambda s: columns.norms[s], "fvu": lambda s: columns.fvus[s]}
        rows = [np.where(ordinary, of[what](site), np.nan) for site in sites]
        table = np.array(rows, np.float32).reshape(len(sites), len(trace))
        unit = {"l0": "features", "norm": "length", "fvu": "share of variance"}[what]
        return Grid(trace.tokens, sites, table, what, unit=unit, missing=self._missing(kind))

    def strengths(self, features: Iterable[FeatureId | str], *, every_layer: bool = False) -> Grid:
        """Strengths of features at every token; with `every_layer`, rows of layers without one as well."""
        trace = self.trace
        names = [self._known(feature) for feature in features]
        known = all(bool(trace.maxima[name.site][name.index] > 0) for name in names)
        rows: dict[Site, FeatureId | None] = {}
        if every_layer and names:
            rows = dict.fromkeys(site for site in trace.sites if site.kind == names[0].site.kind)
        listed: list[tuple[Site, FeatureId | None]]
        if rows:
            rows |= {name.site: name for name in names}
            listed = sorted(rows.items(), key=lambda one: one[0])
        else:
            listed = [(name.site, name) for name in names]
        table = np.full((len(listed), len(trace)), np.nan, np.float32)
        ordinary = self._ordinary()
        for row, (site, name) in enumerate(listed):
            if name is not None:
                values = trace.acts[site].column(name.index)
                table[row] = np.where(ordinary, values / trace.maxima[site][name.index] if known else values, np.nan)
        measure, unit = ("strength", "of its own maximum") if known else ("activation", "raw")
        missing = self._missing(names[0].site.kind) if rows else ()
        sites, shown = tuple(site for site, _ in listed), tuple(name for _, name in listed)
        return Grid(trace.tokens, sites, table, measure, shown, missing, unit, self.names_of)

    def _known(self, feature: FeatureId | str) -> FeatureId:
        name = FeatureId.of(feature)
        if name.site not in self.trace.acts:
            raise refuse("site-not-open", site=name.site, open=in_words(self.trace.sites))
        return name.within(self.trace.acts[name.site].shape[1])

    def _ordinary(self) -> np.ndarray:
        return np.array([not token.special for token in self.trace.tokens], bool)

    def _missing(self, kind: str) -> tuple[Site, ...]:
        return tuple(site for site in self.missing if site.kind == kind)

    def figure(self, token: int | str = -1, names: Mapping[FeatureId, str] | None = None) -> Figure:
        """A plotly figure of one token: features as blocks in three bands, ribbons, and the measures below.

        `names` are shown where one points at a feature; by default the loupe's labels, as long as it is open.
        """
        from .evolution_figures import profile

        column = self.column(token)
        return profile(self, column, self._names(column) if names is None else names)

    def sankey(self, token: int | str = -1, names: Mapping[FeatureId, str] | None = None) -> Figure:
        """A plotly Sankey diagram of one token's features and the ribbons between them."""
        from .evolution_figures import sankey

        column = self.column(token)
        return sankey(self, column, self._names(column) if names is None else names)

    def _names(self, column: TokenColumn) -> Mapping[FeatureId, str]:
        return named(self.names_of, (block.feature for site in column.sites for block in site.blocks))

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
    is 'strength', or 'activation' where some feature's maximum is not known, or one of `MEASURES`; `unit` says what it
    is in. `missing` as in `Evolution`.
    """

    tokens: tuple[Token, ...]
    sites: tuple[Site, ...]
    values: np.ndarray
    measure: str
    features: tuple[FeatureId | None, ...] | None = None
    missing: tuple[Site, ...] = ()
    unit: str = ""
    names_of: NamesOf | None = field(default=None, repr=False)

    def figure(self, names: Mapping[FeatureId, str] | None = None) -> Figure:
        """A plotly heat map, the last layer on top."""
        from .evolution_figures import heat

        features = (one for one in self.features or () if one is not None)
        return heat(self, named(self.names_of, features) if names is None else names)

    def __repr__(self) -> str:
        return f"Grid of {self.measure}: {len(self.sites)} sites by {len(self.tokens)} tokens"


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

    `effects` is how many there were before the weaker ones were left out. `explained` is the share of all effects that
    the edges carry, `error` the share that passes through what the SAEs miss. Shares are of absolute effects: of every
    feature, and of every (site, token)'s error and bias. Effects at two layers are not to be added up, since the later
    one carries on what the earlier one began. `sums` gives for each site (features, errors, biases), signed: together
    the effect of the whole tensor there. At late layers that is nearly 0 whatever the target, because a norm forgets
    the length of what it reads; so it is no measure of a share.
    """

    target: FeatureId | Token
    position: int
    value: float
    edges: tuple[Edge, ...]
    error: float
    explained: float
    trace: Trace
    against: Token | None = None
    effects: int = 0
    sums: Mapping[Site, tuple[float, float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ablate: Callable[[Attribution, tuple[Edge, ...]], tuple[float, ...]] | None = field(default=None, repr=False)
    names_of: NamesOf | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", MappingProxyType(dict(self.sums)))

    def check(self, which: int | FeatureId | str | Edge | Iterable[FeatureId | str | Edge] = 10) -> Attribution:
        """The same, with `measured` of some edges filled: each source is taken out, one at a time, a pass for each.

        `which` is how many of the strongest, or a feature (all of its edges), an edge, or several of them. Refuses
        'count-unreadable', 'edge-unknown', and 'attribution-unchecked' where the loupe that made this is not there.
        """
        places = self._places(which)
        if self.ablate is None:
            raise refuse("attribution-unchecked")
        found = self.ablate(self, tuple(self.edges[place] for place in places))
        edges = list(self.edges)
        for place, change in zip(places, found, strict=True):
            edges[place] = replace(edges[place], measured=change)
        return replace(self, edges=tuple(edges))

    def _places(self, which: Any) -> list[int]:
        if isinstance(which, (FeatureId, str, Edge)):
            which = (which,)
        if not isinstance(which, Iterable):
            number = whole(which)
            if number is None or number < 1:
                raise refuse("count-unreadable", name="which", given=which, least=1)
            return list(range(min(number, len(self.edges))))
        places: list[int] = []
        for one in which:
            key = (one.source, one.position) if isinstance(one, Edge) else FeatureId.of(one)
            here = [i for i, e in enumerate(self.edges) if key in (e.source, (e.source, e.position))]
            if not here:
                named = f"{one.source} at {one.position}" if isinstance(one, Edge) else one
                raise refuse("edge-unknown", given=named, edges=len(self.edges))
            places += [place for place in here if place not in places]
        return places

    def figure(self, names: Mapping[FeatureId, str] | None = None) -> Figure:
        """A plotly figure: the sources by layer and token, and the strongest as bars, with what was measured."""
        from .evolution_figures import sources

        given = named(self.names_of, (edge.source for edge in self.edges)) if names is None else names
        return sources(self, given)

    def __repr__(self) -> str:
        name = repr(self.target.text) if isinstance(self.target, Token) else str(self.target)
        name += "" if self.against is None else f" against {self.against.text!r}"
        lines = [
            f"Attribution of {name} at position {self.position}: {self.value:.4g}",
            f"  {len(self.edges)} of {max(self.effects, len(self.edges)):,} edges carry {self.explained:.0%} of all "
            f"effects, what the SAEs miss {self.error:.0%}",
        ]
        for edge in self.edges[:12]:
            seen = "" if edge.measured is None else f"  measured {edge.measured:+.4g}"
            token = self.trace.tokens[edge.position].text
            lines.append(f"  {edge.effect:+.4g}  {edge.source} at {edge.position} {token!r}{seen}")
        if len(self.edges) > 12:
            lines.append(f"  and {len(self.edges) - 12} more")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
