"""A label computed from what is known of a feature: the tokens it fires on, what stands around them, what it promotes.

Plain counting over its strongest examples, no language model, and said to be so: 'on “ Paris” · after “in” · promotes
“ France”'. Without an index only what the decoder promotes is left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.protocol import FeatureFacts
from ..evidence import Example, FeatureEvidence
from ..feature import FeatureId
from ..label import Label
from ..site import Site

if TYPE_CHECKING:
    from .index import Index

FactsOf = Callable[[tuple[FeatureId, ...]], tuple[FeatureFacts, ...]]
EvidenceOf = Callable[[FeatureId], FeatureEvidence | None]

FILE = "labels.parquet"
TOP = 20  # examples that are looked at
_NAMED, _SHARE = 3, 0.5  # tokens that are named, and the share of examples that makes something common to them
_AROUND = 6  # tokens on each side
_PROMOTED = 4
_BATCH = 256  # features asked for at once
# Words around a peak that say nothing: they stand around any word.
_COMMON = frozenset(
    re.findall(
        r"[a-z]+",
        """
the of and to in a is that it for was on are as with his they be at one have this from or had by but not what
all were we when your can said there an each which she he her do how their if will up other about out many
then them these so some would make like him into has two more see no could my than been its who did i you me
our us also just over only any most may such
""",
    )
)


def automatic(
    feature: FeatureId, promotes: Iterable[str] = (), evidence: FeatureEvidence | None = None
) -> Label | None:
    """The automatic label of a feature, from the token texts its decoder promotes (strongest first) and, if there is
    an index, its evidence. None where nothing is known of it."""
    text = joined("" if evidence is None else fires(evidence), promotes)
    by = "what its decoder promotes" if evidence is None else f"counts over the index {evidence.index}"
    return Label(feature, text, "automatic", None, "", by) if text else None


def joined(fires_on: str, promotes: Iterable[str]) -> str:
    """The text of a label: what its feature fires on, and what it promotes."""
    promoted = _distinct(promotes)[:_PROMOTED]
    parts = [fires_on] if fires_on else []
    return " · ".join(parts + (["promotes " + ", ".join(map(quoted, promoted))] if promoted else []))


def automatic_rows(
    site: Site,
    width: int,
    facts: FactsOf,
    evidence: EvidenceOf | None = None,
    kept: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
) -> Iterator[tuple[int, str, str]]:
    """(feature, label, tokens of its examples) of every feature of a site that something is known of.

    `kept` is what `write_fires` wrote of the site: evidence is then not looked at, which takes milliseconds for each
    feature. `tokens` are those of the examples (`tokens_of`), without which they are taken from the evidence.
    """
    for start in range(0, width, _BATCH):
        names = tuple(FeatureId(site, index) for index in range(start, min(start + _BATCH, width)))
        known = facts(names)
        for one in known:
            index, found = one.feature.index, None
            if kept is None and evidence is not None:
                found = evidence(one.feature)
            on = kept[index] if kept is not None else "" if found is None else fires(found)
            label = joined(on, (text for text, _ in one.promotes))
            seen = tokens[index] if tokens is not None else "" if found is None else " ".join(peaks(found))
            if label or seen:
                yield index, label, seen
        if start == 0 and evidence is None and kept is tokens is None and not any(one.promotes for one in known):
            return  # a scope without statistics has none for any feature


def tokens_of(index: Index, site: Site) -> list[str]:
    """Of every feature of a site, the tokens that its examples in an index peak at, each once, as a text to search."""
    offsets, ids = index.peaks(site)
    known = np.fromiter(index.texts, np.int64, len(index.texts))
    texts: list[str] = []
    first: dict[str, int] = {}
    for text in index.texts.values():
        whole = "" if text.startswith("⟨") and text.endswith("⟩") else text.strip()
        texts.append(whole)
        first.setdefault(whole.casefold(), len(first))
    # Tokens that differ in capitals and spaces only are one.
    same = np.array([first[text.casefold()] for text in texts])
    order = np.argsort(known)
    place = order[np.searchsorted(known, ids, sorter=order)]
    feature = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    key: np.ndarray = feature * (len(first) + 1) + same[place]
    _, once = np.unique(key, return_index=True)
    found: list[list[str]] = [[] for _ in range(len(offsets) - 1)]
    for one, which in zip(feature[np.sort(once)].tolist(), place[np.sort(once)].tolist(), strict=True):
        found[one].append(texts[which])
    return [" ".join(filter(None, words)) for words in found]


def write_fires(
    sites: Iterable[tuple[Site, int]],
    evidence: EvidenceOf,
    folder: Path | str,
    progress: Callable[[str, float], Any] | None = None,
) -> Path:
    """Writes what the examples of every feature share beside an index, so that it need not be counted when labels are
    first searched; `sites` are (site, width). Returns the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = list(sites)
    schema = pa.schema([("site", pa.string()), ("feature", pa.int32()), ("fires", pa.string())])
    file = Path(folder) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{FILE}.part")
    try:
        with pq.ParquetWriter(made, schema, compression="zstd", compression_level=19) as out:
            for done, (site, width) in enumerate(chosen):
                if progress is not None:
                    progress(f"automatic labels of {site}", done / len(chosen))
                found = (evidence(FeatureId(site, index)) for index in range(width))
                texts = ["" if one is None else fires(one) for one in found]
                out.write_table(pa.table([[str(site)] * width, list(range(width)), texts], schema=schema))
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)
    return file


