"""Labels, notes and stars of a scope's features, in one SQLite file with a full-text index over all of it.

The file is the user's work, so it lies in the data folder, not in the cache or beside an index.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..engine.protocol import Engine
from ..errors import Refusal, refuse
from ..evidence import FeatureEvidence
from ..feature import FeatureId
from ..label import SOURCES, Label
from ..site import Site
from .automatic import automatic, automatic_rows, joined, read_fires, tokens_of
from .find_labels import Found, find
from .label_file import EXAMPLES, NOTE, Row, check, connect, number, put, remove, spelled, take_over

if TYPE_CHECKING:
    import os

    from .explain import Explainer
    from .index import Index

T = TypeVar("T")

CURATED = "labels.json"
_NEURONPEDIA = re.compile(r"[a-z0-9.-]+/[0-9]+-[a-z0-9_-]+", re.IGNORECASE)  # how it names a set of labels
LONGEST_LABEL, LONGEST_NOTE = 500, 20_000  # characters
_AT_ONCE = 500  # features asked of the file at once; SQLite may be built to take no more than 999 values
_COLUMNS = "SELECT label.id, text, coalesce(name, ''), score, coalesce(made, '')"
_WRITER = "LEFT JOIN writer ON writer.id = by"


@dataclass(frozen=True)
class Known:
    """An SAE as far as it is known: `width` 0 and `digest` '' are not known."""

    width: int = 0
    digest: str = ""


def labels_of(
    engine: Engine,
    evidence: Callable[[FeatureId], FeatureEvidence | None] = lambda feature: None,
    fires_on: Callable[[FeatureId], tuple[str, str] | None] = lambda feature: None,
    examples: Callable[[FeatureId], FeatureEvidence | None] | None = None,
) -> Labels:
    """The labels of what an engine has open. `evidence` is what an index knows of a feature, where there is one;
    `fires_on` the index's name and what `write_fires` left there of the feature, which is found in less time;
    `examples` what a language model is shown of it, if that is from another index.

    Where the data folder cannot be written, they are kept in memory, with a warning.
    """
    about = engine.describe()
    digests = (about.about or {}).get("sae_digests") or {}
    saes = {site: Known(width, digests.get(str(site), "")) for site, width in about.widths.items()}

    def make(feature: FeatureId) -> Label | None:
        promotes = [text for text, _ in engine.facts((feature,))[0].promotes]
        if (kept := fires_on(feature)) is not None:
            index, on = kept
            text = joined(on, promotes)
            return Label(feature, text, "automatic", None, "", f"counts over the index {index}") if text else None
        return automatic(feature, promotes, evidence(feature))

    def explainer() -> Explainer:
        from .explain import Explainer

        return Explainer(engine, examples or evidence)

    options: dict[str, Any] = {"saes": saes, "automatic": make, "explainer": explainer}
    folder = getattr(getattr(engine, "scope", None), "folder", None)
    try:
        return with_curated(Labels.open(place_of(about.scope or about.model), **options), folder)
    except Refusal as refusal:
        if refusal.code != "labels-not-writable":
            raise
        import warnings

        warnings.warn(
            f"Labels and notes are only kept until this loupe is closed. {refusal}", UserWarning, stacklevel=4
        )
        return with_curated(Labels(None, **options), folder)


def with_curated(labels: Labels, folder: Path | None) -> Labels:
    """`labels`, with those that lie in a scope's folder in `CURATED`: {"res.12/5": "what it is about"}."""
    file = None if folder is None else Path(folder) / CURATED
    if file is not None and file.is_file():
        written = file.read_bytes()
        texts = {FeatureId.of(name): text for name, text in json.loads(written).items()}
        labels.put_curated(hashlib.sha256(written).hexdigest(), texts)
    return labels


