"""From the parts of an index to the files it is read from: one table for each site, one row for each feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...site import Site
from . import scale
from .layout import BESIDE, COARSE, LEVELS, PASSAGES, ROWS, SHARES, STEPS
from .tally import (
    DRAWN,
    FIRINGS,
    INTERVALS,
    TOP,
    UNIT,
    WINDOW,
    Counts,
    Examples,
    Firings,
    keep_examples,
    keep_firings,
    ordered,
    passage_and_position,
    rank,
)
from .work import Done, write

ON, TOGETHER = 5, 5  # tokens, and other features, that are named of each


def finish_site(file: Path, site: Site, number: int, width: int, done: Sequence[Done], seed: int) -> str:
    """Write the table of one site; its sha256."""
    counts = Counts.none(width)
    histogram = np.zeros((width, scale.BINS), np.int64)
    examples, firings = Examples.none(), Firings.none()
    # Some at a time, so that memory does not grow with their number.
    for start in range(0, len(done), 32):
        parts = [one.part(number, width) for one in done[start : start + 32]]
        for part in parts:
            counts.fired += part.counts.fired
            counts.total += part.counts.total
            counts.maximum = np.maximum(counts.maximum, part.counts.maximum)
            histogram += part.counts.histogram
        examples = keep_examples(Examples.joined([examples, *(part.examples for part in parts)]), str(site), seed)
        firings = keep_firings(Firings.joined([firings, *(part.firings for part in parts)]), seed)
    columns = {
        **_figures(counts, histogram),
        **_examples(examples, counts.maximum, str(site), seed),
        **_on(firings, width),
        **_together(firings, width, seed),
    }
    return write_rows(file, columns, ROWS)


def write_rows(file: Path, columns: dict[str, Any], rows: int) -> str:
    import pyarrow

    table = pyarrow.table(columns)
    pieces = (table.slice(start, rows) for start in range(0, max(1, len(table)), rows))
    # The bytes of numbers apart compress best; values descend, so their differences are small.
    encodings = {
        f"{field.name}.list.element" if pyarrow.types.is_list(field.type) else field.name: (
            "DELTA_BINARY_PACKED" if field.name == "value" else "BYTE_STREAM_SPLIT"
        )
        for field in table.schema
    }
    return write(file, pieces, level=19, column_encoding=encodings)


def _lists(row: np.ndarray, values: np.ndarray, rows: int) -> Any:
    """A list column: `values` by the row each belongs to; rows ascend."""
    import pyarrow

    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def _figures(counts: Counts, histogram: np.ndarray) -> dict[str, Any]:
    width = len(histogram)
    with np.errstate(invalid="ignore"):
        mean = np.where(counts.fired > 0, counts.total / UNIT / counts.fired, 0)
    histogram = histogram.reshape(width, -1, COARSE).sum(2)
    some = histogram > 0
    first = np.where(some.any(1), some.argmax(1), 0)
    last = np.where(some.any(1), some.shape[1] - some[:, ::-1].argmax(1), 0)
    bins = np.arange(some.shape[1])
    row, bin_ = np.nonzero((bins >= first[:, None]) & (bins < last[:, None]))
    return {
        "fired": counts.fired.astype(np.uint64),
        "maximum": counts.maximum,
        # Three digits are enough of a mean; the others would be noise to store.
        "mean": (mean.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32),
        "first_bin": first.astype(np.uint8),
        "histogram": _lists(row, histogram[row, bin_].astype(np.uint64), width),
    }


def _examples(found: Examples, maximum: np.ndarray, site: str, seed: int) -> dict[str, Any]:
    """The strongest, and of each interval those with the smallest numbers."""
    width = len(maximum)
    among = rank(found.feature) if len(found) else np.zeros(0, np.int64)
    share = found.value.astype(np.float64) / maximum[found.feature]
    interval = np.clip(np.ceil(share * INTERVALS).astype(np.int64) - 1, 0, INTERVALS - 1)
    number = scale.of_firing(scale.of_token(found.place, seed), found.feature, site)
    key = found.feature.astype(np.int64) * INTERVALS + interval
    order = ordered(key.astype(np.uint64) << np.uint64(32) | number >> np.uint64(32), number)
    drawn = np.zeros(len(found), bool)
    if len(found):
        drawn[order[rank(key[order]) < DRAWN]] = True
    kept = drawn | (among < TOP)
    found, interval, drawn = found.picked(kept), interval[kept], drawn[kept]
    passage, position = passage_and_position(found.place)
    # The square root: in equal steps what is far below the maximum would be lost.
    steps = np.rint(np.sqrt(found.value.astype(np.float64) / maximum[found.feature]) * STEPS).astype(np.uint8)
    near = np.delete(found.window, WINDOW, axis=1)
    near[np.ix_(among[kept] >= TOP, np.abs(np.delete(np.arange(-WINDOW, WINDOW + 1), WINDOW)) > BESIDE)] = 0
    entry, slot = np.nonzero(near)
    mask = np.zeros(len(found), np.uint32)
    np.bitwise_or.at(mask, entry, np.uint32(1) << slot.astype(np.uint32))
    share = scale.decoded(near[entry, slot]) / maximum[found.feature[entry]]
    levels = np.minimum(np.sqrt(share) * LEVELS, LEVELS - 1)
    return {
        "passage": _lists(found.feature, passage.astype(np.uint32), width),
        "position": _lists(found.feature, position.astype(np.uint32), width),
        "value": _lists(found.feature, steps, width),
        "interval": _lists(found.feature, np.where(drawn, interval + 1, 0).astype(np.uint8), width),
        "near": _lists(found.feature, mask, width),
        "near_value": _lists(found.feature[entry], levels.astype(np.uint8), width),
    }


def _on(found: Firings, width: int) -> dict[str, Any]:
    """The tokens that stand most often among a feature's firings."""
    key, count = np.unique(found.feature.astype(np.uint64) << np.uint64(32) | found.id, return_counts=True)
    feature, ident = (key >> np.uint64(32)).astype(np.int64), key & np.uint64(0xFFFFFFFF)
    order = np.lexsort((ident, -count, feature))
    if len(order):
        order = order[rank(feature[order]) < ON]
    return {
        "looked_at": np.bincount(found.feature, minlength=width).astype(np.uint8),
        "on": _lists(feature[order], ident[order].astype(np.uint32), width),
        "on_count": _lists(feature[order], count[order].astype(np.uint8), width),
    }


