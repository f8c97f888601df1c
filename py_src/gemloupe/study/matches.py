"""The same thing one layer on: which features of neighbouring layers match, one to one, once for all features.

Two features match by the cosine of what they write to the residual stream, and by how often they fire together. Cosine
alone joins what has nothing in common: directions that share one of the stream's massive dimensions are near each other
whatever they are about. Of each feature the nearest two in the next layer are candidates, both ways; pairs that are
near and fire together become one thing in the order of the sum of the two, each feature once. An assignment that
maximises the sum over all was left out: at 16,384 features it takes minutes and a gigabyte per pair of sites, and it
joins what has no counterpart to whatever is left over, which is what a reader must not be shown. Where there is no
file, and so nothing is known of what fires together, only each other's nearest are taken for one thing.

Residual streams, MLP outputs and what transcoders predict are all in the stream. An attention site is not: its features
are in the basis of its own layer's heads. They are compared by what they add to the stream, through W_O and the gain
of the norm after it (the norm's other factor is one number per token and turns no direction).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import refuse
from ..evolution import Match, Matches, alike
from ..feature import FeatureId
from ..run.apart import apart
from ..site import Site
from ..sparse import SparseActs
from .index.store import plain
from .neighbours import count_of, nearest

if TYPE_CHECKING:
    import torch

    from .index import Index

FILE = "matches.parquet"
KEPT = 2  # in each neighbouring layer, of every feature
RANKS = (*range(KEPT), "same")  # of a file's columns: the nearest, and the one that is the same thing
TOKENS = 100_000  # of the index's text that co-activation is measured on
LEAST = 5  # firings of each of two features, below which their co-activation is not known
_FORMAT = 1
_NONE = 0xFFFFFFFF  # stands where there is none
_STEPS = 1000  # of a cosine in a file
_SHARES = 0xFE  # of 1; the byte above stands for unknown
_UNKNOWN = 0xFF
_TOGETHER = 1024  # tokens read at a time


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sites of one kind in neighbouring layers. `there` and `back` are (features int32 [feature, k], cosines
    float32 [feature, k]), closest first: of `two` for each feature of `one`, and the other way round. -1 and nan stand
    where there are fewer than k."""

    one: Site
    two: Site
    there: tuple[np.ndarray, np.ndarray]
    back: tuple[np.ndarray, np.ndarray]

    @property
    def mutual(self) -> np.ndarray:
        """For each feature of `one`, the feature of `two` that it is one thing with, or -1: int64 [feature]."""
        return mutual(self.there[0][:, 0], self.back[0][:, 0])


