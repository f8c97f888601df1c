"""The file that labels are kept in: its tables, the numbers of its rows, and what to do when it is damaged.

A row's number says whose text it is, of which SAE, and of which feature: rank of the source | number of the SAE |
feature | which of several. So no other index is needed, and a search meets the user's own words first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import refuse
from ..label import SOURCES
from .words import indexed

Row = tuple[int, str, str, float | None, str]  # number, text, by, score, made

FORMAT = 1
_PATIENCE = 15  # seconds to wait for another writer

# Ranks beside those of labels. Notes and the tokens of examples are searched, but are no labels.
NOTE, EXAMPLES = "note", "examples"
RANKS = (SOURCES[0], NOTE, *SOURCES[1:], EXAMPLES)
_OWN = ("user", NOTE, "explained")  # what no file or index could bring back

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sae (id INTEGER PRIMARY KEY, site TEXT, width INTEGER, digest TEXT);
CREATE TABLE IF NOT EXISTS writer (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS label (id INTEGER PRIMARY KEY, text TEXT, by INTEGER, score REAL, made TEXT);
CREATE TABLE IF NOT EXISTS star (id INTEGER PRIMARY KEY, made TEXT);
CREATE TABLE IF NOT EXISTS word (word TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS found USING
  fts5(text, content='', columnsize=0, detail=none, tokenize='porter unicode61 remove_diacritics 0');
"""


def number(rank: str, sae: int, feature: int, place: int = 0) -> int:
    """The row's number of a text: 4 bits of rank, 16 of SAE, 28 of feature, 8 for which of several."""
    return RANKS.index(rank) << 52 | sae << 36 | feature << 8 | place


def spelled(given: int) -> tuple[str, int, int]:
    """(rank, SAE, feature) of a row's number."""
    return RANKS[given >> 52], given >> 36 & 0xFFFF, given >> 8 & 0xFFFFFFF


def put(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Write rows whose numbers are free, and what finds them."""
    writers: dict[str, int] = {}
    labels, terms, words = [], [], set()
    for ident, text, by, score, made in rows:
        if by not in writers:
            db.execute("INSERT OR IGNORE INTO writer (name) VALUES (?)", (by,))
            writers[by] = db.execute("SELECT id FROM writer WHERE name = ?", (by,)).fetchone()[0]
        joined, own = indexed(text)
        labels.append((ident, text, writers[by], score, made))
        terms.append((ident, joined))
        words |= own
    db.executemany("INSERT INTO label VALUES (?, ?, ?, ?, ?)", labels)
    db.executemany("INSERT INTO found (rowid, text) VALUES (?, ?)", terms)
    db.executemany("INSERT OR IGNORE INTO word VALUES (?)", ((word,) for word in sorted(words)))


def remove(db: sqlite3.Connection, first: int, last: int) -> None:
    """Take away the rows from `first` to `last`, and what finds them."""
    gone = db.execute("SELECT id, text FROM label WHERE id BETWEEN ? AND ?", (first, last)).fetchall()
    old = [("delete", ident, indexed(text)[0]) for ident, text in gone]
    db.executemany("INSERT INTO found (found, rowid, text) VALUES (?, ?, ?)", old)
    db.execute("DELETE FROM label WHERE id BETWEEN ? AND ?", (first, last))


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection with the tables there. Raises sqlite3.DatabaseError where the file is not one of ours."""
    db = sqlite3.connect(
        ":memory:" if path is None else path, timeout=_PATIENCE, check_same_thread=False, isolation_level=None
    )
    try:
        # Readers and a writer do not wait for each other. Folders on a network refuse it, and then they do.
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -32000")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise refuse("scope-newer", file=path, theirs=version, ours=FORMAT)
        if version < FORMAT:
            db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _SCHEMA.split(";\n")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
        db.execute("SELECT id FROM label LIMIT 1").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def check(path: Path) -> None:
    """Raises sqlite3.DatabaseError if the file is damaged. Reads all of it."""
    db = connect(path)
    try:
        (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        db.execute("INSERT INTO found (found) VALUES ('integrity-check')")
    finally:
        db.close()


def take_over(damaged: Path, fresh: sqlite3.Connection) -> int:
    """Copies what can be read of the user's labels, notes, explanations and stars; returns how many."""
    copied = 0
    try:
        old = sqlite3.connect(f"file:{damaged}?mode=ro", uri=True, timeout=1)
    except sqlite3.Error:
        return 0
    fresh.execute("BEGIN IMMEDIATE")
    for row in _while_readable(old, "SELECT id, site, width, digest FROM sae"):
        fresh.execute("INSERT INTO sae VALUES (?, ?, ?, ?)", row)
    for key in _while_readable(old, "SELECT id, made FROM star"):
        fresh.execute("INSERT INTO star VALUES (?, ?)", key)
        copied += 1
    for rank in _OWN:
        asked = (
            "SELECT label.id, text, coalesce(name, ''), score, made FROM label LEFT JOIN writer ON writer.id = by "
            f"WHERE label.id BETWEEN {number(rank, 0, 0)} AND {number(rank, 0xFFFF, 0xFFFFFFF, 255)}"
        )
        rows = list(_while_readable(old, asked))
        put(fresh, rows)
        copied += len(rows)
    fresh.execute("COMMIT")
    old.close()
    return copied


def _while_readable(db: sqlite3.Connection, asked: str) -> Iterator[Any]:
    try:
        yield from db.execute(asked)
    except sqlite3.DatabaseError:
        return