def _together(found: Firings, width: int, seed: int) -> dict[str, Any]:
    """Which features fire on the same tokens, from the firings that are kept.

    Those are the tokens with the smallest numbers, and a token's number is the same for all features. So of two
    features all firings are known up to the smaller of their largest numbers, and up to there the share of tokens
    where both fire is counted.
    """
    number = scale.of_token(found.place, seed)
    feature = found.feature.astype(np.int64)
    many = np.bincount(feature, minlength=width)
    starts = np.concatenate([[0], np.cumsum(many)])
    known_to = np.full(width, 0xFFFFFFFFFFFFFFFF, np.uint64)
    full = np.flatnonzero(many == FIRINGS)
    known_to[full] = number[starts[full + 1] - 1]
    order = np.lexsort((feature, number))
    token, owner = number[order], feature[order]
    pairs = []
    for step in range(1, len(order)):
        same = np.flatnonzero(token[step:] == token[:-step])
        if not len(same):
            break
        pairs.append(owner[same] * width + owner[same + step])
    key, together = np.unique(np.concatenate(pairs) if pairs else np.zeros(0, np.int64), return_counts=True)
    key, together = key[together > 1], together[together > 1]
    one, two = key // width, key % width
    # of each pair, how many firings of both are known up to where both are known
    sorted_key = feature.astype(np.uint64) << np.uint64(32) | number >> np.uint64(32)
    limit = np.minimum(known_to[one], known_to[two]) >> np.uint64(32)

    def known(which: np.ndarray) -> np.ndarray:
        upto = which.astype(np.uint64) << np.uint64(32) | limit
        return np.searchsorted(sorted_key, upto, side="right") - starts[which]

    share = together / (known(one) + known(two) - together)
    row, other = np.concatenate([one, two]), np.concatenate([two, one])
    share, together = np.tile(share, 2), np.tile(together, 2)
    steps = np.rint(np.minimum(share, 1) * SHARES).astype(np.int64)
    order = np.lexsort((other, -together, -steps, row))
    if len(order):
        order = order[rank(row[order]) < TOGETHER]
    row, other, steps, together = row[order], other[order], steps[order], together[order]
    return {
        "together": _lists(row, other.astype(np.uint32), width),
        "together_count": _lists(row, together.astype(np.uint8), width),
        "together_share": _lists(row, steps.astype(np.uint8), width),
    }


# ---- text


def finish_text(folder: Path, done: Sequence[Done], text_of: Callable[[int], tuple[str, bool]]) -> dict[str, str]:
    """Write the passages, and the text of every token in them; the sha256 of both files."""
    import pyarrow

    used: set[int] = set()

    def passages() -> Any:
        waiting: list[np.ndarray] = []
        for one in done:
            waiting += one.ids()
            while len(waiting) >= PASSAGES:
                yield table(waiting[:PASSAGES])
                del waiting[:PASSAGES]
        if waiting:
            yield table(waiting)

    def table(ids: list[np.ndarray]) -> Any:
        used.update(np.unique(np.concatenate(ids)).tolist())
        return pyarrow.table({"ids": pyarrow.array(ids, pyarrow.list_(pyarrow.int32()))})

    digests = {"passages.parquet": write(folder / "passages.parquet", passages(), level=19)}
    known = sorted(used)
    texts = [text_of(ident) for ident in known]
    tokens = {
        "id": pyarrow.array(known, pyarrow.int32()),
        "text": [text for text, _ in texts],
        "special": [special for _, special in texts],
    }
    digests["tokens.parquet"] = write(folder / "tokens.parquet", [pyarrow.table(tokens)], level=19)
    return digests