def read_fires(folder: Path | str) -> dict[Site, list[str]] | None:
    """What `write_fires` wrote in a folder, by site and feature; None if it is not there or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = Path(folder) / FILE
    if not file.is_file():
        return None
    found: dict[Site, list[str]] = {}
    try:
        table = pq.read_table(file, columns=["site", "feature", "fires"])
        for site, feature, text in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            texts = found.setdefault(Site.of(site), [])
            if feature != len(texts) or not isinstance(text, str):
                return None
            texts.append(text)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return found


def peaks(evidence: FeatureEvidence) -> tuple[str, ...]:
    """The tokens a feature fires on, each once: those of its examples first, then those it fires on most often."""
    examples = [example.tokens[example.peak] for example in evidence.top]
    examples += [one.tokens[one.peak] for interval in evidence.intervals for one in interval.examples]
    return tuple(_distinct([*examples, *(one.text for one in evidence.on)]))


def quoted(token: str) -> str:
    """A token as it is named in a label, on one line."""
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    return "“" + "".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in shown) + "”"


def _same(token: str) -> str:
    return token.strip().casefold() or token


def _distinct(tokens: Iterable[str]) -> list[str]:
    """Tokens that differ in more than capitals and spaces, in order; pieces of characters left out."""
    first: dict[str, str] = {}
    for token in tokens:
        if token and not (token.startswith("⟨") and token.endswith("⟩")):
            first.setdefault(_same(token), token.strip() or token)
    return list(first.values())


def fires(evidence: FeatureEvidence) -> str:
    """What a feature's strongest examples share; empty if there are none."""
    return " · ".join(_fires(evidence))


def _fires(evidence: FeatureEvidence) -> list[str]:
    if evidence.dead:
        return ["never fired"]
    top = evidence.top[:TOP]
    if not top:
        return []
    counted = Counter(_same(example.tokens[example.peak]) for example in top)
    shown = {_same(example.tokens[example.peak]): example.tokens[example.peak] for example in reversed(top)}
    named = [key for key, count in counted.most_common(_NAMED) if count > 1 or len(top) == 1]
    parts = []
    if named and sum(counted[key] for key in named) >= _SHARE * len(top):
        parts.append("on " + ", ".join(quoted(shown[key].strip() or shown[key]) for key in named))
    elif named:
        parts.append("on many tokens, as " + ", ".join(quoted(shown[key].strip() or shown[key]) for key in named))
    else:
        parts.append("on many tokens")
    if len(top) < 3:
        return parts
    for word, offset in (("after", -1), ("before", 1)):
        if (common := _common(_beside(one, offset) for one in top)) is not None:
            parts.append(f"{word} {quoted(common)}")
    near = Counter(word for one in top for word in _around(one))
    taken = set(named) | {_same(part) for part in parts}
    often = [word for word, count in near.most_common(8) if count >= _SHARE * len(top) and word not in taken]
    if often:
        parts.append("near " + ", ".join(quoted(word) for word in often[:_NAMED]))
    return parts


def _beside(example: Example, offset: int) -> str:
    at = example.peak + offset
    return example.tokens[at] if 0 <= at < len(example.tokens) else ""


def _common(tokens: Iterable[str]) -> str | None:
    """The token that most of `tokens` are, None if there is none."""
    every = list(tokens)
    (key, count), *_ = Counter(_same(token) for token in every).most_common(1)
    if not key.strip() or count < 0.7 * len(every):
        return None
    return next(token.strip() or token for token in every if _same(token) == key)


def _around(example: Example) -> list[str]:
    """Words near the peak that say something, without the two beside it, each once. In the order of the text: that of a
    set is another in every process, and with it the words that are named."""
    first, last = max(example.peak - _AROUND, 0), example.peak + _AROUND + 1
    far = [t for i, t in enumerate(example.tokens[first:last], first) if abs(i - example.peak) > 1]
    words = dict.fromkeys(_same(token) for token in far if token.strip().isalpha() and len(token.strip()) > 2)
    return [word for word in words if word not in _COMMON and word != _same(example.tokens[example.peak])]
