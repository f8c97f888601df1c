"""What is kept of a site's activations while a text goes by, and the rule that says what may be forgotten.

The rule depends on nothing but the activations themselves: not on their order, not on how the text was cut into parts.
An example is kept if it is among the TOP strongest of its feature (ties: the earlier place), or among the DRAWN with
the smallest numbers (`scale.of_firing`, random to the eye) of its group. A group is a bin of the histogram; bins wholly
below a fifth of the feature's maximum are one group. That maximum only ever grows, so groups only ever join, and what
was not among the smallest of its group never will be of the larger one: keeping the kept of two parts gives the kept
of the whole. The random examples of an interval are drawn from what is kept in it. Its borders are known at the end
only and cut through bins, so in a bin that is cut fewer may be left than a draw from all would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

import numpy as np

from ...sparse import SparseActs
from . import scale

TOP, DRAWN, INTERVALS = 20, 5, 5
FIRINGS = 64  # of each feature, by the tokens' own numbers: for the tokens it fires on, and what fires with it
WINDOW = 10  # tokens on each side of an example whose activations are kept
UNIT = 1 << 16  # sums are kept in whole units of 1/65536: sums of floats would depend on their order
_TOP_OF_GROUP = scale.EDGES[1:].astype(np.float64)
# Places: the passage in the upper bits, the position of the token in the lower.
POSITION_BITS = 20
_WORTH_SORTING = 1 << 15
_CELLS = 1 << 22  # bytes in which windows are laid out


@dataclass
class Table:
    """Parallel arrays, one element per entry."""

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def picked(self, which: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass
class Examples(Table):
    """`feature` uint32, `value` float32, `place` uint64, `window` uint8 [entry, 2 WINDOW + 1]: codes around it."""

    feature: np.ndarray
    value: np.ndarray
    place: np.ndarray
    window: np.ndarray

    @classmethod
    def none(cls) -> Examples:
        window = np.zeros((0, 2 * WINDOW + 1), np.uint8)
        return cls(np.zeros(0, np.uint32), np.zeros(0, np.float32), np.zeros(0, np.uint64), window)


@dataclass
class Firings(Table):
    """Tokens that features fire on: `feature` uint32, `place` uint64, `id` uint32: the vocabulary entry there."""

    feature: np.ndarray
    place: np.ndarray
    id: np.ndarray

    @classmethod
    def none(cls) -> Firings:
        return cls(np.zeros(0, np.uint32), np.zeros(0, np.uint64), np.zeros(0, np.uint32))


@dataclass
class Counts:
    """Of every feature: `fired` int64, `total` int64 in UNITs, `maximum` float32; `histogram` uint32 [feature, bin]."""

    fired: np.ndarray
    total: np.ndarray
    maximum: np.ndarray
    histogram: np.ndarray

    @classmethod
    def none(cls, width: int) -> Counts:
        zeros = np.zeros(width, np.int64)
        return cls(zeros, zeros.copy(), np.zeros(width, np.float32), np.zeros((width, scale.BINS), np.uint32))


@dataclass
class Part:
    """What one part of a text adds to what is known of a site."""

    counts: Counts
    examples: Examples
    firings: Firings


T = TypeVar("T", Examples, Firings)

# ---- the rule


def place_of(passage: np.ndarray, position: np.ndarray) -> np.ndarray:
    return passage.astype(np.uint64) << np.uint64(POSITION_BITS) | position.astype(np.uint64)


def passage_and_position(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position = place & np.uint64((1 << POSITION_BITS) - 1)
    return (place >> np.uint64(POSITION_BITS)).astype(np.int64), position.astype(np.int64)


def rank(keys: np.ndarray) -> np.ndarray:
    """Of sorted keys: how many equal ones stand before each."""
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return np.arange(len(keys)) - np.repeat(first, np.diff(np.append(first, len(keys))))


def ordered(key: np.ndarray, tie: np.ndarray) -> np.ndarray:
    """The order of `key` (uint64), equal ones in that of `tie`. Several times faster than sorting by both."""
    order = np.argsort(key)
    there = key[order]
    same = there[1:] == there[:-1]
    if same.any():
        tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
        some = order[tied]
        order[tied] = some[np.lexsort((tie[some], key[some]))]
    return order


def _descending(value: np.ndarray) -> np.ndarray:
    """Values (float32, above 0) as uint64 below 2**32 in the opposite order."""
    return (~value.view(np.uint32)).astype(np.uint64)


def lowest_group(maximum: np.ndarray) -> np.ndarray:
    """The last group wholly below a fifth of the maximum; it stands for all below it."""
    fifth = maximum.astype(np.float64) / INTERVALS
    return np.maximum(np.searchsorted(_TOP_OF_GROUP, fifth, side="right") - 1, 0)


@dataclass
class Bar:
    """What an activation must reach to be kept; reaching it is not enough."""

    value: np.ndarray  # float32 [feature]
    lowest: np.ndarray  # uint8 [feature]: its lowest group
    number: np.ndarray  # uint16 [feature, group]: the upper bits of the largest number kept
    firing: np.ndarray  # uint16 [feature]

    @classmethod
    def none(cls, width: int) -> Bar:
        return cls(
            np.zeros(width, np.float32),
            np.zeros(width, np.uint8),
            np.full((width, scale.BINS), 0xFFFF, np.uint16),
            np.full(width, 0xFFFF, np.uint16),
        )


def keep_examples(found: Examples, site: str, seed: int, bar: Bar | None = None) -> Examples:
    """Those of `found` that the rule keeps, by feature, strongest first. Writes the new bar into `bar`."""
    if not len(found):
        return found
    strongest = ordered(found.feature.astype(np.uint64) << np.uint64(32) | _descending(found.value), found.place)
    feature, value = found.feature[strongest], found.value[strongest]
    among = rank(feature)
    keep = among < TOP
    first = among == 0
    lowest = np.zeros(int(feature[-1]) + 1, np.int64)
    lowest[feature[first]] = lowest_group(value[first])
    group = np.maximum(scale.bins(value), lowest[feature])
    number = scale.of_firing(scale.of_token(found.place[strongest], seed), feature, site)
    key = feature.astype(np.int64) * scale.BINS + group
    order = ordered(key.astype(np.uint64) << np.uint64(32) | number >> np.uint64(32), number)
    drawn = rank(key[order])
    keep[order[drawn < DRAWN]] = True
    if bar is not None:
        last = among == TOP - 1
        bar.value[feature[last]] = value[last]
        bar.lowest[: len(lowest)] = lowest
        last = order[drawn == DRAWN - 1]
        bar.number.reshape(-1)[key[last]] = number[last] >> np.uint64(48)
    return found.picked(strongest[keep])


def keep_firings(found: Firings, seed: int, bar: Bar | None = None) -> Firings:
    """The FIRINGS of each feature with the smallest numbers of tokens, in the order of those."""
    if not len(found):
        return found
    number = scale.of_token(found.place, seed)
    order = ordered(found.feature.astype(np.uint64) << np.uint64(32) | number >> np.uint64(32), number)
    feature = found.feature[order]
    among = rank(feature)
    if bar is not None:
        last = among == FIRINGS - 1
        bar.firing[feature[last]] = number[order[last]] >> np.uint64(48)
    return found.picked(order[among < FIRINGS])


# ---- while text goes by


class _Sieve(Generic[T]):
    """Entries that may be kept. Sorting out what is not costs a sort, so it is done when there are many new ones."""

    def __init__(self, none: T, keep: Callable[[T], T]) -> None:
        self._keep: Callable[[T], T] = keep
        self._known: T = none  # of earlier parts
        self._new: list[T] = [none]
        self._waiting = self._loose = 0  # new entries, and known ones, that are not sorted out yet

    def add(self, found: T) -> None:
        self._new.append(found)
        self._waiting += len(found)
        if self._waiting > max(_WORTH_SORTING, (len(self._known) + len(self._new[0])) // 2):
            self.sift()

    def sift(self) -> None:
        new = self._joined(self._new)
        # Parts come in the order of the text: what stands before the first new place is of earlier ones.
        begins = new.place.min() if len(new) else 0
        if len(self._known):
            kept = self._keep(self._joined([self._known, new]))
            earlier = kept.place < begins
            self._known, self._new = kept.picked(earlier), [kept.picked(~earlier)]
        else:
            self._new = [self._keep(new)]
        self._waiting = self._loose = 0

    def know(self, found: T) -> None:
        self._known = self._keep(self._joined([self._known, found]))

    def take(self) -> T:
        """What is new, which from now on is known."""
        new = self._joined(self._new)
        self._known, self._new = self._joined([self._known, new]), [new.picked(slice(0))]
        self._loose += self._waiting
        self._waiting = 0
        # Part by part too little may come to be worth it; all parts together must not fill the memory.
        if self._loose > max(_WORTH_SORTING, (len(self._known) - self._loose) // 2):
            self._known, self._loose = self._keep(self._known), 0
        return new

    @staticmethod
    def _joined(parts: list[T]) -> T:
        return type(parts[0]).joined(parts)


class Tally:
    """One site's part of the text so far. What earlier parts kept raises the bar for what comes."""

    def __init__(self, site: str, width: int, seed: int) -> None:
        self.site, self.width = site, width
        self._bar = bar = Bar.none(width)
        self._examples = _Sieve(Examples.none(), lambda found: keep_examples(found, site, seed, bar))
        self._firings = _Sieve(Firings.none(), lambda found: keep_firings(found, seed, bar))
        self._counts = Counts.none(width)

    def add(self, acts: SparseActs, place: np.ndarray, number: np.ndarray, ids: np.ndarray) -> None:
        """Activations [token, feature] with each token's place, its number (`scale.of_token`) and vocabulary id."""
        if not acts.nnz:
            return
        columns = acts.indices.astype(np.uint16) if self.width <= 1 << 16 else acts.indices
        order = np.argsort(columns, kind="stable")  # of two bytes: by counting
        feature, value = acts.indices.take(order), acts.values.take(order)
        # Indices of the machine's own width are looked up with; others would be widened each time.
        which = feature.astype(np.intp)
        token = np.repeat(np.arange(acts.shape[0], dtype=np.intp), acts.l0).take(order)
        bin_, bar = scale.bins(value), self._bar
        row = which * scale.BINS
        self._count(which, value, row + bin_)
        mine = (number >> np.uint64(48)).astype(np.uint16).take(token) <= bar.firing.take(which)
        there = token[mine]
        self._firings.add(Firings(feature[mine], place.take(there), ids.take(there)))
        row += np.maximum(bin_, bar.lowest.take(which))
        mixed = scale.of_firing(number.take(token), feature, self.site)
        drawn = (mixed >> np.uint64(48)).astype(np.uint16) <= bar.number.reshape(-1).take(row)
        picked = np.flatnonzero(drawn | (value >= bar.value.take(which)))
        window = _windows(picked, which, scale.coded(bin_), token, place)
        self._examples.add(Examples(feature[picked], value[picked], place.take(token[picked]), window))

    def _count(self, feature: np.ndarray, value: np.ndarray, bins: np.ndarray) -> None:
        """`feature` ascends; `bins` are places in the histogram of all features."""
        first = np.flatnonzero(np.concatenate([[True], feature[1:] != feature[:-1]]))
        here, counts = feature[first], self._counts
        counts.fired[here] += np.diff(np.append(first, len(feature)))
        units = np.rint(value * np.float64(UNIT)).astype(np.int64)
        counts.total[here] += np.add.reduceat(units, first)
        counts.maximum[here] = np.maximum(counts.maximum[here], np.maximum.reduceat(value, first))
        np.add.at(counts.histogram.reshape(-1), bins, np.uint32(1))

    def know(self, examples: Examples, firings: Firings) -> None:
        """Take what an earlier part kept into account."""
        self._examples.know(examples)
        self._firings.know(firings)

    def take(self) -> Part:
        """What came since the last time. It need not be all that the rule keeps of it: only the whole matters."""
        counts, self._counts = self._counts, Counts.none(self.width)
        return Part(counts, self._examples.take(), self._firings.take())


