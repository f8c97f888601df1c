"""A finished index on disk: opened without reading it all, asked for one feature at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import refuse
from ...evidence import Companion, Example, FeatureEvidence, Interval, TokenCount
from ...feature import FeatureId, whole
from ...site import Site
from . import scale
from .layout import BESIDE, COARSE, FORMAT, LEVELS, MANIFEST, PASSAGES, ROWS, SHARES, STEPS
from .tally import INTERVALS, TOP

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_KEPT = 64  # row groups of passages in memory
_NEAR = 4  # row groups of features in memory: the next card is often of a feature beside the last


@dataclass(frozen=True)
class About:
    """What an index says of itself.

    `tokens` counts ordinary tokens (special ones are not indexed), `passages` the pieces of `documents` that were read
    one by one. `digests` are the sha256 of the SAEs by site, where they are known. `made` is an ISO date. `skipped`
    counts what could not be read, by reason.
    """

    name: str
    model: str
    model_digest: str | None
    scope: str | None
    digests: Mapping[Site, str] = field(repr=False)
    widths: Mapping[Site, int] = field(repr=False)
    tokens: int
    documents: int
    passages: int
    made: str
    skipped: Mapping[str, int]


class Index:
    """An index in a folder. Opening reads its manifest only; no torch is needed."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], about: About) -> None:
        self.folder, self.manifest, self.about = folder, manifest, about
        self._lock = threading.RLock()
        self._tables: dict[str, Any] = {}
        self._passages: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self._columns: dict[tuple[Site, str], np.ndarray] = {}
        self._rows: OrderedDict[tuple[Site, int], Any] = OrderedDict()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, made_for: Mapping[str, Any] | None = None) -> Index:
        """The index in `folder`.

        `made_for` is what is open, as `loupe.about.about`: an index of another model, or of other SAEs, is then refused
        with both digests ('index-other-model', 'index-other-sae'). Also 'index-not-found', 'index-unfinished',
        'index-damaged' and 'index-newer'.
        """
        import pyarrow.parquet  # noqa: F401  a quarter of a second the first time: not when a feature is looked at

        folder = Path(folder).expanduser()
        file = folder / MANIFEST
        if not file.is_file():
            if (folder / "plan.json").is_file():
                raise refuse("index-unfinished", folder=folder)
            names = ", ".join(made()) or "none"
            raise refuse("index-not-found", folder=folder, names=names)
        manifest = read_json(file)
        theirs = manifest.get("format")
        if type(theirs) is not int or theirs < 1:
            raise refuse("index-damaged", file=file, why=f"its format is {theirs!r}")
        if theirs > FORMAT:
            raise refuse("index-newer", file=file, theirs=theirs, ours=FORMAT)
        try:
            about = _about(manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise refuse("index-damaged", file=file, why=f"the manifest is incomplete ({error})") from error
        if made_for is not None:
            check_same(folder, manifest, made_for)
        return cls(folder, MappingProxyType(manifest), about)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Indexed sites, in the order of the forward pass."""
        return tuple(self.about.widths)

    def width(self, site: Site | str) -> int:
        """Number of features at `site`; refuses 'index-without-site'."""
        site = Site.of(site)
        if site not in self.about.widths:
            raise refuse("index-without-site", name=self.about.name, site=site, sites=", ".join(map(str, self.sites)))
        return self.about.widths[site]

    def verify(self) -> None:
        """Compare every file with the manifest; refuses 'index-damaged', naming the file."""
        for name, expected in self.manifest["files"].items():
            try:
                with (self.folder / name).open("rb") as file:
                    got = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise refuse("index-damaged", file=self.folder / name, why=str(error)) from error
            if got != expected:
                why = f"its sha256 is {got}, the manifest says {expected}"
                raise refuse("index-damaged", file=self.folder / name, why=why)

    # ---- one feature

    def evidence(self, feature: FeatureId | str, context: int | None = 10) -> FeatureEvidence:
        """What the index knows of a feature, with `context` tokens shown on each side of a peak (None: the passage).

        Activations are kept within 10 tokens of the peak of the strongest examples and 5 of random ones; where more is
        shown, `Example.complete` is False. Those beside the peak are rounded, see docs/index-format.md.
        """
        feature = FeatureId.of(feature)
        feature.within(self.width(feature.site))
        sides = None if context is None else whole(context)
        if context is not None and (sides is None or sides < 0):
            raise refuse("count-unreadable", name="context", given=context, least=0)
        row = self._row(feature)
        maximum = float(row["maximum"])
        examples = self._examples(row, maximum, sides)
        interval = row["interval"]
        edges = np.linspace(0, maximum, INTERVALS + 1)
        histogram = row["histogram"].astype(np.int64)
        first = int(row["first_bin"])
        edges_of = scale.EDGES[::COARSE][first : first + len(histogram) + 1]
        return FeatureEvidence(
            feature,
            tokens=self.about.tokens,
            fired=int(row["fired"]),
            maximum=maximum,
            mean=float(row["mean"]),
            histogram=histogram,
            edges=edges_of.copy() if len(histogram) else edges_of[:0].copy(),
            top=tuple(examples[:TOP]),
            intervals=tuple(
                Interval(
                    float(edges[number]),
                    float(edges[number + 1]),
                    tuple(examples[i] for i in np.flatnonzero(interval == number + 1)),
                )
                for number in range(INTERVALS)
            )
            if examples
            else (),
            on=tuple(
                TokenCount(self.text(ident), int(ident), int(count))
                for ident, count in zip(row["on"].tolist(), row["on_count"].tolist(), strict=True)
            ),
            together=tuple(
                Companion(FeatureId(feature.site, int(other)), int(count), share / SHARES)
                for other, count, share in zip(
                    row["together"].tolist(),
                    row["together_count"].tolist(),
                    row["together_share"].tolist(),
                    strict=True,
                )
            ),
            index=self.about.name,
            looked_at=int(row["looked_at"]),
        )

    def _row(self, feature: FeatureId) -> dict[str, Any]:
        place = feature.site, feature.index // ROWS
        with self._lock:
            if (group := self._rows.get(place)) is None:
                group = self._rows[place] = self._table(f"{feature.site}.parquet", place[1])
                while len(self._rows) > _NEAR:
                    self._rows.popitem(last=False)
        row = {}
        for name in group.column_names:
            value = group[name].chunk(0)[feature.index % ROWS]
            row[name] = plain(value.values) if hasattr(value, "values") else value.as_py()
        return row

    def _examples(self, row: Mapping[str, Any], maximum: float, sides: int | None) -> list[Example]:
        made = []
        window = int(self.manifest["settings"]["window"])
        slots = np.delete(np.arange(-window, window + 1), window)
        fires = (row["near"][:, None] >> np.arange(2 * window, dtype=np.uint32) & 1).astype(bool)
        values = np.zeros(fires.shape, np.float32)
        values[fires] = ((row["near_value"] + 0.5) / LEVELS) ** 2 * maximum
        for i, (document, position) in enumerate(zip(row["passage"].tolist(), row["position"].tolist(), strict=True)):
            ids = self.passage(document)
            start = 0 if sides is None else max(0, position - sides)
            end = len(ids) if sides is None else min(len(ids), position + sides + 1)
            acts = np.zeros(len(ids), np.float32)
            acts[position + slots[fires[i]]] = values[i, fires[i]]
            value = (int(row["value"][i]) / STEPS) ** 2 * maximum
            if number := int(row["interval"][i]):  # rounding must not carry it out of its interval
                value = min(max(value, maximum * (number - 1) / INTERVALS), maximum * number / INTERVALS)
            value = float(np.float32(value))
            acts[position] = value
            shown = ids[start:end]
            kept = window if i < TOP else min(window, BESIDE)
            known = start >= position - kept and end <= position + kept + 1
            made.append(
                Example(
                    tokens=tuple(self.text(ident) for ident in shown.tolist()),
                    ids=tuple(shown.tolist()),
                    activations=acts[start:end],
                    peak=position - start,
                    value=value,
                    document=document,
                    position=position,
                    complete=known
                    or self._only_special(ids[start : max(start, position - kept)], ids[position + kept + 1 : end]),
                )
            )
        return made

    def _only_special(self, *parts: np.ndarray) -> bool:
        """Whether these are special tokens, on which nothing fires."""
        return all(ident in self._special for part in parts for ident in part.tolist())

    # ---- all features of a site

    def density(self, site: Site | str) -> np.ndarray:
        """Share of ordinary tokens that each feature fires on, float32 [feature]."""
        return (self._column(site, "fired") / max(1, self.about.tokens)).astype(np.float32)

    def maxima(self, site: Site | str) -> np.ndarray:
        """Each feature's largest activation, float32 [feature], 0 where it never fired."""
        return self._column(site, "maximum").copy()

    def _column(self, site: Site | str, name: str) -> np.ndarray:
        site = Site.of(site)
        self.width(site)
        if (site, name) not in self._columns:
            with self._reading(f"{site}.parquet") as table:
                self._columns[site, name] = plain(table.read(columns=[name])[name].combine_chunks())
        return self._columns[site, name]

    def peaks(self, site: Site | str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that the examples of a site's features peak at: (offsets int64 [feature + 1], ids int32), those of
        feature n at offsets[n] to offsets[n + 1], strongest first. Reads all of the text."""
        site = Site.of(site)
        self.width(site)
        with self._reading(f"{site}.parquet") as table:
            found = table.read(columns=["passage", "position"])
        passage, position = (found[name].combine_chunks() for name in ("passage", "position"))
        starts, ids = self._text
        where = starts[plain(passage.values).astype(np.int64)] + plain(position.values)
        return plain(passage.offsets).astype(np.int64), ids[where]

    # ---- text

    @property
    def _text(self) -> tuple[np.ndarray, np.ndarray]:
        """(where each passage begins, int64 [passage + 1]; the token ids of all)."""
        with self._reading("passages.parquet") as table:
            column = table.read(columns=["ids"])["ids"].combine_chunks()
        return plain(column.offsets).astype(np.int64), plain(column.values)

    def passage(self, document: int) -> np.ndarray:
        """Token ids of a passage, int32 [token]; BOS first."""
        number = whole(document)
        if number is None or not 0 <= number < self.about.passages:
            raise refuse("index-without-passage", given=document, last=self.about.passages - 1)
        group = number // PASSAGES
        with self._lock:
            if (kept := self._passages.get(group)) is not None:
                self._passages.move_to_end(group)
                return kept[number % PASSAGES]
        column = self._table("passages.parquet", group)["ids"].combine_chunks()
        values, offsets = plain(column.values), plain(column.offsets)
        found = [values[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]
        with self._lock:
            self._passages[group] = found
            while len(self._passages) > _KEPT:
                self._passages.popitem(last=False)
        return found[number % PASSAGES]

    @cached_property
    def _texts(self) -> dict[int, str]:
        with self._reading("tokens.parquet") as table:
            found = table.read(columns=["id", "text"])
        return dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    @cached_property
    def _special(self) -> frozenset[int]:
        with self._reading("tokens.parquet") as table:
            found = table.read(columns=["id", "special"])
        both = zip(found["id"].to_pylist(), found["special"].to_pylist(), strict=True)
        return frozenset(ident for ident, special in both if special)

    @property
    def texts(self) -> Mapping[int, str]:
        """The display text of every token that stands in the indexed text, by id."""
        return MappingProxyType(self._texts)

    def text(self, ident: int) -> str:
        """The display text of a token that stands in the indexed text."""
        return self._texts.get(ident, f"⟨{ident}⟩")

    # ---- files

    def _table(self, name: str, group: int) -> Any:
        with self._reading(name) as table:
            return table.read_row_group(group)

    def _reading(self, name: str) -> _Reading:
        return _Reading(self, name)

    def __repr__(self) -> str:
        about = self.about
        features = sum(about.widths.values())
        return (
            f"Index({about.name!r}: {features:,} features of {about.model} at {len(about.widths)} sites, "
            f"{about.tokens:,} tokens in {about.passages:,} passages)"
        )


def plain(array: Any) -> np.ndarray:
    """Numbers of an Arrow array as NumPy's, without a copy. Arrow's own way imports pandas, which takes 0.3 s."""
    kind = np.dtype(str(array.type) if str(array.type) != "float" else "float32")
    return np.frombuffer(array.buffers()[1] or b"", kind)[array.offset : array.offset + len(array)]


class _Reading:
    """A Parquet file of an index, open; what is wrong with it is refused by name. One reader at a time."""

    def __init__(self, index: Index, name: str) -> None:
        self._index, self._file, self._name = index, index.folder / name, name

    def __enter__(self) -> Any:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        index = self._index
        index._lock.acquire()
        try:
            if self._name not in index._tables:
                index._tables[self._name] = ParquetFile(self._file)
            return index._tables[self._name]
        except (OSError, pyarrow.ArrowException) as error:
            index._lock.release()
            raise refuse("index-damaged", file=self._file, why=str(error).splitlines()[0]) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import pyarrow

        self._index._lock.release()
        if isinstance(error, (OSError, IndexError, pyarrow.ArrowException)):
            raise refuse("index-damaged", file=self._file, why=str(error).splitlines()[0]) from error


def find(given: str | os.PathLike[str]) -> Path:
    """The folder of an index, given that or the name it was made under."""
    folder = Path(given).expanduser()
    if not (folder / MANIFEST).is_file() and isinstance(given, str) and PLAIN_NAME.fullmatch(given):
        named = named_folder(given)
        return named if named.exists() else folder
    return folder


def made() -> tuple[str, ...]:
    """The names of the finished indexes in the cache folder."""
    from ...load import cache

    return tuple(sorted(file.parent.name for file in (cache.folder() / "indexes").glob(f"*/{MANIFEST}")))


def named_folder(name: str) -> Path:
    """Where the index of that name is kept, in the cache folder. Refuses 'index-name-unusable'."""
    from ...load import cache

    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise refuse("index-name-unusable", given=name)
    return cache.folder() / "indexes" / name


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; refuses 'index-damaged'."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise refuse("index-damaged", file=file, why=str(error)) from error
    if not isinstance(found, dict):
        raise refuse("index-damaged", file=file, why="it is not a JSON object")
    return found


def _about(manifest: Mapping[str, Any]) -> About:
    sites = {Site.of(name): facts for name, facts in manifest["sites"].items()}
    ordered = {site: sites[site] for site in sorted(sites)}
    return About(
        name=str(manifest["name"]),
        model=str(manifest["model"]["id"]),
        model_digest=manifest["model"]["digest"],
        scope=manifest["scope"],
        digests=MappingProxyType({s: facts["sae"] for s, facts in ordered.items() if facts["sae"] is not None}),
        widths=MappingProxyType({s: int(facts["width"]) for s, facts in ordered.items()}),
        tokens=int(manifest["tokens"]),
        documents=int(manifest["documents"]),
        passages=int(manifest["passages"]),
        made=str(manifest["made"]),
        skipped=MappingProxyType(dict(manifest["skipped"])),
    )


def check_same(folder: Path, made: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse an index (its manifest, or its plan) that was not made with the model and the SAEs that are open here.

    What is unknown is not compared; a model without a known digest goes by its name.
    """
    theirs, ours = made["model"]["digest"], here.get("model_digest")
    names = made["model"]["id"], here.get("model")
    differ = theirs != ours if theirs is not None and ours is not None else names[0] != names[1]
    if differ:
        raise refuse("index-other-model", folder=folder, theirs=f"{names[0]} ({theirs})", ours=f"{names[1]} ({ours})")
    digests = here.get("sae_digests") or {}
    for site, facts in made["sites"].items():
        ours = digests.get(site)
        if facts["sae"] is not None and ours is not None and facts["sae"] != ours:
            raise refuse("index-other-sae", folder=folder, site=site, theirs=facts["sae"], ours=ours)