def fill(labels: Labels, engine: Engine, index: Index | None, examples: Index | None = None) -> None:
    """Automatic labels of every open site, and the tokens of its examples, so that they can be searched; where those
    kept were not made from the same already.

    Labels are made from `index`, the tokens are those of `examples`. A site at a time, with a bar if it takes long, so
    that it can be stopped and goes on where it was. What `write_fires` left beside the index is used.
    """
    from tqdm.auto import tqdm

    from .. import __version__

    widths = engine.describe().widths
    stamp = f"{__version__} {_stamp(index)} {_stamp(examples)}"
    due = [site for site in widths if labels.stamp(site) != stamp]
    kept = {} if index is None or not due else read_fires(index.folder) or {}
    by = "what its decoder promotes" if index is None else f"counts over the index {index.about.name}"
    for site in tqdm(due, "automatic labels", unit="site", leave=False, delay=3):
        evidence = None if index is None or site not in index.sites else partial(index.evidence, context=10)
        mine = kept.get(site) if evidence is not None else None
        if mine is not None and len(mine) != widths[site]:
            mine = None
        tokens = None if examples is None or site not in examples.sites else tokens_of(examples, site)
        rows = automatic_rows(site, widths[site], engine.facts, evidence, mine, tokens)
        labels.put_automatic(site, stamp, rows, by)


def _stamp(index: Index | None) -> str:
    return "none" if index is None else f"{index.about.name} {index.about.made} {index.manifest['text'][:16]}"


def place_of(scope: str) -> Path:
    """Where the labels of a scope are kept, by its id."""
    from ..load.cache import data_folder

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", scope).strip("-.")[:80]
    return data_folder() / "labels" / f"{name}-{hashlib.sha256(scope.encode()).hexdigest()[:8]}.sqlite"


