"""Words in labels, notes and examples: which rows have them, and which of those answer best.

The full-text index keeps no positions, and its answer is cut: of a word that a million labels have, a sample over all
SAEs is ranked rather than every one, so that a search takes milliseconds whatever the file holds.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import refuse
from ..feature import FeatureId, whole
from ..label import Label
from ..site import Site
from .label_file import RANKS, number, spelled
from .words import grams, plain, runs

_CANDIDATES = 1_000  # rows that are ranked
_ENDINGS = 24  # longer words that one word of a query stands for
_PREFIX = 2  # letters from which on a word also stands for longer ones
_QUOTED = re.compile('["“”„«»]([^"“”„«»]*)["“”„«»]')
_LONGEST = 1_000  # characters of a query


@dataclass(frozen=True)
class Found:
    """A feature that a search found. `label` is the text that has the words; its source may also be 'note', or
    'examples', whose text is the tokens the feature fires on. `words` are those of the query that it has; `complete`:
    whether all texts with them were compared, rather than a sample of them."""

    feature: FeatureId
    label: Label
    words: tuple[str, ...]
    worth: float
    complete: bool = True


@dataclass(frozen=True)
class _Needle:
    """A word of a query and what it stands for; or characters of a script without spaces."""

    text: str
    unspaced: bool
    others: tuple[str, ...] = ()

    def match(self, others: bool = True) -> str:
        """What the full-text index is asked for; with `others`, longer words too."""
        if self.unspaced:
            return "(" + " AND ".join(f'"{gram}"' for gram in grams(self.text)) + ")"
        return "(" + " OR ".join(f'"{word}"' for word in (self.text, *(self.others if others else ()))) + ")"


def find(
    db: sqlite3.Connection, query: Any, codes: Mapping[int, Site], limit: int, *, everything: bool = True
) -> tuple[Found, ...]:
    """Features whose texts have the words of `query`, best first, each once.

    `codes` are the SAEs looked at, by their number; `everything`: whether those are all that the file is for.
    """
    most = whole(limit)
    if most is None or most < 1:
        raise refuse("count-unreadable", name="limit", given=limit, least=1)
    needles, phrases = read_query(db, query)
    if not codes:
        return ()
    numbers, complete = _numbers(db, needles, " AND ", codes, everything)
    if not numbers and len(needles) > 1:
        numbers, complete = _numbers(db, needles, " OR ", codes, everything)
    best: dict[FeatureId, Found] = {}
    for ident, text, by, score, made in _texts(db, numbers):
        rank, code, index = spelled(ident)
        simple = plain(text)
        if code not in codes or not all(phrase in " ".join(word for word, _ in runs(simple)) for phrase in phrases):
            continue
        feature = FeatureId(codes[code], index)
        words, worth = _worth(needles, simple, RANKS.index(rank))
        if feature not in best or worth > best[feature].worth:
            best[feature] = Found(feature, Label(feature, text, rank, score, made, by), words, worth, complete)
    return tuple(sorted(best.values(), key=lambda one: (-one.worth, one.feature))[:most])


def read_query(db: sqlite3.Connection, query: Any) -> tuple[list[_Needle], list[str]]:
    """(words with what they stand for, phrases) of a query. Refuses one without words."""
    if not isinstance(query, str):
        raise refuse("query-empty", given=query, why="it is not a text")
    if len(query) > _LONGEST:
        raise refuse("query-empty", given=query[:40] + "…", why=f"it is longer than {_LONGEST:,} characters")
    simple = plain(query)
    needles = [
        _Needle(run, unspaced, () if unspaced else _others(db, run)) for run, unspaced in dict.fromkeys(runs(simple))
    ]
    if not needles:
        why = "it is empty" if not query.strip() else "it holds no letter or digit, and there are no operators"
        raise refuse("query-empty", given=query, why=why)
    phrases = [" ".join(word for word, _ in runs(plain(part))) for part in _QUOTED.findall(query)]
    return needles, [phrase for phrase in phrases if phrase]


def _others(db: sqlite3.Connection, word: str) -> tuple[str, ...]:
    """Longer words that begin with `word`, shortest first; if there is none, words that have it inside."""
    if len(word) < _PREFIX:
        return ()
    asked = "SELECT word FROM word WHERE word > ? AND word < ? ORDER BY length(word), word LIMIT ?"
    found = db.execute(asked, (word, word + "\U0010ffff", _ENDINGS)).fetchall()
    if not found and not db.execute("SELECT 1 FROM word WHERE word = ?", (word,)).fetchone():
        asked = "SELECT word FROM word WHERE instr(word, ?) ORDER BY length(word), word LIMIT ?"
        found = db.execute(asked, (word, _ENDINGS)).fetchall()
    return tuple(other for (other,) in found)


def _numbers(
    db: sqlite3.Connection, needles: list[_Needle], between: str, codes: Mapping[int, Site], everything: bool
) -> tuple[list[int], bool]:
    """Numbers of rows that match, and whether these are all. More than fit are sampled from every SAE alike."""
    match = between.join(needle.match() for needle in needles)
    if everything:
        asked = "SELECT rowid FROM found WHERE found MATCH ? LIMIT ?"
        rows = [ident for (ident,) in db.execute(asked, (match, _CANDIDATES + 1))]
        if len(rows) <= _CANDIDATES:
            return rows, True
        # Of more than enough, those with the words as they stand are the better ones, and found in less time.
        exact = between.join(needle.match(others=False) for needle in needles)
        if len(db.execute(asked, (exact, _CANDIDATES + 1)).fetchall()) > _CANDIDATES:
            match = exact
    asked = "SELECT rowid FROM found WHERE found MATCH ? AND rowid BETWEEN ? AND ? LIMIT ?"
    share = max(_CANDIDATES // (len(codes) * 2), 4)
    found, complete = [], True
    for rank in RANKS:
        whole_rank = (number(rank, 0, 0), number(rank, 0xFFFF, 0xFFFFFFF, 255))
        if not db.execute(asked, (match, *whole_rank, 1)).fetchone():
            continue
        for code in codes:
            limits = (number(rank, code, 0), number(rank, code, 0xFFFFFFF, 255))
            rows = [ident for (ident,) in db.execute(asked, (match, *limits, share + 1))]
            complete &= len(rows) <= share
            found += rows[:share]
    return found, complete


def _texts(db: sqlite3.Connection, numbers: list[int]) -> list[Any]:
    asked = (
        "SELECT label.id, text, coalesce(name, ''), score, coalesce(made, '') FROM label "
        "LEFT JOIN writer ON writer.id = by WHERE label.id IN ({})"
    )
    rows = []
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        rows += db.execute(asked.format(",".join("?" * len(part))), part).fetchall()
    return rows


# By rank: the user's label, note, Neuronpedia's, curated, explained, automatic, tokens of examples.
_TRUST = (0.5, 0.5, 0.1, 0.3, 0.1, 0.0, -0.1)


def _worth(needles: list[_Needle], text: str, rank: int) -> tuple[tuple[str, ...], float]:
    """(words of the query that a text has, how well it answers): exact words before other endings, short texts that
    are about nothing else before long ones, the user's own before a statistic."""
    words = [word for word, _ in runs(text)]
    total, had = 0.0, []
    for needle in needles:
        if needle.unspaced:
            hit = 1.0 if needle.text in text else 0.0
        elif needle.text in words:
            hit = 1.0
        elif any(word in needle.others for word in words):
            hit = 0.7
        else:
            hit = 0.8 if any(_related(needle.text, word) for word in words) else 0.0
        total += hit
        if hit:
            had.append(needle.text)
    covered = len(had) / max(len(words), 1)
    return tuple(had), total / len(needles) * (0.6 + 0.4 * min(covered, 1.0)) + _TRUST[rank]


def _related(one: str, two: str) -> bool:
    """Whether two words are endings of one stem, as near as it matters for ranking what the index has found."""
    shared = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        shared += 1
    return shared >= 3 and shared >= min(len(one), len(two)) - 2