def _windows(
    picked: np.ndarray, feature: np.ndarray, codes: np.ndarray, token: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Codes of the same feature around the entries `picked`, uint8 [picked, 2 WINDOW + 1]. Entries are sorted by
    feature and token; `place` is each token's.

    Features are laid out as rows of tokens, silence and all, and windows cut from those: no entry looks for its
    neighbours. Passages stand WINDOW apart, so no window reaches into another."""
    window = np.zeros((len(picked), 2 * WINDOW + 1), np.uint8)
    if not len(picked):
        return window
    passage = place >> np.uint64(POSITION_BITS)
    gaps = np.concatenate([[0], np.cumsum(passage[1:] != passage[:-1])])
    column = np.arange(len(place)) + WINDOW * (1 + gaps)
    long = int(column[-1]) + 1 + WINDOW
    rows = max(1, _CELLS // long)
    wanted = feature[picked]
    for first in range(int(wanted[0]), int(wanted[-1]) + 1, rows):
        last = min(first + rows, int(wanted[-1]) + 1)
        begin, end = np.searchsorted(feature, (first, last))
        low, high = np.searchsorted(wanted, (first, last))
        laid = np.zeros((last - first) * long, np.uint8)
        laid[(feature[begin:end] - first) * long + column[token[begin:end]]] = codes[begin:end]
        centre = (wanted[low:high] - first) * long + column[token[picked[low:high]]]
        window[low:high] = np.lib.stride_tricks.sliding_window_view(laid, 2 * WINDOW + 1)[centre - WINDOW]
    return window