def now() -> str:
    """The time as it is noted: ISO, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Labels:
    """What is said about the features of one scope, and the user's notes and stars.

    Several processes may use one file at a time. A file that turns out to be damaged is set aside under another name,
    with a warning; what can still be read of the user's own words is taken over. `notes` says what happened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        saes: Mapping[Site, Known] | None = None,
        automatic: Callable[[FeatureId], Label | None] | None = None,
        explainer: Callable[[], Explainer] | None = None,
    ) -> None:
        """`saes` are those whose labels are meant: without, whatever SAE a site's labels are of. `automatic` makes a
        label where none is kept; `explainer` is what `explain` asks. `path` None keeps everything in memory."""
        self.path = None if path is None else Path(path)
        self.notes: tuple[str, ...] = ()
        self._saes = None if saes is None else dict(saes)
        self._automatic, self._explainer = automatic, explainer
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._codes: dict[Site, int] = {}
        self._names: dict[int, Site] = {}
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Any) -> Labels:
        """The labels in a file, which is made if it is not there. Options as in `Labels(...)`."""
        labels = cls(path, **options)
        labels._read(lambda db: None)
        return labels

    # ---- labels

    def of(self, feature: FeatureId | str) -> tuple[Label, ...]:
        """The labels of a feature, best first: the user's, Neuronpedia's, those that came with the scope, explained,
        automatic; then by score, then the newest."""
        feature = self._feature(feature)
        found = [label for rank in SOURCES for label in self._labels(feature, rank)]
        if self._automatic is not None and not any(label.source == "automatic" for label in found):
            made = self._automatic(feature)
            found += [] if made is None else [made]
        return tuple(found)

    def best(self, features: Iterable[FeatureId | str]) -> dict[FeatureId, Label]:
        """One label for each feature that has any: the first of `of`."""
        names = list(dict.fromkeys(map(self._feature, features)))
        found = self._first(names, SOURCES)
        for feature in names:
            if feature not in found and self._automatic is not None and (made := self._automatic(feature)) is not None:
                found[feature] = made
        return {feature: found[feature] for feature in names if feature in found}

    def named(self, features: Iterable[FeatureId | str]) -> dict[FeatureId, Label]:
        """Like `best`, but only labels that someone gave: no statistics."""
        names = list(dict.fromkeys(map(self._feature, features)))
        return self._first(names, [rank for rank in SOURCES if rank != "automatic"])

    def _first(self, features: list[FeatureId], ranks: Iterable[str]) -> dict[FeatureId, Label]:
        """The best label that is kept of each feature: one query for hundreds, as a picture asks for thousands."""
        found: dict[FeatureId, Label] = {}
        for rank in ranks:
            missing = [feature for feature in features if feature not in found]
            for start in range(0, len(missing), _AT_ONCE):
                for feature, rows in self._rows_of(missing[start : start + _AT_ONCE], rank).items():
                    found[feature] = _labelled(feature, rank, rows)[0]
        return found

    def _rows_of(self, features: list[FeatureId], rank: str) -> dict[FeatureId, list[Row]]:
        def read(db: sqlite3.Connection) -> dict[FeatureId, list[Row]]:
            coded = ((feature, self._code(db, feature.site)) for feature in features)
            known = {number(rank, code, one.index): one for one, code in coded if code is not None}
            found: dict[FeatureId, list[Row]] = {}
            if known:
                asked = (
                    f"WITH asked(first) AS (VALUES {', '.join(['(?)'] * len(known))}) {_COLUMNS} FROM asked "
                    f"JOIN label ON label.id BETWEEN first AND first + 255 {_WRITER} ORDER BY label.id"
                )
                for row in db.execute(asked, list(known)):
                    found.setdefault(known[row[0] & ~255], []).append(row)
            return found

        return self._read(read)

    def _labels(self, feature: FeatureId, rank: str) -> list[Label]:
        return _labelled(feature, rank, self._rows(feature, rank))

    def _rows(self, feature: FeatureId, rank: str) -> list[Row]:
        def read(db: sqlite3.Connection) -> list[Row]:
            code = self._code(db, feature.site)
            if code is None:
                return []
            first = number(rank, code, feature.index)
            return self._between(db, first, first + 255)

        return self._read(read)

    @staticmethod
    def _between(db: sqlite3.Connection, first: int, last: int) -> list[Row]:
        asked = f"{_COLUMNS} FROM label {_WRITER} WHERE label.id BETWEEN ? AND ? ORDER BY label.id"
        return db.execute(asked, (first, last)).fetchall()

    def set(self, feature: FeatureId | str, text: str) -> Label:
        """The user's own label of a feature; one that was there before is replaced."""
        feature, text = self._feature(feature), clean(text, LONGEST_LABEL, "label")
        label = Label(feature, text, "user", None, now(), "you")
        self._replace(feature, "user", [label])
        return label

    def remove(self, feature: FeatureId | str) -> None:
        """Take the user's own label away."""
        self._replace(self._feature(feature), "user", [])

    def keep(self, label: Label) -> Label:
        """Keep a label of any source; of the same writer, it replaces the one before."""
        text = clean(label.text, LONGEST_LABEL, "label")
        kept = Label(self._feature(label.feature), text, label.source, label.score, label.made or now(), label.by)
        others = [one for one in self._labels(kept.feature, kept.source) if one.by != kept.by]
        self._replace(kept.feature, kept.source, [*others, kept])
        return kept

    def _replace(self, feature: FeatureId, rank: str, labels: Iterable[Label]) -> None:
        def write(db: sqlite3.Connection) -> None:
            code = self._code(db, feature.site, make=True)
            first = number(rank, code, feature.index)
            remove(db, first, first + 255)
            put(db, ((first + i, one.text, one.by, one.score, one.made) for i, one in enumerate(labels)))

        self._write(write)

    def add_neuronpedia(self, place: str | os.PathLike[str], site: Site | str | None = None) -> int:
        """Take over the labels of Neuronpedia's bulk export; returns how many.

        `place` is a file or folder of explanations, or a source there ('gemma-2-2b/20-gemmascope-res-16k'), which is
        then fetched. Labels of these features that came from there before are replaced. Labels of sites that are not
        open are kept too. See `load.neuronpedia.read_labels` for `site` and what is refused.
        """
        from ..load.neuronpedia import fetch_labels, read_labels

        if isinstance(place, str) and _NEURONPEDIA.fullmatch(place) and not Path(place).exists():
            place = fetch_labels(place)
        labels = read_labels(place, site)
        by_site: dict[Site, list[Any]] = {}
        for label in labels:
            if self._saes is not None and (known := self._saes.get(label.feature.site)) is not None and known.width:
                label.feature.within(known.width)
            by_site.setdefault(label.feature.site, []).append(label)
        for where, theirs in by_site.items():
            self._write(lambda db, where=where, theirs=theirs: self._take_over(db, where, theirs))  # type: ignore[misc]
        return len(labels)

    def _take_over(self, db: sqlite3.Connection, site: Site, labels: list[Any]) -> None:
        code = self._code(db, site, make=True)
        rows, last, place = [], -1, 0
        for label in labels:  # in the order of the features, best first
            place = place + 1 if label.feature.index == last else 0
            last = label.feature.index
            if place == 0:
                first = number("Neuronpedia", code, last)
                remove(db, first, first + 255)
            if place < 256:
                text = clean(label.text[:LONGEST_LABEL], LONGEST_LABEL, "label")
                rows.append((number("Neuronpedia", code, last, place), text, label.source, label.score, label.created))
        put(db, rows)

    # ---- notes and stars

    def note(self, feature: FeatureId | str, text: str) -> None:
        """Keep a note on a feature in place of the one before; an empty text takes it away."""
        feature = self._feature(feature)
        if not isinstance(text, str):
            raise refuse("label-unusable", what="note", given=text, why="it is not a text")
        kept = clean(text, LONGEST_NOTE, "note") if text.strip() else ""
        self._replace(feature, NOTE, [Label(feature, kept, NOTE, None, now(), "you")] if kept else [])

    def note_of(self, feature: FeatureId | str) -> str:
        """The note on a feature; empty if there is none."""
        rows = self._rows(self._feature(feature), NOTE)
        return rows[0][1] if rows else ""

    def noted(self) -> dict[FeatureId, str]:
        """Every note, by feature."""
        return {feature: row[1] for feature, row in self._all(NOTE)}

    def star(self, feature: FeatureId | str, on: bool = True) -> None:
        """Star a feature, or take its star away."""
        feature = self._feature(feature)

        def write(db: sqlite3.Connection) -> None:
            key = number(SOURCES[0], self._code(db, feature.site, make=True), feature.index)
            if on:
                db.execute("INSERT OR IGNORE INTO star VALUES (?, ?)", (key, now()))
            else:
                db.execute("DELETE FROM star WHERE id = ?", (key,))

        self._write(write)

    def starred(self) -> tuple[FeatureId, ...]:
        """The features with a star, in their order."""

        def read(db: sqlite3.Connection) -> list[FeatureId]:
            keys = [spelled(key) for (key,) in db.execute("SELECT id FROM star")]
            names = self._sites(db)
            return sorted(FeatureId(names[code], index) for _, code, index in keys if code in names)

        return tuple(self._read(read))

    def _all(self, rank: str) -> list[tuple[FeatureId, Row]]:
        def read(db: sqlite3.Connection) -> list[tuple[FeatureId, Row]]:
            names = self._sites(db)
            rows = self._between(db, number(rank, 0, 0), number(rank, 0xFFFF, 0xFFFFFFF, 255))
            owned = [(spelled(row[0]), row) for row in rows]
            return [(FeatureId(names[code], index), row) for (_, code, index), row in owned if code in names]

        return sorted(self._read(read), key=lambda one: one[0])

    # ---- what is computed from an index

    def stamp(self, site: Site) -> str | None:
        """What the automatic labels of a site were made from; None if there are none."""
        return self._stamp("automatic", site)

    def _stamp(self, source: str, site: Site) -> str | None:
        def read(db: sqlite3.Connection) -> str | None:
            code = self._code(db, site)
            row = db.execute("SELECT value FROM about WHERE key = ?", (f"{source} {code}",)).fetchone()
            return None if row is None else row[0]

        return self._read(read)

    def put_automatic(self, site: Site, stamp: str, rows: Iterable[tuple[int, str, str]], by: str = "") -> None:
        """All automatic labels of a site, in place of those before: (feature, label, tokens of its examples).

        The user's labels, notes and stars are not touched.
        """
        made, kept = now(), [(index, label, tokens) for index, label, tokens in rows]

        def write(db: sqlite3.Connection) -> None:
            code = self._code(db, site, make=True)
            for rank, column in (("automatic", 1), (EXAMPLES, 2)):
                remove(db, number(rank, code, 0), number(rank, code, 0xFFFFFFF, 255))
                texts = ((number(rank, code, row[0]), str(row[column])) for row in kept)
                put(db, ((ident, text[:LONGEST_LABEL], by, None, made) for ident, text in texts if text))
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (f"automatic {code}", stamp))

        self._write(write)

    def put_curated(self, stamp: str, texts: Mapping[FeatureId, str]) -> None:
        """The labels that came with the scope, in place of those before; a site's that are of `stamp` already stay."""
        known = {feature: text for feature, text in texts.items() if self._saes is None or feature.site in self._saes}
        made = now()

        def write(db: sqlite3.Connection, site: Site) -> None:
            code = self._code(db, site, make=True)
            remove(db, number("curated", code, 0), number("curated", code, 0xFFFFFFF, 255))
            mine = ((feature.index, text) for feature, text in known.items() if feature.site == site)
            put(db, ((number("curated", code, index), text, "gemloupe", None, made) for index, text in mine))
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (f"curated {code}", stamp))

        for site in {feature.site for feature in known}:
            if self._stamp("curated", site) != stamp:
                self._write(lambda db, site=site: write(db, site))  # type: ignore[misc]

    def optimize(self) -> None:
        """Join the parts of the full-text index, worth it after millions of labels were put in."""
        self._write(lambda db: db.execute("INSERT INTO found (found) VALUES ('optimize')"))

    def explain(
        self, features: Iterable[FeatureId | str] | FeatureId | str, *, endpoint: str, model: str, **options: Any
    ) -> tuple[Label, ...]:
        """Ask a language model that you name what features mean, and score each answer; the labels are kept.

        `endpoint` is the address of any OpenAI-compatible server ('http://localhost:8000/v1'), `model` its name there,
        `key=` a key if it wants one: it is sent to that server and neither kept nor shown. Examples of your text go
        there as well. The score is the balanced accuracy with which the model, given only its own label, says which of
        held-out passages the feature fires in: 0.5 is chance. Needs an index. Options: see `study.explain.Explainer`.
        """
        if self._explainer is None:
            raise refuse("index-none")
        if isinstance(features, (str, FeatureId)):
            features = (features,)
        asked = [self._feature(feature) for feature in features]
        labels = []
        for label in self._explainer().explain(asked, endpoint=endpoint, model=model, **options):
            labels.append(self.keep(label))
        return tuple(labels)

    # ---- search

    def search(
        self, query: str, sites: Iterable[Site | str] | Site | str | None = None, limit: int = 50
    ) -> tuple[Found, ...]:
        """Features whose labels, notes or examples' tokens have the words of `query`, best first.

        A word finds its other endings (idiom, idioms) and longer words that begin with it; "words in quotes" are found
        side by side; Chinese and other scripts without spaces are found anywhere in a text. There are no operators.
        Where no text has all the words, those with some of them are found. Refused: 'query-empty'.
        """
        if isinstance(sites, (str, Site)):
            sites = (sites,)
        wanted = None if sites is None else tuple(map(self._site, sites))

        def read(db: sqlite3.Connection) -> tuple[Found, ...]:
            names = self._sites(db)
            codes = {code: site for code, site in names.items() if wanted is None or site in wanted}
            return find(db, query, codes, limit, everything=wanted is None)

        return self._read(read)

    # ---- which SAE

    def _site(self, given: Site | str) -> Site:
        site = Site.of(given)
        if self._saes is not None and site not in self._saes:
            raise refuse("site-not-open", site=site, open=", ".join(map(str, self._saes)) or "none")
        return site

    def _feature(self, given: FeatureId | str) -> FeatureId:
        feature = FeatureId.of(given)
        site = self._site(feature.site)
        width = 1 << 28 if self._saes is None else self._saes[site].width or 1 << 28
        return feature.within(width)

    def _code(self, db: sqlite3.Connection, site: Site, *, make: bool = False) -> Any:
        """The number of the SAE that is meant at a site, None if nothing is kept of it yet."""
        if site in self._codes:
            return self._codes[site]
        known = (self._saes or {}).get(site, Known())
        rows = db.execute("SELECT id, width, digest FROM sae WHERE site = ? ORDER BY id DESC", (str(site),)).fetchall()
        for code, width, digest in rows:
            if (not known.width or not width or width == known.width) and (
                not known.digest or not digest or digest == known.digest
            ):
                if make and (width, digest) != (known.width or width, known.digest or digest):
                    filled = (known.width or width, known.digest or digest, code)
                    db.execute("UPDATE sae SET width = ?, digest = ? WHERE id = ?", filled)
                self._codes[site] = code
                self._names[code] = site
                return code
        if not make:
            return None
        made = db.execute("INSERT INTO sae (site, width, digest) VALUES (?, ?, ?)", (str(site), *vars(known).values()))
        return made.lastrowid  # noted only once it is committed: the next call finds it

    def _sites(self, db: sqlite3.Connection) -> dict[int, Site]:
        """The numbers of the SAEs that are meant."""
        sites = self._saes or {Site.of(name) for (name,) in db.execute("SELECT DISTINCT site FROM sae")}
        for site in sites:
            self._code(db, site)
        return self._names

    # ---- the file

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._try(work)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result

        return self._try(run)

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            for again in (True, False):
                try:
                    return work(self._connected())
                except sqlite3.OperationalError as error:
                    self._forget()
                    busy = "locked" in str(error) or "busy" in str(error)
                    raise refuse("labels-busy" if busy else "labels-not-writable", file=self.path, why=error) from error
                except sqlite3.DatabaseError as error:
                    self._forget()
                    if not again or isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
                        raise
                    self._set_aside(error)
        raise AssertionError("unreachable")

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise refuse("engine-closed")
        if self._db is None:
            if self.path is not None:
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise refuse("labels-not-writable", file=self.path, why=error) from error
            self._db = connect(self.path)
            self._codes.clear()
            self._names.clear()
        return self._db

    def _forget(self) -> None:
        """Let go of the connection; the next use opens it again."""
        if self._db is not None and (self.path is not None or self._closed):
            self._db.close()
            self._db = None

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Give a damaged file another name and take over from it what can be read of the user's own."""
        import warnings

        from ..load.cache import alone

        if self.path is None:
            raise error
        with alone(self.path):  # another process may have found the same
            try:
                check(self.path)
                return
            except sqlite3.DatabaseError:
                pass
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
            aside = self.path.with_name(f"{self.path.stem}.damaged-{stamp}{self.path.suffix}")
            for end in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + end)
                if part.exists():
                    part.replace(aside.with_name(aside.name + end))
            fresh = connect(self.path)
            try:
                kept = take_over(aside, fresh)
            finally:
                fresh.close()
        note = (
            f"The file of labels and notes {self.path} was damaged ({error}). It was set aside as {aside.name}, and a "
            f"new one begun with what could be read of your own: {kept} labels, notes and stars."
        )
        self.notes += (note,)
        warnings.warn(note, UserWarning, stacklevel=6)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._closed = True
            self._forget()

    def __repr__(self) -> str:
        return f"Labels({'in memory' if self.path is None else str(self.path)!r})"