def mutual(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """`there` [feature] where `back` of it leads home, else -1."""
    there = there.astype(np.int64)
    home = np.where(there >= 0, back[np.maximum(there, 0)], -1) == np.arange(len(there))
    return np.where(home, there, -1)


def neighbours_of(site: Site, among: Sequence[Site]) -> tuple[Site | None, Site | None]:
    """The sites of the same kind in the layer before and the layer after, where they are among those given."""
    before = Site(site.kind, site.layer - 1) if site.layer else None
    after = Site(site.kind, site.layer + 1)
    return before if before in among else None, after if after in among else None


def written(source: Any, site: Site) -> torch.Tensor | None:
    """What features write to the residual stream, unit length: float32 [feature, d_model] where the SAE is.

    None for an attention site of a scope without its model: W_O is needed there. A row of zeros stays one.
    """
    import torch
    from torch.nn.functional import normalize

    if site.kind == "att" and not hasattr(source, "loaded"):
        return None
    sae = source.sae(site) if hasattr(source, "sae") else source.load(site)
    with torch.no_grad():
        rows = sae.decoder.detach().float()
        if site.kind == "att":
            from ..run.capture import body

            layer = body(source.loaded.model).layers[site.layer]
            rows = rows @ layer.self_attn.o_proj.weight.T.float() * (1 + layer.post_attention_layernorm.weight.float())
        return normalize(rows, dim=1)


def pairs(source: Any, k: int = KEPT) -> Iterator[Pair]:
    """A `Pair` for any two open sites of one kind in neighbouring layers, k matches for each feature both ways.

    `source` is a scope or an engine in this kernel. Each pair is multiplied once, in blocks. Two directions are
    comparable only if they are equally wide.
    """
    k = count_of(k)
    held: dict[Site, torch.Tensor | None] = {}
    for one in sorted(source.sites, key=lambda site: (site.kind, site.layer)):
        _, two = neighbours_of(one, source.sites)
        mine = held.pop(one) if one in held else None
        if two is None:
            continue
        mine = written(source, one) if mine is None else mine
        held[two] = theirs = written(source, two)
        if mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
            continue
        there, back = nearest(mine, theirs, k, both=True)
        yield Pair(one, two, there, back)


# ---- one feature, and those that are shown


@apart
def matches(source: Any, feature: FeatureId, k: int = KEPT) -> tuple[Match, ...]:
    """The k nearest features in the layer before and the k in the layer after, by layer, closest first; without
    co-activation. Reads the decoders of these sites. Empty where neither layer is open."""
    k = count_of(k)
    if feature.site not in source.sites:
        raise refuse("site-not-open", site=feature.site, open=", ".join(map(str, source.sites)) or "none")
    found: list[Match] = []
    mine = None
    for other in neighbours_of(feature.site, source.sites):
        if other is None:
            continue
        mine = written(source, feature.site) if mine is None else mine
        theirs = written(source, other)
        if mine is None or theirs is None or theirs.shape[1] != mine.shape[1]:
            continue
        row = mine[feature.within(len(mine)).index][None]
        ((features, cosines),) = nearest(row, theirs, k)
        for rank, (index, cosine) in enumerate(zip(features[0].tolist(), cosines[0].tolist(), strict=True)):
            if index >= 0:
                home = rank == 0 and int(nearest(theirs[index][None], mine, 1)[0][0][0, 0]) == feature.index
                found.append(Match(FeatureId(other, index), cosine, None, home, home and bool(alike(cosine, np.nan))))
    if mine is None:
        feature.within(_width(source, feature.site))
    return tuple(found)


def of_feature(engine: Any, file: MatchFile | None, feature: FeatureId, k: int, sites: Sequence[Site]) -> Matches:
    """From the file where it knows enough, else from the decoders, with what the file knows of co-activation."""
    k = count_of(k)
    if feature.site not in sites:
        raise refuse("site-not-open", site=feature.site, open=", ".join(map(str, sites)) or "none")
    known = () if file is None else file.of(feature, KEPT, sites)
    if file is not None and k <= KEPT:
        return Matches(feature, file.of(feature, k, sites))
    if not hasattr(engine, "loaded"):
        raise refuse("not-local")
    found = [one for one in matches(engine, feature, k) if one.feature.site in sites]
    if file is not None:
        kept = {one.feature: one for one in known}
        found = [kept.get(one.feature, replace(one, same=False)) for one in found]
    return Matches(feature, found)


def trail(engine: Any, file: MatchFile | None, feature: FeatureId, sites: Sequence[Site]) -> tuple[FeatureId, ...]:
    """A feature with what is the same thing in earlier and later layers, by layer; never across a site that is not
    among `sites`."""
    found = [feature]
    for step in (-1, 1):
        at: FeatureId | None = feature
        while at is not None:
            beside = of_feature(engine, file, at, 1, sites)
            layer = at.site.layer + step
            at = next((one.feature for one in beside if one.same and one.feature.site.layer == layer), None)
            if at is not None:
                found.append(at)
    return tuple(sorted(found))


def _width(source: Any, site: Site) -> int:
    scope = getattr(source, "scope", None) or source
    return int(scope.width(site))


def joined(source: Any, one: Site, two: Site, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which features of `left` (of `one`) are one thing with which of `right` (of `two`): the same as `Pair.mutual`,
    for a few. Returns the partner of each of `left` (or -1) and the cosine."""
    none = np.full(len(left), -1), np.full(len(left), np.nan, np.float32)
    if not len(left) or not len(right):
        return none
    mine, theirs = written(source, one), written(source, two)
    if mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
        return none
    ((features, cosines),) = nearest(mine[left], theirs, 1)
    partner = features[:, 0].astype(np.int64)
    asked = np.flatnonzero(np.isin(partner, right))
    if len(asked):
        ((back, _),) = nearest(theirs[partner[asked]], mine, 1)
        asked = asked[back[:, 0] == left[asked]]
    kept = np.full(len(left), -1)
    kept[asked] = partner[asked]
    return kept, cosines[:, 0]


# ---- what fires together


class Together:
    """How often matched features fire on the same tokens, counted while a text goes by."""

    def __init__(self, made: Sequence[Pair]) -> None:
        self._pairs = list(made)
        self._fired: dict[Site, np.ndarray] = {}
        self._both = [(np.zeros(p.there[0].shape, np.int64), np.zeros(p.back[0].shape, np.int64)) for p in self._pairs]

    def add(self, acts: Mapping[Site, SparseActs]) -> None:
        """Activations [token, feature] on the same tokens at every site."""
        dense: dict[Site, np.ndarray] = {}
        for site, one in acts.items():
            fired = np.bincount(one.indices, minlength=one.shape[1])
            self._fired[site] = self._fired.get(site, 0) + fired
            dense[site] = np.zeros(one.shape, bool)
            dense[site][one.rows, one.indices] = True
        for pair, (there, back) in zip(self._pairs, self._both, strict=True):
            for counts, (candidates, _), here, other in (
                (there, pair.there, pair.one, pair.two),
                (back, pair.back, pair.two, pair.one),
            ):
                rows, columns = acts[here].rows, acts[here].indices
                for c in range(candidates.shape[1]):
                    partner = candidates[columns, c]
                    hit = (partner >= 0) & dense[other][rows, partner]
                    counts[:, c] += np.bincount(columns[hit], minlength=len(counts))

    def shares(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a pair: the Jaccard index of each match, there and back, float32 [feature, k], nan where not known."""
        pair, (there, back) = self._pairs[number], self._both[number]
        return self._share(there, pair.there[0], pair.one, pair.two), self._share(
            back, pair.back[0], pair.two, pair.one
        )

    def _share(self, both: np.ndarray, candidates: np.ndarray, here: Site, other: Site) -> np.ndarray:
        if here not in self._fired or other not in self._fired:
            return np.full(both.shape, np.nan, np.float32)
        mine = self._fired[here][:, None]
        theirs = self._fired[other][np.maximum(candidates, 0)]
        seen = (candidates >= 0) & (mine >= LEAST) & (theirs >= LEAST)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(seen, both / (mine + theirs - both), np.nan).astype(np.float32)


def assigned(pair: Pair, shares: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which features of a pair are one thing: the partner of each feature of `one` (or -1), cosine and co-activation.

    `shares` are the co-activations of the pair's matches, there and back. One to one.
    """
    (there, cosines), (back, cosines_back) = pair.there, pair.back
    left = np.concatenate([np.repeat(np.arange(len(there)), there.shape[1]), back.ravel()]).astype(np.int64)
    right = np.concatenate([there.ravel(), np.repeat(np.arange(len(back)), back.shape[1])]).astype(np.int64)
    cosine, share = (np.concatenate([one.ravel(), two.ravel()]) for one, two in ((cosines, cosines_back), shares))
    likely = np.flatnonzero((left >= 0) & (right >= 0) & alike(cosine, share))
    likely = likely[np.argsort(-(cosine + np.nan_to_num(share))[likely], kind="stable")]
    partner = np.full(len(there), -1)
    kept = np.full(len(there), np.nan, np.float32), np.full(len(there), np.nan, np.float32)
    taken = np.zeros(len(back), bool)
    for i in likely.tolist():
        one, two = int(left[i]), int(right[i])
        if partner[one] < 0 and not taken[two]:
            partner[one], taken[two] = two, True
            kept[0][one], kept[1][one] = cosine[i], share[i]
    return partner, *kept


def passages_of(index: Index, tokens: int) -> Iterator[list[np.ndarray]]:
    """Passages spread evenly over an index's text, about `tokens` tokens of it, in groups that are read together."""
    number = index.about.passages
    step = max(1, round(index.about.tokens / max(tokens, 1)))
    group: list[np.ndarray] = []
    size = 0
    for document in range(0, number, step):
        ids = index.passage(document)
        if group and size + len(ids) > _TOGETHER:
            yield group
            group, size = [], 0
        group.append(ids)
        size += len(ids)
    if group:
        yield group


# ---- a file of them


def write_matches(
    engine: Any,
    folder: Path | str,
    index: Index | None = None,
    *,
    tokens: int = TOKENS,
    progress: Callable[[str, float], Any] | None = None,
) -> Path:
    """Writes the nearest two of every feature in the layers before and after to `matches.parquet` in `folder`.

    With an index, the engine reads about `tokens` tokens of its text for what fires together; without one that stays
    unknown. Cosines are kept in thousandths, co-activations in 254ths. Returns the file. Refuses 'cache-not-writable'.
    """
    from ..engine.protocol import TogetherRequest

    say = progress or (lambda what, share: None)
    made: list[Pair] = []
    total = sum(neighbours_of(site, engine.sites)[1] is not None for site in engine.sites) or 1
    for pair in pairs(engine):
        made.append(pair)
        say(f"matches of {pair.one} and {pair.two}", 0.3 * len(made) / total)
    seen = Together(made)
    read = 0
    sites = tuple(sorted({site for pair in made for site in (pair.one, pair.two)}))
    if index is not None and sites:
        expected = min(tokens, index.about.tokens)
        for group in passages_of(index, tokens):
            seen.add(engine.together(TogetherRequest(tuple(group), sites)).result())
            read += sum(map(len, group))
            say("what fires together", 0.3 + 0.7 * min(1.0, read / expected))
    return _write(engine, Path(folder), made, [seen.shares(i) for i in range(len(made))], read)


@contextmanager
def shown(progress: Callable[[str, float], Any] | None) -> Iterator[Callable[[str, float], Any]]:
    """What is told about progress: as given, or a bar where it takes longer than a second."""
    if progress is not None:
        yield progress
        return
    from tqdm.auto import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, bar_format=layout, leave=False, delay=1) as bar:

        def tell(what: str, share: float) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(max(share - bar.n, 0.0))

        yield tell


def _write(engine: Any, folder: Path, made: list[Pair], shares: list[Any], read: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    described = engine.describe()
    widths = described.widths
    same = [assigned(pair, share) for pair, share in zip(made, shares, strict=True)]
    after = {p.one: (p.there, share[0], one) for p, share, one in zip(made, shares, same, strict=True)}
    before = {
        p.two: (p.back, share[1], _turned(*one, len(p.back[0])))
        for p, share, one in zip(made, shares, same, strict=True)
    }
    digests = (described.about or {}).get("sae_digests") or {}
    about = {
        "format": _FORMAT,
        "sites": [str(site) for site in sorted(widths)],
        "widths": [widths[site] for site in sorted(widths)],
        "before": [str(site) for site in sorted(before)],
        "after": [str(site) for site in sorted(after)],
        "digests": {str(site): digests[str(site)] for site in widths if str(site) in digests},
        "tokens": read,
    }
    fields = []
    for side in ("before", "after"):
        for name, kind in (("", pa.uint32()), ("_cosine", pa.int16()), ("_share", pa.uint8())):
            fields += [pa.field(f"{side}{name}_{rank}", kind) for rank in RANKS]
    schema = pa.schema(fields, metadata={"gemloupe.matches": json.dumps(about)})
    file = folder / FILE
    part = file.with_name(f".{FILE}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}
        encodings = {field.name: "PLAIN" if field.type == pa.uint8() else "BYTE_STREAM_SPLIT" for field in fields}
        with pq.ParquetWriter(
            part, schema, compression="zstd", compression_level=19, column_encoding=encodings, **options
        ) as out:
            for site in sorted(widths):
                columns = [*_columns(before.get(site), widths[site]), *_columns(after.get(site), widths[site])]
                arrays = [pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
                out.write_table(pa.table(arrays, schema=schema), row_group_size=widths[site])
        part.replace(file)
    except OSError as error:
        raise refuse("cache-not-writable", folder=folder, why=error.strerror or str(error), need="2 MB") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return file


def _turned(
    partner: np.ndarray, cosine: np.ndarray, share: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `assigned` found, seen from the other side."""
    back = np.full(width, -1)
    values = np.full(width, np.nan, np.float32), np.full(width, np.nan, np.float32)
    mine = np.flatnonzero(partner >= 0)
    back[partner[mine]] = mine
    values[0][partner[mine]], values[1][partner[mine]] = cosine[mine], share[mine]
    return back, *values


def _columns(known: tuple[Any, np.ndarray, Any] | None, width: int) -> list[np.ndarray]:
    """A file's columns of one side: features, cosines, shares, each by rank and then of what is the same."""
    if known is None:
        none = np.full(width, _NONE, np.uint32), np.zeros(width, np.int16), np.full(width, _UNKNOWN, np.uint8)
        return [part for part in none for _ in RANKS]
    (features, cosines), shares, same = known
    features, cosines, shares = (np.column_stack(both) for both in zip((features, cosines, shares), same, strict=True))
    numbers = np.where(features >= 0, features, _NONE).astype(np.uint32)
    thousandths = np.round(np.nan_to_num(cosines) * _STEPS).astype(np.int16)
    parts = np.where(np.isnan(shares), _UNKNOWN, np.round(np.nan_to_num(shares) * _SHARES)).astype(np.uint8)
    return [part[:, rank] for part in (numbers, thousandths, parts) for rank in range(len(RANKS))]


class MatchFile:
    """Matches as `write_matches` wrote them; opening reads no feature. A site is kept once it was asked about."""

    def __init__(self, file: Path | str) -> None:
        """Refuses 'file-unreadable' where the file is none of ours, 'scope-newer' where it is newer than this code."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = Path(file)
        try:
            self._read = pq.ParquetFile(self.file)
            about = json.loads(self._read.schema_arrow.metadata[b"gemloupe.matches"])
            if about["format"] > _FORMAT:
                raise refuse("scope-newer", file=self.file, theirs=about["format"], ours=_FORMAT)
            self.sites = [Site.of(name) for name in about["sites"]]
            self.widths = dict(zip(self.sites, about["widths"], strict=True))
            self.digests = dict(about["digests"])
            self.tokens = int(about["tokens"])
            self._sides = {side: {Site.of(name) for name in about[side]} for side in ("before", "after")}
            if self._read.num_row_groups != len(self.sites):
                raise ValueError("it is cut short")
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            if getattr(error, "code", "") == "scope-newer":
                raise
            raise refuse("file-unreadable", file=self.file, kind="file of matches", why=error) from error
        self._columns: dict[Site, dict[str, np.ndarray]] = {}

    def fits(self, widths: Mapping[Site, int], digests: Mapping[str, str]) -> bool:
        """Whether it was made from the SAEs that are open."""
        return all(
            self.widths.get(site) == width and digests.get(str(site), "") == self.digests.get(str(site), "")
            for site, width in widths.items()
        )

    def holds(self, one: Site, two: Site) -> bool:
        """Whether the pair was compared; `two` is in the layer after `one`."""
        return one in self._sides["after"] and two in self._sides["before"]

    def of(self, feature: FeatureId, k: int = KEPT, among: Sequence[Site] | None = None) -> tuple[Match, ...]:
        """As `matches`, with co-activation; `k` of at most 2, and the one that is the same thing where it is farther.
        `among`: the sites that are open."""
        found: list[Match] = []
        feature.within(self.widths[feature.site])
        before, after = neighbours_of(feature.site, self.sites if among is None else among)
        for side, back, other in (("before", "after", before), ("after", "before", after)):
            if other is None or feature.site not in self._sides[side]:
                continue
            mine, i = self._site(feature.site), feature.index
            same = int(mine[f"{side}_same"][i])
            ranks: list[int | str] = list(range(min(k, KEPT)))
            if same != _NONE and all(int(mine[f"{side}_{rank}"][i]) != same for rank in ranks):
                ranks.append("same")
            for rank in ranks:
                index = int(mine[f"{side}_{rank}"][i])
                if index == _NONE:
                    continue
                home = int(mine[f"{side}_0"][i]) == index and int(self._site(other)[f"{back}_0"][index]) == i
                cosine = float(mine[f"{side}_cosine_{rank}"][i]) / _STEPS
                share = _share(mine[f"{side}_share_{rank}"][i])
                found.append(Match(FeatureId(other, index), cosine, share, home, index == same))
        return tuple(found)

    def joined(
        self, one: Site, two: Site, left: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `joined` of the module: the partner of each of `left` (-1 where none of `right` is), its cosine, and the
        co-activation (nan where not known)."""
        mine = self._site(one)
        partner = mine["after_same"][left].astype(np.int64)
        kept = (partner != _NONE) & np.isin(partner, right)
        shares = mine["after_share_same"][left].astype(np.float32)
        return (
            np.where(kept, partner, -1),
            mine["after_cosine_same"][left].astype(np.float32) / _STEPS,
            np.where(shares == _UNKNOWN, np.nan, shares / _SHARES),
        )

    def _site(self, site: Site) -> dict[str, np.ndarray]:
        if site not in self._columns:
            try:
                table = self._read.read_row_group(self.sites.index(site))
                made = {name: plain(table[name].combine_chunks()) for name in table.column_names}
            except OSError as error:  # what pyarrow raises, too, when a page is damaged
                raise refuse("file-unreadable", file=self.file, kind="file of matches", why=error) from error
            self._columns[site] = made
        return self._columns[site]


def _share(written: int) -> float | None:
    return None if written == _UNKNOWN else float(written) / _SHARES
