"""Nearest features by the cosine of their decoder rows: exact, in blocks, in their own site and in others.

Directions are compared where they mean the same: res and mlp sites and what transcoders write are all in the residual
stream. An attention site's rows are in the basis of its own layer's heads, which another layer's have nothing to do
with, so its features have neighbours in their own site only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import refuse
from ..feature import FeatureId, whole
from ..run.apart import apart
from ..site import Site, in_words

if TYPE_CHECKING:
    import torch

FILE = "neighbours.parquet"
OWN, OTHER = 5, 10  # neighbours kept in a file, of a feature's own site and of others
_FORMAT = 1
_NONE = 0xFFFFFFFF  # stands where a site has fewer
_STEPS = 1000  # of a cosine in a file
_BLOCK = 1 << 25  # scores held at a time


@dataclass(frozen=True)
class Neighbour:
    """Another feature, and the cosine of its decoder row and the one asked about, -1 to 1."""

    feature: FeatureId
    cosine: float


@dataclass(frozen=True, eq=False)
class Match:
    """For every feature of `site`, its nearest in `other`: `features` int32 [feature, k], closest first, and `cosines`
    float32 [feature, k]. In one's own site a feature is not its own neighbour. Fewer than k are padded with -1 and nan.
    """

    site: Site
    other: Site
    features: np.ndarray
    cosines: np.ndarray


def comparable(one: Site, two: Site) -> bool:
    """Whether directions at two sites are in the same space (their widths must be equal too)."""
    return one == two or "att" not in (one.kind, two.kind)


def directions(source: Any, site: Site) -> torch.Tensor:
    """Decoder rows of unit length, float32 [feature, width], on the CPU. A row of zeros stays one."""
    from torch.nn.functional import normalize

    sae = source.sae(site) if hasattr(source, "sae") else source.load(site)
    return normalize(sae.decoder.detach().float().cpu(), dim=1)


def matches(source: Any, k: int = 10, sites: Iterable[Site | str] | None = None) -> Iterator[Match]:
    """A `Match` for every ordered pair of comparable sites of one decoder width, a site with itself among them.

    `source` is a scope or an engine in this kernel. Each pair is multiplied once, for both directions. Two sites of
    16,384 features and width 640 take about four seconds on two cores.
    """
    count = count_of(k)
    chosen = _sites(source, sites)
    held: dict[Site, torch.Tensor] = {}
    for i, one in enumerate(chosen):
        mine = held[one] if one in held else held.setdefault(one, directions(source, one))
        yield Match(one, one, *nearest(mine, mine, count, themselves=True)[0])
        for two in chosen[i + 1 :]:
            if not comparable(one, two):
                continue
            theirs = held[two] if two in held else held.setdefault(two, directions(source, two))
            if theirs.shape[1] != mine.shape[1]:
                continue
            there, back = nearest(mine, theirs, count, both=True)
            yield Match(one, two, *there)
            yield Match(two, one, *back)
        del held[one]


def nearest(
    mine: torch.Tensor, theirs: torch.Tensor, k: int, *, themselves: bool = False, both: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Top k of `theirs` for each of `mine` and, with `both`, of `mine` for each of `theirs`, by dot product."""
    import torch

    from ..run.product import blocks

    there: list[tuple[torch.Tensor, torch.Tensor]] = []
    back: tuple[torch.Tensor, torch.Tensor] | None = None
    rows = max(_BLOCK // max(len(theirs), 1), 1)
    for start in range(0, len(mine), rows):
        scores = blocks(mine[start : start + rows], theirs)
        if themselves:
            own = torch.arange(len(scores), device=scores.device)
            scores[own, own + start] = -torch.inf
        there.append(_top(scores, k))
        if both:
            values, picked = _top(scores.T.contiguous(), k)
            picked = picked + start
            if back is not None:
                values, picked = torch.cat((back[0], values), 1), torch.cat((back[1], picked), 1)
                values, order = _top(values, k)
                picked = picked.gather(1, order)
            back = values, picked
    found = [(torch.cat([value for value, _ in there]), torch.cat([index for _, index in there]))]
    if back is not None:
        found.append(back)
    return [_padded(values.cpu().numpy(), indices.cpu().numpy(), k) for values, indices in found]


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = scores.topk(min(k, scores.shape[1]), dim=1)
    return values, indices


def _padded(values: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.full((len(values), k), np.nan, np.float32)
    features = np.full((len(values), k), -1, np.int32)
    cosines[:, : values.shape[1]] = np.where(np.isfinite(values), np.clip(values, -1, 1), np.nan)
    features[:, : values.shape[1]] = np.where(np.isfinite(values), indices, -1)
    return features, cosines


@apart
def neighbours(source: Any, feature: FeatureId, k: int = 10, same_site: bool | None = None) -> tuple[Neighbour, ...]:
    """The k features nearest to one, closest first: of its own site, of others (`same_site` False), or of both (None).

    Reads the decoder of every site that is compared.
    """
    count = count_of(k)
    sites = _sites(source, None)
    if feature.site not in sites:
        raise refuse("site-not-open", site=feature.site, open=in_words(sites))
    mine = directions(source, feature.site)
    row = mine[feature.within(len(mine)).index]
    found: list[Neighbour] = []
    for site in sites:
        if not comparable(feature.site, site) or (same_site is not None and same_site != (site == feature.site)):
            continue
        theirs = mine if site == feature.site else directions(source, site)
        if theirs.shape[1] != len(row):
            continue
        scores = (theirs @ row).clamp(-1, 1).numpy()
        if site == feature.site:
            scores[feature.index] = -np.inf
        best = np.argsort(-scores, kind="stable")[:count]
        found += [Neighbour(FeatureId(site, int(i)), float(scores[i])) for i in best if np.isfinite(scores[i])]
    return tuple(sorted(found, key=lambda one: (-one.cosine, one.feature))[:count])


def count_of(k: Any) -> int:
    count = whole(k)
    if count is None or count < 1:
        raise refuse("count-unreadable", name="k", given=k, least=1)
    return count


def _sites(source: Any, given: Iterable[Site | str] | None) -> list[Site]:
    known = list(source.sites)
    for site in () if given is None else map(Site.of, given):
        if site not in known:
            raise refuse("site-not-open", site=site, open=in_words(known))
    return sorted(known if given is None else set(map(Site.of, given)))


# ---- a file of them


def write_neighbours(source: Any, folder: Path | str, progress: Callable[[str, float], Any] | None = None) -> Path:
    """Writes the 5 nearest of its own site and the 10 nearest of others, of every feature, beside an index.

    `source` is a scope or an engine in this kernel; returns the file. Cosines are kept in thousandths.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    sites = _sites(source, None)
    rows = {site: directions(source, site) for site in sites}
    digests = {str(site): source.digest(site) for site in sites} if hasattr(source, "digest") else {}
    if hasattr(source, "describe"):
        digests = dict((source.describe().about or {}).get("sae_digests") or {})
    about = {
        "format": _FORMAT,
        "sites": [str(site) for site in sites],
        "widths": [len(rows[site]) for site in sites],
        "digests": {site: digest for site, digest in digests.items() if digest is not None},
    }
    names = ("own", "own_cosine", "site", "other", "other_cosine")
    kinds = (pa.uint32(), pa.int16(), pa.uint16(), pa.uint32(), pa.int16())
    lengths = (OWN, OWN, OTHER, OTHER, OTHER)
    fields = [pa.field(n, pa.list_(t, size)) for n, t, size in zip(names, kinds, lengths, strict=True)]
    schema = pa.schema(fields, metadata={"gemloupe.neighbours": json.dumps(about)})
    file = Path(folder) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{FILE}.part")
    try:
        with pq.ParquetWriter(made, schema, compression="zstd", compression_level=9, write_statistics=False) as out:
            for done, site in enumerate(sites):
                if progress is not None:
                    progress(f"neighbours of {site}", done / len(sites))
                columns = _columns(site, sites, rows, torch)
                arrays = [
                    pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), size)
                    for values, kind, size in zip(columns, kinds, lengths, strict=True)
                ]
                out.write_table(pa.table(arrays, schema=schema), row_group_size=len(rows[site]))
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)
    return file


def _columns(site: Site, sites: list[Site], rows: Mapping[Site, Any], torch: Any) -> list[np.ndarray]:
    mine = rows[site]
    own, own_cosines = nearest(mine, mine, OWN, themselves=True)[0]
    others = [
        other for other in sites if other != site and comparable(site, other) and rows[other].shape[1] == mine.shape[1]
    ]
    which, index, cosine = (np.empty((len(mine), 0)) for _ in range(3))
    if others:
        among = torch.cat([rows[other] for other in others])
        ends = np.cumsum([len(rows[other]) for other in others])
        found, cosine = nearest(mine, among, OTHER)[0]
        place = np.minimum(np.searchsorted(ends, found, side="right"), len(others) - 1)
        which = np.array([sites.index(other) for other in others])[place]
        index = np.where(found >= 0, found - (ends - [len(rows[other]) for other in others])[place], -1)
    padded = [
        np.concatenate([part, np.full((len(mine), size - part.shape[1]), fill)], 1)
        for part, size, fill in (
            (own, OWN, -1),
            (own_cosines, OWN, np.nan),
            (which, OTHER, 0),
            (index, OTHER, -1),
            (cosine, OTHER, np.nan),
        )
    ]
    thousandths = lambda part: np.round(np.nan_to_num(part) * _STEPS).astype(np.int16)  # noqa: E731
    numbers = lambda part: np.where(part >= 0, part, _NONE).astype(np.uint32)  # noqa: E731
    return [
        numbers(padded[0]),
        thousandths(padded[1]),
        padded[2].astype(np.uint16),
        numbers(padded[3]),
        thousandths(padded[4]),
    ]


class NeighbourFile:
    """Neighbours as `write_neighbours` wrote them; opening reads no feature."""

    def __init__(self, file: Path | str) -> None:
        """Refuses 'file-unreadable' where the file is none of ours."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = Path(file)
        try:
            self._read = pq.ParquetFile(self.file)
            about = json.loads(self._read.schema_arrow.metadata[b"gemloupe.neighbours"])
            if about["format"] > _FORMAT:
                raise refuse("scope-newer", file=self.file, theirs=about["format"], ours=_FORMAT)
            self.sites = [Site.of(name) for name in about["sites"]]
            self.widths = dict(zip(self.sites, about["widths"], strict=True))
            self.digests = dict(about["digests"])
            if self._read.num_row_groups != len(self.sites):
                raise ValueError("it is cut short")
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            if getattr(error, "code", "") == "scope-newer":
                raise
            raise refuse("file-unreadable", file=self.file, kind="file of neighbours", why=error) from error

    def fits(self, widths: Mapping[Site, int], digests: Mapping[str, str]) -> bool:
        """Whether it was made from the SAEs that are open."""
        return all(
            self.widths.get(site) == width and digests.get(str(site), "") == self.digests.get(str(site), "")
            for site, width in widths.items()
        )

    def of(self, feature: FeatureId, k: int, same_site: bool | None = None) -> tuple[Neighbour, ...] | None:
        """As `neighbours`; None where so many are not kept."""
        kept = {True: OWN, False: OTHER, None: OWN}[same_site]
        if k > kept or feature.site not in self.sites:
            return None
        feature.within(self.widths[feature.site])
        group = self.sites.index(feature.site)
        row = self._read.read_row_group(group).slice(feature.index, 1).to_pylist()[0]
        found = []
        if same_site is not False:
            found += [(feature.site, i, c) for i, c in zip(row["own"], row["own_cosine"], strict=True)]
        if same_site is not True:
            others = zip(row["site"], row["other"], row["other_cosine"], strict=True)
            found += [(self.sites[site], i, c) for site, i, c in others]
        known = [Neighbour(FeatureId(site, i), c / _STEPS) for site, i, c in found if i != _NONE]
        return tuple(sorted(known, key=lambda one: (-one.cosine, one.feature))[:k])