def _labelled(feature: FeatureId, rank: str, rows: Iterable[Row]) -> list[Label]:
    labels = [Label(feature, text, rank, score, made, by) for _, text, by, score, made in rows]
    return sorted(labels, key=best_first)


def best_first(label: Label) -> tuple[Any, ...]:
    """Sorts labels of one source: by score, those without one last; then the newest."""
    return -(-1.0 if label.score is None else label.score), _newest(label.made), label.text


def _newest(made: str) -> float:
    try:
        return -datetime.fromisoformat(made).timestamp()
    except ValueError:
        return 0.0


def clean(text: Any, longest: int, what: str) -> str:
    """A label or note as it is kept: without control characters; a label in one line. Refuses what is none."""
    if not isinstance(text, str):
        raise refuse("label-unusable", what=what, given=text, why="it is not a text")
    lines = "\n" if what == "note" else ""
    kept = "".join(c if c in lines or unicodedata.category(c) != "Cc" else " " for c in text).strip()
    if what == "label":
        kept = " ".join(kept.split())
    if not kept:
        raise refuse("label-unusable", what=what, given=text, why="it is empty")
    if len(kept) > longest:
        shown = kept[:40] + "…"
        raise refuse("label-unusable", what=what, given=shown, why=f"it has {len(kept):,} characters of {longest:,}")
    if any("\ud800" <= c <= "\udfff" for c in kept):
        raise refuse(
            "label-unusable", what=what, given=kept[:40], why="it has a lone surrogate, which no file can hold"
        )
    return kept
